"""Rank candidates, hold finals among the best and train the winner."""

from lightning_zico.selection.selector import ZeroShotSelector, rank

__all__ = ["ZeroShotSelector", "rank"]
