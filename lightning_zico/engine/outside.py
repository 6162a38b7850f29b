"""What a step refers to outside of its module, put back after a run on the meta device."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from lightning_zico.engine.scope import MOST_BYTES, is_plain, remembered

_MOST_OBJECTS = 1000


@contextmanager
def outside_put_back(module: nn.Module, step: Callable[..., Any]) -> Iterator[None]:
    """Put back what a step holds outside of its module, such as a loss function that keeps its weights on a device.

    Looked into are what the step refers to by closures, attributes and arguments that are bound to it, other modules
    among it. What stands in global variables is not.

    Args:
        module: Put back by `preserved`.
        step: ``(module, batch, batch_idx) -> loss``.
    """

    def is_open(obj: Any) -> bool:
        return isinstance(obj, nn.Module) or is_plain(obj)

    own = {id(part) for part in module.modules()}
    restorers = remembered([step], is_open=is_open, seen=own, room=MOST_BYTES, most=_MOST_OBJECTS)
    try:
        yield
    finally:
        for restore in restorers:
            restore()
