"""Hooks of modules and callbacks, run in the order in which Lightning runs them before the first training step."""

import importlib
import warnings
from collections import deque
from collections.abc import Sequence
from traceback import walk_tb
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_zico._typing import Batch
from lightning_zico.bridge.trainers import (
    OF_LIGHTNING,
    TrainerSettings,
    is_overridden,
    is_trainer,
    package_of,
    takes_part,
    without_chatter,
)
from lightning_zico.errors import HookError, SkippedBatchError, SurroundingsError, ZiCoError, blame, message_of

TRANSFER_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
# Hooks of a module that may write to its parameters, in Lightning's order. `configure_optimizers` is left out: every
# module has it, and copying all parameters would cost more than scoring a small module.
WRITING_HOOKS = (
    *("prepare_data", "setup", "configure_model", "configure_callbacks", "on_fit_start", "on_train_start"),
    *("on_train_epoch_start", "on_train_batch_start", *TRANSFER_HOOKS),
)
# Frames that a traceback passes on its way: this package, and those of context managers and torch.
_OF_FRAMES = ("contextlib", "lightning_zico", "torch")
_OF_TRAINING = {"trainer", "logger", "loggers"}


def is_lightning(module: nn.Module) -> bool:
    """Whether a module is a LightningModule of either package, judged by its methods and attributes."""
    return callable(getattr(module, "training_step", None)) and hasattr(module, "automatic_optimization")


def call_hook(
    obj: Any, hook: str, *args: Any, blamed: bool = False, left_out: Sequence[str] = (), **kwargs: Any
) -> Any:
    """Run one hook of one object.

    Args:
        obj: A module, a data module or a callback.
        hook: Name of the hook.
        args: Arguments of the hook.
        blamed: Whether to blame the object, because it is not the module that is scored.
        left_out: See `check_surroundings`.
        kwargs: Keyword arguments of the hook.

    Raises:
        HookError: If it fails.
        SurroundingsError: If it fails because there is no real trainer.
    """
    try:
        return getattr(obj, hook)(*args, **kwargs)
    except ZiCoError:
        raise
    except Exception as error:
        name = f"{type(obj).__name__}.{hook}"
        check_surroundings(error, name, left_out)
        failure = HookError(f"`{name}` raised {describe_error(error)}")
        if blamed:
            blame(failure, f"`{name}`")
        raise failure from error


class Opening:
    """The hooks before the first step of a module, with the callbacks that take part.

    Args:
        module: A LightningModule.
        trainer: The trainer that the module sees.
        callbacks: Callbacks in the trainer's order.
    """

    def __init__(self, module: Any, trainer: Any, callbacks: Sequence[Any] = ()) -> None:
        self.module = module
        self.trainer = trainer
        self.callbacks = list(callbacks)
        self.brought: list[Any] = []  # callbacks of the module's own
        self.left_out: Sequence[str] = ()  # names of callbacks that have hooks before the step, and take no part

    @property
    def changes_batches(self) -> bool:
        """Whether the module or a callback has ``on_train_batch_start``."""
        return any(is_overridden(obj, "on_train_batch_start") for obj in (self.module, *self.callbacks))

    def run(self, hook: str, *args: Any, callbacks: Sequence[Any] | None = None, **kwargs: Any) -> Any:
        """Run a hook of the callbacks, then that of the module.

        Args:
            hook: Name of the hook.
            args: Arguments of the hook; callbacks get the trainer and the module before them.
            callbacks: Callbacks that have not run it yet; None for all.
            kwargs: Keyword arguments for both.

        Returns:
            What the module's hook returns.

        Raises:
            HookError: If one of them fails.
        """
        for callback in self.callbacks if callbacks is None else callbacks:
            if callable(getattr(callback, hook, None)):
                self.call(callback, hook, self.trainer, self.module, *args, **kwargs)
        return self.call(self.module, hook, *args, **kwargs) if is_overridden(self.module, hook) else None

    def call(self, obj: Any, hook: str, *args: Any, **kwargs: Any) -> Any:
        """Run one hook of one object, as `call_hook` does."""
        is_modules = any(obj is own for own in (self.module, *self.brought))
        return call_hook(obj, hook, *args, blamed=not is_modules, left_out=self.left_out, **kwargs)

    def take_callbacks(self, settings: TrainerSettings) -> list[Any]:
        """Merge the callbacks that the module brings with those of the user's trainer, as Lightning does.

        Returns:
            All of them, including those that do not take part.
        """
        module = self.module
        brought = self.call(module, "configure_callbacks") if is_overridden(module, "configure_callbacks") else []
        brought = list(brought) if isinstance(brought, Sequence) else [brought] if brought else []
        self.brought = brought
        remaining = [own for own in settings.callbacks if not any(isinstance(new, type(own)) for new in brought)]
        self.callbacks = [callback for callback in remaining + brought if takes_part(callback)]
        self.left_out = settings.left_out
        return remaining + brought

    def state(self) -> list[Any]:
        """List what a hook may change in the module: its attributes by identity, containers by their contents.

        Returns:
            A list that equals another such list if nothing was changed in between.
        """
        return [
            (name, _identity(value))
            for part in self.module.modules()
            for table in (vars(part), part._parameters, part._buffers)
            for name, value in table.items()
        ]

    def start_batch(self, batch: Batch, batch_idx: int) -> None:
        """Run ``on_train_batch_start``; callbacks may change the batch in place.

        Raises:
            SkippedBatchError: If the module returns -1.
        """
        if self.run("on_train_batch_start", batch, batch_idx) == -1:
            raise SkippedBatchError(
                f"`on_train_batch_start` of {type(self.module).__name__} returned -1 for batch {batch_idx}, with which "
                "Lightning skips the rest of the epoch",
                ends_epoch=True,
            )


def _identity(value: Any) -> Any:
    if isinstance(value, dict):
        return id(value), [(key, id(part)) for key, part in value.items()]
    if isinstance(value, list | tuple | set | deque):
        return id(value), [id(part) for part in value]
    if isinstance(value, Tensor):
        if is_lazy(value):
            return id(value), type(value)  # its class changes when it gets its size
        return id(value), None if value.is_inference() else value._version, value.requires_grad
    if isinstance(value, np.ndarray):
        return id(value), value.tobytes()
    return value if isinstance(value, int | float | str) else id(value)


def refusal(trainer: Any) -> str | None:
    """Return why Lightning's trainer refuses to fit the module that is attached to it; None if it accepts it."""
    verify = importlib.import_module(f"{package_of(trainer)}.trainer.configuration_validator")
    try:
        with warnings.catch_warnings(), without_chatter():
            warnings.simplefilter("ignore")  # `fit` warns about missing validation hooks
            verify._verify_loop_configurations(trainer)
    except Exception as error:
        return f"Lightning's trainer refuses it: {describe_error(error)}"
    return None


def describe_error(error: BaseException) -> str:
    """Return an error's type and its message, as `message_of` cuts it."""
    return f"{type(error).__name__}: {message_of(error)}".rstrip(": ")


def check_surroundings(error: Exception, name: str, left_out: Sequence[str]) -> None:
    """Blame the surroundings, not the module, for an error that might not occur in training.

    Args:
        error: The error that the step or a hook raised.
        name: Name of the step or hook.
        left_out: Names of callbacks that have hooks before the step, and take no part.

    Raises:
        SurroundingsError: If the error comes from Lightning's own code, from an attribute of the trainer that is None
            or missing, or from an attribute of a module that a callback which took no part may set.
    """
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    roots = [str(frame.f_globals.get("__name__", "")).partition(".")[0] for frame in frames]
    users = [idx for idx, root in enumerate(roots) if root not in (*OF_LIGHTNING, *_OF_FRAMES)]
    if not users or isinstance(error, ZiCoError):
        return
    reason = describe_error(error)
    if isinstance(error, AttributeError) and isinstance(getattr(error, "obj", None), nn.Module) and left_out:
        raise SurroundingsError(
            f"`{name}` raised {reason}. Callbacks of the trainer that are derived from Lightning's own take no part in "
            f"scoring: {', '.join(left_out)}. If one of them sets the attribute, set it in a hook of the module, or in "
            "a callback that is derived directly from `Callback`."
        ) from error
    is_lightnings = not {*roots[users[0] :]}.isdisjoint(OF_LIGHTNING)
    is_none = "NoneType" in reason and not _OF_TRAINING.isdisjoint(frames[-1].f_code.co_names)
    # A trainer of the user's own class, or one that a callback writes to, has more attributes.
    is_of_trainer = isinstance(error, AttributeError) and is_trainer(getattr(error, "obj", None))
    if is_lightnings or is_none or is_of_trainer:
        raise SurroundingsError(
            f"`{name}` raised {reason}. It uses something that exists only during training, and scoring does not "
            "train. Pass the trainer and the data module that training uses, or `loss_fn=`, called as "
            "`loss_fn(outputs, targets)`."
        ) from error
