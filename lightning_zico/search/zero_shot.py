"""Search a space for the archs with the best zero-shot scores within a budget."""

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from lightning_zico.bridge import TrainerSettings, TrainingData, pick_data
from lightning_zico.budget import Budget
from lightning_zico.candidates import Candidate
from lightning_zico.proxies import Proxies
from lightning_zico.results import SearchResult
from lightning_zico.scoring.arguments import (
    check_budget,
    check_is_trainer,
    missing_attribute,
    names_data_as_trainer,
    whole_number,
)
from lightning_zico.scoring.choice import Choice
from lightning_zico.scoring.settings import ScoringSettings
from lightning_zico.search.costs import LATENCY, check_costs
from lightning_zico.search.proposals import Offer, Proposer
from lightning_zico.search.run import SearchRun
from lightning_zico.search.study import Study
from lightning_zico.spaces import SearchSpace, get_space

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from lightning_zico.search.proposals import SamplerLike
    from lightning_zico.search.trials import StorageLike


@dataclass(repr=False, eq=False)
class ZeroShotSearch(ScoringSettings):
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
            it. None to score the network itself; without ``loss_fn`` and ``step``, the loss is then the cross-entropy.
        trainer: Trainer for the networks, which ``wrap`` turns into LightningModules. It is only read: a
            ``training_step`` sees its settings, and its precision is used as by `ZeroShotSelector`.

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
        >>> len(result)
        4
    """

    space: SearchSpace[Any] | str
    budget: Budget | None = None
    proxies: Proxies = "default"
    _: KW_ONLY
    against: Sequence[str] = ()
    num_trials: int = 1000
    sampler: "SamplerLike" = "evolution"
    storage: "StorageLike | None" = None
    name: str | None = None
    resolution: int | None = None
    num_classes: int = 10
    wrap: Callable[[nn.Module], nn.Module] | None = None
    trainer: "Trainer | None" = None
    result_: SearchResult = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_is_trainer(self.trainer)
        check_budget(self.budget)
        self.space = get_space(self.space) if isinstance(self.space, str) else self.space
        self.against = (self.against,) if isinstance(self.against, str) else tuple(self.against)
        self.num_trials = whole_number("num_trials", self.num_trials, 1)
        self.resolution = None if self.resolution is None else whole_number("resolution", self.resolution, 1)
        self.num_classes = whole_number("num_classes", self.num_classes, 1)
        check_costs(self.against)
        self._proposer()
        self._choice()

    def __getattr__(self, name: str) -> Any:
        raise missing_attribute(self, name, ("result_",), "`run`")

    @names_data_as_trainer
    def run(self, train_dataloaders: Any = None, datamodule: Any = None) -> SearchResult:
        """Search until there are ``num_trials`` trials.

        Args:
            train_dataloaders: A DataLoader, an iterable of batches, or a LightningDataModule, with batches of images
                ``[N, C, H, W]`` and labels. All archs are scored on its first ``num_batches`` batches.
            datamodule: A LightningDataModule, instead of ``train_dataloaders``.

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
        given = pick_data(train_dataloaders, datamodule, pairs=self.loss_fn is not None or self._needs_loss)
        choice, proposer = self._choice(), self._proposer()
        with TrainingData(given, TrainerSettings.of(self.trainer)) as data:
            budget = self.budget.without_arch_costs() if self.budget else None
            loss_fn = nn.functional.cross_entropy if self._needs_loss else self.loss_fn
            readings = self.readings(data, choice.proxies)
            (scorer,) = self.scorers(readings, choice.proxies, data=data, loss_fn=loss_fn, budget=budget)
            study = Study.of(
                self._space,
                choice,
                scorer,
                proposer,
                budget=self.budget,
                against=self.against,
                resolution=self.resolution,
                num_classes=self.num_classes,
                wrap=self.wrap,
                is_stored=self.storage is not None,
            )
            with study.trials(self.storage, self.name) as trials:
                run = SearchRun(
                    self._space,
                    choice,
                    scorer,
                    trials,
                    study.costs,
                    proposer,
                    self._offer(study.settings["in_channels"]),
                    executor=self._executor,
                    num_trials=self.num_trials,
                    against=self.against,
                    progress=self._progress("Searching"),
                )
                try:
                    run.score_all()
                finally:
                    sizes = {"batch_size": self.batch_size, "num_larger_batches": scorer.reading.num_whole}
                    self.result_ = run.result({**study.settings, **sizes})
        return self.result_

    def candidates(self, result: SearchResult, k: int) -> list[Candidate]:
        """Return the best archs of a search as candidates for a `ZeroShotSelector`, for finals and training.

        Args:
            result: Result of this search.
            k: Number of candidates, best first; fewer if fewer archs have a score.

        Returns:
            Candidates named by their archs' strings, with fresh weights when built.
        """
        offer = self._offer(result.provenance["in_channels"])
        return [offer(self._space.parse(row["arch"])) for row in result.ranked[:k]]

    @property
    def _space(self) -> SearchSpace[Any]:
        return get_space(self.space) if isinstance(self.space, str) else self.space

    @property
    def _needs_loss(self) -> bool:
        return self.loss_fn is None and self.step is None and self.wrap is None

    def _proposer(self) -> Proposer:
        return Proposer(self._space, self.sampler, self.seed)

    def _offer(self, in_channels: int) -> Offer:
        return Offer(self._space, self.num_classes, in_channels, self.wrap, self.seed)

    def _choice(self) -> Choice:
        given = self.proxies
        if LATENCY in self.against:
            given = [*([given] if isinstance(given, str) or not isinstance(given, Sequence) else given), "latency"]
        return Choice.of(given, self.rank_by)
