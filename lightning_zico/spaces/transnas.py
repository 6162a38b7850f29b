"""TransNAS-Bench-101: a space of cells in a fixed skeleton, and a space of skeletons of fixed blocks.

Index conventions:
    N: samples in a batch
    C, H, W: channels, height, width
    K: classes
"""

import random
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from operator import index
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_zico.spaces._parts import EDGES, KERNELS, Cell, Conv, Zero, relu_conv_norm
from lightning_zico.spaces.base import Arch, Reader, SearchSpace, Trial, register_space

# The index of an operation is its digit in the strings.
OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3")

# What a stage does: 1 keeps the shape, 2 doubles the channels, 3 halves the image, 4 does both.
STAGES = (1, 2, 3, 4)
_DOUBLING = (2, 4)
_HALVING = (3, 4)

_MICRO_STAGES = (4, 1, 4, 1, 4)
_MICRO_START = f"64-{''.join(map(str, _MICRO_STAGES))}-"
_MACRO_START, _MACRO_END = "64-", "-basic"

_NUM_STAGES = (4, 5, 6)
_MOST_DOUBLINGS, _MOST_HALVINGS = 3, 4  # and one of each at least

_STEM_WIDTHS = (32, 64)  # each after a convolution that halves the image


class Place(NamedTuple):
    """The position of a block in the skeleton.

    Attributes:
        inputs: Number of input channels.
        outputs: Number of output channels.
        stride: By how much the block divides height and width.
        halvings: How often the image has been halved where the block ends.
    """

    inputs: int
    outputs: int
    stride: int
    halvings: int


@dataclass(frozen=True)
class TransNASMicroArch:
    """A cell of TransNAS-Bench-101.

    Args:
        ops: The operation on each of the six edges, each one of `OPS`: from the cell's input to node 1; from the input
            and node 1 to node 2; from the input, node 1 and node 2 to the output.

    Raises:
        ValueError: If these are not six known operations.

    Example:
        >>> ops = ("nor_conv_1x1", "skip_connect", "nor_conv_3x3", "nor_conv_3x3", "none", "nor_conv_1x1")
        >>> print(TransNASMicroArch(ops))
        64-41414-2_13_302
    """

    ops: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "ops", tuple(self.ops))  # a list cannot be hashed
        if len(self.ops) != len(EDGES) or not set(self.ops) <= set(OPS):
            raise ValueError(f"Invalid ops={self.ops!r}: expected {len(EDGES)} of {', '.join(OPS)}.")

    def __str__(self) -> str:
        a, b, c, d, e, f = (OPS.index(op) for op in self.ops)
        return f"{_MICRO_START}{a}_{b}{c}_{d}{e}{f}"


@dataclass(frozen=True)
class TransNASMacroArch:
    """A skeleton of TransNAS-Bench-101.

    Args:
        stages: What each stage does, each one of `STAGES`.

    Raises:
        ValueError: If these are not four to six stages of which one to three double the channels and one to four halve
            the image.
        TypeError: If one is no whole number.

    Example:
        >>> print(TransNASMacroArch((1, 4, 2, 3)))
        64-1423-basic
    """

    stages: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(map(index, self.stages)))  # a list cannot be hashed
        if not _is_inside(self.stages):
            raise ValueError(
                f"Invalid stages={self.stages!r}: expected {_NUM_STAGES[0]} to {_NUM_STAGES[-1]} of 1 (keeps the "
                "shape), 2 (doubles the channels), 3 (halves the image) and 4 (does both), which double the channels 1 "
                f"to {_MOST_DOUBLINGS} times and halve the image 1 to {_MOST_HALVINGS} times."
            )

    def __str__(self) -> str:
        return f"{_MACRO_START}{''.join(map(str, self.stages))}{_MACRO_END}"


class TransNAS(SearchSpace[Arch]):
    """Common parts of the two spaces of TransNAS-Bench-101, for images of any size.

    A stem of two convolutions, each of which halves the image; stages of two blocks, the first of which may double the
    channels or halve the image; then the mean over the image and a linear layer. Halving rounds up.

    Source:
        Duan et al., *TransNAS-Bench-101*, CVPR 2021, arXiv:2105.11871; yawen-d/TransNASBench, ``MacroNet``.
        As there, the weights of convolutions are drawn from a normal distribution scaled by the fan out (He), and those
        of the linear layer as torch draws them by default. Of the seven tasks' heads only the one for classes is here.
    """

    @abstractmethod
    def _stages(self, arch: Arch) -> tuple[int, ...]:
        """Return the type of each stage."""

    @abstractmethod
    def _block(self, arch: Arch, place: Place) -> nn.Module:
        """Build a block."""

    @abstractmethod
    def _block_convs(self, arch: Arch, place: Place) -> list[Conv]:
        """List the convolutions of a block."""

    def depth(self, arch: Arch) -> int:
        """Count the convolutions and the linear layer."""
        return len(self._convs(arch, in_channels=3)) + 1

    def params(self, arch: Arch, *, num_classes: int = 10, in_channels: int = 3) -> int:
        """Count the parameters of the built network, exactly."""
        width = self._places(arch)[-1].outputs
        return sum(conv.params() for conv in self._convs(arch, in_channels)) + (width + 1) * num_classes

    def macs(self, arch: Arch, resolution: int = 32, *, num_classes: int = 10, in_channels: int = 3) -> int:
        """Count the multiply-accumulate operations of the built network, exactly.

        Args:
            arch: Arch of this space.
            resolution: Height and width of an image, in pixels; the benchmark's images are 256 x 256.
            num_classes: As for `build`.
            in_channels: As for `build`.

        Returns:
            Operations of convolutions and the linear layer, per sample (1 MAC = 2 FLOPs).

        Raises:
            ValueError: If ``resolution`` is less than 1.
        """
        if resolution < 1:
            raise ValueError(f"Invalid resolution={resolution}: expected at least 1.")
        width = self._places(arch)[-1].outputs
        return sum(conv.macs(resolution) for conv in self._convs(arch, in_channels)) + width * num_classes

    def build(self, arch: Arch, num_classes: int = 10, in_channels: int = 3) -> nn.Sequential:
        """Build the network of an arch, on the CPU, with fresh weights.

        Args:
            arch: Arch of this space.
            num_classes: Number of logits.
            in_channels: Number of channels of the images.

        Returns:
            A network that maps images ``[N, in_channels, H, W]`` to logits ``[N, num_classes]``.
        """
        first, second = _STEM_WIDTHS
        places = self._places(arch)
        stem = nn.Sequential(
            nn.Conv2d(in_channels, first, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(first),
            relu_conv_norm(3, first, second, stride=2),
        )
        blocks = nn.Sequential(*(self._block(arch, place) for place in places))
        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(places[-1].outputs, num_classes))
        network = nn.Sequential(OrderedDict(stem=stem, blocks=blocks, head=head))
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        return network

    def blocks(self, arch: Arch) -> tuple[str, ...]:
        """List the names of the two blocks of each stage, in order of execution."""
        return tuple(f"blocks.{idx}" for idx in range(len(self._places(arch))))

    def _places(self, arch: Arch) -> list[Place]:
        places, width, halvings = [], _STEM_WIDTHS[-1], len(_STEM_WIDTHS)
        for stage in self._stages(arch):
            outputs = 2 * width if stage in _DOUBLING else width
            halvings += stage in _HALVING
            places.append(Place(width, outputs, 2 if stage in _HALVING else 1, halvings))
            places.append(Place(outputs, outputs, 1, halvings))
            width = outputs
        return places

    def _convs(self, arch: Arch, in_channels: int) -> list[Conv]:
        first, second = _STEM_WIDTHS
        convs = [Conv(3, in_channels, first, 1), Conv(3, first, second, 2)]
        for place in self._places(arch):
            convs += self._block_convs(arch, place)
        return convs


@register_space("transnas_micro")
class TransNASMicro(TransNAS[TransNASMicroArch]):
    """The 4,096 networks of TransNAS-Bench-101 that differ in their cell, for images of any size.

    Five stages of two equal cells, whose six edges are chosen; the first, third and fifth stage double the channels and
    halve the image, where their first cell begins. The rest is as in `TransNAS`.

    Example:
        >>> space = TransNASMicro()
        >>> arch = space.sample(random.Random(0))
        >>> print(arch)
        64-41414-3_30_233
        >>> space.params(arch), space.macs(arch, 256)
        (28304426, 5819077632)

    Source:
        As for `TransNAS`. Where an edge ``none`` changes the shape, the published zeros are a constant; here they are a
        product with zero, as everywhere else, so that what lies behind has a gradient, zero, rather than none at all.
    """

    @property
    def size(self) -> int:
        """Number of archs: one of four operations on each of six edges."""
        return len(OPS) ** len(EDGES)

    def parse(self, text: str) -> TransNASMicroArch:
        """Parse an arch from its string.

        Raises:
            ArchSyntaxError: If the text is not an arch of this space. The message shows the position and what was
                expected there.

        Example:
            >>> TransNASMicro().parse("64-41414-3_34_333")
            Traceback (most recent call last):
            ...
            lightning_zico.spaces.base.ArchSyntaxError: The arch cannot be read at position 12 (from 0):
            expected '0' or '1' or '2' or '3', found '4'.
                64-41414-3_34_333
                            ^
        """
        digits = [str(digit) for digit in range(len(OPS))]
        reader, ops, node = Reader(text), [], 1
        reader.token([_MICRO_START])
        for _, end in EDGES:
            if end != node:
                reader.token(["_"])
            ops.append(OPS[int(reader.token(digits))])
            node = end
        reader.end()
        return TransNASMicroArch(tuple(ops))

    def sample(self, rng: random.Random) -> TransNASMicroArch:
        """Draw an arch uniformly at random."""
        return TransNASMicroArch(tuple(rng.choice(OPS) for _ in EDGES))

    def suggest(self, trial: Trial) -> TransNASMicroArch:
        """Let an Optuna trial choose the operation of each edge, such as ``edge_0_1``."""
        return TransNASMicroArch(tuple(trial.suggest_categorical(f"edge_{start}_{end}", OPS) for start, end in EDGES))

    def neighbours(self, arch: TransNASMicroArch) -> Iterator[TransNASMicroArch]:
        """Yield the 18 archs that differ from this one on one edge."""
        for edge, kept in enumerate(arch.ops):
            for op in OPS:
                if op != kept:
                    yield TransNASMicroArch((*arch.ops[:edge], op, *arch.ops[edge + 1 :]))

    def _stages(self, arch: TransNASMicroArch) -> tuple[int, ...]:
        return _MICRO_STAGES

    def _block(self, arch: TransNASMicroArch, place: Place) -> nn.Module:
        ops = zip(arch.ops, EDGES, strict=True)
        return Cell(_op(op, place.outputs if start else place.inputs, place.outputs) for op, (start, _) in ops)

    def _block_convs(self, arch: TransNASMicroArch, place: Place) -> list[Conv]:
        convs = []
        for op, (start, _) in zip(arch.ops, EDGES, strict=True):
            inputs = place.outputs if start else place.inputs
            if op in KERNELS:
                convs.append(Conv(KERNELS[op], inputs, place.outputs, place.halvings))
            elif op == "skip_connect" and inputs != place.outputs:
                half = place.outputs // 2  # see `FactorizedReduction`
                convs += [Conv(1, inputs, outputs, place.halvings) for outputs in (half, place.outputs - half)]
        return convs


@register_space("transnas_macro")
class TransNASMacro(TransNAS[TransNASMacroArch]):
    """The 3,256 networks of TransNAS-Bench-101 that differ in their skeleton, for images of any size.

    Four to six stages of two residual blocks; it is chosen which stages double the channels (one to three do) and which
    halve the image (one to four do). The rest is as in `TransNAS`.

    Example:
        >>> space = TransNASMacro()
        >>> arch = space.sample(random.Random(0))
        >>> print(arch)
        64-141321-basic
        >>> space.params(arch), space.macs(arch, 256)
        (6354986, 3130526208)

    Source:
        As for `TransNAS`.
    """

    @property
    def size(self) -> int:
        """Number of archs: those of four to six stages within the limits of the space."""
        return len(_all_stages())

    def parse(self, text: str) -> TransNASMacroArch:
        """Parse an arch from its string.

        Raises:
            ArchSyntaxError: If the text is not an arch of this space. The message shows the position and what was
                expected there.

        Example:
            >>> TransNASMacro().parse("64-222-basic")
            Traceback (most recent call last):
            ...
            lightning_zico.spaces.base.ArchSyntaxError: The arch cannot be read at position 6 (from 0):
            expected '1' or '3', found '-'.
                64-222-basic
                      ^
        """
        reader = Reader(text)
        reader.token([_MACRO_START])
        stages: tuple[int, ...] = ()
        while True:
            tokens = [str(stage) for stage in STAGES if (*stages, stage) in _beginnings()]
            if _is_inside(stages):
                tokens.append(_MACRO_END)
            token = reader.token(tokens)
            if token == _MACRO_END:
                break
            stages = (*stages, int(token))
        reader.end()
        return TransNASMacroArch(stages)

    def sample(self, rng: random.Random) -> TransNASMacroArch:
        """Draw an arch uniformly at random."""
        return TransNASMacroArch(rng.choice(_all_stages()))

    def suggest(self, trial: Trial) -> TransNASMacroArch:
        """Let an Optuna trial choose ``num_stages`` and what each does, such as ``stage_0_doubles`` (0 or 1).

        The other choice of a stage is ``stage_0_halves``. Whatever is chosen is an arch: where the limits of the space
        leave one possibility, only that one is offered.
        """
        num_stages = trial.suggest_int("num_stages", _NUM_STAGES[0], _NUM_STAGES[-1])
        stages: list[int] = []
        doublings = halvings = 0
        for idx in range(num_stages):
            is_last = idx == num_stages - 1
            # Whole numbers, because in Optuna their limits may differ between trials, but the choices of a category may
            # not.
            low, high = int(is_last and not doublings), int(doublings < _MOST_DOUBLINGS)
            doubles = trial.suggest_int(f"stage_{idx}_doubles", low, high)
            low, high = int(is_last and not halvings), int(halvings < _MOST_HALVINGS)
            halves = trial.suggest_int(f"stage_{idx}_halves", low, high)
            stages.append(1 + doubles + 2 * halves)
            doublings += doubles
            halvings += halves
        return TransNASMacroArch(tuple(stages))

    def neighbours(self, arch: TransNASMacroArch) -> Iterator[TransNASMacroArch]:
        """Yield the archs in which one stage does something else, or that have one stage more or less."""
        stages, num_stages = arch.stages, len(arch.stages)
        changed = [(*stages[:idx], stage, *stages[idx + 1 :]) for idx in range(num_stages) for stage in STAGES]
        longer = [(*stages[:idx], stage, *stages[idx:]) for idx in range(num_stages + 1) for stage in STAGES]
        shorter = [(*stages[:idx], *stages[idx + 1 :]) for idx in range(num_stages)]
        for other in dict.fromkeys([*changed, *longer, *shorter]):  # equal stages side by side give the same arch twice
            if other != stages and _is_inside(other):
                yield TransNASMacroArch(other)

    def _stages(self, arch: TransNASMacroArch) -> tuple[int, ...]:
        return arch.stages

    def _block(self, arch: TransNASMacroArch, place: Place) -> nn.Module:
        return ResidualBlock(place)

    def _block_convs(self, arch: TransNASMacroArch, place: Place) -> list[Conv]:
        inputs, outputs, _, halvings = place
        convs = [Conv(3, inputs, outputs, halvings), Conv(3, outputs, outputs, halvings)]
        if _changes_shape(place):
            convs.append(Conv(1, inputs, outputs, halvings))
        return convs


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut, which is a projection where the shape changes.

    Args:
        place: Position in the skeleton.
    """

    def __init__(self, place: Place) -> None:
        super().__init__()
        inputs, outputs, stride, _ = place
        self.body = nn.Sequential(relu_conv_norm(3, inputs, outputs, stride), relu_conv_norm(3, outputs, outputs))
        self.shortcut: nn.Module = nn.Identity()
        if _changes_shape(place):
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, inputs, H, W]`` to ``[N, outputs, H / stride, W / stride]``."""
        return self.shortcut(x) + self.body(x)


class FactorizedReduction(nn.Module):
    """The operation ``skip_connect`` where the channels double and the image is halved.

    Args:
        inputs: Number of input channels.
        outputs: Number of output channels, half from the pixels of even rows and columns, half from those of odd ones.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.even = nn.Conv2d(inputs, outputs // 2, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(inputs, outputs - outputs // 2, 1, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, inputs, H, W]`` to ``[N, outputs, H / 2, W / 2]``."""
        x = self.relu(x)
        shifted = functional.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]  # one pixel up and left
        return self.norm(torch.cat([self.even(x), self.odd(shifted)], dim=1))


class ReducingZero(nn.Module):
    """The operation ``none`` where the channels double and the image is halved.

    Args:
        outputs: Number of output channels.
    """

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, C, H, W]`` to zeros ``[N, outputs, H / 2, W / 2]``."""
        return x[:, :1, ::2, ::2].mul(0.0).expand(-1, self.outputs, -1, -1)


def _op(op: str, inputs: int, outputs: int) -> nn.Module:
    is_reducing = inputs != outputs  # in the micro space, the image is halved whenever the channels double
    if op in KERNELS:
        return relu_conv_norm(KERNELS[op], inputs, outputs, stride=2 if is_reducing else 1)
    if op == "skip_connect":
        return FactorizedReduction(inputs, outputs) if is_reducing else nn.Identity()
    return ReducingZero(outputs) if is_reducing else Zero()


def _changes_shape(place: Place) -> bool:
    return place.stride > 1 or place.inputs != place.outputs


def _is_inside(stages: tuple[int, ...]) -> bool:
    doublings = sum(stage in _DOUBLING for stage in stages)
    halvings = sum(stage in _HALVING for stage in stages)
    is_limited = 1 <= doublings <= _MOST_DOUBLINGS and 1 <= halvings <= _MOST_HALVINGS
    return is_limited and len(stages) in _NUM_STAGES and set(stages) <= set(STAGES)


@cache
def _all_stages() -> tuple[tuple[int, ...], ...]:
    """List the archs of the macro space."""
    return tuple(stages for n in _NUM_STAGES for stages in product(STAGES, repeat=n) if _is_inside(stages))


@cache
def _beginnings() -> frozenset[tuple[int, ...]]:
    """Collect the prefixes of stages with which archs of the macro space begin."""
    return frozenset(stages[:n] for stages in _all_stages() for n in range(len(stages) + 1))
