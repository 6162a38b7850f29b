"""SWAP: how many different patterns the units of a network show over a batch.

Index conventions:
    N: samples in a batch
    U: units, all numbers that go into one activation function for one sample
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_zico.engine.observers import Observer
from lightning_zico.engine.probe import Probe
from lightning_zico.errors import NotApplicableError
from lightning_zico.proxies.base import Proxy, register_proxy

# Up to so many samples a table of all patterns, 2 ** N, takes less time than sorting those that occur.
_TABLE_SAMPLES = 20
_WORD = 62  # samples whose bits fit an int64 with room to spare


def patterns_of(before: Tensor) -> Tensor:
    """Write each unit's signs over the samples as integers.

    Args:
        before: What goes into an activation function, ``[N, ...]``.

    Returns:
        ``[U, W]``, int64: bit ``n`` is set where the unit is positive for sample ``n``; a word holds 62 samples.

    Example:
        >>> patterns_of(torch.tensor([[1.0, -1.0], [1.0, 1.0]])).tolist()
        [[3], [2]]
    """
    words = []
    for chunk in (before > 0).flatten(1).split(_WORD):  # [n, U]
        word = torch.zeros(chunk.shape[1], dtype=torch.int64, device=chunk.device)
        for n, bits in enumerate(chunk):
            word |= bits.long() << n
        words.append(word)
    return torch.stack(words, dim=1)


@dataclass(unsafe_hash=True)
class SignPatterns(Observer):
    """Counts the different patterns that units show over the samples of a batch."""

    def start(self, module: nn.Module) -> None:
        """Begin with none."""
        self._table: Tensor | None = None  # [2 ** N], of the patterns seen
        self._seen: Tensor | None = None  # [patterns, W]

    def activation(self, before: Tensor, after: Tensor) -> None:
        """Note the patterns."""
        if before.ndim == 0:
            return
        if len(before) <= _TABLE_SAMPLES:
            if self._table is None:
                self._table = torch.zeros(2 ** len(before), dtype=torch.bool, device=before.device)
            values = 2.0 ** torch.arange(len(before), device=before.device)  # whole numbers below 2 ** 24 are exact
            self._table[(values @ (before > 0).flatten(1).float()).long()] = True  # [N] @ [N, U] -> [U]
        else:
            patterns = patterns_of(before)
            fresh = patterns.unique(dim=0) if patterns.shape[1] > 1 else patterns.unique().unsqueeze(1)
            self._seen = fresh if self._seen is None else torch.cat([self._seen, fresh]).unique(dim=0)

    def forwarded(self, output: Tensor, inputs: Sequence[Tensor]) -> None:
        """Count them."""
        if self._table is not None:
            self.count = int(self._table.sum())
        elif self._seen is not None:
            self.count = len(self._seen)
        else:
            raise NotApplicableError("the network has no activation function.")


@register_proxy("swap")
class SWAP(Proxy):
    r"""Number of different sample-wise activation patterns (Peng et al., ICLR 2024).

    A pattern is what one unit shows over the ``N`` samples of a batch, so there are at most ``2 ** N``: with few
    samples large networks all have the most.

    Args:
        mu: Size, in parameters, that the score is to favour; with ``sigma`` it is multiplied by
            :math:`\exp(-(P - \mu)^2 / \sigma)`.
        sigma: Width of that preference, in parameters squared.
        name: Of the column.

    Raises:
        ValueError: If one of ``mu`` and ``sigma`` is given without the other.

    Source:
        Peng et al., *SWAP-NAS*, ICLR 2024, arXiv:2403.04161. Activation functions of every kind count.
    """

    needs_labels = False
    needs = (SignPatterns(),)

    def __init__(self, mu: float | None = None, sigma: float | None = None, name: str = "swap") -> None:
        if (mu is None) != (sigma is None):
            raise ValueError(f"`mu` is {mu} and `sigma` is {sigma}; needed are both, or none of them.")
        self.mu = mu
        self.sigma = sigma
        self.name = name

    def measure(self, probe: Probe) -> float:
        """Count the patterns on the first batch."""
        count = float(probe.observed(SignPatterns()).count)
        if self.mu is None or self.sigma is None:
            return count
        return count * math.exp(-((probe.params - self.mu) ** 2) / self.sigma)
