"""Remember what objects hold, and restore it."""

import array
import copy
import itertools
import operator
import random
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from types import (
    CellType,
    FunctionType,
)
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer
from torch.utils.data import DataLoader

from lightning_zico.engine.interrupts import uninterrupted
from lightning_zico.engine.live import HeldTuple
from lightning_zico.engine.places import (
    ABSENT,
    LINKS,
    attributes_of,
    class_of,
    content_of,
    fill_cell,
    fill_slot,
    is_filled,
    restore_attribute,
    set_arguments,
    set_slot,
    slots_of,
    targets_of,
)
from lightning_zico.engine.tensors import has_numbers, tensor_restorer
from lightning_zico.errors import NotPutBackError, in_words

# A larger tensor or array (2 million indices as int64) holds samples, and is not remembered.
MOST_BYTES = 2**24
# Elements to search, for example for generators, of a list that no module or optimizer holds: longer ones hold samples.
_MOST_ELEMENTS = 1000
_PLAIN: frozenset[Any] = frozenset(
    {bool, int, float, complex, str, bytes, type(None), torch.device, torch.dtype, torch.Size}
)
# Each one's own methods can read and write its content, even if a derived class forbids or changes them.
_BASES: tuple[Any, ...] = (OrderedDict, dict, list, set, deque)
# Kinds of objects that may have attributes besides their content.
_WITH_ATTRIBUTES = frozenset({"container", "tuple", "elements", "array", "generator"})


class Remembered:
    """State of objects, and of the objects that they hold, restored whenever `put_back` is called.

    Objects are found by attributes, slots, elements of containers, bound methods, partial functions, closures, defaults
    of arguments, and weak references, but not by global variables or classes. Generators of torch, NumPy and Python get
    their state back, objects the same attributes, containers the same elements in the same order, and byte and number
    arrays their content. Only differences are written. Containers and generators are read and written by the methods of
    the built-in class from which they derive, because a derived class may forbid changes or have side effects. No
    signal interrupts the undo, and a container keeps its present content if the old content cannot be restored.

    Args:
        is_open: Whether to search an object; it may raise. It is not called for containers, tensors, arrays and
            generators.
        holds: Whether to search objects of a class; called once per class.
        seen: Objects that are restored elsewhere.
        room: Maximum number of bytes of small tensors and arrays to copy.
        most: Maximum number of objects; None for no limit.
    """

    def __init__(
        self,
        *,
        is_open: Callable[[Any], bool],
        holds: Callable[[type], bool] = lambda kind: True,
        seen: Iterable[Any] = (),
        room: int = 2**28,
        most: int | None = None,
    ) -> None:
        self.is_open = is_open
        self.holds = holds
        self.room: int = room
        self.most = most
        self.dicts: list[tuple[dict[Any, Any], dict[Any, Any]]] = []  # of modules
        self.empty: list[Any] = []  # most containers of a module are hook tables without a hook
        self.restorers: list[tuple[Any, Callable[[], Any]]] = []  # each with the object that it is for
        self.seen: dict[int, Any] = {id(obj): obj for obj in seen}  # keeps objects alive, so that no id is reused
        self.tuples: dict[int, HeldTuple] = {}
        self.waiting: list[tuple[Any, str, bool]] = []
        self.kinds: dict[type, str] = dict.fromkeys(_PLAIN, "opaque")
        self.num_opened: int = 0

    def take(self, *roots: Any) -> None:
        """Remember the content of some objects."""
        self.scan(None, None, enumerate(roots))
        self.walk()

    def put_back(self) -> None:
        """Restore everything.

        Raises:
            NotPutBackError: If something could not be put back; everything else was.
        """
        with uninterrupted():
            failures = self.undone()
        if failures:
            error = next((raised for _, raised in failures if not isinstance(raised, Exception)), failures[0][1])
            if not isinstance(error, Exception):
                raise error
            names = list(dict.fromkeys(type(obj).__name__ for obj, _ in failures))
            its, it = ("its", "it") if len(names) == 1 else ("their", "them")
            raise NotPutBackError(
                f"{', '.join(names)} could not be restored to {its} state before scoring "
                f"({in_words(error)}). Score a copy of the module, or a module that does not hold {it}."
            ) from error

    def undone(self) -> list[tuple[Any, BaseException]]:
        """Restore everything; return the objects for which that failed, with the errors."""
        for attributes, saved in self.dicts:  # cheaper than a comparison, as measured on a ResNet
            attributes.clear()
            attributes.update(saved)
        for container in self.empty:
            if container:
                container.clear()
        failed = _failing(self.restorers)
        # The hash of a key may need attributes that are restored only now.
        return [(obj, error) for obj, _, error in _failing((obj, restore) for obj, restore, _ in failed)]

    def walk(self) -> None:
        """Visit the objects that were found."""
        while self.waiting:
            value, kind, own = self.waiting.pop()
            if kind == "object" and self.num_opened == self.most:
                continue
            self.open(value, kind, own)

    def scan(
        self,
        setter: Callable[[Any, Any, Any], Any] | None,
        holder: Any,
        items: Iterable[tuple[Any, Any]],
        own: bool = False,
        registered: frozenset[str] = frozenset(),
    ) -> None:
        """Visit the contents of an object.

        Args:
            setter: ``setter(holder, key, value)`` replaces the value in a place; None if that is not possible.
            holder: See ``setter``.
            items: The places and the values in them.
            own: Whether they belong to a module or an optimizer.
            registered: Places of containers that are restored but not searched.
        """
        kind_of_class, seen, found_empty = self.kinds.get, self.seen, self.empty.append
        for key, value in items:
            kind = kind_of_class(type(value)) or self.kind_of(type(value))
            if kind == "opaque":
                continue
            if kind == "builtin":
                if not value:
                    found_empty(value)
                    continue
            elif kind == "tensor":
                self.found_tensor(setter, holder, key, value, own)
                if value.__dict__:
                    self._open_attributes(value)
                continue
            elif kind == "tuple":
                if _PLAIN.issuperset(map(type, tuple.__iter__(value))) and type(value) is tuple:
                    continue
                if id(value) not in self.tuples:
                    self.tuples[id(value)] = HeldTuple(value)
                if setter is not None:
                    self.tuples[id(value)].places.append((setter, holder, key))
            elif kind == "live":
                self.found_live(setter, holder, key, value)
                continue
            if id(value) not in seen:
                seen[id(value)] = value
                if key in registered and type(value) is dict:
                    self.dicts.append((value, value.copy()))
                elif key in registered and kind == "builtin":
                    self._keep_contents(value)
                else:
                    self.waiting.append((value, kind, own))

    def kind_of(self, kind: type) -> str:
        """Classify the objects of a class, once per class: a network has thousands of attributes and a dozen types."""
        numpy = sys.modules.get("numpy")
        if kind in _BASES:
            name = "builtin"
        elif issubclass(kind, _BASES):
            name = "container"
        elif issubclass(kind, tuple):
            # Named tuples written in C cannot be built from their elements.
            name = "elements" if hasattr(kind, "n_sequence_fields") else "tuple"
        elif issubclass(kind, frozenset):
            name = "elements"
        elif issubclass(kind, Tensor):
            name = "tensor"
        elif numpy and issubclass(kind, numpy.ndarray):
            name = "array"
        elif issubclass(kind, bytearray | array.array):
            name = "buffer"
        elif _generator_base(kind) is not None:
            name = "generator"
        elif issubclass(kind, CellType):
            name = "cell"
        elif issubclass(kind, nn.Module | Optimizer):
            name = "module"
        elif issubclass(kind, LINKS):
            name = "link"
        else:
            name = "object" if self.holds(kind) else "opaque"
        self.kinds[kind] = name
        return name

    def open(self, value: Any, kind: str, own: bool) -> None:
        """Remember one object and search its content."""
        if kind in ("builtin", "container"):
            self._open_container(value, own)
        elif kind == "tuple":
            elements = enumerate(_first(tuple.__iter__(value), own))
            self.scan(HeldTuple.set, self.tuples[id(value)], elements, own)
        elif kind == "elements":
            self.scan(None, None, enumerate(_first(value, own)), own)
        elif kind == "array":
            self._open_array(value)
        elif kind == "buffer":
            self._open_buffer(value)
        elif kind == "generator":
            self.restorers.append((value, _generator_restorer(value)))
        elif kind == "cell":
            content = content_of(value)
            self.restorers.append((value, partial(fill_cell, value, content)))
            if content is not ABSENT:
                self.scan(setattr, value, [("cell_contents", content)], own)
        elif kind == "link":
            if self.is_open(value):
                self._open_link(value)
        elif kind == "module":
            self.open_module(value)
        elif self.is_open(value):
            self.num_opened += 1
            self._open_attributes(value)
        if type(value) is OrderedDict or (kind in _WITH_ATTRIBUTES and type(value) is not tuple):
            self._open_attributes(value)

    def open_module(self, module: Any) -> None:
        """Remember a module or an optimizer."""
        if self.is_open(module):
            self.num_opened += 1
            self._open_attributes(module)

    def _keep_contents(self, value: Any) -> tuple[Any, Any]:
        base = _base_of(class_of(value))
        contents = _contents_of(base, value)
        # A copy of a set keeps the hashes, which may have changed when the elements are put back.
        filling = set(value) if base is set else contents
        self.restorers.append((value, partial(_put_contents_back, base, value, contents, filling)))
        return base, contents

    def _open_container(self, value: Any, own: bool) -> None:
        base, contents = self._keep_contents(value)
        setter = None if base is set else base.__setitem__
        if isinstance(contents, dict):
            self.scan(setter, value, _first(contents.items(), own), own)
            keys = [key for key in _first(contents, own) if type(key) is not str]
            if keys:
                self.scan(None, None, enumerate(keys), own)
        else:
            self.scan(setter, value, enumerate(_first(contents, own)), own)

    def _open_link(self, link: Any) -> None:
        if issubclass(class_of(link), FunctionType):  # a proxy has the ``__class__`` of its object
            if link.__defaults__:
                self.restorers.append((link, partial(restore_attribute, link, "__defaults__", link.__defaults__)))
                self.scan(setattr, link, [("__defaults__", link.__defaults__)])
        elif issubclass(class_of(link), partial):
            self.restorers.append((link, partial(set_arguments, link, "args", link.args)))
            self.scan(set_arguments, link, [("args", link.args)])
        self.scan(None, None, enumerate(targets_of(link)))

    def _open_attributes(self, obj: Any) -> None:
        attributes = attributes_of(obj)
        if isinstance(attributes, dict) and id(attributes) not in self.seen:
            self.seen[id(attributes)] = attributes
            self.restorers.append((obj, partial(_put_attributes_back, attributes, attributes.copy())))
            # Running workers belong to training; scoring starts its own.
            is_loader = isinstance(obj, DataLoader)
            items = [item for item in attributes.items() if not (is_loader and item[0] == "_iterator")]
            self.scan(dict.__setitem__, attributes, items)
        for slot in slots_of(class_of(obj)):
            content = slot.__get__(obj) if is_filled(slot, obj) else ABSENT
            self.restorers.append((obj, partial(fill_slot, slot, obj, content)))
            if content is not ABSENT:
                self.scan(set_slot, obj, [(slot, content)])

    def found_live(self, setter: Any, holder: Any, key: Any, value: Any) -> None:
        """Remember an iterator or a file; see `kind_of`."""

    def found_tensor(self, setter: Any, holder: Any, key: Any, tensor: Tensor, own: bool) -> None:
        """Remember the numbers of a tensor."""
        if id(tensor) not in self.seen:
            self.seen[id(tensor)] = tensor
            if has_numbers(tensor) and self.fits(tensor):
                self.restorers.append((tensor, tensor_restorer(tensor)))

    def fits(self, value: Any) -> bool:
        """Reserve room for a copy of a tensor or an array; return whether there was enough."""
        return self.take_room(value.nbytes)

    def take_room(self, num_bytes: int) -> bool:
        """Reserve room for a copy of ``num_bytes``; return whether there was enough."""
        if num_bytes > min(MOST_BYTES, self.room):
            return False
        self.room -= num_bytes
        return True

    def _open_array(self, view: Any) -> None:
        numpy = sys.modules["numpy"]
        if view.dtype == object:
            self.scan(None, None, enumerate(_first(view.flat, False)))
        views = [view]  # up to the first one whose numbers can be changed
        while not views[-1].flags.writeable and isinstance(views[-1].base, numpy.ndarray):
            views.append(views[-1].base)
        owner = views[-1]
        # Code may make an array that owns its memory writeable.
        if (owner.flags.writeable or owner.flags.owndata) and self.fits(owner):
            flags = [(each, each.flags.writeable) for each in reversed(views)]
            self.restorers.append((view, partial(_put_array_back, owner, _plain_view(owner).copy(), flags)))

    def _open_buffer(self, value: Any) -> None:
        """Remember the content of a ``bytearray`` or an ``array.array``."""
        base: Any = bytearray if isinstance(value, bytearray) else array.array
        if self.take_room(memoryview(value).nbytes):
            self.restorers.append((value, partial(_put_buffer_back, base, value, base.__getitem__(value, slice(None)))))


def _generator_base(kind: type) -> Any:
    """Return the generator class of torch, NumPy or Python from which a class derives; None if there is none."""
    numpy = sys.modules.get("numpy")
    of_numpy = (numpy.random.RandomState, numpy.random.Generator, numpy.random.BitGenerator) if numpy else ()
    return next((base for base in (random.Random, torch.Generator, *of_numpy) if issubclass(kind, base)), None)


def _generator_restorer(generator: Any) -> Callable[[], Any]:
    """Remember the state of a generator; return a function that puts it back."""
    base = _generator_base(type(generator))
    if base is random.Random:
        return partial(base.setstate, generator, base.getstate(generator))
    if hasattr(base, "set_state"):
        return partial(base.set_state, generator, base.get_state(generator))
    bits = getattr(generator, "bit_generator", generator)
    return partial(setattr, bits, "state", copy.deepcopy(bits.state))


def refill(container: Any, saved: Any) -> None:
    """Replace the contents of a list, deque, dictionary or set, regardless of the methods of its own class."""
    base = _base_of(class_of(container))
    if base is list:
        list.__setitem__(container, slice(None), saved)
        return
    fresh = saved if base is deque else base(saved)  # raises here, before anything is lost, if an element has no hash
    base.clear(container)
    if base is OrderedDict:  # its `update` calls methods of the derived class
        for key, value in fresh.items():
            OrderedDict.__setitem__(container, key, value)
    elif base is deque:
        deque.extend(container, saved)
    else:
        base.update(container, fresh)  # takes the hashes from there


def _failing(
    restorers: Iterable[tuple[Any, Callable[[], Any]]],
) -> list[tuple[Any, Callable[[], Any], BaseException]]:
    """Call all functions that restore objects; return those that raise."""
    failed: list[tuple[Any, Callable[[], Any], BaseException]] = []
    for obj, restore in restorers:
        try:
            restore()
        except BaseException as error:
            failed.append((obj, restore, error))
    return failed


def _put_array_back(owner: Any, saved: Any, flags: list[tuple[Any, bool]]) -> None:
    """Restore the numbers of an array, then whether it and its views can be written to, views last."""
    if (owner.shape, owner.dtype) != (saved.shape, saved.dtype):
        if owner.nbytes != saved.nbytes:
            owner.resize(saved.nbytes // owner.itemsize, refcheck=False)
        owner.dtype = saved.dtype
        owner.shape = saved.shape
    if _plain_view(owner).tobytes() != saved.tobytes():
        if not owner.flags.writeable:
            owner.flags.writeable = True
        _plain_view(owner)[...] = saved
    for view, is_writeable in flags:
        if view.flags.writeable != is_writeable:
            view.flags.writeable = is_writeable


def _plain_view(array: Any) -> Any:
    """View an array without its subclass, such as that of masked arrays, which may hide some of its numbers."""
    numpy = sys.modules["numpy"]
    return array if type(array) is numpy.ndarray else numpy.ndarray.view(array, numpy.ndarray)


def _put_buffer_back(base: Any, value: Any, saved: Any) -> None:
    if memoryview(value).tobytes() != memoryview(saved).tobytes():
        base.__setitem__(value, slice(None), saved)


@lru_cache(maxsize=4096)
def _base_of(kind: type) -> Any:
    return next(base for base in _BASES if issubclass(kind, base))


def _contents_of(base: Any, container: Any) -> Any:
    if base is dict and class_of(container).__iter__ is dict.__iter__:
        return dict.copy(container)  # keeps the stored hashes, even if those of the keys have changed
    return dict(base.items(container)) if issubclass(base, dict) else list(base.__iter__(container))


def _is_same(base: Any, container: Any, saved: Any) -> bool:
    """Whether a container has the same elements in the same order, by identity."""
    if base.__len__(container) != len(saved) or not all(map(operator.is_, base.__iter__(container), saved)):
        return False
    return not isinstance(saved, dict) or all(map(operator.is_, base.values(container), saved.values()))


def _put_contents_back(base: Any, container: Any, saved: Any, filling: Any) -> None:
    if not _is_same(base, container, saved):  # otherwise it is not touched, since other code may be reading it
        refill(container, filling)


def _put_attributes_back(attributes: dict[str, Any], saved: dict[str, Any]) -> None:
    _put_contents_back(dict, attributes, saved, saved)


def _first(elements: Iterable[Any], own: bool) -> Iterable[Any]:
    return elements if own else itertools.islice(elements, _MOST_ELEMENTS)
