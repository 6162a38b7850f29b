"""A leaderboard as a table for the terminal."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from lightning_zico.report.series import proxies_of, ranked_by
from lightning_zico.results import FINAL_COLUMNS, Leaderboard, margin_of
from lightning_zico.texts import printable

_LOOK: dict[str, Any] = {
    "title_justify": "left",
    "caption_justify": "left",
    "box": box.SIMPLE_HEAD,
    "padding": (0, 1, 0, 0),
    "pad_edge": False,
}
_GAP = 2  # characters that each column takes in addition to its texts, in this look
_NAMES = 1  # the column with the names
# Below the first limit two decimals are too few; above the second a double has no more digits to write out.
_LEAST_IN_DECIMALS, _MOST_IN_FULL = 0.1, 1e15


def leaderboard_table(leaderboard: Leaderboard, title: str | None = None) -> Table:
    """Draw a leaderboard, best first, with the reasons of the failed candidates and its notes below.

    If candidates were scored in several repeats, the ranked score has its standard error beside it, and the names are
    followed by the 95 % interval of the rank, the probability of being the best, the number of the tie group if it has
    more than one member, and the number of repeats if they differ. If the terminal is too narrow for all columns, the
    last ones are left out, and a line below says how many; ranks, names and the deciding columns stay.

    Args:
        leaderboard: Leaderboard to draw.
        title: Title above the table; None to name the ranked score.

    Returns:
        A table for `rich.print`.
    """
    decisive = ranked_by(leaderboard)
    title = title or f"Ranked by {decisive}"
    table = _FittingTable(title=title, **_LOOK)
    proxies = proxies_of(leaderboard)
    table.add_column("rank", justify="right", no_wrap=True)
    table.add_column("name", overflow="fold")
    finals = [column for column in leaderboard.columns if column in FINAL_COLUMNS]
    uncertain = _uncertainty(leaderboard)
    for name in (*finals, *uncertain):
        table.add_column(name, justify="right", no_wrap=True)
    for proxy in proxies:
        table.add_column(proxy, justify="right", style="bold" if proxy == decisive else None, no_wrap=True)
    table.add_column("seconds", justify="right", no_wrap=True)
    needed = {"rank", "name", "final", decisive}
    table.needed = [idx for idx, column in enumerate(table.columns) if column.header in needed]
    reasons = [Text(printable(f"{name}: {reason}"), style="red") for name, reason in leaderboard.errors.items()]
    table.caption = Text("\n").join([*reasons, *(Text(printable(note)) for note in leaderboard.notes)])
    for position, row in enumerate(leaderboard):
        cells = [
            str(row["rank"] or "-"),
            printable(row["name"]),
            *("-" if row[final] is None else f"{row[final]:.4g}" for final in finals),
            *(column[position] for column in uncertain.values()),
            *(_number(row[proxy]) + (margin_of(row) if proxy == decisive else "") for proxy in proxies),
            _number(row["seconds"]),
        ]
        table.add_row(*(Text(cell) for cell in cells))  # a name is a text, not rich's markup
    return table


def _uncertainty(leaderboard: Leaderboard) -> dict[str, list[str]]:
    """Return the cells that show how certain the ranks are, by column; empty if nothing was repeated."""
    if "rank_low" not in leaderboard.columns:
        return {}
    rows = leaderboard.rows
    ties = Counter(row["tie"] for row in rows)
    cells = {
        "95 %": ["-" if row["rank_low"] is None else f"{row['rank_low']}-{row['rank_high']}" for row in rows],
        "best": ["-" if row["p_best"] is None else f"{row['p_best']:.0%}" for row in rows],
        "tie": ["" if row["tie"] is None or ties[row["tie"]] == 1 else str(row["tie"]) for row in rows],
    }
    counts = [row["num_repeats"] for row in rows]
    if len(set(counts) - {None}) > 1:
        cells["repeats"] = [str(count or "-") for count in counts]
    return cells


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if abs(value) >= _MOST_IN_FULL:
        return f"{value:.3g}"
    if value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < _LEAST_IN_DECIMALS else f"{value:,.2f}"


class _FittingTable(Table):
    """A table of texts with names in the second column. It omits columns that do not fit, and says so below."""

    needed: Sequence[int] = ()  # columns that are never left out

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        kept = self._fitting(options.max_width)
        num_left_out = len(self.columns) - len(kept)
        if num_left_out == 0:
            yield from super().__rich_console__(console, options)
            return
        are = "1 column that does not fit is" if num_left_out == 1 else f"{num_left_out} columns that do not fit are"
        said = f"{are} left out; `to_csv` and `to_html` include all columns."
        narrow = Table(
            title=self.title, caption=Text.assemble(said, *(("\n", self.caption) if self.caption else ())), **_LOOK
        )
        for column in (self.columns[idx] for idx in kept):
            narrow.add_column(
                column.header,
                justify=column.justify,
                style=column.style,
                overflow=column.overflow,
                no_wrap=column.no_wrap,
            )
        for cells in zip(*(self.columns[idx].cells for idx in kept), strict=True):
            narrow.add_row(*cells)
        yield from narrow.__rich_console__(console, options)

    def _fitting(self, max_width: int) -> list[int]:
        """Choose the columns to show: the first ones if not all fit."""
        widths = [_GAP + max(cell_len(str(text)) for text in (c.header, *c.cells)) for c in self.columns]
        left = max_width - sum(widths[idx] for idx in self.needed)
        if left < 0:  # names are folded in any case, and then into half of the width, so that other columns fit as well
            left += widths[_NAMES] - max_width // 2
        kept = list(self.needed)
        for idx in (idx for idx in range(len(widths)) if idx not in self.needed):
            left -= widths[idx]
            if left < 0:
                break
            kept.append(idx)
        return sorted(kept)
