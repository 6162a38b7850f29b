"""A search keeps to its budget, scores nothing twice, repeats itself, and finds more than chance."""

import statistics
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lightning_zico import (
    Budget,
    Evolution,
    ProcessExecutor,
    SearchResult,
    ZeroShotSearch,
    ZeroShotSelector,
)
from lightning_zico.errors import UnknownNameError
from lightning_zico.spaces import PlainNet
from lightning_zico.spaces.plainnet import START
from tests.modules import Classifier
from tests.search.searching import SMALL, ByRule, searched, searched_nas_bench, size_of, without_seconds
from tests.search.spaces import Bits, batches


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
    executor = ByRule(params=lambda arch: float(arch.count("1")))
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
    executor = ByRule(params=lambda text: float(len(text)))
    arguments = {"budget": Budget(depth=8), "resolution": 224, "executor": executor}
    searched("plainnet", sampler=Evolution(start=str(START)), **arguments)
    depths = [2 + sum(block.repeats for block in PlainNet().parse(text).blocks) for text in executor.asked]
    assert max(depths) <= 8
    assert len(depths) == 20


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
        front = searched_nas_bench(score, sampler, seed, against="macs").front
        corners = sorted((row["cost_macs"], row["score"] + 6) for row in front)
        ends = [*(macs for macs, _ in corners[1:]), 3e8]
        return sum((end - macs) * score for (macs, score), end in zip(corners, ends, strict=True))

    evolution = Evolution(population_size=30)
    assert statistics.median(area(evolution, s) for s in range(5)) > statistics.median(
        area("random", s) for s in range(5)
    )


def test_evolution_finds_more_than_chance_in_as_many_trials() -> None:
    def best(sampler: Any, seed: int) -> float:
        return searched_nas_bench(size_of, sampler, seed).ranked[0]["score"]

    chance, evolution = ([best(sampler, seed) for seed in range(5)] for sampler in ("random", "evolution"))
    assert statistics.median(evolution) > statistics.median(chance)


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


def test_a_cache_avoids_scoring_and_changes_nothing(tmp_path: Path) -> None:
    first, again = (searched(proxies="zico", cache=tmp_path / "scores.db") for _ in range(2))
    assert first.history == again.history  # seconds too


def test_a_search_goes_on_where_it_was_and_may_have_more_trials(tmp_path: Path) -> None:
    kwargs = {"storage": tmp_path / "trials.db", "executor": ByRule(params=lambda arch: float(arch.count("1")))}
    first = searched(num_trials=8, **kwargs)
    assert searched(num_trials=8, **kwargs).history == first.history
    whole = searched(num_trials=20, **kwargs)
    assert [row["arch"] for row in whole.history][:8] == [row["arch"] for row in first.history]
    assert len(kwargs["executor"].asked) == 20
    assert without_seconds(whole) == without_seconds(searched(num_trials=20, executor=kwargs["executor"]))


def test_an_interrupted_search_keeps_its_trials_and_releases_its_claims(tmp_path: Path) -> None:
    class Broken(ByRule):
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
    search.executor = ByRule(**rule)
    assert without_seconds(search.run(batches())) == without_seconds(searched(executor=ByRule(**rule)))


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
    assert "5 archs scored, 0 without a score" in str(result)


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


def test_numbers_that_mean_nothing_are_refused_at_once() -> None:
    for argument in ("num_trials", "num_classes", "num_batches", "resolution"):
        with pytest.raises(ValueError, match=f"Invalid {argument}=0: expected a whole number of at least 1"):
            ZeroShotSearch(Bits(), **{argument: 0})
    with pytest.raises(TypeError, match=r"Invalid budget={'macs': 3}: expected a `Budget`"):
        ZeroShotSearch(Bits(), {"macs": 3})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Invalid seed='x': expected a whole number"):
        ZeroShotSearch(Bits(), seed="x")  # type: ignore[arg-type]


def test_optunas_verbosity_stays_and_its_absence_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    optuna.logging.set_verbosity(optuna.logging.DEBUG)
    searched(num_trials=2)
    assert optuna.logging.get_verbosity() == optuna.logging.DEBUG
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install .*\[search\]'"):
        ZeroShotSearch(Bits())
