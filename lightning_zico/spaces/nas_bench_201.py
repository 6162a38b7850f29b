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

from torch import nn

from lightning_zico.spaces._parts import (
    EDGES,
    KERNELS,
    NUM_NODES,
    Cell,
    Conv,
    Reduction,
    Zero,
    nats_head,
    nats_macs,
    nats_params,
    nats_stem,
    relu_conv_norm,
)
from lightning_zico.spaces.base import Reader, SearchSpace, Trial, register_space

OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")

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
            raise ValueError(f"Invalid ops={self.ops!r}: expected {len(EDGES)} of {', '.join(OPS)}.")

    def __str__(self) -> str:
        nodes = (
            "".join(f"|{op}~{start}" for op, (start, end) in zip(self.ops, EDGES, strict=True) if end == node)
            for node in range(1, NUM_NODES)
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
        """Parse an arch from its string.

        Raises:
            ArchSyntaxError: If the text is not an arch of this space. The message shows the position and what was
                expected there.

        Example:
            >>> NASBench201().parse("|none~0|+|nor_conv_5x5~0|none~1|+|none~0|none~1|none~2|")
            Traceback (most recent call last):
            ...
            lightning_zico.spaces.base.ArchSyntaxError: The arch cannot be read at position 19 (from 0):
            expected 'nor_conv_1x1' or 'nor_conv_3x3', found '5'.
                |none~0|+|nor_conv_5x5~0|none~1|+|none~0|none~1|none~2|
                                   ^
        """
        reader, ops, node = Reader(text), [], 1
        for start, end in EDGES:
            reader.token(["|" if end == node else "|+|"])
            ops.append(reader.token(OPS))
            reader.token([f"~{start}"])
            node = end
        reader.token(["|"])
        reader.end()
        return NASBench201Arch(tuple(ops))

    def sample(self, rng: random.Random) -> NASBench201Arch:
        """Draw an arch uniformly at random."""
        return NASBench201Arch(tuple(rng.choice(OPS) for _ in EDGES))

    def suggest(self, trial: Trial) -> NASBench201Arch:
        """Let an Optuna trial choose the operation of each edge, such as ``edge_0_1``."""
        return NASBench201Arch(tuple(trial.suggest_categorical(f"edge_{start}_{end}", OPS) for start, end in EDGES))

    def neighbours(self, arch: NASBench201Arch) -> Iterator[NASBench201Arch]:
        """Yield the 24 archs that differ from this one on one edge."""
        for edge, kept in enumerate(arch.ops):
            for op in OPS:
                if op != kept:
                    yield NASBench201Arch((*arch.ops[:edge], op, *arch.ops[edge + 1 :]))

    def depth(self, arch: NASBench201Arch) -> int:
        """Count the convolutions and the linear layer."""
        return len(_convs(arch, in_channels=3)) + 1

    def params(self, arch: NASBench201Arch, *, num_classes: int = 10, in_channels: int = 3) -> int:
        r"""Count the parameters of the built network, exactly.

        .. math::
            73306 + 28000\, n_1 + 243040\, n_3

        for ten classes and images of three channels, with :math:`n_1, n_3` the convolutions 1x1 and 3x3 in the cell.
        """
        return nats_params(_convs(arch, in_channels), _WIDTHS[-1], num_classes)

    def macs(self, arch: NASBench201Arch, resolution: int = 32, *, num_classes: int = 10, in_channels: int = 3) -> int:
        r"""Count the multiply-accumulate operations of the built network, exactly.

        .. math::
            7783040 + 3932160\, n_1 + 35389440\, n_3

        at 32 x 32, for ten classes and images of three channels, with :math:`n_1, n_3` as for `params`.

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
        return nats_macs(_convs(arch, in_channels), _WIDTHS[-1], num_classes, resolution)

    def build(self, arch: NASBench201Arch, num_classes: int = 10, in_channels: int = 3) -> nn.Sequential:
        """Build the network of an arch, on the CPU, with fresh weights.

        Args:
            arch: Arch of this space.
            num_classes: Number of logits.
            in_channels: Number of channels of the images.

        Returns:
            A network that maps images ``[N, in_channels, H, W]`` to logits ``[N, num_classes]``.
        """
        stem = nats_stem(in_channels, _WIDTHS[0])
        blocks: list[nn.Module] = []
        for stage, width in enumerate(_WIDTHS):
            if stage:
                blocks.append(Reduction(_WIDTHS[stage - 1], width))
            blocks += [Cell(_op(op, width) for op in arch.ops) for _ in range(_CELLS_PER_STAGE)]
        head = nats_head(_WIDTHS[-1], num_classes)
        return nn.Sequential(OrderedDict(stem=stem, blocks=nn.Sequential(*blocks), head=head))

    def blocks(self, arch: NASBench201Arch) -> tuple[str, ...]:
        """List the names of the fifteen cells and the two residual blocks between the stages, in order of execution."""
        num_blocks = _CELLS_PER_STAGE * len(_WIDTHS) + len(_WIDTHS) - 1
        return tuple(f"blocks.{idx}" for idx in range(num_blocks))


def _op(op: str, width: int) -> nn.Module:
    match op:
        case "none":
            return Zero()
        case "skip_connect":
            return nn.Identity()
        case "nor_conv_1x1" | "nor_conv_3x3":
            return relu_conv_norm(KERNELS[op], width, width)
        case _:
            return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)


def _convs(arch: NASBench201Arch, in_channels: int) -> list[Conv]:
    convs = [Conv(3, in_channels, _WIDTHS[0])]
    for stage, width in enumerate(_WIDTHS):
        if stage:
            convs += Reduction.convs(_WIDTHS[stage - 1], width, stage)
        convs += _CELLS_PER_STAGE * [Conv(KERNELS[op], width, width, stage) for op in arch.ops if op in KERNELS]
    return convs
