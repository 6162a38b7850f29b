"""Operators as a dispatch mode sees them: what they are called, read and write."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

# Only the shape of what they are given matters.
SHAPED = ("empty_like", "zeros_like", "ones_like", "full_like", "new_empty", "new_zeros", "new_ones", "new_full")
SHAPED_RANDOM = ("rand_like", "randn_like", "randint_like")


def name_of(func: Any) -> str:
    """Name an operator without its overload."""
    return str(getattr(getattr(func, "_overloadpacket", func), "__name__", func))


def key_of(tensor: Tensor) -> StorageWeakRef:
    """Refer to the memory that a tensor lives in."""
    if tensor.layout == torch.strided or tensor.layout == torch.jagged:
        return StorageWeakRef(tensor.untyped_storage())
    values = tensor._values() if tensor.layout == torch.sparse_coo else tensor.values()
    return StorageWeakRef(values.untyped_storage())


def tensors_in(value: Any) -> Iterator[Tensor]:
    """List the tensors among arguments, or in results."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_in(part)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))


def written_by(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """List the tensors that an operator writes to."""
    schema = getattr(func, "_schema", None)
    if schema is None or not schema.is_mutable:
        return
    for position, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            yield from tensors_in(value)
