"""Blocks: what a network repeats, or the links of its chain."""

from collections.abc import Set
from dataclasses import dataclass

from torch import nn

from lightning_zico.engine.layers import WEIGHT_LAYERS, Layers, is_inside, known_layers, owned_layers
from lightning_zico.engine.tree import holders, submodules


def block_names(module: nn.Module, layers: Layers | None = None) -> list[str]:
    """Find the blocks of a network: what it repeats, or the links of its chain.

    The module is walked down from the root. A submodule with a layer somewhere inside, other than a layer, than an
    untrained copy of another submodule and than a plain container (``Sequential``, ``ModuleList``, ``ModuleDict``), is
    a block if its class stands at least twice among those that are met in this way; what is inside a block is not
    looked at, and what is no block is looked into. Residual blocks, cells of a search space, inverted bottlenecks and
    transformer blocks are found by this. Where nothing is repeated, the longest ``Sequential`` is taken for a chain: a
    link begins with a child that holds a layer and ends before the next one; the block is its last child that does not
    reshape.

    Args:
        module: Any module.
        layers: Its layers; None for those that the classes of its parts tell.

    Returns:
        Names of submodules, in the module's order; fewer than two are none.

    Example:
        >>> block_names(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
        ['1', '2']
    """
    layers = known_layers(module) if layers is None else layers
    walk = _Walk.of(module, layers)
    met = walk.met(module)
    classes = [type(part) for _, part in met]
    # A class that stands once is a stage or a backbone, so the repeated ones may be inside of it.
    while any(classes.count(kind) == 1 for kind in classes):
        met = [
            pair
            for name, part in met
            for pair in ([(name, part)] if classes.count(type(part)) > 1 else walk.met(part, f"{name}."))
        ]
        classes = [type(part) for _, part in met]
    names = [name for name, _ in met]
    return names if len(names) > 1 else walk.links(module)


_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_RESHAPING = (nn.Flatten, nn.Unflatten, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)


@dataclass(frozen=True)
class _Walk:
    """What is known of submodules while blocks are looked for.

    Args:
        holding: Ids of those with a layer in them.
        layers: Ids of those that are a layer themselves.
        copies: Names of untrained copies.
    """

    holding: Set[int]
    layers: Set[int]
    copies: Set[str]

    @classmethod
    def of(cls, module: nn.Module, layers: Layers) -> "_Walk":
        owning = owned_layers(module, layers)
        parts = submodules(module).values()
        owners = {id(part) for part in parts if id(part) in owning or isinstance(part, WEIGHT_LAYERS)}
        holding = holders(parts, owners)
        alone = {
            id(part)
            for part in parts
            if isinstance(part, WEIGHT_LAYERS)
            or (id(part) in owners and not any(id(child) in holding for child in part.children()))
        }
        return cls(holding, alone, layers.copies)

    def met(self, module: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]]:
        found: list[tuple[str, nn.Module]] = []
        for own_name, child in module.named_children():
            name = f"{prefix}{own_name}"
            if id(child) not in self.holding or id(child) in self.layers or name in self.copies:
                continue
            if type(child) in _CONTAINERS:
                found += self.met(child, f"{name}.")
            else:
                found.append((name, child))
        return found

    def links(self, module: nn.Module) -> list[str]:
        chains: list[list[str]] = [[]]
        for prefix, part in submodules(module).items():
            if isinstance(part, nn.Sequential) and not self._is_copied(prefix):
                links: list[str] = []
                for name, child in part.named_children():
                    full = f"{prefix}.{name}" if prefix else name
                    if id(child) in self.holding:
                        links.append(full)
                    elif links and not isinstance(child, _RESHAPING):
                        links[-1] = full
                chains.append(links)
        longest = max(chains, key=len)
        return longest if len(longest) > 1 else []

    def _is_copied(self, name: str) -> bool:
        return any(name == copy or is_inside(name, copy) for copy in self.copies)
