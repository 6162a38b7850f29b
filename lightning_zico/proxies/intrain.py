"""InTrain: how many directions the outputs of the layers use, and how evenly their gradients are spread.

Index conventions:
    R: rows, all positions of all samples
    C: channels
    L: layers
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_zico.engine.layers import channel_dim
from lightning_zico.engine.learned import FirstGradients
from lightning_zico.engine.observers import Observer, Rows, floating_tensor_in
from lightning_zico.engine.probe import Probe
from lightning_zico.errors import NonFiniteError, NotApplicableError
from lightning_zico.proxies.base import Measurement, Proxy, register_proxy


def participation_ratio(rows: Tensor) -> Tensor:
    r"""Compute how many directions of equal variance would vary as the rows do.

    .. math::
        \frac{(\operatorname{tr} C)^2}{\operatorname{tr} C^2}

    with :math:`C` the covariance of the columns. With fewer rows than columns, it is computed from the products of the
    rows, which have the same eigenvalues other than zero.

    Args:
        rows: ``[R, C]``.

    Returns:
        Scalar, float64, from 1 to the smaller of ``R - 1`` and ``C``; 1 if the rows vary by no more than rounding
        errors. NaN if an entry is not finite.

    Example:
        >>> float(participation_ratio(torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])))
        2.0
    """
    wide = rows if rows.dtype == torch.float64 else rows.float()
    mean = wide.mean(dim=0)
    centred = wide - mean
    few = centred if len(centred) < centred.shape[1] else centred.T
    products = (few @ few.T).double()  # [R, C] @ [C, R], or [C, R] @ [R, C]
    trace, squares = products.trace(), products.square().sum()
    rounding = torch.finfo(rows.dtype).eps ** 2 * len(rows) * mean.double().square().sum()
    return torch.where(trace <= rounding, 1.0, trace.square() / squares)


def gradient_health(gradient: Tensor) -> Tensor:
    """Compute the standard deviation of a gradient over its largest magnitude.

    Returns:
        Scalar, float64, between 0 and 1; 0 if all entries are equal, such as zeros.

    Example:
        >>> float(gradient_health(torch.tensor([1.0, -1.0])))
        1.0
    """
    largest = gradient.abs().max().double()
    deviation = gradient.double().std(correction=0)
    return torch.where(largest > 0, deviation / largest, 0.0)


@dataclass(unsafe_hash=True)
class LayerSpreads(Observer):
    """Compute the participation ratio of the output of each layer; of one that runs twice, the last output counts."""

    def start(self, module: nn.Module) -> None:
        """Reset the observations."""
        self.rows: Rows = Rows()
        self._ratios: dict[str, Tensor] = {}
        self._most_rows = 0

    def module_call(self, name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Look at the output of a submodule that holds weights of layers."""
        if id(module) not in self.layout.owned:
            return
        tensor = floating_tensor_in(output)
        if tensor is not None and tensor.ndim > 1:
            self.rows.see(tensor)
            rows = tensor.movedim(channel_dim(module, tensor), -1).flatten(0, -2)
            self._most_rows = max(self._most_rows, len(rows))
            self._ratios[name] = participation_ratio(rows)

    def ended(self) -> None:
        """Collect the ratios."""
        if not self._ratios:
            raise NotApplicableError("the network calls no layer whose output has channels.")
        if self._most_rows < 3:
            raise NotApplicableError(
                f"the outputs of its layers have at most {self._most_rows} rows, and two rows vary in one direction "
                "whatever the network computes. Raise the batch size."
            )
        values = torch.stack([*self._ratios.values()]).tolist()
        self.ratios: dict[str, float] = dict(zip(self._ratios, values, strict=True))
        if not all(map(math.isfinite, values)):
            raise NonFiniteError("The output of a layer has NaN or infinite entries, or their squares overflow.")
        self._ratios = {}


@register_proxy("intrain")
class InTrain(Proxy):
    r"""Spread of the layers' outputs times the health of their gradients (CVPR 2026).

    .. math::
        \frac{\gamma\, (1 + o)}{\log(L + 1)}, \qquad
        \gamma = \sum_l \log \frac{(\operatorname{tr} C_l)^2}{\operatorname{tr} C_l^2}, \qquad
        o = \sum_l \frac{\operatorname{std} g_l}{\max |g_l|}

    with :math:`C_l` the covariance of the channels of a layer's output over all positions of all samples, and
    :math:`g_l` the gradient of a layer's weight. Both sums count layers, so networks that differ in depth are ranked
    mostly by it.

    Source:
        *InTrain*, CVPR 2026, implemented from a description. There, inputs are 64 Gaussian images of 64 x 64 pixels
        with random labels; here, they are the first batch. There, the gradients of all parameters count; here, those
        of the layers' weights, because the gradient of a bias before a norm consists of rounding errors. There,
        1e-10 is added to the diagonal of each covariance, so that an output that does not vary has the largest
        ratio; here, it has the smallest, 1.
    """

    needs: Sequence[Observer] = (LayerSpreads(), FirstGradients())

    def measure(self, probe: Probe) -> Measurement:
        """Look at the outputs and the gradients of the first batch."""
        seen = probe.observed(LayerSpreads())
        probe.check_rows(seen.rows, "its layers")
        gradients = probe.gradients
        healths = torch.stack([gradient_health(gradient) for gradient in gradients.values()]).tolist()
        spread = math.fsum(map(math.log, seen.ratios.values()))
        value = spread * (1 + math.fsum(healths)) / math.log(len(seen.ratios) + 1)
        details = {"spread": spread, "ratios": seen.ratios, "healths": dict(zip(gradients, healths, strict=True))}
        return Measurement(value, details=details | {"covered": probe.covered()})
