"""NAS-Bench-BERT: small BERTs for text whose width, depth, operations, heads and hidden layers are searched.

Index conventions:
    N: texts in a batch
    T: tokens of a text
    E: width of a token
    K: classes
"""

import random
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise, product
from math import log2, pi
from operator import index
from typing import ClassVar, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from lightning_zico.spaces.base import ArchSyntaxError, Reader, SearchSpace, Trial, register_space

HIDDEN_SIZES = (128, 256)
NUM_LAYERS = (2, 4)
OPS = ("sdp", "wma", "dft", "dct", "dsc5.", "dsc9.")
NUM_HEADS = (2, 4)
WIDTHS = (512, 1024)

_NUM_HIDDEN = (1, 3)  # hidden layers of a perceptron
_KERNELS = {"dsc5.": 5, "dsc9.": 9}

_VOCAB_SIZE = 30_522
_MAX_TOKENS = 512
_NUM_SEGMENTS = 2
_EMBEDDING = 128  # width of the embeddings, whatever the width of a token
_DROPOUT = 0.1
_EPS = 1e-12  # of the layer norms, as published
_STD = 0.02  # of fresh weights, as published
# Per number and log2 of the length, as usual: a Fourier transform of n complex numbers takes 5 n log2(n) FLOPs, one of
# real numbers half of that. torch transforms two dimensions at once as complex numbers.
_MACS_PER_FOURIER = {"dft": 2.5, "dct": 1.25}

# The choices of the hidden layers of a perceptron, by their number.
Perceptrons: TypeAlias = dict[int, tuple[tuple[int, ...], ...]]


@dataclass(frozen=True)
class BERTLayer:
    """A layer of a BERT: an operation that mixes the tokens, and a perceptron.

    Args:
        op: One of `OPS`: ``"sdp"``, scaled dot-product attention; ``"wma"``, attention with one more matrix for the
            queries; ``"dft"`` and ``"dct"``, the Fourier and the cosine transform; ``"dsc5."`` and ``"dsc9."``,
            attention in half of the heads and a convolution of this kernel size in the others.
        heads: Number of heads, which share the width of a token.
        widths: Widths of the hidden layers of the perceptron.

    Example:
        >>> print(BERTLayer("sdp", 2, (512, 1024, 1024)))
        sdp2:512+1024+1024
    """

    op: str
    heads: int
    widths: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", index(self.heads))  # 2.0 would be printed as such
        object.__setattr__(self, "widths", tuple(map(index, self.widths)))  # a list cannot be hashed

    def __str__(self) -> str:
        return f"{self.op}{self.heads}:{_joined(self.widths)}"


@dataclass(frozen=True)
class BERTArch:
    """A network of NAS-Bench-BERT, as trained or as named.

    Args:
        hidden: Width of a token, 128 or 256.
        layers: Two or four layers in order of execution.

    Raises:
        ValueError: If there is no such network.

    Example:
        >>> print(BERTArch(128, (BERTLayer("sdp", 4, (512,)), BERTLayer("sdp", 2, (512, 1024, 1024)))))
        bert-128-2-sdp4:512-sdp2:512+1024+1024
    """

    hidden: int
    layers: tuple[BERTLayer, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", index(self.hidden))
        object.__setattr__(self, "layers", tuple(self.layers))
        if self.hidden not in HIDDEN_SIZES:
            raise ValueError(f"Invalid hidden={self.hidden}: expected {_listed(HIDDEN_SIZES)}.")
        if len(self.layers) not in NUM_LAYERS:
            raise ValueError(f"`layers` has {len(self.layers)} layers: expected {_listed(NUM_LAYERS)}.")
        for layer in self.layers:
            is_known = layer.op in OPS and layer.heads in NUM_HEADS
            if not is_known or len(layer.widths) not in _NUM_HIDDEN or not set(layer.widths) <= set(WIDTHS):
                raise ValueError(
                    f"`layers` has {layer}: expected one of {', '.join(OPS)} with {_listed(NUM_HEADS)} heads, and "
                    f"{_listed(_NUM_HIDDEN)} hidden layers that are {_listed(WIDTHS)} wide."
                )

    def __str__(self) -> str:
        return "-".join(map(str, ["bert", self.hidden, len(self.layers), *self.layers]))


class BERTSpace(SearchSpace[BERTArch]):
    """Small BERTs for texts of at most 512 tokens.

    Embeddings of words, positions and segments, 128 wide, with a layer norm; a linear layer if tokens are 256 wide;
    layers of an operation that mixes the tokens and of a perceptron, each beside a shortcut and before a layer norm;
    and a linear layer for the first token. Dropout is 0.1.

    The networks are for text, not for images: they are called with token ids ``[N, T]``, and with an
    ``attention_mask`` and ``token_type_ids`` if there are any, as a tokeniser returns them.
    `zoo.classifiers.SequenceClassifier` makes LightningModules of them. Where the methods of other spaces take a
    ``resolution``, these take the number of tokens; ``in_channels`` has no effect, since texts have no channels.

    Attributes:
        ops: Operations of the space, of `OPS`.
        vocab_size: Number of different token ids; 0 is padding.
    """

    ops: ClassVar[tuple[str, ...]]
    vocab_size = _VOCAB_SIZE

    @abstractmethod
    def perceptrons(self, hidden: int) -> Perceptrons:
        """List the choices of a perceptron: the widths of its hidden layers, by their number.

        Args:
            hidden: Width of a token.
        """

    @property
    def size(self) -> int:
        """Number of archs: the choices of each layer, for each width of a token and each number of layers."""
        return sum(len(self._layers(hidden)) ** depth for hidden in HIDDEN_SIZES for depth in NUM_LAYERS)

    def _layers(self, hidden: int) -> list[BERTLayer]:
        return [BERTLayer(*choices) for choices in product(self.ops, NUM_HEADS, self._widths(hidden))]

    def _widths(self, hidden: int) -> list[tuple[int, ...]]:
        return list(chain(*self.perceptrons(hidden).values()))

    def parse(self, text: str) -> BERTArch:
        """Parse an arch from its string.

        Raises:
            ArchSyntaxError: If the text is not an arch of this space. The message shows the position and what was
                expected there.
        """
        reader, layers = Reader(text), []
        reader.token(["bert-"])
        hidden = int(reader.token([f"{hidden}-" for hidden in HIDDEN_SIZES])[:-1])
        num_layers = int(reader.token(list(map(str, NUM_LAYERS))))
        for layer in range(num_layers):
            op = reader.token([f"-{op}" for op in self.ops])[1:]
            heads = int(reader.token([f"{heads}:" for heads in NUM_HEADS])[:-1])
            follower = "-" if layer < num_layers - 1 else ""
            layers.append(BERTLayer(op, heads, _read_widths(reader, self._widths(hidden), follower)))
        reader.end()
        return BERTArch(hidden, tuple(layers))

    def sample(self, rng: random.Random) -> BERTArch:
        """Draw an arch as published: the depth, the width of a token, and the choices of each layer, each uniformly.

        Therefore, all archs with the same number of layers, and of hidden layers in each, have the same probability.
        """
        depth, hidden = rng.choice(NUM_LAYERS), rng.choice(HIDDEN_SIZES)
        perceptrons = list(self.perceptrons(hidden).values())
        layers = (
            BERTLayer(rng.choice(self.ops), rng.choice(NUM_HEADS), rng.choice(rng.choice(perceptrons)))
            for _ in range(depth)
        )
        return BERTArch(hidden, tuple(layers))

    def neighbours(self, arch: BERTArch) -> Iterator[BERTArch]:
        """Yield the archs that differ from this one in the width of a token, in one layer, or by two layers at the end.

        A layer differs in its operation, its heads or its perceptron.
        """
        return chain(*self._changes(arch))

    def mutate(self, arch: BERTArch, rng: random.Random) -> BERTArch:
        """Change one choice, drawn uniformly: the width, the number of layers, or one of those of a layer.

        It is not drawn from all `neighbours` alike, since most of these are the many ways to add two layers.
        """
        return rng.choice(list(rng.choice(self._changes(arch))))

    def _changes(self, arch: BERTArch) -> list[Iterator[BERTArch]]:
        """List, for each choice, the archs that differ in it."""
        choices = [self._with_other_width(arch), self._with_other_depth(arch)]
        for idx, layer in enumerate(arch.layers):
            ops = [replace(layer, op=op) for op in self.ops if op != layer.op]
            heads = [replace(layer, heads=heads) for heads in NUM_HEADS if heads != layer.heads]
            widths = [replace(layer, widths=own) for own in self._widths(arch.hidden) if own != layer.widths]
            choices += [_with_layer(arch, idx, others) for others in (ops, heads, widths) if others]
        return choices

    def _with_other_width(self, arch: BERTArch) -> Iterator[BERTArch]:
        own = self._widths(arch.hidden)
        for hidden in HIDDEN_SIZES:
            if hidden != arch.hidden:
                widths = dict(zip(own, self._widths(hidden), strict=True))
                yield BERTArch(hidden, tuple(replace(layer, widths=widths[layer.widths]) for layer in arch.layers))

    def _with_other_depth(self, arch: BERTArch) -> Iterator[BERTArch]:
        fewest, most = NUM_LAYERS
        if len(arch.layers) == most:
            yield replace(arch, layers=arch.layers[:fewest])
        else:
            for added in product(self._layers(arch.hidden), repeat=most - fewest):
                yield replace(arch, layers=(*arch.layers, *added))

    def suggest(self, trial: Trial) -> BERTArch:
        """Let an Optuna trial choose ``hidden``, ``num_layers``, and the choices of each layer.

        For the first layer, these are ``layer_0_op``, ``layer_0_heads``, ``layer_0_num_hidden`` and ``layer_0_width``,
        the width of the last hidden layer.
        """
        hidden = trial.suggest_categorical("hidden", HIDDEN_SIZES)
        perceptrons, layers = self.perceptrons(hidden), []
        for idx in range(trial.suggest_categorical("num_layers", NUM_LAYERS)):
            op = trial.suggest_categorical(f"layer_{idx}_op", self.ops)
            heads = trial.suggest_categorical(f"layer_{idx}_heads", NUM_HEADS)
            widths = perceptrons[trial.suggest_categorical(f"layer_{idx}_num_hidden", _NUM_HIDDEN)]
            if len(widths) > 1:
                last = trial.suggest_categorical(f"layer_{idx}_width", [own[-1] for own in widths])
                widths = tuple(own for own in widths if own[-1] == last)
            layers.append(BERTLayer(op, heads, widths[0]))
        return BERTArch(hidden, tuple(layers))

    def depth(self, arch: BERTArch) -> int:
        """Count the linear layers and the convolutions."""
        num_in_op = {"sdp": 3, "wma": 4, "dft": 1, "dct": 1, "dsc5.": 7, "dsc9.": 7}
        total = 1 + (arch.hidden != _EMBEDDING)  # of the classes, and behind the embeddings
        return total + sum(num_in_op[layer.op] + 1 + len(layer.widths) + 1 for layer in arch.layers)

    def params(self, arch: BERTArch, *, num_classes: int = 10, in_channels: int = 3) -> int:
        """Count the parameters of the built network, exactly; 3,972,864 of them are those of the embeddings."""
        width = arch.hidden
        total = (_VOCAB_SIZE + _MAX_TOKENS + _NUM_SEGMENTS + 2) * _EMBEDDING  # 2: their layer norm
        total += (_EMBEDDING + 1) * width if width != _EMBEDDING else 0
        for layer in arch.layers:
            total += _params_of_op(layer, width) + (width + 1) * width + 2 * 2 * width
            total += sum((before + 1) * after for before, after in pairwise((width, *layer.widths, width)))
        return total + (width + 1) * num_classes

    def macs(self, arch: BERTArch, resolution: int = 128, *, num_classes: int = 10, in_channels: int = 3) -> int:
        """Count the multiply-accumulate operations of the built network.

        The count is exact, except that the transforms of ``dft`` and ``dct`` are estimated.

        Args:
            arch: Arch of this space.
            resolution: Number of tokens of a text; the benchmark's have 128.
            num_classes: As for `build`.
            in_channels: Has no effect.

        Returns:
            Operations of the linear layers, the convolutions, the matrix products of the attention and the Fourier
            transforms, per text (1 MAC = 2 FLOPs).

        Raises:
            ValueError: If networks do not take texts of this length.
        """
        if not 1 <= resolution <= _MAX_TOKENS:
            raise ValueError(
                f"Invalid resolution={resolution}: expected 1 to {_MAX_TOKENS}, the number of tokens of a text."
            )
        width = arch.hidden
        total = resolution * _EMBEDDING * width if width != _EMBEDDING else 0.0
        for layer in arch.layers:
            total += _macs_of_op(layer, width, resolution) + resolution * width**2
            total += resolution * sum(before * after for before, after in pairwise((width, *layer.widths, width)))
        return round(total) + width * num_classes

    def build(self, arch: BERTArch, num_classes: int = 10, in_channels: int = 3) -> "TextTransformer":
        """Build the network of an arch, on the CPU, with fresh weights.

        Args:
            arch: Arch of this space.
            num_classes: Number of logits.
            in_channels: Has no effect.

        Returns:
            A network that maps token ids ``[N, T]`` to logits ``[N, num_classes]``.
        """
        return TextTransformer(arch, num_classes)

    def blocks(self, arch: BERTArch) -> tuple[str, ...]:
        """List the names of the operation and the perceptron of each layer, with shortcuts, in order of execution."""
        return tuple(f"layers.{idx}.{part}" for idx in range(len(arch.layers)) for part in ("attention", "mlp"))


@register_space("nas_bench_bert")
class NASBenchBERT(BERTSpace):
    """The 2,664 BERTs of NAS-Bench-BERT as they were trained; see `BERTSpace`.

    The benchmark names six operations, and hidden layers of 512 or 1024 (`NASBenchBERTNamed`). Its training code,
    however, made scaled dot-product attention of all operations, and the first hidden layer four times as wide as a
    token. The published accuracies belong to these networks.

    Example:
        >>> space = NASBenchBERT()
        >>> arch = space.sample(random.Random(1))
        >>> print(arch)
        bert-128-2-sdp2:512+1024+1024-sdp4:512
        >>> space.params(arch, num_classes=2), space.macs(arch, 128, num_classes=2)
        (6010114, 268435712)

    Source:
        Serianni & Kalita, ACL 2023, arXiv:2306.00288; aaronserianni/training-free-nas, ``tensorflow-model``, whose
        weights are cut off at two standard deviations; ours are not.
    """

    ops = ("sdp",)

    def perceptrons(self, hidden: int) -> Perceptrons:
        """List the choices of a perceptron: the widths of its hidden layers, by their number.

        Args:
            hidden: Width of a token.
        """
        return {1: ((4 * hidden,),), 3: tuple((4 * hidden, width, width) for width in WIDTHS)}


@register_space("nas_bench_bert_named")
class NASBenchBERTNamed(BERTSpace):
    """The 10,621,440 BERTs of NAS-Bench-BERT as the benchmark names them, which were not trained; see `BERTSpace`.

    They belong to the space of FlexiBERT. Use `NASBenchBERT` with the accuracies of the benchmark. Padding is masked in
    attention only; transforms and convolutions mix it in.

    Example:
        >>> space = NASBenchBERTNamed()
        >>> print(space.sample(random.Random(1)))
        bert-128-2-dft2:1024+1024+1024-dct4:512

    Source:
        Serianni & Kalita, ACL 2023, arXiv:2306.00288; aaronserianni/training-free-nas, ``modeling_electra.py``. That
        code leaves out the linear layer, the shortcut and the layer norm around ``dft`` and ``dct``; ours does not.
    """

    ops = OPS

    def perceptrons(self, hidden: int) -> Perceptrons:
        """List the choices of a perceptron: the widths of its hidden layers, by their number.

        Args:
            hidden: Width of a token, which they do not depend on.
        """
        return {num: tuple((width,) * num for width in WIDTHS) for num in _NUM_HIDDEN}


class TextTransformer(nn.Module):
    """A BERT that classifies texts by their first token.

    Args:
        arch: Arch of the network.
        num_classes: Number of logits.
    """

    def __init__(self, arch: BERTArch, num_classes: int) -> None:
        super().__init__()
        self.words = nn.Embedding(_VOCAB_SIZE, _EMBEDDING, padding_idx=0)
        self.positions = nn.Embedding(_MAX_TOKENS, _EMBEDDING)
        self.segments = nn.Embedding(_NUM_SEGMENTS, _EMBEDDING)
        self.norm = nn.LayerNorm(_EMBEDDING, eps=_EPS)
        self.dropout = nn.Dropout(_DROPOUT)
        self.widening = nn.Identity() if arch.hidden == _EMBEDDING else nn.Linear(_EMBEDDING, arch.hidden)
        self.layers = nn.ModuleList(Layer(layer, arch.hidden) for layer in arch.layers)
        self.head = nn.Sequential(nn.Dropout(_DROPOUT), nn.Linear(arch.hidden, num_classes))
        self._draw_weights()

    def _draw_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding | nn.Conv1d):
                nn.init.normal_(module.weight, std=_STD)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            self.words.weight[0].zero_()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Map texts to logits ``[N, K]``.

        Args:
            input_ids: Token ids, ``[N, T]``.
            attention_mask: 0 where a token is padding, ``[N, T]``; None if none is.
            token_type_ids: The segment of each token, 0 or 1, ``[N, T]``; None if all are 0.

        Raises:
            ValueError: If the texts are empty or too long.
        """
        length = input_ids.shape[1]
        if not 1 <= length <= _MAX_TOKENS:
            raise ValueError(f"The texts have {length} tokens: expected 1 to {_MAX_TOKENS}. Cut longer texts.")
        segments = self.segments(torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids)
        embedded = self.words(input_ids) + segments + self.positions.weight[:length]
        x = self.widening(self.dropout(self.norm(embedded)))  # [N, T, E]
        is_padding = None if attention_mask is None else attention_mask[:, None, None] == 0  # [N, 1, 1, T]
        for layer in self.layers:
            x = layer(x, is_padding)
        return self.head(x[:, 0])


class Layer(nn.Module):
    """A layer: an operation that mixes the tokens, and a perceptron.

    Args:
        layer: What it consists of.
        width: Width of a token.
    """

    def __init__(self, layer: BERTLayer, width: int) -> None:
        super().__init__()
        self.attention = Mixing(_build_op(layer, width), width)
        self.mlp = MLP(width, layer.widths)

    def forward(self, x: Tensor, is_padding: Tensor | None) -> Tensor:
        """Map ``[N, T, E]`` to the same shape."""
        return self.mlp(self.attention(x, is_padding))


class Mixing(nn.Module):
    """An operation and a linear layer, beside a shortcut and before a layer norm.

    Args:
        op: Mixes the tokens.
        width: Width of a token.
    """

    def __init__(self, op: nn.Module, width: int) -> None:
        super().__init__()
        self.op = op
        self.projection = nn.Linear(width, width)
        self.dropout = nn.Dropout(_DROPOUT)
        self.norm = nn.LayerNorm(width, eps=_EPS)

    def forward(self, x: Tensor, is_padding: Tensor | None = None) -> Tensor:
        """Map ``[N, T, E]`` to the same shape."""
        return self.norm(x + self.dropout(self.projection(self.op(x, is_padding))))


class MLP(nn.Module):
    """A perceptron, beside a shortcut and before a layer norm.

    Args:
        width: Width of a token.
        widths: Widths of the hidden layers.
    """

    def __init__(self, width: int, widths: Sequence[int]) -> None:
        super().__init__()
        hidden = [(nn.Linear(before, after), nn.GELU()) for before, after in pairwise((width, *widths))]
        self.body = nn.Sequential(*chain(*hidden), nn.Linear(widths[-1], width), nn.Dropout(_DROPOUT))
        self.norm = nn.LayerNorm(width, eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, T, E]`` to the same shape."""
        return self.norm(x + self.body(x))


class SelfAttention(nn.Module):
    """Scaled dot-product attention.

    Args:
        width: Width of a token.
        attended: Width of all heads together.
        heads: Number of heads.
        is_weighted: Whether queries go through one more matrix.
    """

    def __init__(self, width: int, attended: int, heads: int, *, is_weighted: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, attended)
        self.key = nn.Linear(width, attended)
        self.value = nn.Linear(width, attended)
        self.weight = nn.Linear(attended, attended, bias=False) if is_weighted else nn.Identity()
        self.dropout = nn.Dropout(_DROPOUT)

    def forward(self, x: Tensor, is_padding: Tensor | None = None) -> Tensor:
        """Map ``[N, T, E]`` to the width of all heads."""
        return self.attend(self.weight(self.query(x)), x, is_padding)

    def attend(self, queries: Tensor, x: Tensor, is_padding: Tensor | None) -> Tensor:
        """Attend to ``[N, T, E]`` with these queries, as wide as all heads."""
        queries, keys, values = (_split(part, self.heads) for part in (queries, self.key(x), self.value(x)))
        scores = queries @ keys.transpose(2, 3) / queries.shape[-1] ** 0.5  # [N, heads, T, T]
        if is_padding is not None:
            scores = scores.masked_fill(is_padding, torch.finfo(scores.dtype).min)
        return _merged(self.dropout(scores.softmax(dim=-1)) @ values)


class Transform(nn.Module):
    """A linear layer, and a transform over the positions and over the channels of each head.

    Args:
        width: Width of a token.
        heads: Number of heads.
        kind: ``"dft"``: the real part of the Fourier transform; ``"dct"``: the cosine transform.
    """

    def __init__(self, width: int, heads: int, kind: str) -> None:
        super().__init__()
        self.heads, self.kind = heads, kind
        self.value = nn.Linear(width, width)

    def forward(self, x: Tensor, is_padding: Tensor | None = None) -> Tensor:
        """Map ``[N, T, E]`` to the same shape, padding included."""
        values = _split(self.value(x), self.heads)  # [N, heads, T, E / heads]
        if self.kind == "dft":
            return _merged(torch.fft.fft2(values).real)
        return _merged(cosine_transform(cosine_transform(values).transpose(2, 3)).transpose(2, 3))


class SpanConvolution(nn.Module):
    """Attention in half of the heads, and in the others a convolution whose kernel depends on the text around it.

    Args:
        width: Width of a token.
        heads: Number of heads, of both kinds together.
        kernel: Kernel size of the convolution.

    Source:
        Jiang et al., *ConvBERT*, NeurIPS 2020, arXiv:2008.02496.
    """

    def __init__(self, width: int, heads: int, kernel: int) -> None:
        super().__init__()
        half, self.heads, self.kernel = width // 2, heads // 2, kernel
        self.attention = SelfAttention(width, half, self.heads)
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width, bias=False)
        self.pointwise = nn.Conv1d(width, half, 1, bias=False)
        self.bias = nn.Parameter(torch.zeros(half, 1))
        self.weighing = nn.Linear(half, self.heads * kernel)
        self.value = nn.Linear(width, half)

    def forward(self, x: Tensor, is_padding: Tensor | None = None) -> Tensor:
        """Map ``[N, T, E]`` to the same shape."""
        spans = (self.pointwise(self.depthwise(x.transpose(1, 2))) + self.bias).transpose(1, 2)  # [N, T, E / 2]
        queries = self.attention.query(x)
        weights = self.weighing(spans * queries)
        weights = weights.unflatten(2, (self.heads, self.kernel)).softmax(dim=-1)  # [N, T, heads, kernel]
        around = F.pad(self.value(x), (0, 0, self.kernel // 2, self.kernel // 2)).unfold(1, self.kernel, 1)
        windows = around.unflatten(2, (self.heads, -1))  # [N, T, heads, channels of a head, kernel]
        convolved = (windows @ weights[..., None]).flatten(2)  # [N, T, E / 2]
        return torch.cat([self.attention.attend(queries, x, is_padding), convolved], dim=2)


def cosine_transform(x: Tensor) -> Tensor:
    r"""Transform the last dimension: the cosine transform of type II, without a norm.

    .. math::
        y_k = 2 \sum_i x_i \cos \frac{\pi k (2 i + 1)}{2 n}

    Source:
        Makhoul, 1980: from a Fourier transform of the even elements followed by the odd ones backwards.
    """
    reordered = torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], dim=-1)
    transformed = torch.fft.fft(reordered)
    angles = torch.arange(x.shape[-1], dtype=x.dtype, device=x.device) * (pi / (2 * x.shape[-1]))
    return 2 * (transformed.real * angles.cos() + transformed.imag * angles.sin())


def _build_op(layer: BERTLayer, width: int) -> nn.Module:
    if layer.op in _KERNELS:
        return SpanConvolution(width, layer.heads, _KERNELS[layer.op])
    if layer.op in _MACS_PER_FOURIER:
        return Transform(width, layer.heads, layer.op)
    return SelfAttention(width, width, layer.heads, is_weighted=layer.op == "wma")


def _params_of_op(layer: BERTLayer, width: int) -> int:
    if layer.op in _MACS_PER_FOURIER:
        return (width + 1) * width
    if layer.op in _KERNELS:
        half, kernel = width // 2, _KERNELS[layer.op]
        weighing = (half + 1) * kernel * layer.heads // 2
        return 4 * (width + 1) * half + width * kernel + width * half + half + weighing
    return 3 * (width + 1) * width + (width**2 if layer.op == "wma" else 0)


def _macs_of_op(layer: BERTLayer, width: int, num_tokens: int) -> float:
    if layer.op in _MACS_PER_FOURIER:
        lengths = log2(num_tokens) + log2(width // layer.heads)
        return num_tokens * width**2 + _MACS_PER_FOURIER[layer.op] * num_tokens * width * lengths
    if layer.op in _KERNELS:
        half, kernel = width // 2, _KERNELS[layer.op]
        per_token = 4 * width * half + width * kernel + width * half + half * kernel * layer.heads // 2 + half * kernel
        return num_tokens * per_token + 2 * num_tokens**2 * half
    return num_tokens * (4 if layer.op == "wma" else 3) * width**2 + 2 * num_tokens**2 * width


def _with_layer(arch: BERTArch, idx: int, others: Iterable[BERTLayer]) -> Iterator[BERTArch]:
    return (replace(arch, layers=(*arch.layers[:idx], other, *arch.layers[idx + 1 :])) for other in others)


def _read_widths(reader: Reader, choices: Sequence[tuple[int, ...]], follower: str) -> tuple[int, ...]:
    """Read the widths of a perceptron.

    Args:
        reader: Where they start.
        choices: The possible ones.
        follower: What comes after them; empty for the end of the text.
    """
    widths: tuple[int, ...] = ()
    while True:
        left = [own[len(widths) :] for own in choices if own[: len(widths)] == widths]
        following = reader.text[reader.position : reader.position + 1]
        if () in left:
            if following == follower or not any(left):
                return widths
            if following != "+":
                needed = repr(follower) if follower else "the end"
                raise ArchSyntaxError(reader.text, reader.position, f"'+' or {needed}")
        if widths:
            reader.token(["+"])
        nexts = dict.fromkeys(str(own[0]) for own in left if own)
        widths = (*widths, int(reader.token(list(nexts))))


def _split(x: Tensor, heads: int) -> Tensor:
    """Map ``[N, T, E]`` to ``[N, heads, T, E / heads]``."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def _merged(x: Tensor) -> Tensor:
    """Map ``[N, heads, T, E / heads]`` to ``[N, T, E]``."""
    return x.transpose(1, 2).flatten(2)


def _joined(widths: Iterable[int]) -> str:
    return "+".join(map(str, widths))


def _listed(choices: Iterable[object]) -> str:
    return " or ".join(map(str, choices))
