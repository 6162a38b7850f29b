"""Restore objects outside of a module to which its step refers, after a run on the meta device."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from lightning_zico.engine.interrupts import finally_called
from lightning_zico.engine.reads import globals_in
from lightning_zico.engine.scope import is_plain
from lightning_zico.engine.undo import MOST_BYTES, Remembered

_MOST_OBJECTS = 1000


@contextmanager
def outside_put_back(module: nn.Module, step: Callable[..., Any]) -> Iterator[None]:
    """Restore objects that a step holds outside of its module, such as a loss function with weights on a device.

    These are the objects, including other modules, to which the step refers by closures, attributes and bound
    arguments, and the values of global variables that its code mentions, see `reads.globals_in`.

    Args:
        module: Module of the step, which `preserved` puts back.
        step: ``(module, batch, batch_idx) -> loss``.
    """

    def is_open(obj: Any) -> bool:
        return isinstance(obj, nn.Module) or is_plain(obj)

    outside = Remembered(is_open=is_open, seen=module.modules(), room=MOST_BYTES, most=_MOST_OBJECTS)
    # the last ones are searched first
    outside.take(*globals_in(module, step), step)
    with finally_called(outside.put_back):
        yield
