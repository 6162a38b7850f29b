"""The trainer that a candidate sees while it is scored: a private one, with the settings of the user's trainer.

Lightning comes as two packages, `lightning.pytorch` and `pytorch_lightning`, whose classes are unrelated. A private
trainer belongs to the package of the module, or of the data module, that is attached to it.
"""

import copy
import functools
import importlib
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any

import cloudpickle
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.data import DataLoader

from lightning_zico.engine.undo import refill
from lightning_zico.folders import temporary_folder

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
_INF = float("inf")
_OF_LIGHTNING = ("lightning", "pytorch_lightning")


def roots_of(cls: type) -> Iterator[type]:
    """Iterate over the bases of a class that are Lightning's own."""
    return (base for base in cls.__mro__ if base.__module__.partition(".")[0] in ("lightning", "pytorch_lightning"))


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
        told = {
            "min_epochs": min_epochs,
            "max_epochs": max_epochs,
            "precision": str(trainer.precision),
            "loggers": tuple(type(logger) for logger in trainer.loggers),
            "callbacks": tuple(_detached(callback) for callback in trainer.callbacks if not goes_on(callback)),
        }
        others = [field.name for field in fields(cls) if field.name not in told]
        return cls(**{name: getattr(trainer, name) for name in others}, **told)

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
    return any(_is_users(callback, hook) for hook in HOOKS_BEFORE_STEP)


def _can_be_sent(callback: Any) -> bool:
    """Whether a callback can be pickled; assumed for one that takes part, so that failing to pickle it is an error."""
    if takes_part(callback):
        return True
    try:
        cloudpickle.dumps(callback)
    except Exception:
        return False
    return True


def _detached(callback: Any) -> Any:
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
        leaves = loader.flattened if is_combined else _leaves(loader)
        self._lengths = [_length(leaf) for leaf in leaves]
        self._num_samples = [_length(getattr(leaf, "dataset", None)) for leaf in leaves]
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
        limited = [_limited(length, limit) for length in self._lengths]
        combine: Any = {"min_size": min, "sequential": sum}.get(self._mode, max)
        return combine(limited) if limited else 0

    def __getstate__(self) -> dict[str, Any]:
        """Replace the loader by its pickle, which is made once for all processes and read only when needed."""
        if self._pickled is None and self._iterables is not None:
            self._pickled = b""
            if sum(map(_held_bytes, _leaves(self._iterables))) <= _MOST_PICKLED_BYTES:
                with suppress(Exception):
                    pickled = cloudpickle.dumps(tree_map_only(DataLoader, without_iterator, self._iterables))
                    self._pickled = pickled if len(pickled) <= _MOST_PICKLED_BYTES else b""
        return {**vars(self), "_iterables": None, "_pickled": self._pickled or None}


def without_iterator(loader: "DataLoader[Any]") -> "DataLoader[Any]":
    """Copy a loader without the iterator that it keeps between epochs, together with its worker processes."""
    own = copy.copy(loader)
    own._iterator = None
    return own


def _leaves(loader: Any) -> list[Any]:
    """List the loaders in a collection of loaders; an iterable of batches counts as one loader."""
    leaves = tree_leaves(loader)
    return leaves if any(isinstance(leaf, DataLoader) for leaf in leaves) else [loader]


def _held_bytes(loader: Any) -> int:
    """Count the bytes of the tensors and arrays found in the attributes of a loader's dataset."""
    dataset = getattr(loader, "dataset", loader)
    leaves = tree_leaves(list(getattr(dataset, "__dict__", {}).values()))
    return sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor | np.ndarray))


def _length(iterable: Any) -> int | float:
    try:
        return len(iterable)
    except (TypeError, NotImplementedError):
        return float("inf")


def _limited(length: int | float, limit: int | float) -> int | float:
    if isinstance(limit, int):
        return min(length, limit)
    return length if length == float("inf") else int(length * limit)


class TemporaryFolder:
    """A folder that is made when its path is first requested, and removed at the end."""

    def __init__(self) -> None:
        self._made = ExitStack()
        self._path: str | None = None

    def __call__(self) -> str:
        """Return the folder's path."""
        if self._path is None:
            self._path = str(self._made.enter_context(temporary_folder()))
        return self._path

    def remove(self) -> None:
        """Remove the folder, if it was made, with all its contents."""
        self._made.close()
        self._path = None


def quiet_loggers(package: str, kinds: Iterable[type | None], folder: TemporaryFolder) -> list[Any]:
    """Make loggers that write nothing; the folder that they name is a temporary one.

    Args:
        package: One of Lightning's two packages.
        kinds: Classes that the loggers are instances of for `isinstance`; None for the class of Lightning's default
            logger.
        folder: The temporary folder.
    """
    return [_classes(package).logger(folder, kind or _default_logger(package)) for kind in kinds]


@functools.cache
def _default_logger(package: str) -> Any:
    chooses: Any = importlib.import_module(f"{package}.trainer.connectors.logger_connector.logger_connector")
    has_tensorboard = chooses._TENSORBOARD_AVAILABLE or chooses._TENSORBOARDX_AVAILABLE
    return chooses.TensorBoardLogger if has_tensorboard else chooses.CSVLogger


@functools.cache
def _classes(package: str) -> Any:
    """Make the classes of a private trainer and its logger for one of Lightning's packages."""
    trainer: Any = importlib.import_module(package).Trainer
    dummy: Any = importlib.import_module(f"{package}.loggers.logger").DummyLogger
    loop: Any = importlib.import_module(f"{package}.loops.fit_loop")._FitLoop
    combined: Any = importlib.import_module(f"{package}.utilities").CombinedLoader

    class QuietLogger(dummy):
        name = "lightning_logs"  # of Lightning's default logger in a new folder
        version = 0

        def __init__(self, folder: TemporaryFolder, kind: type) -> None:
            super().__init__()
            self._folder = folder
            self._kind = kind

        @property  # type: ignore[misc]
        def __class__(self) -> Any:
            return self._kind

        @property
        def save_dir(self) -> str:
            return self._folder()

        log_dir = root_dir = save_dir

    class PrivateTrainer(trainer):
        private_folder: TemporaryFolder
        private_serves_all = False
        private_was_asked = False  # for the module, although there is none
        private_loader: TrainingLoader | None = None
        private_has_begun = False
        private_datamodule: Any = None
        private_callbacks: list[Any]
        private_reached: Callable[[Any], None] = staticmethod(lambda _: None)

        @property
        def _callback_connector(self) -> Any:
            return self._private_connector

        @_callback_connector.setter
        def _callback_connector(self, connector: Any) -> None:
            # The original searches all installed packages for factories of callbacks, which takes four fifths of the
            # time to make a trainer. Here callbacks are set by the code that runs their hooks.
            connector.on_trainer_init = lambda *_: None
            self._private_connector = connector

        @property
        def callbacks(self) -> list[Any]:
            for callback in self.private_callbacks:
                self.private_reached(callback)
            return self.private_callbacks

        @callbacks.setter
        def callbacks(self, callbacks: list[Any]) -> None:
            self.private_callbacks = callbacks

        @property
        def default_root_dir(self) -> str:
            return self.private_folder()

        @property
        def lightning_module(self) -> Any:
            self.private_was_asked |= self.private_serves_all
            return super().lightning_module

        @property
        def model(self) -> Any:
            self.private_was_asked |= self.private_serves_all
            return super().model

        @model.setter
        def model(self, model: Any) -> None:
            self.strategy.model = model

        @property
        def datamodule(self) -> Any:
            if self.private_datamodule is not None:
                self.private_reached(self.private_datamodule)
            return self.private_datamodule

        @datamodule.setter
        def datamodule(self, datamodule: Any) -> None:
            self.private_datamodule = datamodule

        @property
        def train_dataloader(self) -> Any:
            # `fit` sets it up before `on_train_start`, or when the number of steps is requested.
            loader = self.private_loader if self.fit_loop.private_is_set_up else None
            iterables = None if loader is None else loader.iterables
            if iterables is not None:
                self.private_reached(iterables)
            return iterables

        @property
        def val_dataloaders(self) -> Any:
            # In `fit` they exist before `on_train_start`, because it begins with a sanity check of the validation.
            loop = self.fit_loop.epoch_loop.val_loop
            if loop._combined_loader is None and self._validates():
                return self.datamodule.val_dataloader()
            return super().val_dataloaders

        @property
        def num_val_batches(self) -> list[int | float]:
            module = self.strategy.lightning_module
            if not self._validates() or not _is_users(module, "validation_step"):
                return []
            return [_limited(_length(leaf), self.limit_val_batches) for leaf in _leaves(self.val_dataloaders)]

        @property
        def num_sanity_val_batches(self) -> list[int | float]:
            return [min(self.num_sanity_val_steps, number) for number in self.num_val_batches]

        def _validates(self) -> bool:
            return (
                self.private_has_begun
                and bool(self.limit_val_batches)
                and _is_users(self.private_datamodule, "val_dataloader")
            )

        @property
        def estimated_stepping_batches(self) -> int | float:
            self.fit_loop.setup_data()  # Lightning's own call would print a message
            return super().estimated_stepping_batches

    class PrivateFitLoop(loop):
        private_is_set_up = False

        def setup_data(self) -> None:
            trainer, loader = self.trainer, self.trainer.private_loader
            if loader is None or self.private_is_set_up:
                return
            self.private_is_set_up = True
            self.max_batches = number = loader.num_batches(trainer.limit_train_batches)
            if isinstance(trainer.val_check_interval, int):
                trainer.val_check_batch = trainer.val_check_interval
            elif isinstance(trainer.val_check_interval, float):  # and not a time
                share = trainer.val_check_interval
                trainer.val_check_batch = number if number == _INF else max(1, int(number * share))

        @property
        def _combined_loader(self) -> Any:
            iterables, loader = self.trainer.train_dataloader, self.trainer.private_loader
            return None if iterables is None else combined(iterables, loader.mode)

    return SimpleNamespace(trainer=PrivateTrainer, fit_loop=PrivateFitLoop, logger=QuietLogger)


def _is_users(obj: Any, hook: str) -> bool:
    """Whether an object has a method that is not Lightning's own."""
    method = getattr(obj, hook, None)
    return method is not None and (getattr(method, "__module__", None) or "").partition(".")[0] not in _OF_LIGHTNING


@contextmanager
def private_trainer(
    settings: TrainerSettings = DEFAULT_SETTINGS,
    *,
    module: nn.Module | None = None,
    datamodule: Any = None,
    loader: TrainingLoader | None = None,
    precision: Any = None,
    device: torch.device | None = None,
    reached: Callable[[Any], None] = lambda _: None,
) -> Iterator[Any]:
    """Make a trainer that trains nothing, writes nothing and prints nothing, in the state of one that begins to fit.

    Args:
        settings: Settings of the user's trainer that it shows.
        module: The module that it seems to train; None if a data module is read for all candidates, so that it must not
            ask for one.
        datamodule: Shown as ``trainer.datamodule``.
        loader: Shown as ``trainer.train_dataloader``, and counted, once `begin` was called.
        precision: Precision plugin; None for Lightning's default.
        device: Shown as the device of the strategy; None for the CPU.
        reached: Called with the data module, the loaders or a callback before any code gets them from the trainer.
    """
    package = package_of(module, datamodule)
    fabric = "lightning.fabric" if package == PACKAGES[0] else "lightning_fabric"
    # Its own environment, regardless of the cluster that this process belongs to.
    environment = importlib.import_module(f"{fabric}.plugins.environments.lightning").LightningEnvironment()
    with without_chatter():
        trainer = _classes(package).trainer(
            accelerator="cpu",
            devices=1,
            plugins=[environment],
            max_epochs=settings.max_epochs,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    settings.apply(trainer)
    trainer.callbacks = list(settings.callbacks)
    trainer.private_folder = folder = TemporaryFolder()
    trainer.loggers = quiet_loggers(package, settings.loggers, folder)
    trainer.datamodule = datamodule
    states = importlib.import_module(f"{package}.trainer.states")
    trainer.state.fn, trainer.state.status = states.TrainerFn.FITTING, states.TrainerStatus.RUNNING
    trainer.training = True
    strategy = trainer.strategy
    if precision is not None:
        strategy.precision_plugin = precision
    if device is not None:
        strategy._root_device = device
    trainer.fit_loop.__class__ = _classes(package).fit_loop
    trainer.private_reached = reached
    trainer.private_loader = loader
    strategy.connect(module)
    trainer.private_serves_all = module is None
    try:
        yield trainer
    finally:
        # A trainer has many reference cycles: its contents would live until the garbage collector runs.
        strategy.connect(None)
        strategy.optimizers, strategy.lr_scheduler_configs = [], []
        trainer.datamodule = trainer.private_loader = None
        trainer.callbacks = []
        trainer.private_reached = lambda _: None
        folder.remove()


def begin(trainer: Any) -> None:
    """Make a private trainer show its loaders, as `fit` does before ``on_train_start``."""
    trainer.fit_loop.setup_data()
    trainer.private_has_begun = True


def at_batch(trainer: Any, batch_idx: int) -> None:
    """Set the counters of a trainer to their values at a batch of the first epoch that is not over."""
    loop = trainer.fit_loop
    progress, epochs = loop.epoch_loop.batch_progress, loop.epoch_progress
    progress.is_last_batch = batch_idx + 1 >= trainer.num_training_batches
    # During training, counters continue from those of the previous epoch until the next epoch has begun.
    is_over = progress.current.completed >= trainer.num_training_batches
    finished = progress.total.completed - (0 if is_over else progress.current.completed)
    for count, start in ((progress.current, 0), (progress.total, finished)):
        count.ready = count.started = start + batch_idx + 1
        count.processed = count.completed = start + batch_idx
    for count in (epochs.current, epochs.total):
        count.ready = count.started = count.completed + 1


@contextmanager
def quieted(trainer: Any) -> Iterator[None]:
    """Replace the loggers and the folder of a trainer in training, and restore what the body changes in it.

    Restored are its attributes, those of its loops, its counters and its state, and the learning rates, momenta and
    parameter groups of its optimisers. The replacement loggers write nothing.
    """
    loop = trainer.fit_loop
    batches, epochs = loop.epoch_loop.batch_progress, loop.epoch_progress
    parts = [trainer, trainer.state, trainer.strategy, loop, loop.epoch_loop, batches]
    parts += [batches.current, batches.total, epochs.current, epochs.total]
    parts += [config.scheduler for config in trainer.lr_scheduler_configs]
    groups = [optimizer.param_groups for optimizer in trainer.optimizers]
    changeable = [*map(vars, parts), *groups, *(group for of_one in groups for group in of_one)]
    saved = [copy.copy(part) for part in changeable]
    folder = TemporaryFolder()
    try:
        trainer.loggers = quiet_loggers(package_of(trainer), map(type, trainer.loggers), folder)
        trainer._default_root_dir = folder()
        yield
    finally:
        for part, contents in zip(changeable, saved, strict=True):
            refill(part, contents)
        folder.remove()


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
