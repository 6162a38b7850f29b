"""Put back what reading data, or a hook that is not the module's, moves in the objects it reaches."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import IOBase
from multiprocessing.process import BaseProcess
from threading import Thread
from types import MethodType, ModuleType
from typing import Any

from torch.utils.data.dataloader import _BaseDataLoaderIter as _LoaderIter

from lightning_zico.engine.undo import Remembered
from lightning_zico.errors import UnsupportedBatchError
from lightning_zico.trainers import is_trainer

# Threads and processes go on by themselves; so do trainers, which lead to everything.
_NOT_LOOKED_INTO = (type, ModuleType, Thread, BaseProcess, IOBase)


@contextmanager
def undisturbed(*roots: Any, readable_once: bool = True) -> Iterator[None]:
    """Put back what reading moves: generators, counters, caches and orders in loaders, samplers, datasets, transforms.

    What is reached and put back is told by `Remembered`.

    Args:
        roots: Where to start.
        readable_once: Whether iterators, which cannot be put back, are let pass.

    Raises:
        UnsupportedBatchError: If an iterator is reached that must not be moved.
    """

    def is_open(obj: Any) -> bool:
        if isinstance(obj, _NOT_LOOKED_INTO) or is_trainer(obj):
            return False
        if isinstance(obj, MethodType) and hasattr(obj.__self__, "automatic_optimization"):
            return False  # a callback's `log` is that of the module in training, which is put back by itself
        is_read_once = isinstance(obj, Iterator) and (isinstance(obj, _LoaderIter) or not hasattr(obj, "__dict__"))
        if is_read_once and not readable_once:
            raise UnsupportedBatchError(
                f"The training data holds a {type(obj).__name__}, which can be read once, and training needs it. Use "
                "a loader that starts anew whenever it is iterated."
            )
        return True

    reached = Remembered(is_open=is_open)
    reached.take(*roots)
    try:
        yield
    finally:
        reached.put_back()
