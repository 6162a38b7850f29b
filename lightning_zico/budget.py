"""Budget: limits on what a candidate may cost."""

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import TypeAlias

from lightning_zico.engine.latency import forward_latency, latency_conditions
from lightning_zico.engine.memory import step_bytes
from lightning_zico.engine.probe import Probe
from lightning_zico.engine.samples import WAY_OUT
from lightning_zico.engine.size import MacCount
from lightning_zico.errors import number_of

# Costs known before the network is built; the other limits are measured on the network.
ARCH_COSTS = ("params", "depth", "macs")

# Prefix of the reason of a candidate that is above a limit.
OVER_BUDGET = "over budget: "

# A number, or text with a unit: "40M".
Limit: TypeAlias = float | str | None

_UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}
_NUMBER = re.compile(r"\s*([0-9._]+(?:e[+-]?[0-9]+)?)\s*([kmgbt]?)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Budget:
    """Limits on cost; a candidate above any limit is dropped before it is scored.

    A limit may be text with a unit, as on the command line: ``"600k"``, ``"40M"``, ``"2G"`` (or ``"2B"``), ``"1.5e9"``.

    Args:
        macs: Maximum number of multiply-accumulate operations of a forward pass, per sample (1 MAC = 2 FLOPs). If the
            samples of a batch cannot be counted, the limit applies to the whole batch.
        params: Maximum number of parameters.
        depth: Maximum number of linear and convolutional layers; in a search, of layers as the space counts them
            (`SearchSpace.depth`).
        latency_s: Maximum time of a forward pass of the first batch, in seconds, as measured
            (`engine.latency.forward_latency`). It depends on the batch size, the machine and the number of threads, and
            another run may decide differently. The reason of a candidate above it names the batch size and the threads.
        memory_bytes: Maximum number of bytes that a training step of the first batch holds
            (`engine.memory.step_bytes`).

    Raises:
        ValueError: If a limit is not positive or not finite.

    Example:
        >>> Budget(macs="600M", depth=14)
        Budget(macs=600000000.0, params=None, depth=14.0, latency_s=None, memory_bytes=None)
    """

    macs: Limit = None
    params: Limit = None
    depth: Limit = None
    latency_s: Limit = None
    memory_bytes: Limit = None

    def __post_init__(self) -> None:
        for limit in fields(self):
            given = getattr(self, limit.name)
            if given is None:
                continue
            value = _number_in(given) if isinstance(given, str) else number_of(given)
            # The largest float as upper bound excludes NaN, infinity and integers too large for a float.
            if value is None or not 0 < value <= sys.float_info.max:
                raise ValueError(
                    f"Invalid Budget({limit.name}={given!r}): expected a positive, finite number, a text with a "
                    'unit, such as "600k", "40M" or "2G", or None for no limit.'
                )
            # 300 and 300.0 are the same limit and must give the same fingerprint and the same study.
            object.__setattr__(self, limit.name, float(value))

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set, by name."""
        return {limit.name: value for limit in fields(self) if (value := getattr(self, limit.name)) is not None}

    def excess(self, probe: Probe) -> str | None:
        """Return by how much a candidate exceeds the first limit that it exceeds; None if it is within all of them.

        Cheap costs are checked first, and a cost without a limit is not measured.
        """
        excess = self.exceeded_by({"params": lambda: probe.params, "depth": lambda: len(probe.structure.weights)})
        if excess is not None:
            return excess
        excess = self.exceeded_by({"macs": lambda: _macs(probe.macs)})
        if excess is not None:
            is_known = probe.macs.num_samples is not None
            return excess if is_known else f"{excess}, for a whole batch, whose samples cannot be counted. {WAY_OUT}"
        excess = self.exceeded_by({"memory_bytes": lambda: step_bytes(probe)})
        if excess is not None:
            return excess
        excess = self.exceeded_by({"latency_s": lambda: forward_latency(probe)})
        if excess is None:
            return None
        conditions = ", ".join(f"{name} {number}" for name, number in latency_conditions(probe).items())
        return f"{excess}, measured with {conditions}"

    def exceeded_by(self, costs: Mapping[str, Callable[[], float]]) -> str | None:
        """Return by how much costs exceed the first limit that they exceed; None if they are within all limits named.

        Args:
            costs: For each limit's name, a function that returns the cost; called in this order, and only if the limit
                is set.

        Example:
            >>> Budget(params=1000).exceeded_by({"params": lambda: 1500})
            'over budget: 1,500 params, 1.50 times the limit of 1,000'
        """
        for name, find in costs.items():
            limit = self.limits.get(name)
            if limit is not None:
                cost = find()
                if cost > limit:
                    shown = f"{cost:,}" if isinstance(cost, int) else f"{cost:.4g}"
                    told = f"{limit:,.0f}" if limit >= 1 else f"{limit:.4g}"
                    return f"{OVER_BUDGET}{shown} {name}, {cost / limit:.2f} times the limit of {told}"
        return None

    def without_arch_costs(self) -> "Budget | None":
        """Return a budget with only the limits that are measured on a network; None if there are none."""
        rest = replace(self, **dict.fromkeys(ARCH_COSTS))
        return None if rest == Budget() else rest


def _macs(count: MacCount) -> int:
    """Return the operations per sample, or of the whole batch if its samples are unknown: an upper bound."""
    count.check_complete()
    return round(count.total) if count.num_samples is None else count.macs


def _number_in(text: str) -> float | None:
    """Read a number with a unit; None if the text is not one.

    Example:
        >>> _number_in("1.5e9"), _number_in("40 M"), _number_in("2_000"), _number_in("1.2.3"), _number_in("40 MACs")
        (1500000000.0, 40000000.0, 2000.0, None, None)
    """
    found = _NUMBER.fullmatch(text)
    try:
        return float(found[1]) * _UNITS[found[2].upper()] if found else None
    except ValueError:
        return None
