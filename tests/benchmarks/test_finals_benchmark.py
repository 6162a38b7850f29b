"""The benchmark of finals: orders and losses on made-up pools, the laws, and a small run of it all."""

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from lightning_zico import list_proxies
from lightning_zico.ranking import combine, get_recipe
from lightning_zico.ranking.learned import choose_next, choose_spread
from tests.data import data_file

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import finals
from fidelity import Study, sampled
from scores import Cache, Protocol, cache_path
from tables import Row, Table, nas_bench_101

MEMBERS = get_recipe("default").members


def study(n: int = 80, seed: int = 0) -> Study:
    """A study whose members and accuracies share a part."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=n)
    rows = tuple(Row(str(idx), lambda: None, {"acc": float(x + rng.normal())}) for idx, x in enumerate(shared))
    scores = {name: (shared + rng.normal(size=n)).tolist() for name in dict.fromkeys([*MEMBERS, "params", "macs"])}
    return Study(Table("made-up", rows, ("acc",), ""), Protocol(Path()), scores, {}, {})


def test_a_pool_is_what_its_archs_have_and_noisy_labels_have_a_tau_of_nine_tenths() -> None:
    own, idxs = study(2000), list(range(1, 2000, 2))
    clean, noisy = (finals.pool_of(own, idxs, "acc", noise, 3) for noise in finals.LABELS.values())
    assert clean.truths.tolist() == [own.table.rows[idx].truths["acc"] for idx in idxs]
    assert stats.kendalltau(clean.labels, clean.truths)[0] == pytest.approx(1)
    assert stats.kendalltau(noisy.labels, noisy.truths)[0] == pytest.approx(0.9, abs=0.01)
    assert clean.members == {name: [own.scores[name][idx] for idx in idxs] for name in MEMBERS}
    assert clean.scores == combine(get_recipe("default"), clean.members)


def test_choosers_train_by_their_orders_and_lose_what_is_between_their_best_and_the_best() -> None:
    pool = finals.pool_of(study(), range(80), "acc", 0.0, 0)
    orders = finals.orders_of(pool, 20, seed=0)
    assert set(orders) == set(finals.CHOOSERS)
    assert len(orders["random"]) == finals.NUM_RANDOM
    assert all(sorted(order) == list(range(80)) for order in orders["random"])
    for name, scores in {"params": pool.sizes["params"], "first by score": pool.scores}.items():
        (order,) = orders[name]
        assert [scores[idx] for idx in order] == sorted(scores, reverse=True)
    (learned,) = orders["learned"]
    assert len(learned) == 20
    for step in (0, 7, 8, 19):
        labels = {idx: float(pool.labels[idx]) for idx in learned[:step]}
        assert choose_next(pool.scores, pool.members, labels) == learned[step]
    best, median = pool.truths.max(), np.median(pool.truths)
    for k in (1, 5):
        expected = 100 * (best - max(pool.truths[idx] for idx in learned[:k])) / (best - median)
        assert finals.loss(pool, learned, k) == pytest.approx(expected)
    noisy = finals.pool_of(study(), range(80), "acc", 5.0, 0)
    chosen = max(learned[:5], key=lambda idx: noisy.labels[idx])
    assert finals.loss(noisy, learned, 5) == pytest.approx(100 * (best - noisy.truths[chosen]) / (best - median))


def test_the_order_of_all_is_measured_on_archs_that_were_not_trained() -> None:
    pool = finals.pool_of(study(), range(80), "acc", 0.0, 0)
    by_score, learned, inside, inside_trained, width, inside_assumed, width_assumed = finals.order_figures(pool, 16)
    rest = sorted(set(range(80)) - set(choose_spread(pool.scores, 16)))
    expected = stats.kendalltau([pool.scores[idx] for idx in rest], pool.truths[rest])[0]
    assert by_score == pytest.approx(expected)
    assert -1 <= learned <= 1
    assert 0.8 <= inside <= 1
    assert 0.8 <= inside_trained <= 1
    assert inside <= inside_assumed <= 1
    assert 0 < width < width_assumed < 1  # labels without noise, which is measured in the one and assumed in the other


def test_labels_are_the_mean_of_two_seeds_with_independent_noise() -> None:
    noise = finals.LABELS["noisy"]
    clean = finals.pool_of(study(), range(80), "acc", 0.0, 0)
    assert np.array_equal(clean.by_seed, np.stack([clean.labels, clean.labels], axis=1))
    noisy = [finals.pool_of(study(), range(80), "acc", noise, seed) for seed in range(200)]
    errors = np.concatenate([pool.by_seed - clean.by_seed for pool in noisy])
    assert np.allclose(errors.mean(axis=1), np.concatenate([pool.labels - clean.labels for pool in noisy]))
    assert np.cov(errors.T) == pytest.approx(2 * noise**2 * np.eye(2), abs=0.05 * 2 * noise**2)


def test_draws_share_no_archs_and_the_loss_of_a_draw_is_the_mean_of_its_pools() -> None:
    draws = finals.draws_of(2, 40, 3, seed=1)
    for draw, pools in enumerate(draws):
        assert len(pools) == 3
        assert all(len(set(pool)) == 36 and {idx // 40 for idx in pool} == {draw} for pool in pools)
    losses = finals.losses_of(study(), draws, 0.0)
    for draw, pools in enumerate(draws):
        own = [finals.pool_of(study(), pool, "acc", 0.0, 0) for pool in pools]
        expected = [finals.loss(pool, finals.best_first(range(36), pool.scores), 4) for pool in own]
        assert losses["first by score", 4][draw] == pytest.approx(np.mean(expected))


def test_what_is_resampled_is_a_draw_and_each_table_by_itself() -> None:
    assert finals.mean_of([[2.0, 2.0, 2.0], [5.0, 5.0]]) == (3.5, (3.5, 3.5))
    mean, (low, high) = finals.mean_of([[0.0, 1.0, 5.0]])
    assert (mean, low, high) == (2.0, 0.0, 5.0)  # all three the worst: once in 27 resamples
    mean, (low, high) = finals.mean_of([list(range(400))])
    error = 400 / 12**0.5 / 400**0.5
    assert (low, high) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.15 * 1.96 * error)


def test_laws_name_what_breaks_them() -> None:
    first = {("first by score", k): [1.0] * 5 for k in finals.ENTRANTS}
    same = {**first, **{("learned", k): [1.0] * 5 for k in finals.ENTRANTS}}
    worse = {**same, ("learned", 16): [1.5] * 5}
    good, narrow = (finals.Order(8, 0.5, 0.6, inside, 1.0, 0.5, 0.9, 0.5) for inside in (0.95, 0.85))
    wide = finals.Order(16, 0.5, 0.6, 0.95, 1.0, 0.5, 0.991, 0.6)
    lines = finals.laws({("a", "clean"): same}, {("a", "clean"): [good]})
    assert all(line.endswith(": holds") for line in lines)
    lines = finals.laws({("a", "clean"): same, ("b", "noisy"): worse}, {("a", "clean"): [good, narrow, wide]})
    assert lines[0].endswith("DOES NOT HOLD: b, noisy, k = 16")
    assert lines[1].endswith("noise measured: DOES NOT HOLD: a, clean, k = 8 (85.0 %)")
    assert lines[2].endswith("noise assumed: DOES NOT HOLD: a, clean, k = 16 (99.1 %)")


def test_a_small_run_prints_and_keeps_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = data_file("nas_bench_101_500.csv.gz").parent
    protocol = Protocol(folder / "cifar10_subset.npz", seed=finals.SEEDS["nas-bench-101"])
    drawn = sampled(nas_bench_101(folder), 30, protocol.seed)  # two draws of 15
    kept = Cache(cache_path(tmp_path, drawn, protocol))  # so that nothing is left to be scored
    rng = np.random.default_rng(0)
    for row in drawn.rows:
        kept.add(row.name, scores={proxy: float(rng.normal()) for proxy in list_proxies()})
    words = ["--benchmark", "nas-bench-101", "--draws", "2", "--size", "15", "--pools", "3"]
    finals.main([*words, "--data", str(folder), "--cache", str(tmp_path), "--results", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "2 draws of 15 archs, each with 3 pools of 13" in printed
    assert "learned - first by score" in printed
    assert (tmp_path / "finals.json").exists()
