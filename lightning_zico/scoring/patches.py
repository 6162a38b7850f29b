"""Find and undo what a candidate puts in the place of functions of torch, Lightning, NumPy and Python.

A function is replaced by another under its name, gets other code or defaults, or torch's dispatcher calls another
kernel for it.
"""

import builtins
import copy
import math
import os
import pickle
import random
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache, partial
from operator import attrgetter, is_, itemgetter
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from lightning_zico.engine.places import ABSENT
from lightning_zico.engine.undo import refill

# torch's compiler replaces functions of torch when it is first used, and needs these replacements.
_OF_COMPILER = ("torch._dynamo", "torch._inductor")
# Packages whose modules import torch's functions and modules under names of their own, as torch.nn.modules does.
_PACKAGES = ("torch.nn.", "torch.optim.", "torch.autograd.")
# Kernels for these dispatch keys compute numbers. Those for others, such as for vmap, torch registers itself, when they
# are first needed.
_COMPUTING = frozenset(
    {
        "",
        *("CPU", "CUDA", "MPS", "XPU", "Autograd", "AutogradCPU", "AutogradCUDA", "AutocastCPU", "AutocastCUDA"),
        *("CompositeImplicitAutograd", "CompositeExplicitAutograd"),
    }
)


class Patch(NamedTuple):
    """Something that differs from before.

    Args:
        name: Name in notes.
        undo: Function that restores it.
    """

    name: str
    undo: Callable[[], Any]


class Originals:
    """The functions as they are now."""

    def __init__(self) -> None:
        self._functions = [each.read(each.attributes) for each in list_watched()]
        self._names = [each.names_now() for each in list_watched()]
        # Functions that came later, such as the ``step`` that torch adds to AdamW when the first one is created.
        self._late = [
            (each, name, each.attributes[name])
            for each, names in zip(list_watched(), self._names, strict=True)
            if names is not each.all_names
            for name in set(names) - set(each.all_names)
            if isinstance(each.owner, type) and _is_watched(each.owner, name)
        ]
        self._codes = [list(map(attribute.read, attribute.functions)) for attribute in _codes()]
        self._keywords = [dict(defaults or {}) for defaults in self._codes[-1]]
        self._kernels = set(torch.library._impls)

    def patches(self) -> list[Patch]:
        """List what differs from before."""
        return [*self._find_replaced(), *self._find_added(), *self._find_rewritten(), *self._find_registered()]

    def _find_replaced(self) -> Iterator[Patch]:
        for each, functions in zip(list_watched(), self._functions, strict=True):
            if _are_same(each, functions):
                continue
            for name, function in zip(each.names, functions, strict=True):
                yield from _compare(each, name, function)
        for each, name, function in self._late:
            yield from _compare(each, name, function)

    def _find_added(self) -> Iterator[Patch]:
        """List methods that hide those of a base class."""
        for each, names in zip(list_watched(), self._names, strict=True):
            if len(each.attributes) > len(names) and isinstance(each.owner, type):
                for name in each.attributes.keys() - set(names):
                    hidden, now = _base_attribute(each.owner, name), each.attributes[name]
                    if hidden is not None and not _is_profiled(now, hidden) and not _is_of_compiler(now, hidden):
                        yield Patch(each.name_of(name), partial(delattr, each.owner, name))

    def _find_rewritten(self) -> Iterator[Patch]:
        """List functions that have other code or defaults."""
        for (name, functions, read), before in zip(_codes(), self._codes, strict=True):
            now = list(map(read, functions))
            if all(map(is_, now, before)):
                continue
            for function, new, old in zip(functions, now, before, strict=True):
                if new is not old:
                    text = f"`{function.__module__}.{function.__qualname__}.{name}`"
                    yield Patch(text, partial(setattr, function, name, old))
        for function, defaults, content in zip(_codes()[-1].functions, self._codes[-1], self._keywords, strict=True):
            if defaults is not None and defaults != content:
                text = f"`{function.__module__}.{function.__qualname__}.__kwdefaults__`"
                yield Patch(text, partial(refill, defaults, content))

    def _find_registered(self) -> Iterator[Patch]:
        """List kernels for torch's own operators that were registered."""
        if len(torch.library._impls) == len(self._kernels):
            return
        new = {key for key in torch.library._impls - self._kernels if _replaces(key)}
        if new:
            names = ", ".join(f"`aten::{key.split('/')[1]}`" for key in sorted(new))
            yield Patch(f"kernels of {names}", partial(_unregister, new))


def undo(patches: Iterable[Patch]) -> None:
    """Undo what differs from before, as far as that is possible."""
    for patch in patches:
        with suppress(Exception):
            patch.undo()


class Watched(NamedTuple):
    """A module or class whose functions candidates might replace.

    Args:
        owner: The module or class.
        attributes: Its attributes.
        names: Names of the functions.
        read: Reads them all.
        all_names: Names of the attributes at first.
    """

    owner: Any
    attributes: Mapping[str, Any]
    names: list[str]
    read: Callable[[Mapping[str, Any]], tuple[Any, ...]]
    all_names: tuple[str, ...]

    def names_now(self) -> tuple[str, ...]:
        """Return the names of the attributes."""
        return self.all_names if len(self.attributes) == len(self.all_names) else tuple(self.attributes)

    def name_of(self, function: str) -> str:
        """Return the name of a function in notes."""
        owner, is_class = self.owner, isinstance(self.owner, type)
        return f"`{owner.__module__.partition('.')[0] + '.' if is_class else ''}{owner.__name__}.{function}`"


@cache
def list_watched() -> list[Watched]:
    """List the modules and classes whose functions candidates might replace."""
    packages = [sys.modules[name] for name in ("lightning.pytorch", "pytorch_lightning") if name in sys.modules]
    owners: list[Any] = [torch, nn, nn.functional, nn.init, nn.utils, torch.linalg, torch.fft, torch.special]
    owners += [torch.autograd, torch.func, torch.optim, torch.cuda, torch.utils.data, np, np.random]
    owners += [builtins, copy, math, os, pickle, random, time]
    owners += [torch.Tensor, torch.autograd.Function, *(each.LightningModule for each in packages)]
    owners += [
        value
        for holder in (nn, torch.optim, torch.utils.data)
        for value in vars(holder).values()
        if isinstance(value, type)
    ]
    owners += [
        module
        for name, module in list(sys.modules.items())
        if name.startswith(_PACKAGES) and isinstance(module, ModuleType) and module not in owners
    ]
    named = ((owner, [name for name in vars(owner) if _is_watched(owner, name)]) for owner in owners)
    return [
        Watched(owner, vars(owner), names, itemgetter(*names), tuple(vars(owner)))
        for owner, names in named
        if len(names) > 1
    ]


class _Attribute(NamedTuple):
    """What functions do or take: the name of an attribute, the functions that have it, and a reader."""

    name: str
    functions: list[Any]
    read: Callable[[Any], Any]


@cache
def _codes() -> list[_Attribute]:
    """List the functions written in Python by what of them may be changed in place; ``__kwdefaults__`` come last."""
    values = [value for each in list_watched() for value in each.read(each.attributes)]
    plain = [getattr(value, "__func__", value) for value in values if not isinstance(value, type)]
    functions = list({id(value): value for value in plain if isinstance(value, FunctionType)}.values())
    return [
        _Attribute(name, [each for each in functions if getattr(each, name) is not None], attrgetter(name))
        for name in ("__code__", "__defaults__", "__kwdefaults__")
    ]


def _compare(each: Watched, name: str, function: Any) -> Iterator[Patch]:
    """Yield a patch if a function is no longer the one that it was."""
    now = each.attributes.get(name, ABSENT)
    is_profiled = _is_profiled(_strip_compiler(now), function)
    if now is not function and not is_profiled and not _is_of_compiler(now, function):
        yield Patch(each.name_of(name), partial(setattr, each.owner, name, function))


def _are_same(each: Watched, functions: tuple[Any, ...]) -> bool:
    try:
        return all(map(is_, each.read(each.attributes), functions))
    except KeyError:  # one was deleted
        return False


def _is_watched(owner: Any, name: str) -> bool:
    value = vars(owner)[name]
    if isinstance(owner, ModuleType) and owner.__name__.startswith(_PACKAGES):
        # Their classes are those of torch.nn and torch.optim, or hints of types.
        return not name.startswith("_") and isinstance(value, ModuleType | FunctionType | BuiltinFunctionType)
    return _is_function(owner, name, value)


def _is_function(owner: Any, name: str, value: Any) -> bool:
    if name == "Storage":  # torch's, which follows the default dtype
        return False
    # Modules are imported into others under private names; what a class holds, it holds for good.
    is_shown = isinstance(owner, type) or not name.startswith("_") or (name.startswith("__") and name.endswith("__"))
    return is_shown and (callable(value) or isinstance(value, classmethod))


def _base_attribute(owner: type, name: str) -> Any:
    """Return the attribute of a base class that a function of a class overrides; None if it overrides none."""
    if not _is_function(owner, name, vars(owner)[name]):
        return None
    return next((vars(base)[name] for base in owner.__mro__[1:] if name in vars(base)), None)


def _is_profiled(step: Any, before: Any) -> bool:
    """Whether a function is an optimiser's ``step``, which torch wraps when the first optimiser is created.

    A class without a ``step`` of its own, such as AdamW, gets the wrapped one of its base.
    """
    return _is_wrapper(step) and step.__wrapped__ is (before.__wrapped__ if _is_wrapper(before) else before)


def _is_wrapper(step: Any) -> bool:
    return getattr(step, "__code__", None) is _code_of_wrapper()


@cache
def _code_of_wrapper() -> Any:
    return torch.optim.Optimizer.profile_hook_step(len).__code__


def _is_of_compiler(function: Any, before: Any) -> bool:
    """Whether a function is the compiler's, or the original function wrapped by `torch.compiler.disable`."""
    is_wrapped = function is not before and _strip_compiler(function) is _strip_compiler(before)
    return is_wrapped or str(getattr(function, "__module__", "")).startswith(_OF_COMPILER)


def _strip_compiler(function: Any) -> Any:
    """Return what `torch.compiler.disable` wraps, or the function itself."""
    while (known := getattr(function, "__dict__", {})).get("_torchdynamo_disable") is True:
        function = known["_torchdynamo_orig_callable"]
    return function


def _replaces(key: str) -> bool:
    """Whether a kernel, such as ``aten/relu/CPU``, computes what one of torch's own operators returns."""
    namespace, _, rest = key.partition("/")
    return namespace == "aten" and rest.partition("/")[2] in _COMPUTING


def _unregister(kernels: set[str]) -> None:
    """Destroy the libraries that registered kernels; torch finds them when the process ends, and so does this."""
    registry: Any = weakref.finalize._registry  # type: ignore[attr-defined]
    for entry in list(registry.values()):
        library = entry.weakref()
        if isinstance(library, torch.library.Library) and library._op_impls & kernels:
            library._destroy()
