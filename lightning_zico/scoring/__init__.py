"""Turn candidates and batches into score cards, in this process or in others."""

from lightning_zico.scoring.cache import ClaimingCache, MemoryCache, ScoreCache, SQLiteCache
from lightning_zico.scoring.executors.processes import ProcessExecutor, SerialExecutor
from lightning_zico.scoring.executors.ray_executor import RayExecutor
from lightning_zico.scoring.single import score

__all__ = [
    "ClaimingCache",
    "MemoryCache",
    "ProcessExecutor",
    "RayExecutor",
    "SQLiteCache",
    "ScoreCache",
    "SerialExecutor",
    "score",
]
