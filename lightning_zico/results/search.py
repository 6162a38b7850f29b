"""The result of a search over a space."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from lightning_zico.results.leaderboard import Leaderboard
from lightning_zico.results.notes import if_there, note_on_reading, notes_on_ranking
from lightning_zico.results.rows import Row, as_csv, check_rows, read_json, written
from lightning_zico.texts import printable

SearchFigureKind: TypeAlias = Literal["history", "pareto", "agreement"]


@dataclass(frozen=True)
class SearchResult:
    """Result of a search.

    Args:
        history: One row per trial, in the order in which they began: ``trial`` (from 0), ``rank`` (1 is best, equal
            scores share a rank, None if failed), ``arch``, ``score`` (the number it is ranked by), one key for each
            proxy (its value or None), ``cost_macs``, ``cost_params`` and other costs that the search looked at,
            ``on_front`` (whether no other arch is at least as good in score and in each cost to keep low, and better in
            one), ``error`` (None or the reason), ``seconds``. No arch appears twice.
        provenance: Everything that the numbers depend on, in plain values, and how the search went; ``seconds`` of the
            last run, and ``seconds_searching``, the part of them spent on proposing and storing trials.

    Example:
        >>> rows = [{"trial": 0, "rank": 2, "arch": "a", "score": 1.0, "on_front": True, "error": None, "seconds": 0.1}]
        >>> rows += [{**rows[0], "trial": 1, "rank": 1, "arch": "b", "score": 2.0}]
        >>> result = SearchResult(tuple(rows))
        >>> result.best, [row["arch"] for row in result.front]
        ('b', ['b', 'a'])
    """

    history: tuple[Row, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.history)

    def __len__(self) -> int:
        return len(self.history)

    def __str__(self) -> str:
        """A line for each of the ten best, and the notes."""
        lines = [f"{row['rank']}. {row['score']:.6g}  {row['arch']}" for row in self.ranked[:10]]
        return printable("\n".join([*lines, *self.notes]))

    @property
    def notes(self) -> list[str]:
        """Sentences that you should read before you trust the result of the search."""
        failed = len(self) - len(self.ranked)
        rejected = self.provenance.get("num_rejected", 0)
        notes = [f"{len(self)} archs scored, {failed} of them without a score; {rejected:,} rejected unscored."]
        if self.provenance.get("broke_off"):
            notes.append("The search was interrupted.")
        if self.provenance.get("exhausted"):
            notes.append("It ended early: too many proposals in a row were over the budget or already scored.")
        if self.provenance.get("num_elsewhere"):
            notes.append(f"Archs that other processes are scoring: {self.provenance['num_elsewhere']}.")
        notes += if_there(note_on_reading(self.provenance.get("reading")))
        reasons = Counter(self.errors.values()).most_common(1)
        if reasons:
            notes.append(f"Most frequent reason for a missing score ({reasons[0][1]} of {failed}): {reasons[0][0]}")
        return notes + notes_on_ranking(self.provenance, "this ranking")

    @property
    def ranked(self) -> tuple[Row, ...]:
        """The rows that have a rank, best first; equal ones in the order of the trials."""
        return tuple(sorted((row for row in self.history if row["rank"] is not None), key=lambda row: row["rank"]))

    @property
    def best(self) -> str | None:
        """The arch with the best score; None if all failed."""
        ranked = self.ranked
        return ranked[0]["arch"] if ranked else None

    @property
    def front(self) -> tuple[Row, ...]:
        """The rows that no other dominates, best score first; without costs to keep low, those with the best score."""
        return tuple(row for row in self.ranked if row["on_front"])

    @property
    def errors(self) -> dict[str, str]:
        """Reasons of the archs that failed."""
        return {row["arch"]: row["error"] for row in self.history if row["rank"] is None}

    def to_dict(self) -> dict[str, Any]:
        """Turn into ``{"history": [...], "provenance": {...}}``, in the order of the trials."""
        return {"history": [dict(row) for row in self.history], "provenance": dict(self.provenance)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "SearchResult":
        """Make a result from what `to_dict` returned.

        Raises:
            KeyError: If a row is not a row of a search.
        """
        check_rows(data["history"], {"trial", "rank", "arch", "score", "error"}, "the history")
        return cls(tuple(dict(row) for row in data["history"]), dict(data["provenance"]))

    def to_json(self, path: str | Path | None = None) -> str:
        """Turn into JSON, and write it to a file if a path is given."""
        return written(json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n", path)

    @classmethod
    def from_json(cls, source: str | Path) -> "SearchResult":
        """Read a result from the JSON that `to_json` wrote: the text, or the path of a file with it."""
        return cls.from_dict(read_json(source))

    def to_csv(self, path: str | Path | None = None) -> str:
        """Turn into comma-separated values with a header, and write them to a file if a path is given."""
        return written(as_csv(list(self.history[0]) if self.history else [], self.history), path)

    def to_leaderboard(self) -> Leaderboard:
        """Rank the archs as candidates under their strings, best first, failed ones last; costs stay columns."""
        kept = [{key: row[key] for key in row if key not in ("trial", "arch", "on_front")} for row in self.history]
        rows = [row | {"name": trial["arch"]} for row, trial in zip(kept, self.history, strict=True)]
        ranked = sorted((row for row in rows if row["rank"] is not None), key=lambda row: row["rank"])
        return Leaderboard((*ranked, *(row for row in rows if row["rank"] is None)), dict(self.provenance))

    def plot(self, kind: SearchFigureKind = "history", ax: Any = None) -> tuple[Any, Any]:
        """Draw a figure with matplotlib; see `report.plots`.

        Args:
            kind: ``"history"``: the score of each trial, and the best so far; ``"pareto"``: score against the first
                cost that was kept low, or against MACs; or ``"agreement"``: Kendall's tau of the proxies and costs.
            ax: Axes to draw in; new ones if None.

        Returns:
            Figure and axes.

        Raises:
            ValueError: If there is no such figure.
            ModuleNotFoundError: If matplotlib is not installed.
        """
        from lightning_zico.report import plot_search

        return plot_search(self, kind, ax)

    def to_html(self, path: str | Path) -> Path:
        """Write one page for a browser that needs no network; see `report.write_html`."""
        from lightning_zico.report import write_html

        return write_html(self, path)
