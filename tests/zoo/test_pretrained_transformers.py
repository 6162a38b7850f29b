"""Checkpoints of transformers, saved on the spot: weights, sizes and heads, and what cannot be loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from lightning_zico import Candidate, ZeroShotSelector, score
from lightning_zico.errors import (
    InvalidArgumentError,
    NotApplicableError,
    UnknownNameError,
    UnsupportedInputError,
    WeightsNotLoadedError,
)
from lightning_zico.zoo import PRETRAINED_PROXIES, ImageClassifier, SequenceClassifier, from_transformers, from_zoo
from lightning_zico.zoo.classifiers import PRETRAINED_BODY_LR, head_of
from lightning_zico.zoo.layers import last_layer
from lightning_zico.zoo.published import timm_accuracies
from lightning_zico.zoo.transformers_models import _OF_TIMM, CHECKPOINTS, CONFIGS
from tests.reference import transfer as slow
from tests.zoo.data import NUM_CLASSES, image_batches, text_batches

NUM_SOURCE_CLASSES = 7
ENCODER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
IMAGE_CONFIGS: dict[str, dict[str, Any]] = {
    "vit": {**ENCODER, "image_size": 32, "patch_size": 16},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "image_size": 32},
    "swin": {"image_size": 32, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
}
TEXT_CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {**ENCODER, "vocab_size": 40},
    "roberta": {**ENCODER, "vocab_size": 40, "pad_token_id": 0},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "vocab_size": 40},
}


@pytest.fixture(autouse=True, name="cache")
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, without a connection."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def saved(folder: Path, kind: str, *, has_head: bool = True) -> Any:
    """Save a checkpoint with a head for seven classes, or without one, and return the network."""
    is_image = kind in IMAGE_CONFIGS
    config = transformers.AutoConfig.for_model(kind, **(IMAGE_CONFIGS if is_image else TEXT_CONFIGS)[kind])
    config.architectures = []
    config.num_labels = NUM_SOURCE_CLASSES
    torch.manual_seed(0)
    auto = transformers.AutoModelForImageClassification if is_image else transformers.AutoModelForSequenceClassification
    network = (auto if has_head else transformers.AutoModel).from_config(config)
    network.save_pretrained(folder)
    return network.eval()


def into_cache(cache: Path, repository: str, kind: str) -> Any:
    """Save a checkpoint where the hub's cache has those of a repository."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40, encoding="utf-8")
    return saved(folder / "snapshots" / ("0" * 40), kind)


def body_of(network: nn.Module) -> dict[str, torch.Tensor]:
    head = [name for name, each in network.named_modules() if isinstance(each, nn.Linear)][-1]
    return {key: value for key, value in network.state_dict().items() if not key.startswith(f"{head}.")}


@pytest.mark.parametrize("kind", IMAGE_CONFIGS)
def test_images_get_the_weights_and_the_size_of_the_checkpoint(kind: str, tmp_path: Path) -> None:
    expected = body_of(saved(tmp_path / kind, kind))
    batches = image_batches(48)
    (model,) = from_transformers(str(tmp_path / kind), num_classes=NUM_CLASSES, data=batches, pretrained=True).models
    built = model()
    assert isinstance(built, ImageClassifier)
    state = built.network.state_dict()
    assert len(expected) < len(state)
    assert all(torch.equal(state[key], value) for key, value in expected.items())
    assert built.input_size == model.native_size() == ((224, 224) if kind == "resnet" else (32, 32))
    assert built.training
    assert built.network.training
    assert built.body_lr_factor == PRETRAINED_BODY_LR
    assert built(batches[0][0]).shape == (4, NUM_CLASSES)


@pytest.mark.parametrize("num_classes", [NUM_CLASSES, NUM_SOURCE_CLASSES])
def test_both_heads_of_a_distilled_network_are_fresh(num_classes: int, tmp_path: Path) -> None:
    config = transformers.DeiTConfig(**ENCODER, image_size=32, patch_size=16)
    config.num_labels = NUM_SOURCE_CLASSES
    torch.manual_seed(0)
    source = transformers.DeiTForImageClassificationWithTeacher(config)
    for head in (source.cls_classifier, source.distillation_classifier):
        nn.init.ones_(head.weight)
    source.save_pretrained(tmp_path)
    (model,) = from_transformers(str(tmp_path), num_classes=num_classes, data=image_batches(32), pretrained=True).models
    network = model.network()
    heads = {"cls_classifier", "distillation_classifier"}
    expected = {key: value for key, value in source.state_dict().items() if key.partition(".")[0] not in heads}
    assert all(torch.equal(network.state_dict()[key], value) for key, value in expected.items())
    fresh = [network.get_submodule(head) for head in ("cls_classifier", "distillation_classifier")]
    assert all(head.weight.shape == (num_classes, 16) and not head.weight.eq(1).any() for head in fresh)
    assert head_of(network, num_classes) == fresh
    card = score(Candidate("deit", model, pretrained=True), image_batches(32), ["logme", "leep"])
    assert card["logme"].value is not None
    assert card["leep"].error == "not applicable: the checkpoint's head is not a single layer."


@pytest.mark.parametrize("kind", TEXT_CONFIGS)
def test_texts_get_the_weights_of_the_checkpoint(kind: str, tmp_path: Path) -> None:
    expected = body_of(saved(tmp_path / kind, kind))
    batches = text_batches()
    zoo = from_transformers(str(tmp_path / kind), num_classes=NUM_CLASSES, pretrained=True, head_epochs=1)
    built = zoo.models[0]()
    assert isinstance(built, SequenceClassifier)
    assert (built.head_epochs, built.body_lr_factor) == (1, PRETRAINED_BODY_LR)
    state = built.network.state_dict()
    assert all(torch.equal(state[key], value) for key, value in expected.items())
    assert built(built.split(batches[0])[0]).shape == (4, NUM_CLASSES)


@pytest.mark.parametrize("in_chans", [1, 4])
@pytest.mark.parametrize("kind", IMAGE_CONFIGS)
def test_grey_images_give_the_same_in_any_number_of_channels(kind: str, in_chans: int, tmp_path: Path) -> None:
    saved(tmp_path / kind, kind)
    grey = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    outputs = []
    for channels in (3, in_chans):
        (model,) = from_transformers(
            str(tmp_path / kind), num_classes=NUM_SOURCE_CLASSES, in_chans=channels, input_size=32, pretrained=True
        ).models
        torch.manual_seed(1)  # of the head, which is fresh
        outputs.append(model().eval()(grey.expand(-1, channels, -1, -1)))
    if in_chans == 1:  # of four channels, one is counted twice
        torch.testing.assert_close(outputs[1], outputs[0], atol=1e-4, rtol=1e-4)
    assert outputs[1].shape == (2, NUM_SOURCE_CLASSES)


@torch.no_grad()
def test_texts_are_scored_by_the_head_that_came_with_the_checkpoint(tmp_path: Path) -> None:
    network, batches = saved(tmp_path / "bert", "bert"), text_batches(6)
    (model,) = from_transformers(str(tmp_path / "bert"), num_classes=NUM_CLASSES, pretrained=True).models
    card = score(Candidate("bert", model, pretrained=True), batches, ["leep", "nce", "logme"])
    inputs = [{key: part for key, part in batch.items() if key != "labels"} for batch in batches]
    outputs = torch.cat([network(**each).logits for each in inputs])
    labels = torch.cat([batch["labels"] for batch in batches])
    assert card["leep"].value == pytest.approx(slow.leep(outputs.softmax(1).numpy(), labels.numpy()), rel=1e-5)
    assert card["nce"].value == pytest.approx(slow.nce(outputs.argmax(1).numpy(), labels.numpy()))
    assert card["leep"].details["num_source_classes"] == NUM_SOURCE_CLASSES
    assert card["logme"].value is not None


@torch.no_grad()
def test_images_are_scored_by_the_head_that_came_with_the_checkpoint(tmp_path: Path) -> None:
    network, batches = saved(tmp_path / "vit", "vit"), image_batches(32, 6)
    (model,) = from_transformers(str(tmp_path / "vit"), num_classes=NUM_CLASSES, data=batches, pretrained=True).models
    card = score(Candidate("vit", model, pretrained=True), batches, ["leep"])
    outputs, labels = network(torch.cat([b[0] for b in batches])).logits, torch.cat([b[1] for b in batches])
    assert card["leep"].value == pytest.approx(slow.leep(outputs.softmax(1).numpy(), labels.numpy()), rel=1e-5)


def test_a_checkpoint_without_a_head_has_features_and_no_leep(tmp_path: Path) -> None:
    saved(tmp_path / "bert", "bert", has_head=False)
    (model,) = from_transformers(str(tmp_path / "bert"), num_classes=NUM_CLASSES, pretrained=True).models
    card = score(Candidate("bert", model, pretrained=True), text_batches(6), ["leep", "logme"])
    assert str(card["leep"].error).startswith("not applicable: the checkpoint came without a head")
    assert card["logme"].value is not None


def test_loading_says_nothing_and_leaves_the_settings_of_transformers(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path / "bert", "bert", has_head=False)
    (model,) = from_transformers(str(tmp_path / "bert"), num_classes=NUM_CLASSES, pretrained=True).models
    logging = transformers.utils.logging
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    capfd.readouterr()
    model()
    assert "".join(capfd.readouterr()) == ""
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_repositories_of_the_table_can_be_listed_without_a_connection() -> None:
    zoo = from_transformers("*", num_classes=NUM_CLASSES, pretrained=True)
    assert zoo.names == list(CHECKPOINTS)
    assert zoo.pretrained
    assert set(CHECKPOINTS) <= set(CONFIGS)
    sizes = zoo.input_size
    assert sizes is not None
    assert {name for name, side in sizes.values.items() if side != 224} == {"swinv2-tiny"}
    assert sizes.values["swinv2-tiny"] == 256


def test_the_prior_is_there_where_the_same_weights_have_a_published_accuracy() -> None:
    assert set(_OF_TIMM) <= set(CHECKPOINTS.values())
    assert set(_OF_TIMM.values()) <= set(timm_accuracies())
    zoo = from_transformers("deit-tiny", "resnet-50", "bert-tiny", num_classes=NUM_CLASSES, pretrained=True)
    assert zoo.prior is not None
    assert zoo.prior.values == {"deit-tiny": timm_accuracies()["deit_tiny_patch16_224.fb_in1k"]}
    assert from_transformers("bert-tiny", num_classes=2, pretrained=True).prior is None
    assert from_transformers("deit-tiny", num_classes=2).prior is None


def test_checkpoints_that_are_not_there_are_rows_and_the_others_are_ranked(cache: Path) -> None:
    into_cache(cache, CHECKPOINTS["resnet-18"], "resnet")
    into_cache(cache, "somebody/vit", "vit")
    batches = image_batches(32, 12)
    zoo = from_zoo(
        "transformers:resnet-18,somebody/vit,deit-tiny,nobody/here",
        num_classes=NUM_CLASSES,
        data=batches,
        pretrained=True,
    )
    assert zoo.names == ["resnet-18", "somebody/vit", "deit-tiny", "nobody/here"]
    leaderboard = ZeroShotSelector(proxies=PRETRAINED_PROXIES, enable_progress_bar=False).rank(zoo, batches)
    assert {row["name"] for row in leaderboard if row["rank"]} == {"resnet-18", "somebody/vit"}
    for name in ("deit-tiny", "nobody/here"):
        error = leaderboard.errors[name]
        assert f"The weights of 'transformers:{name}' could neither be loaded from {cache} (HF_HOME" in error
        assert "\n" not in error
        assert error.endswith("Connect to the internet, put the file there, or leave the model out with `exclude`.")


def test_if_nothing_is_there_the_error_comes_at_once() -> None:
    with pytest.raises(WeightsNotLoadedError, match="'transformers:nobody/here' could neither"):
        from_transformers("nobody/here", "nobody/there", num_classes=2, pretrained=True)


def test_a_vocabulary_that_the_checkpoint_does_not_have_is_an_error(tmp_path: Path) -> None:
    saved(tmp_path / "bert", "bert")
    (model,) = from_transformers(str(tmp_path / "bert"), num_classes=2, vocab_size=41, pretrained=True).models
    with pytest.raises(UnsupportedInputError, match=r"has 41 tokens, that of the checkpoint of .* 40\. Tokenise"):
        model()
    (model,) = from_transformers(str(tmp_path / "bert"), num_classes=2, vocab_size=30, pretrained=True).models
    assert model().network.config.vocab_size == 40


def test_weights_of_another_shape_are_not_drawn_at_random(tmp_path: Path) -> None:
    saved(tmp_path / "bert", "bert")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "bert")
    config.vocab_size = 50
    config.save_pretrained(tmp_path / "bert")
    (model,) = from_transformers(str(tmp_path / "bert"), num_classes=2, pretrained=True).models
    with pytest.raises(WeightsNotLoadedError, match="has another shape in the checkpoint"):
        model()


def renamed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Name weights as the state of a LightningModule does."""
    return {f"network.{key}": value for key, value in weights.items()}


@pytest.mark.parametrize("has_head", [True, False])
@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("bert", renamed),
        ("bert", lambda weights: {key: each for key, each in weights.items() if "encoder" not in key}),
        (
            "bert",
            lambda weights: {key: each for key, each in weights.items() if "layer.1.output.dense.bias" not in key},
        ),
        ("resnet", lambda weights: {key: each for key, each in weights.items() if "running_var" not in key}),
        ("vit", renamed),
    ],
)
def test_weights_that_are_missing_are_not_drawn_at_random(
    kind: str, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], has_head: bool, tmp_path: Path
) -> None:
    saved(tmp_path / kind, kind, has_head=has_head)
    file = tmp_path / kind / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})
    (model,) = from_transformers(str(tmp_path / kind), num_classes=2, pretrained=True).models
    with pytest.raises(WeightsNotLoadedError, match=r"the checkpoint lacks \d+ weights? of the body"):
        model.network()
    with pytest.raises(WeightsNotLoadedError, match=r"the checkpoint lacks \d+ weights? of the body"):
        model.source_head()


def test_a_checkpoint_without_pooler_counters_and_masks_is_whole(tmp_path: Path) -> None:
    for kind, part in (("bert", "pooler"), ("resnet", "num_batches_tracked"), ("vit", "mask_token")):
        saved(tmp_path / kind, kind)
        file = tmp_path / kind / "model.safetensors"
        save_file({key: each for key, each in load_file(file).items() if part not in key}, file, {"format": "pt"})
        (model,) = from_transformers(str(tmp_path / kind), num_classes=2, pretrained=True).models
        model.network()
        if kind == "bert":  # its own head reads a pooler that is not there
            with pytest.raises(NotApplicableError, match="without a head that classifies"):
                model.source_head()


@pytest.mark.parametrize("kind", [*IMAGE_CONFIGS, *TEXT_CONFIGS])
def test_the_last_layer_is_fresh_also_if_the_checkpoint_has_as_many_classes(kind: str, tmp_path: Path) -> None:
    own = last_layer(saved(tmp_path / kind, kind))[1]
    (model,) = from_transformers(str(tmp_path / kind), num_classes=NUM_SOURCE_CLASSES, pretrained=True).models
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(last_layer(model.network())[1].weight)
    assert torch.equal(drawn[0], drawn[1])
    assert not any(torch.equal(one, other) for one, other in ((own.weight, drawn[0]), (drawn[0], drawn[2])))
    assert torch.equal(model.source_head()[1].weight, own.weight)


def test_a_typing_error_in_a_name_is_no_question_of_the_connection(tmp_path: Path) -> None:
    with pytest.raises(
        UnknownNameError, match=r"no checkpoint of transformers named 'bert-tniy'\. Did you mean 'bert-"
    ):
        from_transformers("deit-tiny", "bert-tniy", num_classes=2, pretrained=True)


def test_a_folder_beside_the_program_needs_no_slash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "mine", "bert")
    monkeypatch.chdir(tmp_path)
    assert from_transformers("mine", num_classes=2, pretrained=True).models[0].network().num_labels == 2


def test_a_configuration_has_no_weights() -> None:
    with pytest.raises(InvalidArgumentError, match="A BertConfig has no weights"):
        from_transformers(transformers.BertConfig(), num_classes=2, pretrained=True)
