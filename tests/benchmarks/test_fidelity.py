"""The benchmark of fidelity: its tables, its processes, its cache, and the figures that it prints."""

import csv
import dataclasses
import io
import json
import os
import random
import signal
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from lightning_zico.proxies import BASELINES, list_proxies
from lightning_zico.ranking import bootstrap_interval, combine, get_recipe, kendall, list_recipes
from lightning_zico.scoring.choice import Choice
from lightning_zico.spaces import get_space
from tests.data import data_file, data_rows
from tests.reference.ranking import tau_b

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import contests
import convert_nats_bench
import fidelity
import figures
import published
import scores
import tables
import workers

CELLS = [str(get_space("nas_bench_201").sample(random.Random(seed))) for seed in range(5)]


# --- tables --------------------------------------------------------------------------------------


def test_nas_bench_201_has_every_cell_once():
    table = tables.nas_bench_201(data_file("nas_bench_201.csv.gz").parent)
    assert len({row.name for row in table.rows}) == len(table.rows) == 15625
    assert table.targets == ("test_cifar10", "test_cifar100")
    assert max(row.truths["test_cifar10"] for row in table.rows) == pytest.approx(94.37, abs=0.005)
    assert table.asked_for(["valid_cifar10"]).targets == ("valid_cifar10",)
    with pytest.raises(ValueError, match="no target 'top1'; it has test_cifar10"):
        table.asked_for(["top1"])


def test_equal_cells_of_nas_bench_101_are_one_candidate_with_their_mean():
    table = tables.nas_bench_101(data_file("nas_bench_101_500.csv.gz").parent)
    assert len({row.name for row in table.rows}) == len(table.rows) == 301
    by_cell = {}
    for line in data_rows("nas_bench_101_500.csv.gz"):
        by_cell.setdefault(str(tables.cell_of(line["arch"])), []).append(float(line["val_accuracy"]))
    for row in table.rows:
        assert row.truths["val_accuracy"] == pytest.approx(np.mean(by_cell[row.name]))


def test_transnas_has_seven_tasks_on_larger_images():
    table = tables.transnas_micro(data_file("transnas_bench_101_micro.csv.gz").parent)
    assert len(table.rows) == 4096
    assert len(table.targets) == 7
    assert {row.resolution for row in table.rows} == {64}
    first = next(iter(data_rows("transnas_bench_101_micro.csv.gz")))
    assert table.rows[0].truths["room_layout"] == float(first["room_layout.test_neg_loss.best"]) < 0


def test_networks_of_nas_bench_bert_are_those_that_were_trained():
    table = tables.nas_bench_bert(data_file("nas_bench_bert_250.csv.gz").parent)
    by_arch = {}
    for line in data_rows("nas_bench_bert_250.csv.gz"):
        by_arch.setdefault(line["arch_trained"], []).append(line)
    assert {row.name for row in table.rows} == {*by_arch}
    assert len(table.rows) == 176
    for row in table.rows:
        lines = by_arch[row.name]
        assert row.truths["glue"] == pytest.approx(np.mean([float(line["glue"]) for line in lines]))
        (num, is_wide), *_ = {(int(line["num_layers"]), line["hidden_size"] == "256") for line in lines}
        assert row.references == {"layers": num, "layers, width": 2 * num + is_wide}
        assert (row.resolution, row.vocab_size) == (128, 30_522)
    assert table.targets == ("glue",)
    assert table.asked_for(["rte"]).targets == ("rte",)


def test_pits_take_large_images_and_are_compared_on_three_data_sets():
    table = tables.pit(data_file("pit_60.csv").parent)
    assert len(table.rows) == 60
    assert {row.resolution for row in table.rows} == {224}
    assert table.targets == ("cifar100", "flowers", "chaoyang")
    assert table.asked_for(["chaoyang_kd"]).targets == ("chaoyang_kd",)
    pairs = [(row.truths["flowers"], row.truths["flowers_kd"]) for row in table.rows]
    tau = tau_b(*map(list, zip(*pairs, strict=True)))
    assert f"{tau:.2f} on Flowers" in table.remark


def test_accuracies_of_nas_bench_301_are_said_to_be_predictions():
    table = tables.nas_bench_301(data_file("nas_bench_301_150.csv.gz").parent)
    assert len(table.rows) == 150
    assert "not of trained networks" in table.remark
    assert all(91 < row.truths["val_accuracy"] < 95 for row in table.rows)


def test_texts_are_noise_with_the_frequencies_of_words():
    protocol = scores.Protocol(Path("unread"), batch_size=50, num_batches=4)
    batches = scores.token_batches(protocol, 1000, 128)
    assert [tuple(ids.shape) for ids, _ in batches] == [(50, 128)] * 4
    ids = np.stack([ids.numpy() for ids, _ in batches])
    assert (ids[..., 0] == 1).all()
    assert (ids.min(), ids.max() < 1000) == (1, True)  # 0 is padding
    counts = np.bincount(ids[..., 1:].ravel())
    total = sum(1 / rank for rank in range(1, 1000))
    for rank in (1, 2, 10):
        expected = ids[..., 1:].size / rank / total
        assert abs(counts[rank] - expected) < 4 * expected**0.5
    assert [label for _, labels in batches for label in labels.tolist()] == [*range(10)] * 20
    other = scores.token_batches(scores.Protocol(Path("unread"), 50, 4, seed=1), 1000, 128)
    assert not np.array_equal(other[0][0], ids[0])


def test_references_are_printed_beside_the_scores(tmp_path):
    rows = tuple(tables.Row(str(idx), int, {"acc": float(idx)}, references={"layers": idx // 2}) for idx in range(6))
    kept = scores.Cache(tmp_path / "b.jsonl")
    for row in rows:
        kept.add(row.name, scores={"params": 1.0 + row.truths["acc"]}, errors={})
    table, choice = tables.Table("b", rows, ("acc",), ""), Choice.of(["params"])
    own = fidelity.studied(table, choice, scores.Protocol(Path("x")), kept, {})
    assert own.scores["layers"] == [0, 0, 1, 1, 2, 2]
    assert own.mean_tau("layers") == pytest.approx(kendall([0, 0, 1, 1, 2, 2], range(6)))


@pytest.mark.parametrize(
    ("num_lacking", "told"),
    [(0, None), (1, "size places the candidates to which it does not apply."), (2, "size ranks in its place.")],
)
def test_recipes_fall_back_as_in_a_leaderboard(tmp_path, num_lacking, told):
    rows = tuple(tables.Row(str(idx), int, {"acc": float(idx)}) for idx in range(10))
    kept = scores.Cache(tmp_path / "b.jsonl")
    for idx, row in enumerate(rows):
        known = {"params": 10.0 - idx, "macs": 10.0 - idx, "naswot": float(idx)}
        errors = {"naswot": f"not applicable: {known.pop('naswot')}"} if idx < num_lacking else {}
        kept.add(row.name, scores=known, errors=errors)
    table, choice = tables.Table("b", rows, ("acc",), ""), Choice.of(["without_blocks"])
    own = fidelity.studied(table, choice, scores.Protocol(Path("x")), kept, {})
    kept.add("0", scores={}, errors={}, untrainable="untrainable: nothing flows")  # the largest
    without = fidelity.studied(table, choice, scores.Protocol(Path("x")), kept, {}).scores["without_blocks"]
    assert without[0] == min(without)
    assert own.errors.get("without_blocks") == told
    values = own.scores["without_blocks"]
    size = combine(get_recipe("size"), {name: [10.0 - idx for idx in range(10)] for name in ("params", "macs")})
    assert None not in values
    assert (values == size) == (num_lacking == 2)
    assert (values[0] == max(values)) == (num_lacking != 0)  # the largest, hence the first by size


def test_timm_has_models_of_moderate_size_at_their_own_resolution():
    pytest.importorskip("timm")
    folder = data_file("timm_imagenet.csv").parent
    table = tables.timm_models(folder)
    with open(folder / "timm_imagenet.csv", newline="") as file:
        lines = {line["arch"]: line for line in csv.DictReader(file)}
    assert len(table.rows) > 100
    for row in table.rows:
        assert float(lines[row.name]["params_millions"]) <= 30
        assert row.resolution == int(lines[row.name]["img_size"])
        assert row.family


def test_a_missing_table_says_what_to_do(tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="--data"):
        tables.nas_bench_201(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"convert_nats_bench\.py"):
        tables.nats_bench_size(tmp_path)
    with pytest.raises(SystemExit):
        fidelity.main(["--data", str(tmp_path)])
    assert "LIGHTNING_ZICO_DATA" in capsys.readouterr().err


def write_table(folder, lines):
    path = folder / "mine.csv"
    path.write_text("\n".join(["arch,acc", *lines]) + "\n")
    return path


def test_a_table_of_the_users_own_takes_the_mean_of_equal_archs(tmp_path):
    path = write_table(tmp_path, [f"{CELLS[0]},90", f"{CELLS[1]},70", f"{CELLS[0]},92"])
    table = tables.user_table(path, "nas_bench_201", ["acc"], resolution=16)
    assert [(row.name, row.truths["acc"], row.resolution) for row in table.rows] == [
        (CELLS[0], 91.0, 16),
        (CELLS[1], 70.0, 16),
    ]
    assert table.rows[0].blocks == get_space("nas_bench_201").blocks(get_space("nas_bench_201").parse(CELLS[0]))


@pytest.mark.parametrize(
    ("lines", "targets", "message"),
    [
        ([f"{CELLS[0]},90", f"{CELLS[1]},high"], ["acc"], "line 3: 'acc' is 'high': expected a number"),
        ([f"{CELLS[0]},nan"], ["acc"], "line 2: 'acc' is 'nan'"),
        ([f"{CELLS[0]},90"], ["loss"], "line 2: there is no 'loss'; the columns are arch, acc"),
        ([f"{CELLS[0]},90"], [], "--target"),
        (["|none~0|,90"], ["acc"], "The arch cannot be read at position"),
        ([], ["acc"], "no line below its header"),
    ],
)
def test_a_table_that_cannot_be_read_says_where(tmp_path, lines, targets, message):
    with pytest.raises(ValueError, match=message):
        tables.user_table(write_table(tmp_path, lines), "nas_bench_201", targets, 32)


def test_a_sample_is_drawn_by_seed_from_all_rows():
    rows = tuple(tables.Row(str(idx), int, {"acc": float(idx)}) for idx in range(20))
    table = tables.Table("b", rows, ("acc",), "")
    names = [row.name for row in fidelity.sampled(table, 8, seed=1).rows]
    assert len(set(names)) == 8
    assert names == [row.name for row in fidelity.sampled(table, 8, seed=1).rows]
    assert names != [row.name for row in fidelity.sampled(table, 8, seed=2).rows]
    assert fidelity.sampled(table, 20, seed=1) == fidelity.sampled(table, None, seed=1) == table


class FakeBenchmark:
    """What `nats_bench.create` returns, as far as it is asked."""

    def __init__(self, archs):
        self.archs = archs

    def __len__(self):
        return len(self.archs)

    def arch(self, index):
        return self.archs[index]

    def get_more_info(self, index, dataset, iepoch=None, hp="12", is_random=True):
        assert (iepoch, hp, is_random) == (None, "90", False)  # the longest training of that space, mean over runs
        if dataset == "cifar10-valid":
            return {"valid-accuracy": 80.0 + index}
        return {"test-accuracy": {"cifar10": 90.0, "cifar100": 70.0, "ImageNet16-120": 40.0}[dataset] + index / 3}


def test_the_converted_official_files_are_the_table_that_is_read(tmp_path):
    archs = ["8:8:8:8:8", "64:8:16:24:32"]
    convert_nats_bench.write_table(FakeBenchmark(archs), "sss", tmp_path / "nats_bench_size.csv")
    table = tables.nats_bench_size(tmp_path)
    assert [row.name for row in table.rows] == archs
    assert table.rows[1].truths == {"test_cifar10": 90.3333, "test_cifar100": 70.3333, "test_imagenet16_120": 40.3333}
    valid = tables.user_table(tmp_path / "nats_bench_size.csv", "nats_bench_size", ["valid_cifar10"], 32)
    assert valid.rows[1].truths == {"valid_cifar10": 81.0}


def test_published_figures_are_of_what_there_is():
    known, count = {*list_proxies(), *list_recipes()}, 0
    for benchmark in tables.LOADERS:
        for target in (
            "test_cifar10",
            "test_cifar100",
            "test_imagenet16_120",
            "val_accuracy",
            *tables.TRANSNAS_COLUMNS,
        ):
            for name, printed in published.published(benchmark, target).items():
                assert name in known
                assert printed.source in published.SOURCES
                assert all(value is None or -1 < value < 1 for value in (printed.tau, printed.rho))
                count += 1
    assert count == published.FIGURES.count(", ") + published.FIGURES.count(": ")  # none is of another benchmark


# --- processes and cache -------------------------------------------------------------------------


@pytest.mark.usefixtures("_forked_workers")
def test_a_process_that_dies_costs_one_result():
    tasks = {
        "exits": partial(os._exit, 7),
        "killed": partial(signal.raise_signal, signal.SIGKILL),
        "raises": partial(int, "x"),
        "fine": partial(pow, 2, 3),
    }
    found = dict(workers.outcomes(tasks, num_workers=2, timeout_s=300))
    assert found["exits"] == workers.Outcome(None, "the process died (exit code 7)")
    assert found["killed"] == workers.Outcome(None, "the process died (exit code -9, SIGKILL)")
    assert found["raises"].error.startswith("ValueError: invalid literal")
    assert found["fine"] == workers.Outcome(8, None)


@pytest.mark.usefixtures("_forked_workers")
def test_what_takes_too_long_is_ended():
    found = dict(workers.outcomes({"sleeps": partial(time.sleep, 3600)}, num_workers=1, timeout_s=0.5))
    assert found == {"sleeps": workers.Outcome(None, "took more than 0.5 s")}


@pytest.fixture
def images(tmp_path):
    path = tmp_path / "cifar10_subset.npz"
    generator = np.random.default_rng(0)
    np.savez(path, x_train=generator.integers(256, size=(64, 32, 32, 3), dtype=np.uint8), y_train=np.arange(64) % 10)
    return path


@pytest.mark.usefixtures("_forked_workers")
def test_a_candidate_that_takes_its_process_down_is_a_row_and_the_rest_is_scored(tmp_path, images):
    rows = (
        tables.Row("deadly", partial(os._exit, 9), {"acc": 1.0}),
        tables.Row("fine", partial(tables.build_arch, "nas_bench_201", CELLS[0]), {"acc": 2.0}),
    )
    table = tables.Table("b", rows, ("acc",), "")
    kept = scores.Cache(tmp_path / "b.jsonl")
    running = scores.Running(timeout_s=300)
    scores.fill_scores(kept, table, scores.Protocol(images, batch_size=2), ["params", "macs"], running)
    assert kept.error("deadly", "macs") == "the process died (exit code 9)"
    read = scores.Cache(kept.path)
    assert read.lacks("deadly", "params", retry=False)  # which proxy was at fault is not known
    assert read.scores["deadly"] == read.errors["fine"] == {}
    space = get_space("nas_bench_201")
    assert read.scores["fine"]["params"] == space.params(space.parse(CELLS[0]))


def test_what_counting_says_does_not_depend_on_what_else_was_asked_for(tmp_path):
    kept = scores.Cache(tmp_path / "b.jsonl")
    kept.add("a", scores={"params": 3.0}, errors={}, untrainable=None)
    assert kept.error("a", "params") is None
    kept.add("a", scores={}, errors={"zico": "NonFiniteError: no"}, untrainable="untrainable: its loss is nan")
    read = scores.Cache(kept.path)
    assert (read.score("a", "params"), read.error("a", "params")) == (3.0, None)
    assert (read.score("a", "zico"), read.error("a", "zico")) == (None, "NonFiniteError: no")
    assert read.untrainable == {"a": "untrainable: its loss is nan"}


def test_the_cache_cuts_off_a_torn_line_and_goes_on(tmp_path):
    kept = scores.Cache(tmp_path / "new" / "b.jsonl")
    kept.add("a", scores={"zico": 1 / 3}, errors={"zen": "no"})
    with open(kept.path, "a") as file:
        file.write('{"arch": "b", "sco')
    scores.Cache(kept.path).add("c", scores={"zico": 2.0})
    read = scores.Cache(kept.path)
    assert dict(read.scores) == {"a": {"zico": 1 / 3}, "c": {"zico": 2.0}}
    assert not read.lacks("a", "zico", retry=True)
    assert not read.lacks("a", "zen", retry=False)
    assert read.lacks("a", "zen", retry=True)
    assert read.lacks("b", "zico", retry=False)


def test_another_protocol_has_another_cache(tmp_path):
    table = tables.Table("b", (tables.Row("a", int, {"acc": 1.0}),), ("acc",), "")
    larger = tables.Table("b", (tables.Row("a", int, {"acc": 1.0}, resolution=64),), ("acc",), "")
    protocols = [scores.Protocol(tmp_path), scores.Protocol(tmp_path, 8), scores.Protocol(tmp_path, num_batches=4)]
    paths = [
        scores.cache_path(tmp_path, table, protocol) for protocol in [*protocols, scores.Protocol(tmp_path, seed=1)]
    ]
    assert len({*paths, scores.cache_path(tmp_path, larger, protocols[0])}) == 5
    assert scores.cache_path(tmp_path, table, scores.Protocol(tmp_path / "elsewhere" / tmp_path.name)) == paths[0]


def test_batches_are_the_first_images_at_the_asked_resolution(images):
    small = scores.cifar10_batches(scores.Protocol(images, batch_size=6), 32)
    assert [tuple(inputs.shape) for inputs, _ in small] == [(6, 3, 32, 32)] * 2
    assert [label for _, labels in small for label in labels.tolist()] == [*range(10), 0, 1]
    with np.load(images) as file:
        expected = (file["x_train"][7, 5, 3, 1] / 255 - 0.4822) / 0.2435
    assert small[1][0][1, 1, 5, 3].item() == pytest.approx(expected, rel=1e-5)
    large = scores.cifar10_batches(scores.Protocol(images, batch_size=6), 64)
    assert tuple(large[0][0].shape) == (6, 3, 64, 64)
    assert large[0][0].is_contiguous()
    with pytest.raises(ValueError, match="100 batches of 6 are 600 images"):
        scores.cifar10_batches(scores.Protocol(images, batch_size=6, num_batches=100), 32)


@pytest.fixture
def few_resamples(monkeypatch):
    monkeypatch.setattr(figures, "bootstrap_interval", partial(bootstrap_interval, num_resamples=5))


@pytest.fixture
def computed(monkeypatch, few_resamples):
    """Run tasks in this process, and list the names of those that ran."""
    names = []

    def at_once(tasks, num_workers, timeout_s, *, share_process=True):
        for name, task in tasks.items():
            names.append(name)
            yield name, workers.Outcome(task(), None)

    monkeypatch.setattr(scores, "outcomes", at_once)
    return names


def test_an_interrupted_run_scores_nothing_twice(tmp_path, images, computed, capsys):
    path = write_table(tmp_path, [f"{cell},{90 + idx}" for idx, cell in enumerate(CELLS)])
    words = ["--table", str(path), "--space", "nas_bench_201", "--target", "acc", "--proxies", "size,l2_norm"]
    words += ["--batch-size", "2", "--data", str(tmp_path), "--cache", str(tmp_path), "--results", str(tmp_path)]
    fidelity.main(words)
    whole = capsys.readouterr().out
    (cache,) = tmp_path.glob("*.jsonl")
    assert sorted(computed) == sorted(2 * CELLS)  # scored, then timed
    results = (tmp_path / "nas_bench_201-mine.json").read_text()

    lines = cache.read_text().splitlines(keepends=True)
    cache.write_text("".join([*lines[:3], lines[3][:40]]))
    computed.clear()
    fidelity.main(words)
    assert sorted(computed) == sorted([*CELLS[3:], *CELLS])
    computed.clear()
    fidelity.main(words)
    assert computed == []

    again = json.loads((tmp_path / "nas_bench_201-mine.json").read_text())["targets"]["acc"]
    before = json.loads(results)["targets"]["acc"]
    assert again["minus_baselines"] == before["minus_baselines"]
    for name, measured in before["scores"].items():
        assert {**again["scores"][name], "ms_alone": 0} == {**measured, "ms_alone": 0}
    assert {"size", "l2_norm", *BASELINES} == {*before["scores"]}
    assert {*before["minus_baselines"]} == {"size", "l2_norm"}
    assert "| size " in whole
    assert "5 of 5 candidates, seed 777; 2 batches of 2." in whole

    fidelity.main([*words, "--proxies", "size,l2_norm,plain"])  # one proxy more is one proxy more
    assert sorted(computed) == sorted(2 * CELLS)
    assert set(json.loads(cache.read_text().splitlines()[-6])["scores"]) == {"plain"}


def test_a_wrong_call_is_refused_before_anything_is_scored(tmp_path, images, computed, capsys):
    path = write_table(tmp_path, [f"{CELLS[0]},90"])
    words = ["--table", str(path), "--space", "nas_bench_201", "--target", "acc", "--data", str(tmp_path)]
    for wrong, message in (
        (["--num-batches", "1"], "needs at least 2 batches"),
        (["--proxies", "zicco"], "zicco"),
        (["--space", "nas_bench_202"], "nas_bench_202"),
        (["--workers", "0"], "--workers"),
    ):
        with pytest.raises(SystemExit):
            fidelity.main([*words, *wrong])
        assert message in capsys.readouterr().err
    assert computed == []


# --- figures -------------------------------------------------------------------------------------


def test_figures_of_four_candidates_are_those_on_paper():
    own = figures.figures_of([1.0, 2.0, None, 3.0, 4.0], [10.0, 30.0, 99.0, 20.0, 40.0], [None] * 5)
    assert own.n == 4
    assert own.tau == pytest.approx(2 / 3)  # five of six pairs agree
    assert own.rho == pytest.approx(0.8)
    assert own.ndcg == 1.0  # the best is the best
    assert own.regret_1 == own.regret_5 == 0.0
    assert own.same_family is None
    assert own.tau_interval.low < 2 / 3 < own.tau_interval.high
    worst = figures.figures_of([4.0, 3.0, 2.0, 1.0], [10.0, 20.0, 30.0, 40.0], [None] * 4)
    assert (worst.tau, worst.rho, worst.ndcg, worst.regret_1) == (-1.0, -1.0, 0.0, 30.0)


def test_same_family_share_counts_pairs_of_one_family():
    scores_ = [1.0, 2.0, 2.0, None, 5.0, 1.0, 7.0]
    truths = [10.0, 20.0, 30.0, 40.0, 60.0, 50.0, 50.0]
    families = ["a", "a", "a", "a", "b", "b", "b"]
    # a: right, right, a tie; b: right, wrong, and one pair of equal truth
    assert figures.same_family_share(scores_, truths, families) == pytest.approx((1 + 1 + 0.5 + 1 + 0) / 5)


def test_a_score_does_not_differ_from_itself():
    generator = random.Random(0)
    scores_ = [generator.random() for _ in range(30)]
    truths = [[generator.random() for _ in range(30)] for _ in range(2)]
    assert figures.difference(scores_, scores_, truths) == figures.Difference(30, 0.0, (0.0, 0.0))
    assert not figures.difference(scores_, scores_, truths).excludes_zero


def test_a_difference_is_that_of_taus_on_the_candidates_both_have():
    generator = random.Random(1)
    truth = [generator.random() for _ in range(40)]
    good = [value + generator.gauss(0, 0.1) for value in truth]
    bad = [None, *(generator.random() for _ in range(39))]
    other = [generator.random() for _ in range(40)]
    own = figures.difference(good, bad, [truth, other])
    taus = [kendall(good[1:], target[1:]) - kendall(bad[1:], target[1:]) for target in (truth, other)]
    assert own.n == 39
    assert own.value == pytest.approx(np.mean(taus))
    assert own.interval.low < own.value < own.interval.high
    clear = figures.difference(good, bad, [truth])
    assert clear.excludes_zero
    turned = figures.difference(bad, good, [truth])
    assert turned.interval == pytest.approx([-clear.interval.high, -clear.interval.low])


def test_the_contest_takes_the_worst_search_space_and_leaves_timm_out_of_it(few_resamples):
    contest = contests.FIRST

    def study(benchmark, sign, is_search_space):
        rows = tuple(
            tables.Row(str(idx), int, {"acc": float(idx)}, family=None if is_search_space else "a") for idx in range(6)
        )
        table = tables.Table(benchmark, rows, ("acc",), "", is_search_space)
        values = {name: [float(idx) for idx in range(6)] for name in contest.contestants}
        values["params"] = [sign * float(idx) for idx in range(6)]
        return fidelity.Study(table, scores.Protocol(Path("x")), values, {}, {})

    studies = [study("one", 1, True), study("two", -1, True), study("timm", -1, False)]
    console = Console(record=True, width=200, file=io.StringIO())
    record = fidelity.print_contest(console, studies, contest)["contest"]
    by_place = {(row["contestant"], row["benchmark"]): row for row in record}
    assert len(record) == len(contest.contestants) * 3
    assert by_place["balanced", "two"]["minus_params"]["value"] == pytest.approx(2.0)
    assert by_place["balanced", "two"]["minus_macs"]["interval"] == (0.0, 0.0)
    assert by_place["params", "timm"]["same_family"] == 0.0
    assert by_place["macs", "timm"]["same_family"] == 1.0
    (overview,) = [line for line in console.export_text().splitlines() if line.startswith("| params ")]
    assert overview.replace("|", "").split() == ["params", "1.000", "-1.000", "-1.000", "-1.000", "0.000"]


def test_who_is_not_surely_behind_in_the_worst_case_is_ordered_by_the_mean(few_resamples):
    generator = np.random.default_rng(0)
    truth = generator.random(60)

    def study(benchmark, **noises):
        rows = tuple(tables.Row(str(idx), int, {"acc": value}) for idx, value in enumerate(truth))
        values = {name: (truth + noise * generator.standard_normal(60)).tolist() for name, noise in noises.items()}
        table = tables.Table(benchmark, rows, ("acc",), "")
        return fidelity.Study(table, scores.Protocol(Path("x")), values, {}, {})

    hard = study("hard", steady=0.30, strong=0.31, weak=3.0)  # the first two are told apart by chance alone
    easy = study("easy", steady=0.25, strong=0.01, weak=0.01)
    assert fidelity.not_surely_behind([hard, easy], ["steady", "strong", "weak"]) == ["strong", "steady"]


@pytest.mark.parametrize("contest", contests.CONTESTS.values(), ids=[*contests.CONTESTS])
def test_contestants_and_their_benchmarks_exist(contest):
    assert {*contest.contestants} <= {*list_proxies(), *list_recipes(), *contests.ONLY_HERE, *contest.by_kind}
    assert {name for both in contest.by_kind.values() for name in both} <= {*contest.contestants}
    assert {member for members in contests.ONLY_HERE.values() for member in members} <= {*list_proxies()}
    assert {*contest.samples} <= {*tables.LOADERS}
    assert {*contests.OPPONENTS} <= {*BASELINES}


def test_contests_draw_other_candidates_than_those_before_as_long_as_there_are_others():
    rows = tuple(tables.Row(str(idx), int, {"acc": 0.0}) for idx in range(1000))
    first, second, third, fourth, _ = contests.CONTESTS.values()

    def names(contest, benchmark):
        return {row.name for row in fidelity.entered(tables.Table(benchmark, rows, ("acc",), ""), contest).rows}

    for benchmark in second.samples:
        assert len(names(first, benchmark)) == first.samples[benchmark]
        assert len(names(second, benchmark)) == (second.samples[benchmark] or 1000 - first.samples[benchmark])
        assert not names(first, benchmark) & names(second, benchmark)
    for later in (third, fourth):
        for benchmark, number in later.samples.items():
            assert len(names(later, benchmark)) == number
            before = [contest for contest in later.unlike if benchmark in contest.samples]
            seen = set().union(*(names(contest, benchmark) for contest in before))
            assert not names(later, benchmark) & seen or len(seen) == 1000
    assert len(names(second, "nas-bench-101")) + len(names(first, "nas-bench-101")) == 1000


def test_who_is_nowhere_surely_behind_a_baseline_is_ordered_by_the_mean(few_resamples):
    generator = np.random.default_rng(0)
    truth = generator.random(60)

    def study(benchmark, **noises):
        rows = tuple(tables.Row(str(idx), int, {"acc": value}) for idx, value in enumerate(truth))
        noises |= {"params": 1.0, "macs": 1.0}
        values = {name: (truth + noise * generator.standard_normal(60)).tolist() for name, noise in noises.items()}
        table = tables.Table(benchmark, rows, ("acc",), "")
        return fidelity.Study(table, scores.Protocol(Path("x")), values, {}, {})

    studies = [study("one", good=0.1, better=0.05, uneven=0.01), study("two", good=0.1, better=0.05, uneven=50.0)]
    studies[1].scores["uneven"][:] = (-truth).tolist()
    assert fidelity.nowhere_surely_behind(studies, ["good", "better", "uneven"]) == ["better", "good"]


def test_a_contestant_of_two_kinds_is_one_recipe_for_attention_and_another_without():
    contest = contests.Contest(("a", "b", "kinds"), {}, by_kind={"kinds": ("a", "b")})
    rows = tuple(tables.Row(str(idx), int, {"acc": 0.0}) for idx in range(2))
    own = fidelity.Study(
        tables.Table("x", rows, ("acc",), ""), scores.Protocol(Path("x")), {"a": [1.0, 2.0], "b": [3.0, 4.0]}, {}, {}
    )
    for confidences, expected in (([None, None], "a"), ([None, 0.5], "b")):
        seen = dataclasses.replace(own, scores={**own.scores, "head_confidence": confidences})
        assert fidelity.with_kinds(seen, contest).scores["kinds"] == own.scores[expected]


def test_what_failed_is_last_and_what_does_not_apply_is_out() -> None:
    values = [1e20, None, -1e20, None, 3.0]
    placed = fidelity.with_last(values, {1})
    assert placed[3] is None
    assert [value for value in placed if value is not None and value < -1e20] == [placed[1]]
    assert [placed[0], placed[2], placed[4]] == [1e20, -1e20, 3.0]
    assert fidelity.with_last(values, set()) == values
