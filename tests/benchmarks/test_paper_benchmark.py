"""The benchmark of the paper's claims: tables, gradients and losses, searches that share scores, and the supernet."""

import itertools
import json
import math
import random
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_zico import ZeroShotSearch, ZiCo, score
from lightning_zico.ranking import kendall
from lightning_zico.spaces import NASBench201, NASBench201Arch
from tests.data import data_file

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import paper
import paper_imagenet
import paper_search
import paper_supernet
import paper_tables
import paper_theory
import published

SPACE = NASBench201()
# The first convolution leads nowhere.
ARCH = SPACE.parse("|nor_conv_3x3~0|+|nor_conv_1x1~0|none~1|+|skip_connect~0|none~1|nor_conv_3x3~2|")


def images(count: int, seed: int = 0) -> paper_theory.Images:
    generator = torch.Generator().manual_seed(seed)
    return paper_theory.Images(torch.randn(count, 3, 8, 8, generator=generator), torch.arange(count) % 10)


# --- tables --------------------------------------------------------------------------------------


def figures(tau: float, low: float, high: float) -> dict[str, object]:
    return {"n": 9, "tau": tau, "tau_interval": [low, high], "rho": tau, "rho_interval": [low, high]}


def test_every_figure_of_the_paper_is_a_cell_and_says_why_it_has_none_of_ours(tmp_path: Path) -> None:
    (tmp_path / "paper").mkdir()
    own = {"test_cifar10": {"scores": {"zico": figures(0.58, 0.53, 0.64), "params": figures(0.5, 0.45, 0.55)}}}
    (tmp_path / "nas-bench-201.json").write_text(json.dumps({"targets": own}))
    other = {"test_cifar10": {"scores": {"zico": figures(0.1, 0.0, 0.2), "snip": figures(0.4, 0.3, 0.5)}}}
    (tmp_path / "paper" / "nas-bench-201.json").write_text(json.dumps({"targets": other}))
    cells = list(paper_tables.cells_of(tmp_path))
    lines = [line.partition(": ") for line in published.FIGURES.strip().splitlines()]
    assert len(cells) == sum(len(entries.split(", ")) for place, _, entries in lines if place.endswith(" Z"))
    of = {(cell.benchmark, cell.target, cell.proxy): cell for cell in cells}
    zico = of["nas-bench-201", "test_cifar10", "zico"]
    assert (zico.difference, zico.is_inside) == (pytest.approx(0.58 - 0.61), True)  # of the larger sample
    assert of["nas-bench-201", "test_cifar10", "params"].is_inside is False
    assert of["nas-bench-201", "test_cifar10", "snip"].is_inside is True
    assert of["nas-bench-201", "test_cifar10", "fisher"].reason == paper_tables.NOT_SCORED
    assert of["nas-bench-201", "test_imagenet16_120", "zico"].reason == paper_tables.NO_ACCURACIES


# --- theory --------------------------------------------------------------------------------------


def test_values_are_those_of_a_loop_and_zico_is_that_of_the_package() -> None:
    torch.manual_seed(0)
    network = SPACE.build(ARCH).double()
    batches = [(x.double(), y) for x, y in images(24).batches(8)]
    gradients = paper_theory.gradients_of(network, batches)
    values = paper_theory.values_of(gradients)
    layers: list[list[float]] = []
    for own in gradients:
        array = own.flatten(1).numpy()
        size, deviation = np.abs(array).mean(axis=0), array.std(axis=0)
        ratios = [a / b for a, b in zip(size, deviation, strict=True) if b > 0]
        if ratios:
            layers.append([size.mean(), deviation.mean(), np.mean(ratios), sum(ratios)])
    logs = np.log(layers)
    expected = dict(
        zip(("mean", "deviation", "ratio", "zico"), [*logs[:, :3].mean(axis=0), logs[:, 3].sum()], strict=True)
    )
    assert values == pytest.approx(expected)
    assert len(layers) == len(gradients) - 15  # without the first convolution of each cell
    card = score(network, batches, proxies=[ZiCo(parameters="published")], loss_fn=cross_entropy)
    assert values["zico"] == pytest.approx(card["zico"].value, rel=1e-6)


def test_networks_are_different_and_something_flows_through_them() -> None:
    archs = paper_theory.drawn(30)
    assert len(set(archs)) == 30
    assert archs[:5] == paper_theory.drawn(5)
    assert NASBench201Arch(("none",) * 6) not in archs
    for arch in archs[:6]:
        network = SPACE.build(arch)
        outputs = network(images(4).images)
        assert (outputs[0] - outputs[1]).abs().max() > 0, arch


def test_losses_are_measured_before_during_and_after_the_steps() -> None:
    train, test = images(24), images(24, seed=1)
    settings = paper_theory.Settings(num_images=24, steps=(0, 2), batch_size=12)

    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(192, 10))

    losses = paper_theory.losses_of(network(), train, test, settings, seed=3)
    own = network()
    assert losses["train"][0] == pytest.approx(cross_entropy(own(train.images), train.labels).item())
    first, second = torch.randperm(24, generator=torch.Generator().manual_seed(3)).split(12)
    for places in (second, first):  # taken from the end
        gradients = torch.autograd.grad(
            cross_entropy(own(train.images[places]), train.labels[places]), own.parameters()
        )
        with torch.no_grad():
            for parameter, gradient in zip(own.parameters(), gradients, strict=True):
                parameter -= settings.lr * gradient
    assert losses["train"][1] == pytest.approx(cross_entropy(own(train.images), train.labels).item(), rel=1e-5)
    assert losses["test"][1] == pytest.approx(cross_entropy(own(test.images), test.labels).item(), rel=1e-5)


def test_partial_tau_is_the_correlation_of_agreement_with_the_fixed_order() -> None:
    a, b, fixed = np.random.default_rng(0).normal(size=(3, 25))
    b, fixed = b + a, fixed + a
    pairs = list(itertools.combinations(range(25), 2))
    agrees = [[(x[i] < x[j]) == (fixed[i] < fixed[j]) for i, j in pairs] for x in (a, b)]
    assert paper_theory.partial_kendall(a, b, fixed) == pytest.approx(np.corrcoef(agrees)[0, 1])
    assert paper_theory.partial_kendall(a, b, np.zeros(25)) is None
    columns = [{"loss": a.tolist()}, {"loss": b.tolist()}]
    assert paper_theory.between_seeds(columns) == {"loss": kendall(a, b)}
    assert paper_theory.between_seeds(columns[:1]) == {}
    measured, interval = paper_theory.with_interval(kendall, a, b)
    assert measured == kendall(a, b)
    assert interval is not None
    assert interval.low < measured < interval.high


# --- search --------------------------------------------------------------------------------------


def test_searches_share_scores_which_a_file_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = images(8)
    path = tmp_path / "cards.jsonl"

    def run(seed: int) -> tuple[dict[str, float], paper_search.Remembering]:
        executor = paper_search.Remembering(path)
        settings = {"proxies": "naswot", "num_trials": 3, "batch_size": None, "executor": executor}
        search = ZeroShotSearch("nas_bench_201", sampler="random", seed=seed, enable_progress_bar=False, **settings)
        return {row["arch"]: row["score"] for row in search.run(data.batches(4)).history}, executor

    first, executor = run(0)
    other, _ = run(1)
    assert set(first) != set(other)
    assert all(record["seconds"] > 0 for record in executor.records.values())
    monkeypatch.setattr("lightning_zico.scoring.scorer.Scorer.score", None)  # nothing is scored again
    again, _ = run(0)
    assert again == first
    seeds = dict(paper_search.Remembering(path).records)
    assert set(seeds) == set(first) | set(other)


def test_published_accuracies_agree_with_the_table() -> None:
    rows = paper_search.nas_bench_201(data_file("nas_bench_201.csv.gz").parent).rows
    skips = next(row for row in rows if set(SPACE.parse(row.name).ops) == {"skip_connect"})  # what DARTS ends with
    darts = paper_search.PUBLISHED["DARTS, first order"]
    assert f"{skips.truths['test_cifar10']:.2f}" == darts.cifar10.split()[0]
    assert f"{skips.truths['test_cifar100']:.2f}" == (darts.cifar100 or "").split()[0]


@pytest.mark.parametrize("num_trained", [1, 2, 5, 7])
def test_the_chances_of_random_search_are_those_of_all_draws(num_trained: int) -> None:
    draws = list(itertools.combinations(range(7), num_trained))
    shares = [sum(max(draw) == arch for draw in draws) / len(draws) for arch in range(7)]
    assert paper_search.chances_of_best(7, num_trained) == pytest.approx(shares)


def test_a_random_arch_has_the_mean_accuracy_of_the_table() -> None:
    rows = paper_search.nas_bench_201(data_file("nas_bench_201.csv.gz").parent).rows
    values = [row.truths["test_cifar10"] for row in rows]
    first, *_, last = paper_search.random_rows(rows)
    assert first[1] == f"{np.mean(values):.2f} ({np.std(values):.2f})"
    assert float(first[1].split()[0]) < float(last[1].split()[0]) < max(values)


def test_a_path_of_the_supernet_is_the_network_of_its_arch_with_shared_weights() -> None:
    torch.manual_seed(0)
    supernet = paper_supernet.Supernet()
    rng, x = random.Random(0), images(4).images
    for arch in (ARCH, SPACE.sample(rng), SPACE.sample(rng)):
        path, own = supernet.path(arch).train(), SPACE.build(arch).train()
        with torch.no_grad():
            for given, taken in zip(own.parameters(), path.parameters(), strict=True):
                given.copy_(taken)
        torch.testing.assert_close(path(x), own(x))
        shared = {id(parameter) for parameter in supernet.shared_parameters()}
        assert {id(parameter) for parameter in path.parameters()} <= shared
    assert len(shared) == len(supernet.shared_parameters())


def test_a_supernet_trains_for_its_seconds_and_ranks_archs() -> None:
    torch.manual_seed(0)
    supernet, data = paper_supernet.Supernet(), images(20)
    before = [parameter.clone() for parameter in supernet.shared_parameters()]
    assert paper_supernet.train(supernet, data, 0.1, seed=0) >= 1
    assert any(not torch.equal(a, b) for a, b in zip(before, supernet.shared_parameters(), strict=True))
    found = paper_supernet.rank(supernet, data, 0.0, seed=0)
    assert len(found) == 2
    assert all(0 <= value <= 100 for value in found.values())


# --- the command ---------------------------------------------------------------------------------


def test_the_commands_of_imagenet_are_those_of_the_files(tmp_path: Path) -> None:
    words = paper_imagenet.command(paper_imagenet.CONFIG, tmp_path / "images", tmp_path, paper_imagenet.Settings())
    assert words[1:5] == ["-m", "lightning_zico", "search", "--config"]
    for millions in paper_imagenet.Settings().budgets:
        assert paper_imagenet.CONFIG.with_name(f"search_imagenet_{millions}m.yaml").is_file()
        assert millions in paper_imagenet.PUBLISHED


def test_the_files_of_imagenet_have_the_published_protocol() -> None:
    for millions, depth in paper_imagenet.MOST_DEPTH.items():
        path = paper_imagenet.CONFIG.with_name(f"search_imagenet_{millions}m.yaml")
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert config["budget"] == {"macs": millions * 1e6, "depth": depth}
        assert config["num_trials"] == paper_imagenet.NUM_TRIALS
        assert config["num_batches"] == paper_imagenet.NUM_BATCHES
        assert config["data"]["init_args"]["batch_size"] == paper_imagenet.BATCH_SIZE
        assert config["batch_size"] is None  # whole batches, not their first samples


def test_options_change_the_size_of_the_parts() -> None:
    own = paper.with_settings(paper.parser().parse_args(["--trials", "7", "--seeds", "2", "--networks", "3"]))
    assert (own.search.num_trials, own.search.num_seeds) == (7, 2)
    assert (own.theory.num_networks, own.theory.num_seeds) == (3, 2)
    assert own.search.scores == paper_search.Settings().scores
    quick = paper.with_settings(Namespace(trials=None, seeds=None, networks=None, quick=True))
    assert (quick.search, quick.theory, quick.imagenet) == (
        paper_search.QUICK,
        paper_theory.QUICK,
        paper_imagenet.QUICK,
    )


def test_tables_are_printed_without_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paper.main(["--part", "tables", "--data", str(tmp_path), "--results", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "nas-bench-201, test_imagenet16_120 (the paper's table 3)" in printed
    assert paper_tables.NO_ACCURACIES in printed
    assert (tmp_path / "paper-tables.json").exists()


@pytest.mark.slow
def test_a_small_run_prints_and_keeps_all_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = data_file("nas_bench_201.csv.gz").parent
    paper.main(["--quick", "--data", str(folder), "--cache", str(tmp_path / "cache"), "--results", str(tmp_path)])
    printed = capsys.readouterr().out
    for said in ("What training for a moment says", "Supernet: seed 1", "search_imagenet_450m.yaml"):
        assert said in printed
    for part in paper.PARTS:
        assert json.loads((tmp_path / "quick" / f"paper-{part}.json").read_text())["versions"]
    found = json.loads((tmp_path / "quick" / "paper-search.json").read_text())["found"]
    assert all(math.isfinite(own["test_cifar10"]) for runs in found.values() for own in runs)


@pytest.mark.slow
def test_published_networks_are_timed_from_building_to_the_score() -> None:
    assert paper_imagenet.time_published(450, "cpu", batch_size=2, resolution=32) > 0
