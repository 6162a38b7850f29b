"""Batches of fewer samples than the data's own: loaders are built again, and other batches are cut."""

import copy
import math
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from lightning_zico._typing import Batch, NumSamples
from lightning_zico.bridge.trainers import without_iterator
from lightning_zico.engine.batches import tensors_of
from lightning_zico.engine.cutting import first_samples
from lightning_zico.engine.samples import num_samples as counted_samples
from lightning_zico.engine.samples import stated_samples


class Cut(NamedTuple):
    """Batch sizes before and after batches were made smaller.

    Args:
        own: The largest number of samples in a batch of the data itself.
        to: The largest number of samples in a batch that candidates are scored on.
    """

    own: int
    to: int

    def scale(self, num_samples: NumSamples | None) -> NumSamples | None:
        """Return what the user states for the data's own batches, as it holds for the smaller ones.

        A function counts the samples of any batch, and a number is lowered in proportion.
        """
        return max(1, num_samples * self.to // self.own) if isinstance(num_samples, int) else num_samples

    @property
    def way_back(self) -> str:
        """What to do if a step fails on the smaller batches, for errors."""
        return (
            f"It was scored on fewer samples than the {self.own} of your batches; if the step needs its own batch "
            "size, pass `batch_size=None`."
        )


class Smaller:
    """Makes the batches of training data smaller, and records which were.

    A loader is built again with the same dataset, sampler and ``collate_fn``, so this works for graphs, padded text and
    lists of boxes, and no more samples are read than are used. It has no worker processes: a few small batches are read
    before these have started. Only with a ``worker_init_fn``, on which a dataset may rely, it has one. Batches of
    loaders with a batch sampler of their own, of iterable datasets, and of anything that is not a loader are cut to
    their first samples; a batch that cannot be cut stays whole.

    Args:
        batch_size: The largest number of samples in a batch.
        num_samples: The user's count of samples; None to read it from a batch.
    """

    def __init__(self, batch_size: int, num_samples: NumSamples | None = None) -> None:
        self._batch_size = batch_size
        self._num_samples = num_samples
        self._own = 0
        self._num_whole = 0
        self._cuts_whole_batches = False

    @property
    def cut(self) -> Cut | None:
        """The batch sizes before and after; None if no batch became smaller."""
        return Cut(self._own, self._batch_size) if self._own else None

    @property
    def num_whole(self) -> int:
        """Number of batches that may have more samples, because they could not be counted or cut."""
        return self._num_whole

    def replace_loaders(self, data: Any) -> Any:
        """Replace the loaders in data by loaders with smaller batches.

        Args:
            data: A loader, a collection of loaders, or an iterable of batches.
        """
        loaders = [leaf for leaf in tree_leaves(data) if isinstance(leaf, DataLoader)]
        # A function of the user counts the samples of what a collection yields, not of what one of its loaders does.
        is_counted_whole = not isinstance(data, DataLoader) and callable(self._num_samples)
        self._cuts_whole_batches = not loaders or (is_counted_whole and not all(map(self._is_exact, loaders)))
        return tree_map_only(DataLoader, self._replace, data)

    def batch(self, batch: Batch) -> Batch:
        """Cut a batch of the data to its first samples, unless it comes from loaders with smaller batches."""
        return self._cut(batch) if self._cuts_whole_batches else batch

    def _is_exact(self, loader: "DataLoader[Any]") -> bool:
        """Whether batches of a loader have the right size, perhaps after it is built again, without being cut."""
        own = _batch_size_of(loader)
        is_small = own is not None and own <= self._batch_size
        can_be_built_again = own is not None and not isinstance(loader.dataset, IterableDataset)
        # A subclass that iterates in its own way may have batches of any size.
        return (is_small or can_be_built_again) and type(loader).__iter__ is DataLoader.__iter__

    def _replace(self, loader: "DataLoader[Any]") -> Any:
        own = _batch_size_of(loader)
        is_exact, only = self._is_exact(loader), None
        if own is not None and own > self._batch_size and not isinstance(loader.dataset, IterableDataset):
            loader = _rebuild(loader, self._batch_size)
            self._own, only = max(self._own, own), own
        return loader if is_exact or self._cuts_whole_batches else _Cutting(loader, self, only)

    def _cut(self, batch: Batch, only: int | None = None) -> Batch:
        """Cut a batch.

        Args:
            batch: Any nest.
            only: The one number of samples that a batch must be seen to have; None to cut all that may be larger.
        """
        stated = stated_samples(batch, self._num_samples if only is None or callable(self._num_samples) else None)
        count = counted_samples(batch) if stated is None else stated
        if only is not None and count != only:
            return batch
        if _may_have(batch, count) <= self._batch_size:
            return batch
        cut = batch if count is None else first_samples(batch, self._batch_size, count)
        if count is None or _shapes_of(cut) == _shapes_of(batch):
            self._num_whole += 1
            return batch
        self._own = max(self._own, count)
        return cut


class _Cutting:
    """A loader whose batches are cut as they come."""

    def __init__(self, loader: "DataLoader[Any]", smaller: Smaller, only: int | None = None) -> None:
        # Without the iterator that it keeps, and with that worker processes and the state of their generators.
        self._loader = without_iterator(loader)
        self._smaller = smaller
        self._only = only

    def __iter__(self) -> Iterator[Batch]:
        # Not a generator, because a loader draws a seed when it is iterated, in the order of a collection.
        return map(partial(self._smaller._cut, only=self._only), iter(self._loader))

    def __len__(self) -> int:
        return len(self._loader)


def _batch_size_of(loader: "DataLoader[Any]") -> int | None:
    """Return the batch size of a loader; None if it does not batch, or has a batch sampler of its own."""
    sampler = loader.batch_sampler
    return sampler.batch_size if type(sampler) is BatchSampler else None


def _rebuild(loader: "DataLoader[Any]", batch_size: int) -> "DataLoader[Any]":
    """Build a loader with other batches; its batch sampler is torch's."""
    # A copy, because subclasses, such as those of torch_geometric, build themselves in ways of their own. Their
    # attributes are set past `DataLoader.__setattr__`, which refuses that.
    smaller, sampler = copy.copy(loader), loader.batch_sampler
    vars(smaller).update(
        batch_sampler=BatchSampler(sampler.sampler, batch_size, sampler.drop_last),  # type: ignore[union-attr]
        batch_size=batch_size,
        persistent_workers=False,
        _iterator=None,
    )
    if loader.num_workers and loader.worker_init_fn is not None:
        vars(smaller).update(num_workers=1)
    else:
        vars(smaller).update(num_workers=0, prefetch_factor=None, timeout=0)
    return smaller


def _may_have(batch: Batch, count: int | None) -> float:
    """Return the most samples that a batch may have: if unknown, the length of the longest tensor in it."""
    if count is not None:
        return count
    return max((len(tensor) for tensor in tensors_of(batch) if tensor.ndim), default=math.inf)


def _shapes_of(batch: Batch) -> list[torch.Size]:
    return [tensor.shape for tensor in tensors_of(batch)]
