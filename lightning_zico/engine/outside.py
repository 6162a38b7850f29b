"""What a step refers to outside of its module, put back after a run on the meta device."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from lightning_zico.engine.reads import globals_in
from lightning_zico.engine.scope import MOST_BYTES, is_plain, remembered

_MOST_OBJECTS = 1000


@contextmanager
def outside_put_back(module: nn.Module, step: Callable[..., Any]) -> Iterator[None]:
    """Put back what a step holds outside of its module, such as a loss function that keeps its weights on a device.

    Looked into are what the step refers to by closures, attributes and arguments that are bound to it, other modules
    among it, and what stands in those global variables that its code mentions, see `reads.globals_in`.

    Args:
        module: Put back by `preserved`.
        step: ``(module, batch, batch_idx) -> loss``.
    """

    def is_open(obj: Any) -> bool:
        return isinstance(obj, nn.Module) or (is_plain(obj) and not _computes(obj))

    own = {id(part) for part in module.modules()}
    # those that come last are looked into first
    roots = [*globals_in(module, step), step]
    restorers = remembered(roots, is_open=is_open, seen=own, room=MOST_BYTES, most=_MOST_OBJECTS)
    try:
        yield
    finally:
        for restore in restorers:
            restore()


def _computes(obj: Any) -> bool:
    """Whether a container is of a class of its own, which may make what it holds when it is read."""
    is_container = isinstance(obj, Mapping | list | tuple | deque | set)
    return is_container and type(obj).__module__ not in ("builtins", "collections", "types")
