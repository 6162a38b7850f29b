"""One candidate in the finals: trained for some epochs at a time, with one or more seeds."""

import difflib
import importlib
import inspect
import math
import pkgutil
import shutil
import statistics
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import LambdaCallback
from torch import nn
from torch.nn.parameter import is_lazy

from lightning_zico.bridge.hooks import is_lightning
from lightning_zico.bridge.trainers import package_of
from lightning_zico.engine.lazy import copied
from lightning_zico.engine.scope import preserved_rng, rng_restorer, seed_all
from lightning_zico.errors import NotLoggedError
from lightning_zico.results import Final
from lightning_zico.scoring.process_state import preserved_process_state
from lightning_zico.scoring.reasons import describe
from lightning_zico.selection.final_cache import (
    Epochs,
    FinalsCache,
    StoredTraining,
    generators_as_text,
    set_generators,
)


class Conditions(NamedTuple):
    """The conditions under which all finalists are trained.

    Args:
        trainer: The trainer, set up by `rounds.borrowed`.
        data: Arguments of `Trainer.fit`.
        rewind: Function that resets the trainer to the start of training.
        num_epochs: Number of epochs in a round.
        monitor: Name of the metric to read.
        mode: Whether lower (``"min"``) or higher (``"max"``) is better.
        patience: A training ends when the metric has not improved in this number of validations; None for no limit.
        cache: Stores the trainings; None if nothing does.
    """

    trainer: Any
    data: Mapping[str, Any]
    rewind: Callable[[], None]
    num_epochs: int
    monitor: str
    mode: Literal["min", "max"] = "min"
    patience: int | None = None
    cache: FinalsCache | None = None


class Finalist:
    """A candidate in the finals.

    Args:
        trainings: Its trainings, one per seed. If it wins, the first one continues.

    Attributes:
        rounds: The monitored metric of each training, after each round that all of them finished.
        num_epochs: Number of epochs up to the end of the last of these rounds.
        error: Why a training failed; None if none did.
    """

    def __init__(self, trainings: Sequence["Training"]) -> None:
        self.trainings = tuple(trainings)
        self.name = self.trainings[0].name
        self.rounds: list[tuple[float, ...]] = []
        self.num_epochs = 0
        self.error: str | None = None

    @property
    def by_round(self) -> list[float]:
        """The mean of the metric over the trainings, after each round."""
        return [statistics.fmean(values) for values in self.rounds]

    @property
    def by_seed(self) -> tuple[float, ...]:
        """The metric of each training after the last round; empty before the first."""
        return self.rounds[-1] if self.rounds else ()

    @property
    def value(self) -> float | None:
        """The mean of the metric over the trainings after the last round; None before the first."""
        return statistics.fmean(self.by_seed) if self.rounds else None

    @property
    def is_done(self) -> bool:
        """Whether training gave a value or an error."""
        return bool(self.rounds) or self.error is not None

    @property
    def num_rounds(self) -> int:
        """Number of rounds that all of its trainings finished."""
        return len(self.rounds)

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
        self.rounds.append(tuple(values))
        self.num_epochs = max(training.num_epochs for training in self.trainings)

    def fail(self, reason: str, seconds: float) -> None:
        """Record that a process in which it was trained failed, after some seconds."""
        self.trainings[0].fail(reason, seconds)
        self.error = reason

    def adopt(self, other: "Finalist") -> None:
        """Take over the results of a copy that was trained in another process."""
        trainings = self.trainings
        vars(self).update(vars(other), trainings=trainings)
        for own, trained in zip(trainings, other.trainings, strict=True):
            own.adopt(trained)

    def catch_up(self, conditions: Conditions) -> None:
        """Prepare to continue its first training; a failure is recorded in ``error``."""
        self.trainings[0].catch_up(conditions)
        self.error = self.trainings[0].error


class Training:
    """A training of a finalist, for some epochs at a time, continuing from where it paused.

    The trainer is set up to train to the end, so that a learning rate schedule covers the whole training, and is
    stopped after the given epochs. The checkpoint is Lightning's; the states of the generators of Python, NumPy and
    torch are stored next to it. A training that paused therefore ends with the same weights, bit for bit, as one that
    did not, provided that the trainer's callbacks do not change training, and that its data and loaders carry no state
    from one epoch to the next except in these generators.

    To Lightning, every pause is an end of training: the module's hooks from ``setup`` and ``on_fit_start`` to
    ``on_train_end`` and ``teardown``, and those of the data module, run each time. If a cache stores the training, or
    if it may run out of patience, it pauses after each epoch.

    Args:
        name: Name of the candidate.
        build: Function that builds it, always with the same weights.
        checkpoint: File for the state of its training.
        seed: The seed of the generators, set before each setup of data and model and before the first epoch.

    Attributes:
        num_epochs: Number of epochs up to the end of the last round.
        value: The monitored metric after them.
        error: Why it failed; None if it did not.
        logs_monitor: Whether it has logged the monitored metric.
        not_logged: The error if it did not.
    """

    def __init__(self, name: str, build: Callable[[], nn.Module], checkpoint: Path, seed: int) -> None:
        self.name = name
        self.build = build
        self.seed = seed
        self.num_epochs = 0
        self.value: float | None = None
        self.error: str | None = None
        self.logs_monitor = False
        self.not_logged: NotLoggedError | None = None
        self.checkpoint = checkpoint
        self._epochs = Epochs()  # all that are known; a cache may know more than this run has needed so far
        self._is_fetched = True  # whether the checkpoint after them is there
        self._stored: StoredTraining | None = None
        self._other_s = 0.0
        self._shares_memory: bool | None = None  # whether the models that `build` returns do; None before the first
        self._put_back_rng: Callable[[], None] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to this process; `_fetch` makes it from the text of the generators."""
        return {**vars(self), "_put_back_rng": None}

    @property
    def seconds(self) -> float:
        """Time that it took, in seconds, with building and storing.

        Epochs from a cache count as they took, other than in a round that failed.
        """
        return sum(self._epochs.seconds[: self.num_epochs]) + self._other_s

    def play(self, conditions: Conditions) -> None:
        """Train a copy for a round; a failure is recorded in ``error``.

        The round is shorter if training ends earlier. Trained to the end, it keeps its value.

        Raises:
            KeyboardInterrupt: If the user presses Ctrl-C, which Lightning turns into a SystemExit.
            SystemExit: If the process gets a SIGTERM or SIGHUP.
        """
        with self._recorded():
            if conditions.cache is not None and not self._epochs:
                with self._counted():
                    self._open(conditions.cache)
            self._play(conditions)

    def use_own_checkpoint(self) -> None:
        """Continue from a copy of the checkpoint, so that another process can begin where this one did if it dies."""
        own = self.checkpoint.with_name(f"{uuid.uuid4().hex}.ckpt")
        if self._epochs and self._is_fetched:
            shutil.copyfile(self.checkpoint, own)
        self.checkpoint = own

    def adopt(self, other: "Training") -> None:
        """Take over the results of a copy that was trained in another process and used its own checkpoint."""
        self.checkpoint.unlink(missing_ok=True)
        vars(self).update({name: value for name, value in vars(other).items() if name != "build"})

    def fail(self, reason: str, seconds: float) -> None:
        """Record that the process in which it was trained failed, after some seconds."""
        self.error = reason
        self._other_s += seconds

    def _open(self, cache: FinalsCache) -> None:
        """Read what a cache knows of this training."""
        self._stored = cache.training(self.build(), self.seed)
        if self._stored is not None and (known := self._stored.read()):
            self._epochs, self._is_fetched = known, False

    def _play(self, conditions: Conditions) -> None:
        start = self.num_epochs
        num_at_once = 1 if self._stored is not None or conditions.patience is not None else conditions.num_epochs
        while len(self._epochs) < (end := self._end_of_round(start, conditions)):
            self._fetch(conditions.trainer.strategy.root_device)
            target = min(len(self._epochs) + num_at_once, end)
            self._train_until(target, conditions)
            if len(self._epochs) < target:
                break
            if self._stored is not None:
                with self._counted():
                    self._stored.store(self._epochs, self.checkpoint)
        self.num_epochs = min(self._end_of_round(start, conditions), len(self._epochs))
        if not self.num_epochs:
            raise RuntimeError("the trainer trained no epoch. Give it batches to train on.")
        value = self._epochs.last_value(self.num_epochs)
        if value is None:
            raise NotLoggedError(f"`{conditions.monitor}` was not logged.")
        if not math.isfinite(value):
            raise ValueError(f"`{conditions.monitor}` is {value} after training.")
        self.value, self.logs_monitor = value, True

    def _end_of_round(self, start: int, conditions: Conditions) -> int:
        """Return the number of epochs up to the end of a round, as far as it is known."""
        ends = [end for end in self._epochs.ends if end > start]
        if conditions.patience is not None:
            end = end_of_patience(self._epochs.values, conditions.patience, conditions.mode)
            ends += [] if end is None else [max(end, start)]
        return min([start + conditions.num_epochs, *ends])

    def _train_until(self, target: int, conditions: Conditions) -> None:
        """Train until the given number of epochs is complete, or until training ends by itself."""
        start, begun, monitor = len(self._epochs), time.perf_counter(), conditions.monitor
        has_validated = ended = False

        def come_last(trainer: Any, _: LightningModule) -> None:
            # After the module and its callbacks, to see whether they end training.
            trainer.callbacks = [*(callback for callback in trainer.callbacks if callback is not own), own]

        def note_validation(trainer: Any, _: LightningModule) -> None:
            nonlocal has_validated
            has_validated = has_validated or not trainer.sanity_checking

        def check(trainer: Any, _: LightningModule) -> None:
            # The metrics of an epoch are complete when the next one begins, and not before.
            if trainer.current_epoch > start and (has_validated or not trainer.enable_validation):
                self._check_logged(monitor, trainer.callback_metrics)

        def stop(trainer: Any, _: LightningModule) -> None:
            nonlocal ended
            ended = bool(trainer.should_stop)
            trainer.should_stop = ended or trainer.current_epoch + 1 >= target

        def pause(trainer: Any, _: LightningModule) -> None:
            value, num_epochs = None, trainer.current_epoch
            is_last = ended or num_epochs >= self.num_epochs + conditions.num_epochs
            if has_validated or not trainer.enable_validation or is_last:
                self._check_logged(monitor, trainer.callback_metrics)
                if monitor in trainer.callback_metrics:
                    value = float(trainer.callback_metrics[monitor])
            self.checkpoint = trainer.strategy.broadcast(self.checkpoint)
            trainer.save_checkpoint(self.checkpoint)
            # One for all ranks.
            value, seconds = trainer.strategy.broadcast((value, time.perf_counter() - begun))
            unread = num_epochs - start - 1
            self._epochs = Epochs(
                values=(*self._epochs.values, *[None] * unread, value),
                seconds=(*self._epochs.seconds, *[0.0] * unread, seconds),
                ends=(*self._epochs.ends, *[num_epochs] * ended),
                generators=generators_as_text(trainer.strategy.root_device),
                classes=self._list_classes(),
            )
            self._put_back_rng = rng_restorer()

        callbacks = importlib.import_module(f"{package_of(conditions.trainer)}.callbacks")
        # What saves checkpoints comes after the module and all other callbacks at the end of an epoch.
        own = type("Pausing", (callbacks.LambdaCallback, callbacks.Checkpoint), {})(
            on_train_start=come_last,
            on_train_epoch_start=check,
            on_validation_end=note_validation,
            on_train_epoch_end=stop,
            on_train_end=pause,
        )
        conditions.rewind()
        conditions.trainer.callbacks = [own]
        self.train(conditions.trainer, self._build_apart(), conditions.data)

    def _build_apart(self) -> nn.Module:
        """Build a model that shares no memory with others: only the winner trains the user's own module or backbone."""
        model = self.build()
        if self._shares_memory is None:
            other = self.build()
            self._shares_memory = model is other or bool(_memory(model) & _memory(other))
        return copied(model) if self._shares_memory else model

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count the time of the body, which is in none of the epochs."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._other_s += time.perf_counter() - begun

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        """Record a failure of the body in ``error``."""
        begun, start, other_s = time.perf_counter(), self.num_epochs, self._other_s
        with preserved_process_state(keep_environment=True) as state:
            try:
                yield
            except BaseException as raised:
                state.raise_interrupt()
                if any(base.__name__ == "SIGTERMException" for base in type(raised).__mro__):
                    raise  # what Lightning makes of a SIGTERM, which is to end the process
                counted = sum(self._epochs.seconds[start : self.num_epochs])
                self._other_s = other_s + max(time.perf_counter() - begun - counted, 0.0)
                # Lightning exits the process at any KeyboardInterrupt, also at one that a candidate raises.
                is_exit = isinstance(raised, SystemExit) and isinstance(raised.__context__, KeyboardInterrupt)
                self.error = describe(raised.__context__ if is_exit and raised.__context__ else raised)
                self.not_logged = NotLoggedError(str(raised)) if isinstance(raised, NotLoggedError) else None

    def catch_up(self, conditions: Conditions) -> None:
        """Prepare to continue after ``num_epochs``, for which it may have to be trained again.

        A cache has the checkpoint after the last epoch that it knows, or none if somebody deleted it.
        """
        with self._recorded():
            if len(self._epochs) > self.num_epochs:
                self._forget()
            self._fetch(conditions.trainer.strategy.root_device)
            before = None
            while len(self._epochs) < self.num_epochs and len(self._epochs) != before:
                before = len(self._epochs)
                self._train_until(self.num_epochs, conditions)

    def _fetch(self, device: torch.device) -> None:
        """Fetch the checkpoint from the cache and set up the generators; forget all epochs if that is not possible."""
        with self._counted():
            if not self._is_fetched and self._stored is not None:
                self._is_fetched = self._stored.fetch(self._epochs, self.checkpoint)
                if not self._is_fetched:
                    self._forget()
            if not self._epochs or self._put_back_rng is not None:
                return
            try:
                with preserved_rng():
                    set_generators(self._epochs.generators, device)
                    self._put_back_rng = rng_restorer()
            except Exception:  # this machine or this version of torch does not take the states
                self._forget()

    def _forget(self) -> None:
        self._epochs, self._is_fetched, self._put_back_rng = Epochs(), True, None

    def _check_logged(self, monitor: str, metrics: Mapping[str, Any]) -> None:
        """Check that the monitored metric was logged, in this epoch or an earlier one.

        Raises:
            NotLoggedError: If it was not; the message has the closest names.
        """
        if monitor not in metrics and self._epochs.last_value(len(self._epochs)) is None:
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
                arguments["weights_only"] = self._epochs.classes is not None
        # Setup draws the same random numbers again, such as a split of the data; then training continues.
        go_on = LambdaCallback(on_train_epoch_start=self._go_on)
        trainer.callbacks = [go_on, *trainer.callbacks]
        trainer.should_stop = False  # in Lightning 2.4, `fit` leaves it as the last training set it
        connector = trainer._checkpoint_connector  # the setter of `trainer.ckpt_path` would also have `fit` load it
        ckpt_path, user_managed = connector._ckpt_path, connector._user_managed
        seed_all(self.seed)
        try:
            # Hyperparameters may be any objects: allow the classes that were saved, and no others.
            with torch.serialization.safe_globals([*map(pkgutil.resolve_name, self._epochs.classes or ())]):
                trainer.fit(model, **arguments)
        finally:
            connector._ckpt_path, connector._user_managed = ckpt_path, user_managed
            trainer.callbacks = [callback for callback in trainer.callbacks if callback is not go_on]

    def _go_on(self, trainer: Any, _: LightningModule) -> None:
        if self._put_back_rng is None or trainer.current_epoch != len(self._epochs):
            return
        self._put_back_rng()
        # Otherwise Lightning would keep the iterator that it made, and drew a seed for, during setup.
        trainer.fit_loop._resuming_from_checkpoint = False

    def _list_classes(self) -> tuple[str, ...] | None:
        """List the classes that torch only loads with ``weights_only=True`` if they are declared safe.

        Returns:
            Their names; None if they are unknown: for a folder, as sharded strategies write, and with torch 2.5.
        """
        list_names = getattr(torch.serialization, "get_unsafe_globals_in_checkpoint", None)
        if list_names is None or not self.checkpoint.is_file():
            return None
        # Those from the checkpoint before are declared safe now.
        return tuple(dict.fromkeys([*(self._epochs.classes or ()), *list_names(self.checkpoint)]))


def end_of_patience(values: Sequence[float | None], patience: int, mode: str) -> int | None:
    """Return after how many epochs the value had not improved in the last ``patience`` validations; None if never."""
    best, num_since = math.inf, 0
    for num_epochs, value in enumerate(values, 1):
        if value is None:
            continue
        signed = value if mode == "min" else -value
        best, num_since = (signed, 0) if signed < best else (best, num_since + 1)
        if num_since == patience:
            return num_epochs
    return None


def _memory(model: nn.Module) -> set[int]:
    """Return ids of the memory of a model's parameters and buffers, valid while it lives; lazy ones have none yet."""
    tensors = (*model.parameters(), *model.buffers())
    return {id(tensor) if is_lazy(tensor) else tensor.untyped_storage()._cdata for tensor in tensors}
