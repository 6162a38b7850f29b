"""NASWOT: how well the samples of a batch can be distinguished by the activations that they switch on.

Index conventions:
    N: samples in a batch
    U: units, all inputs of one activation function for one sample
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_zico.engine.observers import Observer, signs
from lightning_zico.engine.probe import Probe
from lightning_zico.engine.spectra import rank_of
from lightning_zico.errors import NotApplicableError
from lightning_zico.proxies.activations import Activations, ActivationsOfNetwork, observed_activations
from lightning_zico.proxies.base import Proxy, register_proxy


def naswot_score(agreements: Tensor, num_units: int | None = None) -> float:
    r"""Score a network by the determinant of its samples' agreement.

    .. math::
        \log |\det K|, \qquad K = \sum C C^\top + (1 - C)(1 - C)^\top

    with :math:`C` the ``[N, U]`` matrix of which inputs of an activation function are positive, and the sum over its
    calls.

    Args:
        agreements: The matrix :math:`K`: for each pair of samples, the number of units on which they agree, ``[N, N]``.
        num_units: :math:`U`, for the error message.

    Returns:
        No unit, higher is better. It grows with ``N``.

    Raises:
        NotApplicableError: If the matrix is singular: two samples agree on every unit, or there are fewer units than
            samples. This is decided by the rank, because the determinant then consists of rounding errors.

    Example:
        >>> naswot_score(torch.tensor([[2.0, 0.0], [0.0, 2.0]])) == math.log(4)
        True

    Source:
        Mellor et al., *Neural Architecture Search without Training*, ICML 2021, arXiv:2006.04647.
    """
    matrix = agreements.double()
    rank = rank_of(matrix)
    if rank < len(matrix):
        units = "" if num_units is None else f" {num_units}"
        raise NotApplicableError(
            f"the network's{units} units show only {rank} independent patterns for the {len(matrix)} rows of the first "
            "batch: two rows switch on the same units, or there are fewer units than rows (samples, tokens or nodes). "
            "Lower the batch size."
        )
    return float(torch.linalg.slogdet(matrix).logabsdet)


@dataclass(unsafe_hash=True)
class Agreements(Activations):
    """Count all units and, for each pair of samples, the units on which they agree."""

    def start(self, module: nn.Module) -> None:
        """Begin at zero."""
        super().start(module)
        self.num_units: int = 0  # per sample
        self._both: Tensor | None = None  # [N, N], units that are on for both samples

    def look(self, before: Tensor) -> None:
        """Compare the samples' codes."""
        codes = signs(before)  # [N, U]
        both = (codes @ codes.T).double()  # [N, U] @ [U, N] -> [N, N]
        self._both = both if self._both is None else self._both.add_(both)
        self.num_units += codes.shape[1]

    @property
    def matrix(self) -> Tensor:
        """The counts, ``[N, N]``."""
        assert self._both is not None  # `ended` raises before
        on = self._both.diagonal()
        return 2 * self._both + self.num_units - on.unsqueeze(0) - on.unsqueeze(1)  # on for both or for neither


@dataclass(unsafe_hash=True)
class _AgreementsOfNetwork(ActivationsOfNetwork, Agreements):
    """The same without the loss."""


def _agreements(probe: Probe) -> Agreements:
    return observed_activations(probe, Agreements(), _AgreementsOfNetwork())


@register_proxy("naswot")
class NASWOT(Proxy):
    """Log-determinant of how many activations the samples of a batch share (Mellor et al., ICML 2021).

    Activation functions of every kind count, whether modules, functions or methods; the published code only counts
    ``nn.ReLU``. Values are only comparable for equal batch sizes, which all candidates of a ranking share. Unlike
    `SWAP`, it is not saturated by few samples: its maximum grows with the number of activations.
    """

    needs_labels = False
    needs: Sequence[Observer] = (Agreements(),)

    def measure(self, probe: Probe) -> float:
        """Compare the samples of the first batch."""
        seen = _agreements(probe)
        return naswot_score(seen.matrix, seen.num_units)


@register_proxy("log_neurons")
class LogNeurons(Proxy):
    """Logarithm of the number of units per sample: all inputs of activation functions."""

    needs_labels = False
    needs: Sequence[Observer] = (Agreements(),)

    def measure(self, probe: Probe) -> float:
        """Count them."""
        return math.log(_agreements(probe).num_units)
