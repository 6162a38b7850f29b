"""Zoos of pretrained models: their weights, their own sizes, the default recipe, and weights that cannot be loaded."""

import urllib.error
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError

import huggingface_hub.errors
import pytest
import safetensors
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from lightning_zico import ZeroShotSelector
from lightning_zico.errors import UnsupportedModuleError, WeightsNotLoadedError
from lightning_zico.zoo import (
    PRETRAINED_PROXIES,
    ImageClassifier,
    from_timm,
    from_torchvision,
    from_transformers,
    zoo_model,
)
from lightning_zico.zoo.classifiers import PRETRAINED_BODY_LR, head_of
from lightning_zico.zoo.layers import last_layer
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


def test_the_last_layer_is_fresh_also_if_the_checkpoint_has_as_many_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = CHECKPOINTS[0]
    saved = [
        cache_timm(tmp_path / "hub", monkeypatch, name)[name],
        cache_torchvision(tmp_path, monkeypatch, "mobilenet_v3_small"),
    ]
    models = [
        *from_timm(name, num_classes=1000, pretrained=True).models,
        *from_torchvision("mobilenet_v3_small", num_classes=1000, pretrained=True).models,
    ]
    for weights, model in zip(saved, models, strict=True):
        states = []
        for seed in (5, 5, 6):
            torch.manual_seed(seed)
            states.append(model.network().state_dict())
        head = f"{last_layer(model.network())[0]}."
        assert {key for key in weights if not torch.equal(states[0][key], weights[key])} - {f"{head}bias"} == {
            f"{head}weight"
        }
        assert all(torch.equal(states[0][key], states[1][key]) for key in weights)
        assert not torch.equal(states[0][f"{head}weight"], states[2][f"{head}weight"])


@pytest.mark.parametrize("num_classes", [NUM_CLASSES, 1000])
def test_a_checkpoint_of_timm_that_lacks_weights_of_the_body_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_classes: int
) -> None:
    name = CHECKPOINTS[0]
    saved = cache_timm(tmp_path, monkeypatch, name)[name]
    (file,) = tmp_path.rglob("model.safetensors")
    save_file({key: value for key, value in saved.items() if key != "blocks.0.0.conv_dw.weight"}, file)
    (model,) = from_timm(name, num_classes=num_classes, pretrained=True).models
    with pytest.raises(WeightsNotLoadedError, match=r"blocks\.0\.0\.conv_dw\.weight"):
        model.network()


def test_both_heads_of_a_distilled_network_are_fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "deit_tiny_distilled_patch16_224.fb_in1k"
    saved = cache_timm(tmp_path, monkeypatch, name)[name]
    (model,) = from_timm(name, num_classes=1000, pretrained=True).models
    state = model.network().state_dict()
    changed = {key for key, value in saved.items() if not torch.equal(state[key], value)}
    assert changed == {"head.weight", "head_dist.weight"}  # biases are zero


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
    assert error.endswith("Connect to the internet, put the file there, or leave the model out with `exclude`.")


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("refused"),
        urllib.error.URLError("no route"),
        RuntimeError("Error(s) in loading state_dict for LcNet"),
        UnpicklingError("invalid load key"),
        EOFError("Ran out of input"),
        huggingface_hub.errors.EntryNotFoundError("no such file"),
        safetensors.SafetensorError("header too large"),
    ],
)
def test_errors_of_loading_say_what_to_do(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(timm, "create_model", raising(error))
    (model,) = from_timm("lcnet_050", num_classes=3, pretrained=True).models
    with pytest.raises(WeightsNotLoadedError, match=f"{type(error).__name__}: .*Connect to the internet") as caught:
        model.network()
    assert caught.value.__cause__ is error
    (untrained,) = from_timm("lcnet_050", num_classes=3).models
    with pytest.raises(type(error)) as caught:
        untrained.network()
    assert caught.value is error


@pytest.mark.parametrize(
    "error",
    [
        ValueError("patch size"),
        MemoryError(),
        torch.OutOfMemoryError(),
        NotImplementedError("no such pool"),
        TypeError("img_size"),
        KeyError("depth"),
    ],
)
def test_other_errors_of_building_stay_as_they_are(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(timm, "create_model", raising(error))
    (model,) = from_timm("lcnet_050", num_classes=3, pretrained=True).models
    with pytest.raises(type(error)) as caught:
        model.network()
    assert caught.value is error


def raising(error: Exception) -> Callable[..., nn.Module]:
    def create_model(*_: object, **__: object) -> nn.Module:
        raise error

    return create_model


def test_the_error_of_an_unknown_head_also_fits_models_of_a_zoo() -> None:
    with pytest.raises(UnsupportedModuleError, match="Leave the model out, or put its network into a classifier with"):
        head_of(nn.Sequential(nn.Linear(4, 8)), 3)


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


def untrained_state(monkeypatch: pytest.MonkeyPatch, name: str) -> list[object]:
    """Let weights of torchvision be those of an untrained network; the list has the weights that were asked for."""
    asked: list[object] = []

    def state(weights: object, *_: object, **__: object) -> dict[str, torch.Tensor]:
        asked.append(weights)
        more = {"init_weights": False} if name in ("inception_v3", "googlenet") else {}
        network: nn.Module = torchvision.models.get_model(name, weights=None, **more)
        return network.state_dict()

    monkeypatch.setattr(type(torchvision.models.get_model_weights(name).DEFAULT), "get_state_dict", state)
    return asked


@pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")  # the MaxViT of older versions of torchvision
@pytest.mark.parametrize("in_chans", [1, 3, 4])
@pytest.mark.parametrize("name", ["inception_v3", "googlenet", "vit_b_16", "maxvit_t"])
def test_every_family_of_torchvision_takes_its_weights(
    monkeypatch: pytest.MonkeyPatch, name: str, in_chans: int
) -> None:
    """On the meta device, since the weights are large; torchvision builds and loads as it does with published ones."""
    options = {"num_classes": 3, "in_chans": in_chans, "input_size": 32, "resize": True}
    (model,) = from_torchvision(name, pretrained=True, **options).models
    asked = untrained_state(monkeypatch, name)
    with torch.device("meta"):
        network = model.network()
        assert asked == [torchvision.models.get_model_weights(name).DEFAULT]
        size = model.native_size()
        assert size == ((299, 299) if name == "inception_v3" else (224, 224))
        for training in (True, False):  # no auxiliary heads, whose outputs would come along in training
            assert network.train(training)(torch.empty(2, in_chans, *size)).shape == (2, 3)
    assert {name.partition(".")[0] for name in network.state_dict()}.isdisjoint({"AuxLogits", "aux1", "aux2"})


@pytest.mark.parametrize("in_chans", [3, 4])
def test_every_channel_counts_also_where_weights_bring_a_normalisation_of_three(
    monkeypatch: pytest.MonkeyPatch, in_chans: int
) -> None:
    (model,) = from_torchvision("googlenet", num_classes=3, in_chans=in_chans, pretrained=True).models
    untrained_state(monkeypatch, "googlenet")
    torch.manual_seed(0)
    network = model.network().eval()
    images = torch.randn(2, in_chans, 64, 64, requires_grad=True)
    network(images).sum().backward()
    assert (images.grad.abs().sum((0, 2, 3)) > 0).all()
    assert network.transform_input == (in_chans == 3)


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


def test_one_model_by_class_path_has_its_weights_and_its_own_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = CHECKPOINTS[1]
    saved = cache_timm(tmp_path, monkeypatch, name)[name]
    built = zoo_model(f"timm:{name}", NUM_CLASSES, pretrained=True)
    assert isinstance(built, ImageClassifier)
    assert torch.equal(built.network.state_dict()["conv_stem.weight"], saved["conv_stem.weight"])
    assert (built.input_size, built.resize, built.body_lr_factor) == ((224, 224), True, PRETRAINED_BODY_LR)
    assert not zoo_model(f"timm:{name}", NUM_CLASSES, input_size=64, pretrained=True).resize
    untrained = zoo_model(f"timm:{name}", NUM_CLASSES)
    assert not torch.equal(untrained.network.state_dict()["conv_stem.weight"], saved["conv_stem.weight"])
    assert (untrained.resize, untrained.body_lr_factor) == (False, 1)
