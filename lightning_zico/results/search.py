"""The result of a search over a space."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from rich.table import Table as RichTable

from lightning_zico.report import Layers, Page, Table, as_html, draw, for_terminal
from lightning_zico.results import views
from lightning_zico.results.leaderboard import Leaderboard
from lightning_zico.results.notes import search_notes
from lightning_zico.results.ranked import Ranked, first_rows
from lightning_zico.results.rows import (
    Provenance,
    Row,
    as_candidates,
    as_csv,
    as_provenance,
    check_rows,
    proxies_of,
)
from lightning_zico.results.scores import ScoreCard
from lightning_zico.results.views import SearchFigureKind
from lightning_zico.texts import printable

# Rows that `print` and a notebook show.
_NUM_SHOWN = 10


@dataclass(frozen=True, repr=False)
class SearchResult(Ranked):
    """Result of a search: the archs, best first, failed ones last.

    A row is ``result[0]``, the best, or ``result["arch"]``; ``history`` has the rows in the order of the trials.

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
        >>> result.best, result[0]["score"], "a" in result, [row["arch"] for row in result.front]
        ('b', 2.0, True, ['b', 'a'])
    """

    kind: ClassVar[str] = "arch"
    name_key: ClassVar[str] = "arch"

    history: tuple[Row, ...]
    provenance: Provenance = field(default_factory=Provenance)

    @property
    def best_first(self) -> tuple[Row, ...]:
        """All rows, best first, failed ones last; equal ones in the order of the trials."""
        return (*self.ranked, *(row for row in self.history if row["rank"] is None))

    def head(self, n: int = 5) -> "SearchResult":
        """Return a result of the first rows, best first; ranks stay those among all archs.

        Args:
            n: Number of rows; fewer if there are fewer.

        Raises:
            ValueError: If it is negative.
        """
        provenance = self.provenance.copy()
        provenance["head_of"] = provenance.get("head_of", len(self))
        shown = {row["trial"] for row in first_rows(self.best_first, n)}
        return SearchResult(tuple(row for row in self.history if row["trial"] in shown), provenance)

    def __str__(self) -> str:
        """A line for each of the ten best, and the notes."""
        lines = [f"{row['rank']}. {row['score']:.6g}  {row['arch']}" for row in self.ranked[:_NUM_SHOWN]]
        return printable("\n".join([*lines, *self.notes]))

    def _repr_html_(self) -> str:
        """The best archs as a table, for notebooks, with the notes below."""
        best = as_candidates(self.ranked[:_NUM_SHOWN])
        return as_html(views.table(best, self.provenance, self.notes, proxies_of(best)))

    def _table(self) -> Table:
        rows = as_candidates(self.history)
        return views.table(rows, self.provenance, self.notes, proxies_of(rows))

    @property
    def notes(self) -> list[str]:
        """Sentences that you should read before you trust the result of the search."""
        return search_notes(self.history, self.provenance)

    @property
    def ranked(self) -> tuple[Row, ...]:
        """The rows that have a rank, best first; equal ones in the order of the trials."""
        return tuple(sorted((row for row in self.history if row["rank"] is not None), key=lambda row: row["rank"]))

    @property
    def front(self) -> tuple[Row, ...]:
        """The rows that no other dominates, best score first; without costs to keep low, those with the best score."""
        return tuple(row for row in self.ranked if row["on_front"])

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
        return cls(tuple(dict(row) for row in data["history"]), as_provenance(data["provenance"]))

    def _csv(self) -> str:
        return as_csv(list(self.history[0]) if self.history else [], self.history)

    def to_leaderboard(self) -> Leaderboard:
        """Rank the archs as candidates under their strings, best first, failed ones last; costs stay columns."""
        return Leaderboard(as_candidates(self.history), self.provenance.copy())

    def plot(self, kind: SearchFigureKind = "history", ax: Any = None) -> tuple[Any, Any]:
        """Draw a figure with matplotlib.

        Args:
            kind: ``"history"``: the score of each trial, and the best so far; ``"pareto"``: score against the first
                cost that was kept low, or against MACs; ``"agreement"``: Kendall's tau of the proxies and costs; or
                ``"profiles"``: the first 40 archs as lines across all columns.
            ax: Axes to draw in; new ones if None.

        Returns:
            Figure and axes.

        Raises:
            ValueError: If there is no such figure.
            ModuleNotFoundError: If matplotlib is not installed.
        """
        return draw(views.search_figure_of(kind, self.history, self.provenance), ax)

    def _page(self, layers: Layers | None, cards: Mapping[str, ScoreCard]) -> Page:
        return views.search_page(self.history, self.provenance, self.notes, layers, cards)


def search_table(result: SearchResult) -> RichTable:
    """Draw the ten best archs of a search with their scores and costs for the terminal, with the notes below.

    Args:
        result: The result to draw.

    Returns:
        A table for `rich.print`.
    """
    best = as_candidates(result.ranked[:_NUM_SHOWN])
    return for_terminal(views.table(best, result.provenance, result.notes, proxies_of(best)))
