"""Fisher: how much the loss would change if a channel were removed, to second order.

Index conventions:
    N: samples in a batch
    C: channels of a layer's output
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_zico.engine.layers import channel_dim, weight_in
from lightning_zico.engine.observers import GradientFacts, Observer, samples_first
from lightning_zico.engine.probe import Probe
from lightning_zico.engine.transforms import real_view
from lightning_zico.errors import NoGradientError, NotApplicableError
from lightning_zico.proxies.base import Measurement, Proxy, register_proxy


def channel_fisher(outputs: Tensor, gradients: Tensor, dim: int = 1) -> Tensor:
    r"""Estimate how much the loss depends on each channel of a layer's output.

    .. math::
        \Delta_c = \frac{1}{2N} \sum_n \Bigl( \sum_{p} a_{ncp} \, \frac{\partial L}{\partial a_{ncp}} \Bigr)^2

    Args:
        outputs: Outputs of a layer, ``[N, C, ...]``, or with the channels in another dimension.
        gradients: Gradients of the mean loss with respect to them, of the same shape.
        dim: Dimension of the channels.

    Returns:
        ``[C]``, in units of the loss squared.

    Example:
        >>> channel_fisher(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 1.0]]))
        tensor([4.5000, 2.0000], dtype=torch.float64)

    Source:
        Theis et al., arXiv:1801.05787, and Turner et al., *BlockSwap*, ICLR 2020, arXiv:1906.04113.
    """
    products = (outputs * gradients).movedim(dim, 1).flatten(2) if outputs.ndim > 2 else outputs * gradients
    per_sample = products.sum(dim=2) if products.ndim > 2 else products  # [N, C]
    return per_sample.double().square_().mean(dim=0) / 2


@dataclass(unsafe_hash=True)
class ChannelSaliencies(Observer):
    """Compute `channel_fisher` of every layer's output while the loss is differentiated."""

    needs_gradients: ClassVar[bool] = True

    def start(self, module: nn.Module) -> None:
        """Reset the observations."""
        self.by_layer: dict[str, Tensor] = {}
        self.fan_in: dict[str, int] = {}
        self._inplace = any(getattr(part, "inplace", False) for part in module.modules())
        self._errors: list[str] = []
        self._loss_is_next = False

    def module_call(self, name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Wait for the gradient of a layer's output."""
        layer = self.layout.layers.get(id(module))
        if layer is None or not isinstance(output, Tensor) or not output.requires_grad:
            return
        # An in-place activation would overwrite the output before its gradient arrives.
        kept = output.detach().clone() if self._inplace else output.detach()
        version = kept._version
        dim = channel_dim(module, output)

        def take(gradient: Tensor) -> None:
            if not self._loss_is_next:
                return
            if kept._version != version:
                self._errors.append(layer)
                return
            # A complex channel consists of two real ones, which are removed together.
            outputs, gradients = (
                samples_first(real_view(tensor), self.time_first) for tensor in (kept, gradient.detach())
            )
            taken = channel_fisher(outputs, gradients, dim).sum()
            self.by_layer[layer] = self.by_layer[layer] + taken if layer in self.by_layer else taken

        self.fan_in[layer] = weight_in(module, layer).numel() // output.shape[dim]
        output.register_hook(take)

    def ended(self) -> None:
        """Ignore earlier gradients: they belong to what other observers differentiate in the same graph."""
        self._loss_is_next = True

    def finished(self, facts: GradientFacts) -> None:
        """Raise if a gradient could not be observed."""
        if self._errors:
            raise NotApplicableError(f"the output of '{self._errors[0]}' is overwritten in place.")
        if not self.by_layer:
            raise NotApplicableError(
                "no layer's output gets a gradient: every layer runs inside a checkpoint, or its weight is used "
                "without calling the layer."
            )


@register_proxy("fisher")
class Fisher(Proxy):
    """Sum over the channels of all layers of the Fisher information of their outputs (Turner et al., ICLR 2020).

    Args:
        fan_in: Count each channel as often as it has weights. The public code of zero-cost proxies does the same,
            because it writes the value of a channel to each of its weights before summing.
        name: Name of the column.

    Source:
        Abdelfattah et al., ICLR 2021, arXiv:2101.08134. The channels of a linear layer are its last dimension, and
        its positions are summed over like those of a convolution. A layer that runs twice counts twice.
    """

    needs: Sequence[Observer] = (ChannelSaliencies(),)

    def __init__(self, fan_in: bool = True, name: str = "fisher") -> None:
        self.fan_in = fan_in
        self.name = name

    def measure(self, probe: Probe) -> Measurement:
        """Sum the channels' values on the first batch."""
        seen = probe.observed(ChannelSaliencies())
        values = torch.stack(list(seen.by_layer.values())).tolist()
        if not any(values):
            raise NoGradientError(
                "The loss depends on no layer's output to first order: the products of outputs and gradients are zero. "
                "Look for `detach()`, zero-initialised layers and activations that are always off."
            )
        factors = [seen.fan_in[name] if self.fan_in else 1 for name in seen.by_layer]
        layers = {name: value * factor for name, value, factor in zip(seen.by_layer, values, factors, strict=True)}
        return Measurement(math.fsum(layers.values()), layers, {"covered": probe.covered(seen=layers)})
