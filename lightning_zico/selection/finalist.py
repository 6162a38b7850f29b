"""One candidate in the finals: trained for some epochs at a time, with one or more seeds."""

import difflib
import inspect
import math
import pkgutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import LambdaCallback
from torch import nn
from torch.nn.parameter import is_lazy

from lightning_zico.bridge.hooks import is_lightning
from lightning_zico.engine.lazy import copied
from lightning_zico.engine.scope import rng_restorer, seed_all
from lightning_zico.errors import NotLoggedError
from lightning_zico.results import Final
from lightning_zico.scoring.process_state import preserved_process_state
from lightning_zico.scoring.reasons import describe


class Conditions(NamedTuple):
    """Under which all finalists are trained.

    Args:
        trainer: The trainer, set up by `rounds.borrowed`.
        data: Arguments of `Trainer.fit`.
        rewind: Function that resets the trainer to the start of training.
        num_epochs: Number of epochs in a round.
        monitor: Name of the metric to read.
    """

    trainer: Any
    data: Mapping[str, Any]
    rewind: Callable[[], None]
    num_epochs: int
    monitor: str


class Finalist:
    """A candidate in the finals.

    Args:
        trainings: Its trainings, one per seed. If it wins, the first one continues.

    Attributes:
        value: The mean of the monitored metric over the trainings, after the last round that all of them finished.
        num_epochs: Number of epochs up to the end of that round.
        by_seed: The metric of each training in that round.
        by_round: That mean after each round that all of them finished.
        error: Why a training failed; None if none did.
    """

    def __init__(self, trainings: Sequence["Training"]) -> None:
        self.trainings = tuple(trainings)
        self.name = self.trainings[0].name
        self.value: float | None = None
        self.num_epochs = 0
        self.by_seed: tuple[float, ...] = ()
        self.by_round: list[float] = []
        self.error: str | None = None

    @property
    def is_done(self) -> bool:
        """Whether training gave a value or an error."""
        return self.value is not None or self.error is not None

    @property
    def num_rounds(self) -> int:
        """Number of rounds that all of its trainings finished."""
        return len(self.by_round)

    @property
    def logs_monitor(self) -> bool:
        """Whether a training has logged the monitored metric."""
        return any(training.logs_monitor for training in self.trainings)

    @property
    def not_logged(self) -> NotLoggedError | None:
        """The error if a training did not log the monitored metric."""
        return next((training.not_logged for training in self.trainings if training.not_logged), None)

    @property
    def final(self) -> Final:
        """The result of its training."""
        if self.error is not None:
            return Final(self.name, None, self.trainings[0].num_epochs, self.error)
        return Final(self.name, self.value, self.num_epochs, by_seed=self.by_seed)

    @property
    def seconds(self) -> float:
        """Time that its trainings took, in seconds."""
        return sum(training.seconds for training in self.trainings)

    def play(self, conditions: Conditions) -> None:
        """Train it for a round with each seed; a failure is recorded in ``error``, and ends the round."""
        values = []
        for training in self.trainings:
            training.play(conditions)
            if training.value is None or training.error is not None:
                self.error = training.error
                return
            values.append(training.value)
        self.value, self.by_seed = statistics.fmean(values), tuple(values)
        self.num_epochs = self.trainings[0].num_epochs
        self.by_round.append(self.value)


class Training:
    """A training of a finalist, for some epochs at a time, continuing from where it paused.

    The trainer is set up to train to the end, so that a learning rate schedule covers the whole training, and is
    stopped after the given epochs. The checkpoint is Lightning's; the states of the generators of Python, NumPy and
    torch are stored next to it. A training that paused therefore ends with the same weights, bit for bit, as one that
    did not, provided that the trainer's callbacks do not change training, and that its data and loaders carry no state
    from one epoch to the next except in these generators.

    To Lightning, every pause is an end of training: the module's hooks from ``setup`` and ``on_fit_start`` to
    ``on_train_end`` and ``teardown``, and those of the data module, run each time.

    Args:
        name: Name of the candidate.
        build: Function that builds it, always with the same weights.
        checkpoint: File for the state of its training.
        seed: The seed of the generators, set before each setup of data and model and before the first epoch.
    """

    def __init__(self, name: str, build: Callable[[], nn.Module], checkpoint: Path, seed: int) -> None:
        self.name = name
        self.build = build
        self.seed = seed
        self.num_epochs = 0
        self.seconds = 0.0
        self.value: float | None = None
        self.error: str | None = None
        self.logs_monitor = False
        self.not_logged: NotLoggedError | None = None
        self.checkpoint = checkpoint
        self._classes: list[Any] | None = None  # see `_list_classes`
        self._put_back_rng: Callable[[], None] | None = None

    def play(self, conditions: Conditions) -> None:
        """Train a copy for a round; a failure is recorded in ``error``.

        The round is shorter if training ends earlier. Trained to the end, it keeps its value.

        Raises:
            KeyboardInterrupt: If the user presses Ctrl-C, which Lightning turns into a SystemExit.
        """
        monitor = conditions.monitor
        begun = time.perf_counter()
        start, until, seconds = self.num_epochs, self.num_epochs + conditions.num_epochs, self.seconds
        has_validated = False

        def note_validation(trainer: Any, _: LightningModule) -> None:
            nonlocal has_validated
            has_validated = has_validated or not trainer.sanity_checking

        def check(trainer: Any, _: LightningModule) -> None:
            # The metrics of an epoch are complete when the next one begins, and not before.
            if trainer.current_epoch > start and (has_validated or not trainer.enable_validation):
                self._check_logged(monitor, trainer.callback_metrics)

        def stop(trainer: Any, _: LightningModule) -> None:
            trainer.should_stop = trainer.should_stop or trainer.current_epoch + 1 >= until

        def pause(trainer: Any, _: LightningModule) -> None:
            self.num_epochs = trainer.current_epoch
            self._check_logged(monitor, trainer.callback_metrics)
            value = _read_monitor(trainer.callback_metrics, monitor)
            now = seconds + time.perf_counter() - begun
            self.value, self.seconds = trainer.strategy.broadcast((value, now))  # one for all ranks
            self.checkpoint = trainer.strategy.broadcast(self.checkpoint)
            trainer.save_checkpoint(self.checkpoint)
            new = _list_classes(self.checkpoint)  # besides those that are allowed now, from the checkpoint before
            self._classes = None if new is None else [*(self._classes or []), *new]
            self._put_back_rng = rng_restorer()

        conditions.rewind()
        conditions.trainer.callbacks = [
            LambdaCallback(
                on_train_epoch_start=check,
                on_validation_end=note_validation,
                on_train_epoch_end=stop,
                on_train_end=pause,
            )
        ]
        with preserved_process_state(keep_environment=True) as state:
            try:
                self.train(conditions.trainer, _build_apart(self.build), conditions.data)
                if self.value is None:
                    raise RuntimeError("the trainer trained no epoch. Give it batches to train on.")
            except BaseException as raised:
                state.raise_interrupt()
                self.seconds = seconds + time.perf_counter() - begun
                # Lightning exits the process at any KeyboardInterrupt, also at one that a candidate raises.
                is_exit = isinstance(raised, SystemExit) and isinstance(raised.__context__, KeyboardInterrupt)
                self.error = describe(raised.__context__ if is_exit and raised.__context__ else raised)
                self.not_logged = NotLoggedError(str(raised)) if isinstance(raised, NotLoggedError) else None

    def _check_logged(self, monitor: str, metrics: Mapping[str, Any]) -> None:
        """Check that the monitored metric was logged.

        Raises:
            NotLoggedError: If it was not; the message has the closest names.
        """
        if monitor not in metrics:
            nearest = difflib.get_close_matches(monitor, list(metrics), n=3, cutoff=0.4)
            hint = f" Did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""
            raise NotLoggedError(
                f"`{monitor}` was not logged; logged: {', '.join(metrics) or 'nothing'}.{hint} Log it, pass validation "
                "data, or name another `monitor`."
            )
        self.logs_monitor = True

    def train(self, trainer: Any, model: nn.Module, data: Mapping[str, Any]) -> None:
        """Train a model until the trainer ends, from where this training paused.

        Args:
            trainer: The trainer, with the callbacks and loggers to use. Its ``ckpt_path`` is restored afterwards.
            model: A model as ``build`` builds it; it is trained in place.
            data: Arguments of `Trainer.fit`.

        Raises:
            TypeError: If the model is not a LightningModule.
        """
        if not is_lightning(model):
            raise TypeError(f"it is a {type(model).__name__}, but a `Trainer` only trains LightningModules.")
        arguments: dict[str, Any] = dict(data)
        if self._put_back_rng is not None:
            arguments["ckpt_path"] = self.checkpoint
            # Lightning before 2.6 has no such argument.
            if "weights_only" in inspect.signature(trainer.fit).parameters:
                arguments["weights_only"] = self._classes is not None
        # Setup draws the same random numbers again, such as a split of the data; then training continues.
        go_on = LambdaCallback(on_train_epoch_start=self._go_on)
        trainer.callbacks = [go_on, *trainer.callbacks]
        trainer.should_stop = False  # in Lightning 2.4, `fit` leaves it as the last training set it
        connector = trainer._checkpoint_connector  # the setter of `trainer.ckpt_path` would also have `fit` load it
        ckpt_path, user_managed = connector._ckpt_path, connector._user_managed
        seed_all(self.seed)
        try:
            # Hyperparameters may be any objects: allow the classes that were saved, and no others.
            with torch.serialization.safe_globals(self._classes or []):
                trainer.fit(model, **arguments)
        finally:
            connector._ckpt_path, connector._user_managed = ckpt_path, user_managed
            trainer.callbacks = [callback for callback in trainer.callbacks if callback is not go_on]

    def _go_on(self, trainer: Any, _: LightningModule) -> None:
        if self._put_back_rng is None or trainer.current_epoch != self.num_epochs:
            return
        self._put_back_rng()
        # Otherwise Lightning would keep the iterator that it made, and drew a seed for, during setup.
        trainer.fit_loop._resuming_from_checkpoint = False


def _list_classes(checkpoint: Path) -> list[Any] | None:
    """List the classes in a checkpoint that torch only loads with ``weights_only=True`` if they are declared safe.

    Returns:
        The classes; None if they are unknown: for a folder, as sharded strategies write, and with torch 2.5.
    """
    list_names = getattr(torch.serialization, "get_unsafe_globals_in_checkpoint", None)
    if list_names is None or not checkpoint.is_file():
        return None
    return [pkgutil.resolve_name(name) for name in list_names(checkpoint)]


def _read_monitor(metrics: Mapping[str, Any], monitor: str) -> float:
    value = float(metrics[monitor])
    if not math.isfinite(value):
        raise ValueError(f"`{monitor}` is {value} after training.")
    return value


def _build_apart(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a model that shares no memory with others: only the winner trains the user's own instance or backbone."""
    model, other = build(), build()
    return copied(other) if model is other or _memory(model) & _memory(other) else other


def _memory(model: nn.Module) -> set[int]:
    """Return ids of the memory of a model's parameters and buffers, valid while it lives; lazy ones have none yet."""
    tensors = (*model.parameters(), *model.buffers())
    return {id(tensor) if is_lazy(tensor) else tensor.untyped_storage()._cdata for tensor in tensors}
