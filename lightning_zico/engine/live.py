"""Iterators and files, whose position changes when they are read.

An iterator cannot go back, so a copy takes its place while a step runs. A file that is only read is set back to its
position.
"""

import io
import warnings
from collections.abc import Callable
from functools import partial
from types import BuiltinMethodType, MethodWrapperType, WrapperDescriptorType
from typing import Any

_MOST_ELEMENTS = 1000
_MOST_BYTES_OF_CHARACTER = 4


def is_live(kind: Any) -> bool:
    """Whether objects of a class are iterators that can be copied, the bound method of one, or files."""
    return _is_iterator(kind) or issubclass(kind, (MethodWrapperType, BuiltinMethodType, io.IOBase))


def _is_iterator(kind: Any) -> bool:
    # Classes written in Python keep their position in attributes. Generators, files and, since Python 3.14, itertools
    # do not show theirs.
    next_method = getattr(kind, "__next__", None)
    return isinstance(next_method, WrapperDescriptorType) and kind.__reduce__ is not object.__reduce__


def copy_iterator(value: Any, copies: dict[int, Any]) -> Any:
    """Copy an iterator, with the iterators that it reads, or its bound method; their elements are shared.

    Args:
        value: See `is_live`. Anything else is returned as it is.
        copies: Copies made so far, by ``id`` of the original. New ones are added.

    Raises:
        TypeError: If it cannot be copied, for example because it reads a generator.
        RuntimeError: If it reads a dictionary or a set that has changed its size, so that it cannot continue.
    """
    if isinstance(value, (MethodWrapperType, BuiltinMethodType)) and _is_iterator(type(value.__self__)):
        return getattr(copy_iterator(value.__self__, copies), value.__name__)
    if not _is_iterator(type(value)):
        if hasattr(type(value), "__next__"):
            raise TypeError(f"cannot copy a {type(value).__name__}")
        return value
    if id(value) not in copies:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # from itertools since Python 3.12
            make, args, *rest = value.__reduce__()
            copy = make(*(_copy_source(each, copies) for each in args))
            if rest and rest[0] is not None:
                copy.__setstate__(_copy_state(rest[0], copies))
        copies[id(value)] = copy
    return copies[id(value)]


def _copy_source(value: Any, copies: dict[int, Any]) -> Any:
    """Copy the source of an iterator if it is an iterator or has some in it, as a `chain` does; else return it."""
    if type(value) in (tuple, list) and any(_is_iterator(type(each)) for each in value[:_MOST_ELEMENTS]):
        return type(value)(_copy_source(each, copies) for each in value)
    return copy_iterator(value, copies)


def _copy_state(state: Any, copies: dict[int, Any]) -> Any:
    if not isinstance(state, tuple):
        return state
    # `itertools.cycle` appends to the list in its state
    return tuple(list(each) if type(each) is list else _copy_source(each, copies) for each in state)


def has_position(file: io.IOBase) -> bool:
    """Whether a file has a position and is either only read or in memory."""
    try:
        if isinstance(file, (io.BytesIO, io.StringIO)) or (file.seekable() and not file.writable()):
            return file.tell() >= 0
    except (OSError, ValueError):  # a line of text is being read, or the file is closed
        pass
    return False


def position_restorer(file: Any, take_room: Callable[[int], bool]) -> Callable[[], Any] | None:
    """Remember the position of a file that is only read, and the content of one in memory.

    Args:
        file: The file.
        take_room: Whether a number of bytes may be copied. If not, only the position of a file in memory is remembered.

    Returns:
        A function that puts it back; None for other files.
    """
    if not has_position(file):
        return None
    position = file.tell()
    if isinstance(file, io.BytesIO):
        with file.getbuffer() as view:
            num_bytes = view.nbytes
        if take_room(num_bytes):
            return partial(_rewrite, io.BytesIO, file, io.BytesIO.__getstate__(file))
    elif isinstance(file, io.StringIO):
        num_characters = file.seek(0, io.SEEK_END)
        file.seek(position)
        if take_room(_MOST_BYTES_OF_CHARACTER * num_characters):
            return partial(_rewrite, io.StringIO, file, io.StringIO.__getstate__(file))
    return partial(_seek, file, position)


def _rewrite(base: Any, file: Any, state: Any) -> None:
    """Restore content and position of a file in memory."""
    content, present = state[0], base.getvalue(file)
    if present != content:
        if base is io.BytesIO and len(present) == len(content):  # this works also while its buffer is in use
            with base.getbuffer(file) as view:
                view[:] = content
        else:
            base.__setstate__(file, state)  # unlike `write`, it does not translate ends of lines
    _seek(file, state[-2])


def _seek(file: Any, position: int) -> None:
    try:
        is_there = file.tell() == position
    except OSError:  # between two lines of text, `tell` fails until the file is given a position
        is_there = False
    if not is_there:
        file.seek(position)


class HeldTuple:
    """A tuple whose elements can be replaced: a new tuple takes all places of the old one.

    Args:
        value: The tuple.
    """

    def __init__(self, value: Any) -> None:
        self.value: Any = value
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
