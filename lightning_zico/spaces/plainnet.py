"""PlainNet, the ImageNet space of ZenNAS and ZiCo: a chain of inverted residual blocks of free widths and repeats.

Index conventions:
    N: samples in a batch
    C, H, W: channels, height, width
    K: classes
"""

import random
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import comb
from operator import index
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from lightning_zico.spaces.base import ArchSyntaxError, Reader, SearchSpace, Trial, register_space

KERNELS = (3, 5, 7)
EXPANSIONS = (1, 2, 4, 6)

# The paper allows all multiples of 8. The upper end is ours: less than the fixed width of the last convolution.
WIDTHS = range(8, 2048, 8)
_LAST_WIDTH = 2048

# The published search splits a block with more repeats into two with three each, whether it has six or seven.
REPEATS = range(1, 6)
_REPEATS_OF_HALF = 3

# The image is halved by the stem and by four of the blocks. The end is ours: the largest network that was published may
# have 16 layers, which are the stem, the last convolution and at most 14 blocks.
_NUM_STRIDED = 4
_NUM_HALVINGS = 1 + _NUM_STRIDED
NUM_BLOCKS = range(_NUM_STRIDED, 15)

_CHOICES: dict[str, Sequence[int]] = {
    "kernel": KERNELS,
    "expansion": EXPANSIONS,
    "outputs": WIDTHS,
    "stride": (1, 2),
    "bottleneck": WIDTHS,
    "repeats": REPEATS,
}


@dataclass(frozen=True)
class PlainNetBlock:
    """A block of PlainNet: one or more pairs of inverted residual blocks.

    Args:
        kernel: Size of the depthwise convolutions, one of `KERNELS`.
        expansion: How many times wider they are than what comes after them, one of `EXPANSIONS`.
        outputs: Number of output channels of a pair, one of `WIDTHS`.
        stride: Stride of the first depthwise convolution, 1 or 2.
        bottleneck: Channels between the two of a pair, one of `WIDTHS`.
        repeats: Pairs, one of `REPEATS`.

    Raises:
        ValueError: If one of these is another number.
        TypeError: If one is no whole number.

    Example:
        >>> PlainNetBlock(kernel=3, expansion=6, outputs=32, stride=2, bottleneck=8, repeats=1).kind
        'SuperResIDWE6K3'
    """

    kernel: int
    expansion: int
    outputs: int
    stride: int
    bottleneck: int
    repeats: int

    def __post_init__(self) -> None:
        for field, choices in _CHOICES.items():
            object.__setattr__(self, field, index(getattr(self, field)))  # 3.0 and True would be printed as such
            if getattr(self, field) not in choices:
                raise ValueError(f"Invalid {field}={getattr(self, field)!r}: expected {_told(choices)}.")

    @property
    def kind(self) -> str:
        """Name of such a block in the string of an arch."""
        return f"SuperResIDWE{self.expansion}K{self.kernel}"


@dataclass(frozen=True, repr=False)
class PlainNetArch:
    """A network of PlainNet.

    Args:
        stem: Channels of the first convolution, one of `WIDTHS`.
        blocks: 4 to 14, of which the first and three others have stride 2.

    Raises:
        ValueError: If there is no such network.
        TypeError: If ``stem`` is no whole number.

    Example:
        >>> block = PlainNetBlock(kernel=3, expansion=6, outputs=32, stride=2, bottleneck=8, repeats=1)
        >>> print(PlainNetArch(stem=16, blocks=(block,) * 4))
        SuperConvK3BNRELU(3,16,2,1)SuperResIDWE6K3(16,32,2,8,1)SuperResIDWE6K3(32,32,2,8,1)...
    """

    stem: int
    blocks: tuple[PlainNetBlock, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", tuple(self.blocks))  # a list cannot be hashed
        object.__setattr__(self, "stem", index(self.stem))
        if self.stem not in WIDTHS:
            raise ValueError(f"Invalid stem={self.stem!r}: expected {_told(WIDTHS)}.")
        strides = [block.stride for block in self.blocks]
        if len(strides) not in NUM_BLOCKS or strides[0] != 2 or _num_missing(self.blocks) != 0:
            raise ValueError(
                f"`blocks` have the strides {strides}: expected {NUM_BLOCKS[0]} to {NUM_BLOCKS[-1]} blocks, of which "
                f"the first and {_NUM_STRIDED - 1} others have stride 2."
            )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {str(self)!r}>"

    def __str__(self) -> str:
        parts = [f"SuperConvK3BNRELU(3,{self.stem},2,1)"]
        inputs = self.stem
        for block in self.blocks:
            parts.append(f"{block.kind}({inputs},{block.outputs},{block.stride},{block.bottleneck},{block.repeats})")
            inputs = block.outputs
        return "".join([*parts, f"SuperConvK1BNRELU({inputs},{_LAST_WIDTH},1,1)"])


@register_space("plainnet")
class PlainNet(SearchSpace[PlainNetArch]):
    """The networks of ZenNAS and ZiCo for ImageNet, for images of at least 32 x 32 pixels.

    A stem, which is a convolution 3x3 of stride 2; blocks; a convolution 1x1 to 2048 channels; the mean over the image
    and a linear layer. A block is repeated, and each repeat is two inverted residual blocks: from the width before to
    the bottleneck, and from there to the width after. The image is halved by the stem and by four of the blocks.

    The published space has no ends. Ours has: widths are multiples of 8 from 8 to 2040, a block has one to five
    repeats, and there are 4 to 14 blocks. All networks of ZiCo, and those of ZenNAS for images of 224, are inside. To
    limit layers, MACs or parameters is left to the search, see `num_layers`.

    Attributes:
        squeezes: Whether squeeze-and-excitation follows each depthwise convolution.

    Example:
        >>> space = PlainNet()
        >>> space.num_layers(START), space.params(START, num_classes=1000), space.macs(START, num_classes=1000)
        (6, 2824264, 159334080)

    Source:
        Lin et al., *Zen-NAS*, ICCV 2021, arXiv:2102.01063; Li et al., *ZiCo*, ICLR 2023, arXiv:2301.11300;
        idstcv/ZenNAS, ``search_space_IDW_fixfc.py``; SLDGroup/ZiCo, ``evolution_search.py``. Weights are drawn as torch
        draws them by default, as there in the search. It leaves out the shortcuts while it scores a network; ours has
        them always.
    """

    squeezes: ClassVar[bool] = False

    @property
    def size(self) -> int:
        """Number of archs: the widths of the stem times the blocks, times the places of the strides among them."""
        choices = len(KERNELS) * len(EXPANSIONS) * len(WIDTHS) ** 2 * len(REPEATS)
        return len(WIDTHS) * sum(comb(num - 1, _NUM_STRIDED - 1) * choices**num for num in NUM_BLOCKS)

    def parse(self, text: str) -> PlainNetArch:
        """Parse an arch from its string.

        Raises:
            ArchSyntaxError: If the text is not an arch of this space. The message shows the position and what was
                expected there.

        Example:
            >>> PlainNet().parse("SuperConvK3BNRELU(3,8,2,1)SuperResIDWE6K3(16,32,2,8,1)")
            Traceback (most recent call last):
            ...
            lightning_zico.spaces.base.ArchSyntaxError: The arch cannot be read at position 42 (from 0):
            expected '8,', found '1'.
                SuperConvK3BNRELU(3,8,2,1)SuperResIDWE6K3(16,32,2,8,1)
                                                          ^
        """
        reader = Reader(text)
        reader.token(["SuperConvK3BNRELU(3,"])
        stem = inputs = _number(reader, WIDTHS, ",")
        reader.token(["2,1)"])
        blocks: list[PlainNetBlock] = []
        while True:
            last = ["SuperConvK1BNRELU("] if _num_missing(blocks) == 0 else []
            kind = reader.token([*(_KINDS if len(blocks) < NUM_BLOCKS[-1] else ()), *last])
            reader.token([f"{inputs},"])
            if kind not in _KINDS:
                break
            kernel, expansion = _KINDS[kind]
            outputs = inputs = _number(reader, WIDTHS, ",")
            stride = _number(reader, _strides(blocks, NUM_BLOCKS[-1]), ",")
            bottleneck = _number(reader, WIDTHS, ",")
            repeats = _number(reader, REPEATS, ")")
            blocks.append(PlainNetBlock(kernel, expansion, outputs, stride, bottleneck, repeats))
        reader.token([f"{_LAST_WIDTH},1,1)"])
        reader.end()
        return PlainNetArch(stem, tuple(blocks))

    def sample(self, rng: random.Random) -> PlainNetArch:
        """Draw an arch near `START`: it is mutated one to ten times, each number with the same probability.

        If each arch had the same probability, nearly all would have hundreds of millions of parameters.
        """
        arch = START
        for _ in range(rng.randint(1, 10)):
            arch = self.mutate(arch, rng)
        return arch

    def mutate(self, arch: PlainNetArch, rng: random.Random) -> PlainNetArch:
        """Change the stem or one of the blocks as the published search does.

        Which of them has the same probability for each. A width is multiplied or divided by 1, 1.25, 1.5, 2 or 2.5 and
        rounded to a multiple of 8. The stem has nothing but a width. In a block the kernel and the expansion are drawn
        anew, both widths change, and the repeats by at most two: each has the same probability for each of the values
        that can come of this. Six or seven repeats become two blocks of three, the second of stride 1. What would lead
        out of the space is left out. If nothing has changed, all is drawn again.

        The published search mutates `START` once, and a member of its population twice.
        """
        mutant = arch
        while mutant == arch:
            mutant = _mutated(arch, rng)
        return mutant

    def neighbours(self, arch: PlainNetArch) -> Iterator[PlainNetArch]:
        """Yield the archs that differ from this one in a kernel, an expansion, or in a number by one step.

        A step is 8 channels or one repeat. The number of blocks and their strides stay.
        """
        for stem in _next_to(arch.stem, WIDTHS):
            yield replace(arch, stem=stem)
        for idx, block in enumerate(arch.blocks):
            for changed in _neighbours_of_block(block):
                yield replace(arch, blocks=(*arch.blocks[:idx], changed, *arch.blocks[idx + 1 :]))

    def suggest(self, trial: Trial) -> PlainNetArch:
        """Let an Optuna trial choose the stem, the number of blocks, and each of them, such as ``block_0_kernel``.

        A width is chosen in two steps: the power of two it begins from, such as ``stem_from``, and the width between
        that and the next one, such as ``stem_from_16``. Otherwise most widths that are tried first would be near 1000.
        """
        stem = _suggest_width(trial, "stem")
        num_blocks = trial.suggest_int("num_blocks", NUM_BLOCKS[0], NUM_BLOCKS[-1])
        blocks: list[PlainNetBlock] = []
        for name in [f"block_{idx}" for idx in range(num_blocks)]:
            strides = _strides(blocks, num_blocks)
            block = PlainNetBlock(
                kernel=trial.suggest_categorical(f"{name}_kernel", KERNELS),
                expansion=trial.suggest_categorical(f"{name}_expansion", EXPANSIONS),
                outputs=_suggest_width(trial, f"{name}_outputs"),
                # Only ask if both are possible: in Optuna, the choices of a name never change.
                stride=strides[0] if len(strides) == 1 else trial.suggest_categorical(f"{name}_stride", strides),
                bottleneck=_suggest_width(trial, f"{name}_bottleneck"),
                repeats=trial.suggest_int(f"{name}_repeats", REPEATS[0], REPEATS[-1]),
            )
            blocks.append(block)
        return PlainNetArch(stem, tuple(blocks))

    def num_layers(self, arch: PlainNetArch) -> int:
        """Count the layers as the published search does, which allows 14, or 16 if there may be 1000 million MACs.

        Returns:
            The stem, each repeat of each block and the last convolution.
        """
        return 2 + sum(block.repeats for block in arch.blocks)

    def depth(self, arch: PlainNetArch) -> int:
        """Count the layers that the published search limits; see `num_layers`."""
        return self.num_layers(arch)

    def params(self, arch: PlainNetArch, *, num_classes: int = 10, in_channels: int = 3) -> int:
        """Count the parameters of the built network, exactly."""
        total = 9 * in_channels * arch.stem + 2 * arch.stem  # batch norm: scale and shift
        for shape in _shapes(arch):
            total += shape.hidden * (shape.inputs + shape.kernel**2 + shape.outputs)
            total += 4 * shape.hidden + 2 * shape.outputs
            if self.squeezes:
                total += 2 * shape.hidden * shape.squeezed + 2 * (shape.squeezed + shape.hidden)
            if shape.projects:
                total += shape.inputs * shape.outputs + 3 * shape.outputs  # its convolution has a bias
        total += arch.blocks[-1].outputs * _LAST_WIDTH + 2 * _LAST_WIDTH
        return total + (_LAST_WIDTH + 1) * num_classes

    def macs(self, arch: PlainNetArch, resolution: int = 224, *, num_classes: int = 10, in_channels: int = 3) -> int:
        """Count the multiply-accumulate operations of the built network, exactly.

        Args:
            arch: Arch of this space.
            resolution: Height and width of an image, in pixels.
            num_classes: As for `build`.
            in_channels: As for `build`.

        Returns:
            Operations of convolutions and the linear layer, per sample (1 MAC = 2 FLOPs).

        Raises:
            ValueError: If ``resolution`` is less than 32: the network halves the image five times.
        """
        if resolution < 2**_NUM_HALVINGS:
            raise ValueError(
                f"Invalid resolution={resolution}: expected at least {2**_NUM_HALVINGS}, because the network halves "
                f"the image {_NUM_HALVINGS} times."
            )
        side = _halved(resolution)
        total = side**2 * 9 * in_channels * arch.stem
        for shape in _shapes(arch):
            total += side**2 * shape.inputs * shape.hidden
            side = _halved(side) if shape.stride == 2 else side
            total += side**2 * shape.hidden * (shape.kernel**2 + shape.outputs)
            if self.squeezes:
                total += 2 * shape.hidden * shape.squeezed
            if shape.projects:
                total += side**2 * shape.inputs * shape.outputs
        return total + side**2 * arch.blocks[-1].outputs * _LAST_WIDTH + _LAST_WIDTH * num_classes

    def build(self, arch: PlainNetArch, num_classes: int = 10, in_channels: int = 3) -> nn.Sequential:
        """Build the network of an arch, on the CPU, with fresh weights.

        Args:
            arch: Arch of this space.
            num_classes: Number of logits.
            in_channels: Number of channels of the images, in place of the 3 in the arch's string.

        Returns:
            A network that maps images ``[N, in_channels, H, W]`` to logits ``[N, num_classes]``.
        """
        residuals = [InvertedResidual(shape, self.squeezes) for shape in _shapes(arch)]
        return nn.Sequential(
            OrderedDict(
                stem=_conv_norm_relu(3, in_channels, arch.stem, stride=2),
                blocks=nn.Sequential(*residuals),
                last=_conv_norm_relu(1, arch.blocks[-1].outputs, _LAST_WIDTH),
                head=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(_LAST_WIDTH, num_classes)),
            )
        )

    def blocks(self, arch: PlainNetArch) -> tuple[str, ...]:
        """List the names of the stem, all inverted residual blocks and the last convolution, in order of execution.

        Source:
            Lee & Ham, *AZ-NAS*, CVPR 2024, arXiv:2403.19232, look at these in this space.
        """
        return ("stem", *(f"blocks.{idx}" for idx, _ in enumerate(_shapes(arch))), "last")


@register_space("plainnet_se")
class PlainNetSE(PlainNet):
    """The networks of `PlainNet` with squeeze-and-excitation, as the published ones were trained after the search.

    In training mode they need two samples or more, since batch norm stands behind the mean over the image.

    Example:
        >>> PlainNetSE().params(START, num_classes=1000)
        3579232
    """

    squeezes = True


class ResidualShape(NamedTuple):
    """The shape of an inverted residual block.

    Args:
        inputs: Number of input channels.
        hidden: Channels of the depthwise convolution.
        outputs: Number of output channels.
        kernel: Size of the depthwise convolution.
        stride: Stride of the depthwise convolution.
        projects: Whether there is a convolution on the shortcut.
    """

    inputs: int
    hidden: int
    outputs: int
    kernel: int
    stride: int
    projects: bool

    @property
    def squeezed(self) -> int:
        """Channels inside squeeze-and-excitation."""
        return self.hidden // 4


class InvertedResidual(nn.Module):
    """An inverted residual block.

    Args:
        shape: What it is made of.
        squeezes: Whether squeeze-and-excitation follows the depthwise convolution.
    """

    def __init__(self, shape: ResidualShape, squeezes: bool) -> None:
        super().__init__()
        inputs, hidden, outputs, kernel, stride, projects = shape
        layers = [
            *_conv_norm_relu(1, inputs, hidden),
            nn.Conv2d(hidden, hidden, kernel, stride, padding=kernel // 2, groups=hidden, bias=False),
            _norm(hidden),
            nn.ReLU(),
        ]
        if squeezes:
            layers.append(SqueezeExcitation(hidden, shape.squeezed))
        self.body = nn.Sequential(*layers, nn.Conv2d(hidden, outputs, 1, bias=False), _norm(outputs))
        self.shortcut = nn.Sequential()
        if projects:
            self.shortcut.extend([nn.Conv2d(inputs, outputs, 1, stride), _norm(outputs)])
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, inputs, H, W]`` to ``[N, outputs, H, W]``, with H and W divided by the stride and rounded up."""
        return self.activation(self.body(x) + self.shortcut(x))


class SqueezeExcitation(nn.Module):
    """Scale each channel by a factor computed from the means of all channels.

    Args:
        width: Channels.
        squeezed: Channels in between.
    """

    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            *_conv_norm_relu(1, width, squeezed),
            nn.Conv2d(squeezed, width, 1, bias=False),
            _norm(width),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, C, H, W]`` to the same shape."""
        return self.gate(x) * x


def _number(reader: Reader, numbers: Sequence[int], end: str) -> int:
    try:
        token = reader.token([f"{number}{end}" for number in numbers])
    except ArchSyntaxError as error:  # there may be hundreds of tokens
        raise ArchSyntaxError(error.text, error.position, f"{_told(numbers)}, then {end!r}") from None
    return int(token.removesuffix(end))


def _told(numbers: Sequence[int]) -> str:
    if not isinstance(numbers, range):
        return " or ".join(map(str, numbers))
    kind = "number" if numbers.step == 1 else f"multiple of {numbers.step}"
    return f"a {kind} from {numbers[0]} to {numbers[-1]}"


# From the start of a block in the string of an arch to its kernel and expansion.
_KINDS = {f"SuperResIDWE{pair[1]}K{pair[0]}(": pair for pair in product(KERNELS, EXPANSIONS)}


def _num_missing(blocks: Sequence[PlainNetBlock]) -> int:
    """Count the strides of 2 that are still missing."""
    return _NUM_STRIDED - sum(block.stride == 2 for block in blocks)


def _strides(before: Sequence[PlainNetBlock], num_blocks: int) -> list[int]:
    """List the strides that the next block may have, given the number of blocks."""
    num_missing = _num_missing(before)
    may_keep = bool(before) and num_missing < num_blocks - len(before)
    return [stride for stride, possible in ((1, may_keep), (2, num_missing > 0)) if possible]


def _mutated(arch: PlainNetArch, rng: random.Random) -> PlainNetArch:
    idx = rng.randrange(-1, len(arch.blocks))
    if idx < 0:
        return replace(arch, stem=rng.choice(_mutated_widths(arch.stem)))
    block = arch.blocks[idx]
    may_split = len(arch.blocks) < NUM_BLOCKS[-1]
    numbers = range(max(1, block.repeats - 2), block.repeats + 3)
    repeats = rng.choice([number for number in numbers if may_split or number in REPEATS])
    splits = repeats not in REPEATS
    mutant = PlainNetBlock(
        kernel=rng.choice(KERNELS),
        expansion=rng.choice(EXPANSIONS),
        outputs=rng.choice(_mutated_widths(block.outputs)),
        stride=block.stride,
        bottleneck=rng.choice(_mutated_widths(block.bottleneck)),
        repeats=_REPEATS_OF_HALF if splits else repeats,
    )
    parts = (mutant, replace(mutant, stride=1)) if splits else (mutant,)
    return replace(arch, blocks=(*arch.blocks[:idx], *parts, *arch.blocks[idx + 1 :]))


def _mutated_widths(width: int) -> list[int]:
    factors = (1, 1.25, 1.5, 2, 2.5)
    changed = [*(width * factor for factor in factors), *(width / factor for factor in factors)]
    rounded = {max(WIDTHS[0], 8 * round(number / 8)) for number in changed}
    return sorted(rounded.intersection(WIDTHS))


def _neighbours_of_block(block: PlainNetBlock) -> Iterator[PlainNetBlock]:
    for kernel in KERNELS:
        if kernel != block.kernel:
            yield replace(block, kernel=kernel)
    for expansion in EXPANSIONS:
        if expansion != block.expansion:
            yield replace(block, expansion=expansion)
    for outputs in _next_to(block.outputs, WIDTHS):
        yield replace(block, outputs=outputs)
    for bottleneck in _next_to(block.bottleneck, WIDTHS):
        yield replace(block, bottleneck=bottleneck)
    for repeats in _next_to(block.repeats, REPEATS):
        yield replace(block, repeats=repeats)


def _next_to(number: int, numbers: range) -> list[int]:
    return [other for other in (number - numbers.step, number + numbers.step) if other in numbers]


def _suggest_width(trial: Trial, name: str) -> int:
    powers = [width for width in WIDTHS if width.bit_count() == 1]
    start = trial.suggest_categorical(f"{name}_from", powers)
    return trial.suggest_int(f"{name}_from_{start}", start, 2 * start - WIDTHS.step, step=WIDTHS.step)


def _shapes(arch: PlainNetArch) -> Iterator[ResidualShape]:
    """Yield the inverted residual blocks of a network, in order of execution."""
    inputs = arch.stem
    for block in arch.blocks:
        first, second = block.expansion * block.bottleneck, block.expansion * block.outputs
        for repeat in range(block.repeats):
            stride = block.stride if repeat == 0 else 1
            projects = repeat == 0 or inputs != block.bottleneck
            yield ResidualShape(inputs, first, block.bottleneck, block.kernel, stride, projects)
            projects = block.bottleneck != block.outputs
            yield ResidualShape(block.bottleneck, second, block.outputs, block.kernel, 1, projects)
            inputs = block.outputs


def _halved(side: int) -> int:
    return (side + 1) // 2  # output size of an odd kernel with stride 2, padded by half its size


def _conv_norm_relu(kernel: int, inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, _norm(outputs), nn.ReLU())


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=1e-3)  # as published; torch's default is 1e-5


# Start of the published search.
START = PlainNet().parse(
    "SuperConvK3BNRELU(3,8,2,1)SuperResIDWE6K3(8,32,2,8,1)SuperResIDWE6K3(32,48,2,32,1)SuperResIDWE6K3(48,96,2,48,1)"
    "SuperResIDWE6K3(96,128,2,96,1)SuperConvK1BNRELU(128,2048,1,1)"
)
