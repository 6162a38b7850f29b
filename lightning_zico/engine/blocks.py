"""Blocks: the parts that a network repeats, or the links of its chain."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass

from torch import nn

from lightning_zico.engine.chain import Call
from lightning_zico.engine.layers import WEIGHT_LAYERS, Layers, is_inside, known_layers, owned_layers
from lightning_zico.engine.tree import holders, submodules


def block_names(module: nn.Module, layers: Layers | None = None, calls: Sequence[Call] = ()) -> list[str]:
    """Find the blocks of a network: the parts that it repeats, or the links of its chain.

    With ``calls``, blocks are found where the data narrows to one tensor, in these steps:

    1. A unit is a submodule with at least two layers that runs once. All data passes through its input and its output,
       and both have the same number of dimensions.
    2. A unit that is a series of other units, such as a stage, is replaced by them. A unit is a series if several units
       are in the same container within it (``Sequential``, ``ModuleList``, ``ModuleDict``), or if all its own parts are
       units of one class. A plain ``Sequential`` is also one if a unit holds most of its layers, or if it holds several
       cells.
    3. Units are blocks if there are several in one container, or several of one class in one submodule. So are other
       units of the same class, or in the same container at any level. A stem without siblings is not a block.
    4. Modules beside blocks in a container are blocks as well if they are identities, or if they have parts of their
       own and blocks have no part of their class.

    If such blocks hold less than half of the layers, units of one layer are tried in the same way.

    If this finds nothing, as in networks with skip connections from one end to the other, classes are used. The module
    is walked from the root. Layers, untrained copies of other submodules and submodules without a layer are skipped,
    and plain containers are entered. A submodule is a block if its class is met at least twice in this way. Blocks are
    not entered; other submodules are. If nothing is repeated, the longest ``Sequential`` is taken as a chain: a link
    begins with a child that holds a layer and ends before the next one, and the block is its last child that does not
    reshape.

    Args:
        module: Any module.
        layers: Its layers; None for those that are known by the classes of submodules.
        calls: Calls of a run of the module, see `chain.Chain`; empty if it has not run.

    Returns:
        Names of submodules, in the order of the calls if there are any, else of the module; empty if there are fewer
        than two blocks.

    Example:
        >>> block_names(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
        ['1', '2']
    """
    layers = known_layers(module) if layers is None else layers
    walk = _Walk.of(module, layers)
    for least in (2, 1) if calls else ():
        if names := _Chain(module, walk, calls, least).names():
            return names
    met = walk.met(module)
    classes = [type(part) for _, part in met]
    # A class that is met once is a stage or a backbone, so the repeated ones may be inside it.
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


class _Chain:
    """Search for blocks among the calls of a run, see `block_names`.

    Args:
        module: The root.
        walk: Known facts about submodules.
        calls: The outermost calls.
        least: Minimum number of layers of a unit.
    """

    def __init__(self, module: nn.Module, walk: "_Walk", calls: Sequence[Call], least: int) -> None:
        self._parts = submodules(module)
        self._roots = calls
        self._calls = [inner for call in calls for inner in call]
        self._counts = Counter(id(call.module) for call in self._calls)
        self._least = least
        self._split: set[type] = set()  # classes of units that were replaced by units within them
        self._layers = {
            id(part): frozenset(id(inner) for inner in part.modules() if id(inner) in walk.layers)
            for part in self._parts.values()
        }

    def names(self) -> list[str]:
        """Name the blocks in the order of their calls; empty if they hold less than half of the layers."""
        kinds = _kinds(self._siblings(self._units_in(self._roots, set()))) - self._split
        units = self._chosen(self._units_in(self._roots, kinds))  # submodules of one class are now treated alike
        blocks = {call.name: call for call in (*units, *self._beside(units))}
        if len(blocks) < 2 or 2 * len(self._layers_of(blocks.values())) < len(self._layers_of(self._roots)):
            return []
        return [call.name for call in self._calls if call.name in blocks]

    def _layers_of(self, calls: Iterable[Call]) -> frozenset[int]:
        return frozenset().union(*(self._layers[id(call.module)] for call in calls))

    def _units_in(self, calls: Sequence[Call], kinds: Set[type]) -> list[Call]:
        return [unit for call in calls for unit in self._units(call, kinds)]

    def _units(self, call: Call, kinds: Set[type]) -> list[Call]:
        """List the units in a call, or the call itself if it is a unit, as all calls of a class in ``kinds`` are."""
        own = self._layers[id(call.module)]
        is_unit = call.is_link and call.keeps_rank and self._runs_once(call) and call.module._modules
        if not is_unit or len(own) < self._least:
            return self._units_in(call.within, kinds)
        if _kind(call) in kinds:
            return [call]
        parts = self._units_in(call.within, kinds)
        if any(_kind(part) in kinds for part in parts) or self._is_stage(call, parts):
            self._split |= _kinds([call])
            return parts
        return [call]

    def _is_stage(self, call: Call, parts: list[Call]) -> bool:
        """Whether a unit is a series of the units within it."""
        own = [part for part in parts if _parent(part) == call.name]
        if not self._is_container(call.name) and len({type(part.module) for part in own}) > 1:
            parts = [part for part in parts if part not in own]  # such as the attention and the MLP of a block
        if self._siblings(parts):
            return True
        alike = Counter(_kind(part) for part in call.within if part.is_link and part.module._modules and _kind(part))
        if _kind(call) is None and max(alike.values(), default=0) > 1:
            return True  # cells, of which some have no layers
        layers = self._layers_of([call])
        is_series = _kind(call) is None and layers == self._layers_of(part for part in call.within if part.is_link)
        return is_series and 2 * len(self._layers_of(parts)) > len(layers)

    def _siblings(self, units: list[Call]) -> list[Call]:
        """Choose units in one container, or of one class in one submodule; if there are none, those of one class."""
        parents = Counter(_parent(unit) for unit in units)
        pairs = Counter((_parent(unit), _kind(unit)) for unit in units)
        classes = Counter(_kind(unit) for unit in units)
        found = [
            unit
            for unit in units
            if (self._is_container(_parent(unit)) and parents[_parent(unit)] > 1)
            or (_kind(unit) and pairs[_parent(unit), _kind(unit)] > 1)
        ]
        return found or [unit for unit in units if _kind(unit) and classes[_kind(unit)] > 1]

    def _chosen(self, units: list[Call]) -> list[Call]:
        """Choose the units that are repeated, in the wide sense of `block_names`."""
        inner = _inner_kinds(units)
        units = [unit for unit in units if _kind(unit) not in inner]
        siblings, parents = self._siblings(units), Counter(_parent(unit) for unit in units)
        kinds, around = _kinds(siblings), {name for unit in siblings for name in self._containers(unit)}
        return [
            unit
            for unit in units
            if (unit in siblings or _kind(unit) in kinds or not around.isdisjoint(self._containers(unit)))
            and not (unit.reads_batch and parents[_parent(unit)] == 1)
        ]

    def _beside(self, units: list[Call]) -> list[Call]:
        """List blocks with few or no layers that are beside units in a container."""
        inner, parents = _inner_kinds(units), {_parent(unit) for unit in units}
        found = [
            call
            for call in self._calls
            if call.is_link
            and not call.reads_batch
            and self._runs_once(call)
            and self._is_container(_parent(call))
            and _parent(call) in parents
            and not any(inner in units for each in call.within for inner in each)
        ]
        classes = Counter(_kind(call) for call in found)
        return [
            call
            for call in found
            if (call.is_identity and not isinstance(call.module, nn.modules.dropout._DropoutNd))
            or (
                call.module._modules
                and _kind(call) not in (None, *inner)  # parts of blocks have such classes, and so may a stem
                and (self._layers[id(call.module)] or classes[_kind(call)] > 1)
            )
        ]

    def _runs_once(self, call: Call) -> bool:
        return self._counts[id(call.module)] == 1

    def _is_container(self, name: str) -> bool:
        return isinstance(self._parts.get(name), _CONTAINERS)

    def _containers(self, call: Call) -> Iterator[str]:
        """List the containers around a call, innermost first, up to the root or the first other module, without it."""
        name = _parent(call)
        while name and self._is_container(name):
            yield name
            name = name.rpartition(".")[0]


def _parent(call: Call) -> str:
    return call.name.rpartition(".")[0]


def _kind(call: Call) -> type | None:
    """Class of a submodule; None for a plain container, whose class says nothing about its role."""
    return None if type(call.module) in _CONTAINERS else type(call.module)


def _kinds(calls: Iterable[Call]) -> set[type]:
    return {kind for kind in map(_kind, calls) if kind}


def _inner_kinds(calls: Iterable[Call]) -> set[type]:
    return {type(part) for call in calls for part in call.module.modules() if part is not call.module}


@dataclass(frozen=True)
class _Walk:
    """Known facts about submodules while blocks are searched for.

    Args:
        holding: Ids of submodules with a layer in them.
        layers: Ids of submodules that are a layer themselves.
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
