"""SWAP: how many distinct patterns the units of a network show over a batch.

Index conventions:
    N: samples in a batch
    U: units, all inputs of one activation function for one sample
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from lightning_zico.engine.observers import Observer, signs
from lightning_zico.engine.probe import Probe
from lightning_zico.proxies.activations import Activations, ActivationsOfNetwork, observed_activations
from lightning_zico.proxies.base import Measurement, Proxy, register_proxy, saturation

# Up to this many samples, a table of all 2 ** N patterns is faster than sorting the patterns that occur.
_TABLE_SAMPLES = 20
# Bits of a float32 that represent whole numbers exactly, and bits that each of three such numbers adds to an int64.
_EXACT_BITS, _PART_BITS = 24, 21
# Number of units whose patterns are kept before duplicates are removed.
_MOST_KEPT = 2**22


def patterns_of(before: Tensor) -> Tensor:
    """Encode each unit's signs over the samples as one integer.

    With up to 63 samples, bit ``n`` is set if the unit is positive for sample ``n``. The patterns of more samples are
    hashed to about 50 bits: among a million of them, two different patterns collide about once in 2,000 times.

    Args:
        before: Input of an activation function, ``[N, ...]``.

    Returns:
        ``[U]``, int64.

    Example:
        >>> patterns_of(torch.tensor([[1.0, -1.0], [1.0, 1.0]])).tolist()
        [3, 2]
    """
    codes = signs(before)  # [N, U]
    first, *others = (_weights(len(codes), codes.device) @ codes).long()  # [K, N] @ [N, U] -> K x [U], whole numbers
    for idx, part in enumerate(others, 1):
        first += part << idx * _PART_BITS
    return first


@lru_cache(maxsize=64)
def _weights(num_samples: int, device: torch.device) -> Tensor:
    """Return what each sample adds to the parts of a pattern, ``[K, N]``, with at most three parts."""
    if num_samples <= 3 * _PART_BITS:
        samples = torch.arange(num_samples, device="cpu")
        parts = torch.arange(max(math.ceil(num_samples / _PART_BITS), 1), device="cpu").unsqueeze(1)
        weights = (1 << samples % _PART_BITS) * (samples // _PART_BITS == parts)
    else:
        largest = 2 ** (_EXACT_BITS - math.ceil(math.log2(num_samples)))
        weights = torch.randint(largest, (3, num_samples), generator=torch.Generator().manual_seed(0), device="cpu")
    return weights.float().to(device, copy=True)


@dataclass(unsafe_hash=True)
class SignPatterns(Activations):
    """Count the distinct patterns that units show over the samples of a batch."""

    def start(self, module: nn.Module) -> None:
        """Reset the observations."""
        super().start(module)
        self._table: Tensor | None = None  # [2 ** N], which patterns occurred
        self._seen: list[Tensor] = []
        self._num_kept = 0

    def look(self, before: Tensor) -> None:
        """Add the patterns of an activation function."""
        patterns = patterns_of(before)
        if len(before) <= _TABLE_SAMPLES:
            if self._table is None:
                self._table = torch.zeros(2 ** len(before), dtype=torch.bool, device=before.device)
            self._table.index_fill_(0, patterns, True)
            return
        self._seen.append(patterns)
        self._num_kept += len(patterns)
        if self._num_kept > _MOST_KEPT:
            self._seen = [torch.cat(self._seen).unique()]
            self._num_kept = len(self._seen[0])

    def ended(self) -> None:
        """Count them."""
        super().ended()
        self.count: int = int(self._table.sum()) if self._table is not None else len(torch.cat(self._seen).unique())
        self._table, self._seen = None, []


@dataclass(unsafe_hash=True)
class _SignPatternsOfNetwork(ActivationsOfNetwork, SignPatterns):
    """The same without the loss."""


def sign_patterns(probe: Probe) -> SignPatterns:
    """Count the patterns on the first batch.

    Raises:
        NotApplicableError: See `observed_activations`.
    """
    return observed_activations(probe, SignPatterns(), _SignPatternsOfNetwork())


@register_proxy("swap")
class SWAP(Proxy):
    r"""Number of distinct sample-wise activation patterns (Peng et al., ICLR 2024).

    A pattern consists of the signs of one unit over the ``N`` samples of a batch, so there are at most ``2 ** N``: with
    few samples, all large networks reach the maximum, which the details then say (`saturation`).

    Args:
        mu: Preferred size, in parameters. With ``sigma``, the score is multiplied by
            :math:`\exp(-(P - \mu)^2 / \sigma)`.
        sigma: Width of that preference, in parameters squared.
        name: Name of the column.

    Raises:
        ValueError: If only one of ``mu`` and ``sigma`` is given.

    Source:
        Peng et al., *SWAP-NAS*, ICLR 2024, arXiv:2403.04161. Activation functions of every kind count.
    """

    needs_labels = False
    needs: Sequence[Observer] = (SignPatterns(),)

    def __init__(self, mu: float | None = None, sigma: float | None = None, name: str = "swap") -> None:
        if (mu is None) != (sigma is None):
            raise ValueError(f"Invalid mu={mu}, sigma={sigma}: expected both or neither.")
        self.mu = mu
        self.sigma = sigma
        self.name = name

    def measure(self, probe: Probe) -> Measurement:
        """Count the patterns on the first batch."""
        seen = sign_patterns(probe)
        if self.mu is None or self.sigma is None:
            is_maximum = seen.count == 2**seen.num_rows
            return Measurement(float(seen.count), details=saturation(is_maximum, seen.num_rows, "batch_size"))
        return Measurement(seen.count * math.exp(-((probe.params - self.mu) ** 2) / self.sigma))
