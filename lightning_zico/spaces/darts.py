"""DARTS: two cells are searched, which are stacked into networks in three sizes; one of them is that of NAS-Bench-301.

Index conventions:
    N: samples in a batch
    C, H, W: channels, height, width
    K: classes
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import comb, prod
from operator import index
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from lightning_zico.spaces._parts import Conv, relu_conv_norm
from lightning_zico.spaces.base import Reader, SearchSpace, Trial, register_space

# In the order of NASLib's codes.
OPS = (
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)

_KERNELS = {"sep_conv_3x3": 3, "sep_conv_5x5": 5, "dil_conv_3x3": 3, "dil_conv_5x5": 5}
_NUM_NODES = 4
_NUM_INPUTS = 2  # of a cell: the outputs of the two cells before it
_OPS_PER_NODE = 2

# The two operations of a node, each with the number of its source.
Node: TypeAlias = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class DARTSCell:
    """A cell of DARTS: four nodes, each the sum of two operations on different sources.

    Source 0 is the output of the cell before the last, source 1 that of the last cell, and 2 to 5 are the nodes of this
    cell in order; a node has sources with lower numbers than its own.

    Args:
        nodes: For each node, two pairs of an operation, one of `OPS`, and its source. Their order does not matter.

    Raises:
        ValueError: If there is no such cell.

    Example:
        >>> node = (("skip_connect", 1), ("sep_conv_3x3", 0))
        >>> str(DARTSCell((node,) * 4)).split("+")[3]
        '|sep_conv_3x3~0|skip_connect~1|'
    """

    nodes: tuple[Node, ...]

    def __post_init__(self) -> None:
        nodes = [[(op, index(source)) for op, source in node] for node in self.nodes]
        object.__setattr__(self, "nodes", tuple(tuple(sorted(node, key=lambda pair: pair[1])) for node in nodes))
        if len(self.nodes) != _NUM_NODES:
            raise ValueError(f"`nodes` has {len(self.nodes)} nodes: expected {_NUM_NODES}.")
        for number, node in enumerate(self.nodes, _NUM_INPUTS):
            if not {op for op, _ in node} <= set(OPS):
                raise ValueError(f"`nodes` has {node}: expected operations from {', '.join(OPS)}.")
            if tuple(source for _, source in node) not in _pairs_below(number):
                raise ValueError(f"Node {number} has {node}: expected two different sources from 0 to {number - 1}.")

    def __str__(self) -> str:
        return "+".join("".join(f"|{op}~{source}" for op, source in node) + "|" for node in self.nodes)


@dataclass(frozen=True, repr=False)
class DARTSArch:
    """The cells of a network of DARTS.

    Args:
        normal: The cell that keeps the size of the image.
        reduce: The cell that halves it.

    Example:
        >>> cell = DARTSCell(((("skip_connect", 0), ("avg_pool_3x3", 1)),) * 4)
        >>> DARTS().parse(str(DARTSArch(cell, cell))) == DARTSArch(cell, cell)
        True
    """

    normal: DARTSCell
    reduce: DARTSCell

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {str(self)!r}>"

    def __str__(self) -> str:
        return f"{self.normal}/{self.reduce}"


class DARTSSpace(SearchSpace[DARTSArch]):
    """The 1.08e18 pairs of a normal and a reduction cell, stacked into a network.

    A stem; cells, two of which, after one and two thirds of them, are reduction cells, which halve the image and double
    the width; then the mean over the image and a linear layer. Each cell takes the outputs of the two cells before it,
    maps both to its width, and concatenates its four nodes.

    Attributes:
        width: Channels of a node in the first cells.
        num_cells: Number of cells.
        for_imagenet: Whether the stem is that for ImageNet, which divides the size of the image by eight.
    """

    width: ClassVar[int]
    num_cells: ClassVar[int]
    for_imagenet: ClassVar[bool] = False

    @property
    def size(self) -> int:
        """Number of archs: pairs of sources and seven operations, for each node of both cells."""
        pairs = prod(comb(number, 2) for number in range(_NUM_INPUTS, _NUM_INPUTS + _NUM_NODES))
        return (pairs * len(OPS) ** (_OPS_PER_NODE * _NUM_NODES)) ** 2

    def parse(self, text: str) -> DARTSArch:
        """Parse an arch from its string: the normal cell, a slash, and the reduction cell.

        Raises:
            ArchSyntaxError: If the text is not an arch of this space. The message shows the position and what was
                expected there.
        """
        reader = Reader(text)
        normal = _read_cell(reader)
        reader.token(["/"])
        arch = DARTSArch(normal, _read_cell(reader))
        reader.end()
        return arch

    def sample(self, rng: random.Random) -> DARTSArch:
        """Draw an arch uniformly at random."""
        return DARTSArch(_sample_cell(rng), _sample_cell(rng))

    def neighbours(self, arch: DARTSArch) -> Iterator[DARTSArch]:
        """Yield the archs that differ from this one in one operation or in one source, in either cell.

        An operation keeps its kind when its source changes.
        """
        yield from (replace(arch, normal=cell) for cell in _neighbours_of(arch.normal))
        yield from (replace(arch, reduce=cell) for cell in _neighbours_of(arch.reduce))

    def suggest(self, trial: Trial) -> DARTSArch:
        """Let an Optuna trial choose each node's sources and operations.

        Their names are such as ``normal_2_sources`` and ``normal_2_op_0``.
        """

        def cell(name: str) -> DARTSCell:
            nodes = []
            for number in range(_NUM_INPUTS, _NUM_INPUTS + _NUM_NODES):
                pairs = [f"{first},{second}" for first, second in _pairs_below(number)]
                sources = trial.suggest_categorical(f"{name}_{number}_sources", pairs).split(",")
                ops = [trial.suggest_categorical(f"{name}_{number}_op_{idx}", OPS) for idx in range(_OPS_PER_NODE)]
                nodes.append(tuple(zip(ops, map(int, sources), strict=True)))
            return DARTSCell(tuple(nodes))

        return DARTSArch(cell("normal"), cell("reduce"))

    def depth(self, arch: DARTSArch) -> int:
        """Count the convolutions and the linear layer."""
        return len(self._convs(arch, in_channels=3)) + 1

    def params(self, arch: DARTSArch, *, num_classes: int = 10, in_channels: int = 3) -> int:
        """Count the parameters of the built network, exactly."""
        return sum(conv.params() for conv in self._convs(arch, in_channels)) + (self._features + 1) * num_classes

    def macs(self, arch: DARTSArch, resolution: int = 32, *, num_classes: int = 10, in_channels: int = 3) -> int:
        """Count the multiply-accumulate operations of the built network, exactly.

        Args:
            arch: Arch of this space.
            resolution: Height and width of an image, in pixels.
            num_classes: As for `build`.
            in_channels: As for `build`.

        Returns:
            Operations of convolutions and the linear layer, per sample (1 MAC = 2 FLOPs).

        Raises:
            ValueError: If the image cannot be halved as often as the network halves it.
        """
        divisor = 32 if self.for_imagenet else 4
        if resolution < 1 or resolution % divisor:
            raise ValueError(
                f"Invalid resolution={resolution}: expected a multiple of {divisor}, because the network halves it "
                f"{divisor.bit_length() - 1} times."
            )
        return sum(conv.macs(resolution) for conv in self._convs(arch, in_channels)) + self._features * num_classes

    def build(self, arch: DARTSArch, num_classes: int = 10, in_channels: int = 3) -> "CellNetwork":
        """Build the network of an arch, on the CPU, with fresh weights.

        Args:
            arch: Arch of this space.
            num_classes: Number of logits.
            in_channels: Number of channels of the images.

        Returns:
            A network that maps images ``[N, in_channels, H, W]`` to logits ``[N, num_classes]``.
        """
        return CellNetwork(arch, self._plans(), self._stem(in_channels), nn.Linear(self._features, num_classes))

    def blocks(self, arch: DARTSArch) -> tuple[str, ...]:
        """List the names of the cells, in order of execution."""
        return tuple(f"cells.{idx}" for idx in range(self.num_cells))

    @property
    def _features(self) -> int:
        return _NUM_NODES * 4 * self.width  # doubled twice

    def _plans(self) -> list["CellPlan"]:
        """List the position of each cell."""
        plans, width = [], self.width
        older = newer = self.width if self.for_imagenet else 3 * self.width
        halvings = 3 if self.for_imagenet else 0
        is_halved = self.for_imagenet
        for idx in range(self.num_cells):
            reduces = idx in (self.num_cells // 3, 2 * self.num_cells // 3)
            width *= 2 if reduces else 1
            plans.append(CellPlan(older, newer, width, reduces, is_halved, halvings))
            older, newer, is_halved = newer, _NUM_NODES * width, reduces
            halvings += reduces
        return plans

    def _stem(self, in_channels: int) -> nn.ModuleList:
        """Build the two parts of the stem; the outputs of both are the inputs of the first cell."""
        if not self.for_imagenet:
            return nn.ModuleList([nn.Sequential(*_conv_norm(in_channels, 3 * self.width)), nn.Identity()])
        half = self.width // 2
        first = [*_conv_norm(in_channels, half, 2), nn.ReLU(), *_conv_norm(half, self.width, 2)]
        second = [nn.ReLU(), *_conv_norm(self.width, self.width, 2)]
        return nn.ModuleList([nn.Sequential(*first), nn.Sequential(*second)])

    def _convs(self, arch: DARTSArch, in_channels: int) -> list[Conv]:
        half = self.width // 2
        if self.for_imagenet:
            convs = [Conv(3, in_channels, half, 1), Conv(3, half, self.width, 2), Conv(3, self.width, self.width, 3)]
        else:
            convs = [Conv(3, in_channels, 3 * self.width)]
        for plan in self._plans():
            convs += plan.convs(arch.reduce if plan.reduces else arch.normal)
        return convs


@register_space("nas_bench_301")
class NASBench301(DARTSSpace):
    """The networks of NAS-Bench-301: 8 cells, 32 channels, for images whose height and width are multiples of 4.

    See `DARTSSpace`. The auxiliary head, which only takes part in training, is left out.

    Example:
        >>> space = NASBench301()
        >>> cell = "+".join(["|sep_conv_5x5~0|sep_conv_5x5~1|"] * 4)
        >>> arch = space.parse(f"{cell}/{cell}")
        >>> space.params(arch), space.macs(arch)
        (1684714, 269128704)

    Source:
        Zela et al., *NAS-Bench-301*, ICLR 2022, arXiv:2008.09777. Batch norms have weights and pools have none, as in
        the networks that were trained for it; NASLib builds them otherwise.
    """

    width, num_cells = 32, 8


@register_space("darts")
class DARTS(DARTSSpace):
    """The networks of DARTS for CIFAR-10: 20 cells, 36 channels, for images whose height and width are multiples of 4.

    See `DARTSSpace`. The auxiliary head, which only takes part in training, and drop path are left out.

    Source:
        Liu et al., ICLR 2019, arXiv:1806.09055; quark0/darts, ``NetworkCIFAR``. Weights are drawn as torch draws them
        by default, there as here.
    """

    width, num_cells = 36, 20


@register_space("darts_imagenet")
class DARTSImageNet(DARTSSpace):
    """The networks of DARTS for ImageNet: 14 cells, 48 channels, for images whose sides are multiples of 32.

    See `DARTSSpace`. The stem has three convolutions that halve the image. The auxiliary head is left out.

    Source:
        Liu et al., ICLR 2019, arXiv:1806.09055; quark0/darts, ``NetworkImageNet``. Its mean over 7 x 7 pixels is that
        over the whole image here.
    """

    width, num_cells, for_imagenet = 48, 14, True

    def macs(self, arch: DARTSArch, resolution: int = 224, *, num_classes: int = 10, in_channels: int = 3) -> int:
        """Count the multiply-accumulate operations of the built network, exactly; as for `DARTS`."""
        return super().macs(arch, resolution, num_classes=num_classes, in_channels=in_channels)


@dataclass(frozen=True)
class CellPlan:
    """Where a cell stands in a network.

    Args:
        older: Channels of source 0, the output of the cell before the last.
        newer: Channels of source 1, the output of the last cell.
        width: Channels of a node.
        reduces: Whether the cell halves the image.
        is_halved: Whether source 1 is half as large as source 0.
        halvings: How often the image of source 1 has been halved.
    """

    older: int
    newer: int
    width: int
    reduces: bool
    is_halved: bool
    halvings: int

    def convs(self, cell: DARTSCell) -> list[Conv]:
        """List the convolutions of the cell there."""
        convs = [Conv(1, self.newer, self.width, self.halvings)]
        if self.is_halved:
            convs += 2 * [Conv(1, self.older, self.width // 2, self.halvings)]
        else:
            convs.append(Conv(1, self.older, self.width, self.halvings))
        after = self.halvings + self.reduces
        for node in cell.nodes:
            for op, source in node:
                convs += _convs_of_op(op, self.width, after, is_strided=self.reduces and source < _NUM_INPUTS)
        return convs


class CellNetwork(nn.Module):
    """A stem, cells, the mean over the image and a linear layer.

    Args:
        arch: The two cells.
        plans: Where they stand.
        stem: Two modules; the outputs of both are the inputs of the first cell.
        head: Classifies the mean of the output of the last cell.
    """

    def __init__(self, arch: DARTSArch, plans: Sequence[CellPlan], stem: nn.ModuleList, head: nn.Linear) -> None:
        super().__init__()
        self.stem = stem
        self.cells = nn.ModuleList(Cell(arch.reduce if plan.reduces else arch.normal, plan) for plan in plans)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
        self.num_halvings = plans[-1].halvings

    def forward(self, images: Tensor) -> Tensor:
        """Map ``[N, C, H, W]`` to ``[N, K]``.

        Raises:
            ValueError: If the images cannot be halved as often as the network halves them.
        """
        (height, width), divisor = images.shape[-2:], 2**self.num_halvings
        if min(height, width) < 1 or height % divisor or width % divisor:
            raise ValueError(
                f"The images are {height} x {width}: expected multiples of {divisor}, because the network halves them "
                f"{self.num_halvings} times."
            )
        first, second = self.stem
        older = first(images)
        newer = second(older)
        for cell in self.cells:
            older, newer = newer, cell(older, newer)
        return self.head(newer)


class Cell(nn.Module):
    """A cell: its nodes are concatenated.

    Args:
        cell: The operations and their sources.
        plan: Where the cell stands.
    """

    def __init__(self, cell: DARTSCell, plan: CellPlan) -> None:
        super().__init__()
        narrowing = FactorisedReduction if plan.is_halved else relu_conv_norm_1x1
        self.older = narrowing(plan.older, plan.width)
        self.newer = relu_conv_norm_1x1(plan.newer, plan.width)
        self.sources = [[source for _, source in node] for node in cell.nodes]
        self.nodes = nn.ModuleList(
            nn.ModuleList(
                build_op(op, plan.width, is_strided=plan.reduces and source < _NUM_INPUTS) for op, source in node
            )
            for node in cell.nodes
        )

    def forward(self, older: Tensor, newer: Tensor) -> Tensor:
        """Map ``[N, older, H, W]`` and ``[N, newer, H', W']`` to four times the width of a node."""
        states = [self.older(older), self.newer(newer)]
        for ops, sources in zip(self.nodes, self.sources, strict=True):
            first, second = (op(states[source]) for op, source in zip(ops.children(), sources, strict=True))
            states.append(first + second)
        return torch.cat(states[_NUM_INPUTS:], dim=1)


class FactorisedReduction(nn.Module):
    """Halves an image whose sides are even: two convolutions, one of which looks at the other pixels.

    Args:
        inputs: Number of input channels.
        outputs: Number of output channels, an even number.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.even = nn.Conv2d(inputs, outputs // 2, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(inputs, outputs // 2, 1, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, inputs, H, W]`` to ``[N, outputs, H / 2, W / 2]``."""
        x = self.relu(x)
        return self.norm(torch.cat([self.even(x), self.odd(x[:, :, 1:, 1:])], dim=1))


def relu_conv_norm_1x1(inputs: int, outputs: int) -> nn.Sequential:
    """Build ReLU, convolution 1 x 1, batch norm."""
    return relu_conv_norm(1, inputs, outputs)


def build_op(op: str, width: int, *, is_strided: bool) -> nn.Module:
    """Build an operation, ``[N, width, H, W]`` to the same shape, or to half the height and width."""
    stride = 2 if is_strided else 1
    if op == "max_pool_3x3":
        return nn.MaxPool2d(3, stride, padding=1)
    if op == "avg_pool_3x3":
        return nn.AvgPool2d(3, stride, padding=1, count_include_pad=False)
    if op == "skip_connect":
        return FactorisedReduction(width, width) if is_strided else nn.Identity()
    kernel = _KERNELS[op]
    if op.startswith("dil"):
        return nn.Sequential(*_depthwise(width, kernel, stride, dilation=2))
    return nn.Sequential(*_depthwise(width, kernel, stride), *_depthwise(width, kernel, 1))


def _depthwise(width: int, kernel: int, stride: int, dilation: int = 1) -> list[nn.Module]:
    padding = dilation * (kernel - 1) // 2
    return [
        nn.ReLU(),
        nn.Conv2d(width, width, kernel, stride, padding, dilation, groups=width, bias=False),
        nn.Conv2d(width, width, 1, bias=False),
        nn.BatchNorm2d(width),
    ]


def _convs_of_op(op: str, width: int, halvings: int, *, is_strided: bool) -> list[Conv]:
    if op == "skip_connect" and is_strided:
        return 2 * [Conv(1, width, width // 2, halvings)]
    if op not in _KERNELS:
        return []
    # a depthwise convolution has one input channel for each output channel
    convs = [Conv(_KERNELS[op], 1, width, halvings, normed=False), Conv(1, width, width, halvings)]
    return convs if op.startswith("dil") else 2 * convs


def _conv_norm(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs)]


def _pairs_below(number: int) -> list[tuple[int, int]]:
    """List the pairs of sources that a node can have."""
    return list(combinations(range(number), 2))


def _sample_cell(rng: random.Random) -> DARTSCell:
    nodes = []
    for number in range(_NUM_INPUTS, _NUM_INPUTS + _NUM_NODES):
        sources = rng.choice(_pairs_below(number))
        nodes.append(tuple((rng.choice(OPS), source) for source in sources))
    return DARTSCell(tuple(nodes))


def _neighbours_of(cell: DARTSCell) -> Iterator[DARTSCell]:
    for idx, node in enumerate(cell.nodes):
        taken = {source for _, source in node}
        for side, (op, source) in enumerate(node):
            others = [(other, source) for other in OPS if other != op]
            others += [(op, other) for other in range(idx + _NUM_INPUTS) if other not in taken]
            for pair in others:
                changed = (*node[:side], pair, *node[side + 1 :])
                yield DARTSCell((*cell.nodes[:idx], changed, *cell.nodes[idx + 1 :]))


def _read_cell(reader: Reader) -> DARTSCell:
    nodes: list[Node] = []
    for number in range(_NUM_INPUTS, _NUM_INPUTS + _NUM_NODES):
        reader.token(["+|" if nodes else "|"])
        node: list[tuple[str, int]] = []
        for side in range(_OPS_PER_NODE):
            op = reader.token([f"{op}~" for op in OPS])[:-1]
            lowest = node[-1][1] + 1 if node else 0
            highest = number - _OPS_PER_NODE + side  # of the first, which leaves one for the second
            sources = range(lowest, highest + 1)
            node.append((op, int(reader.token([f"{source}|" for source in sources])[:-1])))
        nodes.append(tuple(node))
    return DARTSCell(tuple(nodes))
