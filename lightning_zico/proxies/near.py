"""NEAR: how many independent directions the layers use, before and after their activation functions.

Index conventions:
    R: rows, samples or positions
    C: columns, units or channels
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_zico.engine.observers import Observer, Rows
from lightning_zico.engine.probe import Probe
from lightning_zico.engine.weights import drawn_indices
from lightning_zico.errors import NonFiniteError, NotApplicableError
from lightning_zico.proxies.base import Proxy, register_proxy


def effective_rank(matrix: Tensor) -> Tensor:
    r"""Compute the effective rank of a matrix ``[R, C]``, or of several matrices, ``[M, R, C]``.

    .. math::
        \exp\Bigl(-\sum_k p_k \log p_k\Bigr), \qquad p_k = \sigma_k \Big/ \sum_j \sigma_j

    with :math:`\sigma_k` the singular values.

    Returns:
        Scalar or ``[M]``, float64, between 1 and the smaller side; 0 for a matrix of zeros.

    Example:
        >>> round(float(effective_rank(torch.eye(3))), 6)
        3.0

    Source:
        Roy & Vetterli, *The effective rank*, EUSIPCO 2007.
    """
    values = torch.linalg.svdvals(matrix.float() if matrix.dtype != torch.float64 else matrix).double()
    total = values.sum(dim=-1, keepdim=True)
    shares = values / total.clamp(min=torch.finfo(torch.float64).tiny)
    entropy = torch.special.entr(shares).sum(dim=-1)
    return torch.where(total.squeeze(-1) > 0, entropy.exp(), 0.0)


def as_matrix(units: Tensor) -> Tensor:
    """Arrange units in a matrix with samples and positions as rows and channels as columns.

    Args:
        units: ``[N, C]``, ``[N, C, ...]`` (convolutional) or ``[N, T, C]``.

    Returns:
        ``[R, C]``. If there are more rows than columns, as many rows as columns are drawn, the same every time.
    """
    if units.ndim == 2:
        units = units.unsqueeze(1)
    elif units.ndim > 3:
        units = units.flatten(2).transpose(1, 2)
    samples, positions, channels = units.shape
    if samples * positions <= channels:
        return units.flatten(0, 1)
    drawn = drawn_indices(samples * positions, channels, units.device)
    return units[drawn // positions, drawn % positions]


@dataclass(unsafe_hash=True)
class EffectiveRanks(Observer):
    """Compute the effective rank of the input and the output of every activation function."""

    def start(self, module: nn.Module) -> None:
        """Reset the observations."""
        self.rows: Rows = Rows()
        self._matrices: dict[torch.Size, list[Tensor]] = {}

    def activation(self, before: Tensor, after: Tensor) -> None:
        """Keep both as matrices."""
        if before.ndim:
            self.rows.see(before)
        for units in (before, after):
            if units.ndim >= 2:
                matrix = as_matrix(units)
                self._matrices.setdefault(matrix.shape, []).append(matrix.detach().clone())

    def ended(self) -> None:
        """Sum up the ranks."""
        if not self._matrices:
            raise NotApplicableError("the network has no activation function.")
        stacks = [torch.stack(matrices) for matrices in self._matrices.values()]
        if not all(bool(stack.isfinite().all()) for stack in stacks):
            raise NonFiniteError("The input or output of an activation function has NaN or infinite entries.")
        self.total: float = math.fsum(torch.stack([effective_rank(stack).sum() for stack in stacks]).tolist())
        self._matrices = {}


@register_proxy("near")
class NEAR(Proxy):
    """Sum of the effective ranks before and after every activation function (Husistein et al., ICLR 2025).

    Source:
        Husistein et al., *NEAR: Network Expressivity by Activation Rank*, ICLR 2025, arXiv:2408.08776.
    """

    needs_labels = False
    needs: Sequence[Observer] = (EffectiveRanks(),)

    def measure(self, probe: Probe) -> float:
        """Return the sum of the ranks on the first batch."""
        seen = probe.observed(EffectiveRanks())
        probe.check_rows(seen.rows, "its activation functions")
        return seen.total
