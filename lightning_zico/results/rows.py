"""Rows of results and what they depend on: columns, ranks, and how both are written and read."""

import csv
import io
import json
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, TypeAlias, TypedDict, cast, overload

from lightning_zico.texts import defused, printable

Row: TypeAlias = dict[str, Any]

# Columns of every leaderboard; the proxies' columns come between the first and the last ones.
FIRST_COLUMNS = ("rank", "name", "score")
FINAL_COLUMNS = ("final", "final_rank", "final_epochs")  # only after finals
SEED_COLUMNS = ("final_std_error",)  # only after finals with several seeds
LEARNED_COLUMNS = ("learned", "learned_low", "learned_high")  # only after finals with `learn="rank"`
LAST_COLUMNS = ("error", "seconds")
# After the first columns, if candidates were scored in several repeats.
UNCERTAINTY_COLUMNS = ("std_error", "rank_low", "rank_high", "p_best", "tie", "num_repeats")
FIXED_COLUMNS = frozenset(
    FIRST_COLUMNS + FINAL_COLUMNS + SEED_COLUMNS + LEARNED_COLUMNS + UNCERTAINTY_COLUMNS + LAST_COLUMNS
)
HYPERPARAMETER = "hparams/"  # prefix of the columns of hyperparameters, as in TensorBoard
MISSING_COLUMN = "missing"  # the last one of a file of comma-separated values
WHOLE_NUMBERS = (
    *("rank", "final_rank", "final_epochs", "learned_low", "learned_high", "rank_low", "rank_high", "tie"),
    "num_repeats",
)
# Names that no proxy may have.
RESERVED_NAMES = FIXED_COLUMNS | {MISSING_COLUMN, "controlled", "default", "all"}


class ReadingFacts(TypedDict):
    """How batches were read from data that has fewer than were requested.

    Attributes:
        num_batches: Number of batches that were requested.
        num_in_a_pass: Number of batches that the data has.
        num_passes: How often it was read.
        are_copies: Whether every pass gives the same samples.
    """

    num_batches: int
    num_in_a_pass: int
    num_passes: int
    are_copies: bool


class Lacking(TypedDict):
    """Why a member of a recipe has no number for some candidates.

    Attributes:
        member: Name of the proxy.
        reason: The most frequent reason.
        name: The first candidate with that reason.
        count: Number of candidates without a number.
        num_reasons: Number of different reasons.
    """

    member: str
    reason: str
    name: str
    count: int
    num_reasons: int


class Beside(TypedDict):
    """The recipe that ranks the few candidates that the recipe in use does not apply to.

    Attributes:
        used: Name of that recipe.
        members: Its members.
        names: The candidates that it ranks.
    """

    used: str
    members: list[str]
    names: list[str]


class HeldOutDifference(TypedDict):
    """How far apart the first two candidates are by the predictions of `ridge_probe` for samples it was not fitted on.

    Attributes:
        first: Name of the first candidate.
        second: Name of the second one.
        points: Accuracy of the first minus that of the second, in percent.
        std_error: Standard error of that difference, in percent, from the same samples of both.
        num_samples: Number of these samples.
    """

    first: str
    second: str
    points: float
    std_error: float
    num_samples: int


class _UsedRecipe(TypedDict):
    used: str
    members: list[str]
    aggregate: str | None


class UsedRecipe(_UsedRecipe, total=False):
    """The recipe that was combined in place of the one that the user named.

    Attributes:
        used: Name of the recipe.
        members: Names of the proxies that it combines.
        aggregate: Name of the function that combines them; None for a single member.
        dropped: Members of the recipe that the user named, if they were not combined.
        lacking: Members without a number for some candidates; absent if there are none.
        beside: Absent if the recipe applies to all candidates.
    """

    dropped: list[str]
    lacking: list[Lacking]
    beside: Beside


class Missing(TypedDict):
    """Why candidates with a score have no number in some columns.

    Attributes:
        reason: The reason, the same for all.
        proxies: Names of the columns.
        names: Names of the candidates.
    """

    reason: str
    proxies: list[str]
    names: list[str]


class Covered(TypedDict):
    """Layer scores that look at few of the trainable weights.

    Attributes:
        proxies: Names of the columns that agree in what follows.
        share: The lowest share of the weights, from 0 to 1.
        name: The candidate with the lowest share.
        count: Number of candidates with a low share.
    """

    proxies: list[str]
    share: float
    name: str
    count: int


class Saturated(TypedDict):
    """Scores that are at the maximum that their number of samples allows, for two or more candidates.

    Attributes:
        proxies: Names of the columns that agree in what follows.
        count: Number of candidates at the maximum.
        num_scored: Number of candidates with a number.
        num_samples: Number of samples that the scores are computed from.
        more_samples: Name of the setting that raises the number of samples; None if more would not help.
    """

    proxies: list[str]
    count: int
    num_scored: int
    num_samples: int
    more_samples: str | None


class Agreement(TypedDict):
    """How much two rounds of finals agree, on the finalists that took part in both.

    Attributes:
        round: Number of the first of the two rounds, from 1.
        n: Number of these finalists.
        tau: Kendall's tau of their values in the two rounds; None if it is not defined.
        low: Lower end of its 95 % interval (`ranking.kendall_interval`).
        high: Upper end of its 95 % interval.
    """

    round: int
    n: int
    tau: float | None
    low: float | None
    high: float | None


# How many times fewer finalists each round has than the one before, unless the user says otherwise.
REDUCTION_FACTOR = 2

# With a lower Kendall's tau between two rounds of finals, a note advises longer ones, and no finalist is dropped unless
# the user says otherwise.
LEAST_AGREEMENT = 0.5


class _FinalsHeld(TypedDict):
    monitor: str
    mode: str
    finalists: int
    final_epochs: int
    halving: bool


class FinalsHeld(_FinalsHeld, total=False):
    """How finals were held.

    Attributes:
        monitor: Name of the metric that decided.
        mode: ``"min"`` if lower values of it are better, ``"max"`` if higher ones are.
        finalists: Number of candidates that took part.
        final_epochs: Number of epochs of the first round.
        halving: Whether only the better ones were trained on after each round.
        reduction_factor: Factor by which their number fell; `REDUCTION_FACTOR` if absent.
        least_agreement: The tau below which no finalist was dropped; `LEAST_AGREEMENT` if absent.
        patience: Number of validations without improvement after which a training ended; absent if there was no limit.
        learn: Whether the finalists were chosen by the results before them, or ``"rank"`` if they were spread over the
            ranking; False if absent: the first by score.
        first_by: Name of the score by which the first ones were chosen.
        seeds: Number of seeds with which each finalist was trained; 1 if absent.
        tie: Names of the finalists that cannot be distinguished from the winner, with the winner first; absent with one
            seed.
        agreement: How much each round agrees with the next, as long as four or more finalists took part in both.
        time_budget_s: Time for the finals, in seconds; absent if there was no limit.
        most_finalists: Number of candidates that would have taken part with more time.
        lacked_time: Whether there was no time for a round.
        rounds: Number of rounds that were held, and number of rounds that this many finalists have.
        broke_off: Whether the finals were interrupted.
    """

    learn: bool | str
    first_by: str
    seeds: int
    tie: list[str]
    agreement: list[Agreement]
    reduction_factor: int
    least_agreement: float
    patience: int
    time_budget_s: float
    most_finalists: int
    lacked_time: bool
    rounds: list[int]
    broke_off: bool


class Provenance(TypedDict, total=False):
    """What the numbers of a ranking or a search depend on, and what happened to it, in plain values.

    Notes, figures and the command line read the keys below. `ZeroShotSelector` and `ZeroShotSearch` record more
    (settings, versions, hashes), which are shown as they are. Every key may be absent: results of earlier versions, or
    made by hand, lack some.

    Attributes:
        rank_by: Name of the score that decides.
        higher_is_better: Direction of that score; True if absent.
        proxies: Names of all proxies that were computed.
        asked: Names of the proxies and recipes that the user asked for; the other ones are members of recipes and the
            trivial baselines.
        recipes: What was combined for each recipe, by the name that the user gave.
        kendall_with: Kendall's tau of the ranking with each trivial baseline; None where it is not defined.
        kendall_with_prior: The same with known numbers, such as published accuracies; None without these.
        kendall_of_ridge_probe_with_prior: Kendall's tau of `ridge_probe` with these numbers; None without one of them.
        held_out_difference: None unless candidates were scored once, and by `ridge_probe`.
        batch_size: The largest number of samples in a batch that was asked for; None for the loader's own.
        num_larger_batches: Number of batches that have more samples, because they could not be cut.
        batches_hash: Hash of the batches that candidates were scored on; None if they cannot be hashed.
        devices: Devices that candidates were scored on; empty for those on which they were built.
        reading: None if the training data had as many batches as were requested.
        repeats: Number of repeats; 1 if absent.
        race: Whether candidates could be dropped before they had all repeats.
        num_instances: Number of candidates that were passed as built models.
        num_with_same_weights: Number of factories that make the same weights in every repeat.
        equal_repeats: Names of the candidates whose repeats gave equal scores.
        num_of_a_zoo: Number of candidates from a zoo.
        num_pretrained: Number of candidates that say that they are pretrained.
        needs_pretrained: Whether the score to rank by is meant for pretrained candidates.
        priors: Where the values of priors come from, and from when, by name of the column.
        left_out_callbacks: Classes of the trainer's callbacks that took no part.
        process_changes: Settings of the process that candidates changed, by candidate.
        missing: Reasons of missing numbers of candidates with a score.
        covered: Layer scores that look at few of the trainable weights.
        saturated: Scores that are at their maximum for two or more candidates.
        finals: How finals were held; absent if there were none.
        broke_off: Whether the ranking or the search was interrupted.
        space: Name of the space that was searched.
        against: Costs that a search kept low.
        num_rejected: Number of proposals of a search that were rejected without being scored.
        num_elsewhere: Number of archs that other processes were scoring.
        exhausted: Whether a search ended for lack of new proposals.
        in_channels: Number of channels of the images that a search scored with.
        head_of: Number of candidates of the leaderboard that these rows are the first of; absent in a whole one.
    """

    rank_by: str
    higher_is_better: bool
    proxies: list[str]
    asked: list[str]
    recipes: dict[str, UsedRecipe]
    kendall_with: dict[str, float | None]
    kendall_with_prior: float | None
    kendall_of_ridge_probe_with_prior: float | None
    held_out_difference: HeldOutDifference | None
    batch_size: int | None
    num_larger_batches: int
    batches_hash: str | None
    devices: list[str]
    reading: ReadingFacts | None
    repeats: int
    race: bool
    num_instances: int
    num_with_same_weights: int
    equal_repeats: list[str]
    num_of_a_zoo: int
    num_pretrained: int
    needs_pretrained: bool
    priors: dict[str, str]
    left_out_callbacks: list[str]
    process_changes: dict[str, list[str]]
    missing: list[Missing]
    covered: list[Covered]
    saturated: list[Saturated]
    finals: FinalsHeld
    broke_off: bool
    space: str
    against: list[str]
    num_rejected: int
    num_elsewhere: int
    exhausted: bool
    in_channels: int
    head_of: int


def as_provenance(recorded: Mapping[str, Any]) -> Provenance:
    """Copy what was recorded, or read from JSON; keys that `Provenance` does not name stay."""
    return cast("Provenance", dict(recorded))


def columns_of(rows: Sequence[Row]) -> list[str]:
    """Return the names of the columns of a leaderboard's rows, in their order."""
    keys = [key for key in rows[0] if key not in FIRST_COLUMNS + LAST_COLUMNS] if rows else []
    return [*FIRST_COLUMNS, *keys, *LAST_COLUMNS]


def proxies_of(rows: Sequence[Row]) -> list[str]:
    """Return the names of the columns that hold a proxy's or a recipe's numbers."""
    others = FIXED_COLUMNS.union(hyperparameter_columns(rows))
    return [column for column in columns_of(rows) if column not in others]


def hyperparameter_columns(rows: Sequence[Row]) -> list[str]:
    """Return the names of the columns that hold the candidates' hyperparameters."""
    return [column for column in columns_of(rows) if column.startswith(HYPERPARAMETER)]


def rank_key(score: float | None, num_repeats: int | None, higher_is_better: bool) -> tuple[int, float] | None:
    """Return the value to rank a candidate by, the highest first: more repeats, then the score.

    A candidate with more repeats stayed longer in a race.

    Args:
        score: Its score; None if it has none, and so no rank.
        num_repeats: Number of its repeats; None if nothing was repeated.
        higher_is_better: Direction of the score.
    """
    return None if score is None else (num_repeats or 0, score if higher_is_better else -score)


def margin_of(row: Mapping[str, Any]) -> str:
    """Return the standard error of a row's score as text to append; an empty text if there is no error."""
    return "" if row.get("std_error") is None else f" ± {row['std_error']:.2g}"


def number_ranks(values: Sequence[Any]) -> list[int]:
    """Number values that are in order from 1; equal neighbours share a rank."""
    ranks: list[int] = []
    for position, value in enumerate(values):
        tied = position > 0 and value == values[position - 1]
        ranks.append(ranks[-1] if tied else position + 1)
    return ranks


def ranks_of(scores: Sequence[Any], higher_is_better: bool = True) -> list[int | None]:
    """Return the rank of each score, 1 for the best; equal scores share a rank, and a missing score has none.

    Args:
        scores: Numbers, or other values that can be compared with each other; None for no score.
        higher_is_better: Direction of the scores.

    Example:
        >>> ranks_of([1.0, None, 3.0, 1.0])
        [2, None, 1, 2]
    """
    ordered = sorted((score for score in scores if score is not None), reverse=higher_is_better)
    ranks = dict(zip(reversed(ordered), reversed(number_ranks(ordered)), strict=True))
    return [None if score is None else ranks[score] for score in scores]


def as_candidates(history: Sequence[Row]) -> tuple[Row, ...]:
    """Turn the trials of a search into rows of a leaderboard: named by their archs, best first, failed ones last."""
    parts = [{key: row[key] for key in row if key not in ("trial", "arch", "on_front")} for row in history]
    rows = [row | {"name": trial["arch"]} for row, trial in zip(parts, history, strict=True)]
    ranked = sorted((row for row in rows if row["rank"] is not None), key=lambda row: row["rank"])
    return (*ranked, *(row for row in rows if row["rank"] is None))


def reasons_of(provenance: Provenance) -> dict[str, dict[str, list[str]]]:
    """Return the names of the candidates without a number, by column and by reason."""
    reasons: dict[str, dict[str, list[str]]] = {}
    for group in provenance.get("missing", ()):
        for proxy in group["proxies"]:
            reasons.setdefault(proxy, {})[group["reason"]] = list(group["names"])
    return reasons


def check_rows(rows: Sequence[Row], needed: Set[str], whose: str) -> None:
    """Raise KeyError if a row lacks a column."""
    for row in rows:
        if missing := needed - set(row):
            raise KeyError(f"A row of {whose} has no {', '.join(sorted(missing))}.")


def as_json(data: Mapping[str, Any]) -> str:
    """Return results as JSON; a number that is not finite raises a ValueError."""
    return json.dumps(data, indent=2, allow_nan=False) + "\n"


def read_json(source: str | Path) -> Any:
    """Parse JSON: the text, which starts with a brace, or the path of a file with it."""
    is_text = isinstance(source, str) and source.lstrip().startswith("{")
    return json.loads(str(source) if is_text else Path(source).read_text(encoding="utf-8"))


def as_csv(columns: Sequence[str], rows: Sequence[Row]) -> str:
    """Return comma-separated values with a header.

    A text never starts a formula, and has no control characters, which a terminal would obey; line breaks stay, within
    quotes.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")  # cells with either are quoted; that of the line is removed
    lines = []
    for cells in (columns, *([row.get(column) for column in columns] for row in rows)):
        writer.writerow([defused(printable(cell)) if isinstance(cell, str) else cell for cell in cells])
        lines.append(text.getvalue().removesuffix("\r\n"))
        text.seek(0)
        text.truncate()
    return "".join(f"{line}\n" for line in lines)


@overload
def write_text(text: str, path: None) -> str: ...
@overload
def write_text(text: str, path: str | Path) -> Path: ...
def write_text(text: str, path: str | Path | None) -> str | Path:
    """Write a text to a file and return its path; without a path, return the text."""
    if path is None:
        return text
    path = Path(path)
    # A name read from a file system may hold what UTF-8 cannot write.
    path.write_text(text, encoding="utf-8", errors="backslashreplace")
    return path
