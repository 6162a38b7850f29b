"""NAS-Bench-201, which is the topology space of NATS-Bench: one cell of six edges, repeated in a fixed skeleton.

Index conventions:
    N: samples in a batch
    C, H, W: channels, height, width
    K: classes
"""

import random
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise

import torch
from torch import Tensor, nn

from lightning_zico.spaces.base import ArchSyntaxError, SearchSpace, Trial, read_token, register_space

OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")

# (from, to) of each edge, in the order of the string; node 0 is the input of the cell, node 3 its output.
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))

_NUM_NODES = 4
_WIDTHS = (16, 32, 64)  # of the three stages
_CELLS_PER_STAGE = 5


@dataclass(frozen=True)
class NASBench201Arch:
    """A cell of NAS-Bench-201.

    Args:
        ops: The operation on each of `EDGES`, each one of `OPS`.

    Raises:
        ValueError: If these are not six known operations.

    Example:
        >>> print(NASBench201Arch(("none", "skip_connect", "none", "nor_conv_3x3", "none", "avg_pool_3x3")))
        |none~0|+|skip_connect~0|none~1|+|nor_conv_3x3~0|none~1|avg_pool_3x3~2|
    """

    ops: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "ops", tuple(self.ops))  # a list cannot be hashed
        if len(self.ops) != len(EDGES) or not set(self.ops) <= set(OPS):
            raise ValueError(f"`ops` is {self.ops!r}; needed are {len(EDGES)} of {', '.join(OPS)}.")

    def __str__(self) -> str:
        nodes = (
            "".join(f"|{op}~{start}" for op, (start, end) in zip(self.ops, EDGES, strict=True) if end == node)
            for node in range(1, _NUM_NODES)
        )
        return "+".join(f"{node}|" for node in nodes)


@register_space("nas_bench_201")
class NASBench201(SearchSpace[NASBench201Arch]):
    """The 15,625 networks of NAS-Bench-201, for images whose height and width are multiples of 4.

    A stem of one convolution; three stages of five equal cells, 16, 32 and 64 wide; before the second and the third a
    residual block that halves the image; then batch norm, ReLU, the mean over the image and a linear layer.

    Example:
        >>> space = NASBench201()
        >>> arch = space.sample(random.Random(0))
        >>> print(arch)
        |nor_conv_3x3~0|+|nor_conv_3x3~0|none~1|+|nor_conv_1x1~0|avg_pool_3x3~1|nor_conv_3x3~2|
        >>> space.params(arch), space.macs(arch)
        (830426, 117883520)

    Source:
        Dong & Yang, ICLR 2020, arXiv:2001.00326; Dong et al., *NATS-Bench*, arXiv:2009.00437; D-X-Y/AutoDL-Projects.
        Weights are drawn as torch draws them by default, there as here.
    """

    @property
    def size(self) -> int:
        """Number of archs: one of five operations on each of six edges."""
        return len(OPS) ** len(EDGES)

    def parse(self, text: str) -> NASBench201Arch:
        """Read an arch from its string.

        Raises:
            ArchSyntaxError: If the text is none; it shows where and what is needed there.

        Example:
            >>> NASBench201().parse("|none~0|+|nor_conv_5x5~0|none~1|+|none~0|none~1|none~2|")
            Traceback (most recent call last):
            ...
            lightning_zico.spaces.base.ArchSyntaxError: The arch cannot be read at position 19 (from 0):
            needed is 'nor_conv_1x1' or 'nor_conv_3x3', found is '5'.
                |none~0|+|nor_conv_5x5~0|none~1|+|none~0|none~1|none~2|
                                   ^
        """
        ops, position, node = [], 0, 1
        for start, end in EDGES:
            position += len(read_token(text, position, ["|" if end == node else "|+|"]))
            ops.append(read_token(text, position, OPS))
            position += len(ops[-1])
            position += len(read_token(text, position, [f"~{start}"]))
            node = end
        position += len(read_token(text, position, ["|"]))
        if position < len(text):
            raise ArchSyntaxError(text, position, "the end")
        return NASBench201Arch(tuple(ops))

    def sample(self, rng: random.Random) -> NASBench201Arch:
        """Draw an arch, each with the same probability."""
        return NASBench201Arch(tuple(rng.choice(OPS) for _ in EDGES))

    def suggest(self, trial: Trial) -> NASBench201Arch:
        """Let an Optuna trial choose the operation of each edge, such as ``edge_0_1``."""
        return NASBench201Arch(tuple(trial.suggest_categorical(f"edge_{start}_{end}", OPS) for start, end in EDGES))

    def neighbours(self, arch: NASBench201Arch) -> Iterator[NASBench201Arch]:
        """Go through the 24 archs that differ from this one on one edge."""
        for edge, kept in enumerate(arch.ops):
            for op in OPS:
                if op != kept:
                    yield NASBench201Arch((*arch.ops[:edge], op, *arch.ops[edge + 1 :]))

    def params(self, arch: NASBench201Arch, *, num_classes: int = 10, in_channels: int = 3) -> int:
        r"""Count the parameters of the built network, exactly.

        .. math::
            73306 + 28000\, n_1 + 243040\, n_3

        for ten classes and images of three channels, with :math:`n_1, n_3` the convolutions 1x1 and 3x3 in the cell.
        """
        per_cell = [(kernel, width, width) for kernel in _kernels(arch) for width in _WIDTHS]
        convs = [(3, in_channels, _WIDTHS[0]), *_CELLS_PER_STAGE * per_cell]
        shortcuts = []
        for narrow, wide in pairwise(_WIDTHS):
            convs += [(3, narrow, wide), (3, wide, wide)]
            shortcuts.append(narrow * wide)
        normed = sum(_conv_weights(*conv) + 2 * conv[-1] for conv in convs)  # batch norm: scale and shift
        return normed + sum(shortcuts) + 2 * _WIDTHS[-1] + (_WIDTHS[-1] + 1) * num_classes

    def macs(self, arch: NASBench201Arch, resolution: int = 32, *, num_classes: int = 10, in_channels: int = 3) -> int:
        r"""Count the multiply-accumulate operations of the built network, exactly.

        .. math::
            7783040 + 3932160\, n_1 + 35389440\, n_3

        at 32 x 32, for ten classes and images of three channels, with :math:`n_1, n_3` as for `params`.

        Args:
            arch: Of this space.
            resolution: Height and width of an image, in pixels.
            num_classes: As for `build`.
            in_channels: As for `build`.

        Returns:
            Those of convolutions and the linear layer, per sample (1 MAC = 2 FLOPs).

        Raises:
            ValueError: If ``resolution`` is no multiple of 4: the residual blocks' two branches would differ in size.
        """
        if resolution < 1 or resolution % 4:
            raise ValueError(f"`resolution` is {resolution}; needed is a multiple of 4: the network halves it twice.")
        pixels = [(resolution >> stage) ** 2 for stage in range(len(_WIDTHS))]
        total = pixels[0] * _conv_weights(3, in_channels, _WIDTHS[0]) + _WIDTHS[-1] * num_classes
        for width, area in zip(_WIDTHS, pixels, strict=True):
            cell = sum(_conv_weights(kernel, width, width) for kernel in _kernels(arch))
            total += _CELLS_PER_STAGE * cell * area
        for (narrow, wide), area in zip(pairwise(_WIDTHS), pixels[1:], strict=True):
            total += area * (_conv_weights(3, narrow, wide) + _conv_weights(3, wide, wide) + narrow * wide)
        return total

    def build(self, arch: NASBench201Arch, num_classes: int = 10, in_channels: int = 3) -> nn.Sequential:
        """Build the network of an arch, on the CPU, with fresh weights.

        Args:
            arch: Of this space.
            num_classes: Logits.
            in_channels: Of an image.

        Returns:
            A network that maps images ``[N, in_channels, H, W]`` to logits ``[N, num_classes]``.
        """
        stem = nn.Sequential(nn.Conv2d(in_channels, _WIDTHS[0], 3, padding=1, bias=False), nn.BatchNorm2d(_WIDTHS[0]))
        blocks: list[nn.Module] = [Cell(arch, _WIDTHS[0]) for _ in range(_CELLS_PER_STAGE)]
        for narrow, wide in pairwise(_WIDTHS):
            blocks.append(Reduction(narrow, wide))
            blocks += [Cell(arch, wide) for _ in range(_CELLS_PER_STAGE)]
        head = nn.Sequential(
            nn.BatchNorm2d(_WIDTHS[-1]),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(_WIDTHS[-1], num_classes),
        )
        return nn.Sequential(OrderedDict(stem=stem, blocks=nn.Sequential(*blocks), head=head))

    def blocks(self, arch: NASBench201Arch) -> tuple[str, ...]:
        """Name the fifteen cells and the two residual blocks between the stages, in order of execution."""
        num_blocks = _CELLS_PER_STAGE * len(_WIDTHS) + len(_WIDTHS) - 1
        return tuple(f"blocks.{idx}" for idx in range(num_blocks))


class Cell(nn.Module):
    """A cell: each node is the sum of its incoming edges.

    Args:
        arch: The operations on the edges.
        width: Channels, everywhere in the cell.
    """

    def __init__(self, arch: NASBench201Arch, width: int) -> None:
        super().__init__()
        self.edges = nn.ModuleList(_op(op, width) for op in arch.ops)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, C, H, W]`` to the same shape."""
        nodes = [x]
        for node in range(1, _NUM_NODES):
            incoming = [edge(nodes[start]) for edge, (start, end) in zip(self.edges, EDGES, strict=True) if end == node]
            nodes.append(reduce(torch.add, incoming))
        return nodes[-1]


class Reduction(nn.Module):
    """The residual block between two stages; it halves the image.

    Args:
        narrow: Channels that come in.
        wide: Channels that go out.
    """

    def __init__(self, narrow: int, wide: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_relu_conv_norm(3, narrow, wide, stride=2), _relu_conv_norm(3, wide, wide))
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(narrow, wide, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, narrow, H, W]`` to ``[N, wide, H / 2, W / 2]``."""
        return self.shortcut(x) + self.body(x)


class Zero(nn.Module):
    """The operation ``none``."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, C, H, W]`` to zeros of the same shape."""
        # As published: a product, so that what lies behind this edge has a gradient, zero, rather than none at all.
        return x.mul(0.0)


def _op(op: str, width: int) -> nn.Module:
    match op:
        case "none":
            return Zero()
        case "skip_connect":
            return nn.Identity()
        case "nor_conv_1x1":
            return _relu_conv_norm(1, width, width)
        case "nor_conv_3x3":
            return _relu_conv_norm(3, width, width)
        case _:
            return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)


def _relu_conv_norm(kernel: int, inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(nn.ReLU(), conv, nn.BatchNorm2d(outputs))


def _kernels(arch: NASBench201Arch) -> list[int]:
    sizes = {"nor_conv_1x1": 1, "nor_conv_3x3": 3}
    return [sizes[op] for op in arch.ops if op in sizes]


def _conv_weights(kernel: int, inputs: int, outputs: int) -> int:
    return kernel * kernel * inputs * outputs
