"""Batches as nests of tensors: flatten, rebuild and compare them."""

import copy
import dataclasses
from collections import UserDict
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_zico._typing import Batch


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


def _cloned(part: Any) -> Any:
    clone = getattr(part, "clone", None)
    return clone() if callable(clone) else part


def map_tensors(function: Callable[[Tensor], Tensor], batch: Batch, others: Callable[[Any], Any] = _cloned) -> Batch:
    """Apply a function to every tensor and build the same nest around the results.

    The containers are new, so popping a key from the result does not change ``batch``.

    Args:
        function: For tensors.
        batch: A nest.
        others: For everything that is neither a tensor nor a container. By default, an object that has a ``clone``
            method, such as a graph of ``torch_geometric``, is cloned, and everything else is passed on as it is.

    Example:
        >>> map_tensors(lambda t: t + 1, (torch.zeros(1), {"n": 3}))
        (tensor([1.]), {'n': 3})
    """
    if isinstance(batch, Tensor):
        return function(batch)
    if is_nest(batch):
        return map_parts(partial(map_tensors, function, others=others), batch)
    return others(batch)


def copied_batch(batch: Batch, clone: Callable[[Tensor], Tensor] = torch.clone) -> Batch:
    """Copy everything in a batch that a step could write to: tensors, arrays and other objects.

    Args:
        batch: A nest. Objects in it that cannot be copied, such as an open file, are passed on as they are.
        clone: Copies a tensor.

    Example:
        >>> import numpy as np
        >>> batch = {"x": np.zeros(2)}
        >>> copied_batch(batch)["x"] += 1
        >>> batch
        {'x': array([0., 0.])}
    """
    return map_tensors(clone, batch, _own)


def _own(part: Any) -> Any:
    if callable(getattr(part, "clone", None)):
        return part.clone()
    try:
        return copy.deepcopy(part)
    except Exception:  # whatever the object raises
        return part


def is_nest(batch: Batch) -> bool:
    """Whether a batch is a container that is taken apart: a mapping, tuple, list or instance of a dataclass."""
    return isinstance(batch, Mapping | tuple | list) or (
        dataclasses.is_dataclass(batch) and not isinstance(batch, type)
    )


def map_parts(function: Callable[[Batch], Batch], batch: Batch) -> Batch:
    """Apply a function to the parts of a nest, and build the same container around the results."""
    if isinstance(batch, Mapping):
        mapped = _copied(batch)
        for key, value in batch.items():
            mapped[key] = function(value)
        return mapped
    if isinstance(batch, tuple | list):
        parts = [function(part) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    mapped = copy.copy(batch)
    for field in dataclasses.fields(batch):
        value = function(getattr(batch, field.name))
        object.__setattr__(mapped, field.name, value)  # also where the class is frozen
    return mapped


def _copied(batch: Mapping[Any, Any]) -> Any:
    if isinstance(batch, dict | UserDict):
        return copy.copy(batch)
    if isinstance(batch, MutableMapping):
        # With a memo that keeps the values; copy.copy would share whatever a foreign class stores them in.
        return copy.deepcopy(batch, {id(value): value for value in batch.values()})
    return dict(batch)


def with_tensors(batch: Batch, tensors: Sequence[Tensor]) -> Batch:
    """Build the same nest around other tensors, given in the order of `tensors_of`."""
    remaining = iter(tensors)
    return map_tensors(lambda _: next(remaining), batch)


def all_equal(batches: Sequence[Batch]) -> bool:
    """Whether there are at least two batches, all with the same tensors.

    Batches without tensors never count as equal, because their contents cannot be compared.
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
