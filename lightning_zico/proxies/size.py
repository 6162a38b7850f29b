"""The trivial baselines: sizes of a candidate that need no gradient."""

import math
from collections.abc import Mapping

from torch import Tensor

from lightning_zico.engine.probe import Probe
from lightning_zico.errors import NoGradientError
from lightning_zico.proxies.base import Measurement, Proxy, register_proxy

# Shown next to every score: a score that does not beat these is not worth computing.
BASELINES = ("params", "macs", "num_layers", "sum_log_numel")


def sum_log_numel(weights: Mapping[str, Tensor]) -> dict[str, float]:
    r"""Compute the contribution of each layer to the sum of the logarithms of the weights' sizes.

    .. math::
        \sum_l \log |\theta_l|

    with :math:`|\theta_l|` the number of entries of the weight of layer :math:`l`. At initialisation, ZiCo is almost a
    linear function of this and the number of layers, so compare a ranking by ZiCo with a ranking by this.

    Args:
        weights: Weights by name, ``[*]`` each.

    Returns:
        Contribution of each layer by name, no unit. Their sum is the baseline; higher ranks first.

    Example:
        >>> import torch
        >>> sum_log_numel({"fc.weight": torch.zeros(1, 1)})
        {'fc.weight': 0.0}
    """
    return {name: math.log(weight.numel()) for name, weight in weights.items() if weight.numel()}


@register_proxy("params")
class Params(Proxy):
    """Number of parameters, both trainable and frozen; tied parameters count once."""

    needs_labels = False

    def measure(self, probe: Probe) -> float:
        """Count them."""
        return float(probe.params)


@register_proxy("macs")
class Macs(Proxy):
    """Multiply-accumulate operations of one forward pass, per sample (1 MAC = 2 FLOPs)."""

    needs_labels = False

    def measure(self, probe: Probe) -> Measurement:
        """Count them, on the meta device where possible."""
        count = probe.macs
        details = {"counted_on": count.device, "num_samples": count.num_samples}
        return Measurement(float(count.macs), details=details)


@register_proxy("num_layers")
class NumLayers(Proxy):
    """Number of layers with a trainable weight (a weight shared by two layers counts once)."""

    needs_labels = False

    def measure(self, probe: Probe) -> Measurement:
        """Count them."""
        weights = probe.structure.weights
        return Measurement(float(len(weights)), details={"covered": probe.covered()} if weights else {})


@register_proxy("sum_log_numel")
class SumLogNumel(Proxy):
    """Sum over the layers of the logarithm of the weight's size: ZiCo without a gradient."""

    needs_labels = False

    def measure(self, probe: Probe) -> Measurement:
        """Sum them up."""
        layers = sum_log_numel(_whole_weights(probe))
        if not layers:
            raise NoGradientError("The network has no layer with a trainable weight.")
        return Measurement(math.fsum(layers.values()), layers, {"covered": probe.covered()})


def _whole_weights(probe: Probe) -> dict[str, Tensor]:
    """Return one tensor of the size of each weight: the largest of the parts from which it is computed."""
    layers = probe.layers
    weights = {}
    for weight, names in probe.structure.weights.items():
        weights[names[0] if len(names) == 1 else weight] = max((layers[name] for name in names), key=Tensor.numel)
    return weights
