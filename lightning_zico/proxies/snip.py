"""SNIP and plain: how much the loss would change, to first order, if each weight were removed.

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


def saliencies(weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], signed: bool) -> dict[str, float]:
    r"""Sum up how sensitive the loss is to scaling the weights of each layer.

    .. math::
        \sum_{\omega \in l} |\theta_\omega g_\omega| \qquad\text{or, signed,}\qquad
        \sum_{\omega \in l} \theta_\omega g_\omega

    Args:
        weights: Weights by layer, ``[*]``.
        gradients: Gradients of the mean loss of one batch, by layer, ``[*]``.
        signed: Keep the sign.

    Returns:
        Sum of each layer by name, in units of the loss. The sum over layers is the score; higher is better.

    Example:
        >>> w, g = {"fc": torch.tensor([1.0, -2.0])}, {"fc": torch.tensor([3.0, 1.0])}
        >>> saliencies(w, g, signed=False), saliencies(w, g, signed=True)
        ({'fc': 5.0}, {'fc': 1.0})

    Source:
        Lee et al., *SNIP*, ICLR 2019, arXiv:1810.02340; as a proxy, both in Abdelfattah et al., ICLR 2021,
        arXiv:2101.08134. That code multiplies weights by a mask and differentiates with respect to it, which, at a
        mask of ones, gives the product computed here.
    """
    sums = []
    for name, gradient in gradients.items():
        products = real_view(weights[name].detach()) * gradient
        sums.append((products if signed else products.abs_()).sum(dtype=torch.float64))
    return dict(zip(gradients, torch.stack(sums).tolist(), strict=True))


@register_proxy("snip")
class SNIP(Proxy):
    """Sum of ``|weight x gradient|`` over all weights of layers, on one batch (Lee et al., ICLR 2019)."""

    needs: Sequence[Observer] = (FirstGradients(),)

    def measure(self, probe: Probe) -> Measurement:
        """Multiply the weights with the gradients of the first batch."""
        layers = saliencies(probe.layers, probe.gradients, signed=False)
        return Measurement(math.fsum(layers.values()), layers, {"covered": probe.covered()})


@register_proxy("plain")
class Plain(Proxy):
    """Sum of ``weight x gradient``, including the sign, on one batch (Abdelfattah et al., ICLR 2021).

    For a network that is linear in the scale of every layer, the sum is the loss times its degree. For layers followed
    by a norm, it is zero up to rounding errors. It is a baseline, not a recommendation.
    """

    needs: Sequence[Observer] = (FirstGradients(),)

    def measure(self, probe: Probe) -> Measurement:
        """Multiply the weights with the gradients of the first batch."""
        layers = saliencies(probe.layers, probe.gradients, signed=True)
        return Measurement(math.fsum(layers.values()), layers, {"covered": probe.covered()})
