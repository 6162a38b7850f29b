"""Layers and blocks: which parts of a module the formulas speak of."""

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

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


def weight_names(module: nn.Module, patterns: Sequence[str] | None = None) -> list[str]:
    """List the trainable parameters that make up the layers of a module, in the module's order.

    Args:
        module: Any module.
        patterns: Shell patterns of parameter names, such as ``"*.weight"``. None for the ``weight`` of every linear and
            convolutional layer (1d, 2d, 3d, transposed), and what it is computed from where it is parametrised.

    Returns:
        Names as in ``module.named_parameters()``: a weight that two layers share stands once, under its first name.

    Example:
        >>> weight_names(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2)))
        ['0.weight', '3.weight']
    """
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if patterns is not None:
        return [name for name in trainable if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    weights: set[int] = set()
    for layer in module.modules():
        if isinstance(layer, WEIGHT_LAYERS):
            for name, parameter in layer.named_parameters():
                # "weight"; "parametrizations.weight.original0"; "weight_g" and "weight_v" of the old weight_norm
                if name in ("weight", "weight_g", "weight_v") or name.startswith("parametrizations.weight."):
                    weights.add(id(parameter))
    return [name for name, parameter in trainable.items() if id(parameter) in weights]


def layer_weights(module: nn.Module) -> dict[int, str]:
    """Name the weight of each layer, by ``id`` of the layer; a weight that two layers share is both layers'."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    wanted = set(weight_names(module))
    found: dict[int, str] = {}
    for layer in module.modules():
        if isinstance(layer, WEIGHT_LAYERS):
            own = (names[id(parameter)] for parameter in layer.parameters())
            name = next((name for name in own if name in wanted), None)
            if name is not None:
                found[id(layer)] = name
    return found


@dataclass(frozen=True)
class Layout:
    """Where things are in a module, looked up once for all that watch it.

    Args:
        names: Of the submodules, by ``id``.
        layers: See `layer_weights`.
        holding: Ids of the submodules with a layer of these in them.
    """

    names: Mapping[int, str]
    layers: Mapping[int, str]
    holding: frozenset[int]

    @classmethod
    def of(cls, module: nn.Module) -> "Layout":
        """Look a module up."""
        layers = layer_weights(module)
        holding = {id(part) for part in module.modules() if any(id(layer) in layers for layer in part.modules())}
        return cls({id(part): name for name, part in module.named_modules()}, layers, frozenset(holding))


def channel_dim(layer: nn.Module, output: Tensor) -> int:
    """Tell where the channels of a layer's output are: last for a linear layer, second for a convolution."""
    return output.ndim - 1 if isinstance(layer, nn.Linear) else 1


def block_names(module: nn.Module) -> list[str]:
    """Find the blocks of a network: what it repeats, or the links of its chain.

    The module is walked down from the root. A submodule with a linear or convolutional layer somewhere inside, other
    than such a layer and than a plain container (``Sequential``, ``ModuleList``, ``ModuleDict``), is a block if its
    class stands at least twice among those that are met in this way; what is inside a block is not looked at, and what
    is no block is looked into. Residual blocks, cells of a search space, inverted bottlenecks and transformer blocks
    are found by this. Where nothing is repeated, the longest ``Sequential`` is taken for a chain: a link begins with a
    child that holds a layer and ends before the next one; the block is its last child that does not reshape.

    Args:
        module: Any module.

    Returns:
        Names of submodules, in the module's order; fewer than two are none.

    Example:
        >>> block_names(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
        ['1', '2']
    """
    holding = {id(part) for part in module.modules() if any(isinstance(m, WEIGHT_LAYERS) for m in part.modules())}
    met = _met(module, holding)
    classes = [type(part) for _, part in met]
    # A class that stands once is a stage or a backbone, so the repeated ones may be inside of it.
    while any(classes.count(kind) == 1 for kind in classes):
        met = [
            pair
            for name, part in met
            for pair in ([(name, part)] if classes.count(type(part)) > 1 else _met(part, holding, f"{name}."))
        ]
        classes = [type(part) for _, part in met]
    names = [name for name, _ in met]
    return names if len(names) > 1 else _links(module, holding)


_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_RESHAPING = (nn.Flatten, nn.Unflatten, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)


def _met(module: nn.Module, holding: set[int], prefix: str = "") -> list[tuple[str, nn.Module]]:
    found: list[tuple[str, nn.Module]] = []
    for name, child in module.named_children():
        if id(child) not in holding or isinstance(child, WEIGHT_LAYERS):
            continue
        if type(child) in _CONTAINERS:
            found += _met(child, holding, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", child))
    return found


def _links(module: nn.Module, holding: set[int]) -> list[str]:
    chains: list[list[str]] = [[]]
    for prefix, part in module.named_modules():
        if isinstance(part, nn.Sequential):
            links: list[str] = []
            for name, child in part.named_children():
                full = f"{prefix}.{name}" if prefix else name
                if id(child) in holding:
                    links.append(full)
                elif links and not isinstance(child, _RESHAPING):
                    links[-1] = full
            chains.append(links)
    longest = max(chains, key=len)
    return longest if len(longest) > 1 else []
