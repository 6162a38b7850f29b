"""Lazy modules, whose parameters get their sizes from the first batch."""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, is_lazy

from lightning_zico._typing import Batch, Step
from lightning_zico.engine.batches import copied_batch
from lightning_zico.engine.scope import module_put_back, seed_all
from lightning_zico.engine.tree import submodules
from lightning_zico.errors import SkippedBatchError, UnsupportedModuleError, in_words


def is_uninitialised(module: nn.Module) -> bool:
    """Whether a parameter or buffer of a module has no size yet."""
    return any(is_lazy(tensor) for part in submodules(module).values() for tensor in _own_tensors(part))


def copied(module: nn.Module) -> nn.Module:
    """Copy a module, lazy buffers included, which `copy.deepcopy` refuses (torch 2.14)."""
    memo: dict[int, Any] = {}
    new: Any = UninitializedBuffer  # Any, because it is typed as the class that it becomes
    for buffer in module.buffers():
        if is_lazy(buffer):
            memo[id(buffer)] = new(buffer.requires_grad, buffer.device, buffer.dtype)
    return copy.deepcopy(module, memo)


def own_if_lazy(module: nn.Module) -> nn.Module:
    """Return a copy of a lazy module, so that the given one stays lazy; return any other module itself.

    Raises:
        UnsupportedModuleError: If it cannot be copied.
    """
    if not is_uninitialised(module):
        return module
    try:
        return copied(module)
    except Exception as error:
        raise UnsupportedModuleError(
            f"{type(module).__name__} has lazy modules, which are initialised on a copy, but it cannot be copied. Run "
            "one batch through it first."
        ) from error


def initialise_on_first(
    module: nn.Module,
    step: Step,
    prepare: Callable[[Batch, int], Batch],
    batches: Sequence[Batch],
    seed: int,
) -> None:
    """Like `initialise`, with the first batch that the training step does not skip.

    Args:
        module: Written to.
        step: ``(module, batch, batch_idx) -> mean loss``.
        prepare: ``(batch, batch_idx) -> batch``, as the step takes it; called with clones.
        batches: Batches from the loader.
        seed: Seed of the values.

    Raises:
        UnsupportedModuleError: If training skips all batches, the step fails, or it does not reach a lazy
            parameter.
    """
    reasons: list[str] = []
    for idx, batch in enumerate(batches):
        try:
            prepared = prepare(copied_batch(batch), idx)
            initialise(module, partial(step, module, prepared, idx), seed)
        except SkippedBatchError as error:
            reasons.append(error.reason)
            if error.ends_epoch:
                break
        else:
            return
    raise UnsupportedModuleError(
        f"The training step skips all {len(batches)} batches, so lazy parameters get no sizes: {'; '.join(reasons)}."
    )


def initialise(module: nn.Module, run: Callable[[], object], seed: int) -> None:
    """Initialise lazy parameters by running a step; everything else stays unchanged.

    The running statistics of lazy norms are reset.

    Args:
        module: Written to.
        run: Runs a training step of the module.
        seed: Seed of the values.

    Raises:
        SkippedBatchError: If training skips the batch before all of them have sizes.
        UnsupportedModuleError: If the step fails, or does not reach a lazy parameter.
    """
    skipped: SkippedBatchError | None = None
    lazy = [part for part in module.modules() if any(map(is_lazy, _own_tensors(part)))]
    others = [tensor for tensor in (*module.parameters(), *module.buffers()) if not is_lazy(tensor)]
    kept = [(tensor, tensor.detach().clone()) for tensor in others]
    seed_all(seed)
    try:
        # Lazy ones are left out, because they become other modules with fewer hooks.
        with module_put_back(module, apart=lazy), torch.enable_grad():
            run()
    except SkippedBatchError as error:
        skipped = error
    except Exception as error:
        raise UnsupportedModuleError(
            f"The training step fails on the first batch, so lazy parameters get no sizes: {in_words(error)}"
        ) from error
    finally:
        with torch.no_grad():
            for tensor, value in kept:
                tensor.copy_(value)
    for part in lazy:
        if isinstance(part, nn.modules.batchnorm._NormBase) and not any(map(is_lazy, _own_tensors(part))):
            part.reset_running_stats()
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(tensor):
            if skipped is not None:
                raise skipped
            raise UnsupportedModuleError(
                f"Parameter '{name}' is lazy, and the training step does not run its module, so its size is not known. "
                "Build that module with its sizes, or remove it."
            )


def _own_tensors(part: nn.Module) -> list[Tensor]:
    registered = (*part._parameters.values(), *part._buffers.values())
    return [tensor for tensor in registered if tensor is not None]
