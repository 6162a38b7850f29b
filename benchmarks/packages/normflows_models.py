"""normflows: normalising flows."""

import normflows
import torch

from packages import NUM_SAMPLES, Entry, Fitted, batches

PACKAGE = "normflows"


def _coupling(width):
    flows = []
    for _ in range(2):
        net = normflows.nets.MLP([2, width, width, 4], init_zeros=False)
        flows += [normflows.flows.AffineCouplingBlock(net), normflows.flows.Permute(4, mode="swap")]
    return normflows.NormalizingFlow(normflows.distributions.DiagGaussian(4), flows)


def _spline(width):
    flows = [normflows.flows.AutoregressiveRationalQuadraticSpline(4, 1, width), normflows.flows.LULinearPermute(4)]
    return normflows.NormalizingFlow(normflows.distributions.DiagGaussian(4), flows)


def _divergence(module, batch):
    return module.network.forward_kld(batch)


_data = batches(lambda g: torch.randn(NUM_SAMPLES, 4, generator=g))

ENTRIES = (
    Entry("RealNVP", lambda w: Fitted(_coupling(w), _divergence), _data),
    Entry("RationalQuadraticSpline", lambda w: Fitted(_spline(w), _divergence), _data),
)
