"""Live size: parameters and operations of those layers alone that learn something."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lightning_zico.engine.calls import layer_calls
from lightning_zico.engine.learned import FirstGradients
from lightning_zico.engine.observers import Observer
from lightning_zico.engine.probe import Probe
from lightning_zico.engine.samples import known_samples
from lightning_zico.errors import NotApplicableError
from lightning_zico.proxies.base import Measurement, Proxy, register_proxy


def live_layers(probe: Probe) -> list[str]:
    """Name the layers whose weight gets a gradient from the first batch that is not all zero."""
    gradients = probe.gradients
    alive = torch.stack([gradient.any() for gradient in gradients.values()]).tolist()
    return [name for name, is_alive in zip(gradients, alive, strict=True) if is_alive]


@dataclass(unsafe_hash=True)
class LayerMacs(Observer):
    """Counts the multiply-accumulate operations of each layer, for the whole batch, over all its calls."""

    def start(self, module: nn.Module) -> None:
        """Begin with nothing."""
        self.by_layer: dict[str, int] = {}

    def module_call(self, name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Count a call."""
        for call in layer_calls(self.layout.owned, module, inputs, output):
            self.by_layer[call.layer] = self.by_layer.get(call.layer, 0) + call.macs


@register_proxy("params_live")
class ParamsLive(Proxy):
    """Number of weights of those layers that the gradient of one batch reaches.

    Layers on edges that lead nowhere, as the ``none`` operation of a search space leaves them, do not count.
    """

    needs = (FirstGradients(),)

    def measure(self, probe: Probe) -> Measurement:
        """Count them on the first batch."""
        layers = probe.layers
        sizes = {name: float(layers[name].numel()) for name in live_layers(probe)}
        return Measurement(sum(sizes.values()), sizes, {"covered": probe.covered()})


@register_proxy("macs_live")
class MacsLive(Proxy):
    """Multiply-accumulate operations, per sample, of those layers that the gradient of one batch reaches.

    Unlike `Macs` it counts no products outside of layers, such as attention's. Layers whose weight is used without a
    call of the layer, and those of recurrent modules, are not counted either; the details name them.
    """

    needs = (FirstGradients(), LayerMacs())

    def measure(self, probe: Probe) -> Measurement:
        """Count them on the first batch."""
        macs = probe.observed(LayerMacs()).by_layer
        alive = live_layers(probe)
        samples = known_samples(probe.num_samples)
        layers = {name: macs[name] / samples for name in alive if name in macs}
        if not layers:
            raise NotApplicableError("no layer that learns is called: their weights are used without a call.")
        uncounted = [name for name in alive if name not in macs]
        details = {"uncounted_layers": uncounted, "covered": probe.covered(seen=macs)}
        return Measurement(sum(layers.values()), layers, details)
