"""What the code of a module mentions, as far as it can be read off without running it."""

import inspect
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

from torch import nn

# Code of these packages does nothing with a weight that a user's module does not ask for.
_FOREIGN = ("torch.", "lightning.", "pytorch_lightning.")
_ENTRIES = ("forward", "training_step")


def reads_attribute(module: nn.Module, name: str) -> bool:
    """Check whether code that a step may run reads an attribute of that name from anything.

    Looked at are ``forward`` and ``training_step`` of all submodules, functions that submodules keep, and the methods
    and functions that these mention. An attribute that is read in another way, as by ``getattr``, is not found.
    """
    seen: set[tuple[CodeType, type]] = set()
    return any(
        name in _mentions(function, type(part), seen) for part in module.modules() for function in _functions_of(part)
    )


def _functions_of(part: nn.Module) -> Iterator[FunctionType]:
    for entry in _ENTRIES:
        yield from _as_functions(getattr(type(part), entry, None))
    for value in vars(part).values():
        yield from _as_functions(value)


def _as_functions(value: Any) -> Iterator[FunctionType]:
    value = inspect.unwrap(value) if callable(value) else value
    value = getattr(value, "__func__", value)
    if isinstance(value, FunctionType) and not f"{value.__module__}.".startswith(_FOREIGN):
        yield value


def _mentions(function: FunctionType, cls: type, seen: set[tuple[CodeType, type]]) -> set[str]:
    """Collect the names in a function of a class and in what it calls, as far as that was not seen before."""
    found: set[str] = set()
    remaining = [function]
    while remaining:
        now = remaining.pop()
        if (now.__code__, cls) in seen:
            continue
        seen.add((now.__code__, cls))
        names = {name for code in _codes_in(now.__code__) for name in code.co_names}
        found |= names
        for name in names:
            remaining += _as_functions(inspect.getattr_static(cls, name, None))
            remaining += _as_functions(now.__globals__.get(name))
        for cell in now.__closure__ or ():
            try:
                remaining += _as_functions(cell.cell_contents)
            except ValueError:  # not filled yet
                continue
    return found


def _codes_in(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes_in(constant)
