"""grad_norm: the norm of the gradient, layer by layer.

Index conventions:
    *: shape of one parameter
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_zico.engine.learned import FirstGradients
from lightning_zico.engine.observers import Observer
from lightning_zico.engine.probe import Probe
from lightning_zico.engine.transforms import real_view
from lightning_zico.proxies.base import Measurement, Proxy, register_proxy


def norms(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """Compute the Euclidean norm of each tensor, ``[*]``, with one transfer from the device."""
    return dict(
        zip(tensors, torch.stack([real_view(t).double().norm() for t in tensors.values()]).tolist(), strict=True)
    )


def grad_norm_score(gradients: Mapping[str, Tensor], total: bool = False) -> float:
    r"""Score a network by the norm of its gradient.

    .. math::
        \sum_l \lVert g_l \rVert_2 \qquad\text{or, in total,}\qquad \sqrt{\textstyle\sum_l \lVert g_l \rVert_2^2}

    with :math:`g_l` the gradient of the mean loss of one batch with respect to the weight of layer :math:`l`.

    Args:
        gradients: Gradient of each layer by name, ``[*]``.
        total: Compute one norm over all layers.

    Returns:
        Score in units of the loss per unit of a weight; higher is better.

    Example:
        >>> g = {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}
        >>> grad_norm_score(g), grad_norm_score(g, total=True)
        (7.0, 5.0)

    Source:
        Abdelfattah et al., *Zero-Cost Proxies for Lightweight NAS*, ICLR 2021, arXiv:2101.08134; its public code
        sums over layers, and the ports to Zen-NAS and AZ-NAS compute one norm (there over all parameters).
    """
    return _combined(norms(gradients), total)


def _combined(parts: Mapping[str, float], total: bool) -> float:
    return math.hypot(*parts.values()) if total else math.fsum(parts.values())


@register_proxy("grad_norm")
class GradNorm(Proxy):
    """Sum over the layers of the norm of the gradient of one batch (Abdelfattah et al., ICLR 2021).

    Args:
        total: Compute one norm over all layers instead.
        name: Name of the column.
    """

    needs: Sequence[Observer] = (FirstGradients(),)

    def __init__(self, total: bool = False, name: str = "grad_norm") -> None:
        self.total = total
        self.name = name

    def measure(self, probe: Probe) -> Measurement:
        """Compute the norms of the gradients of the first batch."""
        layers = norms(probe.gradients)
        parts = {} if self.total else layers
        return Measurement(_combined(layers, self.total), parts, {"covered": probe.covered()})
