"""Search a space for the archs with the best zero-shot scores within a budget."""

import json
import random
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from rich.progress import TimeRemainingColumn
from torch import nn

from lightning_zico._typing import Axis, Batch, LossFn, NumSamples, Step, check_num_samples
from lightning_zico.bridge import Reading, TrainingData
from lightning_zico.budget import ARCH_COSTS, Budget
from lightning_zico.candidates import Candidate
from lightning_zico.engine.batches import tensors_of
from lightning_zico.engine.gradients import ChunkSize, check_chunk_size
from lightning_zico.engine.scope import preserved_rng
from lightning_zico.errors import UnknownNameError, ZiCoError
from lightning_zico.folders import remove_leftovers
from lightning_zico.proxies.base import Proxies
from lightning_zico.ranking import first_front, kendall_where_both
from lightning_zico.results import Row, ScoreCard, SearchResult, as_provenance, ranks_of
from lightning_zico.scoring.arguments import (
    check_budget,
    check_is_trainer,
    check_loss,
    data_is_datamodule,
    missing_attribute,
    whole_number,
)
from lightning_zico.scoring.cache import CacheLike, check_cache, opened
from lightning_zico.scoring.cached import scored, with_cache
from lightning_zico.scoring.choice import Choice, chosen, used_among
from lightning_zico.scoring.executors import executor_of
from lightning_zico.scoring.fingerprint import fingerprint, fingerprint_or_none
from lightning_zico.scoring.given_data import check_data
from lightning_zico.scoring.placement import (
    AcceleratorName,
    Devices,
    PrecisionLike,
    check_placement,
    placement_of,
    trainers_precision,
)
from lightning_zico.scoring.progress import is_interactive, progress_bar
from lightning_zico.scoring.provenance import reading, told, versions
from lightning_zico.scoring.scorer import check_axis, check_batches
from lightning_zico.scoring.work import Executor, Job, Work
from lightning_zico.search.costs import ArchCosts
from lightning_zico.search.evolution import Evolution, Member, Population, scores_of
from lightning_zico.search.trials import Finished, Trials, imported_optuna, quiet_optuna
from lightning_zico.spaces import SearchSpace, get_space
from lightning_zico.texts import printable
from lightning_zico.trainers import DEFAULT_SETTINGS, TrainerSettings

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from optuna.samplers import BaseSampler

    from lightning_zico.search.trials import StorageLike

# Costs that a search can keep low; the proxy `latency` measures the one that is not known from the arch.
_LATENCY = "latency_s"
_COSTS = (*ARCH_COSTS, _LATENCY)
_LONGEST_NAME = 40  # characters of an arch beside the progress bar
_COST = "cost_"  # prefix of the names of their columns

# Most proposals in a row for one trial that are over the budget or known; in PlainNet they take about two seconds.
_MOST_PROPOSALS = 10_000
# Each time this many proposals are known, archs are sought one mutation farther away, up to the second number.
_PATIENCE, _FARTHEST = 20, 8


# If this many first archs of a search all fail in the same way, the archs are not to blame.
_MOST_FAILURES = 20


class BudgetError(ZiCoError, ValueError):
    """No arch was found within the budget."""


class SearchError(ZiCoError, RuntimeError):
    """Every arch of a search fails, for example because the loss does not fit the data."""


class ZeroShotSearch:
    """Search a space within a budget, by scores of untrained networks.

    Archs that are known to be over the budget are rejected before anything is built, and no arch is scored twice.
    Optuna stores the trials, so that you can use its dashboard and its storages: a search with ``storage=`` that was
    killed resumes where it stopped, and several processes or machines can work on one study.

    A recipe that combines ranks, such as the default, gives numbers that depend on the set of archs. During the search
    that set is the population (see `evolution.Population` for the reason); in the result it is the set of all scored
    archs, combined once, which gives the final order. Optuna receives the scores of the recipe's members, which never
    change, as separate objectives.

    A single process that scores in itself makes the same trials in the same order for the same seed and data, also if
    it was killed and resumed, unless a latency is measured, Optuna proposes the archs, or something failed for a reason
    that may pass.

    Args:
        space: Space to search, or its name (see `list_spaces`).
        budget: Limits on costs. MACs, parameters and depth are known from the arch; latency and memory are measured,
            and an arch above their limits is a trial with an error.
        proxies: As for `ZeroShotSelector`.
        rank_by: Name of the proxy or recipe that decides; the first of ``proxies`` if None.
        against: Costs to keep low as well, from ``macs``, ``params``, ``depth`` and ``latency_s``: the population is
            then ordered as in NSGA-II, and ``result.front`` holds the best trade-offs.
        num_trials: Total number of archs to score, including those of earlier runs and of other processes on the same
            study.
        sampler: What proposes archs: ``"evolution"`` or an `Evolution` with settings; ``"random"``, which draws from
            the space; or a sampler of Optuna, which makes the choices that the space suggests (`SearchSpace.suggest`).
        storage: Where trials are stored: None for memory; the path of a file, which becomes an SQLite database and
            serves the processes of one machine; the address of a database server, or a storage of Optuna, such as a
            ``JournalStorage``, for many machines. Failures that may pass, such as a timeout or a full memory, count as
            trials in the run that met them; a search that starts again on the storage drops them, so that their archs
            may be tried again and the number of trials is reached.
        name: Name of the study; None to derive it from everything that scores depend on, so that other settings begin
            a new study.
        resolution: Height and width of the images for which ``macs`` are counted, which may be larger than those that
            archs are scored on; None for the same.
        num_classes: Number of logits of the networks.
        wrap: Turns a network into the module that is scored and can be trained, such as a LightningModule that contains
            it. None to score the network itself.
        num_batches: As for `ZeroShotSelector`.
        axis: As for `ZeroShotSelector`.
        chunk_size: As for `ZeroShotSelector`.
        loss_fn: As for `ZeroShotSelector`. Without ``loss_fn``, ``step`` and ``wrap``, the loss is the cross-entropy.
        step: As for `ZeroShotSelector`.
        num_samples: As for `ZeroShotSelector`.
        trainer: Trainer for the networks, which ``wrap`` turns into LightningModules. It is only read: a
            ``training_step`` sees its settings, and its precision is used as by `ZeroShotSelector`.
        seed: Seed of everything that is drawn: batches, weights, archs.
        cache: As for `ZeroShotSelector`.
        executor: As for `ZeroShotSelector`. With several workers, each scores an arch of its own, which is proposed
            while the others are scored.
        timeout_s: As for `ZeroShotSelector`.
        accelerator: As for `ZeroShotSelector`.
        devices: As for `ZeroShotSelector`.
        precision: As for `ZeroShotSelector`.
        enable_progress_bar: Show the progress of the search if the terminal is interactive.

    Attributes:
        result_: Result of the search, also if it was interrupted.

    Raises:
        UnknownNameError: If there is no space, proxy, recipe or cost with a given name.
        InvalidArgumentError: If an argument is of the wrong kind or out of range.
        ModuleNotFoundError: If Optuna is not installed.

    Example:
        >>> from lightning_zico.demos import DigitsDataModule
        >>> search = ZeroShotSearch("nas_bench_201", Budget(macs=2e6), proxies="params", num_trials=4)
        >>> result = search.run(DigitsDataModule(batch_size=4))
        >>> len(result), result.best == result.ranked[0]["arch"]
        (4, True)
    """

    result_: SearchResult

    def __init__(
        self,
        space: SearchSpace[Any] | str,
        budget: Budget | None = None,
        proxies: Proxies = "default",
        *,
        rank_by: str | None = None,
        against: Sequence[str] = (),
        num_trials: int = 1000,
        sampler: "Evolution | Literal['evolution', 'random'] | BaseSampler" = "evolution",
        storage: "StorageLike | None" = None,
        name: str | None = None,
        resolution: int | None = None,
        num_classes: int = 10,
        wrap: Callable[[nn.Module], nn.Module] | None = None,
        num_batches: int = 2,
        axis: Axis = "batch",
        chunk_size: ChunkSize = None,
        loss_fn: LossFn | None = None,
        step: Step | None = None,
        num_samples: NumSamples | None = None,
        trainer: "Trainer | None" = None,
        seed: int = 0,
        cache: CacheLike | None = None,
        executor: Executor | Literal["processes"] | None = None,
        timeout_s: float | None = None,
        accelerator: AcceleratorName | None = None,
        devices: Devices = "auto",
        precision: PrecisionLike | None = None,
        enable_progress_bar: bool = True,
    ) -> None:
        imported_optuna()
        check_axis(axis)
        check_chunk_size(chunk_size)
        check_loss(loss_fn, step)
        check_num_samples(num_samples)
        check_is_trainer(trainer)
        check_budget(budget)
        check_cache(cache)
        executor_of(executor, timeout_s)
        check_placement(accelerator, devices, precision, channels_last=False)
        self.space: SearchSpace[Any] = get_space(space) if isinstance(space, str) else space
        self.budget = budget
        self.proxies = proxies
        self.rank_by = rank_by
        self.against = (against,) if isinstance(against, str) else tuple(against)
        self.num_trials = whole_number("num_trials", num_trials, 1)
        self.sampler = sampler
        self.storage = storage
        self.name = name
        self.resolution = None if resolution is None else whole_number("resolution", resolution, 1)
        self.num_classes = whole_number("num_classes", num_classes, 1)
        self.wrap = wrap
        self.num_batches = whole_number("num_batches", num_batches, 1)
        self.axis: Axis = axis
        self.chunk_size: ChunkSize = chunk_size
        self.loss_fn = loss_fn
        self.step = step
        self.num_samples: NumSamples | None = num_samples
        self.trainer = trainer
        self.seed = whole_number("seed", seed)
        self.cache = cache
        self.executor = executor
        self.timeout_s = timeout_s
        self.accelerator: AcceleratorName | None = accelerator
        self.devices: Devices = devices
        self.precision: PrecisionLike | None = precision
        self.enable_progress_bar = enable_progress_bar
        unknown = [cost for cost in self.against if cost not in _COSTS]
        if unknown:
            raise UnknownNameError(f"Invalid against={list(self.against)}: expected costs from {', '.join(_COSTS)}.")
        evolution = self._evolution()
        if evolution is not None and evolution.start is not None:
            self.space.parse(evolution.start)
        self._choice().ranked_by(rank_by)

    def __getattr__(self, name: str) -> Any:
        raise missing_attribute(self, name, ("result_",), "`run`")

    @data_is_datamodule
    def run(self, datamodule: Any) -> SearchResult:
        """Search until there are ``num_trials`` trials.

        Args:
            datamodule: A LightningDataModule, a DataLoader, or an iterable of batches of images ``[N, C, H, W]`` with
                labels. All archs are scored on its first ``num_batches`` batches.

        Returns:
            The result, also available as ``result_``. If the search is interrupted, by Ctrl-C or an error, ``result_``
            holds the trials so far, and the exception propagates.

        Raises:
            BudgetError: If every proposal is over the budget.
            SearchError: If the first 20 archs have all failed in the same way.
            SettingsError: If ``name`` is that of a study with other settings.
            StorageError: If ``storage`` cannot be opened.
            TooFewBatchesError: If the data gives fewer batches than ``num_batches``.
            IdenticalBatchesError: If all of them are the same.
            ValueError: If networks of the space do not take images of this resolution; nothing is scored then.
        """
        check_data(datamodule, pairs=self.loss_fn is not None or self._needs_loss)
        remove_leftovers()
        choice = self._choice()
        settings = TrainerSettings.of(self.trainer)
        with TrainingData(datamodule, settings) as data:
            reading = data.read(self.num_batches, seed=self.seed)
            check_batches(reading.batches, choice.proxies, self.axis, self.num_samples)
            self._search(choice, reading, data.datamodule, settings)
        return self.result_

    def _search(self, choice: Choice, reading: Reading, datamodule: Any, trainers: TrainerSettings) -> None:
        precision = self.precision or trainers_precision(trainers.precision, self.accelerator)
        placement = placement_of(self.accelerator, self.devices, precision, channels_last=False)
        work = Work(
            reading.batches,
            choice.proxies,
            loss_fn=nn.functional.cross_entropy if self._needs_loss else self.loss_fn,
            step=self.step,
            axis=self.axis,
            chunk_size=self.chunk_size,
            seed=self.seed,
            datamodule=datamodule,
            budget=self.budget.without_arch_costs() if self.budget else None,
            placement=placement,
            num_samples=self.num_samples,
            settings=trainers,
            loader=reading.loader,
        )
        settings = self._settings(choice, work)
        shape = {key: settings[key] for key in ("resolution", "num_classes", "in_channels")}
        costs = ArchCosts(self.space, self.budget, self.against, **shape)
        costs.of(self.space.sample(random.Random(0)))  # refuses a resolution before there is a study
        name = self.name or f"{settings['space']}-{fingerprint(json.dumps(settings))[:12]}"
        with quiet_optuna():
            trials = Trials(self.storage, name, settings, self._directions(choice), self._optunas_sampler())
            running = _Running(self, choice, work, trials, settings, costs)
            try:
                running.score_all()
            finally:
                try:
                    self.result_ = running.result()
                finally:
                    trials.close()

    def candidates(self, result: SearchResult, k: int) -> list[Candidate]:
        """Return the best archs of a search as candidates for a `ZeroShotSelector`, for finals and training.

        Args:
            result: Result of this search.
            k: Number of candidates, best first; fewer if fewer archs have a score.

        Returns:
            Candidates named by their archs' strings, with fresh weights when built.
        """
        offer = self._offering(result.provenance["in_channels"])
        return [offer(self.space.parse(row["arch"])) for row in result.ranked[:k]]

    def _offering(self, in_channels: int) -> Callable[[Any], Candidate]:
        """Return a function that makes candidates of archs; the names of their blocks depend on `wrap`."""
        prefix: str | None = ""
        if self.wrap is not None:
            with preserved_rng(self.seed):
                network = self.space.build(self.space.sample(random.Random(0)), self.num_classes, in_channels)
                modules = self.wrap(network).named_modules()
            prefix = next((name for name, module in modules if module is network), None)

        def offer(arch: Any) -> Candidate:
            build = _Building(self.space, arch, self.num_classes, in_channels, self.wrap)
            names = (f"{prefix}.{name}".removeprefix(".") for name in self.space.blocks(arch))
            return Candidate(str(arch), build, None if prefix is None else tuple(names))

        return offer

    @property
    def _needs_loss(self) -> bool:
        return self.loss_fn is None and self.step is None and self.wrap is None

    def _choice(self) -> Choice:
        given = self.proxies
        if _LATENCY in self.against:
            given = [*([given] if isinstance(given, str) or not isinstance(given, Sequence) else given), "latency"]
        return chosen(given)

    def _evolution(self) -> Evolution | None:
        """Return the settings of the evolution; None if archs are proposed by other means.

        Raises:
            ValueError: If the sampler is invalid.
        """
        if isinstance(self.sampler, Evolution):
            return self.sampler
        if self.sampler == "evolution":
            return Evolution()
        if self.sampler == "random" or self._optunas_sampler() is not None:
            return None
        raise ValueError(
            f'Invalid sampler={self.sampler!r}: expected "evolution", "random", an `Evolution` or a sampler of Optuna.'
        )

    def _optunas_sampler(self) -> "BaseSampler | None":
        return self.sampler if isinstance(self.sampler, imported_optuna().samplers.BaseSampler) else None

    def _objectives(self, choice: Choice) -> list[str]:
        """Return the names of the proxies behind the score, whose numbers Optuna gets: they depend on no other arch."""
        return list(choice.read_by(choice.ranked_by(self.rank_by))[0])

    def _directions(self, choice: Choice) -> list[str]:
        scores = ["maximize" if choice.higher_is_better(name) else "minimize" for name in self._objectives(choice)]
        return [*scores, *("minimize" for _ in self.against)]

    def _told_sampler(self) -> dict[str, Any] | str:
        evolution = self._evolution()
        if evolution is not None:
            return asdict(evolution)
        return "random" if self.sampler == "random" else type(self.sampler).__name__

    def _settings(self, choice: Choice, work: Work) -> dict[str, Any]:
        """Return everything that scores and proposals depend on."""
        shape = _image_shape(work.batches)
        parts: dict[str, Any] = {
            "space": self.space,
            "wrap": self.wrap,
            "proxies": choice.proxies,
            "batches": work.batches,
            "loss_fn": work.loss_fn,
            "chunk_size": self.chunk_size,
            **({} if work.step is None else {"step": work.step}),
            **({} if work.num_samples is None else {"num_samples": work.num_samples}),
            **({} if work.settings == DEFAULT_SETTINGS else {"trainer": work.settings}),
        }
        content = {name: fingerprint_or_none(part) for name, part in parts.items()}
        unseen = [name for name, seen in content.items() if seen is None]
        if unseen and self.storage is not None:
            warnings.warn(
                f"`{unseen[0]}` holds an object that cannot be compared, such as a lock, so searches with different "
                "ones cannot be distinguished. Give each search its own `name`.",
                stacklevel=3,
            )
        return {
            "space": self.space.name or type(self.space).__name__,
            "budget": asdict(self.budget) if self.budget else None,
            "proxies": [proxy.name for proxy in choice.proxies],
            "rank_by": choice.ranked_by(self.rank_by),
            "against": list(self.against),
            "sampler": self._told_sampler(),
            "axis": self.axis,
            "num_batches": self.num_batches,
            "batch_shapes": [list(tensor.shape) for tensor in tensors_of(work.batches[0])],
            **({} if (told_reading := reading(work.batches)) is None else {"reading": told_reading}),
            "resolution": self.resolution or shape[1],
            "num_classes": self.num_classes,
            "accelerator": work.placement.accelerator,
            "precision": work.placement.precision,
            "in_channels": shape[0],
            "seed": self.seed,
            "content": content,
        }


class _Running:
    """One run of a search.

    Args:
        search: Its arguments.
        choice: The proxies and recipes that are computed.
        work: What scoring needs.
        trials: Trials of its study.
        settings: See `ZeroShotSearch._settings`.
        costs: Costs of archs.
    """

    def __init__(
        self,
        search: ZeroShotSearch,
        choice: Choice,
        work: Work,
        trials: Trials,
        settings: Mapping[str, Any],
        costs: ArchCosts,
    ) -> None:
        self._search, self._choice, self._trials, self._settings = search, choice, trials, settings
        self._costs = costs
        self._work = work if search.cache is None else with_cache(work, opened(search.cache))
        self._rank_by = choice.ranked_by(search.rank_by)
        self._evolution = search._evolution()
        self._is_optunas = search._optunas_sampler() is not None
        size = self._evolution.population_size if self._evolution else 1
        self._population = Population(size, choice, self._rank_by)
        self._offer = search._offering(settings["in_channels"])
        self._claimed: dict[str, int] = {}
        self._exhausted = False
        self._broke_off = True
        self._best: float | None = None  # by a proxy, so that higher is better
        self._num_rejected = self._num_scored = 0
        self._seconds = {"seconds": 0.0, "seconds_searching": 0.0}
        self._take_in(trials.finished)

    def score_all(self) -> None:
        """Propose and score until there are enough trials."""
        start = time.perf_counter()
        executor = executor_of(self._search.executor, self._search.timeout_s)
        is_shown = is_interactive(self._search.enable_progress_bar)
        with progress_bar("Searching", TimeRemainingColumn(), is_shown=is_shown) as progress:
            task = progress.add_task("", total=self._search.num_trials, completed=self._trials.num_finished)
            while True:
                num_before = self._num_scored
                with closing(scored(executor, [self._work], self._jobs())) as coming:
                    for job, card in coming:
                        with self._counted():
                            number = self._claimed.pop(job.candidate.name)
                            self._trials.finish(number, card, self._values(card))
                            self._look()
                        self._seconds["seconds"] = time.perf_counter() - start
                        self._num_scored += 1
                        if is_shown:
                            done = self._trials.num_finished
                            progress.update(task, completed=done, description=printable(self._how_it_goes()))
                        self._check_hope(card)
                # Go on if a process died meanwhile, or a trial was ended by hand, until there are enough trials.
                if self._num_scored == num_before or self._exhausted:
                    break
        self._broke_off = False

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count the time of the body as time spent on searching, not on scoring."""
        start = time.perf_counter()
        yield
        self._seconds["seconds_searching"] += time.perf_counter() - start

    def _check_hope(self, last: ScoreCard) -> None:
        """Stop if only failures are to be expected.

        Raises:
            SearchError: If the first archs have all failed in the same way.
        """
        if self._trials.num_finished != _MOST_FAILURES or scores_of([last], self._choice, self._rank_by) != [None]:
            return
        reason = last.error or _first_error(last)
        if all((trial.card.error or _first_error(trial.card)) == reason for trial in self._trials.finished):
            raise SearchError(f"The first {_MOST_FAILURES} archs all failed in the same way: {reason}")

    def _how_it_goes(self) -> str:
        """Describe the progress: the best score; for a combined score, which depends on the set, the best arch."""
        up = self._choice.higher_is_better(self._rank_by)
        best = "" if self._best is None else f"best {self._best if up else -self._best:.6g}, "
        if self._rank_by in self._choice.recipes and (leader := self._population.best) is not None:
            best = f"best {leader if len(leader) <= _LONGEST_NAME else leader[: _LONGEST_NAME - 1] + '…'}, "
        rate = self._num_scored / max(self._seconds["seconds"], 1e-9)
        return f"{best}{self._num_rejected:,} rejected, {rate:.1f} trials/s"

    def result(self) -> SearchResult:
        """Rank all archs that were scored, as one set."""
        self._look()
        finished = sorted(self._trials.finished, key=lambda trial: trial.number)
        cards = [trial.card for trial in finished]
        scores = scores_of(cards, self._choice, self._rank_by)
        on_front = self._on_front(cards, scores)
        up = self._choice.higher_is_better(self._rank_by)
        rows: list[Row] = []
        for idx, (trial, score, rank) in enumerate(zip(finished, scores, ranks_of(scores), strict=True)):
            shown = None if score is None else score if up else -score
            error = trial.card.error or trial.card.untrainable
            if score is None and error is None:
                error = _first_error(trial.card)
            arch = self._search.space.parse(trial.arch)
            rows.append(
                {
                    "trial": idx,
                    "rank": rank,
                    "arch": trial.arch,
                    "score": shown,
                    **{proxy.name: trial.card.scores[proxy.name].value for proxy in self._choice.proxies},
                    **{f"{_COST}{name}": cost for name, cost in self._costs.of(arch).items()},
                    "on_front": idx in on_front,
                    "error": error,
                    "seconds": trial.card.seconds,
                }
            )
        agreement = _agreement_with_costs(rows, scores)
        return SearchResult(tuple(rows), as_provenance({**self._provenance(cards), "kendall_with": agreement}))

    def _on_front(self, cards: Sequence[ScoreCard], scores: Sequence[float | None]) -> set[int]:
        """Return the indices of the cards that no other dominates."""
        points = {}
        for idx, (card, score) in enumerate(zip(cards, scores, strict=True)):
            low = self._kept_low(card)
            if score is not None and low is not None:
                points[idx] = (score, *(-cost for cost in low))
        places = list(points)
        return {places[position] for position in first_front(list(points.values()))}

    def _jobs(self) -> Iterator[Job]:
        """Propose archs, one whenever the executor can take it, so that a proposal uses all scores so far."""
        while True:
            with self._counted():
                claimed = self._next()
            if claimed is None:
                return
            number, arch = claimed
            self._claimed[str(arch)] = number
            yield Job(self._offer(arch))

    def _next(self) -> tuple[int, Any] | None:
        """Claim an arch that is new and within the budget; None if there are enough trials or none is found."""
        num_proposals = num_rejected = 0
        reason: str | None = None
        while num_proposals < _MOST_PROPOSALS:
            self._look()
            num_counted = self._trials.num_counted
            if num_counted >= min(self._search.num_trials, self._search.space.size):
                self._exhausted = num_counted < self._search.num_trials
                return None
            for number, arch in islice(self._proposals(), _MOST_PROPOSALS - num_proposals):
                num_proposals += 1
                reason = "known" if self._trials.knows(str(arch)) else self._costs.excess(arch)
                num_rejected += reason not in (None, "known")
                if reason is None:
                    claimed = self._trials.claim(str(arch), num_rejected, self._search.num_trials, number)
                    if claimed is not None:
                        return claimed, arch
                    break
                if number is not None:
                    self._trials.discard(number, reason)
        self._exhausted = True
        self._num_rejected += num_rejected
        if num_rejected == num_proposals and not self._trials.num_counted:
            raise BudgetError(self._hopeless(reason))
        return None

    def _proposals(self) -> Iterator[tuple[int | None, Any]]:
        """Propose archs until one is taken; Optuna proposes a single arch per trial, and begins the trial before."""
        space = self._search.space
        if self._is_optunas:
            asked = self._trials.ask(space.suggest)
            if asked is not None:
                yield asked
            return
        # Trials without a result do not count, so that a kill does not shift the random draws.
        rng = random.Random(f"{self._search.seed}/{self._trials.num_counted}")
        num_known = 0
        while True:
            if self._evolution is None:
                arch = space.sample(rng)
            else:
                arch = self._evolution.propose(space, self._population, rng, min(num_known // _PATIENCE, _FARTHEST))
            num_known += self._trials.knows(str(arch))
            yield None, arch

    def _hopeless(self, excess: str | None) -> str:
        start = self._evolution.start if self._evolution else None
        begin = ""
        if start is not None:
            costs = self._costs.of(self._search.space.parse(start))
            begin = " The start arch has " + ", ".join(f"{cost:,} {name}" for name, cost in costs.items()) + "."
        return (
            f"{_MOST_PROPOSALS:,} proposals in a row were over the budget; the last one: {excess}.{begin} Raise the "
            "budget, or start from a smaller arch: `Evolution(start=...)`."
        )

    def _look(self) -> None:
        self._take_in(self._trials.update())

    def _take_in(self, news: Sequence[Finished]) -> None:
        for trial in news:
            self._num_rejected += trial.num_rejected
            score = None if self._rank_by in self._choice.recipes else self._choice.directed(trial.card, self._rank_by)
            if score is not None:
                self._best = score if self._best is None else max(self._best, score)
            if self._evolution is not None and (low := self._kept_low(trial.card)) is not None:
                self._population.add(Member(trial.arch, trial.card, low))

    def _kept_low(self, card: ScoreCard) -> tuple[float, ...] | None:
        """Return the costs to keep low; None if a latency could not be measured."""
        if not self._search.against:
            return ()
        costs: dict[str, float | None] = {**self._costs.of(self._search.space.parse(card.name))}
        if _LATENCY in self._search.against:
            costs[_LATENCY] = card.scores["latency"].value
        low = tuple(cost for name in self._search.against if (cost := costs[name]) is not None)
        return low if len(low) == len(self._search.against) else None

    def _values(self, card: ScoreCard) -> list[float | None]:
        """List the numbers for Optuna."""
        values = [card.scores[name].value for name in self._search._objectives(self._choice)]
        low = self._kept_low(card)
        return [*values, *([None] if low is None else low)]

    def _provenance(self, cards: Sequence[ScoreCard]) -> dict[str, Any]:
        recipe = self._choice.recipes.get(self._rank_by)
        return {
            **self._settings,
            "higher_is_better": self._choice.higher_is_better(self._rank_by),
            "recipes": {self._rank_by: told(used_among(cards, recipe), recipe, cards)} if recipe else {},
            "study": self._trials.study.study_name,
            "num_trials": self._search.num_trials,
            "num_rejected": self._num_rejected,
            "num_elsewhere": self._trials.num_elsewhere,
            "exhausted": self._exhausted,
            "broke_off": self._broke_off,
            **self._seconds,
            "versions": {**versions(), "optuna": imported_optuna().__version__},
        }


@dataclass(frozen=True)
class _Building:
    """The ``build`` of an arch's candidate."""

    space: SearchSpace[Any]
    arch: Any
    num_classes: int
    in_channels: int
    wrap: Callable[[nn.Module], nn.Module] | None

    def __call__(self) -> nn.Module:
        network = self.space.build(self.arch, self.num_classes, self.in_channels)
        return network if self.wrap is None else self.wrap(network)


def _first_error(card: ScoreCard) -> str | None:
    return next((score.error for score in card.scores.values() if score.error), None)


def _agreement_with_costs(rows: Sequence[Row], scores: Sequence[float | None]) -> dict[str, float | None]:
    """Compare the order by score with that by each cost of the archs; Kendall's tau, None where it is not defined."""
    costs = [key for key in rows[0] if key.startswith(_COST)] if rows else []
    return {key.removeprefix(_COST): kendall_where_both(scores, [row[key] for row in rows]) for key in costs}


def _image_shape(batches: Sequence[Batch]) -> tuple[int, int]:
    """Return the number of channels and the side of the images, which are square."""
    for tensor in tensors_of(batches[0]):
        if tensor.ndim == 4 and tensor.shape[2] == tensor.shape[3]:
            return tensor.shape[1], tensor.shape[2]
    raise ValueError(
        f"Invalid batch with tensors of shape {[list(tensor.shape) for tensor in tensors_of(batches[0])]}: expected "
        "square images `[N, C, H, H]`, because the spaces contain networks for images."
    )
