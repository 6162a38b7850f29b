"""A module's loss as a function of its parameters: the one place where `torch.func.functional_call` is called."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parameter import is_lazy

from lightning_zico._typing import Batch, Buffers, Params, Step
from lightning_zico.errors import NoGradientError, UnsupportedModuleError


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
    tensors = {f"module.{name}": tensor for name, tensor in (params | buffers).items()}
    loss: Any = functional_call(_Stepper(module, step), tensors, (batch, batch_idx))
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
    with torch.enable_grad():
        loss = call_step(module, step, params | leaves, buffers, batch, batch_idx)
    if not loss.requires_grad:
        raise NoGradientError(
            "The loss depends on no scored parameter: it is detached, or computed without them. Return a loss that "
            "`backward()` can run from."
        )
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, gradients, strict=True)), loss.detach()


class _Stepper(nn.Module):
    """Makes ``step`` the ``forward`` of a module, which is what `functional_call` calls."""

    def __init__(self, module: nn.Module, step: Step) -> None:
        super().__init__()
        self.module = module
        self.step = step

    def forward(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.step(self.module, batch, batch_idx)
