"""Zoos of pretrained models: their weights, their own sizes, the default recipe, and weights that cannot be loaded."""

from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import nn

from lightning_zico import ZeroShotSelector
from lightning_zico.zoo import PRETRAINED_PROXIES, ImageClassifier, from_timm, from_torchvision, from_transformers
from lightning_zico.zoo.published import timm_accuracies
from tests.zoo.checkpoints import CHECKPOINTS, cache_timm, cache_torchvision
from tests.zoo.data import NUM_CLASSES, image_batches


def test_weights_are_those_of_the_checkpoint_and_images_are_resized_to_its_own_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = CHECKPOINTS[0]
    saved = cache_timm(tmp_path, monkeypatch, name)[name]
    (model,) = from_timm(name, num_classes=NUM_CLASSES, data=image_batches(32), pretrained=True).models
    built = model()
    assert isinstance(built, ImageClassifier)
    own = timm.get_pretrained_cfg(name).input_size
    assert built.input_size == model.native_size() == (own[1], own[2]) == (224, 224)
    state = built.network.state_dict()
    head = [key for key in saved if key.startswith("classifier")]
    assert all(torch.equal(state[key], value) for key, value in saved.items() if key not in head)
    assert [state[key].shape[0] for key in head] == [NUM_CLASSES] * len(head)
    assert built(image_batches(32)[0][0]).shape == (4, NUM_CLASSES)


def test_a_size_that_is_asked_for_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache_timm(tmp_path, monkeypatch, CHECKPOINTS[0])
    (model,) = from_timm(CHECKPOINTS[0], num_classes=3, input_size=64, pretrained=True).models
    assert model().input_size == (64, 64)
    (untrained,) = from_timm(CHECKPOINTS[0], num_classes=3).models
    assert untrained().input_size is None


def test_pretrained_models_are_ranked_by_what_is_published_beside_the_probe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache_timm(tmp_path, monkeypatch, *CHECKPOINTS)
    batches = image_batches(32, 12)
    zoo = from_timm(*CHECKPOINTS, num_classes=NUM_CLASSES, data=batches, pretrained=True)
    selector = ZeroShotSelector(proxies=PRETRAINED_PROXIES, enable_progress_bar=False)
    leaderboard = selector.rank(zoo, batches)
    assert leaderboard.provenance["rank_by"] == "transfer"
    assert leaderboard.provenance["num_pretrained"] == 3
    assert {row["name"]: row["prior"] for row in leaderboard} == {name: timm_accuracies()[name] for name in CHECKPOINTS}
    assert {row["input_size"] for row in leaderboard} == {224}
    assert leaderboard.provenance["recipes"]["transfer"]["members"] == ["prior"]
    assert all(row["score"] == row["prior"] and row["ridge_probe"] is not None for row in leaderboard)
    assert any("fine-tuning" in note for note in leaderboard.notes)
    assert any(note.startswith("By ridge_probe, ") for note in leaderboard.notes)


def test_weights_that_are_not_there_are_a_row_that_names_the_model_and_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache_timm(tmp_path, monkeypatch, *CHECKPOINTS[:2])
    batches = image_batches(32, 12)
    zoo = from_timm(*CHECKPOINTS, num_classes=NUM_CLASSES, data=batches, pretrained=True)
    leaderboard = ZeroShotSelector(enable_progress_bar=False).rank(zoo, batches)
    assert [row["rank"] for row in leaderboard][-1] is None
    error = leaderboard.errors[CHECKPOINTS[2]]
    assert f"The weights of 'timm:{CHECKPOINTS[2]}' could neither be loaded from {tmp_path} (HF_HOME" in error
    assert "\n" not in error


def test_an_argument_that_the_network_does_not_take_is_no_question_of_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache_timm(tmp_path, monkeypatch, CHECKPOINTS[0])
    (model,) = from_timm(CHECKPOINTS[0], num_classes=3, pretrained=True).models
    with pytest.raises(TypeError, match="img_size"):
        model.build((32, 32))


@pytest.mark.parametrize("in_chans", [1, 3, 4])
def test_weights_of_torchvision_with_a_fresh_last_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_chans: int
) -> None:
    saved = cache_torchvision(tmp_path, monkeypatch, "squeezenet1_1")
    (model,) = from_torchvision("squeezenet1_1", num_classes=3, in_chans=in_chans, pretrained=True).models
    built = model()
    assert built.input_size == model.native_size() == (224, 224)
    state = built.network.state_dict()
    fresh = {"classifier.1.weight", "classifier.1.bias", *(["features.0.weight"] if in_chans != 3 else [])}
    assert all(torch.equal(state[key], value) for key, value in saved.items() if key not in fresh)
    assert state["classifier.1.weight"].shape[0] == 3
    # As timm does: images that are grey give the same in any number of channels.
    grey = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    first = built.network.features[0]
    expected = nn.functional.conv2d(grey.expand(-1, 3, -1, -1), saved["features.0.weight"], saved["features.0.bias"], 2)
    if in_chans != 4:  # of four channels, one is counted twice
        torch.testing.assert_close(first(grey.expand(-1, in_chans, -1, -1)), expected, atol=1e-4, rtol=1e-4)


def test_torchvision_without_a_connection_names_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache_torchvision(tmp_path, monkeypatch, "squeezenet1_1")
    (model,) = from_torchvision("squeezenet1_0", num_classes=3, pretrained=True).models
    with pytest.raises(OSError, match=r"weights of 'torchvision:squeezenet1_0' could neither .*TORCH_HOME"):
        model()


@pytest.mark.parametrize("name", ["inception_v3", "googlenet", "vit_b_16", "maxvit_t"])
def test_every_family_of_torchvision_takes_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The weights are only looked up, since they are large; with them, a network is otherwise as published."""
    (model,) = from_torchvision(name, num_classes=3, pretrained=True, input_size=32, resize=True).models
    asked = {}

    def without_weights(name: str, weights: object, progress: bool, **options: object) -> nn.Module:
        asked[name] = weights
        more = {"init_weights": False} if name in ("inception_v3", "googlenet") else {}
        return torchvision.models.get_model_builder(name)(weights=None, **more, **options)

    monkeypatch.setattr(torchvision.models, "get_model", without_weights)
    with torch.device("meta"):
        network = model.network()
    assert asked == {name: torchvision.models.get_model_weights(name).DEFAULT}
    size = model.native_size()
    assert size == ((299, 299) if name == "inception_v3" else (224, 224))
    with torch.device("meta"):
        assert network.eval()(torch.empty(2, 3, *size)).shape == (2, 3)


def test_a_zoo_knows_the_size_that_its_models_are_published_for() -> None:
    zoo = from_timm("resnet18", "inception_v4", "vit_tiny_patch16_224", num_classes=3)
    assert zoo.input_size is not None
    assert zoo.input_size.values == {"resnet18": 224, "inception_v4": 299, "vit_tiny_patch16_224": 224}
    assert from_transformers("bert-tiny", num_classes=3).input_size is None
    images = from_transformers("beit-base", "resnet-18", num_classes=3).input_size
    assert images is not None
    assert images.values == {"beit-base": 224, "resnet-18": 224}
    assert not zoo.pretrained
    assert from_timm("resnet18", num_classes=3, pretrained=True).pretrained
