"""From a candidate and its batches to a score card."""

from lightning_zico.scoring.cache import MemoryCache, ScoreCache, SQLiteCache
from lightning_zico.scoring.scorer import score

__all__ = ["MemoryCache", "SQLiteCache", "ScoreCache", "score"]
