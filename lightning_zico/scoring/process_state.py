"""Keep the state of the whole process, so that no candidate affects another through it.

A candidate that sets torch's default dtype, patches `torch.nn.functional.relu` or changes the working directory would
change every number after its own. `kept_process_state` wraps building and scoring: it records this state before and
restores what differs afterwards.
"""

import builtins
import copy
import gc
import logging
import math
import os
import pickle
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from operator import is_, itemgetter
from types import FrameType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.modules import module as hooks_of_modules
from torch.optim import optimizer as hooks_of_optimizers
from torch.overrides import _get_current_function_mode_stack
from torch.overrides import _pop_mode as _pop_function_mode
from torch.overrides import _push_mode as _push_function_mode
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack, _pop_mode, _push_mode

from lightning_zico.engine.undo import refill

# Two candidates at once would see each other's switches, so the second thread waits.
_ONE_AT_A_TIME = threading.RLock()
# torch's compiler replaces functions of torch when it is first used, and needs these replacements.
_OF_COMPILER = ("torch._dynamo", "torch._inductor")
_UNREADABLE = object()
_ENVIRONMENT = "environment variables"
# Signals with which users, systems and tests end or interrupt a process.
_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK", "SIGALRM") if hasattr(signal, name)
]

_is_tainted = False
_entered: list[Any] = []


class Switch(NamedTuple):
    """One setting of the process.

    Args:
        name: Name in notes.
        read: Function that returns the value, which can be compared.
        write: Function that sets the value.
    """

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], Any]

    def value(self) -> Any:
        """Read the setting; if that fails, return a value that equals no other."""
        try:
            return self.read()
        except Exception:
            return _UNREADABLE


def autocasts() -> list[tuple[str, bool, torch.dtype]]:
    """List for each device type whether autocast is on, and its dtype."""
    return [
        (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
        for kind in ("cpu", "cuda")
        if torch.amp.is_autocast_available(kind)
    ]


def _set_autocasts(states: list[tuple[str, bool, torch.dtype]]) -> None:
    for kind, is_enabled, dtype in states:
        torch.set_autocast_enabled(kind, is_enabled)
        torch.set_autocast_dtype(kind, dtype)
    torch.clear_autocast_cache()


def _default_device() -> torch.device | None:
    """Return the device set with `torch.set_default_device` in this thread; None if there is none."""
    context = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
    return None if context is None else context.device


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _set_deterministic(state: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(state[0], warn_only=state[1])


def _flushes_denormals() -> bool:
    return not (torch.full((), 1e-310, dtype=torch.float64, device="cpu") * 1).item()


def _set_inference_mode(is_on: bool) -> None:
    # One that was entered can only be covered by another, for as long as that lives.
    mode = torch.inference_mode(is_on)
    mode.__enter__()
    _entered.append(mode)


def _anomaly_mode() -> tuple[bool, bool]:
    return torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()


def _set_anomaly_mode(state: tuple[bool, bool]) -> None:
    torch.autograd.set_detect_anomaly(*state)


def _function_modes() -> list[Any]:
    # The mode of the default device is a separate setting, and always at the bottom.
    return [mode for mode in _get_current_function_mode_stack() if not isinstance(mode, DeviceContext)]


def _set_function_modes(modes: list[Any]) -> None:
    for _ in _function_modes():
        _pop_function_mode()
    for mode in modes:
        _push_function_mode(mode)


def _set_dispatch_modes(modes: list[Any]) -> None:
    for _ in _get_current_dispatch_mode_stack():
        _pop_mode()
    for mode in modes:
        _push_mode(mode)


def _saved_tensors() -> tuple[Any, str | None]:
    autograd = torch._C._autograd
    return autograd._top_saved_tensors_default_hooks(False), autograd._saved_tensors_hooks_get_disabled_error_message()


def _set_saved_tensors(state: tuple[Any, str | None]) -> None:
    autograd, (hooks, message) = torch._C._autograd, state
    autograd._saved_tensors_hooks_enable()
    while (now := autograd._top_saved_tensors_default_hooks(False)) is not None and now != hooks:
        autograd._pop_saved_tensors_default_hooks()
    if message is not None:
        autograd._saved_tensors_hooks_disable(message)


def _directory() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:  # it was removed
        return None


def _set_directory(path: str | None) -> None:
    if path is not None:
        os.chdir(path)


def _set_environment(variables: dict[str, str]) -> None:
    for name in os.environ.keys() - variables.keys():
        del os.environ[name]
    os.environ.update(variables)


def _streams() -> tuple[Any, ...]:
    return sys.stdin, sys.stdout, sys.stderr


def _set_streams(streams: tuple[Any, ...]) -> None:
    sys.stdin, sys.stdout, sys.stderr = streams


def _garbage() -> tuple[bool, tuple[int, ...]]:
    return gc.isenabled(), gc.get_threshold()


def _set_garbage(state: tuple[bool, tuple[int, ...]]) -> None:
    (gc.enable if state[0] else gc.disable)()
    gc.set_threshold(*state[1])


def _logging() -> tuple[int, int]:
    return logging.root.level, logging.root.manager.disable


def _set_logging(levels: tuple[int, int]) -> None:
    logging.root.setLevel(levels[0])
    logging.disable(levels[1])


def _set_filters(filters: list[Any]) -> None:
    # The filters are a list, whatever typeshed calls them; and Python caches which warnings it has shown.
    refill(warnings.filters, filters)
    warnings._filters_mutated()  # type: ignore[attr-defined]


def _timer() -> bool:
    return bool(signal.getitimer(signal.ITIMER_REAL)[0])


def _set_timer(runs: bool) -> None:
    if not runs:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _attribute(owner: ModuleType, name: str) -> Switch:
    return Switch(f"{owner.__name__}.{name}", partial(getattr, owner, name), partial(setattr, owner, name))


def _backend(path: str) -> Switch:
    name, _, attribute = path.partition(".")
    return _attribute(getattr(torch.backends, name), attribute)


def _attention(kind: str) -> Switch:
    cuda = torch.backends.cuda
    return Switch(f"{kind} attention", getattr(cuda, f"{kind}_sdp_enabled"), getattr(cuda, f"enable_{kind}_sdp"))


# Settings that all numbers depend on; they are in the key of a cached score.
_OF_NUMBERS = (
    Switch("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
    Switch("torch's default device", _default_device, torch.set_default_device),
    Switch("torch's number of threads", torch.get_num_threads, torch.set_num_threads),
    Switch("torch's float32 precision", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    Switch("autocast", autocasts, _set_autocasts),
    Switch("deterministic algorithms", _deterministic, _set_deterministic),
    Switch("flushing of denormals", _flushes_denormals, torch.set_flush_denormal),
    *map(_backend, ("cudnn.enabled", "cudnn.benchmark", "cudnn.deterministic", "cudnn.allow_tf32", "mkldnn.enabled")),
    _attribute(torch.utils.deterministic, "fill_uninitialized_memory"),
    *map(_attention, ("flash", "mem_efficient", "math", "cudnn")),
)
# Settings that may affect the numbers of the candidate that changes them.
_OF_PASSES = (
    Switch("inference mode", torch.is_inference_mode_enabled, _set_inference_mode),
    Switch("gradient mode", torch.is_grad_enabled, torch._C._set_grad_enabled),
    Switch("anomaly mode", _anomaly_mode, _set_anomaly_mode),
    Switch("torch function modes", _function_modes, _set_function_modes),
    Switch("torch dispatch modes", _get_current_dispatch_mode_stack, _set_dispatch_modes),
    Switch("hooks on saved tensors", _saved_tensors, _set_saved_tensors),
    Switch("NumPy's handling of errors", np.geterr, lambda state: np.seterr(**state)),
)
_OF_PYTHON = (
    Switch("working directory", _directory, _set_directory),
    Switch(_ENVIRONMENT, lambda: dict(os.environ), _set_environment),
    Switch("sys.path", lambda: list(sys.path), partial(refill, sys.path)),
    Switch("standard streams", _streams, _set_streams),
    Switch("garbage collector", _garbage, _set_garbage),
    Switch("recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
    Switch("logging levels", _logging, _set_logging),
    Switch("warning filters", lambda: list(warnings.filters), _set_filters),
    *([Switch("alarm", _timer, _set_timer)] if hasattr(signal, "setitimer") else []),
)
# Tables of global hooks. Other records that torch keeps of a hook stay when it is removed, and have no effect.
_HOOK_TABLES = {
    f"{owner.__name__}.{name}": table
    for owner in (hooks_of_modules, hooks_of_optimizers)
    for name, table in vars(owner).items()
    if name.startswith("_global_") and name.endswith("_hooks") and isinstance(table, dict)
}


def switches() -> tuple[Any, ...]:
    """List the settings of the process that every number depends on, global hooks of modules included."""
    return (
        *(switch.value() for switch in _OF_NUMBERS),
        torch.get_default_device(),  # also of a `with` block
        *(list(table.values()) for table in _HOOK_TABLES.values()),
    )


@cache
def _patchable() -> list[tuple[Any, list[str], Callable[[Any], tuple[Any, ...]]]]:
    """List modules and classes whose functions candidates might replace, the functions' names, and a reader of all."""
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
    named = (
        (owner, [name for name, value in vars(owner).items() if _is_function(owner, name, value)]) for owner in owners
    )
    return [(owner, names, itemgetter(*names)) for owner, names in named if len(names) > 1]


def _are_same(owner: Any, read: Callable[[Any], tuple[Any, ...]], functions: tuple[Any, ...]) -> bool:
    try:
        return all(map(is_, read(vars(owner)), functions))
    except KeyError:  # one was deleted
        return False


def _is_function(owner: Any, name: str, value: Any) -> bool:
    if name == "Storage":  # torch's, which follows the default dtype
        return False
    # Modules are imported into others under private names; what a class holds, it holds for good.
    is_watched = isinstance(owner, type) or not name.startswith("_") or (name.startswith("__") and name.endswith("__"))
    return is_watched and (callable(value) or isinstance(value, classmethod))


def _hides(owner: type, name: str) -> bool:
    """Whether an attribute of a class overrides one of its bases."""
    return _is_function(owner, name, vars(owner)[name]) and any(name in vars(base) for base in owner.__mro__[1:])


class ProcessState:
    """The recorded state of the process, to be restored.

    Args:
        keep_environment: Do not restore environment variables, which launchers of distributed training use to find each
            other.
    """

    def __init__(self, keep_environment: bool = False) -> None:
        switches = [*_OF_NUMBERS, *_OF_PASSES, *_OF_PYTHON]
        self._values = [
            (each, each.value()) for each in switches if not (keep_environment and each.name == _ENVIRONMENT)
        ]
        self._hooks = [dict(table) for table in _HOOK_TABLES.values()]
        self._functions = [read(vars(owner)) for owner, _, read in _patchable()]
        self._names = [set(vars(owner)) if isinstance(owner, type) else set() for owner, _, _ in _patchable()]
        self._handlers: dict[int, Any] = {}
        self._interrupt: BaseException | None = None

    def changed(self) -> list[str]:
        """List the settings that numbers depend on and that differ from before."""
        of_python = {switch.name for switch in _OF_PYTHON}
        return [name for name in self._different() if name not in of_python]

    def put_back(self) -> list[str]:
        """Restore what differs from before, and list what could not be restored."""
        switched, hooked, replaced = list(self._switched()), self._hooked(), self._replaced()
        for switch, value in switched:
            with suppress(Exception):
                switch.write(value)
        for table, hooks in hooked:
            refill(table, hooks)
        for owner, name, function in replaced:
            with suppress(Exception):
                delattr(owner, name) if function is None else setattr(owner, name, function)
        return self._different() if switched or hooked or replaced else []

    def _different(self) -> list[str]:
        return [
            *(switch.name for switch, _ in self._switched()),
            *(["global hooks"] if self._hooked() else []),
            *(f"`{_name_of(owner)}.{name}`" for owner, name, _ in self._replaced()),
        ]

    def _switched(self) -> Iterator[tuple[Switch, Any]]:
        for switch, value in self._values:
            if value is not _UNREADABLE and switch.value() != value:
                yield switch, value

    def _hooked(self) -> list[tuple[dict[Any, Any], dict[Any, Any]]]:
        pairs = zip(_HOOK_TABLES.values(), self._hooks, strict=True)
        return [(table, hooks) for table, hooks in pairs if not (list(table) == list(hooks) and table == hooks)]

    def _replaced(self) -> list[tuple[Any, str, Any]]:
        """List the functions that were replaced: owner, name, and the original function, or None if there was none."""
        found = [
            (owner, name, function)
            for (owner, names, read), functions in zip(_patchable(), self._functions, strict=True)
            if not _are_same(owner, read, functions)
            for name, function in zip(names, functions, strict=True)
            if (now := vars(owner).get(name)) is not function and not _is_profiled(now, function)
        ]
        found += [
            (owner, name, None)
            for (owner, _, _), names in zip(_patchable(), self._names, strict=True)
            if names and len(vars(owner)) > len(names)
            for name in vars(owner).keys() - names
            if _hides(owner, name)
        ]
        return [each for each in found if not _is_of_compiler(vars(each[0]).get(each[1]))]

    def watch_signals(self) -> None:
        """Record what signal handlers raise, such as a KeyboardInterrupt at Ctrl-C."""
        self._handlers = {number: signal.getsignal(number) for number in _SIGNALS}
        for number, handler in self._handlers.items():
            if callable(handler):
                signal.signal(number, partial(self._handle, handler))

    def unwatch_signals(self) -> None:
        """Restore the handlers; those not installed from Python stay."""
        for number, handler in self._handlers.items():
            if handler is not None:
                signal.signal(number, handler)

    def _handle(self, handler: Callable[[int, FrameType | None], Any], number: int, frame: FrameType | None) -> None:
        try:
            handler(number, frame)
        except BaseException as raised:
            if not isinstance(raised, Exception):
                self._interrupt = raised
            raise

    def raise_interrupt(self) -> None:
        """Raise what a signal handler raised: the user, not a candidate, ended the ranking."""
        if self._interrupt is not None:
            raise self._interrupt


def _is_profiled(step: Any, before: Any) -> bool:
    """Whether a function is an optimiser's ``step``, which torch wraps when the first optimiser is created."""
    return getattr(step, "hooked", False) and getattr(step, "__wrapped__", None) is before


def _is_of_compiler(function: Any) -> bool:
    return str(getattr(function, "__module__", "")).startswith(_OF_COMPILER)


def _name_of(owner: Any) -> str:
    return owner.__name__ if not isinstance(owner, type) else f"{owner.__module__.partition('.')[0]}.{owner.__name__}"


def is_tainted() -> bool:
    """Whether something in this process was changed and could not be restored."""
    return _is_tainted


@contextmanager
def kept_process_state(keep_environment: bool = False) -> Iterator[ProcessState]:
    """Restore what the body changes in the process; only one thread at a time runs such a body.

    Restored are torch's switches (default dtype and device, threads, precision, gradient, autocast, deterministic and
    anomaly mode, backends, modes on its stacks), global hooks, replaced functions of torch, Lightning, NumPy and
    Python, and Python's working directory, environment variables, ``sys.path``, standard streams, garbage collector,
    recursion limit, logging levels, warning filters, signal handlers and alarms. Random numbers are the task of
    `preserved_rng`.

    Args:
        keep_environment: See `ProcessState`.

    Yields:
        The recorded state. The body may catch everything that a candidate raises: a KeyboardInterrupt that comes from
        the user is raised again at the end.

    Raises:
        BaseException: The exception that a signal handler raised, such as a KeyboardInterrupt.
    """
    global _is_tainted
    with _ONE_AT_A_TIME:
        state = ProcessState(keep_environment)
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread:
            state.watch_signals()
        try:
            yield state
        finally:
            if in_main_thread:
                state.unwatch_signals()
            _is_tainted = bool(state.put_back()) or _is_tainted
            state.raise_interrupt()
