"""Finals: train the first few of a ranking for a while, to see which of them is the best to train to the end."""

import difflib
import inspect
import math
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.loggers.logger import DummyLogger
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from lightning_zico.engine.lazy import copied
from lightning_zico.engine.scope import preserved_rng, rng_restorer, seed_all
from lightning_zico.errors import InvalidArgumentError, NotLoggedError
from lightning_zico.hooks import is_lightning
from lightning_zico.results import Final
from lightning_zico.scoring.arguments import whole_number
from lightning_zico.scoring.process_state import kept_process_state
from lightning_zico.scoring.scorer import described

Mode: TypeAlias = Literal["min", "max"]

# More finalists than these are halved from round to round.
MOST_AT_ONCE = 4

# Lightning's callbacks that change weights, gradients, learning rates or batches, and not only watch or end training.
# Names, because not every version has them all, and `pytorch_lightning` has its own.
_CHANGING_TRAINING = {
    "BaseFinetuning",
    "BatchSizeFinder",
    "GradientAccumulationScheduler",
    "LearningRateFinder",
    "ModelPruning",
    "StochasticWeightAveraging",
    "WeightAveraging",
}


class Finalist:
    """A candidate in the finals: trained for some epochs at a time, and going on from where it paused.

    The trainer trains as if to the end, so that a learning rate's schedule is that of the whole training, and is
    stopped after the last of the epochs. The checkpoint is Lightning's, and the states of the generators of Python,
    NumPy and torch are kept beside it. So a finalist that paused ends with the same weights, bit for bit, as one that
    did not, if the trainer's callbacks change nothing in training, and if all that its data and loaders remember from
    one epoch to the next is in these generators.

    Every pause is an end of training to Lightning: the module's own hooks from ``setup`` and ``on_fit_start`` to
    ``on_train_end`` and ``teardown``, and those of the data module, run once for each time that it is trained.

    Args:
        name: Of the candidate.
        build: Makes it, always with the same weights.
        checkpoint: File to keep its training in.
        seed: Of the generators, before each setting up of data and model and before the first epoch.
    """

    def __init__(self, name: str, build: Callable[[], nn.Module], checkpoint: Path, seed: int) -> None:
        self.name = name
        self.build = build
        self.seed = seed
        self.num_rounds = 0
        self.num_epochs = 0
        self.value: float | None = None
        self.error: str | None = None
        self.logs_monitor = False
        self.not_logged: NotLoggedError | None = None
        self._checkpoint = checkpoint
        self._classes: list[Any] | None = None  # see `_classes_in`
        self._put_back_rng: Callable[[], None] | None = None

    @property
    def is_done(self) -> bool:
        """Whether training gave something: a value, or the reason why there is none."""
        return self.value is not None or self.error is not None

    @property
    def final(self) -> Final:
        """What training it gave."""
        return Final(self.name, self.value if self.error is None else None, self.num_epochs, self.error)

    def play(self, trainer: Any, data: Mapping[str, Any], num_epochs: int, monitor: str) -> None:
        """Train a copy for some more epochs; what goes wrong stands in ``error``.

        Args:
            trainer: Lent by `_borrowed`.
            data: Arguments of `Trainer.fit`.
            num_epochs: How many; fewer where training ends before. Who is trained to the end keeps its value.
            monitor: Name of the metric to read.

        Raises:
            KeyboardInterrupt: At the user's own Ctrl-C, of which Lightning makes a SystemExit.
        """
        start, until = self.num_epochs, self.num_epochs + num_epochs
        has_validated = False

        def note_validation(trainer: Any, _: LightningModule) -> None:
            nonlocal has_validated
            has_validated = has_validated or not trainer.sanity_checking

        def check(trainer: Any, _: LightningModule) -> None:
            # All that an epoch logs is there when the next one begins, and not before.
            if trainer.current_epoch > start and (has_validated or not trainer.enable_validation):
                self._look_for(monitor, trainer.callback_metrics)

        def stop(trainer: Any, _: LightningModule) -> None:
            trainer.should_stop = trainer.should_stop or trainer.current_epoch + 1 >= until

        def pause(trainer: Any, _: LightningModule) -> None:
            self.num_epochs = trainer.current_epoch
            self._look_for(monitor, trainer.callback_metrics)
            self.value = trainer.strategy.broadcast(_monitored(trainer.callback_metrics, monitor))  # one for all ranks
            self._checkpoint = trainer.strategy.broadcast(self._checkpoint)
            trainer.save_checkpoint(self._checkpoint)
            new = _classes_in(self._checkpoint)  # besides those that are allowed now, from the checkpoint before
            self._classes = None if new is None else [*(self._classes or []), *new]
            self._put_back_rng = rng_restorer()

        trainer.callbacks = [
            LambdaCallback(
                on_train_epoch_start=check,
                on_validation_end=note_validation,
                on_train_epoch_end=stop,
                on_train_end=pause,
            )
        ]
        with kept_process_state(keep_environment=True) as state:
            try:
                self.train(trainer, _apart(self.build), data)
                if self.value is None:
                    raise RuntimeError("the trainer trained no epoch. It needs batches to train on.")
            except BaseException as raised:
                state.raise_interrupt()
                # Lightning ends the process at a KeyboardInterrupt, also at one that a candidate raises.
                is_exit = isinstance(raised, SystemExit) and isinstance(raised.__context__, KeyboardInterrupt)
                self.error = described(raised.__context__ if is_exit and raised.__context__ else raised)
                self.not_logged = NotLoggedError(str(raised)) if isinstance(raised, NotLoggedError) else None
            else:
                self.num_rounds += 1

    def _look_for(self, monitor: str, metrics: Mapping[str, Any]) -> None:
        """Look whether the monitored metric was logged.

        Raises:
            NotLoggedError: If not, with the nearest names.
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
        """Train a model until the trainer ends, from where this finalist paused.

        Args:
            trainer: With whatever callbacks and loggers it is to have. Its ``ckpt_path`` is put back.
            model: As ``build`` makes it; trained itself.
            data: Arguments of `Trainer.fit`.

        Raises:
            TypeError: If the model is no LightningModule.
        """
        if not is_lightning(model):
            raise TypeError(f"it is a {type(model).__name__}, and a `Trainer` trains LightningModules.")
        arguments: dict[str, Any] = dict(data)
        if self._put_back_rng is not None:
            arguments["ckpt_path"] = self._checkpoint
            # Lightning before 2.6 cannot be told.
            if "weights_only" in inspect.signature(trainer.fit).parameters:
                arguments["weights_only"] = self._classes is not None
        # Setting up draws anew what it drew the first time, such as a split of the data; then training goes on.
        go_on = LambdaCallback(on_train_epoch_start=self._go_on)
        trainer.callbacks = [go_on, *trainer.callbacks]
        trainer.should_stop = False  # in Lightning 2.4, `fit` leaves it as the last training did
        connector = trainer._checkpoint_connector  # the setter of `trainer.ckpt_path` would also have `fit` load it
        ckpt_path, user_managed = connector._ckpt_path, connector._user_managed
        seed_all(self.seed)
        try:
            # Hyperparameters may be any objects: of the classes that were saved, and no others.
            with torch.serialization.safe_globals(self._classes or []):
                trainer.fit(model, **arguments)
        finally:
            connector._ckpt_path, connector._user_managed = ckpt_path, user_managed
            trainer.callbacks = [callback for callback in trainer.callbacks if callback is not go_on]

    def _go_on(self, trainer: Any, _: LightningModule) -> None:
        if self._put_back_rng is None or trainer.current_epoch != self.num_epochs:
            return
        self._put_back_rng()
        # Else Lightning would keep the iterator that it made, and drew a seed for, while setting up.
        trainer.fit_loop._resuming_from_checkpoint = False


def check_finals(finalists: int, final_epochs: int, monitor: str, mode: str) -> None:
    """Check the arguments of finals.

    Raises:
        InvalidArgumentError: If a count is no whole number of at least 1.
        ValueError: If ``mode`` is neither ``"min"`` nor ``"max"``.
        TypeError: If ``monitor`` is no name.
    """
    for name, number in {"finalists": finalists, "final_epochs": final_epochs}.items():
        whole_number(name, number, 1)
    if not isinstance(monitor, str):
        raise TypeError(f"`monitor` is {monitor!r}; needed is the name of a logged metric, such as 'val_loss'.")
    if mode not in ("min", "max"):
        raise ValueError(f"`mode` is {mode!r}; needed is 'min' or 'max': which end of `monitor` is the better one.")


def check_will_train(trainer: Any) -> None:
    """Check that a trainer has training before it.

    Raises:
        InvalidArgumentError: If it trains nothing, or is done.
    """
    limits = {
        "epochs": (trainer.max_epochs, trainer.current_epoch),
        "steps": (trainer.max_steps, trainer.global_step),
    }
    for unit, (limit, done) in limits.items():
        if not trainer.fast_dev_run and limit not in (None, -1) and done >= limit:
            before = f"has trained {done} {unit} before, and " if done else ""
            raise InvalidArgumentError(
                f"`trainer` {before}ends after `max_{unit}={limit}`, so that it trains nothing. Pass a new `Trainer`, "
                f"or raise `max_{unit}`; `rank` ranks without training."
            )
    if trainer.limit_train_batches == 0:
        raise InvalidArgumentError(
            "`trainer` has `limit_train_batches=0`, so that it trains nothing. Raise it; `rank` ranks without training."
        )


def check_trainer(trainer: Any, data: Mapping[str, Any], *, finalists: int, final_epochs: int) -> None:
    """Check that a trainer can train several finalists on some data, and then go on with one of them.

    Args:
        trainer: As the user made it.
        data: Arguments of `Trainer.fit`.
        finalists: At most how many.
        final_epochs: Of each round.

    Raises:
        ValueError: If it cannot.
        TypeError: If the validation data can be read only once.
    """
    if trainer.current_epoch or trainer.global_step:
        raise ValueError(
            f"`trainer` has trained {trainer.current_epoch} epochs before, and would count on. Finals need one that "
            "has not trained: pass a new `Trainer`."
        )
    validation = data.get("val_dataloaders")
    for leaf in tree_leaves(validation):
        if isinstance(leaf, Iterator):
            raise TypeError(
                f"The validation data is a {type(leaf).__name__}, which the first finalist would use up. Pass a "
                "DataLoader."
            )
    changing = [type(callback).__name__ for callback in trainer.callbacks if _changes_training(callback)]
    if changing:
        raise ValueError(
            f"`trainer` has {', '.join(changing)}, which changes training, and finals train without callbacks. Leave "
            "it out, have the module do what it does, or pass `finalists=1`."
        )
    if trainer.fast_dev_run:
        return
    if trainer.max_steps != -1:
        raise ValueError(
            f"`trainer` ends after `max_steps={trainer.max_steps}`, with which Lightning, going on from a checkpoint, "
            "counts an epoch in which nothing is trained. Finals need one that ends after `max_epochs`."
        )
    num_rounds = (finalists - 1).bit_length() if finalists > MOST_AT_ONCE else 1
    most = num_rounds * final_epochs
    if trainer.max_epochs not in (None, -1) and most >= trainer.max_epochs:
        raise ValueError(
            f"`trainer` ends after `max_epochs={trainer.max_epochs}`, and {finalists} finalists are trained for up to "
            f"{most} epochs ({num_rounds} x `final_epochs={final_epochs}`), so that nothing would be left for the "
            "winner's training with callbacks and loggers. Raise `max_epochs`, or lower `final_epochs`."
        )
    every = trainer.check_val_every_n_epoch
    validates = trainer.limit_val_batches != 0 and (validation is not None or data.get("datamodule") is not None)
    if validates and every is not None and final_epochs % every:
        raise ValueError(
            f"`trainer` validates after every {every} epochs (`check_val_every_n_epoch`), and finals look at `monitor` "
            f"after every {final_epochs}. Pass a `final_epochs` that is a multiple of {every}, or validate after every "
            "epoch."
        )


def hold_finals(
    finalists: list[Finalist],
    trainer: Any,
    data: Mapping[str, Any],
    *,
    final_epochs: int,
    monitor: str,
    mode: Mode,
) -> None:
    r"""Train finalists for a few epochs, and put them in the order of what came of it.

    The best is then the first: who came further, then who has the better value; failed ones are last. Also when finals
    break off, by Ctrl-C, those that are done are in order.

    Up to four are all trained for ``final_epochs``. Of more, the better half goes on, from where it paused, until one
    is left (successive halving): of :math:`k` finalists, round :math:`r = 0, 1, \dots` trains

    .. math::
        k_r = \lceil k / 2^r \rceil \quad \text{while } k_r > 1

    of them for :math:`e` epochs each, which takes :math:`e \sum_r k_r < e\,(2k + \log_2 k)` epochs in all.

    Args:
        finalists: The best by score first; equal values keep that order. The list itself is ordered.
        trainer: Is put back as it was: callbacks, loggers, limits and progress.
        data: Arguments of `Trainer.fit`.
        final_epochs: Of each round.
        monitor: Name of the logged metric that decides.
        mode: Whether lower (``"min"``) or higher is better.

    Raises:
        NotLoggedError: If the first finalist that is trained does not log ``monitor``; before anybody else is trained.

    Source:
        Jamieson & Talwalkar, *Non-stochastic best arm identification and hyperparameter optimization*, AISTATS 2016,
        arXiv:1502.07943, figure 3. Theirs divides a total budget evenly among the rounds, so that later rounds are
        longer; here each is of ``final_epochs``.
    """
    sign = 1 if mode == "min" else -1

    def place(finalist: Finalist) -> tuple[bool, int, float]:
        value = math.inf if finalist.value is None else sign * finalist.value
        return finalist.error is not None, -finalist.num_rounds, value

    left = list(finalists)
    try:
        with _borrowed(trainer) as rewind, preserved_rng():
            while left:
                for finalist in left:
                    rewind()
                    finalist.play(trainer, data, final_epochs, monitor)
                    if finalist.not_logged and not any(other.logs_monitor for other in finalists):
                        finalist.error, text = None, str(finalist.not_logged)
                        raise NotLoggedError(f"Invalid monitor={monitor!r}. In '{finalist.name}', {text}")
                better = sorted(left, key=place)[: math.ceil(len(left) / 2)]
                better = [finalist for finalist in better if finalist.error is None]
                left = better if len(finalists) > MOST_AT_ONCE and len(better) > 1 else []
    finally:
        finalists.sort(key=place)


def _classes_in(checkpoint: Path) -> list[Any] | None:
    """List the classes in a checkpoint that torch does not load as weights unless it is told that it may.

    Returns:
        None where that cannot be told: of a folder, as sharded strategies write, and with torch 2.5.
    """
    list_names = getattr(torch.serialization, "get_unsafe_globals_in_checkpoint", None)
    if list_names is None or not checkpoint.is_file():
        return None
    return [pkgutil.resolve_name(name) for name in list_names(checkpoint)]


def _changes_training(callback: Any) -> bool:
    return not _CHANGING_TRAINING.isdisjoint(base.__name__ for base in type(callback).__mro__)


def _monitored(metrics: Mapping[str, Any], monitor: str) -> float:
    value = float(metrics[monitor])
    if not math.isfinite(value):
        raise ValueError(f"`{monitor}` is {value} after training.")
    return value


def _apart(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a model that nobody else has a part of: an instance or a backbone of the user's only the winner trains."""
    model, other = build(), build()
    return copied(other) if model is other or _memory(model) & _memory(other) else other


def _memory(model: nn.Module) -> set[int]:
    """Tell where a model's parameters and buffers lie, for as long as it lives; lazy ones lie nowhere yet."""
    tensors = (*model.parameters(), *model.buffers())
    return {id(tensor) if is_lazy(tensor) else tensor.untyped_storage()._cdata for tensor in tensors}


@contextmanager
def _borrowed(trainer: Any) -> Iterator[Callable[[], None]]:
    """Use a trainer as Lightning's `Tuner` does: without its callbacks and loggers, and put back at the end.

    A trainer cannot be copied, nor made anew from its attributes.

    Yields:
        A function that takes the trainer back to the start of training.
    """
    loop = trainer.fit_loop
    callbacks, loggers = trainer.callbacks, trainer.loggers
    limits = loop.max_epochs, loop.min_epochs, loop.epoch_loop.min_steps
    progress = deepcopy(loop.state_dict())

    def rewind() -> None:
        loop.load_state_dict(deepcopy(progress))
        loop.restarting = False

    trainer.loggers = [DummyLogger() for _ in loggers]
    loop.min_epochs, loop.epoch_loop.min_steps = None, None  # who has to train longer may pause nevertheless
    try:
        yield rewind
    finally:
        rewind()
        trainer.callbacks, trainer.loggers = callbacks, loggers
        loop.max_epochs, loop.min_epochs, loop.epoch_loop.min_steps = limits
        trainer.should_stop = False
