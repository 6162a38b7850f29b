"""PiT: vision transformers with pooling whose width, depths, heads and hidden layers are searched.

Index conventions:
    N: samples in a batch
    C, H, W: channels, height, width
    T: tokens, the class token and the patches
    E: width of a token
    K: classes
"""

import random
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement, pairwise
from math import prod
from operator import index

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from lightning_zico.spaces.base import Reader, SearchSpace, Trial, register_space

BASES = (16, 24, 32, 40)
MLP_RATIOS = (2, 4, 6, 8)
DEPTHS = ((1, 2, 3), (4, 6, 8), (2, 4, 6))
NUM_HEADS = (2, 4, 8)

_NUM_STAGES = 3
# The heads of the three stages: never fewer than in the stage before.
_HEADS = tuple(combinations_with_replacement(NUM_HEADS, _NUM_STAGES))
_PATCH, _STRIDE = 16, 8
_SIDE = 27  # patches along an image of 224 x 224 pixels, for which the positions are learned
_STD = 0.02  # of fresh positions and class tokens, as published
_EPS = 1e-6  # of the layer norms, as published


@dataclass(frozen=True)
class PiTArch:
    """A network of PiT.

    Args:
        base: Width of an attention head.
        mlp_ratio: Width of the hidden layers after the attention, as a multiple of the width of a token.
        depths: Number of blocks of each stage.
        heads: Number of attention heads of each stage.

    Raises:
        ValueError: If there is no such network in the space.

    Example:
        >>> print(PiTArch(32, 4, (2, 6, 4), (2, 4, 8)))
        pit-32-4-2.6.4-2.4.8
    """

    base: int
    mlp_ratio: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("base", "mlp_ratio"):
            object.__setattr__(self, name, index(getattr(self, name)))  # 32.0 would be printed as such
        for name in ("depths", "heads"):
            object.__setattr__(self, name, tuple(map(index, getattr(self, name))))  # a list cannot be hashed
        if self.base not in BASES:
            raise ValueError(f"Invalid base={self.base}: expected {_listed(BASES)}.")
        if self.mlp_ratio not in MLP_RATIOS:
            raise ValueError(f"Invalid mlp_ratio={self.mlp_ratio}: expected {_listed(MLP_RATIOS)}.")
        if len(self.depths) != _NUM_STAGES or any(d not in own for d, own in zip(self.depths, DEPTHS, strict=True)):
            needed = ", then ".join(map(_listed, DEPTHS))
            raise ValueError(f"Invalid depths={self.depths}: expected {needed}.")
        if self.heads not in _HEADS:
            raise ValueError(
                f"Invalid heads={self.heads}: expected {_NUM_STAGES} numbers, each {_listed(NUM_HEADS)} and none "
                "smaller than the one before."
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of a token in each stage."""
        return tuple(self.base * heads for heads in self.heads)

    def __str__(self) -> str:
        return f"pit-{self.base}-{self.mlp_ratio}-{_joined(self.depths)}-{_joined(self.heads)}"


@register_space("pit")
class PiT(SearchSpace[PiTArch]):
    """The 4,320 pooling-based vision transformers of ViT-Bench, for images of at least 16 x 16 pixels.

    Overlapping patches of 16 x 16 pixels, 8 pixels apart, to which learned positions are added, and a class token;
    three stages of blocks, each of attention and a perceptron, after a layer norm and beside a shortcut; between the
    stages, a depthwise convolution that halves the image of the patches, and a linear layer for the class token; then
    a layer norm and a linear layer for the class token.

    The positions are those of 224 x 224 pixels; for other images they are interpolated. The perceptron of the last
    block is also computed for the patches, although only the class token is read after it.

    Example:
        >>> space = PiT()
        >>> arch = space.parse("pit-32-4-2.6.4-2.4.8")
        >>> space.params(arch, num_classes=1000), space.macs(arch, 224, num_classes=1000)
        (4847272, 699059456)

    Source:
        Heo et al., ICCV 2021, arXiv:2103.16302; the choices are those of Wei et al., *Auto-Prox*, AAAI 2024,
        arXiv:2312.09059. Weights are drawn as there. Ours has no stochastic depth, which is a matter of training, and
        takes images of other sizes.
    """

    @property
    def size(self) -> int:
        """Number of archs: bases, ratios, depths of each stage, and ten triples of heads."""
        return len(BASES) * len(MLP_RATIOS) * prod(map(len, DEPTHS)) * len(_HEADS)

    def parse(self, text: str) -> PiTArch:
        """Parse an arch from its string.

        Raises:
            ArchSyntaxError: If the text is not an arch of this space. The message shows the position and what was
                expected there.

        Example:
            >>> PiT().parse("pit-32-4-2.6.4-4.2.8")
            Traceback (most recent call last):
            ...
            lightning_zico.spaces.base.ArchSyntaxError: The arch cannot be read at position 17 (from 0):
            expected '4' or '8', found '2'.
                pit-32-4-2.6.4-4.2.8
                                 ^
        """
        reader, depths, heads = Reader(text), [], [NUM_HEADS[0]]
        reader.token(["pit-"])
        base = reader.token([f"{base}-" for base in BASES])
        ratio = reader.token([f"{ratio}-" for ratio in MLP_RATIOS])
        for stage, choices in enumerate(DEPTHS):
            depths.append(int(reader.token(list(map(str, choices)))))
            reader.token(["." if stage < _NUM_STAGES - 1 else "-"])
        for stage in range(_NUM_STAGES):
            if stage:
                reader.token(["."])
            heads.append(int(reader.token([str(number) for number in NUM_HEADS if number >= heads[-1]])))
        reader.end()
        return PiTArch(int(base[:-1]), int(ratio[:-1]), tuple(depths), tuple(heads[1:]))

    def sample(self, rng: random.Random) -> PiTArch:
        """Draw an arch uniformly at random."""
        depths = tuple(rng.choice(choices) for choices in DEPTHS)
        return PiTArch(rng.choice(BASES), rng.choice(MLP_RATIOS), depths, rng.choice(_HEADS))

    def neighbours(self, arch: PiTArch) -> Iterator[PiTArch]:
        """Yield the archs that differ from this one in the base, the ratio, one depth, or the heads of one stage."""
        yield from (replace(arch, base=base) for base in BASES if base != arch.base)
        yield from (replace(arch, mlp_ratio=ratio) for ratio in MLP_RATIOS if ratio != arch.mlp_ratio)
        for stage, choices in enumerate(DEPTHS):
            for depth in choices:
                if depth != arch.depths[stage]:
                    yield replace(arch, depths=(*arch.depths[:stage], depth, *arch.depths[stage + 1 :]))
        for heads in _HEADS:
            if sum(own != other for own, other in zip(arch.heads, heads, strict=True)) == 1:
                yield replace(arch, heads=heads)

    def suggest(self, trial: Trial) -> PiTArch:
        """Let an Optuna trial choose ``base``, ``mlp_ratio``, ``depth_0`` and so on, and ``heads``, such as "2.4.8"."""
        base = trial.suggest_categorical("base", BASES)
        ratio = trial.suggest_categorical("mlp_ratio", MLP_RATIOS)
        depths = tuple(trial.suggest_categorical(f"depth_{stage}", choices) for stage, choices in enumerate(DEPTHS))
        heads = trial.suggest_categorical("heads", [_joined(heads) for heads in _HEADS])
        return PiTArch(base, ratio, depths, tuple(map(int, heads.split("."))))

    def depth(self, arch: PiTArch) -> int:
        """Count the convolution of the patches, four layers per block, two per pooling, and the classifier."""
        return 2 + 4 * sum(arch.depths) + 2 * (_NUM_STAGES - 1)

    def params(self, arch: PiTArch, *, num_classes: int = 10, in_channels: int = 3) -> int:
        """Count the parameters of the built network, exactly."""
        first, last = arch.widths[0], arch.widths[-1]
        total = (in_channels * _PATCH**2 + 1) * first  # patches
        total += (1 + _SIDE**2) * first  # the class token, and the positions of the patches
        for width, depth in zip(arch.widths, arch.depths, strict=True):
            hidden = arch.mlp_ratio * width
            attention = 4 * (width + 1) * width
            total += depth * (attention + (width + 1) * hidden + (hidden + 1) * width + 2 * 2 * width)
        for width, wider in pairwise(arch.widths):
            total += (3**2 + 1) * wider + (width + 1) * wider
        return total + 2 * last + (last + 1) * num_classes

    def macs(self, arch: PiTArch, resolution: int = 224, *, num_classes: int = 10, in_channels: int = 3) -> int:
        """Count the multiply-accumulate operations of the built network, exactly.

        Args:
            arch: Arch of this space.
            resolution: Height and width of an image, in pixels.
            num_classes: As for `build`.
            in_channels: As for `build`.

        Returns:
            Operations of the convolutions, the linear layers and the matrix products of the attention, per sample
            (1 MAC = 2 FLOPs).

        Raises:
            ValueError: If ``resolution`` is smaller than a patch.
        """
        if resolution < _PATCH:
            raise ValueError(f"Invalid resolution={resolution}: expected at least {_PATCH}, the side of a patch.")
        side = (resolution - _PATCH) // _STRIDE + 1
        total = side**2 * in_channels * _PATCH**2 * arch.widths[0]
        for stage, (width, depth) in enumerate(zip(arch.widths, arch.depths, strict=True)):
            if stage:
                side = (side + 1) // 2
                total += side**2 * 3**2 * width + arch.widths[stage - 1] * width
            tokens = side**2 + 1
            total += depth * (tokens * (4 + 2 * arch.mlp_ratio) * width**2 + 2 * tokens**2 * width)
        return total + arch.widths[-1] * num_classes

    def build(self, arch: PiTArch, num_classes: int = 10, in_channels: int = 3) -> "PoolingTransformer":
        """Build the network of an arch, on the CPU, with fresh weights.

        Args:
            arch: Arch of this space.
            num_classes: Number of logits.
            in_channels: Number of channels of the images.

        Returns:
            A network that maps images ``[N, in_channels, H, W]`` to logits ``[N, num_classes]``.
        """
        return PoolingTransformer(arch, num_classes, in_channels)

    def blocks(self, arch: PiTArch) -> tuple[str, ...]:
        """List the names of the attention and the perceptron of each block, with shortcuts, in order of execution."""
        return tuple(
            f"stages.{stage}.{idx}.{part}"
            for stage, depth in enumerate(arch.depths)
            for idx in range(depth)
            for part in ("attention", "mlp")
        )


class PoolingTransformer(nn.Module):
    """A vision transformer of three stages, between which the image of the patches is halved.

    Args:
        arch: Arch of the network.
        num_classes: Number of logits.
        in_channels: Number of channels of the images.
    """

    def __init__(self, arch: PiTArch, num_classes: int, in_channels: int) -> None:
        super().__init__()
        first, last = arch.widths[0], arch.widths[-1]
        self.patches = nn.Conv2d(in_channels, first, _PATCH, _STRIDE)
        self.positions = nn.Parameter(torch.empty(1, first, _SIDE, _SIDE))
        self.class_token = nn.Parameter(torch.empty(1, 1, first))
        self.stages = nn.ModuleList(
            nn.Sequential(*(_block(width, heads, arch.mlp_ratio * width) for _ in range(depth)))
            for width, heads, depth in zip(arch.widths, arch.heads, arch.depths, strict=True)
        )
        self.poolings = nn.ModuleList(Pooling(width, wider) for width, wider in pairwise(arch.widths))
        self.norm = nn.LayerNorm(last, eps=_EPS)
        self.head = nn.Linear(last, num_classes)
        # The published code truncates at a hundred standard deviations, so a plain normal distribution is the same.
        nn.init.normal_(self.class_token, std=_STD)
        nn.init.normal_(self.positions, std=_STD)

    def forward(self, images: Tensor) -> Tensor:
        """Map ``[N, C, H, W]`` to ``[N, K]``.

        Raises:
            ValueError: If the images are smaller than a patch.
        """
        height, width = images.shape[-2:]
        if min(height, width) < _PATCH:
            raise ValueError(f"The images are {height} x {width}: expected at least {_PATCH} x {_PATCH}.")
        patches = self.patches(images)  # [N, E, H', W']
        patches = patches + self._positions_of(patches.shape[-2:])
        own = self.class_token.expand(len(images), -1, -1)  # [N, 1, E]
        for idx, stage in enumerate(self.stages):
            if idx:
                patches, own = self.poolings[idx - 1](patches, own)
            tokens = stage(torch.cat([own, patches.flatten(2).transpose(1, 2)], dim=1))  # [N, T, E]
            own = tokens[:, :1]
            patches = tokens[:, 1:].transpose(1, 2).unflatten(2, patches.shape[-2:])
        return self.head(self.norm(own[:, 0]))

    def _positions_of(self, sides: tuple[int, ...]) -> Tensor:
        if tuple(sides) == (_SIDE, _SIDE):
            return self.positions
        return F.interpolate(self.positions, tuple(sides), mode="bicubic")


class Attention(nn.Module):
    """Attention after a layer norm and beside a shortcut.

    Args:
        width: Width of a token.
        heads: Number of heads, which share the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, eps=_EPS)
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, T, E]`` to the same shape."""
        queries, keys, values = self.qkv(self.norm(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (queries @ keys.transpose(2, 3) / queries.shape[-1] ** 0.5).softmax(dim=-1)  # [N, heads, T, T]
        return x + self.projection((weights @ values).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """A perceptron with one hidden layer, after a layer norm and beside a shortcut.

    Args:
        width: Width of a token.
        hidden: Width of the hidden layer.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        norm = nn.LayerNorm(width, eps=_EPS)
        self.body = nn.Sequential(norm, nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, T, E]`` to the same shape."""
        return x + self.body(x)


class Pooling(nn.Module):
    """Pooling between two stages: it halves the image of the patches and widens all tokens.

    Args:
        width: Width of a token before it.
        wider: Width of a token after it, a multiple of ``width``.
    """

    def __init__(self, width: int, wider: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(width, wider, 3, stride=2, padding=1, groups=width)
        self.class_token = nn.Linear(width, wider)

    def forward(self, patches: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """Map patches ``[N, E, H, W]`` and the class token ``[N, 1, E]``, each by its own layer."""
        return self.patches(patches), self.class_token(own)


def _block(width: int, heads: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(OrderedDict(attention=Attention(width, heads), mlp=MLP(width, hidden)))


def _joined(numbers: Iterable[int]) -> str:
    return ".".join(map(str, numbers))


def _listed(choices: Iterable[object]) -> str:
    return " or ".join(map(str, choices))
