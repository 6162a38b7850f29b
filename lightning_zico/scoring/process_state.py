"""Keep the state of the whole process, so that no candidate affects another through it.

A candidate that sets torch's default dtype, patches `torch.nn.functional.relu` or changes the working directory would
change every number after its own. `preserved_process_state` wraps building and scoring: it records this state before
and restores what differs afterwards.
"""

import gc
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.modules import module as hooks_of_modules
from torch.optim import optimizer as hooks_of_optimizers
from torch.overrides import _get_current_function_mode_stack
from torch.overrides import _pop_mode as _pop_function_mode
from torch.overrides import _push_mode as _push_function_mode
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack, _pop_mode, _push_mode

from lightning_zico.engine.interrupts import SignalWatch, finally_called, uninterrupted
from lightning_zico.engine.undo import refill
from lightning_zico.scoring.patches import Originals, undo
from lightning_zico.scoring.turns import Turns

# Two candidates at once would see each other's switches, so the second thread waits.
_TURNS = Turns()
UNREADABLE = object()
_ENVIRONMENT = "environment variables"

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
            return UNREADABLE


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


def _set_default_device(device: torch.device | None) -> None:
    torch.set_default_device(device)
    if device is None and hasattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context"):
        # In torch 2.5, `torch.get_default_device` fails while the context is None.
        del torch._GLOBAL_DEVICE_CONTEXT.device_context


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


def _top_saved_tensors_hooks() -> Any:
    """Return the innermost hooks on saved tensors; None without any, and in torch 2.5, which does not show them."""
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return None if top is None else top(False)


def _saved_tensors() -> tuple[Any, str | None]:
    return _top_saved_tensors_hooks(), torch._C._autograd._saved_tensors_hooks_get_disabled_error_message()


def _set_saved_tensors(state: tuple[Any, str | None]) -> None:
    autograd, (hooks, message) = torch._C._autograd, state
    autograd._saved_tensors_hooks_enable()
    while (now := _top_saved_tensors_hooks()) is not None and now != hooks:
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
OF_NUMBERS = (
    Switch("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
    Switch("torch's default device", _default_device, _set_default_device),
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
_NAMES_OF_PYTHON = {switch.name for switch in _OF_PYTHON}
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
        *(switch.value() for switch in OF_NUMBERS),
        torch.empty(0).device,  # also of a `with` block
        *(list(table.values()) for table in _HOOK_TABLES.values()),
    )


class ProcessState:
    """The recorded state of the process, to be restored.

    Args:
        keep_environment: Do not restore environment variables, which launchers of distributed training use to find each
            other.
        originals: The functions as they are; None to look.
    """

    def __init__(self, keep_environment: bool = False, originals: Originals | None = None) -> None:
        switches = [*OF_NUMBERS, *_OF_PASSES, *_OF_PYTHON]
        self._values = [
            (each, each.value()) for each in switches if not (keep_environment and each.name == _ENVIRONMENT)
        ]
        self._hooks = [dict(table) for table in _HOOK_TABLES.values()]
        self.originals: Originals = Originals() if originals is None else originals
        self.watch: SignalWatch = SignalWatch()

    def list_changes(self) -> list[str]:
        """List the settings that numbers depend on and that differ from before."""
        return [name for name in self._different() if name not in _NAMES_OF_PYTHON]

    def put_numbers_back(self) -> list[str]:
        """Restore what numbers depend on and what differs from before, and list it."""
        changed = self.list_changes()
        if changed:
            for switch, value in list(self._find_switched()):
                if switch.name not in _NAMES_OF_PYTHON:
                    _write(switch, value)
            self._put_functions_back()
        return changed

    def put_back(self) -> list[str]:
        """Restore what differs from before, and list what could not be restored."""
        switched, hooked, patches = list(self._find_switched()), self._find_hooked(), self.originals.patches()
        for switch, value in switched:
            _write(switch, value)
        if hooked or patches:
            self._put_functions_back()
        return self._different() if switched or hooked or patches else []

    def _put_functions_back(self) -> None:
        for table, hooks in self._find_hooked():
            refill(table, hooks)
        undo(self.originals.patches())

    def _different(self) -> list[str]:
        return [
            *(switch.name for switch, _ in self._find_switched()),
            *(["global hooks"] if self._find_hooked() else []),
            *(patch.name for patch in self.originals.patches()),
        ]

    def _find_switched(self) -> Iterator[tuple[Switch, Any]]:
        for switch, value in self._values:
            if value is not UNREADABLE and switch.value() != value:
                yield switch, value

    def _find_hooked(self) -> list[tuple[dict[Any, Any], dict[Any, Any]]]:
        pairs = zip(_HOOK_TABLES.values(), self._hooks, strict=True)
        return [(table, hooks) for table, hooks in pairs if not (list(table) == list(hooks) and table == hooks)]

    def raise_interrupt(self) -> None:
        """Raise what a signal handler raised: the user, not a candidate, ended the ranking."""
        if self.watch.raised is not None:
            raise self.watch.raised


def _write(switch: Switch, value: Any) -> None:
    with suppress(Exception):
        switch.write(value)


class _Ranking(threading.local):
    """The ranking that runs in a thread, the state that its first candidate found, and how many it has begun."""

    is_on = False
    state: ProcessState | None = None
    num_begun = 0


_ranking = _Ranking()

# A full garbage collection goes through all imported modules, which takes longer than scoring a small network. So, when
# this candidate of a ranking begins, the objects that exist are taken out of later collections. Shorter rankings are
# not worth the collection that comes first.
_FREEZES_AT = 10
# A program that froze its objects itself, as worker processes do, has far more. Python 3.12 begins with some hundreds.
_MOST_FROZEN_AT_START = 10_000


@contextmanager
def one_ranking() -> Iterator[None]:
    """Let each candidate that is scored in the body find the settings that the first one found.

    Candidates may leave threads or objects behind that change these settings later, between two candidates.
    """
    before = _ranking.is_on, _ranking.state, _ranking.num_begun
    _ranking.is_on, _ranking.state, _ranking.num_begun = True, None, 0
    was_frozen = gc.get_freeze_count() > _MOST_FROZEN_AT_START
    try:
        yield
    finally:
        if _ranking.num_begun >= _FREEZES_AT and not was_frozen:
            gc.unfreeze()
        _ranking.is_on, _ranking.state, _ranking.num_begun = before


def _record(keep_environment: bool) -> ProcessState:
    """Record the state of the process before a candidate, after undoing what earlier ones changed since."""
    _ranking.num_begun += 1
    is_due = _ranking.is_on and _ranking.num_begun == _FREEZES_AT and gc.isenabled()
    if is_due and gc.get_freeze_count() <= _MOST_FROZEN_AT_START:
        gc.collect()
        gc.freeze()
    first = _ranking.state
    if first is None:
        state = ProcessState(keep_environment)
        _ranking.state = state if _ranking.is_on else None
        return state
    changed = first.put_numbers_back()
    if changed:
        warnings.warn(
            f"{', '.join(changed)} changed between two candidates, by a thread or an object that an earlier one left "
            "behind. It was put back. To keep candidates apart, score them in processes of their own.",
            stacklevel=2,
        )
    return ProcessState(keep_environment, first.originals)


def is_tainted() -> bool:
    """Whether something in this process was changed and could not be restored."""
    return _is_tainted


@contextmanager
def preserved_process_state(keep_environment: bool = False) -> Iterator[ProcessState]:
    """Restore what the body changes in the process; only one thread at a time runs such a body.

    Restored are torch's switches (default dtype and device, threads, precision, gradient, autocast, deterministic and
    anomaly mode, backends, modes on its stacks), global hooks, functions of torch, Lightning, NumPy and Python (see
    `patches`), and Python's working directory, environment variables, ``sys.path``, standard streams, garbage
    collector, recursion limit, logging levels, warning filters, signal handlers and alarms. Random numbers are the
    task of `preserved_rng`.

    Args:
        keep_environment: See `ProcessState`.

    Yields:
        The recorded state. The body may catch everything that a candidate raises: a KeyboardInterrupt that comes from
        the user is raised again at the end.

    Raises:
        BaseException: The exception that a signal handler raised, such as a KeyboardInterrupt.
        RuntimeError: If another thread does not end its turn, see `Turns`.
    """
    with _TURNS.turn() as is_outermost:
        state = _record(keep_environment) if is_outermost else ProcessState(keep_environment)
        in_main_thread = threading.current_thread() is threading.main_thread()

        def end() -> None:
            global _is_tainted
            with uninterrupted():
                _is_tainted = bool(state.put_back()) or _is_tainted
            # Not within: `uninterrupted` relies on these handlers until it has ended.
            if in_main_thread:
                state.watch.stop()

        with finally_called(end):
            if in_main_thread:
                state.watch.start()
            yield state
        state.raise_interrupt()
