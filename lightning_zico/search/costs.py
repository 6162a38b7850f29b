"""Costs of archs, and which archs are over the budget, computed from the arch only, without building a network."""

from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache, partial
from typing import Any

from lightning_zico.budget import ARCH_COSTS, Budget
from lightning_zico.errors import UnknownNameError
from lightning_zico.spaces import SearchSpace

# Costs that a search can keep low; the proxy `latency` measures the one that is not known from the arch.
LATENCY = "latency_s"
_COSTS = (*ARCH_COSTS, LATENCY)
# More than the archs of a population and its mutants, which come up repeatedly; each entry is a few numbers.
_NUM_REMEMBERED = 20_000


def check_costs(names: Sequence[str]) -> None:
    """Check the names of costs to keep low.

    Raises:
        UnknownNameError: If there is no such cost.
    """
    if not set(names) <= set(_COSTS):
        raise UnknownNameError(f"Invalid against={list(names)}: expected any of {', '.join(_COSTS)}.")


class ArchCosts:
    """Costs of the archs of a space, for networks of one kind of image.

    Args:
        space: Space of the archs.
        budget: Limits on the costs; those that need a built network are ignored here.
        named: Costs to compute whether or not they are limited.
        resolution: Height and width of an image, in pixels.
        num_classes: Number of logits.
        in_channels: Number of channels of an image.
    """

    def __init__(
        self,
        space: SearchSpace[Any],
        budget: Budget | None,
        named: Sequence[str],
        *,
        resolution: int,
        num_classes: int,
        in_channels: int,
    ) -> None:
        self._budget = budget or Budget()
        shape = {"num_classes": num_classes, "in_channels": in_channels}
        self._find: dict[str, Callable[[Any], int]] = {
            "params": partial(space.params, **shape),
            "depth": space.depth,
            "macs": partial(_macs, space, resolution=resolution, **shape),
        }
        limited = [name for name in ARCH_COSTS if getattr(self._budget, name) is not None]
        # Unlike the two sizes, the depth has a column only if it is limited or requested.
        self.names: tuple[str, ...] = tuple(
            name for name in ARCH_COSTS if name != "depth" or name in (*limited, *named)
        )
        self._cost = lru_cache(_NUM_REMEMBERED)(lambda name, arch: self._find[name](arch))

    def of(self, arch: Hashable) -> dict[str, int]:
        """Return the costs of an arch, by the names that the budget uses."""
        return {name: self._cost(name, arch) for name in self.names}

    def excess(self, arch: Hashable) -> str | None:
        """Return by how much an arch exceeds the budget; None if it is within."""
        return self._budget.exceeded_by({name: partial(self._cost, name, arch) for name in self.names})


def _macs(space: SearchSpace[Any], arch: Any, *, resolution: int, **shape: int) -> int:
    """Count MACs.

    Raises:
        ValueError: If networks of the space cannot take images of this resolution.
    """
    try:
        return space.macs(arch, resolution, **shape)
    except ValueError as error:
        raise ValueError(
            f"{error} MACs are counted at this resolution, which is the side of the images by default: pass "
            "`resolution` (--resolution on the command line), or resize the images."
        ) from error
