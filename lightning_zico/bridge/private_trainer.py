"""A private trainer: it trains nothing and shows a candidate what the user's trainer would show.

Lightning comes as two packages, `lightning.pytorch` and `pytorch_lightning`, whose classes are unrelated. A private
trainer belongs to the package of the module, or of the data module, that is attached to it.
"""

import copy
import functools
import importlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from lightning_zico.bridge.trainers import (
    DEFAULT_SETTINGS,
    PACKAGES,
    TrainerSettings,
    TrainingLoader,
    is_overridden,
    leaves_of,
    length_of,
    package_of,
    within_limit,
    without_chatter,
)
from lightning_zico.engine.undo import refill
from lightning_zico.folders import temporary_folder

_INF = float("inf")


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


_Mixin: Any = object  # so that the type checker accepts what the second base of a subclass has


class _QuietLogger(_Mixin):
    """A logger that writes nothing; a subclass has the dummy logger of one package as its second base."""

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


class _PrivateTrainer(_Mixin):
    """A trainer that trains nothing; a subclass has the trainer of one package as its second base."""

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
        if not self._validates() or not is_overridden(module, "validation_step"):
            return []
        return [within_limit(length_of(leaf), self.limit_val_batches) for leaf in leaves_of(self.val_dataloaders)]

    @property
    def num_sanity_val_batches(self) -> list[int | float]:
        return [min(self.num_sanity_val_steps, number) for number in self.num_val_batches]

    def _validates(self) -> bool:
        return (
            self.private_has_begun
            and bool(self.limit_val_batches)
            and is_overridden(self.private_datamodule, "val_dataloader")
        )

    @property
    def estimated_stepping_batches(self) -> int | float:
        self.fit_loop.setup_data()  # Lightning's own call would print a message
        return super().estimated_stepping_batches


class _PrivateFitLoop(_Mixin):
    """A loop that reads no loader; a subclass has the loop of one package as its second base."""

    combined: Callable[..., Any]  # that package's `CombinedLoader`
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
        return None if iterables is None else self.combined(iterables, loader.mode)


@functools.cache
def _classes(package: str) -> Any:
    """Make the classes of a private trainer and its logger for one of Lightning's packages."""

    def make(name: str, mixin: type, module: str, base: str, **contents: Any) -> type:
        return type(name, (mixin, getattr(importlib.import_module(module), base)), {"__module__": __name__, **contents})

    combined = staticmethod(importlib.import_module(f"{package}.utilities").CombinedLoader)
    return SimpleNamespace(
        trainer=make("PrivateTrainer", _PrivateTrainer, package, "Trainer"),
        fit_loop=make("PrivateFitLoop", _PrivateFitLoop, f"{package}.loops.fit_loop", "_FitLoop", combined=combined),
        logger=make("QuietLogger", _QuietLogger, f"{package}.loggers.logger", "DummyLogger"),
    )


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
