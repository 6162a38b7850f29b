"""ZiCo-BC: ZiCo without its liking for deep and thin networks."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lightning_zico.engine.layers import channel_dim
from lightning_zico.engine.observers import Observer
from lightning_zico.engine.probe import Probe
from lightning_zico.proxies.base import Measurement, register_proxy
from lightning_zico.proxies.zico import ZiCo


@dataclass(unsafe_hash=True)
class LayerShapes(Observer):
    """Notes how many positions and channels the output of each layer has."""

    def start(self, module: nn.Module) -> None:
        """Begin with nothing."""
        self.by_layer: dict[str, tuple[int, int]] = {}  # positions, channels

    def module_call(self, name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Note a shape; that of the last call, if a layer runs several times."""
        layer = self.layers.get(id(module))
        if layer is not None and isinstance(output, Tensor):
            channels = output.shape[channel_dim(module, output)]
            self.by_layer[layer] = output[0].numel() // channels, channels


@register_proxy("zico_bc")
class ZiCoBC(ZiCo):
    r"""ZiCo with a penalty for layers with many positions and few channels (Bhardwaj et al., 2023).

    .. math::
        \text{ZiCo} - \beta \sum_l \log \frac{H_l W_l}{\sqrt{C_l}}

    with :math:`H_l W_l` the positions and :math:`C_l` the channels of the output of layer :math:`l`. A linear layer has
    one position on ``[N, C]`` and as many as tokens on ``[N, T, C]``. On a map of one position the penalty is a bonus.
    Meant for spaces that repeat one kind of block at a fixed input size.

    Args:
        beta: Weight of the penalty: 1 for classification and detection, 2 for segmentation.
        name: Of the column.

    Source:
        Bhardwaj et al., *ZiCo-BC*, arXiv:2309.14666. The paper does not say whether input or output maps are meant.
    """

    def __init__(self, beta: float = 1.0, name: str = "zico_bc") -> None:
        super().__init__(name=name)
        self.beta = beta
        self.needs = (*self.needs, LayerShapes())

    def measure(self, probe: Probe) -> Measurement:
        """Subtract the penalty of each layer from what it adds to ZiCo."""
        plain = super().measure(probe)
        layers = dict(plain.layers)
        for name, (positions, channels) in probe.observed(LayerShapes()).by_layer.items():
            layers[name] = layers.get(name, 0.0) - self.beta * math.log(positions / math.sqrt(channels))
        return Measurement(math.fsum(layers.values()), layers, {**plain.details, "beta": self.beta})
