"""A module's loss as a function of its parameters: the one place where `torch.func.functional_call` is called."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parameter import is_lazy

from lightning_zico._typing import Batch, Buffers, Params, Step
from lightning_zico.errors import NoGradientError, UnsupportedModuleError

T = TypeVar("T")


def copied_params(module: nn.Module) -> Params:
    """Copy the parameters, detached, under their names; a tied one once, under its first name.

    Copies, not views: a ``forward`` that writes to its weights (``weight.data.clamp_``) must not reach the user's.

    Raises:
        UnsupportedModuleError: If a parameter has no values: not yet initialised, or on the meta device.
    """
    for name, parameter in module.named_parameters():
        if is_lazy(parameter) or parameter.is_meta:
            state = "is not initialised" if is_lazy(parameter) else "is on the meta device"
            raise UnsupportedModuleError(
                f"Parameter '{name}' {state}; needed are weights with values. Run one batch through a lazy module, or "
                "build the module on a real device."
            )
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def copied_buffers(module: nn.Module) -> Buffers:
    """Copy the buffers, under their names."""
    return {name: buffer.detach().clone() for name, buffer in module.named_buffers()}


def call_step(module: nn.Module, step: Step, params: Params, buffers: Buffers, batch: Batch, batch_idx: int) -> Tensor:
    """Compute the mean loss of a batch with other parameters and buffers in the module's places.

    Args:
        module: Left as it is, apart from attributes that its own code sets; `scope.preserved` puts those back.
        step: ``(module, batch, batch_idx) -> loss``.
        params: By name; those left out are the module's own.
        buffers: By name; written to where the module updates its buffers.
        batch: Passed to ``step``.
        batch_idx: Passed to ``step``.

    Returns:
        Scalar.

    Raises:
        UnsupportedModuleError: If ``step`` returns anything but one number in a tensor.
    """
    return _with_tensors(module, params | buffers, lambda: _loss_of(step(module, batch, batch_idx)))


def _with_tensors(module: nn.Module, tensors: Params, function: Callable[[], T]) -> T:
    return functional_call(
        _Caller(module, function), {f"module.{name}": tensor for name, tensor in tensors.items()}, ()
    )


def _loss_of(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        given = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"{type(loss).__name__}"
        raise UnsupportedModuleError(f"The loss is {given}; needed is one number, the mean over the batch.")
    return loss.reshape(())


def plain_gradients(
    module: nn.Module, step: Step, params: Params, scored: Params, buffers: Buffers, batch: Batch, batch_idx: int
) -> tuple[Params, Tensor]:
    """Differentiate the mean loss of one batch by plain reverse-mode autograd.

    Returns:
        The gradient for each name in ``scored`` (zero where the loss does not depend on it), and the loss, a scalar.

    Raises:
        NoGradientError: If the loss depends on none of ``scored``.
    """
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in scored.items()}

    def differentiate() -> tuple[Params, Tensor]:
        loss = _loss_of(step(module, batch, batch_idx))
        check_depends(loss)
        return _backward(loss, leaves), loss.detach()

    # Differentiated inside the call: checkpointing runs parts of the module again during the backward pass, and must
    # find these tensors there and not the user's.
    with torch.enable_grad():
        return _with_tensors(module, params | leaves | buffers, differentiate)


def check_depends(loss: Tensor) -> None:
    """Refuse a loss that nothing can be differentiated through.

    Raises:
        NoGradientError: If it depends on no parameter that is differentiated with respect to.
    """
    if not loss.requires_grad:
        raise NoGradientError(
            "The loss depends on no scored parameter: it is detached, or computed without them. Return a loss that "
            "`backward()` can run from."
        )


def _backward(loss: Tensor, leaves: Params) -> Params:
    if not has_reentrant_checkpoint(loss):
        gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
        return dict(zip(leaves, gradients, strict=True))
    loss.backward()  # the only call that such a checkpoint allows; the leaves are ours, and so are their ``.grad``
    return {
        name: torch.zeros_like(leaf, requires_grad=False) if leaf.grad is None else leaf.grad
        for name, leaf in leaves.items()
    }


def has_reentrant_checkpoint(loss: Tensor) -> bool:
    """Look for a ``torch.utils.checkpoint.checkpoint(..., use_reentrant=True)`` in the graph of a loss."""
    seen: set[Any] = set()
    remaining: list[Any] = [loss.grad_fn]
    while remaining:
        node = remaining.pop()
        if node is None or node in seen:
            continue
        if node.name() == "CheckpointFunctionBackward":
            return True
        seen.add(node)
        remaining.extend(parent for parent, _ in node.next_functions)
    return False


class _Caller(nn.Module):
    """Makes a function the ``forward`` of a parent of the module, which is what `functional_call` calls."""

    def __init__(self, module: nn.Module, function: Callable[[], Any]) -> None:
        super().__init__()
        self.module = module
        self.function = function

    def forward(self) -> Any:
        return self.function()
