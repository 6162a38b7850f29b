"""The benchmark of the search: dead edges, a small run of ZiCo's search, and what is found in NAS-Bench-201."""

import random
import statistics
import sys
from pathlib import Path

import optuna
import pytest
import torch

from lightning_zico import Evolution, SearchResult, ZeroShotSearch
from lightning_zico.spaces import NASBench201
from tests.data import data_file

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import search as benchmark
from tables import nas_bench_201

SPACE = NASBench201()


def test_dead_edges_change_no_output() -> None:
    rng = random.Random(0)
    images = torch.randn(2, 3, 8, 8)
    num_changed = 0
    for _ in range(12):
        arch = SPACE.sample(rng)
        pruned = benchmark.without_dead_edges(arch)
        networks = []
        for each in (arch, pruned):
            network = SPACE.build(each)
            for parameter in network.parameters():  # such that it does not matter which weights there are besides
                torch.nn.init.constant_(parameter, 0.02)
            networks.append(network(images))
        torch.testing.assert_close(*networks)
        num_changed += arch != pruned
        assert benchmark.without_dead_edges(pruned) == pruned
    assert num_changed


@pytest.mark.slow
def test_the_reduced_search_goes_on_where_it_was_and_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["--part", "reduced", "--population", "4", "--batch-size", "2", "--resolution", "32"]
    words += ["--data", str(tmp_path), "--results", str(tmp_path / "out"), "--storage", str(tmp_path / "trials.db")]
    for trials in (2, 3):
        benchmark.main([*words, "--trials", str(trials)])
        printed = capsys.readouterr().out
        assert f"search_imagenet_450m.yaml: {trials} trials, population 4, 2 batches of 2 at 32 pixels" in printed
        assert "published, 450M" in printed
    assert len(SearchResult.from_json(tmp_path / "out" / "search-reduced.json")) == 3


def test_the_published_networks_are_within_the_budgets_that_they_were_found_for() -> None:
    search = benchmark.configured(benchmark.CONFIG, storage=None)
    for millions, text in benchmark.PUBLISHED.items():
        arch = search.space.parse(text)
        assert search.space.macs(arch, 224, num_classes=1000) <= millions * 1e6
        assert search.space.depth(arch) == (16 if millions == 1000 else 14)


@pytest.mark.slow
def test_what_a_thousand_trials_find_in_nas_bench_201_is_accurate_when_trained() -> None:
    folder = data_file("nas_bench_201_proxies_by_others_cifar10.csv.gz").parent
    table = nas_bench_201(folder)
    accuracy = {row.name: row.truths["test_cifar10"] for row in table.rows}
    cards = benchmark.cards_by_others(folder, table)
    batches = [(torch.randn(1, 3, 32, 32), torch.zeros(1, dtype=torch.long)) for _ in range(2)]

    def found(sampler: Evolution | str, seed: int) -> float:
        executor = benchmark.Lookup(cards)
        arguments = {"proxies": "without_blocks", "num_trials": 1000, "executor": executor}
        search = ZeroShotSearch("nas_bench_201", sampler=sampler, seed=seed, **arguments)
        return accuracy[str(search.run(batches).best)]

    evolution, chance = ([found(sampler, seed) for seed in range(5)] for sampler in (Evolution(), "random"))
    assert statistics.median(evolution) >= 93.5
    assert statistics.median(evolution) >= statistics.median(chance)


def test_a_screened_study_trains_the_best_of_eight_proposals() -> None:
    table = nas_bench_201(data_file("nas_bench_201.csv.gz").parent)
    data_file("nas_bench_201_proxies_by_others_cifar10.csv.gz")
    cards = benchmark.cards_by_others(data_file("nas_bench_201.csv.gz").parent, table)
    plain = benchmark.study_of(optuna.samplers.RandomSampler(0), None, table, cards, 16)
    screened = benchmark.study_of(optuna.samplers.RandomSampler(0), "params", table, cards, 2)
    params = {arch: card["params"].value for arch, card in cards.items()}
    # The same seed makes the same proposals, eight for each trial.
    assert [params[arch] for arch in screened] == [max(params[arch] for arch in plain[k : k + 8]) for k in (0, 8)]


@pytest.mark.slow
def test_screening_prints_what_is_lost_after_each_number_of_trainings(capsys: pytest.CaptureFixture) -> None:
    folder = data_file("nas_bench_201_proxies_by_others_cifar10.csv.gz").parent
    words = ["--part", "screening", "--screening-trials", "10", "--num-seeds", "2", "--data", str(folder)]
    benchmark.main(words)
    printed = capsys.readouterr().out
    assert "mean of 2 seeds" in printed
    assert "5 trainings" in printed
    assert "10 trainings" in printed
    assert "20 trainings" not in printed
