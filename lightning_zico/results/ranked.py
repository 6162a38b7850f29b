"""What a leaderboard and the result of a search share: rows, best first, by index and by name, and files."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, overload

from lightning_zico._registry import unknown_name
from lightning_zico.errors import InvalidArgumentError
from lightning_zico.report import Layers, Page, Table, as_markdown, html_of
from lightning_zico.results import views
from lightning_zico.results.rows import Provenance, Row, as_json, read_json, write_text
from lightning_zico.results.scores import ScoreCard, layers_of
from lightning_zico.texts import count

if TYPE_CHECKING:
    from typing_extensions import Self  # in the standard library from Python 3.11 on


class Ranked(ABC):
    """Rows that are ranked, best first, failed ones last.

    Attributes:
        kind: What a row is about, in the singular.
        name_key: Key of a row with its name.
        provenance: What the numbers depend on.
    """

    kind: ClassVar[str]
    name_key: ClassVar[str] = "name"
    provenance: Provenance

    @property
    @abstractmethod
    def best_first(self) -> tuple[Row, ...]:
        """All rows, best first, failed ones last; equal ones in the order they were offered."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Turn into plain dictionaries, ready for JSON."""

    @classmethod
    @abstractmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Self":
        """Make a result from what `to_dict` returned."""

    @abstractmethod
    def _csv(self) -> str: ...

    @abstractmethod
    def _page(self, layers: Layers | None, cards: Mapping[str, ScoreCard]) -> Page: ...

    @abstractmethod
    def _table(self) -> Table: ...

    @overload
    def __getitem__(self, key: int | str) -> Row: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[Row, ...]: ...
    def __getitem__(self, key: int | str | slice) -> Row | tuple[Row, ...]:
        rows = self.best_first
        if isinstance(key, int) and not -len(rows) <= key < len(rows):
            raise IndexError(f"Invalid row {key}: expected one of {count(len(rows), 'row')}, counted from 0.")
        if not isinstance(key, str):
            return rows[key]
        for row in rows:
            if row[self.name_key] == key:
                return row
        raise unknown_name(self.kind, key, [row[self.name_key] for row in rows])

    def __contains__(self, other: object) -> bool:
        """Whether a name is that of a row, or a row is one of the rows."""
        return any(other == (row[self.name_key] if isinstance(other, str) else row) for row in self.best_first)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.best_first)

    def __len__(self) -> int:
        return len(self.best_first)

    def __repr__(self) -> str:
        num_rows = count(len(self), self.kind)
        return views.brief(type(self).__name__, num_rows, self.provenance, self.best, len(self.errors))

    @property
    def best(self) -> str | None:
        """Name of the first row; None if all failed."""
        first = next(iter(self.best_first), None)
        return first[self.name_key] if first and first["rank"] else None

    @property
    def errors(self) -> dict[str, str]:
        """Reasons of the rows that failed, by name."""
        return {row[self.name_key]: row["error"] for row in self.best_first if row["rank"] is None}

    @overload
    def to_json(self, path: None = None) -> str: ...
    @overload
    def to_json(self, path: str | Path) -> Path: ...
    def to_json(self, path: str | Path | None = None) -> str | Path:
        """Return the JSON text; with a path, write it to that file and return the path."""
        return write_text(as_json(self.to_dict()), path)

    @classmethod
    def from_json(cls, source: str | Path) -> "Self":
        """Read a result from the JSON that `to_json` wrote.

        Args:
            source: The JSON text, or the path of a file with it. A text starts with a brace, a path does not.
        """
        return cls.from_dict(read_json(source))

    @overload
    def to_csv(self, path: None = None) -> str: ...
    @overload
    def to_csv(self, path: str | Path) -> Path: ...
    def to_csv(self, path: str | Path | None = None) -> str | Path:
        """Return comma-separated values with a header; with a path, write them to that file and return the path.

        The last column of a leaderboard, ``missing``, says why a ranked candidate lacks other numbers: ``zico: reason;
        snip: reason``. Control characters in names and reasons are escaped, and a text that a spreadsheet would take
        for a formula has an apostrophe before it.
        """
        return write_text(self._csv(), path)

    @overload
    def to_html(
        self, path: None = None, card: ScoreCard | None = None, cards: Mapping[str, ScoreCard] | None = None
    ) -> str: ...
    @overload
    def to_html(
        self, path: str | Path, card: ScoreCard | None = None, cards: Mapping[str, ScoreCard] | None = None
    ) -> Path: ...
    def to_html(
        self,
        path: str | Path | None = None,
        card: ScoreCard | None = None,
        cards: Mapping[str, ScoreCard] | None = None,
    ) -> str | Path:
        """Return one page for a browser that needs no network; with a path, write it and return the path.

        The page has figures, the table, reasons of failures, and what the numbers depend on.

        Args:
            path: Path of the file; an existing one is overwritten.
            card: Score card of one candidate, such as ``selector.cards_[leaderboard.best]``: one of the figures then
                shows what its layers added to ZiCo.
            cards: Score cards of the candidates, such as ``selector.cards_``: a click on a name then also shows
                hyperparameters, repeats, layers and tracebacks, for the first hundred ranked and failed candidates.

        Raises:
            ValueError: If the card has no layers of ZiCo.
            InvalidArgumentError: If the cards are not a mapping.
            ModuleNotFoundError: If vl-convert-python is not installed.
        """
        if cards is not None and not isinstance(cards, Mapping):
            raise InvalidArgumentError(
                f"Invalid cards of type {type(cards).__name__}: expected a mapping of score cards by name, such as "
                "`selector.cards_`."
            )
        layers = None if card is None else layers_of(card, "zico")
        return write_text(html_of(self._page(layers, cards or {})), path)

    @overload
    def to_markdown(self, path: None = None) -> str: ...
    @overload
    def to_markdown(self, path: str | Path) -> Path: ...
    def to_markdown(self, path: str | Path | None = None) -> str | Path:
        """Return a table in Markdown, for a pull request or a README; with a path, write it and return the path.

        It has the reasons of failures and the notes as a list below. `head` makes it shorter and leaves out
        failed candidates.
        """
        return write_text(as_markdown(self._table()) + "\n", path)


def first_rows(rows: tuple[Row, ...], n: int) -> tuple[Row, ...]:
    """Return the first rows.

    Raises:
        ValueError: If the number is negative.
    """
    if n < 0:
        raise ValueError(f"Invalid n={n}: expected a number of rows of at least 0.")
    return rows[:n]
