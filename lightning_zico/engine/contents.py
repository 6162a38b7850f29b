"""Contents of a batch, regardless of the order of its samples: a shuffled full batch is the same batch.

Index conventions:
    N: samples
"""

import hashlib
import pickle
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_zico._typing import Batch
from lightning_zico.engine.batches import tensors_of

_NUM_COMPARED = 8


def contents(batch: Batch) -> bytes:
    """Hash the samples of a batch so that their order does not matter.

    The mean loss over the same samples has the same gradient in any order, up to rounding, and a ratio to the deviation
    between two such gradients would be a ratio to rounding errors.

    Args:
        batch: Any nest of tensors, or an object with tensors in it, such as a graph. Where dimension 0 of all tensors
            counts the samples, whole samples are compared; otherwise the rows of each floating-point tensor separately.

    Returns:
        Equal for batches with the same samples. Objects that cannot be compared are identified by their ``id``.

    Example:
        >>> batch = torch.randn(4, 2), torch.arange(4)
        >>> contents(batch) == contents(tuple(part.flip(0) for part in batch))
        True
        >>> contents(batch) == contents((batch[0], batch[1].flip(0)))
        False
    """
    try:
        tensors = tensors_of(batch) or _tensors_in(batch)
        if not tensors:
            return _digest([pickle.dumps(batch)])
        if len({tuple(tensor.shape[:1]) for tensor in tensors}) == 1:
            return _digest(map(b"".join, zip(*map(_rows, tensors), strict=True)))
        compared = [tensor for tensor in tensors if tensor.is_floating_point()] or tensors
        return _digest(_digest(_rows(tensor)) for tensor in compared)
    except Exception:  # sparse and nested tensors, and objects that cannot be pickled
        return str(id(batch)).encode()


def weights_digest(module: nn.Module) -> str:
    """Hash the first numbers of every parameter, to check whether a second build drew the same weights.

    Eight numbers of each suffice to distinguish two draws, and cost less than a thousandth of a pass.

    Example:
        >>> weights_digest(nn.Linear(2, 2)) == weights_digest(nn.Linear(2, 2))
        False
    """
    digest = hashlib.blake2b(digest_size=8)
    parts = []
    for parameter in module.parameters():
        if is_lazy(parameter) or parameter.is_meta or parameter.layout != torch.strided:
            continue
        numbers = parameter.detach().reshape(-1)[:_NUM_COMPARED]
        if numbers.is_complex():
            numbers = torch.view_as_real(numbers).reshape(-1)
        parts.append(numbers.to(torch.float64))
    if parts:
        digest.update(torch.cat(parts).cpu().numpy().tobytes())
    return digest.hexdigest()


def _tensors_in(batch: Any) -> list[Tensor]:
    """List the tensors in an object's attributes, or in the result of its ``to_dict`` if it has one."""
    to_dict = getattr(batch, "to_dict", None)
    attributes = to_dict() if callable(to_dict) else getattr(batch, "__dict__", {})
    return tensors_of(dict(attributes)) if isinstance(attributes, Mapping) else []


def _rows(tensor: Tensor) -> list[bytes]:
    """Convert each sample to bytes."""
    tensor = tensor.detach().cpu().contiguous()
    header = f"{tensor.dtype}{tuple(tensor.shape[1:])}".encode()
    if tensor.ndim == 0 or tensor.numel() == 0:
        return [header + str(tensor.tolist()).encode()] * max(1, len(tensor) if tensor.ndim else 1)
    flat = tensor.reshape(len(tensor), -1).view(torch.uint8).numpy()  # [N, bytes]
    return [hashlib.blake2b(header + row.tobytes(), digest_size=16).digest() for row in flat]


def _digest(parts: Iterable[bytes]) -> bytes:
    return hashlib.blake2b(b"".join(sorted(parts)), digest_size=16).digest()
