"""A run ranks all archs that were scored as one set, and says why it ended early."""

import logging
import statistics
from typing import Any

import pytest
from scipy.stats import rankdata

from lightning_zico import (
    Budget,
    Evolution,
    ZeroShotSearch,
)
from lightning_zico.search import run
from lightning_zico.search.run import BudgetError, SearchError
from lightning_zico.spaces import PlainNet
from lightning_zico.spaces.plainnet import START
from tests.search.searching import ByRule, searched
from tests.search.spaces import Bits, batches


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
    executor = ByRule(params=lambda arch: None if arch.startswith("0") else float(arch.count("1")))
    result = searched(executor=executor, num_trials=64)
    assert len(executor.asked) == 64
    assert set(result.errors) == {arch for arch in executor.asked if arch.startswith("0")}
    assert set(result.errors.values()) == {"it does not like it"}
    assert result.best == "111111"


@pytest.mark.parametrize(("proxy", "best"), [("params", max), ("latency", min)])
def test_the_best_is_best_in_the_direction_of_the_proxy(proxy: str, best: Any) -> None:
    rule = {proxy: lambda arch: float(int(arch, 2) * 37 % 64)}
    executor = ByRule(**rule)
    result = searched(proxies=proxy, executor=executor)
    assert result.best == best(executor.asked, key=rule[proxy])
    assert [row["score"] for row in result.ranked] == sorted(map(rule[proxy], executor.asked), reverse=best is max)


def test_a_recipe_ranks_all_archs_of_the_history_as_one_set() -> None:
    rules = {"macs": lambda arch: float(arch.count("1")), "naswot": lambda arch: float(int(arch, 2) * 37 % 64)}
    executor = ByRule(**rules, params=lambda arch: 0.0)  # of the fallback, which no one needs
    result = searched(proxies="without_blocks", executor=executor, num_trials=30)
    assert [row["arch"] for row in result.history] == executor.asked
    ranks = [rankdata([rule(arch) for arch in executor.asked]) for rule in rules.values()]
    products = [a * b for a, b in zip(*ranks, strict=True)]
    places = len(products) + 1 - rankdata(products, method="max")
    assert [row["rank"] for row in result.history] == places.tolist()


def test_the_front_is_what_no_other_arch_beats() -> None:
    executor = ByRule(params=lambda arch: float(int(arch, 2) * 37 % 64))
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


def test_a_search_in_which_everything_fails_in_one_way_stops_with_the_reason() -> None:
    search = ZeroShotSearch(Bits(), proxies="params", executor=ByRule(params=lambda _: None), num_classes=3)
    with pytest.raises(SearchError, match="The first 20 archs all failed in the same way: it does not like it"):
        search.run(batches())
    assert len(search.result_) == 20
    assert search.result_.notes[-1] == "Most frequent reason for a missing score (20 of 20): it does not like it"


def test_a_search_goes_on_where_some_archs_fail_and_counts_them(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "lightning_zico")
    executor = ByRule(params=lambda arch: 1.0 if arch.startswith("1") else None)
    result = searched(executor=executor, sampler="random", num_trials=40)
    assert len(result) == 40
    assert f"0 rejected, {len(result.errors)} failed, " in caplog.messages[-1]


def test_the_time_beside_scoring_is_recorded() -> None:
    told = searched().provenance
    assert 0 < told["seconds_searching"] < told["seconds"]
