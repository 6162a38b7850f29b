"""Drawings of plain values: figures, tables, a page and log entries.

Nothing here computes results or knows their classes. `lightning_zico.results` calls this package: `Leaderboard.plot`,
`to_html`, `log` and similar methods.
"""

from lightning_zico.report.figures import Agreement, Figure, Finals, History, Layers, Profiles, Ranks, TradeOff
from lightning_zico.report.logs import log_ranking
from lightning_zico.report.page import Detail, Page, html_of
from lightning_zico.report.plots import draw
from lightning_zico.report.table import Column, Table, as_html, as_markdown, as_text, for_terminal
from lightning_zico.report.vega import spec_of

__all__ = [
    "Agreement",
    "Column",
    "Detail",
    "Figure",
    "Finals",
    "History",
    "Layers",
    "Page",
    "Profiles",
    "Ranks",
    "Table",
    "TradeOff",
    "as_html",
    "as_markdown",
    "as_text",
    "draw",
    "for_terminal",
    "html_of",
    "log_ranking",
    "spec_of",
]
