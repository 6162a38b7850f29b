"""NASWOT: how well a batch's samples can be told apart by which activations they switch on.

Index conventions:
    N: samples in a batch
    U: units, all numbers that go into one activation function for one sample
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_zico.engine.observers import Observer, signs
from lightning_zico.engine.probe import Probe
from lightning_zico.errors import NonFiniteError, NotApplicableError
from lightning_zico.proxies.base import Proxy, register_proxy


def naswot_score(agreements: Tensor) -> float:
    r"""Score a network by the determinant of its samples' agreement.

    .. math::
        \log |\det K|, \qquad K = \sum C C^\top + (1 - C)(1 - C)^\top

    with :math:`C` the ``[N, U]`` matrix of what is positive before an activation function, summed over the calls.

    Args:
        agreements: The matrix :math:`K`: for each pair of samples the number of units on which they agree, ``[N, N]``.

    Returns:
        No unit, higher is better. It grows with ``N``.

    Raises:
        NonFiniteError: If the matrix is singular: two samples agree on every unit, or there are fewer units than
            samples.

    Example:
        >>> naswot_score(torch.tensor([[2.0, 0.0], [0.0, 2.0]])) == math.log(4)
        True

    Source:
        Mellor et al., *Neural Architecture Search without Training*, ICML 2021, arXiv:2006.04647.
    """
    sign, value = torch.linalg.slogdet(agreements.double())
    if float(sign) == 0 or not math.isfinite(float(value)):
        raise NonFiniteError(
            "NASWOT's matrix is singular: two samples of the first batch agree on every unit, or the network has fewer "
            "units than the batch samples. Lower the batch size."
        )
    return float(value)


@dataclass(unsafe_hash=True)
class Agreements(Observer):
    """Counts, for each pair of samples, the units on which they agree, and the units."""

    def start(self, module: nn.Module) -> None:
        """Begin at zero."""
        self.num_units = 0  # of one sample
        self._both: Tensor | None = None  # [N, N], units that are on for both samples

    def activation(self, before: Tensor, after: Tensor) -> None:
        """Compare the samples' codes."""
        if before.ndim == 0:
            return
        codes = signs(before)  # [N, U]
        both = (codes @ codes.T).double()  # [N, U] @ [U, N] -> [N, N]
        if self._both is None:
            self._both = torch.zeros_like(both)
        if self._both.shape != both.shape:
            raise NotApplicableError("activation functions see different numbers of samples.")
        self._both += both
        self.num_units += codes.shape[1]

    @property
    def matrix(self) -> Tensor:
        """The counts, ``[N, N]``."""
        if self._both is None:
            raise NotApplicableError("the network has no activation function.")
        on = self._both.diagonal()
        return 2 * self._both + self.num_units - on.unsqueeze(0) - on.unsqueeze(1)  # on for both or for none

    def ended(self) -> None:
        """Refuse a network without activation functions."""
        _ = self.matrix


@register_proxy("naswot")
class NASWOT(Proxy):
    """Log-determinant of how many activations the samples of a batch share (Mellor et al., ICML 2021).

    Activation functions of every kind count, as modules, functions and methods; the published code knows ``nn.ReLU``
    alone. The batch size must be the same for all candidates, as it is.
    """

    needs_labels = False
    needs = (Agreements(),)

    def measure(self, probe: Probe) -> float:
        """Compare the samples of the first batch."""
        return naswot_score(probe.observed(Agreements()).matrix)


@register_proxy("log_neurons")
class LogNeurons(Proxy):
    """Logarithm of the number of units of one sample: all numbers that go into activation functions."""

    needs_labels = False
    needs = (Agreements(),)

    def measure(self, probe: Probe) -> float:
        """Count them."""
        return math.log(probe.observed(Agreements()).num_units)
