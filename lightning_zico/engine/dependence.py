"""Dependence: which tensors of a step are computed from the batch."""

from collections.abc import Mapping
from typing import Any

from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_zico._typing import Batch
from lightning_zico.engine.batches import tensors_of
from lightning_zico.engine.dispatched import key_of, looks_at_shapes, tensors_in, written_by


class Dependence(TorchDispatchMode):
    """Follows the values of a batch through a step; shapes do not count. It can be entered again.

    Args:
        batch: As given to `Probe.forward`.
    """

    supports_higher_order_operators = True

    def __init__(self, batch: Batch) -> None:
        super().__init__()
        self._batch = batch

    def __enter__(self) -> "Dependence":
        """Reset what was found."""
        # Weak references keep the addresses of freed memory from being used again.
        self._dependent: set[StorageWeakRef] = set(map(key_of, tensors_of(self._batch)))
        super().__enter__()
        return self

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        depends = not looks_at_shapes(func) and self.has(*args, *kwargs.values())
        out = func(*args, **kwargs)
        if depends:
            self._dependent.update(map(key_of, [*tensors_in(out), *written_by(func, args, kwargs)]))
        return out

    def has(self, *values: Any) -> bool:
        """Whether a tensor among values, or in lists of them, depends on the batch."""
        return any(key_of(tensor) in self._dependent for tensor in tensors_in(values))
