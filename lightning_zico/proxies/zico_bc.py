"""ZiCo-BC: ZiCo without its bias towards deep and thin networks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from lightning_zico.engine.calls import layer_calls
from lightning_zico.engine.layers import weight_name
from lightning_zico.engine.observers import Observer
from lightning_zico.engine.probe import Probe
from lightning_zico.errors import NotApplicableError
from lightning_zico.proxies.base import Measurement, register_proxy
from lightning_zico.proxies.zico import ZiCo


@dataclass(unsafe_hash=True)
class LayerShapes(Observer):
    """Record the number of positions and channels of each layer's output."""

    def start(self, module: nn.Module) -> None:
        """Reset the observations."""
        self.by_layer: dict[str, tuple[int, int]] = {}  # positions, channels

    def module_call(self, name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Record a shape; if a layer runs several times, that of the last call."""
        for call in layer_calls(self.layout.owned, module, inputs, output):
            self.by_layer[call.layer] = call.positions, call.channels


@register_proxy("zico_bc")
class ZiCoBC(ZiCo):
    r"""ZiCo with a penalty for layers with many positions and few channels (Bhardwaj et al., 2023).

    .. math::
        \text{ZiCo} - \beta \sum_l \log \frac{H_l W_l}{\sqrt{C_l}}

    with :math:`H_l W_l` the positions and :math:`C_l` the channels of the output of layer :math:`l`. A linear layer has
    one position on ``[N, C]`` and one per token on ``[N, T, C]``. On a map with one position, the penalty is a bonus.
    ZiCo-BC is meant for spaces that repeat one kind of block at a fixed input size.

    Args:
        beta: Weight of the penalty: 1 for classification and detection, 2 for segmentation.
        name: Name of the column.

    Source:
        Bhardwaj et al., *ZiCo-BC*, arXiv:2309.14666. The paper does not say whether input or output maps are meant.
    """

    def __init__(self, beta: float = 1.0, name: str = "zico_bc") -> None:
        super().__init__(name=name)
        self.beta = beta
        self.needs: Sequence[Observer] = (*self.needs, LayerShapes())

    def measure(self, probe: Probe) -> Measurement:
        """Subtract the penalty of each layer from its contribution to ZiCo."""
        plain = super().measure(probe)
        layers = dict(plain.layers)
        shapes = probe.observed(LayerShapes()).by_layer
        seen = {weight_name(name) for name in shapes}
        if unknown := [name for name in layers if weight_name(name) not in seen]:
            raise NotApplicableError(
                f"the penalty needs the output shape of every layer, and that of '{unknown[0]}' is unknown "
                f"({len(unknown)} such layers). Use `zico`."
            )
        for name, (positions, channels) in shapes.items():
            layers[name] = layers.get(name, 0.0) - self.beta * math.log(positions / math.sqrt(channels))
        return Measurement(math.fsum(layers.values()), layers, {**plain.details, "beta": self.beta})
