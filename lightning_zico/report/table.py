"""A leaderboard as a table for the terminal."""

from collections import Counter

from rich import box
from rich.table import Table
from rich.text import Text

from lightning_zico.report.series import proxies_of, ranked_by
from lightning_zico.results import FINAL_COLUMNS, Leaderboard, margin_of


def leaderboard_table(leaderboard: Leaderboard, title: str | None = None) -> Table:
    """Draw a leaderboard, best first, with the reasons of the failed candidates and its notes below.

    Where candidates were scored in several repeats, what was ranked by has its standard error beside it, and behind the
    names stand the 95 % interval of the rank, the probability of being the best, the number of the tie group where it
    has more than one member, and, where they differ, the number of repeats.

    Args:
        leaderboard: To be drawn.
        title: Above the table; what was ranked by if None.

    Returns:
        A table for `rich.print`.
    """
    decisive = ranked_by(leaderboard)
    title = title or f"Ranked by {decisive}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    proxies = proxies_of(leaderboard)
    table.add_column("rank", justify="right")
    table.add_column("name", overflow="fold")
    finals = [column for column in leaderboard.columns if column in FINAL_COLUMNS]
    uncertain = _uncertainty(leaderboard)
    for name in (*finals, *uncertain):
        table.add_column(name, justify="right")
    for proxy in proxies:
        table.add_column(proxy, justify="right", style="bold" if proxy == decisive else None)
    table.add_column("seconds", justify="right")
    reasons = [Text(f"{name}: {reason}", style="red") for name, reason in leaderboard.errors.items()]
    table.caption = Text("\n").join([*reasons, *map(Text, leaderboard.notes)])
    table.caption_justify = "left"
    for position, row in enumerate(leaderboard):
        cells = [
            str(row["rank"] or "-"),
            row["name"],
            *("-" if row[final] is None else f"{row[final]:.4g}" for final in finals),
            *(column[position] for column in uncertain.values()),
            *(_number(row[proxy]) + (margin_of(row) if proxy == decisive else "") for proxy in proxies),
            f"{row['seconds']:.2f}",
        ]
        table.add_row(*(Text(cell) for cell in cells))  # a name is text, not rich's markup
    return table


def _uncertainty(leaderboard: Leaderboard) -> dict[str, list[str]]:
    """Write the cells that say how sure the ranks are, by column; none where nothing was repeated."""
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
    return f"{value:,.0f}" if value == int(value) else f"{value:,.2f}"
