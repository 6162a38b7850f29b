"""Autograd graphs: their nodes, and checkpoints that hide some."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from lightning_zico.errors import NotApplicableError

# The node of a `torch.utils.checkpoint.checkpoint(..., use_reentrant=True)`.
REENTRANT_CHECKPOINT = "CheckpointFunctionBackward"


def has_reentrant_checkpoint(tensor: Tensor) -> bool:
    """Whether the graph of a tensor has a ``torch.utils.checkpoint.checkpoint(..., use_reentrant=True)``."""
    return any(type(node).__name__ == REENTRANT_CHECKPOINT for node in graph_of(tensor))


def graph_of(tensor: Tensor) -> Iterator[Any]:
    """Iterate over the nodes of the autograd graph that ends in a tensor, each once."""
    seen: set[Any] = {None}
    remaining: list[Any] = [tensor.grad_fn]
    while remaining:
        node = remaining.pop()
        if node not in seen:
            yield node
            seen.add(node)
            remaining += [parent for parent, _ in node.next_functions]


def check_graph(tensor: Tensor) -> None:
    """Check that no checkpoint in the graph hides weights: their derivatives would silently be zero.

    Raises:
        NotApplicableError: If there is a checkpoint with ``use_reentrant=True``.
    """
    if has_reentrant_checkpoint(tensor):
        raise NotApplicableError(
            "a checkpoint with `use_reentrant=True` only supports `backward()`. Use "
            "`use_reentrant=False`, or switch checkpointing off for scoring."
        )
