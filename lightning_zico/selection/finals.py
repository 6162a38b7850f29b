"""Finals: train the best few of a ranking for a while to choose the one to train to the end."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, TypeAlias

from torch import nn

from lightning_zico.candidates import Candidates
from lightning_zico.errors import InvalidArgumentError
from lightning_zico.folders import temporary_folder
from lightning_zico.results import Final, FinalsHeld, Row
from lightning_zico.scoring.cache import CacheLike
from lightning_zico.scoring.executors.base import CallingExecutor
from lightning_zico.scoring.executors.processes import finals_executor_of
from lightning_zico.selection.entrants import Entrants
from lightning_zico.selection.final_cache import FinalsCache
from lightning_zico.selection.final_workers import FinalWorkers, check_can_be_sent
from lightning_zico.selection.finalist import Finalist
from lightning_zico.selection.rounds import FinalsRules, compare_rounds, find_tie, hold_finals, play_here
from lightning_zico.selection.signals import exit_on_signals
from lightning_zico.texts import all_of, count

FinalsExecutor: TypeAlias = CallingExecutor | Literal["processes"] | None

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


def finals_rules(settings: Any) -> FinalsRules:
    """Read the rules of finals from the attributes of a selector; see `FinalsRules` for the errors."""
    return FinalsRules(**{field.name: getattr(settings, field.name) for field in fields(FinalsRules)})


def finals_workers(executor: FinalsExecutor, rules: FinalsRules, devices: Sequence[str] = ()) -> FinalWorkers | None:
    """Return what trains finalists for the user's argument ``finals_executor``; see `finals_executor_of` for errors.

    Raises:
        InvalidArgumentError: If there are no finals.
    """
    found = finals_executor_of(executor, rules.finalists)
    if found is not None and rules.finalists == 1:
        raise InvalidArgumentError(
            f"Invalid finalists=1 with `finals_executor={executor!r}`: expected at least 2, since one is not trained "
            "in finals. Raise `finalists`, or leave `finals_executor` out."
        )
    return None if found is None else FinalWorkers(found, devices)


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


def check_trainer(trainer: Any, data: Mapping[str, Any], rules: FinalsRules, *, sent: Candidates | None = None) -> None:
    """Check that a trainer can train several finalists on some data, and then continue with one of them.

    Args:
        trainer: The trainer as the user made it.
        data: Arguments of `Trainer.fit`.
        rules: How the finals are held.
        sent: Candidates that are trained in other processes; None if they are trained in this one.

    Raises:
        ValueError: If the trainer cannot do that.
        TypeError: If the trainer, the data or a candidate cannot be sent to other processes.
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
    if not trainer.fast_dev_run:
        _check_lengths(trainer, data, rules)
    if sent is not None:
        check_can_be_sent(trainer, data, sent)  # last, because pickling takes time


def _check_lengths(trainer: Any, data: Mapping[str, Any], rules: FinalsRules) -> None:
    """Check that finals end before the trainer does, and when it validates.

    Raises:
        ValueError: If they do not.
    """
    if trainer.max_steps != -1:
        raise ValueError(
            f"`trainer` ends after `max_steps={trainer.max_steps}`. With this limit, Lightning counts an epoch in "
            "which nothing is trained when it continues from a checkpoint. For finals, use `max_epochs` instead."
        )
    final_epochs, num_rounds = rules.final_epochs, len(rules.round_sizes(rules.finalists))
    most = num_rounds * final_epochs
    if trainer.max_epochs not in (None, -1) and most >= trainer.max_epochs:
        raise ValueError(
            f"`trainer` ends after `max_epochs={trainer.max_epochs}`, but {count(rules.finalists, 'finalist')} are "
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


def train_best(
    entrants: Entrants,
    trainer: Any,
    data: Mapping[str, Any],
    *,
    seeds: Sequence[int],
    rules: FinalsRules,
    cache: CacheLike | None,
    batches_hash: str | None,
    workers: FinalWorkers | None,
    report: Callable[[list[Final], FinalsHeld, dict[str, Row] | None], None],
    on_winner: Callable[[nn.Module], None],
) -> None:
    """Hold finals among some candidates, and train the best one to the end.

    Args:
        entrants: The candidates.
        trainer: See `hold_finals`.
        data: See `hold_finals`.
        seeds: The seed of each training of a finalist; that of the winner with the first one continues.
        rules: See `hold_finals`.
        cache: See `FinalsCache.of`.
        batches_hash: See `FinalsCache.of`.
        workers: Where finalists are trained; None for this process.
        report: Called when the finals end, also if they break off, with the results so far, how they were held, and
            what was learned about each candidate (`Entrants.learned`).
        on_winner: Called with the winner before it is trained to the end.

    Raises:
        RuntimeError: If all finalists failed.
        SystemExit: If the process gets a SIGTERM or SIGHUP.
    """
    opened = FinalsCache.of(cache, trainer, data, monitor=rules.monitor, batches_hash=batches_hash)
    with exit_on_signals() as restore_handlers, temporary_folder() as folder:
        finalists: list[Finalist] = []
        has_ended = lacks_time = False
        try:
            coming = entrants.finalists(Path(folder), seeds=seeds, higher_is_better=rules.mode == "max")
            play = play_here if workers is None else workers.play
            lacks_time = hold_finals(coming, trainer, data, finalists=finalists, rules=rules, cache=opened, play=play)
            has_ended = True
        finally:
            finals = [finalist.final for finalist in finalists if finalist.is_done]
            if finals:
                held = _describe(finalists, entrants, rules, has_ended=has_ended, lacks_time=lacks_time)
                report(finals, held, entrants.predict_cells() if has_ended else None)
        winner = finalists[0]
        if winner.error is not None:
            raise RuntimeError(
                f"{all_of(len(finalists), 'finalist')} failed. '{winner.name}' failed with: {winner.error} "
                "`leaderboard_.errors` has the reasons of all."
            )
        training = winner.trainings[0]
        model = training.build()
        on_winner(model)
        restore_handlers()  # here, Lightning handles a SIGTERM: it ends training after the batch
        training.train(trainer, model, data)


def _describe(
    finalists: Sequence[Finalist], entrants: Entrants, rules: FinalsRules, *, has_ended: bool, lacks_time: bool
) -> FinalsHeld:
    """Describe how finals were held."""
    # Finals that were interrupted are described as they were to be.
    num = len(finalists) if has_ended else entrants.num
    num_rounds = len(rules.round_sizes(num))
    held: FinalsHeld = {
        "final_epochs": rules.final_epochs,
        "monitor": rules.monitor,
        "mode": rules.mode,
        "finalists": num,
        "halving": num_rounds > 1,
        "learn": entrants.learn,
        "first_by": entrants.first_by,
        "seeds": rules.final_seeds,
        "broke_off": not has_ended,
    }
    if not has_ended:
        return held
    if held["halving"]:
        held["agreement"] = compare_rounds(finalists)
        held |= {"reduction_factor": rules.factor(num), "least_agreement": rules.least_agreement}
    if rules.patience is not None:
        held["patience"] = rules.patience
    if rules.final_seeds > 1:
        held["tie"] = find_tie(finalists)
    held["rounds"] = [max(finalist.num_rounds for finalist in finalists), num_rounds]
    if rules.time_budget_s is not None:
        held |= {"time_budget_s": rules.time_budget_s, "most_finalists": entrants.num, "lacked_time": lacks_time}
    return held


def _changes_training(callback: Any) -> bool:
    return not _CHANGING_TRAINING.isdisjoint(base.__name__ for base in type(callback).__mro__)
