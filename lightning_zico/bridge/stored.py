"""Batches on disk: written once as they are read, and loaded one at a time for every candidate.

They are not read from the data again for each candidate. Worker processes have no loader, a data module is torn down
before the next repeat, and an augmentation or a shuffle with a generator of its own would give each candidate other
samples. To decode 1,000 photographs also takes longer than a tenth of a forward pass of many networks.
"""

import os
import warnings
import weakref
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import torch
from torch import Tensor

from lightning_zico._typing import Batch
from lightning_zico.engine.batches import copied_batch, map_tensors
from lightning_zico.folders import temporary_folder

_MOST_IN_MEMORY = 64_000_000  # bytes; as many images of 3 x 224 x 224 as a network takes in a second or two


def hold_batches(batches: Iterable[Batch]) -> Sequence[Batch]:
    """Hold batches in memory if they are few, and otherwise on disk, one at a time as they come.

    Args:
        batches: Batches, perhaps of a generator.
    """
    source = iter(batches)
    held: list[Batch] = []
    num_bytes = 0
    for batch in source:
        held.append(batch)
        num_bytes += _count_bytes(batch)
        if num_bytes > _MOST_IN_MEMORY:
            return StoredBatches(chain(_drain(held), source))
    return held


def _count_bytes(batch: Batch) -> int:
    """Count the bytes of a batch's tensors and arrays; other objects count as nothing."""
    num_bytes = 0

    def add_tensor(tensor: Tensor) -> Tensor:
        nonlocal num_bytes
        num_bytes += tensor.numel() * tensor.element_size()
        return tensor

    def add_other(part: Any) -> Any:
        nonlocal num_bytes
        num_bytes += part.nbytes if isinstance(part, np.ndarray) else 0
        return part

    map_tensors(add_tensor, batch, add_other)
    return num_bytes


def _drain(batches: list[Batch]) -> Iterable[Batch]:
    """Yield batches without keeping them."""
    batches.reverse()
    while batches:
        yield batches.pop()


class StoredBatches(Sequence[Batch]):
    """Batches in a temporary folder, which is removed with this object; each access loads one.

    A pickled copy reads the same folder, so that worker processes on this machine share one copy of the samples, in
    the system's page cache. It is valid while this object lives.

    Args:
        batches: Batches. From the first one on that cannot be written, they are kept in memory, with a warning.
    """

    def __init__(self, batches: Iterable[Batch]) -> None:
        closing = ExitStack()
        self._folder = closing.enter_context(temporary_folder())
        self._finalizer = weakref.finalize(self, _close_in, os.getpid(), closing)
        self._num_stored = 0
        self._others: list[Batch] = []
        for batch in batches:
            if self._others or not self._store(batch):
                self._others.append(batch)

    def _store(self, batch: Batch) -> bool:
        """Write a batch, and return whether that is possible."""
        path = self._path(self._num_stored)
        try:
            # A copy, since the file of a view would hold all that it is a view of.
            # Like all that goes to worker processes, with classes that are defined in a script or a notebook.
            torch.save(copied_batch(batch), path, pickle_module=cloudpickle)
        except Exception as error:  # the disk is full, or an object cannot be pickled
            path.unlink(missing_ok=True)
            reason = " ".join(str(error).split())
            warnings.warn(
                f"Samples for features are kept in memory, since they cannot be written to {self._folder.parent}: "
                f"{type(error).__name__}: {reason} Set TMPDIR to a folder with more space, or lower "
                "`num_samples_transfer`.",
                stacklevel=2,
            )
            return False
        self._num_stored += 1
        return True

    def __len__(self) -> int:
        return self._num_stored + len(self._others)

    def __getitem__(self, idx: Any) -> Any:
        if isinstance(idx, slice):
            return [self[each] for each in range(*idx.indices(len(self)))]
        position = range(len(self))[idx]
        if position >= self._num_stored:
            return self._others[position - self._num_stored]
        return torch.load(self._path(position), mmap=True, weights_only=False)  # own file, with any user's objects

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle, without the right to remove the folder."""
        return {**vars(self), "_finalizer": None}

    def _path(self, idx: int) -> Path:
        return self._folder / f"{idx}.pt"


def _close_in(pid: int, closing: ExitStack) -> None:
    """Close in the process that opened, and not in its forks."""
    if os.getpid() == pid:
        closing.close()
