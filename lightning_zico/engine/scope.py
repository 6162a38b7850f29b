"""What must be switched while a module is looked at, and put back whatever happens."""

import copy
import random
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def preserved(module: nn.Module) -> Iterator[Callable[[], None]]:
    """Put a module and the random number generators back as they were, bit for bit, also when the body raises.

    Saved are, for every submodule, all its attributes (training flag, hook tables, child modules, the list that a
    ``training_step`` appends to) and the contents of those that are lists, dictionaries, sets or deques, to any depth;
    for every parameter ``requires_grad`` and ``.grad``, which is None while the body runs. Tensors that are neither
    parameter nor buffer, such as the states of torchmetrics, are exchanged for clones while the body runs, so that not
    even a write in place reaches them. Parameters and buffers are *not* cloned here: the body must run the module on
    others, as `stateless.Stateless` does. Generators of torch, NumPy and Python that stand among these attributes get
    their state back; objects of other classes that a module holds are not looked into.

    Yields:
        A function that puts the module back at once, for bodies that run it several times.

    Example:
        >>> layer = nn.Dropout()
        >>> with preserved(layer):
        ...     _ = layer.eval()
        >>> layer.training
        True
    """
    state = _ModuleState(module)
    with preserved_rng():
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
_PLAIN = frozenset({bool, int, float, str, type(None), FunctionType, MethodType})
_REGISTERED = ("_parameters", "_buffers")  # the tensors in them are exchanged by functional_call


class _ModuleState:
    """All that `preserved` puts back, for every submodule of one module."""

    def __init__(self, module: nn.Module) -> None:
        submodules = list(module.modules())
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
        for attributes, _ in self._attributes:
            self._scan(attributes, attributes.items(), seen)

    def _scan(self, container: Any, items: Iterable[tuple[Any, Any]], seen: set[int]) -> None:
        kinds = self._kinds
        for key, value in items:
            kind = kinds.get(type(value)) or self._kind_of(value)
            if kind == "opaque":
                continue
            if kind == "container":
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
            kind = "generator" if restorer_of(value) else "opaque"
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


def refill(container: Any, saved: Any) -> None:
    """Give a list, deque, dictionary or set the contents of another."""
    container.clear()
    (container.extend if isinstance(container, list | deque) else container.update)(saved)


def put_back(value: Any, saved: Any) -> None:
    """Give a tensor or an array the numbers of another, unless it has them: it may be read-only."""
    if isinstance(value, Tensor):
        if not torch.equal(value, saved):
            with torch.no_grad():
                value.copy_(saved)
    elif not (value == saved).all():
        value[...] = saved
