"""Tables of texts, shown in four ways: in the terminal, as plain text, in a notebook, and as Markdown."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from rich import box
from rich import table as rich_table
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from lightning_zico.texts import count, printable

_LOOK: dict[str, Any] = {
    "title_justify": "left",
    "caption_justify": "left",
    "box": box.SIMPLE_HEAD,
    "padding": (0, 1, 0, 0),
    "pad_edge": False,
}
_GAP = 2  # characters that each column takes in addition to its texts, in this look
# Below the first limit two decimals are too few; above the second a double has no more digits to write out.
_LEAST_IN_DECIMALS, _MOST_IN_FULL = 0.1, 1e15
# What starts a tag, ends a cell or marks up a text in Markdown, with a mention, a reference and a formula on GitHub.
# An underscore within a word does not.
_MARKS = re.compile(r"[&<>|`*\[\]\\~@#$]|(?<!\w)_+|_+(?!\w)")
_START = re.compile(r"^(?:[-+=]|\d+[.)])")  # of a list, a rule or a heading, if it is the first in a line


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        name: Text of the header.
        cells: Its texts, from the first row to the last.
        is_text: Whether the cells are aligned on the left and may be folded, as names and reasons are.
        is_decisive: Whether it is emphasised.
        is_needed: Whether it is shown however narrow the terminal is.
    """

    name: str
    cells: tuple[str, ...]
    is_text: bool = False
    is_decisive: bool = False
    is_needed: bool = False


@dataclass(frozen=True)
class Table:
    """A table with a title above it, and lines below it.

    Args:
        title: Text above the table.
        columns: Columns with as many cells each.
        reasons: Lines below the table about what failed.
        notes: Further lines below.
    """

    title: str
    columns: tuple[Column, ...]
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """The cells row by row."""
        return list(zip(*(column.cells for column in self.columns), strict=True))


def number(value: float | None) -> str:
    """Return a number as a short text; a dash for a missing one.

    Example:
        >>> [number(value) for value in (1234567.0, 2.5, 0.00123, None)]
        ['1,234,567', '2.50', '0.00123', '-']
    """
    if value is None:
        return "-"
    if abs(value) >= _MOST_IN_FULL:
        return f"{value:.3g}"
    if value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < _LEAST_IN_DECIMALS else f"{value:,.2f}"


def as_text(table: Table) -> str:
    """Return a table as lines of text, whatever their width.

    Example:
        >>> table = Table("Two", (Column("name", ("a", "bc"), is_text=True), Column("zico", ("12", "-"))), ("bc: no",))
        >>> print(as_text(table))
        Two
        name  zico
        a       12
        bc       -
        bc: no
    """
    columns = []
    for column in table.columns:
        texts = list(map(_one_line, (column.name, *column.cells)))
        width = max(map(cell_len, texts))
        spaces = [" " * (width - cell_len(text)) for text in texts]
        columns.append([text + s if column.is_text else s + text for text, s in zip(texts, spaces, strict=True)])
    rows = ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]
    return "\n".join([_one_line(table.title), *rows, *map(_indent, (*table.reasons, *table.notes))])


def as_html(table: Table) -> str:
    """Return a table as HTML without scripts and styles, for a notebook.

    Example:
        >>> print(as_html(Table("<b>", (Column("zico", ("12",)),))))
        <table>
        <caption>&lt;b&gt;</caption>
        <thead><tr><th>zico</th></tr></thead>
        <tbody>
        <tr><td>12</td></tr>
        </tbody>
        </table>
    """
    header = "".join(f"<th>{_escape(column.name)}</th>" for column in table.columns)
    body = "\n".join(f"<tr>{''.join(f'<td>{_escape(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
    below = "".join(f"\n<p>{_escape(line)}</p>" for line in (*table.reasons, *table.notes))
    return (
        f"<table>\n<caption>{_escape(table.title)}</caption>\n<thead><tr>{header}</tr></thead>\n<tbody>\n{body}\n"
        f"</tbody>\n</table>{below}"
    )


def as_markdown(table: Table) -> str:
    """Return a table in Markdown, with its reasons and notes as a list below; no text in it is markup.

    Packages that write such tables, such as tabulate, escape nothing.

    Example:
        >>> columns = (Column("name", ("a|b", "c"), is_text=True), Column("zico", ("12", "-")))
        >>> print(as_markdown(Table("Two", columns, ("c: no",))))
        | name | zico |
        | --- | ---: |
        | a&#124;b | 12 |
        | c | - |
        <BLANKLINE>
        - c: no
    """
    lines = [
        [_escape_markdown(column.name) for column in table.columns],
        ["---" if column.is_text else "---:" for column in table.columns],
        *([_escape_markdown(cell) for cell in row] for row in table.rows),
    ]
    below = [f"- {_START.sub(_escape_last, _escape_markdown(line))}" for line in (*table.reasons, *table.notes)]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), *([""] if below else []), *below])


def for_terminal(table: Table) -> rich_table.Table:
    """Return a table for `rich.print`.

    If the terminal is too narrow for all columns, the last ones are left out, and a line below says how many.
    """
    drawn = _FittingTable(title=printable(table.title), **_LOOK)
    for column in table.columns:
        drawn.add_column(
            Text(printable(column.name)),
            justify="left" if column.is_text else "right",
            style="bold" if column.is_decisive else None,
            overflow="fold" if column.is_text else "ellipsis",
            no_wrap=not column.is_text,
        )
    drawn.needed = [idx for idx, column in enumerate(table.columns) if column.is_needed]
    reasons = [Text(printable(reason), style="red") for reason in table.reasons]
    drawn.caption = Text("\n").join([*reasons, *(Text(printable(note)) for note in table.notes)])
    for row in table.rows:
        drawn.add_row(*(Text(printable(cell)) for cell in row))  # a name is a text, not rich's markup
    return drawn


def _one_line(text: str) -> str:
    return printable(text).replace("\n", "\\n")


def _indent(text: str) -> str:
    """Indent the lines after the first one, so that a reason of several lines cannot look like rows."""
    return printable(text).replace("\n", "\n    ")


def _escape_markdown(text: str) -> str:
    """Return a text on one line, without Markdown's marks."""
    text = " ".join(printable(text).split())
    return _MARKS.sub(lambda marks: "".join(map(_entity, marks[0])), text)


def _escape_last(found: re.Match[str]) -> str:
    return found[0][:-1] + _entity(found[0][-1])


def _entity(char: str) -> str:
    return f"&#{ord(char)};"


def _escape(text: str) -> str:
    return escape(printable(text))


class _FittingTable(rich_table.Table):
    """A table of texts. It omits columns that do not fit, and says so below."""

    needed: Sequence[int] = ()  # columns that are never left out

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown = self._fitting(options.max_width)
        num_left_out = len(self.columns) - len(shown)
        if num_left_out == 0:
            yield from super().__rich_console__(console, options)
            return
        are = count(num_left_out, "column that does not fit is", "columns that do not fit are")
        left_out = f"{are} left out; `to_csv` and `to_html` include all columns."
        narrow = rich_table.Table(
            title=self.title, caption=Text.assemble(left_out, *(("\n", self.caption) if self.caption else ())), **_LOOK
        )
        for column in (self.columns[idx] for idx in shown):
            narrow.add_column(
                column.header,
                justify=column.justify,
                style=column.style,
                overflow=column.overflow,
                no_wrap=column.no_wrap,
            )
        for cells in zip(*(self.columns[idx].cells for idx in shown), strict=True):
            narrow.add_row(*cells)
        yield from narrow.__rich_console__(console, options)

    def _fitting(self, max_width: int) -> list[int]:
        """Choose the columns to show: the first ones if not all fit."""
        widths = [_GAP + max(cell_len(str(text)) for text in (c.header, *c.cells)) for c in self.columns]
        left = max_width - sum(widths[idx] for idx in self.needed)
        if left < 0:  # names are folded in any case, and then into half of the width, so that other columns fit as well
            folded = [widths[idx] for idx in self.needed if not self.columns[idx].no_wrap]
            left += max(folded, default=0) - max_width // 2
        shown = list(self.needed)
        for idx in (idx for idx in range(len(widths)) if idx not in self.needed):
            left -= widths[idx]
            if left < 0:
                break
            shown.append(idx)
        return sorted(shown)
