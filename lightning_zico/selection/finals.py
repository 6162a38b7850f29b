"""Finals: train the best few of a ranking for a while to choose the one to train to the end."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal, TypeAlias

from lightning.pytorch.loggers.logger import DummyLogger
from torch import nn

from lightning_zico.engine.scope import preserved_rng
from lightning_zico.errors import InvalidArgumentError, NotLoggedError
from lightning_zico.folders import temporary_folder
from lightning_zico.ranking import kendall, kendall_interval
from lightning_zico.ranking.learned import FEWEST_LABELS
from lightning_zico.ranking.uncertainty import difference_interval
from lightning_zico.results import Agreement, Final, FinalsHeld, Row
from lightning_zico.scoring.arguments import whole_number
from lightning_zico.selection.entrants import Entrants, Learn
from lightning_zico.selection.finalist import Finalist
from lightning_zico.texts import all_of, count

Mode: TypeAlias = Literal["min", "max"]

# With more finalists than this, the number is halved from round to round.
MOST_AT_ONCE = 4

# Two rounds are compared on this number of finalists or more.
_FEWEST_IN_BOTH = 4

# Lightning's callbacks that change weights, gradients, learning rates or batches, instead of only watching or ending
# training. They are names because not every version has them all, and `pytorch_lightning` has its own.
_CHANGING_TRAINING = {
    "BaseFinetuning",
    "BatchSizeFinder",
    "GradientAccumulationScheduler",
    "LearningRateFinder",
    "ModelPruning",
    "StochasticWeightAveraging",
    "WeightAveraging",
}


def check_finals(counts: Mapping[str, Any], monitor: str, mode: str, learn: Any) -> None:
    """Check the arguments of finals.

    Args:
        counts: ``finalists``, ``final_epochs`` and ``final_seeds``.
        monitor: See `hold_finals`.
        mode: See `hold_finals`.
        learn: See `check_learn`.

    Raises:
        InvalidArgumentError: If a count is not a whole number of at least 1; see also `check_learn`.
        ValueError: If ``mode`` is neither ``"min"`` nor ``"max"``.
        TypeError: If ``monitor`` is not a string.
    """
    for name, number in counts.items():
        whole_number(name, number, 1)
    if not isinstance(monitor, str):
        raise TypeError(f"Invalid monitor={monitor!r}: expected the name of a logged metric, such as 'val_loss'.")
    if mode not in ("min", "max"):
        raise ValueError(
            f"Invalid mode={mode!r}: expected 'min' if lower values of `monitor` are better, or 'max' if higher values "
            "are."
        )
    check_learn(learn, counts["finalists"])


def check_will_train(trainer: Any) -> None:
    """Check that a trainer still has something to train.

    Raises:
        InvalidArgumentError: If it trains nothing, or has finished.
    """
    limits = {
        "epochs": (trainer.max_epochs, trainer.current_epoch),
        "steps": (trainer.max_steps, trainer.global_step),
    }
    for unit, (limit, done) in limits.items():
        if not trainer.fast_dev_run and limit not in (None, -1) and done >= limit:
            before = f"has already trained {done} {unit} and " if done else ""
            raise InvalidArgumentError(
                f"`trainer` {before}ends after `max_{unit}={limit}`, so it would train nothing. Pass a new `Trainer`, "
                f"or raise `max_{unit}`. To rank without training, call `rank`."
            )
    if trainer.limit_train_batches == 0:
        raise InvalidArgumentError(
            "`trainer` has `limit_train_batches=0`, so it would train nothing. Raise it. To rank without training, "
            "call `rank`."
        )


def check_learn(learn: Any, num_finalists: int) -> Learn:
    """Validate ``learn``, and return what None stands for.

    Raises:
        InvalidArgumentError: If it is something else, or there are too few finalists to learn an order.
    """
    if learn is None:
        return num_finalists > FEWEST_LABELS
    if not isinstance(learn, bool) and learn != "rank":
        raise InvalidArgumentError(
            f"Invalid learn={learn!r}: expected True to find the best candidate, 'rank' to learn the order of all, "
            f"False to train the first by score, or None for True with more than {FEWEST_LABELS} finalists."
        )
    if learn == "rank" and num_finalists < FEWEST_LABELS:
        raise InvalidArgumentError(
            f"Invalid finalists={num_finalists} with `learn='rank'`: expected at least {FEWEST_LABELS}, since "
            "fewer results do not show how certain the learned ranks are."
        )
    return learn


def check_trainer(trainer: Any, data: Mapping[str, Any], *, num_finalists: int, final_epochs: int) -> None:
    """Check that a trainer can train several finalists on some data, and then continue with one of them.

    Args:
        trainer: The trainer as the user made it.
        data: Arguments of `Trainer.fit`.
        num_finalists: Maximum number of finalists.
        final_epochs: Number of epochs in each round.

    Raises:
        ValueError: If the trainer cannot do that.
    """
    if trainer.current_epoch or trainer.global_step:
        raise ValueError(
            f"`trainer` has already trained {count(trainer.current_epoch, 'epoch')} and would continue from there. "
            "Finals need a trainer that has not trained: pass a new `Trainer`."
        )
    changing = [type(callback).__name__ for callback in trainer.callbacks if _changes_training(callback)]
    if changing:
        raise ValueError(
            f"`trainer` has {', '.join(changing)}, which changes training, but finals train without callbacks. Leave "
            "it out, do the same in the module, or pass `finalists=1`."
        )
    if trainer.fast_dev_run:
        return
    if trainer.max_steps != -1:
        raise ValueError(
            f"`trainer` ends after `max_steps={trainer.max_steps}`. With this limit, Lightning counts an epoch in "
            "which nothing is trained when it continues from a checkpoint. For finals, use `max_epochs` instead."
        )
    num_rounds = (num_finalists - 1).bit_length() if num_finalists > MOST_AT_ONCE else 1
    most = num_rounds * final_epochs
    if trainer.max_epochs not in (None, -1) and most >= trainer.max_epochs:
        raise ValueError(
            f"`trainer` ends after `max_epochs={trainer.max_epochs}`, but {count(num_finalists, 'finalist')} are "
            f"trained for up to {count(most, 'epoch')} ({num_rounds} x `final_epochs={final_epochs}`), so no epoch "
            "would be left to train the winner with callbacks and loggers. Raise `max_epochs`, or lower `final_epochs`."
        )
    every = trainer.check_val_every_n_epoch
    validates = trainer.limit_val_batches != 0 and any(
        data.get(name) is not None for name in ("val_dataloaders", "datamodule")
    )
    if validates and every is not None and final_epochs % every:
        raise ValueError(
            f"`trainer` validates every {count(every, 'epoch')} (`check_val_every_n_epoch`), but finals read `monitor` "
            f"after {count(final_epochs, 'epoch')}. Pass a `final_epochs` that is a multiple of {every}, or validate "
            "after every epoch."
        )


def hold_finals(
    entrants: Iterable[Finalist],
    trainer: Any,
    data: Mapping[str, Any],
    *,
    finalists: list[Finalist],
    final_epochs: int,
    monitor: str,
    mode: Mode,
) -> None:
    r"""Train finalists for a few epochs, and sort them by the result.

    The best is then first: finalists that came further come before others, then those with the better value; failed
    ones are last. If finals are interrupted by Ctrl-C, the finalists that are done are sorted as well.

    Up to four are all trained for ``final_epochs``. With more, the better half continues from where it paused, until
    one is left (successive halving): of :math:`k` finalists, round :math:`r = 0, 1, \dots` trains

    .. math::
        k_r = \lceil k / 2^r \rceil \quad \text{while } k_r > 1

    of them for :math:`e` epochs each, which takes :math:`e \sum_r k_r < e\,(2k + \log_2 k)` epochs in all.

    Args:
        entrants: The finalists of the first round; each is taken after the one before it was trained.
        trainer: The trainer. Its callbacks, loggers, limits and progress are restored afterwards.
        data: Arguments of `Trainer.fit`.
        finalists: An empty list, which the finalists are put into; equal values keep the order of the first round.
        final_epochs: Number of epochs in each round.
        monitor: Name of the logged metric that decides.
        mode: Whether lower (``"min"``) or higher is better.

    Raises:
        NotLoggedError: If the first finalist that is trained does not log ``monitor``; the others are not trained then.

    Source:
        Jamieson & Talwalkar, *Non-stochastic best arm identification and hyperparameter optimization*, AISTATS 2016,
        arXiv:1502.07943, figure 3. Their version divides a total budget evenly among the rounds, so later rounds are
        longer; here each round has ``final_epochs``.
    """
    sign = 1 if mode == "min" else -1

    def rank_key(finalist: Finalist) -> tuple[bool, int, float]:
        value = math.inf if finalist.value is None else sign * finalist.value
        return finalist.error is not None, -finalist.num_rounds, value

    def better_half(round_: list[Finalist]) -> list[Finalist]:
        better = sorted(round_, key=rank_key)[: math.ceil(len(round_) / 2)]
        better = [finalist for finalist in better if finalist.error is None]
        return better if len(finalists) > MOST_AT_ONCE and len(better) > 1 else []

    try:
        with _borrowed(trainer) as rewind, preserved_rng():

            def train(finalist: Finalist) -> None:
                finalist.play(trainer, data, final_epochs, monitor, rewind)
                if finalist.not_logged and not any(other.logs_monitor for other in finalists):
                    finalist.error, text = None, str(finalist.not_logged)
                    raise NotLoggedError(f"Invalid monitor={monitor!r}. In '{finalist.name}', {text}")

            for finalist in entrants:
                finalists.append(finalist)
                train(finalist)
            remaining = better_half(finalists)
            while remaining:
                for finalist in remaining:
                    train(finalist)
                remaining = better_half(remaining)
    finally:
        finalists.sort(key=rank_key)


def train_best(
    entrants: Entrants,
    trainer: Any,
    data: Mapping[str, Any],
    *,
    seeds: Sequence[int],
    report: Callable[[list[Final], FinalsHeld, dict[str, Row] | None], None],
    on_winner: Callable[[nn.Module], None],
    final_epochs: int,
    monitor: str,
    mode: Mode,
) -> None:
    """Hold finals among some candidates, and train the best one to the end.

    Args:
        entrants: The candidates.
        trainer: See `hold_finals`.
        data: See `hold_finals`.
        seeds: The seed of each training of a finalist; that of the winner with the first one continues.
        report: Called when the finals end, also if they break off, with the results so far, how they were held, and
            what was learned about each candidate (`Entrants.learned`).
        on_winner: Called with the winner before it is trained to the end.
        final_epochs: See `hold_finals`.
        monitor: See `hold_finals`.
        mode: See `hold_finals`.

    Raises:
        RuntimeError: If all finalists failed.
    """
    with temporary_folder() as folder:
        finalists: list[Finalist] = []
        held: FinalsHeld = {
            "final_epochs": final_epochs,
            "monitor": monitor,
            "mode": mode,
            "finalists": entrants.num,
            "halving": entrants.num > MOST_AT_ONCE,
            "learn": entrants.learn,
            "first_by": entrants.first_by,
            "seeds": len(seeds),
            "broke_off": True,
        }
        try:
            coming = entrants.finalists(Path(folder), seeds=seeds, higher_is_better=mode == "max")
            hold_finals(
                coming, trainer, data, finalists=finalists, final_epochs=final_epochs, monitor=monitor, mode=mode
            )
            held["broke_off"] = False
            if held["halving"]:
                held["agreement"] = compare_rounds(finalists)
            if len(seeds) > 1:
                held["tie"] = find_tie(finalists)
        finally:
            finals = [finalist.final for finalist in finalists if finalist.is_done]
            if finals:
                report(finals, held, None if held["broke_off"] else entrants.predict_cells())
        winner = finalists[0]
        if winner.error is not None:
            raise RuntimeError(
                f"{all_of(len(finalists), 'finalist')} failed. '{winner.name}' failed with: {winner.error} "
                "`leaderboard_.errors` has the reasons of all."
            )
        training = winner.trainings[0]
        model = training.build()
        on_winner(model)
        training.train(trainer, model, data)


def compare_rounds(finalists: Sequence[Finalist]) -> list[Agreement]:
    """Compute how much each round agrees with the next, by Kendall's tau of the finalists that finished both.

    A low tau means that a round is too short to choose by. Rounds with fewer than four such finalists are left out.
    """
    found: list[Agreement] = []
    for idx in range(max(finalist.num_rounds for finalist in finalists) - 1):
        both = [finalist.by_round[idx : idx + 2] for finalist in finalists if finalist.num_rounds > idx + 1]
        if len(both) >= _FEWEST_IN_BOTH:
            tau = kendall([before for before, _ in both], [after for _, after in both])
            low, high = (None, None) if tau is None else kendall_interval(tau, len(both))
            found.append({"round": idx + 1, "n": len(both), "tau": tau, "low": low, "high": high})
    return found


def find_tie(finalists: Sequence[Finalist]) -> list[str]:
    """Find the finalists that seeds cannot distinguish from the first one.

    They have been trained as long as the first one, and the 95 % interval of the mean difference, seed by seed
    (`ranking.uncertainty.difference_interval`), includes zero.

    Args:
        finalists: Finalists with two or more seeds, best first.

    Returns:
        Their names, with the first one.
    """
    first = finalists[0]
    tied = [first.name]
    for other in finalists[1:]:
        if first.error is None and other.error is None and other.num_rounds == first.num_rounds:
            low, high = difference_interval(first.by_seed, other.by_seed)
            tied += [other.name] if low <= 0 <= high else []
    return tied


def _changes_training(callback: Any) -> bool:
    return not _CHANGING_TRAINING.isdisjoint(base.__name__ for base in type(callback).__mro__)


@contextmanager
def _borrowed(trainer: Any) -> Iterator[Callable[[], None]]:
    """Use a trainer as Lightning's `Tuner` does: without its callbacks and loggers, which are restored at the end.

    A trainer can be neither copied nor rebuilt from its attributes.

    Yields:
        A function that resets the trainer to the start of training.
    """
    loop = trainer.fit_loop
    callbacks, loggers = trainer.callbacks, trainer.loggers
    limits = loop.max_epochs, loop.min_epochs, loop.epoch_loop.min_steps
    progress = deepcopy(loop.state_dict())

    def rewind() -> None:
        loop.load_state_dict(deepcopy(progress))
        loop.restarting = False

    trainer.loggers = [DummyLogger() for _ in loggers]
    loop.min_epochs, loop.epoch_loop.min_steps = None, None  # these would prevent a pause
    try:
        yield rewind
    finally:
        rewind()
        trainer.callbacks, trainer.loggers = callbacks, loggers
        loop.max_epochs, loop.min_epochs, loop.epoch_loop.min_steps = limits
        trainer.should_stop = False
