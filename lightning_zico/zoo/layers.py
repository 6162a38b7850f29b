"""First and last layers of networks: replaced to suit the data, or taken from a checkpoint."""

import math

import torch
from torch import nn

from lightning_zico.errors import NotApplicableError

# DeiT and LeViT of transformers: the logits are the mean of those of two heads.
_HEADS_OF_DISTILLED = ("cls_classifier", "distillation_classifier")


def last_layer(network: nn.Module) -> tuple[str, nn.Linear | nn.Conv2d]:
    """Return the last linear layer or convolution of a network, with its name."""
    return last_layers(network)[-1]


def last_layers(network: nn.Module, num_outputs: int | None = None) -> list[tuple[str, nn.Linear | nn.Conv2d]]:
    """Return the layers that output logits, with their names: the last one, or both heads of a distilled network.

    Args:
        network: The network.
        num_outputs: Number of outputs that they must have; None for any.
    """
    layers = [(name, each) for name, each in network.named_modules() if isinstance(each, nn.Linear | nn.Conv2d)]
    layers = [(name, each) for name, each in layers if num_outputs in (None, len(each.weight))]
    return [each for each in layers if each[0].partition(".")[0] in _HEADS_OF_DISTILLED] or layers[-1:]


def replace_layer(network: nn.Module, name: str, layer: nn.Module) -> None:
    """Put a layer in the place of the one of a name."""
    parent, _, attribute = name.rpartition(".")
    setattr(network.get_submodule(parent), attribute, layer)


def replace_heads(network: nn.Module, num_classes: int) -> None:
    """Replace the last layers, linear or convolutions, by fresh ones with an output for each class."""
    for name, last in last_layers(network):
        has_bias = last.bias is not None
        head = (
            nn.Linear(last.in_features, num_classes, has_bias)
            if isinstance(last, nn.Linear)
            else nn.Conv2d(last.in_channels, num_classes, last.kernel_size, bias=has_bias)  # type: ignore[arg-type]
        )
        replace_layer(network, name, head)


def take_channels(network: nn.Module, in_chans: int, keep: bool) -> None:
    """Replace the first convolution, which takes three channels, to take ``in_chans``.

    Args:
        network: The network.
        in_chans: Number of channels.
        keep: Keep what it has learned: its weights are summed over the channels for one channel, and otherwise repeated
            and scaled, as timm does.
    """
    name, first = next((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    other = nn.Conv2d(
        in_chans,
        first.out_channels,
        first.kernel_size,  # type: ignore[arg-type]
        first.stride,  # type: ignore[arg-type]
        first.padding,  # type: ignore[arg-type]
        bias=first.bias is not None,
    )
    if keep:
        repeated = first.weight.repeat(1, math.ceil(in_chans / 3), 1, 1)[:, :in_chans] * (3 / in_chans)
        with torch.no_grad():
            other.weight.copy_(first.weight.sum(1, keepdim=True) if in_chans == 1 else repeated)
            if first.bias is not None and other.bias is not None:
                other.bias.copy_(first.bias)
    replace_layer(network, name, other)


def source_head_of(network: nn.Module, head: object) -> tuple[str, nn.Module]:
    """Return the head of a checkpoint, and the name of the fresh one among the submodules of a classifier.

    Args:
        network: The checkpoint's network, with its own classes.
        head: Its head, as far as the library tells.

    Raises:
        NotApplicableError: If it is not a single layer.
    """
    if isinstance(head, nn.Identity) or head is None:
        raise NotApplicableError("the checkpoint came without a head that classifies.")
    if not isinstance(head, nn.Linear | nn.Conv2d):
        raise NotApplicableError("the checkpoint's head is not a single layer.")
    name = next(name for name, each in network.named_modules() if each is head)
    return f"network.{name}", head
