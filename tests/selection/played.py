"""Candidates whose scores in every repeat are given."""

from typing import Any

import numpy as np
import torch
from torch import nn

from lightning_zico import Leaderboard, Proxy, ZeroShotSelector


class Played(Proxy):
    """Says what was agreed of a candidate in each repeat, and counts how often it was asked.

    Every batch is filled with the number of its repeat, and a candidate carries its number in its weight.
    """

    name = "played"

    def __init__(self, table: list[list[float | None]], higher_is_better: bool = True) -> None:
        self.table = table
        self.higher_is_better = higher_is_better
        self.counts = [0] * len(table)

    def measure(self, probe: Any) -> float:
        idx, repeat_idx = int(probe.module.weight.shape[0]) - 2, int(probe.batches[0][0][0, 0])
        self.counts[idx] += 1
        value = self.table[idx][repeat_idx]
        if value is None:
            raise RuntimeError("no luck")
        return value


def played(table: Any, **kwargs: Any) -> tuple[ZeroShotSelector, Leaderboard]:
    """Rank candidates ``c0``, ``c1``, ... whose scores in every repeat are given."""
    repeats = len(table[0])
    proxy = Played([list(row) for row in table], kwargs.pop("higher_is_better", True))
    batches = [(torch.full((2, 3), float(idx)), torch.tensor([0, 1])) for idx in range(repeats)]
    selector = ZeroShotSelector(
        proxies=proxy, num_batches=1, repeats=repeats, loss_fn=nn.functional.cross_entropy, **kwargs
    )
    factories = {f"c{idx}": lambda idx=idx: nn.Linear(3, idx + 2) for idx in range(len(table))}
    return selector, selector.rank(factories, batches)


def race_table(seed: int) -> list[list[float]]:
    rng = np.random.default_rng(seed)
    return (rng.permutation(8)[:, None] + 0.3 * rng.normal(size=(8, 8))).tolist()
