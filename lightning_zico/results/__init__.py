"""Results: plain frozen data that outlive the models they describe. Nothing here depends on torch."""

from lightning_zico.results.leaderboard import FigureKind, Leaderboard
from lightning_zico.results.notes import note_on_reading
from lightning_zico.results.rows import (
    FINAL_COLUMNS,
    FIXED_COLUMNS,
    RESERVED_NAMES,
    UNCERTAINTY_COLUMNS,
    Row,
    margin_of,
    ranks_of,
    standing_of,
)
from lightning_zico.results.scores import NOT_APPLICABLE, Final, Score, ScoreCard
from lightning_zico.results.search import SearchFigureKind, SearchResult

__all__ = [
    "FINAL_COLUMNS",
    "FIXED_COLUMNS",
    "NOT_APPLICABLE",
    "RESERVED_NAMES",
    "UNCERTAINTY_COLUMNS",
    "FigureKind",
    "Final",
    "Leaderboard",
    "Row",
    "Score",
    "ScoreCard",
    "SearchFigureKind",
    "SearchResult",
    "margin_of",
    "note_on_reading",
    "ranks_of",
    "standing_of",
]
