"""Candidates of timm carry the accuracies that timm publishes."""

import csv
import gzip
from pathlib import Path
from typing import Any

import pytest
import timm
import torchvision

from lightning_zico import Prior, ZeroShotSelector
from lightning_zico.errors import UnknownNameError
from lightning_zico.zoo import Zoo, from_timm, from_zoo, published
from lightning_zico.zoo.published import TIMM_SOURCE, timm_accuracies, timm_architectures
from tests.data import data_file
from tests.zoo.data import image_batches

SIZE = 32


def zoo_of(*names: str, **options: Any) -> Zoo:
    return from_timm(*names, num_classes=3, input_size=SIZE, **options)


def test_the_table_agrees_with_another_one_of_the_same_results() -> None:
    with data_file("timm_imagenet.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 296
    for row in rows:
        # That table has the accuracy at one image size, this one the best of two.
        assert timm_accuracies()[f"{row['arch']}.{row['tag']}"] >= float(row["top1"])


def test_timm_knows_the_architectures() -> None:
    assert set(timm_architectures()) <= set(timm.list_models())


def test_an_accuracy_is_the_best_of_the_sizes_and_of_the_checkpoints() -> None:
    with gzip.open(Path(published.__file__).parent / "timm.csv.gz", "rt", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["arch"] == "resnet50"]
    by_tag = {tag: [float(r["top1"]) for r in rows if r["tag"] == tag] for tag in {row["tag"] for row in rows}}
    assert max(map(len, by_tag.values())) == 2
    assert {tag: timm_accuracies()[f"resnet50.{tag}"] for tag in by_tag} == {tag: max(v) for tag, v in by_tag.items()}
    assert timm_architectures()["resnet50"] == max(map(max, by_tag.values()))


def test_a_checkpoint_has_its_own_accuracy_and_an_untrained_model_that_of_its_best() -> None:
    tagged, plain = "resnet18.tv_in1k", "resnet18"
    prior = zoo_of(tagged, plain).prior
    assert prior is not None
    assert prior.of(tagged) == timm_accuracies()[tagged]
    assert prior.of(plain) == timm_architectures()[plain]
    assert prior.source == TIMM_SOURCE
    loaded = zoo_of(plain, pretrained=True).prior
    assert loaded is not None
    assert loaded.of(plain) == timm_accuracies()[f"resnet18.{timm.get_pretrained_cfg('resnet18').tag}"]
    assert loaded.of(plain) != prior.of(plain)


def test_models_of_torchvision_have_that_of_its_weights_and_transformers_has_none() -> None:
    assert from_zoo("transformers:resnet-18", num_classes=3, input_size=SIZE).prior is None
    both = from_zoo("timm:resnet50", "torchvision:resnet50", num_classes=3, input_size=SIZE).prior
    assert both is not None
    assert both.of("timm:resnet50") == timm_architectures()["resnet50"]
    first, second = torchvision.models.ResNet50_Weights
    accuracies = [weights.meta["_metrics"]["ImageNet-1K"]["acc@1"] for weights in (first, second)]
    assert both.of("torchvision:resnet50") == max(accuracies)
    assert both.source is not None
    assert both.source.startswith(f"{TIMM_SOURCE}; top-1 accuracy on ImageNet-1k as the installed torchvision")


def test_a_zoo_is_ranked_by_its_published_accuracies_without_a_file() -> None:
    zoo = zoo_of("lcnet_050", "lcnet_100", "lcnet_035")
    selector = ZeroShotSelector(proxies="params", rank_by="prior", enable_progress_bar=False)
    leaderboard = selector.rank(zoo, list(image_batches(SIZE, 4)))
    rows = {row["name"]: row for row in leaderboard.rows}
    assert [row["name"] for row in leaderboard.rows] == ["lcnet_100", "lcnet_050", "lcnet_035"]
    assert rows["lcnet_100"]["prior"] == timm_architectures()["lcnet_100"]
    assert rows["lcnet_035"]["rank"] is None
    assert "no value for 'lcnet_035'" in rows["lcnet_035"]["error"]
    assert f"prior: {TIMM_SOURCE}." in leaderboard.notes


@pytest.mark.parametrize("way", ["prior", "proxies"])
def test_a_prior_of_the_user_takes_its_place(way: str) -> None:
    known = Prior({"lcnet_050": 1.0})
    options: dict[str, Any] = {"prior": known} if way == "prior" else {"proxies": ["params", known]}
    selector = ZeroShotSelector(**{"proxies": "params"} | options, enable_progress_bar=False)
    leaderboard = selector.rank(zoo_of("lcnet_050"), list(image_batches(SIZE, 4)))
    assert leaderboard.rows[0]["prior"] == 1.0
    assert not any(TIMM_SOURCE in note for note in leaderboard.notes)


def test_other_candidates_bring_no_prior() -> None:
    selector = ZeroShotSelector(proxies="params", rank_by="prior")
    with pytest.raises(UnknownNameError, match="prior"):
        selector.rank(list(zoo_of("lcnet_050")), list(image_batches(SIZE, 4)))
