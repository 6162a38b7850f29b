"""Put back what reading data, or a hook that is not the module's, moves in the objects it reaches."""

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from io import IOBase
from multiprocessing.process import BaseProcess
from threading import Thread
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter as _LoaderIter

from lightning_zico.engine.scope import MOST_BYTES, put_back, refill, restorer_of
from lightning_zico.errors import UnsupportedBatchError
from lightning_zico.trainers import is_trainer

# A generator that stands behind this many elements of one list is not looked for: such lists hold samples.
_MOST_ELEMENTS = 1000
# Of tensors and arrays that are small enough to be an order of samples, so much together is copied.
_MOST_BYTES_TOGETHER = 2**28
_EMPTY_CELL = CellType()
# Threads and processes go on by themselves; so do trainers, which lead to everything.
_NOT_LOOKED_INTO = (type, ModuleType, Thread, BaseProcess, IOBase)


@contextmanager
def undisturbed(*roots: Any, readable_once: bool = True) -> Iterator[None]:
    """Put back what reading moves: generators, counters, caches and orders in loaders, samplers, datasets, transforms.

    Of every object that is reached through attributes, containers, bound methods, partial functions and closures,
    generators of torch, NumPy and Python get their state back, and objects their attributes; lists, dictionaries, sets
    and deques their elements, small tensors and arrays their numbers. What stands in global variables is not reached.

    Args:
        roots: Where to start.
        readable_once: Whether iterators, which cannot be put back, are let pass.

    Raises:
        UnsupportedBatchError: If an iterator is reached that must not be moved.
    """
    restore: list[Callable[[], Any]] = []
    seen: set[int] = set()
    waiting = list(roots)
    room = _MOST_BYTES_TOGETHER
    while waiting:
        obj = waiting.pop()
        if id(obj) in seen or isinstance(obj, _NOT_LOOKED_INTO) or is_trainer(obj):
            continue
        seen.add(id(obj))
        restore_generator = restorer_of(obj)
        if restore_generator is not None:
            restore.append(restore_generator)
        elif isinstance(obj, Tensor | np.ndarray):
            copyable = isinstance(obj, np.ndarray) or (obj.layout == torch.strided and not obj.is_meta)
            if copyable and obj.nbytes <= min(MOST_BYTES, room):
                room -= obj.nbytes
                restore.append(partial(put_back, obj, obj.detach().clone() if isinstance(obj, Tensor) else obj.copy()))
        elif (
            isinstance(obj, Iterator)
            and not readable_once
            and (isinstance(obj, _LoaderIter) or not hasattr(obj, "__dict__"))
        ):
            raise UnsupportedBatchError(
                f"The training data holds a {type(obj).__name__}, which can be read once, and training needs it. Use "
                "a loader that starts anew whenever it is iterated."
            )
        else:
            if isinstance(obj, list | deque | dict | set):
                restore.append(partial(refill, obj, obj.copy()))
            elif hasattr(obj, "__dict__"):
                restore.append(partial(refill, vars(obj), vars(obj).copy()))
            waiting.extend(_parts(obj))
    try:
        yield
    finally:
        for undo in restore:
            undo()


def _parts(obj: Any) -> list[Any]:
    if isinstance(obj, Mapping):
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
    return [value for key, value in attributes.items() if not (key == "_iterator" and isinstance(obj, DataLoader))]
