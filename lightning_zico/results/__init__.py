"""Results: plain frozen data that outlive the models they describe. Nothing here depends on torch."""

from lightning_zico.results.leaderboard import Leaderboard, leaderboard_table
from lightning_zico.results.notes import note_on_batch_size, note_on_reading, notes_on_data
from lightning_zico.results.rows import (
    FINAL_COLUMNS,
    FIXED_COLUMNS,
    LEARNED_COLUMNS,
    RESERVED_NAMES,
    UNCERTAINTY_COLUMNS,
    Agreement,
    Beside,
    FinalsHeld,
    HeldOutDifference,
    Lacking,
    Provenance,
    ReadingFacts,
    Row,
    UsedRecipe,
    as_provenance,
    margin_of,
    rank_key,
    ranks_of,
)
from lightning_zico.results.scores import NOT_APPLICABLE, Final, Score, ScoreCard, card_table
from lightning_zico.results.search import SearchResult, search_table
from lightning_zico.results.views import FigureKind, SearchFigureKind

__all__ = [
    "FINAL_COLUMNS",
    "FIXED_COLUMNS",
    "LEARNED_COLUMNS",
    "NOT_APPLICABLE",
    "RESERVED_NAMES",
    "UNCERTAINTY_COLUMNS",
    "Agreement",
    "Beside",
    "FigureKind",
    "Final",
    "FinalsHeld",
    "HeldOutDifference",
    "Lacking",
    "Leaderboard",
    "Provenance",
    "ReadingFacts",
    "Row",
    "Score",
    "ScoreCard",
    "SearchFigureKind",
    "SearchResult",
    "UsedRecipe",
    "as_provenance",
    "card_table",
    "leaderboard_table",
    "margin_of",
    "note_on_batch_size",
    "note_on_reading",
    "notes_on_data",
    "rank_key",
    "ranks_of",
    "search_table",
]
