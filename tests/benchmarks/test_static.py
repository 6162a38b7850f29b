"""The contest of static numbers: measures against slow twins, families as wholes, and the rule."""

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from tests.data import data_file

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from static import (
    INCUMBENT,
    Estimate,
    Zoo,
    estimates,
    main,
    pools_of,
    read_zoo,
    regret,
    resampled,
    tau,
    weighted_tau,
    winner,
    with_combinations,
)


def zoo(num: int = 30) -> Zoo:
    """Make a zoo whose accuracy follows ``macs`` and has nothing to do with ``params``."""
    rng = np.random.default_rng(0)
    macs = rng.permutation(np.arange(num, dtype=float))
    params, size = rng.permutation(macs), rng.choice([224.0, 256.0], num)
    families = np.array([f"family {idx // 3}" for idx in range(num)])
    return Zoo(2 * macs, families, params, {"params": params, "macs": macs, "input_size": size})


def test_the_table_has_what_the_contest_compares() -> None:
    read = with_combinations(read_zoo(data_file("timm_imagenet.csv")))
    assert len(read.top1) == 296
    assert list(read.contestants) == ["params", "macs", "input_size", "macs+input_size", "params+macs"]
    assert read.contestants["input_size"].max() <= 256
    ranks = stats.rankdata(read.contestants["macs"]) + stats.rankdata(read.contestants["params"])
    assert np.array_equal(read.contestants["params+macs"], ranks)


def test_the_regret_is_the_mean_over_pools_and_ties() -> None:
    top1 = np.array([70.0, 80.0, 75.0, 60.0])
    pools = np.array([[0, 1, 2], [1, 2, 3]])
    assert regret(top1, top1, pools) == 0
    assert regret(-top1, top1, pools) == pytest.approx(((80 - 70) + (80 - 60)) / 2)
    assert regret(np.array([1.0, 1.0, 0.0, 0.0]), top1, pools) == pytest.approx((80 - 75) / 2)


def test_pools_have_distinct_members() -> None:
    pools = pools_of(25, 0)
    assert all(len(set(pool)) == 20 for pool in pools.tolist())
    assert pools_of(5, 0).shape[1] == 5


def test_families_are_drawn_as_wholes() -> None:
    families = zoo().families
    counts = np.bincount(resampled(families, np.random.default_rng(1)), minlength=30)
    assert all(len(set(counts[families == name])) == 1 for name in set(families))
    assert len(set(counts)) > 1


def test_estimates_are_those_of_the_whole_table_with_intervals_around_them() -> None:
    figures = estimates(zoo(), {"tau": tau, "weighted tau": weighted_tau}, resamples=50, seed=0)
    assert figures["tau"]["macs"].value == pytest.approx(1)
    assert figures["tau"]["params"].value == pytest.approx(stats.kendalltau(zoo().params, zoo().top1).statistic)
    assert figures["tau minus"]["macs"].value == pytest.approx(1 - figures["tau"]["params"].value)
    assert figures["tau minus"][INCUMBENT] == Estimate(0.0, 0.0, 0.0)
    for each in figures.values():
        assert all(
            estimate.low <= estimate.value + 0.2 and estimate.value - 0.2 <= estimate.high for estimate in each.values()
        )


@pytest.mark.parametrize(
    ("low", "loss", "expected"), [(0.01, 1.0, "macs"), (-0.01, 0.5, "params"), (0.01, 1.1, "params")]
)
def test_the_incumbent_is_replaced_only_by_the_rule(low: float, loss: float, expected: str) -> None:
    def figures(low: float) -> dict[str, dict[str, Estimate]]:
        plain = {"params": Estimate(0.5, 0.4, 0.6), "macs": Estimate(0.6, 0.5, 0.7)}
        return {"tau": plain, "tau minus": {"params": Estimate(0, 0, 0), "macs": Estimate(0.1, low, 0.2)}}

    def losses(loss: float) -> dict[str, Estimate]:
        return {"params": Estimate(1, 0, 2), "macs": Estimate(loss, 0, 2)}

    assert winner([(figures(0.05), losses(0.5)), (figures(low), losses(loss))]) == expected


def test_it_prints_a_table_for_each_budget(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--resamples", "2", "--data", str(data_file("timm_imagenet.csv").parent)])
    printed = capsys.readouterr().out
    assert printed.count("| macs+input_size |") == 3
    assert "Default of zoos by the rule: " in printed
