"""Single samples, or the first ones, cut out of a batch.

Index conventions:
    N: samples in a batch
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from lightning_zico._typing import Batch
from lightning_zico.engine.batches import is_nest, map_parts, tensors_of
from lightning_zico.engine.samples import NO_SAMPLES, WAY_OUT, are_alike, fields_of, is_list, num_samples, parts_of
from lightning_zico.errors import NotApplicableError, UnsupportedBatchError

_MOST_SHAPES = 8  # listed in an error


def cut_length(batch: Batch) -> int:
    """Length of dimension 0 that all tensors of a batch share.

    Raises:
        UnsupportedBatchError: If it has no tensor, one without dimensions, or several lengths.
    """
    sizes = [tuple(tensor.shape) for tensor in tensors_of(batch)]
    lengths = {size[0] if size else None for size in sizes}
    if len(lengths) != 1 or None in lengths:
        raise UnsupportedBatchError(
            f"The tensors of a batch have the shapes {sizes}: expected the samples along dimension 0 of every tensor. "
            ' Use `axis="batch"`, or a loader that puts the sample dimension first.'
        )
    return int(lengths.pop() or 0)


@dataclass(frozen=True)
class Cutting:
    """How single samples are cut out of batches.

    Args:
        samples_of: ``(batch, batch_idx) -> samples`` in the batch.
        may_be_time_first: See `cut`.
    """

    samples_of: Callable[[Batch, int], int]
    may_be_time_first: bool = False


# Samples are along dimension 0 of all tensors.
BY_FIRST_DIMENSION = Cutting(lambda batch, _: cut_length(batch))


def check_cut(batch: Batch, count: int | None, *, may_be_time_first: bool = False) -> int:
    """Return the number of samples of a batch, after a check that single ones can be cut out of it.

    Args:
        batch: Any nest.
        count: Its samples, as `num_samples` or the user counts them.
        may_be_time_first: See `cut`.

    Raises:
        NotApplicableError: If their number is unknown, or they cannot be separated.
    """
    if count is None:
        raise NotApplicableError(f"the number of samples in a batch is unknown, so no sample can be cut out. {WAY_OUT}")
    try:
        _cut(batch, slice(0, 1), count, second=may_be_time_first)
    except _UncuttableError:
        shapes = [tuple(tensor.shape) for tensor in tensors_of(batch)]
        shown = ", ".join(map(str, shapes[:_MOST_SHAPES])) + (", ..." if len(shapes) > _MOST_SHAPES else "")
        held = f"tensors of the shapes {shown}" if shown else "no tensors in tuples, lists, mappings or dataclasses"
        raise NotApplicableError(
            f'no single sample can be cut out of a batch of {count} with {held}. Use `axis="batch"`, proxies that take '
            "the batch as a whole, or a loader that puts the sample dimension first."
        ) from None
    if may_be_time_first and any(
        tensor.ndim > 1 and tensor.shape[:2] == (count, count) for tensor in tensors_of(batch)
    ):
        raise NotApplicableError(
            f"the first two dimensions of a tensor both have length {count}, so either may count samples. Use a batch "
            "size that differs from the number of time steps."
        )
    return count


def are_first(batch: Batch, count: int) -> bool:
    """Whether samples differ only in tensors, along dimension 0; everything else is the same for all of them.

    Args:
        batch: Any nest.
        count: Its samples.
    """
    if isinstance(batch, Tensor):
        return not batch.ndim or len(batch) in (count, 1)
    if isinstance(batch, np.ndarray) or _are_plain(batch):
        return len(batch) != count if np.ndim(batch) else True
    return not is_nest(batch) or all(are_first(part, count) for part in parts_of(batch))


def cut(batch: Batch, samples: slice, count: int, *, may_be_time_first: bool) -> Batch:
    """Cut some samples out of a batch that `check_cut` has seen.

    Tensors are cut along the dimension that counts samples. Lists of samples, and lists with a value per sample, are
    sliced. Values that all samples share, such as numbers and tensors of length 1, stay.

    Args:
        batch: Any nest.
        samples: Which samples.
        count: Its samples.
        may_be_time_first: Whether dimension 1 may count samples where dimension 0 does not.
    """
    return _cut(batch, samples, count, second=may_be_time_first)


def first_samples(batch: Batch, most: int, count: int | None = None, *, may_be_time_first: bool = True) -> Batch:
    """Cut a batch to its first samples; the batch itself if that is impossible or unnecessary.

    A batch is cut as a whole or not at all: a graph that is cut in part would have nodes without their edges.

    Args:
        batch: Any nest.
        most: Samples to keep.
        count: Its samples; None to count them by `num_samples`.
        may_be_time_first: See `cut`.

    Raises:
        NotApplicableError: If a tensor to cut is sparse.

    Example:
        >>> first_samples((torch.arange(5), [torch.zeros(n) for n in range(5)]), 2, 5)
        (tensor([0, 1]), [tensor([]), tensor([0.])])
    """
    count = num_samples(batch) if count is None else count
    if count is None or count <= most:
        return batch
    try:
        return _cut(batch, slice(most), count, second=may_be_time_first)
    except _UncuttableError:
        return batch


class _UncuttableError(Exception):
    """A part of a batch that cannot be cut to fewer samples."""


def _cut(batch: Batch, samples: slice, count: int, *, second: bool, inside: bool = False) -> Batch:
    if isinstance(batch, Tensor):
        return _cut_tensor(batch, samples, count, second=second)
    if isinstance(batch, np.ndarray):
        return batch[samples] if batch.ndim and len(batch) == count else batch
    if isinstance(batch, NO_SAMPLES):
        return batch
    if isinstance(getattr(batch, "batch_size", None), torch.Size) and not isinstance(batch, dict):
        return batch[samples]
    if not is_nest(batch):
        if callable(getattr(batch, "clone", None)) or fields_of(batch):  # may hold tensors, which cannot be cut here
            raise _UncuttableError
        return batch
    if isinstance(batch, PackedSequence):
        raise _UncuttableError
    if not is_list(batch) or len(batch) != count:
        return map_parts(partial(_cut, samples=samples, count=count, second=second, inside=True), batch)
    if _are_plain(batch):
        return batch[samples]
    try:
        parts = map_parts(partial(_cut, samples=samples, count=count, second=False, inside=True), batch)
    except _UncuttableError:
        return batch[samples]
    if inside:  # ambiguous: as many views as samples, or samples of that length, such as three images of three channels
        raise _UncuttableError
    return parts


def _are_plain(batch: Batch) -> bool:
    """Whether a batch is a list of numbers or texts."""
    return is_list(batch) and len(batch) > 0 and all(isinstance(part, NO_SAMPLES) for part in batch)


def listed(batch: Batch, count: int) -> frozenset[int]:
    """Find the tensors that are samples, or parts of one, in a list of them, by position in `batches.tensors_of`.

    Args:
        batch: Any nest.
        count: Its samples.

    Example:
        >>> sorted(listed((torch.zeros(2, 5), [{"boxes": torch.zeros(3, 4)}, {"boxes": torch.zeros(1, 4)}]), 2))
        [1, 2]
    """
    found: list[bool] = []

    def visit(part: Batch, *, inside: bool, is_listed: bool) -> Batch:
        if isinstance(part, Tensor):
            found.append(is_listed)
        elif is_nest(part):
            if not is_listed and is_list(part) and len(part) == count:
                # A batch itself may be a list of a few fields, which have a row for each sample.
                are_fields = not inside and all(isinstance(field, Tensor) and len(field) == count for field in part)
                is_listed = are_alike(part) and not are_fields
            map_parts(partial(visit, inside=True, is_listed=is_listed), part)
        return part

    visit(batch, inside=False, is_listed=False)
    return frozenset(position for position, is_listed in enumerate(found) if is_listed)


def check_strided(*tensors: Tensor) -> None:
    """Check that there are no sparse tensors, which cannot be cut into samples nor differentiated by row.

    Raises:
        NotApplicableError: If one is sparse.
    """
    if any(tensor.layout != torch.strided and not tensor.is_nested for tensor in tensors):
        raise NotApplicableError(
            "the batch has a sparse tensor, which cannot be split into samples. Make it dense, or leave this proxy out."
        )


def _cut_tensor(tensor: Tensor, samples: slice, count: int, *, second: bool) -> Tensor:
    check_strided(tensor)
    if tensor.is_nested:
        raise _UncuttableError
    if not tensor.ndim:
        return tensor
    if len(tensor) == count:
        return tensor[samples]
    if second and tensor.ndim > 1 and tensor.shape[1] == count:
        return tensor[:, samples]
    if len(tensor) == 1:  # the same for all samples
        return tensor
    raise _UncuttableError
