"""Budget: limits on what a candidate may cost."""

from dataclasses import dataclass, fields

from lightning_zico.engine.probe import Probe


@dataclass(frozen=True)
class Budget:
    """Limits on cost; a candidate above one of them is dropped before it is scored.

    Args:
        macs: Most multiply-accumulate operations of a forward pass, per sample (1 MAC = 2 FLOPs).
        params: Most parameters.
        depth: Most linear and convolutional layers.

    Raises:
        ValueError: If a limit is not positive.

    Example:
        >>> Budget(macs=600e6)
        Budget(macs=600000000.0, params=None, depth=None)
    """

    macs: float | None = None
    params: float | None = None
    depth: float | None = None

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            if value is not None and not (isinstance(value, int | float) and value > 0):
                raise ValueError(f"`Budget({limit.name}={value!r})`: needed is a positive limit, or None for no limit.")

    def excess(self, probe: Probe) -> str | None:
        """Say by how much a candidate exceeds the first limit that it exceeds; None if it keeps them all.

        What costs little to know is asked first, and what has no limit is not asked.
        """
        measured = {
            "params": lambda: probe.params,
            "depth": lambda: len(probe.layers),
            "macs": lambda: probe.macs.macs,
        }
        for name, measure in measured.items():
            limit = getattr(self, name)
            if limit is not None:
                cost = measure()
                if cost > limit:
                    return f"over budget: {cost:,} {name}, {cost / limit:.2f} times the limit of {limit:,.0f}"
        return None
