"""Facts of the user's trainer that scoring depends on: its settings, its callbacks and its training loader."""

import copy
import importlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from typing import Any

import cloudpickle
import numpy as np
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.data import DataLoader

PACKAGES = ("lightning.pytorch", "pytorch_lightning")
# Hooks of a callback that run before the first training step, in Lightning's order.
HOOKS_BEFORE_STEP = ("setup", "on_fit_start", "on_train_start", "on_train_epoch_start", "on_train_batch_start")
# Lightning's own callbacks that change what the first step computes or which parameters it trains. The others log,
# save, stop, time, draw or average. They are given by name, because `pytorch_lightning` has its own classes.
# `LambdaCallback` holds functions of the user.
_CHANGING_STEP = {"BaseFinetuning", "GradientAccumulationScheduler", "LambdaCallback"}
# Callbacks that find the batch size or the learning rate by training for a while, which scoring does not do.
_TUNING = {"BatchSizeFinder", "LearningRateFinder"}
# A loader whose pickle is larger than this is not sent to worker processes.
_MOST_PICKLED_BYTES = 2**26
# Packages whose methods are Lightning's own.
OF_LIGHTNING = ("lightning", "lightning_fabric", "pytorch_lightning")


def roots_of(cls: type) -> Iterator[type]:
    """Iterate over the bases of a class that are Lightning's own."""
    return (base for base in cls.__mro__ if base.__module__.partition(".")[0] in ("lightning", "pytorch_lightning"))


def is_overridden(obj: Any, hook: str) -> bool:
    """Whether an object has a hook that is not Lightning's own empty one."""
    method = getattr(obj, "__dict__", {}).get(hook) or getattr(type(obj), hook, None)
    return method is not None and (getattr(method, "__module__", None) or "").partition(".")[0] not in OF_LIGHTNING


def is_trainer(value: Any) -> bool:
    """Whether a value is a trainer of either package, or a weak proxy of one."""
    return any(base.__name__ == "Trainer" for base in roots_of(value.__class__))


def package_of(*objects: Any) -> str:
    """Return the package of the first object that is Lightning's; ``lightning.pytorch`` if there is none."""
    for obj in objects:
        for base in roots_of(type(obj)):
            return PACKAGES[base.__module__.startswith(PACKAGES[1])]
    return PACKAGES[0]


@dataclass(frozen=True)
class TrainerSettings:
    """What a training step can see of the trainer it runs in; the defaults are those of Lightning.

    Args:
        max_epochs: The value at the first batch of ``fit``, where None has been replaced by a number.
        min_epochs: As for ``max_epochs``.
        max_steps: As for Lightning's trainer.
        min_steps: As for Lightning's trainer.
        accumulate_grad_batches: As for Lightning's trainer.
        gradient_clip_val: As for Lightning's trainer.
        gradient_clip_algorithm: As for Lightning's trainer.
        limit_train_batches: As for Lightning's trainer.
        limit_val_batches: As for Lightning's trainer.
        overfit_batches: As for Lightning's trainer.
        fast_dev_run: As for Lightning's trainer.
        val_check_interval: As for Lightning's trainer.
        check_val_every_n_epoch: As for Lightning's trainer.
        reload_dataloaders_every_n_epochs: As for Lightning's trainer.
        log_every_n_steps: As for Lightning's trainer.
        num_sanity_val_steps: As for Lightning's trainer.
        precision: Lightning's name of the precision. The precision of a score also depends on where candidates are
            scored.
        loggers: Classes of the trainer's loggers, None for Lightning's default; the loggers that a step sees log
            nothing.
        callbacks: Callbacks of the user's trainer that a step sees, whether they take part (`takes_part`) or not: all
            except progress bars and callbacks of this package.
    """

    max_epochs: int = 1000
    min_epochs: int = 0
    max_steps: int = -1
    min_steps: int | None = None
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = None
    gradient_clip_algorithm: str | None = None
    limit_train_batches: int | float = 1.0
    limit_val_batches: int | float = 1.0
    overfit_batches: int | float = 0.0
    fast_dev_run: int | bool = False
    val_check_interval: int | float = 1.0
    check_val_every_n_epoch: int | None = 1
    reload_dataloaders_every_n_epochs: int = 0
    log_every_n_steps: int = 50
    num_sanity_val_steps: int | float = 2
    precision: str = "32-true"
    loggers: tuple[type | None, ...] = (None,)
    callbacks: tuple[Any, ...] = ()

    @classmethod
    def of(cls, trainer: Any) -> "TrainerSettings":
        """Read the settings of a trainer of either package; Lightning's defaults for None."""
        if trainer is None:
            return DEFAULT_SETTINGS
        limits = importlib.import_module(f"{package_of(trainer)}.loops.utilities")._parse_loop_limits
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `fit` warns if `max_epochs` is not set
            min_epochs, max_epochs = limits(
                trainer.min_steps, trainer.max_steps, trainer.min_epochs, trainer.max_epochs, trainer
            )
        derived = {
            "min_epochs": min_epochs,
            "max_epochs": max_epochs,
            "precision": str(trainer.precision),
            "loggers": tuple(type(logger) for logger in trainer.loggers),
            "callbacks": tuple(_detach(callback) for callback in trainer.callbacks if not goes_on(callback)),
        }
        others = [field.name for field in fields(cls) if field.name not in derived]
        return cls(**{name: getattr(trainer, name) for name in others}, **derived)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out callbacks that take no part and cannot be sent to other processes."""
        return {**vars(self), "callbacks": tuple(filter(_can_be_sent, self.callbacks))}

    @property
    def left_out(self) -> list[str]:
        """Names of Lightning's tuning callbacks, and of classes derived from its other callbacks that add a hook."""
        shown = [each for each in self.callbacks if not takes_part(each)]
        acting = [each for each in shown if _acts_before(each) or not _callback_classes(each).isdisjoint(_TUNING)]
        return [type(each).__name__ for each in acting]

    @property
    def facts(self) -> dict[str, Any]:
        """Contents of the key of a cached score: callbacks that take no part enter without their counters."""
        shown = [each if takes_part(each) else (type(each), each.state_key) for each in self.callbacks]
        return {**vars(self), "callbacks": shown}

    def apply(self, trainer: Any) -> None:
        """Apply these settings to a private trainer, except callbacks, loggers and precision."""
        loop = trainer.fit_loop
        loop.max_epochs, loop.min_epochs = self.max_epochs, self.min_epochs
        loop.epoch_loop.max_steps, loop.epoch_loop.min_steps = self.max_steps, self.min_steps
        for name in _PLAIN:
            setattr(trainer, name, getattr(self, name))


# Settings that are not plain attributes of a trainer.
_OTHERS = {"max_epochs", "min_epochs", "max_steps", "min_steps", "precision", "loggers", "callbacks"}
_PLAIN = tuple(field.name for field in fields(TrainerSettings) if field.name not in _OTHERS)
DEFAULT_SETTINGS = TrainerSettings()


def takes_part(callback: Any) -> bool:
    """Whether the hooks of a callback run while a module is scored, because they may prepare the first step.

    Among Lightning's own callbacks and classes derived from them, only the few that change what is trained take part;
    the others log, save, stop, time, draw or average. Other callbacks take part if they have a hook before the step.

    Example:
        >>> from lightning.pytorch.callbacks import EarlyStopping
        >>> takes_part(EarlyStopping("val_loss"))
        False
    """
    own = _callback_classes(callback)
    return not own.isdisjoint(_CHANGING_STEP) if own else not goes_on(callback) and _acts_before(callback)


def goes_on(callback: Any) -> bool:
    """Whether a callback keeps running while a module is scored: progress bars, and callbacks of this package."""
    is_own = any(base.__module__.partition(".")[0] == "lightning_zico" for base in type(callback).__mro__)
    return is_own or "ProgressBar" in _callback_classes(callback)


def _callback_classes(callback: Any) -> set[str]:
    """Return the names of Lightning's own callbacks that a callback is derived from."""
    callbacks = {base.__name__ for base in roots_of(type(callback)) if "callbacks" in base.__module__.split(".")}
    return callbacks - {"Callback"}


def _acts_before(callback: Any) -> bool:
    return any(is_overridden(callback, hook) for hook in HOOKS_BEFORE_STEP)


def _can_be_sent(callback: Any) -> bool:
    """Whether a callback can be pickled; assumed for one that takes part, so that failing to pickle it is an error."""
    if takes_part(callback):
        return True
    try:
        cloudpickle.dumps(callback)
    except Exception:
        return False
    return True


def _detach(callback: Any) -> Any:
    """Copy a callback without what an earlier ``fit`` attached to it, which refers to the module it trained."""
    attributes = vars(callback)
    if not {"log", "log_dict"} & attributes.keys():
        return callback
    own = object.__new__(type(callback))
    vars(own).update({name: value for name, value in attributes.items() if name not in ("log", "log_dict")})
    return own


class TrainingLoader:
    """The loader of the batches that candidates are scored on, as ``trainer.train_dataloader`` shows it.

    When it is sent to another process, its lengths are always included, and the loader if it can be pickled and is
    small.

    Args:
        loader: A loader, a collection of loaders, a `CombinedLoader`, or an iterable of batches.
    """

    def __init__(self, loader: Any) -> None:
        is_combined = type(loader).__name__ == "CombinedLoader"
        self._iterables = loader.iterables if is_combined else loader
        self._mode: str = loader._mode if is_combined else "max_size_cycle"  # Lightning's own for training
        leaves = loader.flattened if is_combined else leaves_of(loader)
        self._lengths = [length_of(leaf) for leaf in leaves]
        self._num_samples = [length_of(getattr(leaf, "dataset", None)) for leaf in leaves]
        self._pickled: bytes | None = None

    @property
    def facts(self) -> tuple[Any, ...]:
        """Contents of the key of a cached score: how the loader combines, its number of batches and of samples."""
        return self._mode, self._lengths, self._num_samples

    @property
    def mode(self) -> Any:
        """How a collection of loaders is combined, as `CombinedLoader` names it."""
        return self._mode

    @property
    def iterables(self) -> Any:
        """The loader, or the collection of loaders; None in a process that it was not sent to."""
        if self._iterables is None and self._pickled is not None:
            self._iterables = cloudpickle.loads(self._pickled)
        return self._iterables

    def num_batches(self, limit: int | float) -> int | float:
        """Count the batches of an epoch; infinite only if the loader has no length.

        Args:
            limit: The trainer's ``limit_train_batches``: a number, or a share as a float.

        Example:
            >>> TrainingLoader([[1, 2, 3], [4, 5]]).num_batches(1.0)
            2
        """
        limited = [within_limit(length, limit) for length in self._lengths]
        combine: Any = {"min_size": min, "sequential": sum}.get(self._mode, max)
        return combine(limited) if limited else 0

    def __getstate__(self) -> dict[str, Any]:
        """Replace the loader by its pickle, which is made once for all processes and read only when needed."""
        if self._pickled is None and self._iterables is not None:
            self._pickled = b""
            if sum(map(_count_bytes, leaves_of(self._iterables))) <= _MOST_PICKLED_BYTES:
                with suppress(Exception):
                    pickled = cloudpickle.dumps(tree_map_only(DataLoader, without_iterator, self._iterables))
                    self._pickled = pickled if len(pickled) <= _MOST_PICKLED_BYTES else b""
        return {**vars(self), "_iterables": None, "_pickled": self._pickled or None}


def without_iterator(loader: "DataLoader[Any]") -> "DataLoader[Any]":
    """Copy a loader without the iterator that it keeps between epochs, together with its worker processes."""
    own = copy.copy(loader)
    own._iterator = None
    return own


def leaves_of(loader: Any) -> list[Any]:
    """List the loaders in a collection of loaders; an iterable of batches counts as one loader."""
    leaves = tree_leaves(loader)
    return leaves if any(isinstance(leaf, DataLoader) for leaf in leaves) else [loader]


def _count_bytes(loader: Any) -> int:
    """Count the bytes of the tensors and arrays found in the attributes of a loader's dataset."""
    dataset = getattr(loader, "dataset", loader)
    leaves = tree_leaves(list(getattr(dataset, "__dict__", {}).values()))
    return sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor | np.ndarray))


def length_of(iterable: Any) -> int | float:
    """Return the length of a loader; infinite if it is unknown."""
    try:
        return len(iterable)
    except (TypeError, NotImplementedError):
        return float("inf")


def within_limit(length: int | float, limit: int | float) -> int | float:
    """Apply a trainer's limit on batches: an int is a count, a float a share."""
    if isinstance(limit, int):
        return min(length, limit)
    return length if length == float("inf") else int(length * limit)


@contextmanager
def without_chatter() -> Iterator[None]:
    """Silence Lightning's log messages."""
    # Both packages log through the logger of the one that was imported last.
    chatter = [logging.getLogger(f"{package}.utilities.rank_zero") for package in PACKAGES]
    # Not by their levels: setting one visits all existing loggers.
    disabled = [logger.disabled for logger in chatter]
    for logger in chatter:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, was_disabled in zip(chatter, disabled, strict=True):
            logger.disabled = was_disabled
