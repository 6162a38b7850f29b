"""A search keeps to its budget, scores nothing twice, repeats itself, and finds more than chance."""

import statistics
import sys
import threading
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import LightningModule, Trainer
from scipy.stats import rankdata
from torch import Tensor, nn

from lightning_zico import (
    Budget,
    Evolution,
    ProcessExecutor,
    Score,
    ScoreCard,
    SearchResult,
    ZeroShotSearch,
    ZeroShotSelector,
)
from lightning_zico.errors import UnknownNameError
from lightning_zico.scoring.executors.base import Job
from lightning_zico.scoring.scorer import Scorer
from lightning_zico.search import run
from lightning_zico.search.run import BudgetError, SearchError
from lightning_zico.search.trials import SettingsError
from lightning_zico.spaces import NASBench201, PlainNet
from lightning_zico.spaces.plainnet import START
from tests.modules import Classifier
from tests.search.spaces import Bits, batches

CONFIGS = sorted((Path(__file__).parents[2] / "examples" / "configs").glob("search_*.yaml"))
SMALL = Evolution(population_size=8, tournament_size=3, num_initial=4)


class Told:
    """An executor that scores by a rule, builds nothing, and remembers what it was asked for."""

    def __init__(self, **rules: Any) -> None:
        self.rules = rules
        self.asked: list[str] = []

    def run(self, scorers: Sequence[Scorer], jobs: Iterable[Job]) -> Generator[tuple[Job, ScoreCard], None, None]:
        for job in jobs:
            name = job.candidate.name
            self.asked.append(name)
            values = {proxy: self.rules[proxy](name) for proxy in scorers[0].names}
            scores = {p: Score(p, v, None if v is not None else "it does not like it") for p, v in values.items()}
            yield job, ScoreCard(name, scores)


def searched(space: Any = None, **kwargs: Any) -> SearchResult:
    given = {"num_trials": 20, "sampler": SMALL, "num_classes": 3, "proxies": "params"} | kwargs
    return ZeroShotSearch(space or Bits(), **given).run(batches())


def told_on_nas_bench(score: Any, sampler: Any, seed: int, **kwargs: Any) -> SearchResult:
    """Search NAS-Bench-201 for 150 trials, for images of 32 x 32."""
    executor = Told(params=score)
    return searched(
        "nas_bench_201", resolution=32, num_trials=150, executor=executor, sampler=sampler, seed=seed, **kwargs
    )


def without_seconds(result: SearchResult) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in result.history]


def size_of(text: str) -> float:
    return float(NASBench201().params(NASBench201().parse(text)))


@pytest.mark.parametrize("proxies", ["zico", "size", "default"])
@pytest.mark.parametrize("sampler", [SMALL, "random"])
def test_the_same_seed_makes_the_same_history_and_another_another(proxies: Any, sampler: Any) -> None:
    first, again = (without_seconds(searched(proxies=proxies, sampler=sampler)) for _ in range(2))
    assert first == again
    other = searched(proxies=proxies, sampler=sampler, seed=1)
    assert [row["arch"] for row in other] != [row["arch"] for row in first]


@settings(max_examples=6)
@given(limit=st.integers(100, 330), seed=st.integers(0, 3), sampler=st.sampled_from([SMALL, "random"]))
def test_nothing_over_the_budget_is_scored_and_nothing_twice(limit: int, seed: int, sampler: Any) -> None:
    executor = Told(params=lambda arch: float(arch.count("1")))
    kwargs = {"sampler": sampler, "seed": seed, "executor": executor}
    result = searched(budget=Budget(params=limit), num_trials=64, **kwargs)
    within = {
        a for a in (format(n, "06b") for n in range(64)) if Bits().params(a, num_classes=3, in_channels=2) <= limit
    }
    assert len(executor.asked) == len(set(executor.asked))
    # As there are enough trials for all of the space, all that is within the budget is found.
    assert set(executor.asked) == within
    assert [row["arch"] for row in result.history] == executor.asked
    assert result.provenance["exhausted"] == (len(within) < 64)


def test_depth_is_limited_as_the_space_counts_it() -> None:
    executor = Told(params=lambda text: float(len(text)))
    arguments = {"budget": Budget(depth=8), "resolution": 224, "executor": executor}
    searched("plainnet", sampler=Evolution(start=str(START)), **arguments)
    depths = [2 + sum(block.repeats for block in PlainNet().parse(text).blocks) for text in executor.asked]
    assert max(depths) <= 8
    assert len(depths) == 20


def test_a_budget_that_rejects_everything_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_MOST_PROPOSALS", 300)
    macs = PlainNet().macs(START, 224, num_classes=1000, in_channels=2)
    told = rf"300 proposals in a row were over the budget.*start arch has.*{macs:,} macs.*Raise the budget"
    with pytest.raises(BudgetError, match=told):
        searched(
            "plainnet",
            budget=Budget(macs=1e5),
            sampler=Evolution(start=str(START)),
            resolution=224,
            num_classes=1000,
        )


def test_a_limit_that_is_measured_is_a_trial_with_an_error() -> None:
    result = searched(budget=Budget(memory_bytes=3200), num_trials=40)
    assert 0 < len(result.errors) < 40
    assert all(error.startswith("over budget: ") and "memory_bytes" in error for error in result.errors.values())
    # The larger ones.
    params = {True: [], False: []}
    for row in result:
        params[row["arch"] in result.errors].append(row["cost_params"])
    assert statistics.mean(params[True]) > statistics.mean(params[False])
    assert len(searched(budget=Budget(latency_s=1e-9)).errors) == 20


def test_what_failed_is_a_row_and_no_parent_and_is_not_scored_again() -> None:
    executor = Told(params=lambda arch: None if arch.startswith("0") else float(arch.count("1")))
    result = searched(executor=executor, num_trials=64)
    assert len(executor.asked) == 64
    assert set(result.errors) == {arch for arch in executor.asked if arch.startswith("0")}
    assert set(result.errors.values()) == {"it does not like it"}
    assert result.best == "111111"


@pytest.mark.parametrize(("proxy", "best"), [("params", max), ("latency", min)])
def test_the_best_is_best_in_the_direction_of_the_proxy(proxy: str, best: Any) -> None:
    rule = {proxy: lambda arch: float(int(arch, 2) * 37 % 64)}
    executor = Told(**rule)
    result = searched(proxies=proxy, executor=executor)
    assert result.best == best(executor.asked, key=rule[proxy])
    assert [row["score"] for row in result.ranked] == sorted(map(rule[proxy], executor.asked), reverse=best is max)


def test_a_recipe_ranks_all_archs_of_the_history_as_one_set() -> None:
    rules = {"macs": lambda arch: float(arch.count("1")), "naswot": lambda arch: float(int(arch, 2) * 37 % 64)}
    executor = Told(**rules, params=lambda arch: 0.0)  # of the fallback, which no one needs
    result = searched(proxies="without_blocks", executor=executor, num_trials=30)
    assert [row["arch"] for row in result.history] == executor.asked
    ranks = [rankdata([rule(arch) for arch in executor.asked]) for rule in rules.values()]
    products = [a * b for a, b in zip(*ranks, strict=True)]
    places = len(products) + 1 - rankdata(products, method="max")
    assert [row["rank"] for row in result.history] == places.tolist()


def test_the_front_is_what_no_other_arch_beats() -> None:
    executor = Told(params=lambda arch: float(int(arch, 2) * 37 % 64))
    result = searched(executor=executor, against="macs", num_trials=40)
    rows = list(result)

    def beaten(row: Any) -> bool:
        return any(
            o["score"] >= row["score"] and o["cost_macs"] <= row["cost_macs"] and
            (o["score"] > row["score"] or o["cost_macs"] < row["cost_macs"])
            for o in rows
        )  # fmt: skip

    assert {row["arch"] for row in result.front} == {row["arch"] for row in rows if not beaten(row)}
    assert 1 < len(result.front) < 40
    assert result.front[0]["arch"] == result.best


def test_latency_can_be_kept_low() -> None:
    result = searched(against=["latency_s"], num_trials=8)
    fastest = min(result, key=lambda row: row["latency"])
    assert fastest["on_front"]
    assert all(row["latency"] > 0 for row in result)


def test_against_a_cost_a_front_is_found_that_chance_does_not_find() -> None:
    """Measured by the area that the fronts dominate, which needs no weighing of score and cost."""

    def score(text: str) -> float:
        return float(text.count("nor_conv_1x1") - text.count("avg_pool"))

    def area(sampler: Any, seed: int) -> float:
        front = told_on_nas_bench(score, sampler, seed, against="macs").front
        corners = sorted((row["cost_macs"], row["score"] + 6) for row in front)
        ends = [*(macs for macs, _ in corners[1:]), 3e8]
        return sum((end - macs) * score for (macs, score), end in zip(corners, ends, strict=True))

    evolution = Evolution(population_size=30)
    assert statistics.median(area(evolution, s) for s in range(5)) > statistics.median(
        area("random", s) for s in range(5)
    )


def test_evolution_finds_more_than_chance_in_as_many_trials() -> None:
    def best(sampler: Any, seed: int) -> float:
        return told_on_nas_bench(size_of, sampler, seed).ranked[0]["score"]

    chance, evolution = ([best(sampler, seed) for seed in range(5)] for sampler in ("random", "evolution"))
    assert statistics.median(evolution) > statistics.median(chance)


@pytest.mark.parametrize("sampler", [optuna.samplers.TPESampler, optuna.samplers.NSGAIISampler])
def test_a_sampler_of_optuna_proposes(sampler: Any) -> None:
    executor = Told(params=lambda arch: float(arch.count("1")))
    result = searched(
        sampler=sampler(seed=0), executor=executor, budget=Budget(params=170), against="macs", num_trials=15
    )
    assert len(executor.asked) == len(set(executor.asked)) == len(result) == 15
    assert max(row["cost_params"] for row in result) <= 170
    assert result.provenance["num_rejected"] > 0


@pytest.mark.usefixtures("_forked_workers")
def test_worker_processes_give_the_same_scores_and_nothing_twice() -> None:
    here = {row["arch"]: row["score"] for row in searched(proxies="zico", num_trials=64)}
    result = searched(proxies="zico", num_trials=10, executor=ProcessExecutor(num_workers=2))
    assert len({row["arch"] for row in result}) == 10
    assert all(row["score"] == here[row["arch"]] for row in result)


def test_a_search_in_another_precision_is_another_search_with_that_selectors_scores() -> None:
    plain, low = (searched(proxies="zico", num_trials=4, precision=precision) for precision in (None, "bf16-mixed"))
    assert low.provenance["precision"] == "bf16-mixed"
    archs = {row["arch"]: row["score"] for row in low.history}
    search = ZeroShotSearch(Bits(), sampler=SMALL, num_classes=3, proxies="zico", num_trials=4, precision="bf16-mixed")
    board = ZeroShotSelector(proxies="zico", precision="bf16-mixed", loss_fn=nn.functional.cross_entropy).rank(
        search.candidates(low, 4), batches()
    )
    assert {row["name"]: row["score"] for row in board} == archs
    same = set(archs) & {row["arch"] for row in plain.history}
    scores = {row["arch"]: row["score"] for row in plain.history}
    assert same
    assert all(scores[arch] != archs[arch] for arch in same)


def test_a_cache_spares_scoring_and_changes_nothing(tmp_path: Path) -> None:
    first, again = (searched(proxies="zico", cache=tmp_path / "scores.db") for _ in range(2))
    assert first.history == again.history  # seconds too


def test_a_search_goes_on_where_it_was_and_may_have_more_trials(tmp_path: Path) -> None:
    kwargs = {"storage": tmp_path / "trials.db", "executor": Told(params=lambda arch: float(arch.count("1")))}
    first = searched(num_trials=8, **kwargs)
    assert searched(num_trials=8, **kwargs).history == first.history
    whole = searched(num_trials=20, **kwargs)
    assert [row["arch"] for row in whole][:8] == [row["arch"] for row in first]
    assert len(kwargs["executor"].asked) == 20
    assert without_seconds(whole) == without_seconds(searched(num_trials=20, executor=kwargs["executor"]))


def test_other_settings_are_another_study_and_a_name_is_held_to_its_settings(tmp_path: Path) -> None:
    kwargs = {"storage": tmp_path / "trials.db", "num_trials": 3}
    assert searched(**kwargs).provenance["study"] != searched(**kwargs, seed=1).provenance["study"]
    searched(**kwargs, name="mine")
    searched(**kwargs | {"num_trials": 4}, name="mine")
    with pytest.raises(SettingsError, match=r"'mine' was begun with other settings: budget None \(now .*num_classes 3"):
        searched(**kwargs | {"num_classes": 5}, name="mine", budget=Budget(params=1000))


def test_what_broke_off_is_kept_and_its_claim_let_go(tmp_path: Path) -> None:
    class Broken(Told):
        def run(self, scorers: Any, jobs: Any) -> Any:
            for number, done in enumerate(super().run(scorers, jobs)):
                if number == 5:
                    raise KeyboardInterrupt
                yield done

    rule = {"params": lambda arch: float(arch.count("1"))}
    arguments = {"proxies": "params", "num_trials": 20, "sampler": SMALL, "num_classes": 3}
    search = ZeroShotSearch(Bits(), storage=tmp_path / "trials.db", executor=Broken(**rule), **arguments)
    with pytest.raises(KeyboardInterrupt):
        search.run(batches())
    assert len(search.result_) == 5
    assert search.result_.provenance["broke_off"]
    search.executor = Told(**rule)
    assert without_seconds(search.run(batches())) == without_seconds(searched(executor=Told(**rule)))


class Wrapped(LightningModule):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    training_step = Classifier.training_step
    configure_optimizers = Classifier.configure_optimizers

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)


class Scheduled(Wrapped):
    """A network whose loss depends on the trainer."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        assert self.trainer.max_epochs is not None
        return super().training_step(batch, batch_idx) * self.trainer.max_epochs


def test_networks_see_the_trainer_and_samples_are_counted_as_stated(tmp_path: Path) -> None:
    def found(**kwargs: Any) -> SearchResult:
        return searched(wrap=Scheduled, proxies=["grad_norm", "macs"], num_trials=2, **kwargs)

    alone, stated = found(), found(trainer=Trainer(max_epochs=7, logger=False), num_samples=2)
    for row, other in zip(alone.ranked, stated.ranked, strict=True):
        assert row["arch"] == other["arch"]
        assert other["grad_norm"] == pytest.approx(row["grad_norm"] * 7 / 1000)
        assert other["macs"] == row["macs"] * len(batches()[0][1]) / 2
    assert alone.provenance["study"] != stated.provenance["study"]
    with pytest.raises(ValueError, match="Invalid num_samples="):
        found(num_samples=0)
    with pytest.raises(ValueError, match="Invalid trainer="):
        found(trainer="gpu")


def test_the_best_go_on_to_a_selector_that_trains_the_winner() -> None:
    arguments = {"proxies": ["balanced", "zico"], "num_trials": 10, "num_classes": 3, "sampler": SMALL}
    search = ZeroShotSearch(Bits(), wrap=Wrapped, **arguments)
    result = search.run(batches())
    offered = search.candidates(result, 3)
    assert [candidate.name for candidate in offered] == [row["arch"] for row in result.ranked[:3]]
    assert offered[0].blocks is not None
    modules = dict(offered[0].build().named_modules())
    assert all(isinstance(modules[name], nn.Linear) for name in offered[0].blocks)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(max_epochs=1, accelerator="cpu", enable_checkpointing=False, **quiet)
    selector = ZeroShotSelector(trainer=trainer, proxies="params").fit(offered, batches())
    assert isinstance(selector.best_model_, Wrapped)
    assert trainer.global_step == 2


def test_a_result_is_plain_data(tmp_path: Path) -> None:
    result = searched(proxies="size", num_trials=5)
    assert SearchResult.from_json(result.to_json()) == result
    result.to_json(tmp_path / "result.json")
    assert SearchResult.from_json(tmp_path / "result.json") == result
    lines = result.to_csv().splitlines()
    assert len(lines) == 6
    assert lines[0].startswith("trial,rank,arch,score,params,macs,")
    assert "5 archs scored, 0 of them without a score" in str(result)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"num_trials": 0}, ValueError, "num_trials"),
        ({"sampler": "best"}, ValueError, "sampler"),
        ({"against": "flops"}, UnknownNameError, "against"),
        ({"rank_by": "zico"}, UnknownNameError, "rank_by"),
        ({"sampler": Evolution(start="12")}, ValueError, "six bits"),
        ({"timeout_s": 3}, ValueError, "timeout_s"),
    ],
)
def test_a_wrong_call_is_an_error_at_construction(kwargs: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ZeroShotSearch(Bits(), proxies="params", **kwargs)
    with pytest.raises(ValueError, match="population_size"):
        Evolution(population_size=0)


def test_batches_without_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected square images"):
        ZeroShotSearch(Bits(), proxies="params").run([(t.flatten(1), y) for t, y in batches()])


@pytest.mark.parametrize("budget", [None, Budget(params=1e6), Budget(macs=1e9)])
def test_a_resolution_that_networks_cannot_take_is_refused_before_anything_is_scored(
    budget: Budget | None, tmp_path: Path
) -> None:
    executor = Told(params=lambda _: 1.0)
    study = {"budget": budget, "executor": executor, "storage": tmp_path / "trials.db", "name": "mine"}
    with pytest.raises(
        ValueError, match=r"Invalid resolution=5: expected at least 32, .*pass `resolution` \(--resolution"
    ):
        searched("plainnet", **study)
    assert executor.asked == []
    assert len(searched("plainnet", **study, resolution=32, num_trials=2)) == 2  # the name is still to be had


def test_numbers_that_mean_nothing_are_refused_at_once() -> None:
    for argument in ("num_trials", "num_classes", "num_batches", "resolution"):
        with pytest.raises(ValueError, match=f"Invalid {argument}=0: expected a whole number of at least 1"):
            ZeroShotSearch(Bits(), **{argument: 0})
    with pytest.raises(TypeError, match=r"Invalid budget={'macs': 3}: expected a `Budget`"):
        ZeroShotSearch(Bits(), {"macs": 3})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Invalid seed='x': expected a whole number"):
        ZeroShotSearch(Bits(), seed="x")  # type: ignore[arg-type]


def test_a_search_in_which_everything_fails_in_one_way_stops_and_says_why() -> None:
    search = ZeroShotSearch(Bits(), proxies="params", executor=Told(params=lambda _: None), num_classes=3)
    with pytest.raises(SearchError, match="The first 20 archs all failed in the same way: it does not like it"):
        search.run(batches())
    assert len(search.result_) == 20
    assert search.result_.notes[-1] == "Most frequent reason for a missing score (20 of 20): it does not like it"


def test_a_search_goes_on_where_some_archs_fail() -> None:
    executor = Told(params=lambda arch: 1.0 if arch.startswith("1") else None)
    assert len(searched(executor=executor, sampler="random", num_trials=40)) == 40


def test_what_the_search_takes_beside_scoring_is_told() -> None:
    told = searched().provenance
    assert 0 < told["seconds_searching"] < told["seconds"]


def test_other_batches_are_another_search_also_where_a_part_cannot_be_compared(tmp_path: Path) -> None:
    lock = threading.Lock()

    def wrap(network: nn.Module) -> nn.Module:
        with lock:
            return network

    search = ZeroShotSearch(
        Bits(), wrap=wrap, loss_fn=nn.functional.cross_entropy, storage=tmp_path / "t.db", num_trials=3, num_classes=3
    )
    for data in (batches(), [(3 * x + 1, y) for x, y in batches()]):
        with pytest.warns(UserWarning, match="`wrap` holds an object that cannot be compared"):
            search.run(data)
    assert len(optuna.get_all_study_names(f"sqlite:///{tmp_path / 't.db'}")) == 2


def test_optunas_verbosity_stays_and_its_absence_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    optuna.logging.set_verbosity(optuna.logging.DEBUG)
    searched(num_trials=2)
    assert optuna.logging.get_verbosity() == optuna.logging.DEBUG
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-zico\[search\]'"):
        ZeroShotSearch(Bits())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_published_searches_are_as_published(path: Path) -> None:
    own = yaml.safe_load(path.read_text())
    assert own.pop("data")["init_args"] | {"root": ""} == {
        "root": "",
        "batch_size": 128,
        "image_size": 224,
        "num_workers": 8,
    }
    millions = int(path.stem.removesuffix("m").rsplit("_", 1)[1])
    budget, evolution = Budget(**own.pop("budget")), Evolution(**own.pop("sampler"))
    assert (budget.macs, budget.depth) == (millions * 1e6, 16 if millions == 1000 else 14)
    assert (evolution.population_size, evolution.tournament_size, evolution.num_mutations) == (512, 1, 2)
    assert evolution.start == str(START)
    assert ZeroShotSearch(budget=budget, sampler=evolution, **own).num_trials == 100_000
    assert len(CONFIGS) == 3


def test_a_mutant_of_the_start_comes_first_and_then_twice_mutated_members() -> None:
    """As published: while there are at most ten members, the start is mutated once."""
    evolution = Evolution(population_size=512, tournament_size=1, num_mutations=2, num_initial=11, start="000000")
    executor = Told(params=lambda arch: float(arch.count("1")))
    searched(sampler=Evolution(**{**vars(evolution), "num_initial": 6}), executor=executor, num_trials=30)
    assert {arch.count("1") for arch in executor.asked[:6]} == {1}
    assert all(arch.count("1") % 2 == 1 for arch in executor.asked[6:10])
