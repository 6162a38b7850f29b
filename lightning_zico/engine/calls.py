"""Calls of layers: positions and channels of their outputs, and their multiplications."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lightning_zico.engine.layers import channel_dim, weight_in

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class LayerCall:
    """One call of one layer.

    Args:
        layer: Its name.
        positions: Positions of its output, per sample.
        channels: Channels of its output.
        macs: Multiply-accumulate operations for its whole input.
    """

    layer: str
    positions: int
    channels: int
    macs: int


def layer_calls(
    owned: Mapping[int, Sequence[str]], module: nn.Module, inputs: Sequence[Any], output: Any
) -> Iterator[LayerCall]:
    """List the calls of layers that one call of a submodule makes.

    Args:
        owned: Names of the layers of each submodule, see `layers.Layout`.
        module: The submodule. Attention calls its projections without calling a submodule for each.
        inputs: Its inputs.
        output: Its output. If that is not one tensor, as for recurrent layers, no calls are listed.
    """
    names = owned.get(id(module), ())
    if isinstance(module, nn.MultiheadAttention):
        yield from _projections(owned, module, inputs)
    elif len(names) == 1 and isinstance(output, Tensor) and output.ndim > 1:
        weight = weight_in(module, names[0])
        channels = output.shape[channel_dim(module, output)]
        # Every weight is used once for each position: of the output, or for a transposed convolution of the input.
        maps = next(iter(inputs), None) if isinstance(module, _TRANSPOSED) else output
        used = maps.numel() // maps.shape[channel_dim(module, maps)] if isinstance(maps, Tensor) else 0
        yield LayerCall(names[0], output[0].numel() // channels, channels, used * weight.numel())


def _projections(
    owned: Mapping[int, Sequence[str]], attention: nn.MultiheadAttention, inputs: Sequence[Any]
) -> Iterator[LayerCall]:
    given = [tensor for tensor in inputs[:3] if isinstance(tensor, Tensor)]
    last = owned.get(id(attention.out_proj), ())
    names = [*owned.get(id(attention), ()), *last]
    if len(given) < 3:
        return
    query, key, value = given
    sources = {"q": query, "k": key, "v": value}
    for name in names:
        part = "q" if name in last else name.rpartition("[")[2][0] if "[" in name else name.rpartition(".")[2][0]
        source = sources[part]
        samples = 1 if source.ndim == 2 else source.shape[0 if attention.batch_first else 1]
        positions = source.numel() // (samples * source.shape[-1])
        macs = source.numel() * attention.embed_dim
        yield LayerCall(name, positions, attention.embed_dim, macs)
