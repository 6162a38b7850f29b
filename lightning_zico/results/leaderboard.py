"""Candidates ranked."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from rich.table import Table as RichTable

from lightning_zico._imports import import_optional
from lightning_zico.report import Layers, Page, Table, as_html, as_text, draw, for_terminal, log_ranking
from lightning_zico.results import views
from lightning_zico.results.finals import rows_with_finals
from lightning_zico.results.notes import LEAST_COVERED, first_of_a_zoo, leaderboard_notes
from lightning_zico.results.ranked import Ranked, first_rows
from lightning_zico.results.rows import (
    FINAL_COLUMNS,
    HYPERPARAMETER,
    LEARNED_COLUMNS,
    MISSING_COLUMN,
    SEED_COLUMNS,
    UNCERTAINTY_COLUMNS,
    WHOLE_NUMBERS,
    Covered,
    FinalsHeld,
    Missing,
    Provenance,
    Row,
    as_csv,
    as_provenance,
    check_rows,
    columns_of,
    proxies_of,
    rank_key,
    ranks_of,
    reasons_of,
)
from lightning_zico.results.saturated import collect_saturated
from lightning_zico.results.scores import Final, ScoreCard
from lightning_zico.results.views import FigureKind
from lightning_zico.texts import all_of, finite_or_text

# More rows than this make a cell of a notebook unwieldy.
_MOST_IN_A_NOTEBOOK = 100


@dataclass(frozen=True, repr=False)
class Leaderboard(Ranked):
    """Candidates ranked, best first, failed ones last.

    A row is ``leaderboard[0]``, the best, or ``leaderboard["name"]``.

    Args:
        rows: One row per candidate: ``rank`` (1 is best, equal scores share a rank, None if failed), ``name``,
            ``score`` (the number it is ranked by), one key for each proxy (its value or None), ``error`` (None or the
            reason), ``seconds``. Hyperparameters in which candidates differ are in keys such as ``hparams/width``.
            If candidates were scored in several repeats also ``std_error`` of the score,
            ``rank_low`` and ``rank_high`` (95 % interval of the rank), ``p_best`` (probability of being the best),
            ``tie`` (number of the group that cannot be distinguished from its first) and ``num_repeats``; all of them
            describe the ranking by score. After finals also, and None for candidates that were not in them: ``final``
            (the monitored metric), ``final_rank`` (among the finalists) and ``final_epochs`` (number of epochs that the
            candidate was trained for); with several seeds also ``final_std_error`` of ``final``. After finals with
            ``learn="rank"`` also ``learned`` (the expected rank of the candidate after training), ``learned_low`` and
            ``learned_high`` (its 95 % interval).
        provenance: Everything that the numbers depend on, in plain values; see `results.rows.Provenance`. If a
            candidate has a score but other numbers are missing, also ``missing``, which `missing` reads.

    Example:
        >>> from lightning_zico import Score
        >>> cards = [ScoreCard("a", {"zico": Score("zico", 1.0)}), ScoreCard("b", {"zico": Score("zico", 2.0)})]
        >>> leaderboard = Leaderboard.of(cards, rank_by="zico", columns=["zico"])
        >>> leaderboard.best, len(leaderboard), "a" in leaderboard
        ('b', 2, True)
        >>> print(leaderboard)
        Ranked by zico
        rank  name  zico  seconds
           1  b        2        0
           2  a        1        0
    """

    kind: ClassVar[str] = "candidate"

    rows: tuple[Row, ...]
    provenance: Provenance = field(default_factory=Provenance)

    @property
    def best_first(self) -> tuple[Row, ...]:
        """The same as ``rows``."""
        return self.rows

    @classmethod
    def of(
        cls,
        cards: Sequence[ScoreCard],
        *,
        rank_by: str,
        columns: Sequence[str],
        higher_is_better: bool = True,
        uncertainty: Mapping[str, Row] | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> "Leaderboard":
        """Rank score cards.

        Args:
            cards: Score cards in the order in which the candidates were offered; equal scores keep that order.
            rank_by: Name of the score to rank by.
            columns: Names of the scores to show.
            higher_is_better: Direction of that score.
            uncertainty: For each candidate that can be ranked, what its repeats show (`UNCERTAINTY_COLUMNS`); None if
                nothing was repeated. Candidates with fewer repeats than others left a race, and are ranked behind them.
            provenance: Kept as it is. ``rank_by`` and ``higher_is_better`` are added if they are absent, ``missing`` if
                numbers are missing, ``saturated`` if scores are at their maximum for several candidates, and
                ``covered`` if layer scores cover less than nine tenths of the trainable weights, and not all that have
                two or more dimensions.
        """
        differing = _list_differing(cards)
        rows = [_row_of(card, rank_by, columns, differing, uncertainty) for card in cards]
        keys = [rank_key(row["score"], row.get("num_repeats"), higher_is_better) for row in rows]
        for row, rank in zip(rows, ranks_of(keys), strict=True):
            row["rank"] = rank
        ranked = sorted((row for row in rows if row["rank"] is not None), key=lambda row: row["rank"])  # stable
        failed = [row for row in rows if row["rank"] is None]
        scored = {row["name"] for row in ranked}
        missing = _collect_missing(scored, cards, columns)
        covered = _collect_covered(
            scored, cards, [name for name in columns if name not in (provenance or {}).get("kendall_with", {})]
        )
        recorded = as_provenance({"rank_by": rank_by, "higher_is_better": higher_is_better, **(provenance or {})})
        if missing:
            recorded["missing"] = missing
        if covered:
            recorded["covered"] = covered
        if saturated := collect_saturated(scored, cards, columns):
            recorded["saturated"] = saturated
        if changes := {card.name: list(card.process_changes) for card in cards if card.process_changes}:
            recorded["process_changes"] = changes
        return cls((*ranked, *failed), recorded)

    def with_finals(
        self, finals: Sequence[Final], provenance: FinalsHeld, learned: Mapping[str, Row] | None = None
    ) -> "Leaderboard":
        """Rank again after finals: the finalists first, ordered by the result of training, then the others.

        Args:
            finals: Results of the finals, best first. A finalist that failed loses its rank, and its row says why.
            provenance: How the finals were held: ``monitor``, ``mode``, ``finalists``, ``final_epochs``, ``halving``,
                and whether they ``broke_off``.
            learned: What was learned about each candidate (`LEARNED_COLUMNS`); None if nothing was.

        Example:
            >>> from lightning_zico import Score
            >>> cards = [ScoreCard(name, {"zico": Score("zico", score)}) for name, score in zip("abc", (3.0, 2.0, 1.0))]
            >>> leaderboard = Leaderboard.of(cards, rank_by="zico", columns=["zico"])
            >>> held = {"monitor": "val_loss", "mode": "min", "finalists": 2, "final_epochs": 1, "halving": False}
            >>> print(leaderboard.with_finals([Final("b", 0.5, 1), Final("a", 0.7, 1)], held))
            Ranked by zico
            rank  name  final  final_rank  final_epochs  zico  seconds
               1  b       0.5           1             1     2        0
               2  a       0.7           2             1     3        0
               3  c         -           -             -     1        0
            Finals: the first 2 by score were trained for 1 epoch; the lowest val_loss won.
        """
        rows = rows_with_finals(self.rows, finals, learned)
        return Leaderboard(tuple(rows), {**self.provenance, "finals": provenance})

    def head(self, n: int = 5) -> "Leaderboard":
        """Return a leaderboard of the first rows.

        Ranks, intervals and probabilities stay those among all candidates, and so do the notes on the whole ranking.

        Args:
            n: Number of rows; fewer if there are fewer.

        Raises:
            ValueError: If it is negative.
        """
        rows = first_rows(self.rows, n)
        provenance = self.provenance.copy()
        provenance["head_of"] = provenance.get("head_of", len(self))
        shown = {row["name"] for row in rows}
        missing: list[Missing] = []
        for group in provenance.pop("missing", ()):
            if names := [name for name in group["names"] if name in shown]:
                missing.append({**group, "names": names})
        if missing:
            provenance["missing"] = missing
        return Leaderboard(rows, provenance)

    def __str__(self) -> str:
        """A table with the columns that were asked for, the reasons of the failed candidates and the notes."""
        return as_text(self._table())

    def _repr_html_(self) -> str:
        """The same as HTML, for notebooks; the first rows if there are very many."""
        return as_html(self.head(_MOST_IN_A_NOTEBOOK)._table() if len(self) > _MOST_IN_A_NOTEBOOK else self._table())

    def _table(self) -> Table:
        return views.table(self.rows, self.provenance, self.notes, views.columns_to_print(self.rows, self.provenance))

    @property
    def notes(self) -> list[str]:
        """Sentences that you should read before you trust the ranking.

        They say whether candidates are missing because ranking was interrupted; how finals were held; whether repeats
        can distinguish the first candidates, which candidates left a race, and which ones keep their weights; what the
        recipe that ranks combines, and which one replaced a recipe whose members do not apply; Kendall's tau of the
        ranking with each trivial baseline on the same candidates, and whether one of them gives almost the same
        ranking; which scores are at their maximum for several candidates, and cannot tell them apart; which layer
        scores look at few of the trainable weights; which callbacks of the trainer took no part; why numbers are
        missing; which candidates changed settings of the process; and, for a zoo's candidates, what matters more than
        any score.
        """
        return leaderboard_notes(self.rows, self.provenance)

    @property
    def first_of_a_zoo(self) -> list[str]:
        """Names of the candidates to hold finals among, if some are of a zoo and no finals were held."""
        return first_of_a_zoo(self.rows, self.provenance)

    def describe_failures(self) -> str:
        """Describe that all candidates failed, with the reason of the first; for error messages.

        Example:
            >>> card = ScoreCard.failed("a", ["zico"], "no loss.")
            >>> Leaderboard.of([card], rank_by="zico", columns=["zico"]).describe_failures()
            "The only candidate failed. 'a' failed with: no loss."
        """
        name, reason = next(iter(self.errors.items()))
        return f"{all_of(len(self), 'candidate')} failed. '{name}' failed with: {reason}"

    @property
    def missing(self) -> dict[str, dict[str, list[str]]]:
        """Why candidates with a score have no number in other columns; `errors` covers the failed candidates.

        Returns:
            Names of the candidates, by column and by reason.

        Example:
            >>> from lightning_zico import Score
            >>> scores = {"params": Score("params", 3.0), "zico": Score("zico", None, "IndexError: no")}
            >>> leaderboard = Leaderboard.of([ScoreCard("a", scores)], rank_by="params", columns=list(scores))
            >>> leaderboard.missing
            {'zico': {'IndexError: no': ['a']}}
        """
        return reasons_of(self.provenance)

    @property
    def columns(self) -> list[str]:
        """Names of the columns, in the order of `to_pandas` and `to_csv`; the latter has one more."""
        return columns_of(self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Turn into ``{"rows": [...], "provenance": {...}}``, best first."""
        return {"rows": [dict(row) for row in self.rows], "provenance": dict(self.provenance)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Leaderboard":
        """Make a leaderboard from what `to_dict` returned.

        Raises:
            KeyError: If a row is not a row of a leaderboard.
        """
        check_rows(data["rows"], {"rank", "name", "score", "error"}, "the leaderboard")
        return cls(tuple(dict(row) for row in data["rows"]), as_provenance(data["provenance"]))

    def _csv(self) -> str:
        reasons: dict[str, list[str]] = {}
        missing = self.missing
        for column in self.columns:
            for reason, names in missing.get(column, {}).items():
                for name in names:
                    reasons.setdefault(name, []).append(f"{column}: {reason}")
        rows = [{**row, MISSING_COLUMN: "; ".join(reasons.get(row["name"], ()))} for row in self.rows]
        return as_csv([*self.columns, MISSING_COLUMN], rows)

    def to_pandas(self) -> Any:
        """Turn into a `pandas.DataFrame` with the same columns; ranks and other counts are nullable integers.

        Raises:
            ModuleNotFoundError: If pandas is not installed.
        """
        otherwise = "`to_csv` and `to_dict` work without it."
        pandas = import_optional("pandas", "`to_pandas` needs pandas", "pandas", otherwise=otherwise)
        whole = {column: "Int64" for column in self.columns if column in WHOLE_NUMBERS}
        return pandas.DataFrame(list(self.rows), columns=self.columns).astype(whole)

    def plot(self, kind: FigureKind = "ranks", ax: Any = None, cost: str = "macs") -> tuple[Any, Any]:
        """Draw a figure with matplotlib.

        Args:
            kind: ``"ranks"``: each candidate's rank by score, with its 95 % interval if there were repeats, for the
                first 40; ``"pareto"``: score against a cost, with the candidates that no other beats in both;
                ``"agreement"``: Kendall's tau of the proxies and baselines; ``"profiles"``: the first 40 as lines
                across all columns (parallel coordinates); or ``"finals"``.
            ax: Axes to draw in; new ones if None.
            cost: Name of the column with the cost of ``"pareto"``; lower is better.

        Returns:
            Figure and axes, as returned by torchmetrics' ``plot``.

        Raises:
            ValueError: If there is no such figure, or the leaderboard lacks what it shows.
            ModuleNotFoundError: If matplotlib is not installed.
        """
        return draw(views.figure_of(kind, self.rows, self.provenance, cost), ax)

    def _page(self, layers: Layers | None, cards: Mapping[str, ScoreCard]) -> Page:
        return views.page(self.rows, self.provenance, self.notes, layers, cards)

    def log(self, logger: Any) -> None:
        """Log the ranking to a Lightning logger, such as CSV or TensorBoard; see `report.logs.log_ranking`.

        Raises:
            InvalidArgumentError: If it is not a logger.
        """
        finals = [column for column in self.columns if column in (*FINAL_COLUMNS, *SEED_COLUMNS, *LEARNED_COLUMNS)]
        columns = ["rank", "name", "score", *finals, *proxies_of(self.rows), "error"]
        log_ranking(logger, rows=self.rows, columns=columns, notes=self.notes, provenance=self.to_dict()["provenance"])


def leaderboard_table(leaderboard: Leaderboard, title: str | None = None) -> RichTable:
    """Draw a leaderboard with all its columns for the terminal.

    Best first, with the reasons of the failed candidates and the notes below. If candidates were scored in several
    repeats, the ranked score has its standard error beside it, and the names are followed by the 95 % interval of the
    rank, the probability of being the best, the number of the tie group if it has more than one member, and the number
    of repeats if they differ. If the terminal is too narrow for all columns, the last ones are left out, and a line
    below says how many; ranks, names and the deciding columns stay.

    Args:
        leaderboard: Leaderboard to draw.
        title: Title above the table; None to name the ranked score.

    Returns:
        A table for `rich.print`.
    """
    rows = leaderboard.rows
    return for_terminal(views.table(rows, leaderboard.provenance, leaderboard.notes, proxies_of(rows), title))


def _list_differing(cards: Sequence[ScoreCard]) -> list[str]:
    """List the hyperparameters that tell candidates apart; one that only some of them have does, too."""
    names = dict.fromkeys(name for card in cards for name in card.hyperparameters)
    seen = {name: {repr(card.hyperparameters.get(name, "")) for card in cards if card.weights} for name in names}
    return [name for name in names if len(seen[name]) > 1]


def _row_of(
    card: ScoreCard,
    rank_by: str,
    columns: Sequence[str],
    hyperparameters: Sequence[str],
    uncertainty: Mapping[str, Row] | None,
) -> Row:
    scored = card.scores.get(rank_by)
    error = card.error or card.untrainable or (scored.error if scored else f"`{rank_by}` was not computed")
    values = {name: card.scores[name].value if name in card.scores else None for name in columns}
    certainty = {} if uncertainty is None else dict.fromkeys(UNCERTAINTY_COLUMNS) | uncertainty.get(card.name, {})
    return {
        "rank": None,
        "name": card.name,
        "score": scored.value if scored and not error else None,
        **{f"{HYPERPARAMETER}{name}": finite_or_text(card.hyperparameters.get(name)) for name in hyperparameters},
        **certainty,
        **values,
        "error": error,
        "seconds": card.seconds,
    }


def _collect_missing(scored: Container[str], cards: Sequence[ScoreCard], columns: Sequence[str]) -> list[Missing]:
    """Collect why numbers are missing.

    One cause often makes many proxies fail for the same candidates. Each reason and each list of names is then stored
    only once, so the result stays small for thousands of candidates, too.

    Args:
        scored: Names of the candidates that have a score; the rows of the others say why they have none.
        cards: Score cards of all candidates.
        columns: Names of the scores.
    """
    names: dict[tuple[str, str], list[str]] = {}
    for card in cards:
        for column in columns if card.name in scored else ():
            if column in card.scores and (reason := card.scores[column].error):
                names.setdefault((column, reason), []).append(card.name)
    proxies: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (column, reason), missing in names.items():
        proxies.setdefault((reason, tuple(missing)), []).append(column)
    return [
        {"reason": reason, "proxies": alike, "names": list(missing)} for (reason, missing), alike in proxies.items()
    ]


def _collect_covered(scored: Container[str], cards: Sequence[ScoreCard], columns: Sequence[str]) -> list[Covered]:
    """Collect which layer scores look at too few of a candidate's trainable weights.

    Returns:
        For each group of scores that agree in this: the lowest share, the candidate that has it, and the number of
        candidates with a low share.
    """
    alike: dict[tuple[float, str, int], list[str]] = {}
    for column in columns:
        looked_at = [
            (card.scores[column].details, card.name) for card in cards if card.name in scored and column in card.scores
        ]
        low = [
            (details["covered"], name)
            for details, name in looked_at
            # If everything but biases, gains and norms was looked at, there is nothing to report.
            if details.get("covered", 1.0) < min(LEAST_COVERED, details.get("coverable", 1.0))
        ]
        if low:
            alike.setdefault((*min(low), len(low)), []).append(column)
    return [
        {"proxies": proxies, "share": share, "name": name, "count": count}
        for (share, name, count), proxies in alike.items()
    ]
