"""l2_norm: the norm of the weights, layer by layer."""

import math

from lightning_zico.engine.probe import Probe
from lightning_zico.proxies.base import Measurement, Proxy, register_proxy
from lightning_zico.proxies.grad_norm import norms


@register_proxy("l2_norm")
class L2Norm(Proxy):
    r"""Sum over the layers of the norm of the weight, :math:`\sum_l \lVert \theta_l \rVert_2`; needs no data.

    Source:
        Abdelfattah et al., ICLR 2021, arXiv:2101.08134, whose code this follows. With the usual initial weights, the
        value is a function of their shapes.
    """

    needs_labels = False

    def measure(self, probe: Probe) -> Measurement:
        """Sum the norms of the weights."""
        probe.chosen()
        layers = norms({name: weight.detach() for name, weight in probe.layers.items()})
        return Measurement(math.fsum(layers.values()), layers, {"covered": probe.covered()})
