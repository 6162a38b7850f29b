"""A leaderboard as a table for the terminal."""

from rich import box
from rich.table import Table
from rich.text import Text

from lightning_zico.results import FIXED_COLUMNS, Leaderboard


def leaderboard_table(leaderboard: Leaderboard, title: str | None = None) -> Table:
    """Draw a leaderboard, best first, with the reasons of the failed candidates and its notes below.

    Args:
        leaderboard: To be drawn.
        title: Above the table; what was ranked by if None.

    Returns:
        A table for `rich.print`.
    """
    ranked_by = leaderboard.provenance.get("rank_by", "score")
    title = title or f"Ranked by {ranked_by}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    proxies = [column for column in leaderboard.columns if column not in FIXED_COLUMNS]
    table.add_column("rank", justify="right")
    table.add_column("name", overflow="fold")
    for proxy in proxies:
        table.add_column(proxy, justify="right", style="bold" if proxy == ranked_by else None)
    table.add_column("seconds", justify="right")
    reasons = [Text(f"{name}: {reason}", style="red") for name, reason in leaderboard.errors.items()]
    table.caption = Text("\n").join([*reasons, *map(Text, leaderboard.notes)])
    table.caption_justify = "left"
    for row in leaderboard:
        cells = [
            str(row["rank"] or "-"),
            row["name"],
            *(_number(row[proxy]) for proxy in proxies),
            f"{row['seconds']:.2f}",
        ]
        table.add_row(*(Text(cell) for cell in cells))  # a name is text, not rich's markup
    return table


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value == int(value) else f"{value:,.2f}"
