"""Convert tensors for observers: unwrap them from transforms of `torch.func`, and view complex ones as real."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.utils._pytree import tree_map_only

_functorch: Any = torch._C._functorch


def is_transforming() -> bool:
    """Whether the current code runs inside `torch.func.vmap`, `grad` or another transform."""
    return _functorch.peek_interpreter_stack() is not None


@contextmanager
def outside_transforms() -> Iterator[None]:
    """Leave the transforms of `torch.func` while the body runs; the tensors in it must be `unwrapped`."""
    with temporarily_clear_interpreter_stack():
        yield


def unwrapped(nest: Any) -> Any:
    """Unwrap the tensors in a nest from the transforms of `torch.func`: dimensions that `vmap` hides come first.

    So observers see what a network does with each sample inside `vmap` as what it does with the batch. The autograd
    graph around the transforms stays. Call this within `outside_transforms`.
    """
    return tree_map_only(Tensor, _unwrapped, nest)


def _unwrapped(tensor: Tensor) -> Tensor:
    while _functorch.is_functorch_wrapped_tensor(tensor):
        dim = _functorch.maybe_get_bdim(tensor) if _functorch.is_batchedtensor(tensor) else -1
        tensor = _functorch.get_unwrapped(tensor)
        if dim > 0:
            tensor = tensor.movedim(dim, 0)
    return tensor


def real_view(tensor: Tensor) -> Tensor:
    """View complex numbers as pairs of real ones in a new last dimension; return other tensors unchanged."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
