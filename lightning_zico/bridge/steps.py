"""A module's ``training_step``, a loss function or a user's own step as a function that returns the loss."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.plugins import Precision
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn

from lightning_zico._typing import Batch, LossFn, Step
from lightning_zico.bridge.hooks import check_surroundings, is_lightning
from lightning_zico.bridge.trainers import is_overridden
from lightning_zico.errors import SkippedBatchError, UnsupportedBatchError, UnsupportedModuleError, blame

WAY_OUT = (
    "Pass `loss_fn=`, called as `loss_fn(outputs, targets)` on batches `(inputs, targets)`, or `step=`, called as "
    "`step(module, batch, batch_idx)`, which returns the loss."
)


def check_training_step(module: nn.Module) -> None:
    """Check, before anything runs, that a module's own ``training_step`` returns a loss to differentiate.

    Raises:
        UnsupportedModuleError: If not. The message names the alternatives, ``loss_fn=`` and ``step=``.
    """
    name = type(module).__name__
    if not is_lightning(module):
        raise UnsupportedModuleError(f"{name} is not a LightningModule, so it has no loss of its own. {WAY_OUT}")
    if not is_overridden(module, "training_step"):
        raise UnsupportedModuleError(f"{name} defines no `training_step`. {WAY_OUT}")
    if not module.automatic_optimization:
        raise UnsupportedModuleError(
            f"{name} optimises manually: its `training_step` takes steps instead of returning a loss. {WAY_OUT}"
        )
    training_step: Any = module.training_step
    if "optimizer_idx" in inspect.signature(training_step).parameters:
        raise UnsupportedModuleError(f"{name} has several optimisers (`optimizer_idx`). {WAY_OUT}")
    if is_param_in_hook_signature(training_step, "dataloader_iter", explicit=True):
        raise UnsupportedModuleError(f"{name} fetches its batches itself (`dataloader_iter`). {WAY_OUT}")


def loss_step(
    module: nn.Module,
    loss_fn: LossFn | None,
    step: Step | None,
    *,
    precision: Precision | None = None,
    left_out: Sequence[str] = (),
) -> Step:
    """Return the function that computes the loss of a batch.

    Args:
        module: The module; its own ``training_step`` is used if there is neither ``loss_fn`` nor ``step``.
        loss_fn: ``(outputs, targets) -> mean loss``.
        step: ``(module, batch, batch_idx) -> mean loss``.
        precision: Precision plugin that the step runs in; None for none.
        left_out: Names of the user's callbacks whose hooks did not run, for the reason if the step misses them.
    """
    if loss_fn is not None:
        run, name = _step_with(loss_fn), "loss_fn="
    elif step is not None:
        run, name = _returning_loss(step), "step="
    else:
        run, name = _step_of(module), f"{type(module).__name__}.training_step"
    run = _in_surroundings(run, name, left_out)
    return run if precision is None else _in_precision(precision, run)


def _in_surroundings(step: Step, name: str, left_out: Sequence[str]) -> Step:
    def in_surroundings(module: nn.Module, batch: Batch, batch_idx: int) -> Tensor:
        try:
            return step(module, batch, batch_idx)
        except Exception as error:
            check_surroundings(error, name, left_out)
            raise

    return in_surroundings


def _step_of(module: nn.Module) -> Step:
    # Lightning's own rule: the second argument is the index, whatever its name.
    takes_index = is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)  # type: ignore[arg-type]
    name = f"{type(module).__name__}.training_step"

    def training_step(module: nn.Module, batch: Batch, batch_idx: int) -> Tensor:
        step: Any = module.training_step
        return _loss_in(step(batch, batch_idx) if takes_index else step(batch), name, batch_idx)

    return training_step


def _returning_loss(step: Step) -> Step:
    def returning_loss(module: nn.Module, batch: Batch, batch_idx: int) -> Tensor:
        with _blaming("`step=`"):
            return _loss_in(step(module, batch, batch_idx), "step=", batch_idx)

    return returning_loss


@contextmanager
def _blaming(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        blame(error, name)
        raise


def _loss_in(output: Any, name: str, batch_idx: int) -> Tensor:
    """Return the loss from what a step returned.

    Raises:
        SkippedBatchError: If it returned None.
        UnsupportedModuleError: If it returned a dictionary without a loss.
    """
    if output is None:
        raise SkippedBatchError(f"`{name}` returned None for batch {batch_idx}")
    loss = output.get("loss") if isinstance(output, Mapping) else output
    if loss is None:
        raise UnsupportedModuleError(
            f"`{name}` returned a dictionary without a loss: expected the mean loss of the batch as a tensor, or a "
            "dictionary with the key 'loss'. If the module has no loss of its own, pass `loss_fn=` or `step=`."
        )
    return loss


def _step_with(loss_fn: LossFn) -> Step:
    def step(module: nn.Module, batch: Batch, batch_idx: int) -> Tensor:
        if not (isinstance(batch, tuple | list) and len(batch) == 2):
            raise UnsupportedBatchError(
                f"Invalid batch of type {type(batch).__name__}: with `loss_fn=`, expected a pair `(inputs, targets)`. "
                "For other batches, pass `step=`, called as `step(module, batch, batch_idx)`."
            )
        outputs = module(batch[0])
        with _blaming("`loss_fn=`"):
            return loss_fn(outputs, batch[1])

    return step


def _in_precision(precision: Precision, step: Step) -> Step:
    def in_precision(module: nn.Module, batch: Batch, batch_idx: int) -> Tensor:
        with precision.train_step_context():
            return step(module, batch, batch_idx)

    return in_precision
