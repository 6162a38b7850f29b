"""Search: propose archs of a space within a budget, score them, keep the best. Optuna stores the trials."""

from lightning_zico.search.evolution import Evolution
from lightning_zico.search.zero_shot import ZeroShotSearch

__all__ = ["Evolution", "ZeroShotSearch"]
