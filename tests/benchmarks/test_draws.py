"""The benchmark of random and stratified draws: which samples are drawn, the rule, and a small run."""

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kendalltau

from lightning_zico.ranking import Interval
from tests.data import data_file

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import draws
import figures
import scores
import workers

LABELS = np.random.default_rng(0).integers(10, size=2000)
BASE = scores.Protocol(Path("x"), batch_size=16, num_batches=3, seed=5)


def test_stratified_samples_are_of_as_many_classes_as_possible() -> None:
    assert scores.stratified(np.array([2, 2, 0, 2, 1, 0])).tolist() == [0, 2, 4, 1, 5, 3]
    for size in (8, 16, 40):
        for seed in range(20):
            labels = np.random.default_rng(seed).integers(10, size=64)
            order = scores.stratified(labels)
            assert sorted(order) == list(range(64))
            taken, there = Counter(labels[order[:size]].tolist()), Counter(labels.tolist())
            largest = max(taken.values())
            # A class that has fewer than another one by more than a sample has no more to give.
            assert all(taken[label] >= min(there[label], largest - 1) for label in there)


def test_both_draws_are_from_the_same_batches_of_the_loader() -> None:
    random, stratified = (scores.positions_of(replace(BASE, draw=draw), LABELS) for draw in draws.DRAWS)
    read = np.random.default_rng(BASE.seed).permutation(2000)
    for own in (random, stratified):
        for idx, batch in enumerate(own.reshape(3, 16)):
            assert {*batch} <= {*read[64 * idx : 64 * (idx + 1)]}
    assert random[:16].tolist() == read[:16].tolist()
    assert all(max(Counter(LABELS[batch].tolist()).values()) <= 3 for batch in stratified.reshape(3, 16))
    other = scores.positions_of(replace(BASE, draw="random", seed=6), LABELS)
    assert other.tolist() != random.tolist()
    assert scores.positions_of(BASE, LABELS).tolist() == list(range(48))


def test_files_of_scores_depend_on_the_draw_and_older_ones_keep_their_names(tmp_path: Path) -> None:
    from tables import Row, Table

    table = Table("b", (Row("a", int, {"acc": 1.0}),), ("acc",), "")
    paths = {scores.cache_path(tmp_path, table, replace(BASE, draw=draw)) for draw in ("file", *draws.DRAWS)}
    assert len(paths) == 3


# --- gains and the rule --------------------------------------------------------------------------


def test_gains_are_mean_differences_of_tau_over_cells_repeats_and_targets() -> None:
    generator = np.random.default_rng(1)
    targets = [generator.random(12) for _ in range(2)]
    cells = [
        draws.Cell(2, size, {draw: [generator.random(12) for _ in range(3)] for draw in draws.DRAWS})
        for size in (8, 16)
    ]
    gains = draws.gains_of(cells, targets, num_resamples=20)

    def mean(draw: str) -> float:
        return float(np.mean([kendalltau(r, t)[0] for c in cells for r in c.repeats[draw] for t in targets]))

    def between(draw: str) -> float:
        pairs = [(0, 1), (0, 2), (1, 2)]
        return float(np.mean([kendalltau(c.repeats[draw][a], c.repeats[draw][b])[0] for c in cells for a, b in pairs]))

    assert gains.accuracy.value == pytest.approx(mean("stratified") - mean("random"))
    assert gains.between.value == pytest.approx(between("stratified") - between("random"))
    assert gains.accuracy.n == gains.between.n == 12


def test_equal_draws_gain_nothing() -> None:
    repeats = [np.random.default_rng(idx).random(15) for idx in range(2)]
    cell = draws.Cell(2, 8, dict.fromkeys(draws.DRAWS, repeats))
    gains = draws.gains_of([cell], [np.arange(15.0)], num_resamples=20)
    assert gains.accuracy == gains.between == figures.Difference(15, 0.0, Interval(0.0, 0.0))


def gain(value: float, low: float, high: float) -> figures.Difference:
    return figures.Difference(30, value, Interval(low, high))


CLEAR, NOTHING, SMALL, WORSE = (
    gain(0.02, 0.01, 0.03),
    gain(0.0, -0.1, 0.1),
    gain(0.005, 0.001, 0.01),
    gain(-0.1, -0.2, -0.01),
)


@pytest.mark.parametrize(
    ("zico_first", "zico_second", "default_second", "built"),
    [
        (draws.Gains(CLEAR, NOTHING), draws.Gains(CLEAR, NOTHING), draws.Gains(NOTHING, NOTHING), True),
        (draws.Gains(NOTHING, CLEAR), draws.Gains(NOTHING, CLEAR), draws.Gains(NOTHING, NOTHING), True),
        (draws.Gains(CLEAR, NOTHING), draws.Gains(NOTHING, CLEAR), draws.Gains(CLEAR, CLEAR), False),
        (draws.Gains(SMALL, NOTHING), draws.Gains(SMALL, NOTHING), draws.Gains(NOTHING, NOTHING), False),
        (draws.Gains(CLEAR, NOTHING), draws.Gains(CLEAR, NOTHING), draws.Gains(NOTHING, WORSE), False),
    ],
)
def test_stratified_draws_are_built_if_they_gain_in_both_spaces_and_lose_nowhere(
    zico_first: draws.Gains, zico_second: draws.Gains, default_second: draws.Gains, built: bool
) -> None:
    gains = {
        ("one", "zico"): zico_first,
        ("one", "default"): draws.Gains(NOTHING, NOTHING),
        ("two", "zico"): zico_second,
        ("two", "default"): default_second,
    }
    assert draws.is_built(gains) is built


# --- all of it -----------------------------------------------------------------------------------


def test_a_small_run_prints_every_cell_and_decides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = data_file("transnas_bench_101_micro.csv.gz").parent
    data_file("nas_bench_201.csv.gz")
    data_file("cifar10_subset.npz")

    def at_once(tasks, num_workers, timeout_s, *, share_process=True):
        """Play scores: what they are does not matter here."""
        for name in tasks:
            values = np.random.default_rng(len(name) + sum(map(ord, name))).random(len(draws.MEMBERS))
            card = {"scores": dict(zip(draws.MEMBERS, values.tolist(), strict=True)), "errors": {}, "untrainable": None}
            yield name, workers.Outcome(card, None)

    monkeypatch.setattr(scores, "outcomes", at_once)
    words = ["--quick", "--data", str(folder), "--cache", str(tmp_path / "cache"), "--results", str(tmp_path)]
    draws.main(words)
    printed = capsys.readouterr().out
    for benchmark in draws.SAMPLES:
        assert f"{benchmark}: 4 of 4 archs have all scores; 2 repeats" in printed
    for score in draws.SCORES:
        for num_batches, size in draws.CELLS:
            for draw in draws.DRAWS:
                assert printed.count(f"| {score}, {num_batches} x {size}, {draw} ") == 2
    assert "By the rule, stratified draws are not built." in printed  # the played scores are the same for both
    assert (tmp_path / "quick" / "draws.json").exists()


def test_the_folder_of_the_tables_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        draws.main(["--data", str(tmp_path)])
    assert "LIGHTNING_ZICO_DATA" in capsys.readouterr().err
