"""Names and globals in the code of a step, found by reading the code without running it."""

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import nn

from lightning_zico.engine.tree import submodules

# Code of these packages uses a weight only as the user's module tells it to.
_FOREIGN = ("torch.", "lightning.", "pytorch_lightning.", "lightning_zico.")
_ENTRIES = ("forward", "training_step")
_WITHOUT_GRADIENTS = frozenset({"no_grad", "inference_mode", "set_grad_enabled", "detach", "detach_", "data"})
_CODE = (FunctionType, BuiltinFunctionType, ModuleType, type)
_DECORATORS = "torch.utils._contextlib"  # where `@torch.no_grad()` wraps a function


def runs_without_gradients(module: nn.Module, step: Callable[..., Any] | None = None) -> bool:
    """Check whether a step may run a part of its module without gradients, such as a momentum encoder."""
    return not _WITHOUT_GRADIENTS.isdisjoint(names_in(module, step))


def names_in(module: nn.Module, step: Callable[..., Any] | None = None) -> set[str]:
    """Collect the names of attributes, functions and globals in code that a step may run.

    This reads ``forward`` and ``training_step`` of all submodules, functions that submodules keep, the step, and the
    methods and functions that these mention. Attributes that are read in another way, as by ``getattr``, are not found.

    Args:
        module: Any module.
        step: ``(module, batch, batch_idx) -> loss``.
    """
    return _Reader.of(module, step).names


def globals_in(module: nn.Module, step: Callable[..., Any] | None = None) -> list[Any]:
    """List the values, except code, of global variables in code that a step may run; see `names_in`."""
    return list(_Reader.of(module, step).globals.values())


class _Reader:
    """Reads functions, each once for every class that it may be a method of."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.globals: dict[int, Any] = {}  # by id
        self._seen: set[tuple[CodeType, type]] = set()

    @classmethod
    def of(cls, module: nn.Module, step: Callable[..., Any] | None) -> "_Reader":
        """Read all code that a step may run."""
        reader = cls()
        parts = list(submodules(module).values())
        for kind in dict.fromkeys(map(type, parts)):
            for entry in _ENTRIES:
                for function in _as_functions(getattr(kind, entry, None)):
                    reader.read(function, kind)
        for part in parts:
            for function in _functions_of(part):
                reader.read(function, type(part))
        for function in _functions_behind(step):
            reader.read(function, type(module))
        return reader

    def read(self, function: FunctionType, cls: type) -> None:
        """Read a function of a class and what it calls."""
        remaining = [function]
        while remaining:
            outer = remaining.pop()
            if outer.__globals__.get("__name__") == _DECORATORS:
                self.names.add("no_grad")
            now: Any = inspect.unwrap(outer)
            if not isinstance(now, FunctionType) or (now.__code__, cls) in self._seen:
                continue
            self._seen.add((now.__code__, cls))
            names = {name for code in _codes_in(now.__code__) for name in code.co_names}
            self.names |= names
            for name in names:
                remaining += _as_functions(inspect.getattr_static(cls, name, None))
                remaining += _as_functions(now.__globals__.get(name))
            own = (now.__globals__[name] for name in names if name in now.__globals__)
            self.globals |= {id(value): value for value in own if not isinstance(value, _CODE)}
            for value in _cells_of(now):
                remaining += _as_functions(value)


def _functions_of(part: nn.Module) -> Iterator[FunctionType]:
    for value in vars(part).values():
        if isinstance(value, FunctionType | MethodType):
            yield from _as_functions(value)


def _functions_behind(step: Any) -> Iterator[FunctionType]:
    """Find the functions that a step is made of, such as the one that was passed as ``step=``."""
    remaining, seen = [step], set()
    while remaining:
        value = remaining.pop()
        if id(value) in seen or not callable(value) or isinstance(value, type):
            continue
        seen.add(id(value))
        own = list(_as_functions(value))
        yield from own
        if isinstance(value, partial):
            remaining += [value.func, *value.args, *value.keywords.values()]
        elif isinstance(value, MethodType):
            remaining.append(value.__func__)
        elif isinstance(value, FunctionType):
            remaining += _cells_of(value)
        elif not own:
            yield from _as_functions(getattr(type(value), "forward", type(value).__call__))


def _as_functions(value: Any) -> Iterator[FunctionType]:
    value = getattr(value, "__func__", value)
    if isinstance(value, FunctionType) and not f"{inspect.unwrap(value).__module__}.".startswith(_FOREIGN):
        yield value


def _cells_of(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            continue


def _codes_in(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes_in(constant)
