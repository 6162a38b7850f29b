"""Rank candidates on a few batches, then train the winner."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch import Trainer
from torch import nn

from lightning_zico.bridge import (
    TrainerSettings,
    TrainingData,
    check_readable_again,
    check_validation_data,
    is_lightning,
    pick_data,
)
from lightning_zico.budget import Budget
from lightning_zico.candidates import Candidates, are_pretrained, check_candidates, nothing_offered
from lightning_zico.errors import IdenticalBatchesError, UnknownNameError
from lightning_zico.proxies import BASELINES, Prior, Proxies, UnknownPrior, prior_of
from lightning_zico.ranking import check_race
from lightning_zico.results import Final, FinalsHeld, Leaderboard, Row, ScoreCard
from lightning_zico.scoring.arguments import (
    check_budget,
    check_is_trainer,
    flag,
    missing_attribute,
    names_data_as_trainer,
    whole_number,
)
from lightning_zico.scoring.choice import Choice
from lightning_zico.scoring.settings import ScoringSettings
from lightning_zico.selection.finals import (
    FinalsExecutor,
    check_trainer,
    check_will_train,
    finals_rules,
    finals_workers,
    train_best,
)
from lightning_zico.selection.leaderboards import leaderboard_of
from lightning_zico.selection.run import Run, show
from lightning_zico.zoo import KNOWN_COLUMNS, Zoo

if TYPE_CHECKING:
    from lightning_zico.selection.entrants import Entrants, Learn


@dataclass(repr=False, eq=False)
class ZeroShotSelector(ScoringSettings):
    """Rank candidates without training them, then train the winner.

    Args:
        trainer: The trainer for the finalists and the winner. While candidates are ranked, it is only read: a
            candidate's step sees another trainer with the same settings (`TrainerSettings`), and callbacks that change
            the batch take part. Optional for `rank`; a step then sees Lightning's defaults.
        proxies: Names of proxies (see `list_proxies`) and of recipes (see `list_recipes`), `Proxy` objects,
            ``"default"`` for the default recipe, or ``"all"``, which ranks by the default recipe. That is the recipe
            ``transfer`` if the candidates are a zoo, list or mapping in which all are pretrained (see `Candidate`). The
            baselines ``params``, ``macs``, ``num_layers`` and ``sum_log_numel`` are always computed as well.
        controlled_by: Name of a baseline. The column ``controlled`` then holds the part of each candidate's rank that
            this baseline does not explain (`ranking.size_controlled`); higher is better.
        prior: Known values of candidates by name, such as published accuracies: a mapping, the path of a CSV file with
            two columns, or a `Prior`. They become the column ``prior``, which you can rank by and use as a member of a
            recipe. None for the published accuracies that models of timm and torchvision bring along, if any.
        budget: Limits on cost. Candidates above it are dropped before they are scored; the leaderboard shows why.
        repeats: How often every candidate is scored. Repeat r uses the seed ``seed + r``: factories draw other weights,
            data modules and loaders give other batches, the same for all candidates. A module that is offered built
            keeps its weights, so its repeats differ only in the batches. An iterable of batches must give ``repeats``
            times ``num_batches``. Scores are then means, a recipe's score is the mean of its scores in each repeat, and
            the leaderboard shows how certain each rank is.
        race: Repeat only candidates that can still become finalists: at most half of all repeats are spent
            (`ranking.racing.race`). In a recipe, a candidate that dropped out keeps its last scores.
        finalists: How many candidates `fit` trains for a while to choose the winner among them; 1 for no finals.
            With more than four, the better half goes on from round to round (`selection.rounds.hold_finals`).
        learn: How the finalists are chosen. False for the best by score. True for the eight best by score, and then one
            after the other the candidate with the greatest expected improvement, given the results so far
            (`ranking.learned.choose_next`). ``"rank"`` for candidates spread over the ranking, from which the order of
            all is learned (`ranking.learned.learned_ranks`). None for True with more than eight finalists.

            Use one finalist if you cannot train more, and up to eight to correct a wrong score; learning makes no
            difference then. Use more than eight, with learning, if you do not know how good the score is for your
            candidates. Use False if you know that it is good, or if candidates are modules from a generator: learning
            keeps all of them until the finals. Use ``"rank"`` to learn about all candidates and not to find the best
            one. For candidates of different families, rank by ``params`` or ``prior``; if a recipe ranks
            candidates of a zoo, learning starts from the prior, or from ``params`` if there is none, except for
            pretrained ones that ``transfer`` or ``linear_probe`` ranks.
        final_epochs: Number of epochs that a finalist is trained in each round.
        final_seeds: Number of seeds with which a finalist is trained in each round: ``seed``, ``seed + 1`` and so on,
            each with its own weights and order of the data. The mean decides, ``final_std_error`` is its standard
            error, and a note names the finalists that the seeds cannot distinguish from the winner, and the smallest of
            these by parameters. The noise is estimated from all finalists that were trained as long as the
            winner: with two of these, it takes three seeds or more to tell them apart. With ``learn="rank"``, the seeds
            also measure the noise in the intervals of the finalists' ranks (`ranking.learned.label_noise`).
        reduction_factor: How many times fewer finalists each round has than the one before. None for 2 with more than
            four finalists, and a single round with fewer.
        least_agreement: After a round whose order agrees less than this with that after the round before (Kendall's tau
            of four or more finalists), no finalist is dropped: the rounds are too short to choose by. With -1,
            every round drops finalists. It has no effect where there is a single round.
        patience: End the training of a finalist when ``monitor`` has not improved in this number of validations; None
            for no limit.
        time_budget_s: Time for the trainings of all finalists together, in seconds; scoring and the winner's training
            to the end come on top. As many of ``finalists`` are trained as fit, with all their rounds, if another one
            takes as long as the mean of those before it. The first that succeeds is trained in any case, so there is
            a winner unless all fail. With ``finals_executor``, the time is divided by the number trained at once.
        monitor: Name of the logged metric that decides the finals.
        mode: Whether the lowest (``"min"``) or the highest (``"max"``) value of ``monitor`` wins.
        finals_executor: Where finalists are trained; the results are the same. None for this process, one after the
            other; ``"processes"`` for a worker process per finalist, at most one per core;
            ``ProcessExecutor(num_workers=2)`` or ``RayExecutor()``. Each worker has a copy of the trainer. With
            ``learn=True``, as many finalists are chosen together as are trained at once. The winner is trained to the
            end in this process.

    Attributes:
        leaderboard_: The ranking, best first.
        cards_: The score cards behind it, by candidate name, with layers and details, and the scores of all repeats.
        best_model_: The winner: fresh from its factory under ``seed``, or the instance that was offered; trained if
            `fit` trained it; None if every candidate or every finalist failed, or ranking was interrupted.

    Raises:
        UnknownNameError: If a name is neither a proxy nor a recipe, ``rank_by`` is not computed, or ``controlled_by``
            is not a baseline.
        ValueError: If an argument is out of range.
        TypeError: If an argument has the wrong type, such as ``num_batches=2.0`` or ``loss_fn="mse"``.

    Example:
        >>> from lightning_zico.demos import DigitsDataModule, digits_candidates
        >>> selector = ZeroShotSelector(num_batches=2, seed=0)
        >>> leaderboard = selector.rank(digits_candidates(), DigitsDataModule())
        >>> leaderboard.best in digits_candidates()
        True
    """

    trainer: Trainer | None = None
    proxies: Proxies = "default"
    _: KW_ONLY
    controlled_by: str | None = None
    prior: Prior | Mapping[str, float] | str | Path | None = None
    budget: Budget | None = None
    repeats: int = 1
    race: bool = False
    finalists: int = 1
    learn: bool | Literal["rank"] | None = None
    final_epochs: int = 1
    final_seeds: int = 1
    reduction_factor: int | None = None
    least_agreement: float = 0.5
    patience: int | None = None
    time_budget_s: float | None = None
    monitor: str = "val_loss"
    mode: Literal["min", "max"] = "min"
    finals_executor: FinalsExecutor = None
    leaderboard_: Leaderboard = field(init=False)
    cards_: dict[str, ScoreCard] = field(init=False)
    best_model_: nn.Module | None = field(init=False)

    def __post_init__(self) -> None:
        check_is_trainer(self.trainer)
        super().__post_init__()
        check_budget(self.budget)
        rules = finals_rules(self)
        for name, value in vars(rules).items():
            setattr(self, name, value)
        finals_workers(self.finals_executor, rules)
        if self.prior is not None:
            self.prior = prior_of(self.prior)
        self.repeats = whole_number("repeats", self.repeats, 1, "About 5 show how much scores vary.")
        if flag("race", self.race):
            check_race(self.repeats)
        if self.controlled_by not in (None, *BASELINES):
            raise UnknownNameError(
                f"Invalid controlled_by={self.controlled_by!r}: expected a baseline: {', '.join(BASELINES)}."
            )
        self.check_enough_batches(self._choice().proxies)

    def __getattr__(self, name: str) -> Any:
        raise missing_attribute(self, name, ("leaderboard_", "cards_", "best_model_"), "`rank` and `fit`")

    @names_data_as_trainer
    def rank(self, candidates: Candidates, train_dataloaders: Any = None, datamodule: Any = None) -> Leaderboard:
        """Score every candidate on the same batches and rank them.

        Args:
            candidates: A mapping of names to candidates, or an iterable of candidates: LightningModules, zero-argument
                factories and `Candidate` objects. They are taken, built, scored and released one at a time; a factory
                that fails becomes a row with a reason. Built modules are held as long as they may still win
                (`selection.shortlist`). A race scores candidates again, so it keeps the factories and does not accept
                an iterator of built modules.
            train_dataloaders: A DataLoader, a list or dictionary of DataLoaders, an iterable of batches, or a
                LightningDataModule.
            datamodule: A LightningDataModule, instead of ``train_dataloaders``.

        Returns:
            The leaderboard, also stored as ``leaderboard_``. If ranking is interrupted by Ctrl-C or an error in the
            iterable, ``leaderboard_`` and ``cards_`` hold the candidates that are done, and the exception propagates.
            The same holds if the data module's ``teardown`` fails.

        Raises:
            TooFewBatchesError: If the data gives fewer batches than ``num_batches``.
            IdenticalBatchesError: If all batches are the same, or the same in all repeats.
            InvalidArgumentError: If there are no candidates, or something offered is not a candidate.
            TypeError: If a race is offered an iterator of built modules.
            UnsupportedBatchError: If the data is something else, such as a class, a single batch or a dataset, or is
                given twice or not at all.
            RuntimeError: If the accelerator is not available; Lightning's own error if the devices are not.
            CacheError: If the file ``cache`` is not a cache of scores or is damaged; it is left as it is.
        """
        check_candidates(candidates)
        data = pick_data(train_dataloaders, datamodule, pairs=self.loss_fn is not None)
        self._rank(candidates, TrainingData(data, TrainerSettings.of(self.trainer)))
        show(self.leaderboard_, enabled=self.enable_progress_bar)
        return self.leaderboard_

    @names_data_as_trainer
    def fit(
        self,
        candidates: Candidates,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: Any = None,
    ) -> "ZeroShotSelector":
        """Rank the candidates, hold finals among the best if ``finalists`` is above 1, then train the winner.

        Finals use the trainer itself, stopped after ``final_epochs`` and without its callbacks and loggers; these only
        see the rest of the winner's training. Lightning's callbacks that change training, such as
        GradientAccumulationScheduler, raise an error; your own callbacks must not change training either. Each training
        of a finalist starts from its seed, on fresh weights. An instance that was offered is copied, and so is a
        module that shares parameters with one that you hold. Hooks such as ``on_train_end`` run at every pause. The
        winner itself is trained, not a copy, and so are modules that its factory shares with others. It continues from
        its checkpoint and ends as if training had not paused (see `selection.finalist.Training` for the exact
        conditions). ``leaderboard_`` then shows both stages. If finals are interrupted by Ctrl-C, SIGTERM or SIGHUP, it
        has the finalists that are done, and the exception propagates.

        Args:
            candidates: As for `rank`.
            train_dataloaders: As for `rank`; also the data that the winner is trained on. It must not be an iterator,
                which can be read only once.
            val_dataloaders: Validation data for the trainer, unless there is a data module. For finals, it must not be
                an iterator.
            datamodule: As for `rank`.

        Returns:
            The selector; the trained winner is ``best_model_``.

        Raises:
            ValueError: If there is no trainer, or it would train nothing. With finals, also if the trainer has trained
                before, has a callback that changes training, ends after ``max_steps``, ends before or with the finals,
                or does not validate when a round ends; with ``finals_executor``, if the trainer starts processes.
            InvalidArgumentError: If the data can be read only once.
            TypeError: If the winner is not a LightningModule, or ``finals_executor`` cannot send the trainer, the data
                or a candidate; the ranking then has not begun, unless the data's ``setup`` is the reason.
            RuntimeError: If every candidate, or every finalist, failed.
            NotLoggedError: If the first finalist that is trained does not log ``monitor``.
        """
        if self.trainer is None:
            raise ValueError(
                "`fit` needs a trainer for the winner. Pass `ZeroShotSelector(trainer=Trainer(...))`, or call `rank`."
            )
        rules = finals_rules(self)
        check_candidates(candidates)
        data = pick_data(train_dataloaders, datamodule, pairs=self.loss_fn is not None)
        check_validation_data(data, val_dataloaders)
        check_will_train(self.trainer)
        check_readable_again(
            data,
            "train_dataloaders",
            "and ranking would use it up",
            "Pass a data module, a DataLoader or a list of batches, or call `rank`",
        )
        training_data = TrainingData(data, TrainerSettings.of(self.trainer))
        arguments = training_data.fit_arguments(val_dataloaders)
        if self.finalists > 1:
            check_readable_again(
                val_dataloaders, "val_dataloaders", "so the first finalist would use it up", "Pass a DataLoader"
            )
            sent = None if self.finals_executor is None else candidates
            check_trainer(self.trainer, arguments, rules, sent=sent)
        entrants = self._rank(candidates, training_data, learn=rules.learns)
        show(self.leaderboard_, enabled=self.enable_progress_bar)
        if self.best_model_ is None:
            raise RuntimeError(
                f"There is no winner to train: {self.leaderboard_.describe_failures()} `leaderboard_.errors` has the "
                "reasons of all."
            )
        if self.finalists == 1:
            if not is_lightning(self.best_model_):
                raise TypeError(
                    f"The winner is a {type(self.best_model_).__name__}, but a `Trainer` only trains LightningModules. "
                    "Wrap the candidates in LightningModules, or train `best_model_` yourself."
                )
            self.trainer.fit(self.best_model_, **arguments)  # type: ignore[arg-type]
            return self
        self.best_model_ = None
        train_best(
            entrants,
            self.trainer,
            arguments,
            seeds=range(self.seed, self.seed + self.final_seeds),
            rules=rules,
            cache=self.cache,
            batches_hash=self.leaderboard_.provenance["batches_hash"],
            workers=finals_workers(self.finals_executor, rules, self.leaderboard_.provenance["devices"]),
            report=self._add_finals,
            on_winner=partial(setattr, self, "best_model_"),
        )
        return self

    def _rank(self, candidates: Candidates, data: TrainingData, *, learn: "Learn" = False) -> "Entrants":
        """Rank the candidates, and return those of finals."""
        choice = self._choice(candidates)
        with data:
            readings = self.readings(data, choice.proxies, self.repeats)
            scorers = self.scorers(readings, choice.proxies, data=data, loss_fn=self.loss_fn, budget=self.budget)
            run = Run(scorers, choice, self._executor, progress=self._progress("Ranking"))
            try:
                if self.race:
                    shortlist = run.hold_race(candidates, top_k=self.finalists, seed=self.seed)
                else:
                    shortlist = run.score_all(candidates, top_k=None if learn else self.finalists)
            except BaseException:
                self.best_model_ = None
                self._store(run, broke_off=True)
                raise
            # Store the scores before the data module is torn down, because teardown may fail.
            if not self._store(run, broke_off=False):
                raise nothing_offered(candidates)
            self._check_variation()
            by_name = {candidate.name: candidate for candidate in shortlist}
            best = self.leaderboard_.best
            self.best_model_ = None if best is None else run.build_again(by_name[best])
            return run.entrants(self.leaderboard_, shortlist, num=self.finalists, learn=learn)

    def _add_finals(self, finals: list[Final], how: FinalsHeld, learned: dict[str, Row] | None) -> None:
        self.leaderboard_ = self.leaderboard_.with_finals(finals, how, learned)
        if not how["broke_off"]:
            show(self.leaderboard_, enabled=self.enable_progress_bar)

    def _check_variation(self) -> None:
        """Check that the data is not the reason why no candidate can be ranked.

        Raises:
            IdenticalBatchesError: If the data has one batch, and no candidate's gradient varies.
        """
        errors = self.leaderboard_.errors
        kind = f"{IdenticalBatchesError.__name__}: "
        read = self.leaderboard_.provenance["reading"]
        is_one = read is not None and read["are_copies"]
        if is_one and len(errors) == len(self.leaderboard_) and all(e.startswith(kind) for e in errors.values()):
            self.best_model_ = None
            raise IdenticalBatchesError(next(iter(errors.values())).removeprefix(kind))

    def _choice(self, candidates: Candidates | None = None) -> Choice:
        """Choose what to compute, with what a zoo brings along unless a proxy has its name.

        Args:
            candidates: The candidates; None if they are not known yet.
        """
        beside = [] if self.prior is None else [prior_of(self.prior)]
        if candidates is None:
            # A zoo may bring such a column along.
            known = {proxy.name for proxy in Choice.of(self.proxies, beside=beside).proxies}
            rank_by = None if self.rank_by in {*KNOWN_COLUMNS} - known else self.rank_by
            return Choice.of(self.proxies, rank_by, beside=beside, with_baselines=True)
        pretrained = candidates.pretrained if isinstance(candidates, Zoo) else are_pretrained(candidates)
        if isinstance(candidates, Zoo):
            own = Choice.of(self.proxies, beside=beside).proxies
            taken = {proxy.name for proxy in own if not isinstance(proxy, UnknownPrior)}
            beside += [known for known in candidates.known if known.name not in taken]
        return Choice.of(self.proxies, self.rank_by, beside=beside, with_baselines=True, pretrained=pretrained)

    def _store(self, run: Run, *, broke_off: bool) -> bool:
        """Make the leaderboard from all cards so far.

        Returns:
            Whether there are any cards; without cards, the last leaderboard stays.
        """
        if run.tally.is_empty:
            return False
        self.leaderboard_, cards = leaderboard_of(
            run.tally,
            controlled_by=self.controlled_by,
            seed=self.seed,
            provenance={
                **self.provenance(run.scorers[0]),
                "race": self.race,
                "budget": asdict(self.budget) if self.budget else None,
                "broke_off": broke_off,
            },
        )
        self.cards_ = {card.name: card for card in cards}
        return True


@names_data_as_trainer
def rank(candidates: Candidates, train_dataloaders: Any = None, datamodule: Any = None, **settings: Any) -> Leaderboard:
    """Rank candidates without training them: `ZeroShotSelector.rank` in one call.

    Args:
        candidates: As for `ZeroShotSelector.rank`.
        train_dataloaders: As for `ZeroShotSelector.rank`.
        datamodule: As for `ZeroShotSelector.rank`.
        settings: Arguments of `ZeroShotSelector`, such as ``num_batches=4`` or ``proxies="zico"``.

    Example:
        >>> from lightning_zico.demos import DigitsDataModule, digits_candidates
        >>> leaderboard = rank(digits_candidates(), DigitsDataModule(), num_batches=2)
        >>> leaderboard.best in digits_candidates()
        True
    """
    return ZeroShotSelector(**settings).rank(candidates, train_dataloaders, datamodule)
