"""Layers: the parts of a module that proxies are computed from."""

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from lightning_zico._typing import Params
from lightning_zico.engine.copies import copies_in
from lightning_zico.engine.reads import names_in, runs_without_gradients
from lightning_zico.engine.tree import holders, parameters, submodules

# The layers whose weights ZiCo scores, as published (there in two dimensions).
WEIGHT_LAYERS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)

# Parameters to use: shell patterns of their names; "published" for the weights of `WEIGHT_LAYERS`; None for all weights
# by which a layer multiplies its input.
Patterns: TypeAlias = Sequence[str] | Literal["published"] | None

# Layers whose weights are looked up or applied entry by entry, and not used in products.
_LOOKED_UP = (nn.Embedding, nn.EmbeddingBag)
_NO_PRODUCTS = (*_LOOKED_UP, nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.PReLU)

# Shell patterns of the weights by which layers multiply their input, by class.
_REGISTERED: dict[type, tuple[str, ...]] = {
    **dict.fromkeys(WEIGHT_LAYERS, ("weight",)),
    nn.Bilinear: ("weight",),
    nn.RNNBase: ("weight_ih_*", "weight_hh_*", "weight_hr_*"),
    nn.RNNCellBase: ("weight_ih", "weight_hh"),
    nn.MultiheadAttention: ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"),
}
_DECLARED: dict[type, tuple[str, ...]] = {}  # by `register_layer`


def register_layer(cls: type[nn.Module], *weight_names: str) -> None:
    """Declare which parameters of a class of modules are weights of layers.

    Most classes need no declaration: the weights of matrix products, convolutions and similar operators are found by
    running the module once. Declare a class if that run cannot see its product, as inside an extension written in C++,
    or to avoid the run. Call this where the class is defined, so that worker processes know it as well.

    Args:
        cls: The class; its subclasses are included.
        weight_names: Names, or shell patterns, of its own parameters, such as ``"weight"``. The first dimension of such
            a parameter counts the outputs. Pass no names for a class without such weights.

    Raises:
        TypeError: If ``cls`` is not a class of modules, or a name is not a string.

    Example:
        >>> class Scaled(nn.Module):
        ...     def __init__(self) -> None:
        ...         super().__init__()
        ...         self.kernel = nn.Parameter(torch.ones(2, 3))
        >>> register_layer(Scaled, "kernel")
        >>> list(known_layers(nn.Sequential(Scaled())))
        ['0.kernel']
    """
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise TypeError(f"Invalid cls={cls!r}: expected a subclass of `torch.nn.Module`.")
    for name in weight_names:
        if not isinstance(name, str):
            raise TypeError(f"Invalid weight name {name!r}: expected the name of a parameter, such as 'weight'.")
    _DECLARED[cls] = weight_names


def declared_layers() -> tuple[tuple[str, tuple[str, ...]], ...]:
    """List the declarations made by `register_layer`, sorted by the names of the classes."""
    return tuple(sorted((f"{cls.__module__}.{cls.__qualname__}", names) for cls, names in _DECLARED.items()))


@dataclass(frozen=True)
class Layer:
    """The weight of one layer: a parameter, or some rows of one.

    Args:
        name: Name of the parameter; if it is split, with the part in brackets: ``"attention.in_proj_weight[q]"``.
        parameter: Name of the parameter.
        rows: First row and the row after the last one, if the layer is only a part of the parameter.
        fan_in: Number of entries from which each output is computed; None for the entries of one row.
    """

    name: str
    parameter: str
    rows: tuple[int, int] | None = None
    fan_in: int | None = None

    @property
    def weight(self) -> str:
        """Name of the layer's weight; for a parametrised weight, the name of the weight computed from the parameter."""
        return f"{weight_name(self.parameter)}{self.name.removeprefix(self.parameter)}"

    def of(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """Cut the layer's part out of a tensor shaped like the parameter, with its rows in dimension ``dim``.

        A complex tensor becomes real, ``[*, 2]``, since a complex weight is trained as two real ones.
        """
        if self.rows is not None:
            tensor = tensor.narrow(dim, self.rows[0], self.rows[1] - self.rows[0])
        return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


@dataclass(frozen=True)
class Layers(Mapping[str, Layer]):
    """The layers of a module by name, in the order of its parameters.

    Args:
        by_name: The layers.
        unknown: Trainable parameters of two or more dimensions that may be weights of layers, which their classes do
            not show.
        twins: Pairs of submodules that are copies of each other, of which one may not be trained.
        copies: Untrained submodules that are copies of others.
        looked_up: Trainable weights of embeddings.
        is_read: Whether code of the module may use such a weight for more than look-ups.
    """

    by_name: Mapping[str, Layer]
    unknown: Sequence[str] = ()
    twins: Sequence[tuple[str, str]] = ()
    copies: Set[str] = field(default_factory=frozenset)
    looked_up: Sequence[str] = ()
    is_read: bool = False

    def __getitem__(self, name: str) -> Layer:
        return self.by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_name)

    def __len__(self) -> int:
        return len(self.by_name)

    @property
    def needs_run(self) -> bool:
        """Whether the classes of submodules do not show all layers, see `with_run`."""
        return bool(self.unknown or self.twins or self.is_read)

    @property
    def weights(self) -> dict[str, list[str]]:
        """Names of the layers by their weight, which may be computed from several of them, as in weight norm."""
        groups: dict[str, list[str]] = {}
        for name, layer in self.items():
            groups.setdefault(layer.weight, []).append(name)
        return groups

    @property
    def parameters(self) -> list[str]:
        """Names of the parameters that the layers are made of, each once."""
        return list(dict.fromkeys(layer.parameter for layer in self.values()))

    def split(self, tensors: Params, dim: int = 0) -> Params:
        """Split tensors that are shaped like parameters into those of layers, without copies.

        Args:
            tensors: By parameter, ``[..., *]``.
            dim: Position of the parameters' first dimension.
        """
        return {name: layer.of(tensors[layer.parameter], dim) for name, layer in self.items()}

    def with_run(
        self,
        module: nn.Module,
        products: Set[str],
        fan_ins: Mapping[str, int],
        reached: Set[str] | None,
        is_fixed: bool = False,
    ) -> "Layers":
        """Complete the layers by the results of a run of the module, see `flow.DataFlow`.

        If every run takes the same path, layers that the loss does not depend on are left out. Otherwise another batch
        may reach them, such as an expert to which no sample of this batch was sent.
        """
        named = parameters(module)
        copies = set(self.copies)
        if reached is not None:
            # by identity, since one parameter may be in several submodules
            trained = {id(named[name]) for name in reached}
            for pair in self.twins:
                parts = [module.get_submodule(name) for name in pair]
                idle = [not any(id(p) in trained for p in part.parameters()) for part in parts]
                if any(idle) and not all(idle):
                    copies.add(pair[idle.index(True)])
        copied = {id(p) for copy in copies - set(self.copies) for p in module.get_submodule(copy).parameters()}
        idle_names = set(named) - set(reached) if reached and is_fixed else set()
        by_parameter: dict[str, list[Layer]] = {}
        for layer in self.values():
            by_parameter.setdefault(layer.parameter, []).append(layer)
        for name in (*self.unknown, *self.looked_up):
            if name in products:
                by_parameter[name] = [Layer(name, name, fan_in=fan_ins.get(name))]
        ordered = (
            layer
            for name, parameter in named.items()
            for layer in by_parameter.get(name, ())
            if not (id(parameter) in copied or name in idle_names)
        )
        by_name = {layer.name: layer for layer in ordered}
        return Layers(by_name, copies=frozenset(copies))


def known_layers(module: nn.Module, step: Callable[..., object] | None = None) -> Layers:
    """Find the layers that are known by the classes of submodules.

    These are linear, bilinear and convolutional layers, recurrent ones and attention; the input projection of
    ``nn.MultiheadAttention`` is three layers, for queries, keys and values. If a weight is parametrised, normalised or
    pruned, the parameters from which it is computed are listed instead. Frozen weights are left out.

    Args:
        module: Any module.
        step: ``(module, batch, batch_idx) -> loss``. Its code is read as well as that of the module.

    Returns:
        Names as in ``module.named_parameters()``: a weight that two layers share is listed once, under its first name.

    Example:
        >>> list(known_layers(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))))
        ['0.weight', '3.weight']
    """
    parts = submodules(module)
    trainable = {name: parameter for name, parameter in parameters(module).items() if parameter.requires_grad}
    weights, others = _classified(parts.values())
    layers = [layer for name, p in trainable.items() if id(p) in weights for layer in _parts(name, p, weights[id(p)])]
    told = weights.keys() | others
    unknown = [name for name, p in trainable.items() if id(p) not in told and _may_multiply(p)]
    copies, twins = copies_in(module, cache(lambda: runs_without_gradients(module, step)))
    embedded = {id(part.weight) for part in parts.values() if isinstance(part, _LOOKED_UP)}
    looked_up = [name for name, p in trainable.items() if id(p) in embedded - weights.keys()]
    is_read = bool(looked_up) and "weight" in names_in(module, step)
    return Layers({layer.name: layer for layer in layers}, unknown, twins, copies, looked_up, is_read)


def _may_multiply(parameter: nn.Parameter) -> bool:
    """Whether a parameter may be a matrix, unlike tokens and positions, ``[1, T, D]``, which are joined or added."""
    return is_lazy(parameter) or parameter.ndim == 2 or (parameter.ndim > 2 and parameter.shape[0] > 1)


def published_layers(module: nn.Module) -> Layers:
    """Find the layers that ZiCo scores as published: the trainable weights of `WEIGHT_LAYERS`."""
    weights = {
        id(parameter)
        for part in submodules(module).values()
        if isinstance(part, WEIGHT_LAYERS)
        for parameter in _own_weights(part, _patterns_of(type(part)))
    }
    names = [name for name, p in parameters(module).items() if p.requires_grad and id(p) in weights]
    return Layers({name: Layer(name, name) for name in names})


def matching_layers(module: nn.Module, patterns: Sequence[str]) -> Layers:
    """Find the trainable parameters whose names match a shell pattern, such as ``"*.weight"``; each is one layer."""
    names = [
        name
        for name, parameter in parameters(module).items()
        if parameter.requires_grad and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    ]
    return Layers({name: Layer(name, name) for name in names})


def owned_weights(part: nn.Module) -> list[Tensor]:
    """List the weights by which a module of a known class multiplies its input, including frozen ones."""
    return _own_weights(part, _patterns_of(type(part)))


def parts_of(part: nn.Module, weight: Tensor) -> list[tuple[str, tuple[int, int]]]:
    """Name the parts of a weight that are separate layers, and their rows; empty if the whole weight is one layer."""
    if not isinstance(part, nn.MultiheadAttention) or weight.shape[0] != 3 * part.embed_dim:
        return []
    width = part.embed_dim
    return [(letter, (start * width, (start + 1) * width)) for start, letter in enumerate("qkv")]


def _classified(parts: Iterable[nn.Module]) -> tuple[dict[int, nn.Module], dict[int, nn.Module]]:
    """Find the parameters that are weights of layers and those that are not, with their module, by ``id``."""
    weights: dict[int, nn.Module] = {}
    others: dict[int, nn.Module] = {}
    for part in parts:
        if not part._parameters and "parametrizations" not in part._modules:
            continue
        patterns = _patterns_of(type(part))
        if patterns is not None:
            for parameter in _own_weights(part, patterns):
                weights.setdefault(id(parameter), part)
        if not patterns and (patterns is not None or isinstance(part, _NO_PRODUCTS)):
            others.update((id(parameter), part) for parameter in part._parameters.values() if parameter is not None)
    return weights, others


def _patterns_of(cls: type) -> tuple[str, ...] | None:
    known = (of[base] for base in cls.__mro__ for of in (_DECLARED, _REGISTERED) if base in of)
    return next(known, None)


def _own_weights(part: nn.Module, patterns: tuple[str, ...] | None) -> list[Tensor]:
    if not patterns:
        return []
    own = [(name, parameter) for name, parameter in part._parameters.items() if parameter is not None]
    if "parametrizations" in part._modules:
        own += part._modules["parametrizations"].named_parameters("parametrizations")  # type: ignore[union-attr]
    return [parameter for name, parameter in own if _matches(name, patterns)]


@lru_cache(maxsize=4096)  # a network has hundreds of layers and a dozen names of parameters
def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return bool(_matcher(patterns)(name))


@cache
def _matcher(patterns: tuple[str, ...]) -> Callable[[str], object]:
    """Match the names of weights and of the parameters from which they are computed.

    Examples are "weight"; "parametrizations.weight.original0"; "weight_orig" of the old spectral norm and of pruning;
    "weight_g" and "weight_v" of the old weight norm.
    """
    names = "|".join(fnmatch.translate(pattern).removesuffix(r"\Z").removesuffix(r"\z") for pattern in patterns)
    return re.compile(rf"(?:{names})(?:_orig|_g|_v)?|parametrizations\.(?:{names})\..*").fullmatch


def _parts(name: str, parameter: Tensor, part: nn.Module) -> list[Layer]:
    parts = parts_of(part, parameter)
    return [Layer(f"{name}[{own}]", name, rows) for own, rows in parts] or [Layer(name, name)]


def is_inside(parameter: str, submodule: str) -> bool:
    """Check by their names whether a parameter, or another submodule, is in a submodule."""
    return parameter.startswith(f"{submodule}.")


@dataclass(frozen=True)
class Layout:
    """Positions of layers and submodules in a module, looked up once for all observers.

    Args:
        names: Names of the submodules, by ``id``.
        owned: Names of the layers of each submodule, by ``id``: one if the submodule is a layer, and several if it
            computes more than one, as attention does. A weight that two submodules share belongs to both.
        holding: Ids of the submodules with a layer in them.
    """

    names: Mapping[int, str]
    owned: Mapping[int, Sequence[str]]
    holding: frozenset[int]

    @property
    def layers(self) -> dict[int, str]:
        """Names of the layers of submodules that are a single layer, by ``id`` of the submodule."""
        return {part: names[0] for part, names in self.owned.items() if len(names) == 1}

    @classmethod
    def of(cls, module: nn.Module, layers: Layers | None = None) -> "Layout":
        """Look up a module.

        Args:
            module: Any module.
            layers: Its layers; None for those that are known by the classes of submodules.
        """
        layers = known_layers(module) if layers is None else layers
        owned = owned_layers(module, layers)
        names = {}
        outputs = {}
        parts = submodules(module)
        for name, part in parts.items():
            names[id(part)] = name
            # Weights that a subclass of a linear layer adds, as for a low-rank update, have no output of their own.
            if id(part) in owned:
                is_one = isinstance(part, WEIGHT_LAYERS) or len({weight_name(own) for own in owned[id(part)]}) == 1
                outputs[id(part)] = owned[id(part)][:1] if is_one else owned[id(part)]
        return cls(names, outputs, frozenset(holders(parts.values(), owned)))


def owned_layers(module: nn.Module, layers: Layers) -> dict[int, list[str]]:
    """List the layers whose parameters each submodule owns, by ``id`` of the submodule."""
    by_parameter: dict[str, list[str]] = {}
    for name, layer in layers.items():
        by_parameter.setdefault(layer.parameter, []).append(name)
    names = {id(p): by_parameter[name] for name, p in parameters(module).items() if name in by_parameter}
    owned: dict[int, list[str]] = {}
    for part in submodules(module).values():
        own = list(part._parameters.values())
        if not (own or "parametrizations" in part._modules) or isinstance(part, (ParametrizationList, *_NO_PRODUCTS)):
            continue
        if "parametrizations" in part._modules:
            own += list(part._modules["parametrizations"].parameters())  # type: ignore[union-attr]
        found = [name for parameter in own for name in names.get(id(parameter), ())]
        if found:
            owned[id(part)] = found
    return owned


# The old forms of weight norm, spectral norm and pruning, of "weight" and of the weights of recurrent layers.
_REPARAMETRISED = re.compile(r"(weight(?:_(?:ih|hh|hr)(?:_l\d+)?(?:_reverse)?)?)(?:_orig|_g|_v)$")


def weight_name(layer: str) -> str:
    """Name the weight computed from a layer's parameter if it is normalised or pruned; otherwise name the parameter.

    Example:
        >>> [weight_name(name) for name in ("0.weight_g", "0.parametrizations.weight.original0", "0.weight")]
        ['0.weight', '0.weight', '0.weight']
    """
    if ".parametrizations." in f".{layer}":
        prefix, _, rest = f".{layer}".partition(".parametrizations.")
        return f"{prefix}.{rest.partition('.')[0]}".lstrip(".")
    return _REPARAMETRISED.sub(r"\1", layer)


def weight_in(part: nn.Module, layer: str) -> Tensor:
    """Return the weight by which a submodule multiplies, by the name of its layer."""
    weight: Tensor = getattr(part, weight_name(layer).rpartition(".")[2])
    return weight


def channel_dim(layer: nn.Module, output: Tensor) -> int:
    """Find the channel dimension of a layer's output: the second for a convolution, otherwise the last."""
    if isinstance(layer, WEIGHT_LAYERS):
        return output.ndim - 1 if isinstance(layer, nn.Linear) else 1
    kernels = (p for p in layer._parameters.values() if p is not None and 2 < p.ndim == output.ndim)
    return 1 if any(output.shape[1] == kernel.shape[0] for kernel in kernels) else output.ndim - 1
