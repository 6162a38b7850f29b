"""Batches of fewer samples than the loader's: loaders are built again, and other batches are cut."""

import copy
from collections.abc import Sequence
from typing import Any

from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from lightning_zico._typing import Batch, NumSamples
from lightning_zico.engine.cutting import first_samples
from lightning_zico.engine.samples import num_samples as counted_samples
from lightning_zico.engine.samples import stated_samples


def with_batch_size(data: Any, batch_size: int) -> Any:
    """Replace loaders by loaders of the same samples in smaller batches.

    A replacement has the same dataset, sampler and ``collate_fn``, so it works for graphs, padded text and lists of
    boxes, and it reads no more samples than are used. It has no worker processes: a few small batches are read before
    these have started.

    Args:
        data: A loader, or a collection of loaders.
        batch_size: The largest number of samples in a batch.

    Returns:
        The same data with all loaders replaced for which `can_be_built_again` holds and whose batches are larger.
    """
    return tree_map_only(
        DataLoader, lambda loader: _smaller(loader, batch_size) if can_be_built_again(loader) else loader, data
    )


def can_be_built_again(loader: "DataLoader[Any]") -> bool:
    """Whether a loader can have another batch size: not with a batch sampler of its own, nor on an iterable dataset."""
    return type(loader.batch_sampler) is BatchSampler and not isinstance(loader.dataset, IterableDataset)


def cut_to(batches: Sequence[Batch], batch_size: int, num_samples: NumSamples | None = None) -> list[Batch]:
    """Cut batches to their first samples; a batch that cannot be cut stays whole.

    Args:
        batches: Batches as the loader yields them.
        batch_size: The largest number of samples in a batch.
        num_samples: The user's count of samples; None to read it from a batch.
    """
    counts = [counted(batch, num_samples) for batch in batches]
    return [
        batch if count is None or count <= batch_size else first_samples(batch, batch_size, count)
        for batch, count in zip(batches, counts, strict=True)
    ]


def num_larger(batches: Sequence[Batch], batch_size: int, num_samples: NumSamples | None = None) -> int:
    """Count the batches that have more samples than that, or an unknown number of samples."""
    counts = [counted(batch, num_samples) for batch in batches]
    return sum(count is None or count > batch_size for count in counts)


def own_batch_size(data: Any, num_samples: NumSamples | None = None) -> int | None:
    """Return the largest number of samples in a batch of the data itself, as far as it is known without reading."""
    if isinstance(data, list | tuple) and not any(isinstance(leaf, DataLoader) for leaf in tree_leaves(list(data))):
        return max((count for batch in data if (count := counted(batch, num_samples)) is not None), default=None)
    sizes = [leaf.batch_size for leaf in tree_leaves(data) if isinstance(leaf, DataLoader)]
    return max((size for size in sizes if size is not None), default=None)


def are_all_built_again(data: Any) -> bool:
    """Whether data consists of loaders that can all be built again, so that no batch needs to be cut."""
    leaves = tree_leaves(data)
    return bool(leaves) and all(isinstance(leaf, DataLoader) and can_be_built_again(leaf) for leaf in leaves)


def _smaller(loader: "DataLoader[Any]", batch_size: int) -> "DataLoader[Any]":
    if loader.batch_size is None or loader.batch_size <= batch_size:
        return loader
    # A copy, because subclasses, such as those of torch_geometric, build themselves in ways of their own. Their
    # attributes are set past `DataLoader.__setattr__`, which refuses that.
    smaller = copy.copy(loader)
    vars(smaller).update(
        batch_sampler=BatchSampler(loader.sampler, batch_size, loader.drop_last),
        batch_size=batch_size,
        num_workers=0,
        prefetch_factor=None,
        persistent_workers=False,
        timeout=0,
        _iterator=None,
    )
    return smaller


def counted(batch: Batch, num_samples: NumSamples | None) -> int | None:
    """Count the samples of a batch, as a function of the user's does or as the batch shows; None if it shows none."""
    stated = stated_samples(batch, num_samples if callable(num_samples) else None)
    return counted_samples(batch) if stated is None else stated
