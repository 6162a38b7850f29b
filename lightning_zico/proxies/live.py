"""Live size: parameters and operations of only those layers that get a gradient."""

from collections.abc import Sequence
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
    """List the layers whose weight gets a non-zero gradient from the first batch."""
    gradients = probe.gradients
    alive = torch.stack([gradient.any() for gradient in gradients.values()]).tolist()
    return [name for name, is_alive in zip(gradients, alive, strict=True) if is_alive]


@dataclass(unsafe_hash=True)
class LayerMacs(Observer):
    """Count the multiply-accumulate operations of each layer over all its calls, for the whole batch."""

    def start(self, module: nn.Module) -> None:
        """Reset the observations."""
        self.by_layer: dict[str, int] = {}

    def module_call(self, name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Count a call."""
        for call in layer_calls(self.layout.owned, module, inputs, output):
            self.by_layer[call.layer] = self.by_layer.get(call.layer, 0) + call.macs


@register_proxy("params_live")
class ParamsLive(Proxy):
    """Number of weights of the layers that get a gradient from one batch.

    Layers on edges that lead nowhere, for example before a ``none`` operation of a search space, are not counted.
    """

    needs: Sequence[Observer] = (FirstGradients(),)

    def measure(self, probe: Probe) -> Measurement:
        """Count them on the first batch."""
        layers = probe.layers
        sizes = {name: float(layers[name].numel()) for name in live_layers(probe)}
        return Measurement(sum(sizes.values()), sizes, {"covered": probe.covered()})


@register_proxy("macs_live")
class MacsLive(Proxy):
    """Multiply-accumulate operations per sample of the layers that get a gradient from one batch.

    Unlike `Macs`, it does not count products outside of layers, such as those of attention. Layers whose weight is used
    without calling the layer, and layers of recurrent modules, are not counted either; the details list them.
    """

    needs: Sequence[Observer] = (FirstGradients(), LayerMacs())

    def measure(self, probe: Probe) -> Measurement:
        """Count them on the first batch."""
        macs = probe.observed(LayerMacs()).by_layer
        alive = live_layers(probe)
        samples = known_samples(probe.num_samples)
        layers = {name: macs[name] / samples for name in alive if name in macs}
        if not layers:
            raise NotApplicableError(
                "none of the layers with a gradient is called: their weights are used without calling the layer."
            )
        uncounted = [name for name in alive if name not in macs]
        details = {"uncounted_layers": uncounted, "covered": probe.covered(seen=macs)}
        return Measurement(sum(layers.values()), layers, details)
