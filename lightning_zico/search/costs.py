"""What archs cost, and which are over the budget: known from the arch alone, so that nothing is built for it."""

from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache, partial
from typing import Any

from lightning_zico.budget import ARCH_COSTS, Budget
from lightning_zico.spaces import SearchSpace

# More archs than a population and its mutants that come up again; each entry is a few numbers.
_NUM_REMEMBERED = 20_000


class ArchCosts:
    """Costs of the archs of a space, for networks of one kind of image.

    Args:
        space: That the archs are of.
        budget: Limits on them; those that need a built network are not looked at here.
        named: Costs that are wanted whether or not they are limited.
        resolution: Height and width of an image, in pixels.
        num_classes: Logits.
        in_channels: Of an image.
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
        # Beside the two sizes, the depth has a column only where somebody asks for it.
        self.names = tuple(name for name in ARCH_COSTS if name != "depth" or name in (*limited, *named))
        self._cost = lru_cache(_NUM_REMEMBERED)(lambda name, arch: self._find[name](arch))

    def of(self, arch: Hashable) -> dict[str, int]:
        """Tell what an arch costs, by the budget's words."""
        return {name: self._cost(name, arch) for name in self.names}

    def excess(self, arch: Hashable) -> str | None:
        """Say by how much an arch exceeds the budget; None if it is within."""
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
            f"{error} MACs are counted for it, and it is the side of the images unless you say another: pass "
            "`resolution` (--resolution on the command line), or resize the images."
        ) from error
