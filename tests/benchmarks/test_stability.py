"""The benchmark of stability: the spread over repeats, the rule that proposes a cell, and a small run of it all."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.data import data_file

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import scores
import stability
import tables
import workers


def test_spread_is_the_pooled_deviation_within_archs_over_that_of_their_means():
    repeats = [[1.0, 4.0, 9.0], [3.0, 4.0, 6.0]]  # two repeats of three archs
    # Within: variances 2, 0, 4.5, of mean 6.5 / 3. Means 2, 4, 7.5, of variance 7.75.
    assert stability.spread_ratio(repeats) == pytest.approx(math.sqrt(6.5 / 3 / 7.75))
    many = np.random.default_rng(0).normal(size=(5, 8)) + 3 * np.arange(8)
    within = np.sqrt(np.mean([np.var(many[:, arch], ddof=1) for arch in range(8)]))
    across = np.std([np.mean(many[:, arch]) for arch in range(8)], ddof=1)
    assert stability.spread_ratio(many.tolist()) == pytest.approx(within / across)
    assert stability.spread_ratio((1e6 * many).tolist()) == pytest.approx(within / across)


def test_spread_of_what_does_not_move_is_zero_and_of_what_does_not_differ_is_none():
    assert stability.spread_ratio([[1.0, 2.0], [1.0, 2.0]]) == 0.0
    assert stability.spread_ratio([[1.0, 3.0], [3.0, 1.0]]) is None
    assert stability.spread_ratio([[1.0], [2.0]]) is None


def test_tau_between_repeats_is_the_mean_over_all_pairs():
    up, swapped, down = [1.0, 2.0, 3.0], [2.0, 1.0, 3.0], [3.0, 2.0, 1.0]
    assert stability.tau_between([up, swapped, down]) == pytest.approx((1 / 3 - 1 - 1 / 3) / 3)
    assert stability.tau_between([up]) is None
    assert stability.tau_between([up, up, [1.0, 1.0, 1.0]]) is None


def test_an_arch_without_a_score_in_one_repeat_is_left_out_and_the_reason_said(tmp_path):
    rows = tuple(tables.Row(name, int, {"acc": 1.0}) for name in "abc")
    caches = [scores.Cache(tmp_path / f"{idx}.jsonl") for idx in range(2)]
    for cache, values in zip(caches, [(1.0, 5.0, 2.0), (2.0, None, 4.0)], strict=True):
        for name, value in zip("abc", values, strict=True):
            if value is None:
                cache.add(name, errors={"p": "no"})
            else:
                cache.add(name, scores={"p": value})
    own = stability.spread_of(caches, tables.Table("b", rows, ("acc",), ""), "p")
    assert own == stability.Spread(2, pytest.approx(math.sqrt(1.25 / 1.125)), 1.0, "no")


# --- the rule ------------------------------------------------------------------------------------


def cell(num_batches, ms, *taus):
    return stability.Cell(num_batches, 16, taus, None, ms)


def test_the_cheapest_cell_near_the_best_is_proposed():
    cells = [cell(2, 1.0, 0.580, 0.582), cell(4, 2.0, 0.592, 0.594), cell(8, 4.0, 0.600, 0.600)]
    proposal = stability.proposed(cells)  # the best does not vary: the floor of .01 is the margin
    assert (proposal.cell, proposal.best, proposal.margin) == (cells[1], cells[2], 0.01)
    assert "num_batches = 4, batch size = 16" in stability.told(proposal)
    assert stability.proposed(cells[::-1]).cell == cells[1]


def test_a_best_cell_that_varies_has_its_standard_error_as_margin():
    cells = [cell(2, 1.0, 0.45, 0.45), cell(4, 2.0, 0.47, 0.47), cell(8, 4.0, 0.46, 0.54)]
    proposal = stability.proposed(cells)  # standard error .04, not the deviation .057
    assert proposal.margin == pytest.approx(0.04)
    assert proposal.cell == cells[1]


def test_the_best_is_proposed_where_the_others_are_dearer_or_worse():
    cells = [cell(2, 2.0, 0.6, 0.6), cell(4, 3.0, 0.599, 0.599), cell(8, 1.0, 0.5, 0.5)]
    assert stability.proposed(cells).cell == cells[0]
    equally_cheap = [cell(2, 1.0, 0.599, 0.599), cell(4, 1.0, 0.6, 0.6)]
    assert stability.proposed(equally_cheap).cell == equally_cheap[1]


def test_cells_without_a_standard_error_or_a_time_take_no_part():
    alone, untimed, known = cell(2, 1.0, 0.9), cell(4, None, 0.9, 0.9), cell(8, 4.0, 0.5, 0.5)
    assert stability.proposed([alone, untimed, known]).cell == known
    assert stability.proposed([alone, untimed, cell(16, 1.0)]) is None
    assert "Nothing is proposed" in stability.told(None)


# --- repeats -------------------------------------------------------------------------------------


def test_repeats_have_seeds_and_images_of_their_own():
    base = scores.Protocol(Path("x"), batch_size=64, num_batches=8, seed=5)
    repeats = stability.repeats_of(base, 5, num_images=2000)
    assert [(own.seed, own.first_image) for own in repeats] == [(5, 0), (6, 512), (7, 1024)]
    assert "it has 3" in stability.shortage(base, 3, 5, 2000)
    assert stability.repeats_of(base, 5, num_images=511) == []
    assert "left out" in stability.shortage(base, 0, 5, 511)


def test_a_repeat_sees_its_images_and_has_its_cache(tmp_path):
    images = np.random.default_rng(0).integers(256, size=(40, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", x_train=images, y_train=np.arange(40))
    base = scores.Protocol(tmp_path / "images.npz", batch_size=3)
    later = replace(base, first_image=12)
    batches = scores.cifar10_batches(later, 32)
    assert [label for _, labels in batches for label in labels.tolist()] == [12, 13, 14, 15, 16, 17]
    assert batches[0][0][0, 1, 5, 3].item() == pytest.approx((images[12, 5, 3, 1] / 255 - 0.4822) / 0.2435, rel=1e-5)
    with pytest.raises(ValueError, match=r"at most the 4 of .*, from image 36 on"):
        scores.cifar10_batches(replace(base, first_image=36), 32)
    table = tables.Table("b", (tables.Row("a", int, {"acc": 1.0}),), ("acc",), "")
    assert len({scores.cache_path(tmp_path, table, own) for own in (base, later, replace(base, seed=1))}) == 3


# --- all of it -----------------------------------------------------------------------------------


@pytest.fixture
def computed(monkeypatch):
    """Run tasks in this process, and list the names of those that ran."""
    names = []

    def at_once(tasks, num_workers, timeout_s, *, share_process=True):
        for name, task in tasks.items():
            names.append(name)
            yield name, workers.Outcome(task(), None)

    monkeypatch.setattr(scores, "outcomes", at_once)
    monkeypatch.setattr(stability, "outcomes", at_once)
    return names


@pytest.mark.slow
def test_a_small_run_prints_keeps_and_goes_on(tmp_path, capsys, computed):
    folder = data_file("nas_bench_201.csv.gz").parent
    data_file("cifar10_subset.npz")
    words = ["--sample", "3", "--repeats", "2", "--proxies", "params,l2_norm", "--batch-size", "2"]
    words += ["--grid-num-batches", "2", "--grid-batch-sizes", "2", "3", "1001", "--data", str(folder)]
    words += ["--cache", str(tmp_path / "cache"), "--results", str(tmp_path)]
    stability.main(words)
    printed = capsys.readouterr().out
    archs = set(computed)
    assert len(archs) == 3
    assert sorted(computed) == sorted(7 * list(archs))  # two repeats, two of each of two cells, and the times
    assert "2 repeats with 2 batches of 2." in printed
    assert "2 x 1001: 2 repeats of 2002 images are more than the 2000 there are; it is left out." in printed
    assert "Proposed: num_batches = 2, batch size = " in printed

    record = json.loads((tmp_path / "stability.json").read_text())
    assert record["spreads"]["params"] == {"n": 3, "ratio": 0.0, "tau": 1.0, "error": None}
    assert 0 < record["spreads"]["l2_norm"]["ratio"] < 1
    assert [(own["num_batches"], own["batch_size"]) for own in record["cells"]] == [(2, 2), (2, 3)]
    assert all(len(own["taus"]) == 2 and own["ms"] > 0 for own in record["cells"])
    assert record["num_archs"] == 3

    computed.clear()
    stability.main(words)
    assert computed == []
    assert json.loads((tmp_path / "stability.json").read_text()) == record


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--proxies", "zicco"], "zicco"),
        (["--proxies", "zico", "--num-batches", "1"], "needs at least 2 batches"),
        (["--batch-size", "501"], "2 repeats need 2004 images; there are 2000"),
        (["--repeats", "1"], "--repeats"),
        (["--data", "nowhere"], "LIGHTNING_ZICO_DATA"),
    ],
)
def test_a_wrong_call_is_refused_before_anything_is_scored(tmp_path, capsys, computed, wrong, message):
    folder = data_file("nas_bench_201.csv.gz").parent
    data_file("cifar10_subset.npz")
    with pytest.raises(SystemExit):
        stability.main(["--data", str(folder), "--cache", str(tmp_path), "--results", str(tmp_path), *wrong])
    assert message in capsys.readouterr().err
    assert computed == []
