"""Remember and restore the numbers of tensors and their autograd state."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy


def tensor_restorer(tensor: Tensor) -> Callable[[], None]:
    """Remember the numbers of a tensor, byte for byte, and its autograd state."""
    memory = _memory_of(tensor.data)
    saved = memory.clone()
    placed, is_leaf, requires_grad, version = tensor.data, tensor.is_leaf, tensor.requires_grad, version_of(tensor)

    def put_back() -> None:
        if (tensor.data_ptr(), tensor.shape, tensor.stride()) != (placed.data_ptr(), placed.shape, placed.stride()):
            tensor.data = placed
        if not _has_same_bytes(memory, saved):
            with torch.inference_mode(memory.is_inference()), torch.no_grad():
                memory.copy_(saved)
        if is_leaf:
            put_leaf_back(tensor, requires_grad, version)

    return put_back


def put_leaf_back(tensor: Tensor, requires_grad: bool, version: int) -> None:
    """Restore the autograd state of a leaf whose numbers have been restored."""
    if not tensor.is_leaf:
        tensor.detach_()
    if tensor.requires_grad != requires_grad:
        tensor.requires_grad_(requires_grad)
    if version_of(tensor) != version:
        _set_version(tensor, version)


def version_of(tensor: Tensor) -> int:
    """Return how many changes of a tensor autograd has counted; -1 if it does not count them."""
    try:
        return tensor._version
    except (RuntimeError, ValueError):  # made in inference mode, or not yet initialised
        return -1


def _set_version(tensor: Tensor, version: int) -> None:
    """Set the value that `version_of` returns, for a tensor that has the numbers of that version again."""
    set_counter: Any = torch._C._autograd._unsafe_set_version_counter
    try:
        set_counter((tensor,), (version,))
    except TypeError:  # torch 2.5 takes one tensor
        set_counter(tensor, version)


def has_numbers(tensor: Tensor) -> bool:
    """Whether a tensor has numbers that can be read and written in place."""
    return not is_lazy(tensor) and tensor.layout == torch.strided and not (tensor.is_meta or tensor.is_nested)


def exchangeable(tensor: Tensor) -> bool:
    """Whether a tensor can temporarily have other memory."""
    if is_lazy(tensor) or tensor.is_inference() or not tensor.is_leaf or tensor._is_view():
        return False
    return type(tensor.data) is Tensor


def copy_of(tensor: Tensor) -> Tensor:
    """Copy a tensor with its strides, so that an expanded tensor stays expanded."""
    data = tensor.detach()
    if data.layout != torch.strided or not _overlaps(data):
        return data.clone()
    return _memory_of(data).clone().as_strided(data.size(), data.stride(), 0)


def _memory_of(data: Tensor) -> Tensor:
    """View the memory of a tensor, with each element once."""
    if data.layout != torch.strided or not _overlaps(data):
        return data
    span = 1 + sum((size - 1) * stride for size, stride in zip(data.shape, data.stride(), strict=True))
    return data.as_strided((span,), (1,))


def _overlaps(data: Tensor) -> bool:
    if data.is_contiguous() or not data.numel():
        return False
    room = 1  # elements that the dimensions so far span
    for stride, size in sorted((s, n) for n, s in zip(data.shape, data.stride(), strict=True) if n > 1):
        if stride < room:
            return True
        room = stride * (size - 1) + room
    return False


def _has_same_bytes(first: Tensor, second: Tensor) -> bool:
    if first.layout != torch.strided or first.is_quantized:
        return torch.equal(first, second)
    views = [tensor.detach().resolve_conj().resolve_neg().reshape(-1) for tensor in (first, second)]
    return torch.equal(*(view.view(torch.uint8) for view in views))
