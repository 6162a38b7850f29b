"""Batches as nests of tensors: taken apart, put together again, compared."""

import copy
import dataclasses
from collections import UserDict
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_zico._typing import Batch
from lightning_zico.errors import UnsupportedBatchError


def tensors_of(batch: Batch) -> list[Tensor]:
    """List the tensors in a nest of tuples, lists, mappings and dataclasses, in a fixed order.

    Example:
        >>> [t.shape for t in tensors_of({"x": torch.zeros(2, 3), "y": [torch.zeros(2), "two"]})]
        [torch.Size([2, 3]), torch.Size([2])]
    """
    found: list[Tensor] = []

    def visit(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(visit, batch)
    return found


def map_tensors(function: Callable[[Tensor], Tensor], batch: Batch) -> Batch:
    """Apply a function to every tensor and build the same nest around the results.

    The containers are new, so that whoever pops a key from the result leaves ``batch`` alone. An object of another
    class that has a ``clone`` method, such as a graph of ``torch_geometric``, is cloned; everything else is passed on
    as it is.

    Example:
        >>> map_tensors(lambda t: t + 1, (torch.zeros(1), {"n": 3}))
        (tensor([1.]), {'n': 3})
    """
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        mapped = _copied(batch)
        for key, value in batch.items():
            mapped[key] = map_tensors(function, value)
        return mapped
    if isinstance(batch, tuple | list):
        parts = [map_tensors(function, part) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        mapped = copy.copy(batch)
        for field in dataclasses.fields(batch):
            value = map_tensors(function, getattr(batch, field.name))
            object.__setattr__(mapped, field.name, value)  # also where the class is frozen
        return mapped
    clone = getattr(batch, "clone", None)
    return clone() if callable(clone) else batch


def _copied(batch: Mapping[Any, Any]) -> Any:
    if isinstance(batch, dict | UserDict):
        return copy.copy(batch)
    if isinstance(batch, MutableMapping):
        # Told to keep the values; copy.copy would share whatever a foreign class stores them in.
        return copy.deepcopy(batch, {id(value): value for value in batch.values()})
    return dict(batch)


def with_tensors(batch: Batch, tensors: Sequence[Tensor]) -> Batch:
    """Build the same nest around other tensors, given in the order of `tensors_of`."""
    remaining = iter(tensors)
    return map_tensors(lambda _: next(remaining), batch)


def num_samples(batch: Batch) -> int:
    """Count the samples of a batch: the length of dimension 0 that all its tensors share.

    Raises:
        UnsupportedBatchError: If it has no tensor, one without dimensions, or several lengths.
    """
    sizes = [tuple(tensor.shape) for tensor in tensors_of(batch)]
    lengths = {size[0] if size else None for size in sizes}
    if len(lengths) != 1 or None in lengths:
        raise UnsupportedBatchError(
            f"The tensors of a batch have the shapes {sizes}; to tell its samples apart, dimension 0 of all must "
            'count them. Use `axis="batch"`, or a loader that puts the sample dimension first.'
        )
    return int(lengths.pop() or 0)


def first_samples(batch: Batch, most: int) -> Batch:
    """Cut a batch to its first samples, if dimension 0 of all its tensors counts them; else leave it whole.

    Example:
        >>> first_samples((torch.arange(5), torch.arange(5)), 2)
        (tensor([0, 1]), tensor([0, 1]))
    """
    try:
        num_samples(batch)
    except UnsupportedBatchError:
        return batch
    return map_tensors(lambda tensor: tensor[:most], batch)


def all_equal(batches: Sequence[Batch]) -> bool:
    """Tell whether there are at least two batches and all hold the same tensors.

    Batches without tensors are never called equal, since what they hold cannot be compared.
    """
    first, *others = [tensors_of(batch) for batch in batches] or [[]]
    return bool(others and first) and all(
        len(first) == len(other) and all(_equal(a, b) for a, b in zip(first, other, strict=True)) for other in others
    )


def _equal(a: Tensor, b: Tensor) -> bool:
    try:
        return torch.equal(a, b)
    except (NotImplementedError, RuntimeError):  # sparse and nested tensors, which are not compared
        return False
