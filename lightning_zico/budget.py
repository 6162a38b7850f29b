"""Budget: limits on what a candidate may cost."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

from lightning_zico.engine.latency import forward_latency, latency_conditions
from lightning_zico.engine.memory import step_bytes
from lightning_zico.engine.probe import Probe
from lightning_zico.engine.samples import WAY_OUT
from lightning_zico.engine.size import MacCount

# What is known of an architecture before its network is built; the other limits are measured on the network.
ARCH_COSTS = ("params", "depth", "macs")


@dataclass(frozen=True)
class Budget:
    """Limits on cost; a candidate above one of them is dropped before it is scored.

    Args:
        macs: Most multiply-accumulate operations of a forward pass, per sample (1 MAC = 2 FLOPs). Where nothing tells
            how many samples a batch has, the limit holds for the whole batch.
        params: Most parameters.
        depth: Most linear and convolutional layers; in a search most layers as the space counts them
            (`SearchSpace.depth`).
        latency_s: Most seconds of a forward pass of the first batch, measured (`engine.latency.forward_latency`): it
            holds for that batch size, this machine and the threads of the process, and another run may decide
            otherwise. The reason of a candidate above it tells batch size and threads.
        memory_bytes: Most bytes that a training step of the first batch holds (`engine.memory.step_bytes`).

    Raises:
        ValueError: If a limit is not positive or not finite.

    Example:
        >>> Budget(macs=600e6, depth=14)
        Budget(macs=600000000.0, params=None, depth=14.0, latency_s=None, memory_bytes=None)
    """

    macs: float | None = None
    params: float | None = None
    depth: float | None = None
    latency_s: float | None = None
    memory_bytes: float | None = None

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            if value is None:
                continue
            # As an upper end, the largest float refuses NaN, infinity and the whole numbers that are no floats.
            if not (isinstance(value, int | float) and 0 < value <= sys.float_info.max):
                raise ValueError(
                    f"`Budget({limit.name}={value!r})`: needed is a limit that is positive and finite, or None for no "
                    "limit."
                )
            # 300 and 300.0 are one limit, and so must be one fingerprint and one study.
            object.__setattr__(self, limit.name, float(value))

    def excess(self, probe: Probe) -> str | None:
        """Say by how much a candidate exceeds the first limit that it exceeds; None if it keeps them all.

        What costs little to know is asked first, and what has no limit is not asked.
        """
        excess = self.exceeded_by({"params": lambda: probe.params, "depth": lambda: len(probe.layers)})
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
        """Say by how much costs exceed the first limit that they exceed; None if they keep all that are named.

        Args:
            costs: By the limit's name, how to find each; asked in this order, and only where there is a limit.

        Example:
            >>> Budget(params=1000).exceeded_by({"params": lambda: 1500})
            'over budget: 1,500 params, 1.50 times the limit of 1,000'
        """
        for name, find in costs.items():
            limit = getattr(self, name)
            if limit is not None:
                cost = find()
                if cost > limit:
                    shown = f"{cost:,}" if isinstance(cost, int) else f"{cost:.4g}"
                    told = f"{limit:,.0f}" if limit >= 1 else f"{limit:.4g}"
                    return f"over budget: {shown} {name}, {cost / limit:.2f} times the limit of {told}"
        return None

    def without_arch_costs(self) -> "Budget | None":
        """Keep the limits that are measured on a network; None if there are none."""
        rest = replace(self, **dict.fromkeys(ARCH_COSTS))
        return None if rest == Budget() else rest


def _macs(count: MacCount) -> int:
    """Operations per sample, or of the whole batch where its samples are unknown: it costs at least as much."""
    count.check_complete()
    return round(count.total) if count.num_samples is None else count.macs
