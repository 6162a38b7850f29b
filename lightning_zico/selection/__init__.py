"""Rank candidates, hold finals among the best and train the winner."""

from lightning_zico.selection.selector import ZeroShotSelector

__all__ = ["ZeroShotSelector"]
