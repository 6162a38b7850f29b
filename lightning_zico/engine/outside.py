"""What a step refers to outside of its module, put back after a run on the meta device."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FunctionType, ModuleType
from typing import Any

from torch import nn

from lightning_zico.engine.scope import MOST_BYTES, is_plain, remembered

_MOST_OBJECTS = 1000
# Their functions keep no tensors of the user's in global variables.
_LIBRARIES = ("torch.", "lightning.", "pytorch_lightning.", "lightning_fabric.", "torchmetrics.", "lightning_zico.")


@contextmanager
def outside_put_back(module: nn.Module, step: Callable[..., Any]) -> Iterator[None]:
    """Put back what a step holds outside of its module, such as a loss function that keeps its weights on a device.

    Looked into are what the step refers to by closures, attributes and arguments that are bound to it, other modules
    among it, and the global variables that it and the methods of the module's own classes name.

    Args:
        module: Put back by `preserved`.
        step: ``(module, batch, batch_idx) -> loss``.
    """
    own = {id(part) for part in module.modules()}
    methods = [
        value
        for kind in {base for part in module.modules() for base in type(part).__mro__}
        if not f"{kind.__module__}.".startswith(_LIBRARIES)
        for value in vars(kind).values()
        if isinstance(value, FunctionType)
    ]
    named = [value for function in methods for value in _globals_of(function)]
    restorers: list[Callable[[], Any]] = []

    def is_open(obj: Any) -> bool:
        if isinstance(obj, FunctionType):
            remember(_globals_of(obj))
        return isinstance(obj, nn.Module) or is_plain(obj)

    def remember(roots: list[Any]) -> None:
        restorers.extend(remembered(roots, is_open=is_open, seen=seen, room=MOST_BYTES, most=_MOST_OBJECTS))

    seen = set(own)
    remember([step, *named])
    try:
        yield
    finally:
        for restore in restorers:
            restore()


def _globals_of(function: FunctionType) -> list[Any]:
    """List the objects in global variables that the code of a function names, unless it belongs to a library."""
    if f"{function.__module__}.".startswith(_LIBRARIES):
        return []
    names = [name for code in _codes(function.__code__) for name in code.co_names]
    values = (function.__globals__[name] for name in names if name in function.__globals__)
    return [value for value in values if not isinstance(value, type | ModuleType)]


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)
