"""Observers: they collect what several proxies need from the same pass, so that each pass is run once.

Index conventions:
    N: samples in a batch
    *: shape of one parameter
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_zico._typing import Axis, Params
from lightning_zico.engine.batches import tensors_of
from lightning_zico.engine.layers import Layout, Patterns
from lightning_zico.errors import NotApplicableError


@dataclass
class GradientFacts:
    """How the gradients of one pass were computed, as plain data.

    Args:
        axis: Whether the gradients are those of batches or of samples.
        backends: Backends in order of first use; per sample, ``"loop"`` means that ``vmap`` did not work.
        batch_norm: How batch normalisation was differentiated; None per batch, or if there was none.
        chunk_sizes: Maximum number of samples differentiated at once, for each batch; empty per batch.
        skipped: Why training skips batches, which then have no gradient, by their indices.
        ended: Whether training skips all batches after the last one as well.
    """

    axis: Axis
    backends: list[str] = field(default_factory=list)
    batch_norm: str | None = None
    chunk_sizes: list[int] = field(default_factory=list)
    skipped: dict[int, str] = field(default_factory=dict)
    ended: bool = False


@dataclass(unsafe_hash=True)
class Observer:
    """Watches the forward pass of a batch, and optionally its gradients, and keeps what a proxy needs.

    A subclass is a dataclass whose fields describe what to observe: equal observers share one pass and one result. Its
    results are attributes that `start` sets. Its methods run without autograd and should keep little: a reduced number
    rather than an activation.

    Attributes:
        needs_graph: Whether `forwarded` or `ended` differentiates.
        needs_input_graph: With ``needs_graph``: whether it differentiates with respect to the batch.
        needs_beside: With ``needs_graph``: whether `forwarded` reads ``beside``.
        needs_gradients: Whether to call `gradients`, with the gradients of the first batch.
        all_batches: With ``needs_gradients``: whether to call it for all batches (or samples).
        layout: Positions of the layers in the module; set before `start`.
        time_first: Number of samples in the batch if parts of the module have time steps before samples, see
            `samples_first`; otherwise None.
        beside: With ``needs_beside``, set before `forwarded`: the outputs of other networks that the step calls, such
            as other heads and towers, on which the network's own output does not depend.
        may_repeat: Whether a chunk of gradients may have to be repeated because memory ran out.
    """

    needs_graph: ClassVar[bool] = False
    needs_input_graph: ClassVar[bool] = True
    needs_beside: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False
    all_batches: ClassVar[bool] = False
    layout: ClassVar[Layout] = Layout({}, {}, frozenset())
    time_first: ClassVar[int | None] = None
    beside: ClassVar[Sequence[Tensor]] = ()
    may_repeat = False

    def start(self, module: nn.Module) -> None:
        """Prepare for one pass of a module."""

    def activation(self, before: Tensor, after: Tensor) -> None:
        """Observe the input and output of an activation function, ``[N, ...]`` each."""

    def batch_norm(self, inputs: Tensor) -> None:
        """Observe the input of a batch normalisation that uses the statistics of the batch, ``[N, C, ...]``."""

    def module_call(self, name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Observe a finished call of a submodule, and its inputs: positional ones first, then keyword ones."""

    def forwarded(self, output: Tensor, inputs: Sequence[Tensor]) -> None:
        """Observe the network's output and its floating-point inputs at the end of the forward pass.

        Autograd is on and the graph exists if ``needs_graph``. Observers that differentiate are called first.
        """

    def ended(self) -> None:
        """Observe the end of the forward pass, after `forwarded`, even if the network has no observable output."""

    def wanted(self) -> Patterns:
        """Parameters whose gradients are needed."""
        return None

    def gradients(self, gradients: Params, losses: Tensor) -> Callable[[], None] | None:
        """Observe the gradients of a chunk, ``[n, *]`` each, which the observer owns, and its losses, ``[n]``.

        Returns:
            A function to call once every observer has seen the chunk. With ``may_repeat``, only this may store results.
        """
        return None

    def finished(self, facts: GradientFacts) -> None:
        """Observe how the gradients were computed, after all of them were passed on."""


def samples_first(tensor: Tensor, time_first: int | None) -> Tensor:
    """Move samples from dimension 1 to the front if time steps are there.

    Args:
        tensor: Tensor that a network computes from a batch.
        time_first: Number of samples if the network has time steps before samples, otherwise None.
    """
    is_second = tensor.ndim > 2 and tensor.shape[1] == time_first != tensor.shape[0]
    return tensor.transpose(0, 1) if is_second else tensor


def listens(observer: Observer, event: str) -> bool:
    """Whether an observer overrides the method for an event."""
    return getattr(type(observer), event) is not getattr(Observer, event)


def floating_tensor_in(output: Any) -> Tensor | None:
    """Find the tensor in a module's output: its ``logits``, or the first floating-point tensor that is no scalar.

    If there is none, return the magnitude of the first complex tensor.
    """
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    tensors = tensors_of(output if logits is None else logits)
    found = next((tensor for tensor in tensors if tensor.is_floating_point() and tensor.ndim), None)
    if found is None and (numbers := next((tensor for tensor in tensors if tensor.is_complex()), None)) is not None:
        return numbers.abs()
    return found


def signs(before: Tensor) -> Tensor:
    """Return 1 for positive entries and 0 otherwise, ``[N, ...]`` -> ``[N, U]``, float32."""
    if not before.is_contiguous():
        return per_sample(before > 0).float()
    # In one operation: on a CPU, a comparison and then a conversion take several times as long (torch 2.14).
    return per_sample(torch.gt(before, 0, out=torch.empty_like(before, dtype=torch.float32)))


def per_sample(values: Tensor) -> Tensor:
    """Reshape to one row per sample, ``[N, ...]`` -> ``[N, U]``."""
    return values.flatten(1) if values.ndim > 1 else values.unsqueeze(1)


class Rows:
    """Counts the rows that calls see, to detect a network that runs on part of a batch at a time."""

    def __init__(self) -> None:
        self.most: int = 0
        self._seconds: set[int] = set()

    def see(self, tensor: Tensor) -> None:
        """Count the input or output of a call, ``[N, ...]``."""
        self.most = max(self.most, len(tensor))
        if tensor.ndim == 3:  # some networks have the time dimension first
            self._seconds.add(tensor.shape[1])

    def check(self, num_samples: int | None, of: str) -> None:
        """Check that there are at least as many rows as samples. Tokens, nodes or views may give more.

        Args:
            num_samples: Number of samples in a batch; None if unknown.
            of: Name of what was called, in the plural.

        Raises:
            NotApplicableError: If no call sees all samples.
        """
        if num_samples is not None and self.most < num_samples and num_samples not in self._seconds:
            raise NotApplicableError(
                f"{of} see at most {self.most} of the {num_samples} samples at a time, but all samples are compared. "
                "Run the network on the whole batch at once."
            )
