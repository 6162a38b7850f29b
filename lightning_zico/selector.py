"""Rank candidates on a few batches, then train the winner."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from operator import length_hint
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Trainer
from rich import get_console
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from lightning_zico._typing import Axis, Batch, LossFn, NumSamples, Step, check_num_samples
from lightning_zico.bridge import TrainingData, is_datamodule
from lightning_zico.budget import Budget
from lightning_zico.candidates import Candidate, Candidates, check_candidates, iterate_candidates, nothing_offered
from lightning_zico.engine.batches import tensors_of
from lightning_zico.engine.gradients import ChunkSize, check_chunk_size
from lightning_zico.errors import IdenticalBatchesError, UnknownNameError
from lightning_zico.finals import (
    MOST_AT_ONCE,
    Finalist,
    Mode,
    check_finals,
    check_trainer,
    check_will_train,
    hold_finals,
)
from lightning_zico.folders import remove_leftovers, temporary_folder
from lightning_zico.hooks import is_lightning
from lightning_zico.proxies import BASELINES, Prior, prior_of
from lightning_zico.proxies.base import Proxies
from lightning_zico.ranking.racing import check_race
from lightning_zico.results import FinalsHeld, Leaderboard, ScoreCard, leaderboard_table
from lightning_zico.scoring.arguments import (
    check_budget,
    check_is_trainer,
    check_loss,
    data_is_datamodule,
    flag,
    missing_attribute,
    name_of,
    whole_number,
)
from lightning_zico.scoring.cache import CacheLike, check_cache, opened
from lightning_zico.scoring.cached import scored, with_cache
from lightning_zico.scoring.choice import Choice, chosen
from lightning_zico.scoring.contenders import Contenders
from lightning_zico.scoring.executors import executor_of
from lightning_zico.scoring.fingerprint import fingerprint_or_none
from lightning_zico.scoring.given_data import check_data, check_validation_data
from lightning_zico.scoring.placement import (
    AcceleratorName,
    Devices,
    PrecisionLike,
    check_placement,
    placement_of,
    trainers_precision,
)
from lightning_zico.scoring.process_state import kept_process_state
from lightning_zico.scoring.progress import is_interactive, progress_bar
from lightning_zico.scoring.provenance import reading, told, versions
from lightning_zico.scoring.repeats import Tally, raced, readings
from lightning_zico.scoring.scorer import check_axis, check_batches, described
from lightning_zico.scoring.standings import agreement_with_baselines, standings_of, with_controlled
from lightning_zico.scoring.work import Executor, Work
from lightning_zico.texts import printable
from lightning_zico.trainers import TrainerSettings


class ZeroShotSelector:
    """Rank candidates without training them, then train the winner.

    Args:
        trainer: The trainer for the finalists and the winner. While candidates are ranked, it is only read: a
            candidate's step sees another trainer with the same settings (`TrainerSettings`), and callbacks that change
            the batch take part. Optional for `rank`; a step then sees Lightning's defaults.
        proxies: Names of proxies (see `list_proxies`) and of recipes (see `list_recipes`), `Proxy` objects,
            ``"default"`` for the default recipe, or ``"all"``, which ranks by the default recipe. The baselines
            ``params``, ``macs``, ``num_layers`` and ``sum_log_numel`` are always computed as well.
        rank_by: Name of the proxy or recipe to rank by; the first of ``proxies`` if None.
        controlled_by: Name of a baseline. The column ``controlled`` then holds the part of each candidate's rank that
            this baseline does not explain (`ranking.size_controlled`); higher is better.
        prior: Known values of candidates by name, such as published accuracies: a mapping, the path of a CSV file with
            two columns, or a `Prior`. They become the column ``prior``, which you can rank by and use as a member of a
            recipe.
        num_batches: Number of batches that every candidate is scored on, the same for all. Two is the published
            setting; four or more give steadier scores.
        axis: What varies between two gradients: ``"batch"``, the published ZiCo, or ``"sample"``.
        chunk_size: With ``axis="sample"``: how many samples to differentiate at once; None for a whole batch,
            ``"auto"`` for as many as fit in memory.
        loss_fn: ``(outputs, targets) -> mean loss`` for batches ``(inputs, targets)``, instead of ``training_step``.
        step: ``(module, batch, batch_idx) -> mean loss`` for any batches, instead of ``training_step``: for manual
            optimisation, several optimisers and GANs (see `score`). It only affects scoring, not how the winner is
            trained.
        num_samples: Number of samples in a batch, or a function that counts them in what the loader yields; None to
            read it from the batch (`engine.samples.num_samples`). MACs and other numbers per sample need it if the
            fields of a batch differ in length and nothing shows which one counts samples. A `Candidate` may have its
            own.
        budget: Limits on cost. Candidates above it are dropped before they are scored; the leaderboard shows why.
        repeats: How often every candidate is scored. Repeat r uses the seed ``seed + r``: factories draw other weights,
            data modules and loaders give other batches, the same for all candidates. A module that is offered built
            keeps its weights, so its repeats differ only in the batches. An iterable of batches must give ``repeats``
            times ``num_batches``. Scores are then means, a recipe's score is the mean of its scores in each repeat, and
            the leaderboard shows how certain each rank is.
        race: Repeat only candidates that can still become finalists: at most half of all repeats are spent
            (`ranking.racing.race`). In a recipe, a candidate that dropped out keeps its last scores.
        seed: The seed of the batches, the weights that factories draw, dropout while scoring, and training in finals.
        cache: Path of a file in which scores are saved as they come (``"scores.db"``; see `scoring.cache.SQLiteCache`),
            or a `ScoreCache`. Scores in it are not computed again, and the leaderboard is the same, ``seconds``
            included. See `scoring.cached.with_cache` for what a score depends on.
        executor: Where candidates are scored; it does not change the scores. None for this process, ``"processes"`` for
            one worker process per core, or an executor, such as ``ProcessExecutor(num_workers=2)`` or
            ``RayExecutor()``.
        timeout_s: Time limit per candidate, in seconds, for ``"processes"``. A candidate that takes longer becomes a
            row with that reason.
        finalists: How many of the best candidates by score `fit` trains for a while to choose the winner among them; 1
            for no finals. With more than four, the better half goes on from round to round (`finals.hold_finals`).
        final_epochs: Number of epochs that a finalist is trained in each round.
        monitor: Name of the logged metric that decides the finals.
        mode: Whether the lowest (``"min"``) or the highest (``"max"``) value of ``monitor`` wins.
        accelerator: Where candidates are scored, as for a trainer: ``"cpu"``, ``"gpu"``, ``"cuda"``, ``"mps"`` or
            ``"auto"``; None for wherever they are built. A factory's module is moved; a module that is offered built is
            copied. ``best_model_`` stays as it was built.
        devices: Which devices to use, as for a trainer. A single process uses the first; each worker of
            `ProcessExecutor` uses its own, in turn. On Ray it is 1, because a task only sees the GPUs assigned to it.
        precision: The precision of scoring: ``"32-true"``, ``"64-true"``, ``"bf16-true"``, ``"16-true"``,
            ``"bf16-mixed"`` or, on a GPU, ``"16-mixed"``; the short forms 64, 32, 16 and ``"bf16"`` mean what they mean
            to a trainer. None for the trainer's precision if candidates can be scored in it, otherwise the precision in
            which they are built. Either parameters, buffers and batches are converted, or the loss and forward passes
            run under autocast. Gradients have the precision of the parameters, and what proxies compute from them is
            not under autocast. SynFlow stays in float64. Losses are not scaled: in float16, gradients below 6e-8 are
            zero.
        channels_last: Lay out images and the weights of convolutions in ``torch.channels_last``, which is often faster
            in bfloat16. Use it together with ``executor="processes"``: torch 2.14 crashed the interpreter for models
            such as RepVGG and FastViT in this layout on a CPU.
        enable_progress_bar: Show a progress bar while ranking and the leaderboard at the end, if the terminal is
            interactive.

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
        >>> leaderboard = selector.rank(digits_candidates(), datamodule=DigitsDataModule())
        >>> leaderboard.best == leaderboard.rows[0]["name"]
        True
    """

    leaderboard_: Leaderboard
    cards_: dict[str, ScoreCard]
    best_model_: nn.Module | None
    _finalists: dict[str, Callable[[], nn.Module]]

    def __init__(
        self,
        trainer: Trainer | None = None,
        proxies: Proxies = "default",
        *,
        rank_by: str | None = None,
        controlled_by: str | None = None,
        prior: Prior | Mapping[str, float] | str | Path | None = None,
        num_batches: int = 2,
        axis: Axis = "batch",
        chunk_size: ChunkSize = None,
        loss_fn: LossFn | None = None,
        step: Step | None = None,
        num_samples: NumSamples | None = None,
        budget: Budget | None = None,
        repeats: int = 1,
        race: bool = False,
        seed: int = 0,
        cache: CacheLike | None = None,
        executor: Executor | Literal["processes"] | None = None,
        timeout_s: float | None = None,
        finalists: int = 1,
        final_epochs: int = 1,
        monitor: str = "val_loss",
        mode: Mode = "min",
        accelerator: AcceleratorName | None = None,
        devices: Devices = "auto",
        precision: PrecisionLike | None = None,
        channels_last: bool = False,
        enable_progress_bar: bool = True,
    ) -> None:
        check_is_trainer(trainer)
        check_cache(cache)
        check_axis(axis)
        check_chunk_size(chunk_size)
        check_loss(loss_fn, step)
        check_budget(budget)
        check_num_samples(num_samples)
        check_finals(finalists, final_epochs, monitor, mode)
        check_placement(accelerator, devices, precision, channels_last)
        executor_of(executor, timeout_s)
        self.trainer = trainer
        self.proxies = proxies
        self.rank_by = rank_by
        self.controlled_by = controlled_by
        self.prior = None if prior is None else prior_of(prior)
        self.axis: Axis = axis
        self.chunk_size: ChunkSize = chunk_size
        self.loss_fn = loss_fn
        self.step = step
        self.num_samples: NumSamples | None = num_samples
        self.budget = budget
        self.repeats = whole_number("repeats", repeats, 1, "About 5 show how much scores vary.")
        self.race = flag("race", race)
        self.seed = whole_number("seed", seed)
        self.cache = cache
        self.executor = executor
        self.timeout_s = timeout_s
        self.finalists = finalists
        self.final_epochs = final_epochs
        self.monitor = monitor
        self.mode: Mode = mode
        self.accelerator: AcceleratorName | None = accelerator
        self.devices: Devices = devices
        self.precision: PrecisionLike | None = precision
        self.channels_last = channels_last
        self.enable_progress_bar = flag("enable_progress_bar", enable_progress_bar)
        if race:
            check_race(repeats)
        choice = self._choice()
        needy = max(choice.proxies, key=lambda proxy: proxy.min_gradients)
        least = max(needy.min_gradients if axis == "batch" else 1, 1)
        self.num_batches = whole_number("num_batches", num_batches, least, f"`{needy.name}` needs at least {least}.")

    def __getattr__(self, name: str) -> Any:
        raise missing_attribute(self, name, ("leaderboard_", "cards_", "best_model_"), "`rank` and `fit`")

    @data_is_datamodule
    def rank(self, candidates: Candidates, datamodule: Any) -> Leaderboard:
        """Score every candidate on the same batches and rank them.

        Args:
            candidates: A mapping of names to candidates, or an iterable of candidates: LightningModules, zero-argument
                factories and `Candidate` objects. They are taken, built, scored and released one at a time; a factory
                that fails becomes a row with a reason. Built modules are held as long as they may still win
                (`scoring.contenders`). A race scores candidates again, so it keeps the factories and does not accept an
                iterator of built modules.
            datamodule: A LightningDataModule, a DataLoader, or an iterable of batches.

        Returns:
            The leaderboard, also stored as ``leaderboard_``. If ranking is interrupted by Ctrl-C or an error in the
            iterable, ``leaderboard_`` and ``cards_`` hold the candidates that are done, and the exception propagates.
            The same holds if the data module's ``teardown`` fails.

        Raises:
            TooFewBatchesError: If the data gives fewer batches than ``num_batches``.
            IdenticalBatchesError: If all batches are the same, or the same in all repeats.
            InvalidArgumentError: If there are no candidates, or something offered is not a candidate.
            TypeError: If a race is offered an iterator of built modules.
            UnsupportedBatchError: If ``datamodule`` is something else, such as a class, a single batch or a dataset.
            RuntimeError: If the accelerator is not available; Lightning's own error if the devices are not.
            CacheError: If the file ``cache`` is not a cache of scores or is damaged; it is left as it is.
        """
        check_candidates(candidates)
        check_data(datamodule, pairs=self.loss_fn is not None)
        remove_leftovers()
        choice = self._choice()
        rank_by = choice.ranked_by(self.rank_by)
        settings = TrainerSettings.of(self.trainer)
        tally = Tally(choice, self.repeats)
        with TrainingData(datamodule, settings) as data:
            works = self._works(choice, data, settings)
            try:
                contenders = (self._raced if self.race else self._scored)(candidates, works, tally, rank_by)
            except BaseException:
                self.best_model_ = None
                self._keep(tally, rank_by, works[0], broke_off=True)
                raise
            # Keep the scores before the data module is torn down, because teardown may fail.
            if not self._keep(tally, rank_by, works[0], broke_off=False):
                raise nothing_offered(candidates)
            self._check_variation()
            by_name = {candidate.name: candidate for candidate in contenders}
            first = [row["name"] for row in self.leaderboard_.rows[: self.finalists] if row["rank"]]
            self.best_model_ = _built_again(by_name[first[0]], works[0]) if first else None
            self._finalists = (
                {name: partial(works[0].build, by_name[name]) for name in first} if self.finalists > 1 else {}
            )
        self._show()
        return self.leaderboard_

    @data_is_datamodule
    def fit(self, candidates: Candidates, datamodule: Any, val_dataloaders: Any = None) -> "ZeroShotSelector":
        """Rank the candidates, hold finals among the best if ``finalists`` is above 1, then train the winner.

        Finals use the trainer itself, stopped after ``final_epochs`` and without its callbacks and loggers; these only
        see the rest of the winner's training. Lightning's callbacks that change training, such as
        GradientAccumulationScheduler, raise an error; your own callbacks must not change training either. Each finalist
        starts from the selector's seed, on its fresh weights. An instance that was offered is copied, and so is a
        module that shares parameters with one that you hold. Hooks such as ``on_train_end`` run at every pause. The
        winner itself is trained, not a copy, and so are modules that its factory shares with others. It continues from
        its checkpoint and ends as if training had not paused (see `finals.Finalist` for the exact conditions).
        ``leaderboard_`` then shows both stages. If finals are interrupted by Ctrl-C, it has the finalists that are
        done, and the exception propagates.

        Args:
            candidates: As for `rank`.
            datamodule: As for `rank`; also the data that the winner is trained on. It must not be an iterator, which
                can be read only once.
            val_dataloaders: Validation data for the trainer if ``datamodule`` is not a data module. For finals, it must
                not be an iterator.

        Returns:
            The selector; the trained winner is ``best_model_``.

        Raises:
            ValueError: If there is no trainer, or it would train nothing. With finals, also if the trainer has trained
                before, has a callback that changes training, ends after ``max_steps``, ends before or with the finals,
                or does not validate when a round ends.
            TypeError: If the data can be read only once, or the winner is not a LightningModule.
            RuntimeError: If every candidate, or every finalist, failed.
            NotLoggedError: If the first finalist that is trained does not log ``monitor``.
        """
        if self.trainer is None:
            raise ValueError(
                "`fit` needs a trainer for the winner. Pass `ZeroShotSelector(trainer=Trainer(...))`, or call `rank`."
            )
        check_candidates(candidates)
        check_data(datamodule, pairs=self.loss_fn is not None)
        check_validation_data(datamodule, val_dataloaders)
        check_will_train(self.trainer)
        if isinstance(datamodule, Iterator):
            raise TypeError(
                f"Invalid datamodule: a {type(datamodule).__name__}, which can be read only once, and ranking would "
                "use it up. Pass a data module, a DataLoader or a list of batches, or call `rank`."
            )
        data = _fit_arguments(datamodule, val_dataloaders)
        if self.finalists > 1:
            check_trainer(self.trainer, data, finalists=self.finalists, final_epochs=self.final_epochs)
        self.rank(candidates, datamodule)
        if self.best_model_ is None:
            name, reason = next(iter(self.leaderboard_.errors.items()))
            raise RuntimeError(
                f"All {len(self.leaderboard_)} candidates failed, so there is no winner to train. '{name}' failed "
                f"with: {reason} See `leaderboard_.errors` for the others."
            )
        if self.finalists > 1:
            self._fit_best_finalist(self.trainer, data)
            return self
        if not is_lightning(self.best_model_):
            raise TypeError(
                f"The winner is a {type(self.best_model_).__name__}, but a `Trainer` only trains LightningModules. "
                "Wrap the candidates in LightningModules, or train `best_model_` yourself."
            )
        self.trainer.fit(self.best_model_, **data)  # type: ignore[arg-type]
        return self

    def _fit_best_finalist(self, trainer: Trainer, data: Mapping[str, Any]) -> None:
        self.best_model_ = None
        entrants, self._finalists = self._finalists, {}
        with temporary_folder() as folder:
            finalists = [
                Finalist(name, build, Path(folder, f"{idx}.ckpt"), self.seed)
                for idx, (name, build) in enumerate(entrants.items())
            ]
            how: dict[str, Any] = {"final_epochs": self.final_epochs, "monitor": self.monitor, "mode": self.mode}
            held: FinalsHeld = {
                "monitor": self.monitor,
                "mode": self.mode,
                "finalists": len(finalists),
                "final_epochs": self.final_epochs,
                "halving": len(finalists) > MOST_AT_ONCE,
                "broke_off": True,
            }
            try:
                hold_finals(finalists, trainer, data, **how)
                held["broke_off"] = False
            finally:
                finals = [finalist.final for finalist in finalists if finalist.is_done]
                if finals:
                    self.leaderboard_ = self.leaderboard_.with_finals(finals, held)
            self._show()
            winner = finalists[0]
            if winner.error is not None:
                raise RuntimeError(
                    f"All {len(finalists)} finalists failed. '{winner.name}' failed with: {winner.error} See "
                    "`leaderboard_.errors` for the others."
                )
            self.best_model_ = winner.build()
            winner.train(trainer, self.best_model_, data)

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

    def _show(self) -> None:
        if is_interactive(self.enable_progress_bar):
            get_console().print(leaderboard_table(self.leaderboard_))

    def _choice(self) -> Choice:
        beside = [] if self.prior is None else [self.prior]
        choice = chosen(self.proxies, beside=beside, with_baselines=True)
        choice.ranked_by(self.rank_by)
        if self.controlled_by not in (None, *BASELINES):
            raise UnknownNameError(
                f"Invalid controlled_by={self.controlled_by!r}: expected a baseline: {', '.join(BASELINES)}."
            )
        return choice

    def _works(self, choice: Choice, data: TrainingData, settings: TrainerSettings) -> list[Work]:
        precision = self.precision or trainers_precision(settings.precision, self.accelerator)
        placement = placement_of(self.accelerator, self.devices, precision, self.channels_last)
        works: list[Work] = []
        for repeat_idx, one in enumerate(readings(data, self.num_batches, self.repeats, seed=self.seed)):
            check_batches(one.batches, choice.proxies, self.axis, self.num_samples)
            work = Work(
                one.batches,
                choice.proxies,
                loss_fn=self.loss_fn,
                step=self.step,
                axis=self.axis,
                chunk_size=self.chunk_size,
                seed=self.seed + repeat_idx,
                datamodule=data.datamodule,
                budget=self.budget,
                placement=placement,
                num_samples=self.num_samples,
                settings=settings,
                loader=one.loader,
            )
            works.append(work)
        if self.cache is None:
            return works
        cache = opened(self.cache)
        return [with_cache(work, cache) for work in works]

    def _scored(self, candidates: Candidates, works: list[Work], tally: Tally, rank_by: str) -> list[Candidate]:
        """Score every candidate in every repeat, and keep those that may become finalists."""
        contenders = Contenders(rank_by, tally.choice, self.finalists)

        def keep(candidate: Candidate, cards: list[ScoreCard]) -> None:
            if len(cards) == self.repeats:
                contenders.add(candidate, tally.place(candidate.name), cards)

        try:
            self._run(candidates, works, tally, range(self.repeats), keep)
        except BaseException:
            tally.cut(self.repeats, least=self.repeats)
            raise
        return contenders.candidates

    def _raced(self, candidates: Candidates, works: list[Work], tally: Tally, rank_by: str) -> list[Candidate]:
        """Score every candidate once, race them, and keep all of them."""

        def score(candidates: Candidates, repeats: Sequence[int]) -> None:
            self._run(candidates, works, tally, repeats)

        return raced(candidates, tally, rank_by, score, top_k=self.finalists, seed=self.seed)

    def _run(
        self,
        candidates: Candidates,
        works: list[Work],
        tally: Tally,
        repeats: Sequence[int],
        done: Callable[[Candidate, list[ScoreCard]], None] = lambda candidate, cards: None,
    ) -> None:
        """Score candidates in some repeats with the executor, and show the progress."""
        total = length_hint(candidates) * len(repeats) or None
        with progress_bar("Ranking", is_shown=is_interactive(self.enable_progress_bar)) as progress:
            task = progress.add_task("", total=total)

            def shown() -> Iterator[Candidate]:
                for candidate in iterate_candidates(candidates):
                    progress.update(task, description=printable(candidate.name))
                    yield candidate

            executor = executor_of(self.executor, self.timeout_s)
            with closing(scored(executor, works, tally.jobs(shown(), repeats))) as finished:
                for job, card in finished:
                    done(job.candidate, tally.add(job, card))
                    progress.advance(task)

    def _keep(self, tally: Tally, rank_by: str, work: Work, *, broke_off: bool) -> bool:
        """Make the leaderboard from all cards so far.

        Returns:
            Whether there are any cards; without cards, the last leaderboard stays.
        """
        cards, choice = tally.merged(), tally.choice
        if not cards:
            return False
        standings = standings_of(cards, rank_by, choice)
        if self.controlled_by is not None:
            cards = with_controlled(cards, standings, rank_by, self.controlled_by)
        self.cards_ = {card.name: card for card in cards}
        self.leaderboard_ = Leaderboard.of(
            cards,
            rank_by=rank_by,
            columns=[*choice.columns, *(["controlled"] if self.controlled_by else [])],
            higher_is_better=choice.higher_is_better(rank_by),
            uncertainty=tally.uncertainty(rank_by, seed=self.seed) if self.repeats > 1 else None,
            provenance={
                **self._provenance(rank_by, tally, choice, work),
                "num_instances": tally.num_instances,
                **(self._of_repeats(tally, rank_by) if self.repeats > 1 else {}),
                "num_of_a_zoo": tally.num_of_a_zoo,
                "kendall_with": agreement_with_baselines(cards, standings),
                "broke_off": broke_off,
            },
        )
        return True

    @staticmethod
    def _of_repeats(tally: Tally, rank_by: str) -> dict[str, Any]:
        return {
            "num_with_same_weights": tally.num_with_same_weights(),
            "equal_repeats": tally.equal_repeats(rank_by),
        }

    def _provenance(self, rank_by: str, tally: Tally, choice: Choice, work: Work) -> dict[str, Any]:
        cards = tally.settled()
        return {
            "rank_by": rank_by,
            "higher_is_better": choice.higher_is_better(rank_by),
            "proxies": [proxy.name for proxy in choice.proxies],
            "asked": list(choice.asked),
            "recipes": {name: told(used, choice.recipes[name], cards) for name, used in tally.used().items()},
            "controlled_by": self.controlled_by,
            "axis": self.axis,
            "num_batches": self.num_batches,
            "batch_shapes": [list(tensor.shape) for tensor in tensors_of(work.batches[0])],
            "batches_hash": fingerprint_or_none(work.batches),
            "reading": reading(work.batches),
            "seed": self.seed,
            "repeats": self.repeats,
            "race": self.race,
            "budget": asdict(self.budget) if self.budget else None,
            "loss_fn": name_of(self.loss_fn),
            "step": name_of(self.step),
            "accelerator": work.placement.accelerator,
            "devices": [str(device) for device in work.placement.devices],
            "precision": work.placement.precision,
            "channels_last": self.channels_last,
            "left_out_callbacks": work.settings.left_out,
            "versions": versions(),
        }


def _built_again(candidate: Candidate, work: Work) -> nn.Module:
    try:
        with kept_process_state():
            return work.build(candidate)
    except Exception as raised:
        raise RuntimeError(
            f"'{candidate.name}' won, but could not be built a second time: {described(raised)}. Make its factory "
            "repeatable. The ranking is in `leaderboard_`."
        ) from raised


def _fit_arguments(datamodule: Any, val_dataloaders: Any) -> dict[str, Any]:
    """Return the arguments with which `Trainer.fit` takes the data."""
    if is_datamodule(datamodule):
        return {"datamodule": datamodule}
    return {"train_dataloaders": _for_trainer(datamodule), "val_dataloaders": _for_trainer(val_dataloaders)}


def _for_trainer(data: Any) -> Any:
    # Lightning treats a plain list as a collection of loaders.
    loaders = any(isinstance(leaf, DataLoader | Iterator) for leaf in tree_leaves(data))
    return _Batches(data) if isinstance(data, list | tuple) and not loaders else data


class _Batches:
    """A list of batches as an iterable that Lightning does not take apart."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)
