"""Drawings of results; nothing here computes results. `Leaderboard.plot` and similar methods call this package."""

from lightning_zico.report.logs import log_leaderboard
from lightning_zico.report.page import leaderboard_page, search_page, write_html
from lightning_zico.report.plots import (
    plot,
    plot_agreement,
    plot_finals,
    plot_history,
    plot_layers,
    plot_pareto,
    plot_ranks,
    plot_search,
)
from lightning_zico.report.table import leaderboard_table

__all__ = [
    "leaderboard_page",
    "leaderboard_table",
    "log_leaderboard",
    "plot",
    "plot_agreement",
    "plot_finals",
    "plot_history",
    "plot_layers",
    "plot_pareto",
    "plot_ranks",
    "plot_search",
    "search_page",
    "write_html",
]
