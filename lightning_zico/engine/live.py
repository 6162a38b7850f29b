"""Iterators and files, which move on when somebody reads them.

An iterator cannot be told to go back, so a copy stands in its place while a step runs. A file that is only read goes
back to its position.
"""

import io
import warnings
from collections.abc import Callable
from functools import partial
from types import BuiltinMethodType, MethodWrapperType, WrapperDescriptorType
from typing import Any

_MOST_ELEMENTS = 1000


def is_live(kind: Any) -> bool:
    """Whether objects of a class are iterators that can be copied, the bound method of one, or files."""
    return _is_iterator(kind) or issubclass(kind, (MethodWrapperType, BuiltinMethodType, io.IOBase))


def _is_iterator(kind: Any) -> bool:
    # Classes written in Python keep their place in attributes, and those of generators and files say nothing of it.
    next_method = getattr(kind, "__next__", None)
    return isinstance(next_method, WrapperDescriptorType) and kind.__reduce__ is not object.__reduce__


def copied_iterator(value: Any, copies: dict[int, Any]) -> Any:
    """Copy an iterator, with those that it reads, or its bound method; what they yield is shared.

    Args:
        value: See `is_live`. Anything else is returned as it is.
        copies: Copies made so far, by ``id`` of the original. New ones are added.

    Raises:
        TypeError: If it cannot be copied, since it reads a generator, for example.
    """
    if isinstance(value, (MethodWrapperType, BuiltinMethodType)) and _is_iterator(type(value.__self__)):
        return getattr(copied_iterator(value.__self__, copies), value.__name__)
    if not _is_iterator(type(value)):
        if hasattr(type(value), "__next__"):
            raise TypeError(f"cannot copy a {type(value).__name__}")
        return value
    if id(value) not in copies:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # itertools say so since Python 3.12
            make, args, *rest = value.__reduce__()
            copy = make(*(_copied_source(each, copies) for each in args))
            if rest and rest[0] is not None:
                copy.__setstate__(_copied_state(rest[0], copies))
        copies[id(value)] = copy
    return copies[id(value)]


def _copied_source(value: Any, copies: dict[int, Any]) -> Any:
    """Copy what an iterator reads from, if it is one, or has some among its first elements, as that of a `chain`."""
    if type(value) in (tuple, list) and any(_is_iterator(type(each)) for each in value[:_MOST_ELEMENTS]):
        return type(value)(_copied_source(each, copies) for each in value)
    return copied_iterator(value, copies)


def _copied_state(state: Any, copies: dict[int, Any]) -> Any:
    if not isinstance(state, tuple):
        return state
    # `itertools.cycle` appends to the list in its state
    return tuple(list(each) if type(each) is list else _copied_source(each, copies) for each in state)


def position_restorer(file: io.IOBase) -> Callable[[], Any] | None:
    """Remember the position of a file that is only read, and the content of one in memory; None for others.

    Returns:
        A function that puts it back.
    """
    try:
        if isinstance(file, (io.BytesIO, io.StringIO)):
            return partial(_rewrite, file, file.getvalue(), file.tell())
        if file.seekable() and not file.writable():
            return partial(_seek, file, file.tell())
    except (OSError, ValueError):  # closed, or a line of text is being read
        pass
    return None


def _rewrite(file: Any, content: Any, position: int) -> None:
    if file.getvalue() != content:
        file.seek(0)
        file.truncate()
        file.write(content)
    _seek(file, position)


def _seek(file: Any, position: int) -> None:
    if file.tell() != position:
        file.seek(position)


class HeldTuple:
    """A tuple whose elements can be replaced, by a new tuple in all places of the old one.

    Args:
        value: The tuple.
    """

    def __init__(self, value: Any) -> None:
        self.value = value
        self.places: list[tuple[Callable[[Any, Any, Any], Any], Any, Any]] = []  # setter, holder, key

    def set(self, idx: int, element: Any) -> None:
        """Replace one element."""
        elements = tuple(element if at == idx else each for at, each in enumerate(tuple.__iter__(self.value)))
        attributes = getattr(self.value, "__dict__", None)
        self.value = tuple.__new__(type(self.value), elements)
        if attributes:
            vars(self.value).update(attributes)
        for setter, holder, key in self.places:
            setter(holder, key, self.value)
