"""Candidates ranked."""

import json
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

from lightning_zico._imports import imported
from lightning_zico.results.notes import MOST_NAMES, if_there, note_on_finals, note_on_reading, notes_on_ranking
from lightning_zico.results.rows import (
    FINAL_COLUMNS,
    FIRST_COLUMNS,
    LAST_COLUMNS,
    MISSING_COLUMN,
    UNCERTAINTY_COLUMNS,
    WHOLE_NUMBERS,
    Row,
    as_csv,
    check_rows,
    margin_of,
    numbered,
    read_json,
    standing_of,
    written,
)
from lightning_zico.results.scores import Final, ScoreCard
from lightning_zico.texts import printable

FigureKind: TypeAlias = Literal["ranks", "pareto", "agreement", "finals"]

# Most notes on missing numbers; every column may have reasons of its own.
_MOST_MISSING = 3

# Number of a zoo's candidates to train before one is chosen.
_NUM_FINALISTS = 5

# A note names the layer scores that cover less than this share of a candidate's trainable weights.
_LEAST_COVERED = 0.9


@dataclass(frozen=True)
class Leaderboard:
    """Candidates ranked, best first, failed ones last.

    Args:
        rows: One row per candidate: ``rank`` (1 is best, equal scores share a rank, None if failed), ``name``,
            ``score`` (the number it is ranked by), one key for each proxy (its value or None), ``error`` (None or the
            reason), ``seconds``. If candidates were scored in several repeats also ``std_error`` of the score,
            ``rank_low`` and ``rank_high`` (95 % interval of the rank), ``p_best`` (probability of being the best),
            ``tie`` (number of the group that cannot be distinguished from its first) and ``num_repeats``; all of them
            describe the ranking by score. After finals also, and None for candidates that were not in them: ``final``
            (the monitored metric), ``final_rank`` (among the finalists) and ``final_epochs`` (number of epochs that the
            candidate was trained for).
        provenance: Everything that the numbers depend on, in plain values. If a candidate has a score but other numbers
            are missing, also ``missing``, which `missing` reads.

    Example:
        >>> from lightning_zico import Score
        >>> cards = [ScoreCard("a", {"zico": Score("zico", 1.0)}), ScoreCard("b", {"zico": Score("zico", 2.0)})]
        >>> leaderboard = Leaderboard.of(cards, rank_by="zico", columns=["zico"])
        >>> [(row["rank"], row["name"]) for row in leaderboard]
        [(1, 'b'), (2, 'a')]
    """

    rows: tuple[Row, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)

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
            provenance: Kept as it is. ``missing`` is added if numbers are missing, and ``covered`` if layer scores
                cover less than nine tenths of the trainable weights, and not all that have two or more dimensions.
        """
        rows = [_row_of(card, rank_by, columns, uncertainty) for card in cards]
        ranked = [row for row in rows if row["score"] is not None]
        standing = partial(standing_of, higher_is_better=higher_is_better)
        ranked.sort(key=standing, reverse=True)  # stable, also in reverse
        for row, rank in zip(ranked, numbered([standing(row) for row in ranked]), strict=True):
            row["rank"] = rank
        failed = [row for row in rows if row["score"] is None]
        scored = {row["name"] for row in ranked}
        missing = _missing(scored, cards, columns)
        covered = _covered(
            scored, cards, [name for name in columns if name not in (provenance or {}).get("kendall_with", {})]
        )
        added: dict[str, Any] = {"missing": missing} if missing else {}
        added |= {"covered": covered} if covered else {}
        changes = {card.name: list(card.process_changes) for card in cards if card.process_changes}
        added |= {"process_changes": changes} if changes else {}
        return cls((*ranked, *failed), {**(provenance or {}), **added})

    def with_finals(self, finals: Sequence[Final], provenance: Mapping[str, Any]) -> "Leaderboard":
        """Rank again after finals: the finalists first, ordered by the result of training, then the others.

        Args:
            finals: Results of the finals, best first. A finalist that failed loses its rank, and its row says why.
            provenance: How the finals were held: ``monitor``, ``mode``, ``finalists``, ``final_epochs``, ``halving``,
                and whether they ``broke_off``.

        Example:
            >>> from lightning_zico import Score
            >>> cards = [ScoreCard(name, {"zico": Score("zico", score)}) for name, score in zip("abc", (3.0, 2.0, 1.0))]
            >>> leaderboard = Leaderboard.of(cards, rank_by="zico", columns=["zico"])
            >>> held = {"monitor": "val_loss", "mode": "min", "finalists": 2, "final_epochs": 1, "halving": False}
            >>> print(leaderboard.with_finals([Final("b", 0.5, 1), Final("a", 0.7, 1)], held))
            1. b  2  val_loss 0.5
            2. a  3  val_loss 0.7
            3. c  1
            Finals: the first 2 by score were trained for 1 epoch; the lowest val_loss won.
        """
        finished = [final for final in finals if final.error is None]
        failed = [final for final in finals if final.error is not None]
        row_of = {row["name"]: row for row in self.rows}
        others = [row for row in self.rows if row["name"] not in {final.name for final in finals}]
        ranked = [row for row in others if row["rank"] is not None]
        rows = []
        for final, rank in zip(
            finished, numbered([(final.num_epochs, final.value) for final in finished]), strict=True
        ):
            rows.append(_with_final(row_of[final.name], final) | {"rank": rank, "final_rank": rank})
        for row, rank in zip(ranked, numbered([row["rank"] for row in ranked]), strict=True):
            rows.append(_with_final(row, None) | {"rank": len(finished) + rank})
        for final in failed:
            rows.append(_with_final(row_of[final.name], final) | {"rank": None, "error": f"finals: {final.error}"})
        rows += [_with_final(row, None) for row in others if row["rank"] is None]
        return Leaderboard(tuple(rows), {**self.provenance, "finals": dict(provenance)})

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        """A line for each candidate, and the notes; `report.table.leaderboard_table` draws all columns."""
        lines = [
            f"{row['rank']}. {row['name']}  {row['score']:.6g}{margin_of(row)}"
            if row["rank"]
            else f"-. {row['name']}  {row['error']}"
            for row in self.rows
        ]
        for idx, row in enumerate(self.rows):
            if row.get("final") is not None:
                lines[idx] += f"  {self.provenance['finals']['monitor']} {row['final']:.6g}"
        return printable("\n".join([*lines, *self.notes]))

    @property
    def notes(self) -> list[str]:
        """Sentences that you should read before you trust the ranking.

        They say whether candidates are missing because ranking was interrupted; how finals were held; whether repeats
        can distinguish the first candidates, which candidates left a race, and which ones keep their weights; what the
        recipe that ranks combines, and which one replaced a recipe whose members do not apply; Kendall's tau of the
        ranking with each trivial baseline on the same candidates, and whether one of them gives almost the same
        ranking; which layer scores look at few of the trainable weights; which callbacks of the trainer took no part;
        why numbers are missing; which candidates changed settings of the process; and, for a zoo's candidates, what
        matters more than any score.
        """
        notes = []
        if self.provenance.get("broke_off"):
            notes.append(f"The ranking was interrupted; it contains only the {len(self)} candidates scored so far.")
        finals = self.provenance.get("finals")
        if finals:
            notes.append(note_on_finals(finals))
        ranking = "the ranking by score" if finals else "this ranking"
        notes += if_there(note_on_reading(self.provenance.get("reading")))
        notes += self._notes_on_repeats()
        notes += notes_on_ranking(self.provenance, ranking)
        if left_out := self.provenance.get("left_out_callbacks"):
            notes.append(
                "Hooks before the first training step did not run for these callbacks of the trainer: "
                f"{', '.join(left_out)}. They are Lightning's own or derived from its callbacks that watch training."
            )
        notes += self._notes_on_covered() + self._notes_on_missing() + self._notes_on_process()
        return notes + self._notes_on_zoos()

    def _notes_on_repeats(self) -> list[str]:
        notes = []
        tied = [row["name"] for row in self.rows if row.get("tie") == 1]
        if len(tied) > 1:
            first = f"{'By score, the' if 'finals' in self.provenance else 'The'} first {len(tied)} are a tie"
            more = f" and {len(tied) - MOST_NAMES} more" if len(tied) > MOST_NAMES else ""
            notes.append(f"{first} that these repeats cannot distinguish: {', '.join(tied[:MOST_NAMES])}{more}.")
        counts = [row["num_repeats"] for row in self.rows if row.get("num_repeats")]
        if self.provenance.get("race") and counts and max(counts) == 1:
            notes.append(
                "With so few candidates and repeats, the race gave each candidate one repeat, so the ranking has no "
                "error bars."
            )
        if counts and min(counts) < max(counts):
            notes.append(
                f"Race: the first {counts.count(max(counts))} have {max(counts)} repeats; the others were dropped with "
                "fewer, so their scores are not comparable with those of the first."
            )
        if self.provenance.get("repeats", 1) > 1 and self.provenance["num_instances"]:
            notes.append(
                f"{self.provenance['num_instances']} of the candidates were passed as built models and keep their "
                "weights: their repeats differ only in the batches."
            )
        if same := self.provenance.get("num_with_same_weights"):
            notes.append(
                f"{same} of the factories {'makes' if same == 1 else 'make'} the same weights in every repeat, because "
                "of a seed or a file: the repeats differ only in the batches."
            )
        if equal := self.provenance.get("equal_repeats"):
            more = f" and {len(equal) - MOST_NAMES} more" if len(equal) > MOST_NAMES else ""
            notes.append(
                f"The repeats of {', '.join(equal[:MOST_NAMES])}{more} are equal: the weights are the same in each, "
                f"and `{self.provenance['rank_by']}` depends on nothing else. They do not show how certain a rank is."
            )
        return notes

    def _notes_on_covered(self) -> list[str]:
        notes = []
        for said in self.provenance.get("covered", ()):
            more = f" and {len(said['proxies']) - MOST_NAMES} more" if len(said["proxies"]) > MOST_NAMES else ""
            note = f"{', '.join(said['proxies'][:MOST_NAMES])}{more} looked at {100 * said['share']:.2g} % of "
            note += f"{said['name']}'s trainable weights"
            if rest := said["count"] - 1:
                candidates = "1 other candidate" if rest == 1 else f"{rest} other candidates"
                note += f", and at less than {100 * _LEAST_COVERED:.0f} % in {candidates}"
            notes.append(f"{note}.")
        return notes

    def _notes_on_missing(self) -> list[str]:
        num_scored = sum(row["score"] is not None for row in self.rows)
        # These are why a recipe was replaced, which has a note of its own.
        lacking = {
            said["member"]
            for recipe in self.provenance.get("recipes", {}).values()
            for said in recipe.get("lacking", ())
        }
        alike: dict[tuple[tuple[str, int], ...], list[str]] = {}
        for proxy, reasons in self.missing.items():
            often = Counter({reason: len(names) for reason, names in reasons.items()}).most_common()
            if proxy not in lacking:
                alike.setdefault(tuple(often), []).append(proxy)
        ordered = sorted(alike.items(), key=lambda item: -sum(count for _, count in item[0]))
        notes = []
        for counts, proxies in ordered[:_MOST_MISSING]:
            missing, (reason, count) = sum(count for _, count in counts), counts[0]
            more = f" and {len(proxies) - MOST_NAMES} more" if len(proxies) > MOST_NAMES else ""
            have = f"{', '.join(proxies[:MOST_NAMES])}{more} {'has' if len(proxies) == 1 else 'have'}"
            among = f" (the most frequent of {len(counts)} reasons, {count} times)" if len(counts) > 1 else ""
            notes.append(f"{have} no number for {missing} of {num_scored} scored candidates{among}: {reason}")
        if rest := sum(len(proxies) for _, proxies in ordered[_MOST_MISSING:]):
            columns = "1 more column" if rest == 1 else f"{rest} more columns"
            notes.append(f"Numbers are missing in {columns}; `Leaderboard.missing` says why.")
        return notes

    def _notes_on_process(self) -> list[str]:
        changes = self.provenance.get("process_changes", {})
        named = [f"{name} ({', '.join(of_one[:MOST_NAMES])})" for name, of_one in list(changes.items())[:MOST_NAMES]]
        more = f" and {len(changes) - MOST_NAMES} more" if len(changes) > MOST_NAMES else ""
        said = (
            "Settings of the whole process were changed while candidates were built or scored, and put back after each:"
        )
        return [f"{said} {', '.join(named)}{more}."] if changes else []

    def _notes_on_zoos(self) -> list[str]:
        first = self.first_of_a_zoo
        if not first:
            return []
        notes = []
        groups = [[row["name"] for row in self.rows if row["rank"] == rank] for rank in range(1, _NUM_FINALISTS + 1)]
        if "tie" not in self.rows[0] and (equal := [" = ".join(group) for group in groups if len(group) > 1]):
            notes.append(f"Equal scores: {', '.join(equal)}.")
        notes.append(
            "These are models of a zoo: across families, the training recipe matters more than any proxy. Do not "
            f"assume that the first is the best; train the first {len(first)} for a while: "
            f"`ZeroShotSelector(trainer=..., finalists={len(first)})` with these candidates: {', '.join(first)}."
        )
        return notes

    @property
    def first_of_a_zoo(self) -> list[str]:
        """Names of the candidates to hold finals among, if some are of a zoo and no finals were held."""
        first = [row["name"] for row in self.rows if row["rank"] and row["rank"] <= _NUM_FINALISTS]
        is_open = self.provenance.get("num_of_a_zoo") and "finals" not in self.provenance
        return first if is_open and len(first) > 1 else []

    @property
    def best(self) -> str | None:
        """Name of the first candidate; None if all failed."""
        return self.rows[0]["name"] if self.rows and self.rows[0]["rank"] else None

    @property
    def errors(self) -> dict[str, str]:
        """Reasons of the candidates that failed, by name."""
        return {row["name"]: row["error"] for row in self.rows if row["rank"] is None}

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
        told: dict[str, dict[str, list[str]]] = {}
        for group in self.provenance.get("missing", ()):
            for proxy in group["proxies"]:
                told.setdefault(proxy, {})[group["reason"]] = list(group["names"])
        return told

    @property
    def columns(self) -> list[str]:
        """Names of the columns, in the order of `to_pandas` and `to_csv`; the latter has one more."""
        keys = [key for key in self.rows[0] if key not in FIRST_COLUMNS + LAST_COLUMNS] if self.rows else []
        return [*FIRST_COLUMNS, *keys, *LAST_COLUMNS]

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
        return cls(tuple(dict(row) for row in data["rows"]), dict(data["provenance"]))

    def to_json(self, path: str | Path | None = None) -> str:
        """Turn into JSON, and write it to a file if a path is given."""
        return written(json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n", path)

    @classmethod
    def from_json(cls, source: str | Path) -> "Leaderboard":
        """Read a leaderboard from the JSON that `to_json` wrote.

        Args:
            source: The JSON text, or the path of a file with it. A text starts with a brace, a path does not.
        """
        return cls.from_dict(read_json(source))

    def to_csv(self, path: str | Path | None = None) -> str:
        """Turn into comma-separated values with a header, and write them to a file if a path is given.

        The last column, ``missing``, says why a ranked candidate lacks other numbers: ``zico: reason; snip: reason``.
        """
        reasons: dict[str, list[str]] = {}
        told = self.missing
        for column in self.columns:
            for reason, names in told.get(column, {}).items():
                for name in names:
                    reasons.setdefault(name, []).append(f"{column}: {reason}")
        rows = [{**row, MISSING_COLUMN: "; ".join(reasons.get(row["name"], ()))} for row in self.rows]
        return written(as_csv([*self.columns, MISSING_COLUMN], rows), path)

    def to_pandas(self) -> Any:
        """Turn into a `pandas.DataFrame` with the same columns; ranks and other counts are nullable integers.

        Raises:
            ModuleNotFoundError: If pandas is not installed.
        """
        otherwise = "`to_csv` and `to_dict` work without it."
        pandas = imported("pandas", "`to_pandas` needs pandas", "pandas", otherwise=otherwise)
        whole = {column: "Int64" for column in self.columns if column in WHOLE_NUMBERS}
        return pandas.DataFrame(list(self.rows), columns=self.columns).astype(whole)

    def plot(self, kind: FigureKind = "ranks", ax: Any = None) -> tuple[Any, Any]:
        """Draw a figure with matplotlib; see `report.plots`.

        Args:
            kind: ``"ranks"`` with their intervals, ``"pareto"``: score against MACs, ``"agreement"``: Kendall's tau of
                the proxies and baselines, or ``"finals"``.
            ax: Axes to draw in; new ones if None.

        Returns:
            Figure and axes, as returned by torchmetrics' ``plot``.

        Raises:
            ValueError: If there is no such figure, or the leaderboard lacks what it shows.
            ModuleNotFoundError: If matplotlib is not installed.
        """
        from lightning_zico.report import plot

        return plot(self, kind, ax)

    def to_html(self, path: str | Path, card: ScoreCard | None = None) -> Path:
        """Write one page for a browser that needs no network; with a card, also draw its layers.

        See `report.write_html`.
        """
        from lightning_zico.report import write_html

        return write_html(self, path, card)

    def log(self, logger: Any) -> None:
        """Log the ranking to a Lightning logger, such as CSV or TensorBoard; see `report.logs.log_leaderboard`."""
        from lightning_zico.report import log_leaderboard

        log_leaderboard(self, logger)


def _row_of(card: ScoreCard, rank_by: str, columns: Sequence[str], uncertainty: Mapping[str, Row] | None) -> Row:
    scored = card.scores.get(rank_by)
    error = card.error or card.untrainable or (scored.error if scored else f"`{rank_by}` was not computed")
    values = {name: card.scores[name].value if name in card.scores else None for name in columns}
    said = {} if uncertainty is None else dict.fromkeys(UNCERTAINTY_COLUMNS) | uncertainty.get(card.name, {})
    return {
        "rank": None,
        "name": card.name,
        "score": scored.value if scored and not error else None,
        **said,
        **values,
        "error": error,
        "seconds": card.seconds,
    }


def _missing(scored: Container[str], cards: Sequence[ScoreCard], columns: Sequence[str]) -> list[dict[str, Any]]:
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


def _covered(scored: Container[str], cards: Sequence[ScoreCard], columns: Sequence[str]) -> list[dict[str, Any]]:
    """Collect which layer scores look at too few of a candidate's trainable weights.

    Returns:
        For each group of scores that agree in this: the lowest share, the candidate that has it, and the number of
        candidates with a low share.
    """
    alike: dict[tuple[float, str, int], list[str]] = {}
    for column in columns:
        said = [
            (card.scores[column].details, card.name) for card in cards if card.name in scored and column in card.scores
        ]
        low = [
            (details["covered"], name)
            for details, name in said
            # If everything but biases, gains and norms was looked at, there is nothing to report.
            if details.get("covered", 1.0) < min(_LEAST_COVERED, details.get("coverable", 1.0))
        ]
        if low:
            alike.setdefault((*min(low), len(low)), []).append(column)
    return [
        {"proxies": proxies, "share": share, "name": name, "count": count}
        for (share, name, count), proxies in alike.items()
    ]


def _with_final(row: Row, final: Final | None) -> Row:
    """Insert the columns of the finals after those of the score."""
    cells = {"final": final.value, "final_epochs": final.num_epochs} if final else {}
    return {**dict.fromkeys((*FIRST_COLUMNS, *FINAL_COLUMNS)), **cells, **row}
