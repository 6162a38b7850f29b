"""AutoFormer: vision transformers whose width, depth, heads and hidden layers are searched, in three sizes.

Index conventions:
    N: samples in a batch
    C, H, W: channels, height, width
    T: tokens, the class token and the patches
    E: width of a token
    K: classes
"""

import random
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import isqrt
from operator import index
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from lightning_zico.spaces.base import Reader, SearchSpace, Trial, register_space


class Choices(NamedTuple):
    """The choices in one size of the space.

    Args:
        widths: Widths of a token.
        depths: Numbers of layers.
        heads: Numbers of attention heads of a layer.
        mlp_ratios: Widths of the hidden layer after the attention, as multiples of the width of a token.
    """

    widths: tuple[int, ...]
    depths: range
    heads: tuple[int, ...]
    mlp_ratios: tuple[float, ...]


# As in the published searches. A file of the found base network also lists 8 heads, which its search did not include.
CHOICES = {
    "tiny": Choices((192, 216, 240), range(12, 15), (3, 4), (3.5, 4.0)),
    "small": Choices((320, 384, 448), range(12, 15), (5, 6, 7), (3.0, 3.5, 4.0)),
    "base": Choices((528, 576, 624), range(14, 17), (9, 10), (3.0, 3.5, 4.0)),
}

_PATCH = 16
_HEAD_WIDTH = 64
_SIDE = 14  # patches along an image of 224 x 224 pixels, for which the positions are learned
_MAX_DISTANCE = 14  # in patches; larger distances are clipped to this
_NUM_DISTANCES = 2 * _MAX_DISTANCE + 2  # in both directions, none, and the class token's
_STD = 0.02  # of fresh weights, as published


@dataclass(frozen=True)
class AutoFormerLayer:
    """A layer of AutoFormer: attention and a multilayer perceptron.

    Args:
        heads: Number of attention heads, each 64 wide.
        mlp_ratio: Width of the perceptron's hidden layer as a multiple of the width of a token.

    Example:
        >>> print(AutoFormerLayer(heads=3, mlp_ratio=3.5))
        3x3.5
    """

    heads: int
    mlp_ratio: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", index(self.heads))  # 3.0 would be printed as such

    def __str__(self) -> str:
        return f"{self.heads}x{self.mlp_ratio:.1f}"


@dataclass(frozen=True, repr=False)
class AutoFormerArch:
    """A network of AutoFormer.

    Args:
        scale: ``"tiny"``, ``"small"`` or ``"base"``.
        width: Width of a token, one of the `CHOICES` of this scale.
        layers: Layers in order of execution, from the `CHOICES` of this scale.

    Raises:
        ValueError: If there is no such network.

    Example:
        >>> print(AutoFormerArch("tiny", 192, (AutoFormerLayer(3, 3.5),) * 12))
        autoformer-tiny-192-12-3x3.5-3x3.5-3x3.5-3x3.5-3x3.5-3x3.5-3x3.5-3x3.5-3x3.5-3x3.5-3x3.5-3x3.5
    """

    scale: str
    width: int
    layers: tuple[AutoFormerLayer, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))  # a list cannot be hashed
        object.__setattr__(self, "width", index(self.width))  # 192.0 would be printed as such
        if self.scale not in CHOICES:
            raise ValueError(f"Invalid scale={self.scale!r}: expected {_told(CHOICES)}.")
        choices = CHOICES[self.scale]
        if self.width not in choices.widths:
            raise ValueError(f"Invalid width={self.width!r}: expected {_told(choices.widths)} ({self.scale}).")
        depth = len(self.layers)
        if depth not in choices.depths:
            raise ValueError(f"`layers` has {depth} layers: expected {_told(choices.depths)} ({self.scale}).")
        for layer in self.layers:
            if layer not in _layers(choices):
                raise ValueError(
                    f"`layers` has {layer}: expected {_told(choices.heads)} heads and a ratio of "
                    f"{_told(choices.mlp_ratios)} ({self.scale})."
                )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {str(self)!r}>"

    def __str__(self) -> str:
        # With the depth, because the string of a deeper arch would otherwise start with that of a shallower one.
        return "-".join(map(str, ["autoformer", self.scale, self.width, len(self.layers), *self.layers]))


class AutoFormer(SearchSpace[AutoFormerArch]):
    """Vision transformers, for images whose height and width are one multiple of 16.

    Patches of 16 x 16 pixels and a class token, to which learned positions are added; layers of attention and of a
    perceptron, each after a layer norm and beside a shortcut; a layer norm, the mean over the patches and a linear
    layer. A head is 64 wide, however wide a token is. To the keys and to the values the attention adds an embedding of
    how far away they are, vertically and horizontally.

    The positions are those of 224 x 224 pixels; for other images they are interpolated.

    Attributes:
        scale: One of `CHOICES`.

    Source:
        Chen et al., ICCV 2021, arXiv:2107.00651; microsoft/Cream, ``AutoFormer``, with the options its authors ran it
        with: ``--gp`` (the mean over the patches is classified, not the class token), ``--change_qk`` (a head is 64
        wide) and ``--relative_position``. Weights are drawn as there. Ours has no stochastic depth, which is a matter
        of training, shares no weights between networks, and takes images of other sizes.
    """

    scale: ClassVar[str]

    @property
    def size(self) -> int:
        """Number of archs: the widths times the layers, for each depth."""
        choices = CHOICES[self.scale]
        return len(choices.widths) * sum(len(_layers(choices)) ** depth for depth in choices.depths)

    def parse(self, text: str) -> AutoFormerArch:
        """Parse an arch from its string.

        Raises:
            ArchSyntaxError: If the text is not an arch of this space. The message shows the position and what was
                expected there.

        Example:
            >>> AutoFormerTiny().parse("autoformer-tiny-192-12-3x3.5-5x3.5")
            Traceback (most recent call last):
            ...
            lightning_zico.spaces.base.ArchSyntaxError: The arch cannot be read at position 29 (from 0):
            expected '-3x3.5' or '-3x4.0' or '-4x3.5' or '-4x4.0', found '5'.
                autoformer-tiny-192-12-3x3.5-5x3.5
                                             ^
        """
        choices = CHOICES[self.scale]
        tokens = {f"-{layer}": layer for layer in _layers(choices)}
        reader = Reader(text)
        reader.token([f"autoformer-{self.scale}-"])
        width = reader.token([f"{width}-" for width in choices.widths])
        depth = reader.token([str(depth) for depth in choices.depths])
        layers = [tokens[reader.token(list(tokens))] for _ in range(int(depth))]
        reader.end()
        return AutoFormerArch(self.scale, int(width.removesuffix("-")), tuple(layers))

    def sample(self, rng: random.Random) -> AutoFormerArch:
        """Draw an arch as published: the width, the depth, and the heads and ratio of each layer.

        Each of these is drawn uniformly. Therefore, all archs of one depth have the same probability, and archs of a
        smaller depth, of which there are fewer, have a larger one.
        """
        choices = CHOICES[self.scale]
        width, depth = rng.choice(choices.widths), rng.choice(choices.depths)
        layers = tuple(rng.choice(_layers(choices)) for _ in range(depth))
        return AutoFormerArch(self.scale, width, layers)

    def neighbours(self, arch: AutoFormerArch) -> Iterator[AutoFormerArch]:
        """Yield the archs that differ from this one in the width, in one layer, or by one layer at the end.

        A layer differs in its heads or in its ratio.
        """
        choices = CHOICES[self.scale]
        for width in choices.widths:
            if width != arch.width:
                yield replace(arch, width=width)
        for idx, kept in enumerate(arch.layers):
            for layer in _layers(choices):
                if (layer.heads != kept.heads) != (layer.mlp_ratio != kept.mlp_ratio):
                    yield replace(arch, layers=(*arch.layers[:idx], layer, *arch.layers[idx + 1 :]))
        if len(arch.layers) > choices.depths[0]:
            yield replace(arch, layers=arch.layers[:-1])
        if len(arch.layers) < choices.depths[-1]:
            for layer in _layers(choices):
                yield replace(arch, layers=(*arch.layers, layer))

    def suggest(self, trial: Trial) -> AutoFormerArch:
        """Let an Optuna trial choose ``width``, ``depth``, and the choices of each layer, such as ``layer_0_heads``."""
        choices = CHOICES[self.scale]
        width = trial.suggest_categorical("width", choices.widths)
        depth = trial.suggest_int("depth", choices.depths[0], choices.depths[-1])
        layers = tuple(
            AutoFormerLayer(
                heads=trial.suggest_categorical(f"layer_{idx}_heads", choices.heads),
                mlp_ratio=trial.suggest_categorical(f"layer_{idx}_mlp_ratio", choices.mlp_ratios),
            )
            for idx in range(depth)
        )
        return AutoFormerArch(self.scale, width, layers)

    def depth(self, arch: AutoFormerArch) -> int:
        """Count the convolution of the patches, four linear layers per layer, and the linear layer of the classes."""
        return 2 + 4 * len(arch.layers)

    def params(self, arch: AutoFormerArch, *, num_classes: int = 10, in_channels: int = 3) -> int:
        """Count the parameters of the built network, exactly."""
        width = arch.width
        total = (in_channels * _PATCH**2 + 1) * width  # patches
        total += (1 + 1 + _SIDE**2) * width  # the class token, and the positions of it and of the patches
        for layer in arch.layers:
            attended, hidden = _HEAD_WIDTH * layer.heads, int(layer.mlp_ratio * width)
            total += 3 * (width + 1) * attended + (attended + 1) * width
            total += (width + 1) * hidden + (hidden + 1) * width
            total += 4 * _NUM_DISTANCES * _HEAD_WIDTH  # vertical and horizontal, for keys and values
            total += 2 * 2 * width  # layer norms
        return total + 2 * width + (width + 1) * num_classes

    def macs(self, arch: AutoFormerArch, resolution: int = 224, *, num_classes: int = 10, in_channels: int = 3) -> int:
        """Count the multiply-accumulate operations of the built network, exactly.

        Args:
            arch: Arch of this space.
            resolution: Height and width of an image, in pixels.
            num_classes: As for `build`.
            in_channels: As for `build`.

        Returns:
            Operations of the convolution, the linear layers and all matrix products of the attention, also those with
            the embeddings of distances, per sample (1 MAC = 2 FLOPs).

        Raises:
            ValueError: If ``resolution`` is not a multiple of 16: the image could not be split into patches.
        """
        if resolution < 1 or resolution % _PATCH:
            raise ValueError(f"Invalid resolution={resolution}: expected a multiple of {_PATCH}, the side of a patch.")
        width = arch.width
        patches = (resolution // _PATCH) ** 2
        tokens = patches + 1
        total = patches * in_channels * _PATCH**2 * width
        for layer in arch.layers:
            attended, hidden = _HEAD_WIDTH * layer.heads, int(layer.mlp_ratio * width)
            total += tokens * (4 * width * attended + 2 * width * hidden)
            total += 4 * tokens**2 * attended  # by keys, by values, and both by distance
        return total + width * num_classes

    def build(self, arch: AutoFormerArch, num_classes: int = 10, in_channels: int = 3) -> "VisionTransformer":
        """Build the network of an arch, on the CPU, with fresh weights.

        Args:
            arch: Arch of this space.
            num_classes: Number of logits.
            in_channels: Number of channels of the images.

        Returns:
            A network that maps images ``[N, in_channels, H, H]`` to logits ``[N, num_classes]``.
        """
        return VisionTransformer(arch.width, arch.layers, num_classes, in_channels)

    def blocks(self, arch: AutoFormerArch) -> tuple[str, ...]:
        """List the names of the attention and the perceptron of each layer, with shortcuts, in order of execution.

        Source:
            Lee & Ham, *AZ-NAS*, CVPR 2024, arXiv:2403.19232, look at these in this space.
        """
        return tuple(f"layers.{idx}.{part}" for idx in range(len(arch.layers)) for part in ("attention", "mlp"))


@register_space("autoformer_tiny")
class AutoFormerTiny(AutoFormer):
    """The smallest vision transformers of `AutoFormer`: 5.4 to 10.5 million parameters with 1000 classes.

    The published network that was found in this space has layers of ratio 3.0, which the published space does not
    include.

    Example:
        >>> space = AutoFormerTiny()
        >>> arch = space.sample(random.Random(0))
        >>> print(arch)
        autoformer-tiny-216-13-3x3.5-4x3.5-4x4.0-4x4.0-4x3.5-4x4.0-4x3.5-3x4.0-3x4.0-4x3.5-3x4.0-3x3.5-4x3.5
        >>> space.params(arch, num_classes=1000), space.macs(arch, num_classes=1000)
        (7687036, 1903215104)
    """

    scale = "tiny"


@register_space("autoformer_small")
class AutoFormerSmall(AutoFormer):
    """The middle vision transformers of `AutoFormer`: 13.1 to 34.8 million parameters with 1000 classes."""

    scale = "small"


@register_space("autoformer_base")
class AutoFormerBase(AutoFormer):
    """The largest vision transformers of `AutoFormer`: 41.7 to 76.9 million parameters with 1000 classes."""

    scale = "base"


class VisionTransformer(nn.Module):
    """A vision transformer with relative positions.

    Args:
        width: Width of a token.
        layers: Layers in order of execution.
        num_classes: Number of logits.
        in_channels: Number of channels of the images.
    """

    def __init__(self, width: int, layers: Sequence[AutoFormerLayer], num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(in_channels, width, _PATCH, _PATCH)
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, 1 + _SIDE**2, width))
        self.layers = nn.Sequential(
            *(
                nn.Sequential(
                    OrderedDict(attention=Attention(width, layer.heads), mlp=MLP(width, int(layer.mlp_ratio * width)))
                )
                for layer in layers
            )
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)
        self._draw_weights()

    def _draw_weights(self) -> None:
        # The published code draws from a normal distribution that is truncated at 2, a hundred standard deviations.
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=_STD)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.class_token, std=_STD)
        nn.init.normal_(self.positions, std=_STD)

    def forward(self, images: Tensor) -> Tensor:
        """Map ``[N, C, H, H]`` to ``[N, K]``.

        Raises:
            ValueError: If the images are not square, or cannot be cut into patches.
        """
        height, width = images.shape[-2:]
        if height != width or height % _PATCH:
            raise ValueError(
                f"The images are {height} x {width}: expected squares whose side is a multiple of {_PATCH}."
            )
        patches = self.patches(images).flatten(2).transpose(1, 2)  # [N, T - 1, E]
        tokens = torch.cat([self.class_token.expand(len(patches), -1, -1), patches], dim=1)  # [N, T, E]
        tokens = self.layers(tokens + self._positions_of(height // _PATCH))
        return self.head(self.norm(tokens)[:, 1:].mean(dim=1))

    def _positions_of(self, side: int) -> Tensor:
        if side == _SIDE:
            return self.positions
        own, others = self.positions.split([1, _SIDE**2], dim=1)
        grid = others.transpose(1, 2).unflatten(2, (_SIDE, _SIDE))  # [1, E, 14, 14]
        grid = F.interpolate(grid, (side, side), mode="bicubic")
        return torch.cat([own, grid.flatten(2).transpose(1, 2)], dim=1)


class Attention(nn.Module):
    """Attention that knows how far patches are from each other, and what goes around it.

    Args:
        width: Width of a token.
        heads: Each 64 wide.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * heads * _HEAD_WIDTH)
        self.distance_keys = Distances()
        self.distance_values = Distances()
        self.projection = nn.Linear(heads * _HEAD_WIDTH, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, T, E]`` to the same shape."""
        side = isqrt(x.shape[1] - 1)
        # d: channels of a head, h: heads, q: tokens that ask, t: tokens that are asked
        queries, keys, values = self.qkv(self.norm(x)).unflatten(2, (3, -1, _HEAD_WIDTH)).unbind(2)  # [N, T, h, d]
        scores = torch.einsum("nqhd,nthd->nhqt", queries, keys)
        scores = scores + torch.einsum("nqhd,qtd->nhqt", queries, self.distance_keys(side))
        weights = (scores / _HEAD_WIDTH**0.5).softmax(dim=-1)
        mixed = torch.einsum("nhqt,nthd->nqhd", weights, values)
        mixed = mixed + torch.einsum("nhqt,qtd->nqhd", weights, self.distance_values(side))
        return x + self.projection(mixed.flatten(2))


class Distances(nn.Module):
    """Embeddings of the distances between all tokens of a square image: a vertical one plus a horizontal one."""

    def __init__(self) -> None:
        super().__init__()
        self.vertical = nn.Embedding(_NUM_DISTANCES, _HEAD_WIDTH)
        self.horizontal = nn.Embedding(_NUM_DISTANCES, _HEAD_WIDTH)

    def forward(self, side: int) -> Tensor:
        """Embed, for an image of so many patches along its side.

        Returns:
            From each token to each, ``[T, T, 64]``. Embedding 0 is that of the class token, to and from.
        """
        line = torch.arange(side, device=self.vertical.weight.device)
        distances = (line - line[:, None]).clamp(-_MAX_DISTANCE, _MAX_DISTANCE) + _MAX_DISTANCE + 1  # [side, side]
        vertical = distances.repeat_interleave(side, 0).repeat_interleave(side, 1)  # [T - 1, T - 1]
        horizontal = distances.repeat(side, side)
        return self.vertical(F.pad(vertical, (1, 0, 1, 0))) + self.horizontal(F.pad(horizontal, (1, 0, 1, 0)))


class MLP(nn.Module):
    """A perceptron with one hidden layer, and what goes around it.

    Args:
        width: Width of a token.
        hidden: Width of the hidden layer.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, T, E]`` to the same shape."""
        return x + self.body(x)


def _layers(choices: Choices) -> list[AutoFormerLayer]:
    return [AutoFormerLayer(*pair) for pair in product(choices.heads, choices.mlp_ratios)]


def _told(choices: Iterable[object]) -> str:
    return " or ".join(map(str, choices))
