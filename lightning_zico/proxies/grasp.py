"""GraSP: how much the norm of the gradient depends on each weight."""

import math

from lightning_zico.engine.probe import Probe
from lightning_zico.engine.products import hessian_times_gradient
from lightning_zico.errors import NonFiniteError
from lightning_zico.proxies.base import Measurement, Proxy, register_proxy
from lightning_zico.proxies.snip import saliencies


@register_proxy("grasp")
class GraSP(Proxy):
    r"""Sum over the weights of how much the gradient's norm would change without them (Wang et al., ICLR 2020).

    .. math::
        -\sum_\omega \theta_\omega (H g)_\omega, \qquad H g = \nabla_\theta \langle \mathrm{stopgrad}(g), g \rangle

    with :math:`g` the gradient of the mean loss of one batch with respect to the weights of the layers. It needs a
    backward pass through the backward pass, with about twice its memory. The literature does not agree on the sign;
    this is the sign of the public code for proxies.

    Source:
        Wang et al., *Picking Winning Tickets Before Training by Preserving Gradient Flow*, arXiv:2002.07376; as a proxy
        in Abdelfattah et al., ICLR 2021, arXiv:2101.08134.
    """

    def measure(self, probe: Probe) -> Measurement:
        """Differentiate twice on the first batch."""
        chosen = probe.chosen()
        weights, products = hessian_times_gradient(
            probe.module, probe.step, probe.first_batch, chosen.parameters, seed=probe.seed
        )
        parts = saliencies(chosen.split(weights), chosen.split(products), signed=True)
        layers = {name: -part for name, part in parts.items()}
        if not all(map(math.isfinite, layers.values())):
            raise NonFiniteError("The Hessian times the gradient has NaN or infinite entries.")
        return Measurement(math.fsum(layers.values()), layers, {"covered": probe.covered()})
