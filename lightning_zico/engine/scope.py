"""What must be switched while a module is looked at, and put back whatever happens."""

import copy
import itertools
import operator
import random
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache, partial
from io import IOBase
from multiprocessing.process import BaseProcess
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook
from torch.utils.data import DataLoader


@contextmanager
def preserved(module: nn.Module) -> Iterator[Callable[[], None]]:
    """Put a module and the random number generators back as they were, bit for bit, also when the body raises.

    Saved are, for every submodule, all its attributes (training flag, hook tables, child modules, the list that a
    ``training_step`` appends to) and the contents of those that are lists, dictionaries, sets or deques, to any depth;
    for every parameter ``requires_grad`` and ``.grad``, which is None while the body runs. Tensors that are neither
    parameter nor buffer, such as the states of torchmetrics, are exchanged for clones while the body runs, so that not
    even a write in place reaches them. Parameters and buffers are *not* cloned here: the body must run the module on
    others, as `stateless.Stateless` does. Generators of torch, NumPy and Python that stand among these attributes get
    their state back.

    Objects of other classes that a module holds, such as a scheduler of noise or a counter, get their attributes back,
    and so do those that they hold, to any depth; small tensors among them get their numbers back. Not looked into are
    other modules, classes, trainers, loggers, threads, and what shares a lock with them.

    Yields:
        A function that puts the module back at once, for bodies that run it several times.

    Example:
        >>> layer = nn.Dropout()
        >>> with preserved(layer):
        ...     _ = layer.eval()
        >>> layer.training
        True
    """
    with preserved_rng(), module_put_back(module) as reset:
        yield reset


@contextmanager
def module_put_back(module: nn.Module, *, apart: Iterable[nn.Module] = ()) -> Iterator[Callable[[], None]]:
    """Do as `preserved`, without the generators of random numbers and without some submodules."""
    left = set(map(id, apart))
    state = _ModuleState([part for part in module.modules() if id(part) not in left])
    try:
        state.exchange_tensors()
        yield state.reset
    finally:
        state.put_back()


@contextmanager
def preserved_rng(seed: int | None = None) -> Iterator[None]:
    """Put Python's, NumPy's and torch's generators (on every device in use) back, also when the body raises.

    Args:
        seed: Start the body from this seed; None goes on from the present state.
    """
    put_back_rng = rng_restorer()
    try:
        if seed is not None:
            seed_all(seed)
        yield
    finally:
        put_back_rng()


@contextmanager
def optimizers_put_back() -> Iterator[None]:
    """Put the optimizers back that step while the body runs: their states and settings, not what they optimise."""
    here = threading.get_ident()
    saved: dict[int, tuple[Optimizer, Any, Any, list[tuple[Any, Any]]]] = {}

    def remember(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if threading.get_ident() == here and id(optimizer) not in saved:
            states = {parameter: copy.deepcopy(state) for parameter, state in optimizer.state.items()}
            groups = [(group, dict(group)) for group in optimizer.param_groups]
            saved[id(optimizer)] = (optimizer, dict(vars(optimizer)), states, groups)

    handle = register_optimizer_step_pre_hook(remember)
    try:
        yield
    finally:
        handle.remove()
        for optimizer, attributes, states, groups in saved.values():
            refill(vars(optimizer), attributes)
            refill(optimizer.state, states)
            refill(optimizer.param_groups, [group for group, _ in groups])
            for group, own in groups:
                refill(group, own)


def rng_restorer() -> Callable[[], None]:
    """Remember the states of Python's, NumPy's and torch's generators, on every device in use.

    Returns:
        A function that puts them back, as often as it is called.
    """
    numpy = sys.modules.get("numpy")  # a NumPy that nobody imported has no state to keep
    python_state = random.getstate()
    numpy_state = numpy.random.get_state() if numpy else None
    torch_state = torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    mps_state = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None

    def put_back_rng() -> None:
        random.setstate(python_state)
        if numpy and numpy_state is not None:
            numpy.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        if cuda_states is not None:
            torch.cuda.set_rng_state_all(cuda_states)
        else:  # a GPU that was not in use starts, whenever that is, from the seed that torch had, not from the body's
            torch.cuda.manual_seed_all(torch.initial_seed())
        if mps_state is not None:
            torch.mps.set_rng_state(mps_state)

    return put_back_rng


def generator_states() -> tuple[Any, ...]:
    """Copy the states of Python's, NumPy's and torch's generators, to see whether something draws from them."""
    numpy = sys.modules.get("numpy")
    legacy = numpy.random.get_state() if numpy else None
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    states = [bytes(state.tolist()) for state in (torch.get_rng_state(), *cuda)]
    return random.getstate(), legacy and (legacy[1].tobytes(), *legacy[2:]), *states


@contextmanager
def unfused() -> Iterator[None]:
    """Let attention and a transformer's layer in eval mode run step by step: nobody sees into their fused kernels.

    The switch is one for all threads: the first to come turns it, the last to go puts it back.
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
    bodies: int = 0  # that run at the moment
    before: bool = True
    lock: threading.Lock = field(default_factory=threading.Lock)


_fusing = _Fusing()


def restorer_of(obj: Any) -> Callable[[], Any] | None:
    """Remember the state of a generator of torch, NumPy or Python; None for any other object.

    Returns:
        A function that puts the state back.
    """
    numpy = sys.modules.get("numpy")
    if isinstance(obj, torch.Generator):
        return partial(obj.set_state, obj.get_state())
    if isinstance(obj, random.Random):
        return partial(obj.setstate, obj.getstate())
    if numpy and isinstance(obj, numpy.random.RandomState):
        return partial(obj.set_state, obj.get_state())
    if numpy and isinstance(obj, numpy.random.Generator):
        return partial(setattr, obj.bit_generator, "state", copy.deepcopy(obj.bit_generator.state))
    return None


def seed_all(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators, on every device."""
    random.seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy:
        numpy.random.seed(seed % 2**32)  # NumPy's legacy generator takes 32 bits
    torch.manual_seed(seed)


# A tensor or array that is larger (2 million indices as int64) holds samples, and is not looked after.
MOST_BYTES = 2**24
# A generator that stands behind this many elements of one list is not looked for: such lists hold samples.
_MOST_ELEMENTS = 1000
_MOST_OBJECTS = 10_000  # of a module's own
_EMPTY_CELL = CellType()
_LIVE = (threading.Thread, BaseProcess, IOBase)  # they go on by themselves
_LOCKS = (type(threading.Lock()), type(threading.RLock()), threading.Condition, threading.Event, *_LIVE)
# Trainers lead to everything, and what writes elsewhere cannot be put back.
_LEFT_ALONE = ("lightning.", "pytorch_lightning.", "lightning_fabric.", "torch.utils.tensorboard.", "wandb.", "ray.")
# The standard library's objects belong to the interpreter, other than those that merely hold what they are given.
_HOLDERS = frozenset({"argparse", "collections", "functools", "types"})
_PLAIN = frozenset({bool, int, float, str, bytes, type(None)})
_REGISTERED = ("_parameters", "_buffers")  # the tensors in them are exchanged by functional_call


class _ModuleState:
    """All that `preserved` puts back, for the submodules of one module."""

    def __init__(self, submodules: list[nn.Module]) -> None:
        self._attributes = [(vars(submodule), dict(vars(submodule))) for submodule in submodules]
        parameters = {id(p): p for submodule in submodules for p in submodule._parameters.values() if p is not None}
        self._parameters = [(p, p.grad, p.requires_grad) for p in parameters.values()]
        self._containers: list[tuple[Any, Any]] = []
        self._empty: list[Any] = []  # most containers of a module are hook tables without a hook
        self._tensors: list[tuple[Any, Any, Tensor]] = []  # (container, key, the tensor there)
        self._values: list[tuple[Any, Any]] = []  # (a tensor or array without a place to exchange it, a copy)
        self._restorers: list[Callable[[], Any]] = []
        self._kinds: dict[type, str] = {}
        seen: set[int] = set()
        self._objects: list[Any] = []  # of foreign classes, to be looked into
        for attributes, _ in self._attributes:
            self._scan(attributes, attributes.items(), seen)
        if self._objects:
            seen |= {
                id(tensor) for part in submodules for tensor in (*part._parameters.values(), *part._buffers.values())
            }
            self._restorers += remembered(
                self._objects, is_open=is_plain, seen=seen, room=MOST_BYTES, most=_MOST_OBJECTS
            )

    def _scan(self, container: Any, items: Iterable[tuple[Any, Any]], seen: set[int]) -> None:
        kinds = self._kinds
        for key, value in items:
            kind = kinds.get(type(value)) or self._kind_of(value)
            if kind == "opaque":
                continue
            if kind == "object":
                self._objects.append(value)
            elif kind == "container":
                if not value:
                    self._empty.append(value)
                elif id(value) not in seen:
                    seen.add(id(value))
                    self._containers.append((value, value.copy()))
                    # a set holds no place to exchange
                    if key not in _REGISTERED and not isinstance(value, set):
                        self._scan(value, value.items() if isinstance(value, dict) else enumerate(value), seen)
            elif kind == "tuple":
                self._scan(value, enumerate(value), seen)
            elif kind == "tensor":
                if isinstance(container, tuple):
                    self._values.append((value, value.detach().clone()))
                elif not isinstance(value, nn.Parameter):
                    self._tensors.append((container, key, value))
            elif kind == "array":
                if value.nbytes <= MOST_BYTES:
                    self._values.append((value, value.copy()))
            elif (restore := restorer_of(value)) is not None:
                self._restorers.append(restore)

    def _kind_of(self, value: Any) -> str:
        """Classify a value, once for each type: a network has thousands of attributes and a dozen types."""
        numpy = sys.modules.get("numpy")
        if type(value) in _PLAIN:
            kind = "opaque"
        elif isinstance(value, dict | list | set | deque):
            kind = "container"
        elif isinstance(value, tuple):
            kind = "tuple"
        elif isinstance(value, Tensor):
            kind = "tensor"
        elif numpy and isinstance(value, numpy.ndarray):
            kind = "array"
        else:
            kind = "generator" if restorer_of(value) else "object" if _holds(_class(value)) else "opaque"
        self._kinds[type(value)] = kind
        return kind

    def exchange_tensors(self) -> None:
        """Put clones in the places of the tensors that are neither parameter nor buffer, and None in those of grads."""
        for container, key, tensor in self._tensors:
            container[key] = tensor.detach().clone().requires_grad_(tensor.requires_grad)
        for parameter, _, _ in self._parameters:
            parameter.grad = None

    def reset(self) -> None:
        """Put everything back and fresh clones in."""
        self.put_back()
        self.exchange_tensors()

    def put_back(self) -> None:
        """Put everything back."""
        for attributes, saved in self._attributes:
            refill(attributes, saved)
        for container, saved in self._containers:
            refill(container, saved)
        for container in self._empty:
            if container:
                container.clear()
        for container, key, tensor in self._tensors:
            container[key] = tensor
        for value, saved in self._values:
            put_back(value, saved)
        for restore in self._restorers:
            restore()
        for parameter, grad, requires_grad in self._parameters:
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)
            if parameter.grad is not grad:
                parameter.grad = grad


def remembered(
    roots: Iterable[Any],
    *,
    is_open: Callable[[Any], bool],
    seen: set[int] | None = None,
    room: int = 2**28,
    most: int | None = None,
) -> list[Callable[[], Any]]:
    """Remember what objects hold, and what these hold in turn.

    Reached are attributes, elements of containers, bound methods, partial functions and closures; what stands in global
    variables is not. Generators of torch, NumPy and Python get their state back, objects their attributes, containers
    their elements, and small tensors and arrays their numbers.

    Args:
        roots: Where to start.
        is_open: Whether an object is looked into; it may raise. Tensors, arrays and generators are not asked about.
        seen: Ids of what is looked after elsewhere.
        room: Most bytes of tensors and arrays that are copied.
        most: Most objects; None for all.

    Returns:
        Functions that put it back, each as often as it is called.
    """
    restorers: list[Callable[[], Any]] = []
    seen = set() if seen is None else seen
    numpy = sys.modules.get("numpy")
    waiting = list(roots)
    while waiting and (most is None or len(restorers) < most):
        obj = waiting.pop()
        if type(obj) in _PLAIN or id(obj) in seen:
            continue
        seen.add(id(obj))
        restore_generator = restorer_of(obj)
        if restore_generator is not None:
            restorers.append(restore_generator)
        elif isinstance(obj, Tensor) or (numpy and isinstance(obj, numpy.ndarray)):
            copyable = not isinstance(obj, Tensor) or (obj.layout == torch.strided and not obj.is_meta)
            if copyable and obj.nbytes <= min(MOST_BYTES, room):
                room -= obj.nbytes
                restorers.append(partial(put_back, obj, _copy_of(obj)))
        elif is_open(obj):
            restorers += _own_restorers(obj)
            waiting.extend(_parts(obj))
    return restorers


def _copy_of(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value.copy()


def _own_restorers(obj: Any) -> list[Callable[[], Any]]:
    if isinstance(obj, list | deque | dict | set):
        return [partial(_refill_changed, obj, obj.copy())]
    restorers: list[Callable[[], Any]] = []
    attributes = getattr(obj, "__dict__", None)
    if isinstance(attributes, dict):
        restorers.append(partial(_refill_changed, attributes, attributes.copy()))
    slots = [name for name in _slots_of(_class(obj)) if hasattr(obj, name)]
    if slots:
        restorers.append(partial(_set_slots, obj, {name: getattr(obj, name) for name in slots}))
    return restorers


def _parts(obj: Any) -> list[Any]:
    """List what an object holds."""
    if isinstance(obj, dict):
        return list(itertools.islice(obj.values(), _MOST_ELEMENTS))
    if isinstance(obj, list | tuple | deque | set):
        return list(itertools.islice(obj, _MOST_ELEMENTS))
    if isinstance(obj, MethodType):
        return [obj.__self__, obj.__func__]
    if isinstance(obj, partial):
        return [obj.func, obj.args, obj.keywords]
    if isinstance(obj, FunctionType):
        return [cell.cell_contents for cell in obj.__closure__ or () if cell != _EMPTY_CELL]
    attributes = getattr(obj, "__dict__", {})
    # The workers at work belong to training; what is read here comes from others.
    parts = [value for key, value in attributes.items() if not (key == "_iterator" and isinstance(obj, DataLoader))]
    parts += [getattr(obj, name) for name in _slots_of(_class(obj)) if hasattr(obj, name)]
    if not parts and isinstance(obj, Mapping):
        return list(itertools.islice(obj.values(), _MOST_ELEMENTS))
    return parts


def _class(obj: Any) -> Any:
    return type(obj)  # as Any, since mypy takes classes for unhashable


@lru_cache(maxsize=4096)
def _slots_of(kind: type) -> tuple[str, ...]:
    """Names of the attributes that instances of a class keep in slots, as classes written in Python declare them."""
    declared = (vars(base).get("__slots__", ()) for base in kind.__mro__)
    names = [name for each in declared for name in ((each,) if isinstance(each, str) else each)]
    return tuple(
        f"_{kind.__name__.lstrip('_')}{name}" if name.startswith("__") and not name.endswith("__") else name
        for name in names
        if name not in ("__dict__", "__weakref__")
    )


def _set_slots(obj: Any, saved: Mapping[str, Any]) -> None:
    for name, value in saved.items():
        if getattr(obj, name, None) is not value:
            object.__setattr__(obj, name, value)  # also where the class is frozen


def is_plain(obj: Any) -> bool:
    """Whether an object merely holds what it is given, so that putting it back disturbs nothing that is at work."""
    if not _holds(_class(obj)):
        return False
    attributes = getattr(obj, "__dict__", None)
    return not isinstance(attributes, dict) or not any(isinstance(value, _LOCKS) for value in attributes.values())


@lru_cache(maxsize=4096)
def _holds(kind: type) -> bool:
    if issubclass(kind, (list, tuple, deque, dict, set, FunctionType, MethodType, partial)):
        return True
    if kind in _PLAIN or issubclass(kind, (type, ModuleType, nn.Module, Enum, *_LIVE)):
        return False
    if any(f"{base.__module__}.".startswith(_LEFT_ALONE) for base in kind.__mro__):
        return False
    root = str(kind.__module__).partition(".")[0]
    if root in sys.stdlib_module_names and root not in _HOLDERS:
        return False
    return kind.__dictoffset__ != 0 or bool(_slots_of(cast(Any, kind)))


def refill(container: Any, saved: Any) -> None:
    """Give a list, deque, dictionary or set the contents of another."""
    container.clear()
    (container.extend if isinstance(container, list | deque) else container.update)(saved)


def _refill_changed(container: Any, saved: Any) -> None:
    """Do as `refill`, unless the container still has the very objects: somebody may be reading it."""
    is_same = len(container) == len(saved) and all(map(operator.is_, container, saved))
    if is_same and isinstance(container, dict):
        is_same = all(map(operator.is_, container.values(), saved.values()))
    if not is_same:
        refill(container, saved)


def put_back(value: Any, saved: Any) -> None:
    """Give a tensor or an array the numbers of another, unless it has them: it may be read-only."""
    if isinstance(value, Tensor):
        if not torch.equal(value, saved):
            with torch.no_grad():
                value.copy_(saved)
    elif not (value == saved).all():
        value[...] = saved
