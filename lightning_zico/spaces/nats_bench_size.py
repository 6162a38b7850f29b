"""The size space of NATS-Bench: one fixed cell, five layers whose widths are chosen.

Index conventions:
    N: samples in a batch
    H, W: height, width
    K: classes
"""

import random
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from operator import index

from torch import nn

from lightning_zico.spaces._parts import (
    Cell,
    Conv,
    Reduction,
    nats_head,
    nats_macs,
    nats_params,
    nats_stem,
    relu_conv_norm,
)
from lightning_zico.spaces.base import Reader, SearchSpace, Trial, register_space

WIDTHS = (8, 16, 24, 32, 40, 48, 56, 64)

_NUM_LAYERS = 5  # cells, with residual blocks at the odd positions


@dataclass(frozen=True)
class NATSBenchSizeArch:
    """The widths of a network of NATS-Bench.

    Args:
        widths: Channels of each layer, each one of `WIDTHS`.

    Raises:
        ValueError: If these are not five of those widths.
        TypeError: If one is no whole number.

    Example:
        >>> print(NATSBenchSizeArch((8, 64, 32, 16, 56)))
        8:64:32:16:56
    """

    widths: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(map(index, self.widths)))  # a list cannot be hashed
        if len(self.widths) != _NUM_LAYERS or not set(self.widths) <= set(WIDTHS):
            needed = f"{_NUM_LAYERS} of {', '.join(map(str, WIDTHS))}"
            raise ValueError(f"Invalid widths={self.widths!r}: expected {needed}.")

    def __str__(self) -> str:
        return ":".join(map(str, self.widths))


@register_space("nats_bench_size")
class NATSBenchSize(SearchSpace[NATSBenchSizeArch]):
    """The 32,768 networks of NATS-Bench that differ in width, for images whose height and width are multiples of 4.

    A stem of one convolution, as wide as the first layer; five layers: a cell, a residual block that halves the image,
    a cell, another such block and a cell; then batch norm, ReLU, the mean over the image and a linear layer. The cell
    is the best of NAS-Bench-201 on CIFAR-100,
    ``|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|``.
    The benchmark's images are 32 x 32 (CIFAR) and 16 x 16 (ImageNet16-120).

    Example:
        >>> space = NATSBenchSize()
        >>> arch = space.sample(random.Random(0))
        >>> print(arch)
        56:56:8:40:64
        >>> space.params(arch), space.macs(arch)
        (391986, 175248000)

    Source:
        Dong et al., *NATS-Bench*, arXiv:2009.00437; D-X-Y/AutoDL-Projects, ``DynamicShapeTinyNet``.
        Weights are drawn as torch draws them by default, there as here.
    """

    @property
    def size(self) -> int:
        """Number of archs: one of eight widths for each of five layers."""
        return len(WIDTHS) ** _NUM_LAYERS

    def parse(self, text: str) -> NATSBenchSizeArch:
        """Parse an arch from its string.

        Raises:
            ArchSyntaxError: If the text is not an arch of this space. The message shows the position and what was
                expected there.

        Example:
            >>> NATSBenchSize().parse("8:64:32:128:56")
            Traceback (most recent call last):
            ...
            lightning_zico.spaces.base.ArchSyntaxError: The arch cannot be read at position 9 (from 0):
            expected '16', found '2'.
                8:64:32:128:56
                         ^
        """
        reader, widths = Reader(text), []
        for layer in range(_NUM_LAYERS):
            if layer:
                reader.token([":"])
            widths.append(int(reader.token([str(width) for width in WIDTHS])))
        reader.end()
        return NATSBenchSizeArch(tuple(widths))

    def sample(self, rng: random.Random) -> NATSBenchSizeArch:
        """Draw an arch uniformly at random."""
        return NATSBenchSizeArch(tuple(rng.choice(WIDTHS) for _ in range(_NUM_LAYERS)))

    def suggest(self, trial: Trial) -> NATSBenchSizeArch:
        """Let an Optuna trial choose the width of each layer, such as ``width_0``."""
        low, step, high = WIDTHS[0], WIDTHS[1] - WIDTHS[0], WIDTHS[-1]
        widths = (trial.suggest_int(f"width_{layer}", low, high, step=step) for layer in range(_NUM_LAYERS))
        return NATSBenchSizeArch(tuple(widths))

    def neighbours(self, arch: NATSBenchSizeArch) -> Iterator[NATSBenchSizeArch]:
        """Yield the 35 archs that differ from this one in the width of one layer."""
        for layer, kept in enumerate(arch.widths):
            for width in WIDTHS:
                if width != kept:
                    yield NATSBenchSizeArch((*arch.widths[:layer], width, *arch.widths[layer + 1 :]))

    def depth(self, arch: NATSBenchSizeArch) -> int:
        """Count the convolutions and the linear layer."""
        return len(_convs(arch, in_channels=3)) + 1

    def params(self, arch: NATSBenchSizeArch, *, num_classes: int = 10, in_channels: int = 3) -> int:
        """Count the parameters of the built network, exactly."""
        return nats_params(_convs(arch, in_channels), arch.widths[-1], num_classes)

    def macs(
        self, arch: NATSBenchSizeArch, resolution: int = 32, *, num_classes: int = 10, in_channels: int = 3
    ) -> int:
        """Count the multiply-accumulate operations of the built network, exactly.

        Args:
            arch: Arch of this space.
            resolution: Height and width of an image, in pixels.
            num_classes: As for `build`.
            in_channels: As for `build`.

        Returns:
            Operations of convolutions and the linear layer, per sample (1 MAC = 2 FLOPs).

        Raises:
            ValueError: If ``resolution`` is no multiple of 4: the residual blocks' two branches would differ in size.
        """
        return nats_macs(_convs(arch, in_channels), arch.widths[-1], num_classes, resolution)

    def build(self, arch: NATSBenchSizeArch, num_classes: int = 10, in_channels: int = 3) -> nn.Sequential:
        """Build the network of an arch, on the CPU, with fresh weights.

        Args:
            arch: Arch of this space.
            num_classes: Number of logits.
            in_channels: Number of channels of the images.

        Returns:
            A network that maps images ``[N, in_channels, H, W]`` to logits ``[N, num_classes]``.
        """
        stem = nats_stem(in_channels, arch.widths[0])
        blocks = [
            Reduction(inputs, outputs) if layer % 2 else _cell(inputs, outputs)
            for layer, (inputs, outputs) in enumerate(_channels(arch))
        ]
        head = nats_head(arch.widths[-1], num_classes)
        return nn.Sequential(OrderedDict(stem=stem, blocks=nn.Sequential(*blocks), head=head))

    def blocks(self, arch: NATSBenchSizeArch) -> tuple[str, ...]:
        """List the names of the three cells and the two residual blocks between them, in order of execution."""
        return tuple(f"blocks.{layer}" for layer in range(_NUM_LAYERS))


def _channels(arch: NATSBenchSizeArch) -> Iterator[tuple[int, int]]:
    """Yield the input and output channels of each layer."""
    return zip((arch.widths[0], *arch.widths[:-1]), arch.widths, strict=True)


def _cell(inputs: int, outputs: int) -> Cell:
    """Build the cell; its edges from node 0 change the width."""
    return Cell(
        [
            relu_conv_norm(3, inputs, outputs),
            relu_conv_norm(3, inputs, outputs),
            relu_conv_norm(3, outputs, outputs),
            _skip(inputs, outputs),
            relu_conv_norm(3, outputs, outputs),
            relu_conv_norm(3, outputs, outputs),
        ]
    )


def _skip(inputs: int, outputs: int) -> nn.Module:
    if inputs == outputs:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))


def _convs(arch: NATSBenchSizeArch, in_channels: int) -> list[Conv]:
    convs = [Conv(3, in_channels, arch.widths[0])]
    for layer, (inputs, outputs) in enumerate(_channels(arch)):
        halvings = (layer + 1) // 2
        if layer % 2:
            convs += Reduction.convs(inputs, outputs, halvings)
        else:
            convs += 2 * [Conv(3, inputs, outputs, halvings)] + 3 * [Conv(3, outputs, outputs, halvings)]
            if inputs != outputs:
                convs.append(Conv(1, inputs, outputs, halvings))
    return convs
