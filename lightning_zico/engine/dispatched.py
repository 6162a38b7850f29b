"""Operators as a dispatch mode sees them: their names, and what they read and write."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor
from torch.multiprocessing.reductions import StorageWeakRef

# Operators that use only the shape of their input.
SHAPED = ("empty_like", "zeros_like", "ones_like", "full_like", "new_empty", "new_zeros", "new_ones", "new_full")
SHAPED_RANDOM = ("rand_like", "randn_like", "randint_like")

_STRIDED = frozenset({torch.strided, torch.jagged})


@lru_cache(maxsize=4096)
def name_of(func: Any) -> str:
    """Name an operator without its overload."""
    return str(getattr(getattr(func, "_overloadpacket", func), "__name__", func))


@lru_cache(maxsize=4096)
def looks_at_shapes(func: Any) -> bool:
    """Whether an operator uses only the shape of its input, not its values."""
    return name_of(func).startswith((*SHAPED, *SHAPED_RANDOM))


def key_of(tensor: Tensor) -> StorageWeakRef:
    """Reference the memory of a tensor, also if `torch.func` wraps it."""
    while is_functorch_wrapped_tensor(tensor):
        tensor = get_unwrapped(tensor)
    if tensor.layout in _STRIDED:
        return StorageWeakRef(tensor.untyped_storage())
    values = tensor._values() if tensor.layout == torch.sparse_coo else tensor.values()
    return StorageWeakRef(values.untyped_storage())


def tensors_in(value: Any) -> list[Tensor]:
    """List the tensors among arguments, or in results."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return []
    found: list[Tensor] = []
    for part in value:
        if isinstance(part, Tensor):
            found.append(part)
        elif isinstance(part, list | tuple | dict):
            found += tensors_in(part)
    return found


def written_by(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """List the tensors that an operator writes to."""
    schema = getattr(func, "_schema", None)
    if schema is None or not schema.is_mutable:
        return []
    found: list[Tensor] = []
    for position, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            found += tensors_in(value)
    return found
