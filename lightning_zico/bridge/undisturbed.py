"""Restore what reading data, or a hook that is not the module's, changes in the objects it reaches."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import IOBase
from multiprocessing.process import BaseProcess
from threading import Thread
from types import MethodType, ModuleType
from typing import Any

from torch.utils.data.dataloader import _BaseDataLoaderIter as _LoaderIter

from lightning_zico.bridge.trainers import is_trainer
from lightning_zico.engine.interrupts import finally_called
from lightning_zico.engine.undo import Remembered
from lightning_zico.errors import UnsupportedBatchError

# Not searched: threads and processes run on by themselves, and so do trainers, which lead to everything.
_NOT_LOOKED_INTO = (type, ModuleType, Thread, BaseProcess, IOBase)


@contextmanager
def undisturbed(*roots: Any, readable_once: bool = True) -> Iterator[None]:
    """Restore what reading changes: generators, counters, caches and orders in loaders, samplers, datasets, transforms.

    `Remembered` documents which objects are reached and restored.

    Args:
        roots: Objects to start from.
        readable_once: Whether to accept iterators, which cannot be restored.

    Raises:
        UnsupportedBatchError: If an iterator is reached that must not be advanced.
    """

    def is_open(obj: Any) -> bool:
        if isinstance(obj, _NOT_LOOKED_INTO) or is_trainer(obj):
            return False
        if isinstance(obj, MethodType) and hasattr(obj.__self__, "automatic_optimization"):
            return False  # a callback's `log` is that of the module in training, which is restored separately
        is_read_once = isinstance(obj, Iterator) and (isinstance(obj, _LoaderIter) or not hasattr(obj, "__dict__"))
        if is_read_once and not readable_once:
            raise UnsupportedBatchError(
                f"The training data holds a {type(obj).__name__}, which can be read only once, and training needs it. "
                "Use a loader that starts again each time it is iterated."
            )
        return True

    reached = Remembered(is_open=is_open)
    reached.take(*roots)
    with finally_called(reached.put_back):
        yield
