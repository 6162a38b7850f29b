"""Contexts that change global state or a module while it is scored, and always restore it."""

import copy
import gc
import itertools
import random
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from functools import cache, lru_cache
from io import IOBase
from multiprocessing.process import BaseProcess
from queue import Queue
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from lightning_zico.engine.interrupts import finally_called, uninterrupted
from lightning_zico.engine.live import copy_iterator, has_position, is_live, position_restorer
from lightning_zico.engine.places import LINKS, attributes_of, has_slots
from lightning_zico.engine.tensors import (
    copy_of,
    exchangeable,
    has_numbers,
    put_leaf_back,
    tensor_restorer,
    version_of,
)
from lightning_zico.engine.tree import submodules
from lightning_zico.engine.undo import Remembered, refill


@contextmanager
def preserved(module: nn.Module, *others: Any) -> Iterator[Callable[[], None]]:
    """Restore a module and the random number generators bit for bit, even if the body raises.

    For every submodule, all its attributes (training flag, hook tables, child modules, a list to which a
    ``training_step`` appends) and the objects to which they refer are saved, see `undo.Remembered`. So are
    ``requires_grad`` and ``.grad`` of every parameter; ``.grad`` is None while the body runs. Parameters and buffers
    are *not* cloned here: the body must run the module on others, as `stateless.Stateless` does.

    Unregistered modules, such as a teacher in a list, optimizers and parameters that are found in this way are restored
    as well. Their tensors, and others such as the states of torchmetrics, have other memory while the body runs, so
    that no write in place through any reference reaches their values. Views and tensors with a history are replaced by
    clones. Tensors of more than 16 MB that plain objects hold are not saved, unless they have the shape of a parameter.

    Iterators are replaced by copies while the body runs. An iterator that is in a set, or that Python cannot copy,
    stays where the body leaves it. Python cannot copy generators, iterators that read one, and since Python 3.14 those
    of `itertools`.

    Classes, trainers, loggers, threads, and objects that share a lock with them, such as a queue that a thread waits
    for, are not restored.

    Args:
        module: Module to restore.
        others: Other objects to restore, such as a module within a loss function.

    Yields:
        A function that restores the module at once, for bodies that run it several times.

    Example:
        >>> layer = nn.Dropout()
        >>> with preserved(layer):
        ...     _ = layer.eval()
        >>> layer.training
        True
    """
    with preserved_rng(), module_put_back(module, *others) as reset:
        yield reset


@contextmanager
def module_put_back(module: nn.Module, *others: Any, apart: Iterable[nn.Module] = ()) -> Iterator[Callable[[], None]]:
    """Like `preserved`, but without the random number generators and without some submodules."""
    state = _ModuleState(module, others, apart)
    with finally_called(state.put_back):
        state.exchange()
        yield state.reset


@contextmanager
def preserved_rng(seed: int | None = None) -> Iterator[None]:
    """Restore the generators of Python, NumPy and torch (on every device in use), even if the body raises.

    Args:
        seed: Seed at the start of the body; None to continue from the current state.
    """
    put_back_rng = rng_restorer()
    with finally_called(put_back_rng):
        if seed is not None:
            seed_all(seed)
        yield


@contextmanager
def optimizers_put_back() -> Iterator[None]:
    """Restore the optimizers that step while the body runs: their states and settings, not the parameters."""
    here = threading.get_ident()
    saved: dict[int, list[tuple[Any, Any]]] = {}

    def remember(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if threading.get_ident() == here and id(optimizer) not in saved:
            groups = optimizer.param_groups
            containers: list[Any] = [vars(optimizer), optimizer.state, groups, *groups]
            saved[id(optimizer)] = [(container, copy.copy(container)) for container in containers]
            # The originals stay unchanged, because the optimizer gets copies to write to.
            for parameter, state in list(optimizer.state.items()):
                optimizer.state[parameter] = copy.deepcopy(state)
            for group in groups:
                group.update({key: value.clone() for key, value in group.items() if isinstance(value, Tensor)})

    handle = register_optimizer_step_pre_hook(remember)
    try:
        yield
    finally:
        with uninterrupted():
            handle.remove()
            for container, contents in itertools.chain.from_iterable(saved.values()):
                refill(container, contents)


def rng_restorer() -> Callable[[], None]:
    """Remember the states of Python's, NumPy's and torch's generators, on every device in use.

    Returns:
        A function that restores them; it can be called several times.
    """
    numpy = sys.modules.get("numpy")  # NumPy has no state to keep if it is not imported
    python_state = random.getstate()
    numpy_state = numpy.random.get_state() if numpy else None
    torch_state = torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    mps_state = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None

    def put_back_rng() -> None:
        with uninterrupted():
            random.setstate(python_state)
            if numpy and numpy_state is not None:
                numpy.random.set_state(numpy_state)
            torch.set_rng_state(torch_state)
            if cuda_states is not None:
                torch.cuda.set_rng_state_all(cuda_states)
            elif torch.cuda.manual_seed_all in _seeders():
                # A GPU that was not in use will start from torch's seed before the body, not from the body's seed.
                torch.cuda.manual_seed_all(torch.initial_seed())
            if mps_state is not None:
                torch.mps.set_rng_state(mps_state)

    return put_back_rng


def generator_states() -> tuple[Any, ...]:
    """Copy the states of Python's, NumPy's and torch's generators, to check whether code draws from them."""
    numpy = sys.modules.get("numpy")
    legacy = numpy.random.get_state() if numpy else None
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    states = [bytes(state.tolist()) for state in (torch.get_rng_state(), *cuda)]
    return random.getstate(), legacy and (legacy[1].tobytes(), *legacy[2:]), *states


@contextmanager
def unfused() -> Iterator[None]:
    """Run attention and transformer layers in eval mode without fused kernels, whose operations cannot be observed.

    The switch is shared by all threads: the first one to enter sets it, and the last one to leave restores it.
    """
    with _fusing.lock:
        if not _fusing.bodies:
            _fusing.before = torch.backends.mha.get_fastpath_enabled()
            torch.backends.mha.set_fastpath_enabled(False)
        _fusing.bodies += 1
    try:
        yield
    finally:
        with _fusing.lock:
            _fusing.bodies -= 1
            if not _fusing.bodies:
                torch.backends.mha.set_fastpath_enabled(_fusing.before)


@dataclass
class _Fusing:
    bodies: int = 0  # number of bodies that are running
    before: bool = True
    lock: threading.Lock = field(default_factory=threading.Lock)


_fusing = _Fusing()


def seed_all(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators, on every device."""
    random.seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy:
        numpy.random.seed(seed % 2**32)  # NumPy's legacy generator takes 32 bits
    torch.default_generator.manual_seed(seed)
    for seed_devices in (*_seeders(), *_seeders_of_extensions()):
        seed_devices(seed)


@cache
def _seeders() -> list[Callable[[int], Any]]:
    """List the functions that seed the generators of this machine's devices other than the CPU.

    `torch.manual_seed` seeds devices of every kind that torch knows, and formats the call stack for each kind that is
    not in use. That takes 0.1 ms per seed, which was a third of the time of scoring a small network.
    """
    found: list[Callable[[int], Any]] = []
    if torch.cuda.device_count():  # unlike `is_available`, it does not start the driver, so processes can be forked
        found.append(torch.cuda.manual_seed_all)
    if torch.backends.mps.is_available():
        found.append(torch.mps.manual_seed)
    if torch.xpu.is_available():
        found.append(torch.xpu.manual_seed_all)
    if torch.mtia.is_available():
        found.append(torch.mtia.manual_seed_all)
    return found


def _seeders_of_extensions() -> list[Callable[[int], Any]]:
    """List the functions that seed devices of torch extensions, which may be imported at any time."""
    extension = getattr(torch, torch._C._get_privateuse1_backend_name(), None)
    seed_devices = getattr(extension, "manual_seed_all", None)
    return [] if seed_devices is None else [seed_devices]


_MOST_BYTES_TOGETHER = 2**28  # of small tensors and arrays in plain objects
_MOST_OBJECTS = 10_000  # of a module's own
_LIVE = (threading.Thread, BaseProcess, IOBase)  # they change by themselves
_LOCKS = (type(threading.Lock()), type(threading.RLock()), threading.Condition, threading.Event, *_LIVE)
# Trainers refer to everything, and writers to other places cannot be restored.
_LEFT_ALONE = ("lightning.", "pytorch_lightning.", "lightning_fabric.", "torch.utils.tensorboard.", "wandb.", "ray.")
# Objects of the standard library belong to the interpreter, except those that only hold other objects.
_HOLDERS = frozenset({"argparse", "collections", "functools", "types", "weakref", "_weakrefset"})
# Attributes with the module's registered tensors; the last two hold the parameters of recurrent layers again.
_REGISTERED = frozenset({"_parameters", "_buffers", "_modules", "_flat_weights", "_flat_weight_refs"})


class _ModuleState(Remembered):
    """Everything that `preserved` restores: the submodules of one module and the objects found in them.

    Args:
        module: Its registered parameters and buffers are not exchanged; `stateless.Stateless` does that.
        others: Other objects to restore.
        apart: Submodules to leave out.
    """

    def __init__(self, module: nn.Module, others: Iterable[Any], apart: Iterable[nn.Module]) -> None:
        tree = list(submodules(module).values())
        super().__init__(is_open=is_plain, holds=_holds, seen=tree, room=_MOST_BYTES_TOGETHER, most=_MOST_OBJECTS)
        left = set(map(id, apart))
        parts = [part for part in tree if id(part) not in left]
        parameters = {id(p): p for part in parts for p in part._parameters.values() if p is not None}
        self._registered = parameters
        # Parameters with their gradient, whether they require one, and their version.
        self._leaves: list[tuple[Tensor, Tensor | None, bool, int]] = [
            (p, p.grad, p.requires_grad, version_of(p)) for p in parameters.values()
        ]
        # Places that hold a copy while the body runs: setter, holder, key, and a tensor or an iterator.
        self._places: list[tuple[Callable[[Any, Any, Any], Any], Any, Any, Any]] = []
        self._held: list[tuple[Tensor, Tensor]] = []  # tensors that get other memory, with their own
        self._shapes: frozenset[torch.Size] | None = None
        for part in parts:
            self._open_own(part)
            for tensor in (*part._parameters.values(), *part._buffers.values()):
                if tensor is not None and tensor.__dict__:
                    self._open_attributes(tensor)
        self.take(*others)

    def _open_own(self, obj: Any) -> None:
        attributes = vars(obj)
        self.dicts.append((attributes, attributes.copy()))
        self.scan(dict.__setitem__, attributes, attributes.items(), True, _REGISTERED)

    def open_module(self, module: Any) -> None:
        """Remember an optimizer, or a module outside of the tree with its parameters and buffers."""
        if isinstance(module, nn.Module):
            for part in module.modules():
                if part is module or id(part) not in self.seen:
                    self.seen[id(part)] = part
                    for tensor in (*part._parameters.values(), *part._buffers.values()):
                        if tensor is not None:
                            self._hold(tensor)
                    self._open_own(part)
        else:
            self._open_own(module)

    def found_tensor(self, setter: Any, holder: Any, key: Any, tensor: Tensor, own: bool) -> None:
        """Remember a tensor for `exchange`."""
        if isinstance(tensor, nn.Parameter):
            self._hold(tensor)
        elif own or (has_numbers(tensor) and self.fits(tensor)):
            self._hold(tensor)
            if setter is not None and not is_lazy(tensor) and not exchangeable(tensor):
                self._places.append((setter, holder, key, tensor))

    def kind_of(self, kind: type) -> str:
        """Classify the objects of a class."""
        if is_live(kind):
            self.kinds[kind] = "live"
        return self.kinds.get(kind) or super().kind_of(kind)

    def found_live(self, setter: Any, holder: Any, key: Any, value: Any) -> None:
        """Remember an iterator for `exchange`, or the position of a file."""
        if isinstance(value, IOBase):
            if id(value) not in self.seen:
                self.seen[id(value)] = value
                restore = position_restorer(value, self.take_room)
                if restore is not None:
                    self.restorers.append((value, restore))
            return
        with suppress(TypeError, RuntimeError):  # it cannot be copied, see `copy_iterator`
            if setter is not None and copy_iterator(value, {}) is not value:
                self._places.append((setter, holder, key, value))
        if id(value) not in self.seen:
            self.seen[id(value)] = value
            self.scan(None, None, enumerate(gc.get_referents(value)))

    def fits(self, value: Any) -> bool:
        """Whether to copy a tensor or array of a foreign object, also a large tensor that may be a parameter's copy."""
        if super().fits(value):
            return True
        if self._shapes is None:
            self._shapes = frozenset(parameter.shape for parameter in self._registered.values())
        return isinstance(value, Tensor) and value.shape in self._shapes

    def _hold(self, tensor: Tensor) -> None:
        if id(tensor) in self.seen or is_lazy(tensor):
            return
        self.seen[id(tensor)] = tensor
        if exchangeable(tensor):
            self._held.append((tensor, tensor.data))
            if id(tensor) not in self._registered:
                self._leaves.append((tensor, tensor.grad, tensor.requires_grad, version_of(tensor)))
        elif has_numbers(tensor):
            self.restorers.append((tensor, tensor_restorer(tensor)))

    def exchange(self) -> None:
        """Replace tensors and iterators by copies, or give tensors other memory, and remove their gradients."""
        copies: dict[int, Any] = {}
        for setter, holder, key, value in self._places:
            if not isinstance(value, Tensor):
                setter(holder, key, copy_iterator(value, copies))
                continue
            if id(value) not in copies:
                copies[id(value)] = copy_of(value).requires_grad_(value.requires_grad)
            setter(holder, key, copies[id(value)])
        for tensor, data in self._held:
            tensor.data = copy_of(data)
        for leaf, grad, _, _ in self._leaves:
            if grad is not None:
                leaf.grad = None

    def reset(self) -> None:
        """Restore everything, and exchange it for new copies."""
        self.put_back()
        self.exchange()

    def undone(self) -> list[tuple[Any, BaseException]]:
        """Restore everything; return the objects for which that failed, with the errors."""
        failures = super().undone()
        for tensor, data in self._held:
            try:
                tensor.data = data
            except Exception as error:
                failures.append((tensor, error))
        for leaf, grad, requires_grad, version in self._leaves:
            try:
                if leaf.requires_grad != requires_grad or (version >= 0 and leaf._version != version):
                    put_leaf_back(leaf, requires_grad, version)
                if leaf.grad is not grad:
                    leaf.grad = grad
            except Exception as error:
                failures.append((leaf, error))
        return failures


class _Weights(Remembered):
    """Finds modules, optimizers and parameters without restoring them."""

    def __init__(self) -> None:
        super().__init__(is_open=is_plain, holds=_holds, room=0, most=_MOST_OBJECTS)
        self.found: list[Any] = []

    def open_module(self, module: Any) -> None:
        self.found.append(module)

    def found_tensor(self, setter: Any, holder: Any, key: Any, tensor: Tensor, own: bool) -> None:
        if isinstance(tensor, nn.Parameter):
            self.found.append(tensor)


def weights_behind(*functions: Any) -> list[Any]:
    """List the modules, optimizers and parameters to which functions refer, except by global variables."""
    weights = _Weights()
    weights.take(*functions)
    return weights.found


def is_plain(obj: Any) -> bool:
    """Whether an object only holds other objects, so that restoring it disturbs nothing that is running."""
    if not _holds(cast(Any, type(obj))):
        return False
    if issubclass(cast(Any, type(obj)), Queue):  # a weak proxy has the ``__class__`` of its object if it is alive
        return not any(getattr(obj, name)._waiters for name in ("not_empty", "not_full", "all_tasks_done"))
    attributes = attributes_of(obj)
    return not isinstance(attributes, dict) or not any(map(_is_at_work, attributes.values()))


def _is_at_work(value: Any) -> bool:
    """Whether a value shows that the object that holds it may be in use by others."""
    kind = cast(Any, type(value))  # by class, as `is_plain` does
    return issubclass(kind, _LOCKS) and not (issubclass(kind, IOBase) and has_position(value))


@lru_cache(maxsize=4096)
def _holds(kind: type) -> bool:
    if issubclass(kind, (*LINKS, Queue, threading.local)):
        return True
    if issubclass(kind, (type, ModuleType, Enum, *_LIVE)):
        return False
    if any(f"{base.__module__}.".startswith(_LEFT_ALONE) for base in kind.__mro__):
        return False
    root = str(kind.__module__).partition(".")[0]
    if root in sys.stdlib_module_names and root not in _HOLDERS:
        return False
    return kind.__dictoffset__ != 0 or has_slots(kind)
