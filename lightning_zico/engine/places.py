"""Places where objects hold other objects: attributes, slots, cells of closures, arguments of functions."""

import gc
import threading
import weakref
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache, partial
from types import (
    BuiltinMethodType,
    CellType,
    FunctionType,
    MappingProxyType,
    MemberDescriptorType,
    MethodType,
    MethodWrapperType,
)
from typing import Any

ABSENT = object()
# Classes whose instances refer to other objects and hold nothing else.
LINKS = (
    FunctionType,
    MethodType,
    BuiltinMethodType,
    MethodWrapperType,
    partial,
    memoryview,
    weakref.ref,
    *weakref.ProxyTypes,
    MappingProxyType,
)


def targets_of(link: Any) -> Iterator[Any]:
    """Find the objects to which a link refers, except positional arguments, which may be replaced by others."""
    if type(link) in weakref.ProxyTypes:
        with suppress(ReferenceError):
            yield link.__repr__.__self__  # the proxy passes this on to its object
    elif isinstance(link, MethodType):
        yield from (link.__self__, link.__func__)
    elif isinstance(link, (BuiltinMethodType, MethodWrapperType)):
        yield link.__self__
    elif isinstance(link, partial):
        yield from (link.func, link.keywords, vars(link))
    elif isinstance(link, FunctionType):
        yield from link.__closure__ or ()
        yield from (link.__kwdefaults__, vars(link))
    elif isinstance(link, weakref.ref):
        yield link()
    elif isinstance(link, memoryview):
        with suppress(ValueError):  # released
            yield link.obj
    else:
        yield from (target for target in gc.get_referents(link) if "__module__" not in target)  # that of a class


def restore_attribute(obj: Any, name: str, value: Any) -> None:
    """Assign a value to an attribute unless the attribute already has it."""
    if getattr(obj, name) is not value:
        setattr(obj, name, value)


def set_arguments(function: Any, _: str, args: tuple[Any, ...]) -> None:
    """Set the positional arguments of a `partial` unless it already has them."""
    if function.args is not args:
        partial.__setstate__(function, (function.func, args, function.keywords, vars(function)))  # type: ignore[attr-defined]


def attributes_of(obj: Any) -> Any:
    """Return the ``__dict__`` of an object even if its class overrides attribute access; None if it has none."""
    base: Any = threading.local if issubclass(class_of(obj), threading.local) else object
    try:
        return base.__getattribute__(obj, "__dict__")
    except AttributeError:
        return None


def content_of(cell: CellType) -> Any:
    """Return the content of a cell, or `ABSENT`."""
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return ABSENT


def fill_cell(cell: CellType, content: Any) -> None:
    """Set the content of a cell to what `content_of` returned."""
    now = content_of(cell)
    if now is content:
        return
    if content is ABSENT:
        del cell.cell_contents
    else:
        cell.cell_contents = content


def class_of(obj: Any) -> Any:
    """Return the class of an object, typed as Any, since mypy considers classes unhashable."""
    return type(obj)


@lru_cache(maxsize=4096)
def slots_of(kind: type) -> tuple[MemberDescriptorType, ...]:
    """List the slots in which instances of a class keep attributes, as declared by classes written in Python."""
    declaring = [base for base in kind.__mro__ if "__slots__" in vars(base) or base is defaultdict]
    return tuple(slot for base in declaring for slot in vars(base).values() if isinstance(slot, MemberDescriptorType))


def has_slots(kind: Any) -> bool:
    """Whether instances of a class keep attributes in slots."""
    return bool(slots_of(kind))


def is_filled(slot: MemberDescriptorType, obj: Any) -> bool:
    """Whether an object has a value in a slot."""
    try:
        slot.__get__(obj)
    except AttributeError:
        return False
    return True


def set_slot(obj: Any, slot: MemberDescriptorType, value: Any) -> None:
    """Set the value in a slot, also if the class is frozen."""
    slot.__set__(obj, value)


def fill_slot(slot: MemberDescriptorType, obj: Any, content: Any) -> None:
    """Set the value of a slot, or delete it if the value is `ABSENT`, unless the slot already has it."""
    now = slot.__get__(obj) if is_filled(slot, obj) else ABSENT
    if now is content:
        return
    if content is ABSENT:
        slot.__delete__(obj)
    else:
        slot.__set__(obj, content)
