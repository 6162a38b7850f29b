"""A zoo names models and builds none before its turn; each trains as it is, at the size of the data."""

import pickle
import sys
from dataclasses import replace
from operator import length_hint
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_zico import ZeroShotSelector
from lightning_zico.errors import UnknownNameError, UnsupportedBatchError, UnsupportedInputError, UnsupportedModuleError
from lightning_zico.zoo import (
    ZOO_PROXIES,
    ImageClassifier,
    SequenceClassifier,
    Zoo,
    from_timm,
    from_torchvision,
    from_transformers,
    from_zoo,
    params_of,
)
from lightning_zico.zoo.base import check_num_classes, match_names, size_of
from lightning_zico.zoo.classifiers import warm_up_then_cosine
from tests.zoo.data import NUM_CLASSES, image_batches, text_batches

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")
transformers = pytest.importorskip("transformers")


def built(zoo: Zoo) -> Any:
    (candidate,) = zoo
    return candidate.build()


def quiet_trainer(**kwargs: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", enable_checkpointing=False, **quiet, **kwargs)


def count(module: nn.Module) -> int:
    return sum(tensor.numel() for tensor in module.parameters())


SMALL = [
    lambda **kw: from_timm("mobilenetv3_small_050", **kw),
    lambda **kw: from_timm("vit_tiny_patch16_224", **kw),
    lambda **kw: from_torchvision("squeezenet1_1", **kw),
    lambda **kw: from_torchvision("vit_b_32", **kw),
    lambda **kw: from_transformers("deit-tiny", **kw),
    lambda **kw: from_transformers("convnextv2-atto", **kw),
]


def test_listing_a_thousand_names_builds_none(monkeypatch: pytest.MonkeyPatch) -> None:
    built_names = []
    monkeypatch.setattr(timm, "create_model", lambda name, **kwargs: built_names.append(name) or nn.Linear(2, 2))
    zoo = from_timm("*", num_classes=7)
    candidates = list(zoo)
    assert len(candidates) == len(zoo.names) > 1000
    assert built_names == []
    limited = iter(from_timm("*", num_classes=7, max_params=100))
    assert built_names == []
    next(limited)
    assert len(built_names) == 1
    list(from_timm(zoo.names[0], num_classes=7, max_params=100))
    assert len(built_names) == 1  # sizes are kept


@pytest.mark.parametrize("listed", SMALL)
def test_size_on_the_meta_device_is_the_real_one(listed: Any) -> None:
    zoo = listed(num_classes=NUM_CLASSES, in_chans=1, input_size=64)
    assert params_of(zoo.models[0]) == count(built(zoo).network)


def test_finding_a_size_leaves_the_generators_alone() -> None:
    before = torch.get_rng_state()
    params_of(from_torchvision("googlenet", num_classes=11).models[0])  # draws with SciPy
    assert torch.equal(torch.get_rng_state(), before)


def test_what_cannot_be_built_on_the_meta_device_is_counted_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def create(name: str, **kwargs: Any) -> nn.Module:
        layer = nn.Linear(3, 4)
        layer.weight.sum().item()  # looks at values
        return layer

    monkeypatch.setattr(timm, "create_model", create)
    (model,) = from_timm("resnet18", num_classes=13).models
    assert params_of(model) == 16


def test_models_above_the_limit_are_left_out_and_the_zoo_can_be_read_again() -> None:
    zoo = from_torchvision("squeezenet1_1", "resnet18", "mobilenet_v3_small", num_classes=10, max_params=2e6)
    assert [candidate.name for candidate in zoo] == ["squeezenet1_1", "mobilenet_v3_small"]
    assert [candidate.name for candidate in zoo] == ["squeezenet1_1", "mobilenet_v3_small"]
    assert zoo.names == ["squeezenet1_1", "resnet18", "mobilenet_v3_small"]


@pytest.mark.parametrize(
    ("listed", "wrong", "right"),
    [
        (from_timm, "resnet1888", "resnet18"),
        (from_torchvision, "mobilnet_v2", "mobilenet_v2"),
        (from_transformers, "bert-tinny", "bert-tiny"),
    ],
)
def test_wrong_names_are_answered_with_the_nearest(listed: Any, wrong: str, right: str) -> None:
    with pytest.raises(UnknownNameError, match=f"{wrong}.*Did you mean.*'{right}'") as caught:
        listed(wrong, num_classes=3)
    assert len(str(caught.value)) < 3000  # not all names of timm


def test_patterns_excludes_and_order() -> None:
    known = ["a2", "a10", "b1", "b2"]
    assert match_names("model", ["b*", "a10", "*"], known) == ("b1", "b2", "a10", "a2")
    assert match_names("model", ["*"], known, exclude=["a*", "b1"]) == ("b2",)
    with pytest.raises(
        ValueError, match=r"Invalid exclude='a\*': it leaves out every model that was named \(a2, a10\)\."
    ):
        match_names("model", ["a*"], known, exclude="a*")
    with pytest.raises(ValueError, match="No name"):
        match_names("model", [], known)
    assert from_timm("resnet18", "resnet10t.c3_in1k", num_classes=2).names == ["resnet18", "resnet10t.c3_in1k"]
    names = from_torchvision("resnet*", num_classes=2).names
    assert names == ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]


def test_exclude_may_empty_one_zoo_if_another_has_models_left() -> None:
    zoo = from_zoo("timm:vgg11", "torchvision:resnet18,vgg11", num_classes=3, exclude="vgg*")
    assert zoo.names == ["resnet18"]
    listed = from_transformers("bert-tiny", transformers.ViTConfig(), num_classes=3, exclude="bert*")
    assert listed.names == ["vit"]
    assert from_transformers("bert-tiny", transformers.ViTConfig(), num_classes=3, exclude="vit").names == ["bert-tiny"]
    with pytest.raises(ValueError, match=r"every model of timm that was named .*every model of torchvision that"):
        from_zoo("timm:vgg11", "torchvision:vgg*", num_classes=3, exclude=["vgg*"])


def test_how_many_there_are_is_told_where_no_size_has_to_be_found() -> None:
    names = ("squeezenet1_1", "vgg11")
    assert length_hint(from_torchvision(*names, num_classes=2), -1) == 2
    assert length_hint(from_torchvision(*names, num_classes=2, max_params=1e9), -1) == -1


def test_a_model_that_cannot_run_on_the_data_is_last_with_the_reason() -> None:
    zoo = from_zoo("transformers:bert-tiny", "timm:lcnet_035", num_classes=NUM_CLASSES)
    leaderboard = ZeroShotSelector(proxies=ZOO_PROXIES).rank(zoo, image_batches(32))
    assert [(row["name"], row["rank"]) for row in leaderboard] == [
        ("timm:lcnet_035", 1),
        ("transformers:bert-tiny", None),
    ]
    assert leaderboard.errors["transformers:bert-tiny"].startswith("untrainable: its training step fails: ")


def test_wrong_arguments_are_refused_at_once() -> None:
    for given in (1, 2.5, "10"):
        with pytest.raises(ValueError, match="num_classes"):
            check_num_classes(given)  # type: ignore[arg-type]
    for size in (0, (32, 0), (1, 2, 3), (3.5, 2)):
        with pytest.raises(ValueError, match="input_size"):
            size_of(size)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_params"):
        from_timm("resnet18", num_classes=2, max_params=-1)


@pytest.mark.parametrize("name", ["timm", "torchvision", "transformers"])
def test_a_missing_package_says_how_to_install_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for loaded in [module for module in sys.modules if module.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install .*\[(zoo|transformers)\]'"):
        from_zoo(f"{name}:*", num_classes=2)


def test_a_text_names_models_of_several_zoos() -> None:
    zoo = from_zoo("timm:resnet18,mobilenetv3_small_0*", "torchvision:vgg11", num_classes=4, input_size=(64, 32))
    timms = ["timm:resnet18", "timm:mobilenetv3_small_050", "timm:mobilenetv3_small_075"]
    assert zoo.names == [candidate.name for candidate in zoo] == [*timms, "torchvision:vgg11"]
    assert from_zoo("timm:resnet18", "timm:vgg11", num_classes=4).names == ["resnet18", "vgg11"]
    assert {(model.num_classes, model.input_size) for model in zoo.models} == {(4, (64, 32))}  # type: ignore[attr-defined]
    with pytest.raises(UnknownNameError, match="Did you mean 'timm'"):
        from_zoo("tim:resnet18", num_classes=4)
    for spec in ("timm", "timm:", "timm:resnet18,"):
        with pytest.raises(ValueError, match="expected a zoo with names"):
            from_zoo(spec, num_classes=4)
    with pytest.raises(ValueError, match="No spec"):
        from_zoo(num_classes=4)


def test_candidates_travel_to_other_processes() -> None:
    zoo = from_zoo("timm:vit_tiny_patch16_224", "torchvision:resnet18", "transformers:bert-tiny", num_classes=3)
    for candidate in zoo:
        message = pickle.dumps(candidate)
        assert len(message) < 1000
        assert pickle.loads(message) == candidate


@pytest.mark.parametrize("listed", SMALL)
@pytest.mark.parametrize("in_chans", [1, 3])
def test_models_take_images_of_the_data(listed: Any, in_chans: int) -> None:
    model = built(listed(num_classes=NUM_CLASSES, in_chans=in_chans, input_size=64))
    assert isinstance(model, ImageClassifier)
    assert model(torch.randn(2, in_chans, 64, 64)).shape == (2, NUM_CLASSES)
    with pytest.raises(UnsupportedInputError, match=f"have 2 channels; the network takes {in_chans}"):
        model(torch.randn(2, 2, 64, 64))
    with pytest.raises(UnsupportedInputError, match=r"are 8 x 8; the network takes only 64 x 64"):
        model(torch.randn(2, in_chans, 8, 8))


@pytest.mark.parametrize("listed", SMALL)
def test_images_of_another_size_are_resized_if_wanted(listed: Any) -> None:
    model = built(listed(num_classes=NUM_CLASSES, in_chans=1, input_size=64, resize=True))
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, NUM_CLASSES)


def test_a_resized_image_is_what_the_network_sees() -> None:
    model = ImageClassifier(nn.Flatten(), 4, input_size=(2, 2), resize=True)
    image = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4], [8, 8, 2, 2], [8, 8, 2, 2]])
    seen = model(image[None, None])
    expected = nn.functional.interpolate(image[None, None], (2, 2), mode="bilinear", antialias=True)
    assert torch.equal(seen, expected.flatten(1))
    assert torch.allclose(model(torch.ones(1, 1, 9, 5)), torch.ones(1, 4))


def test_a_head_that_begins_at_zero_is_drawn_so_that_gradients_pass() -> None:
    (candidate,) = from_timm("mixer_s32_224", num_classes=NUM_CLASSES, input_size=64)
    assert not candidate.build.network().head.weight.any()  # type: ignore[attr-defined]
    images = torch.randn(2, 3, 64, 64, requires_grad=True)
    candidate.build()(images).square().sum().backward()
    assert images.grad is not None
    assert images.grad.any()


def test_networks_for_any_size_take_images_as_they_come() -> None:
    model = built(from_timm("mobilenetv3_small_050", num_classes=NUM_CLASSES))
    assert model.input_size is None
    assert model(torch.randn(2, 3, 40, 56)).shape == (2, NUM_CLASSES)


def test_a_network_of_one_size_that_is_not_the_datas_is_refused_or_resized() -> None:
    vit = built(from_timm("vit_tiny_patch16_224", num_classes=NUM_CLASSES))
    assert vit.input_size == (224, 224)
    # CrossViT takes `img_size` and fails in its forward; EfficientFormer ignores it
    for name, own in (("crossvit_9_240", 240), ("efficientformer_l1", 224)):
        with pytest.raises(UnsupportedInputError, match=rf"'{name}' takes images of {own} x {own} .*64 x 64"):
            built(from_timm(name, num_classes=NUM_CLASSES, input_size=64))
        assert built(from_timm(name, num_classes=NUM_CLASSES, input_size=64, resize=True)).input_size == (own, own)
    with pytest.raises(UnsupportedInputError, match="'maxvit_t' takes"):
        built(from_torchvision("maxvit_t", num_classes=3, input_size=64))  # its windows are of seven
    with pytest.raises(UnsupportedInputError, match="'vit_b_16' takes images of 224 x 224 "):
        built(from_torchvision("vit_b_16", num_classes=3, input_size=(64, 32)))


def test_a_refused_model_is_a_row_with_the_reason() -> None:
    zoo = from_timm(
        "efficientformer_l1", "mobilenetv3_small_050", num_classes=NUM_CLASSES, input_size=32, max_params=1e7
    )
    leaderboard = ZeroShotSelector(proxies="params").rank(zoo, image_batches(32))
    assert [row["name"] for row in leaderboard] == ["mobilenetv3_small_050", "efficientformer_l1"]
    assert "takes images of 224 x 224 " in leaderboard.errors["efficientformer_l1"]
    leaderboard = ZeroShotSelector(proxies="params").rank(from_timm("vit_tiny*224", num_classes=3), image_batches(32))
    assert all("are 32 x 32; the network takes only 224 x 224" in error for error in leaderboard.errors.values())


@pytest.mark.parametrize("listed", [SMALL[0], SMALL[2], SMALL[5]])
def test_an_image_model_trains_as_it_is(listed: Any) -> None:
    model = built(listed(num_classes=NUM_CLASSES, input_size=64))
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    loader = DataLoader(TensorDataset(torch.randn(8, 3, 64, 64), torch.arange(8) % NUM_CLASSES), 4)
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(model, loader, loader)
    assert set(trainer.callback_metrics) == {"train_loss", "val_loss", "val_acc"}
    assert all(not torch.equal(tensor, before[name]) for name, tensor in model.named_parameters() if tensor.ndim > 1)
    trainer.test(model, loader, verbose=False)
    model.eval()
    logits = torch.cat([model(images) for images, _ in loader])
    accuracy = (logits.argmax(1) == torch.arange(8) % NUM_CLASSES).float().mean()
    assert trainer.callback_metrics["test_acc"] == accuracy


@pytest.mark.parametrize("name", ["bert-tiny", "minilm-l6"])
def test_a_text_model_trains_as_it_is(name: str) -> None:
    model = built(from_transformers(name, num_classes=NUM_CLASSES, vocab_size=40))
    assert isinstance(model, SequenceClassifier)
    batches = text_batches()
    trainer = quiet_trainer(fast_dev_run=2)
    loader = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    trainer.fit(model, loader, loader)
    assert {"train_loss", "val_loss", "val_acc"} <= set(trainer.callback_metrics)


def test_text_comes_as_a_mapping_or_as_a_pair() -> None:
    model = built(from_transformers("bert-tiny", num_classes=NUM_CLASSES, vocab_size=40)).eval()
    batch = text_batches()[0]
    tokens = batch["input_ids"]
    every = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    assert torch.equal(model(every), model(tokens))
    assert not torch.equal(model({name: batch[name] for name in every}), model(tokens))  # the mask is obeyed
    labels = batch["labels"]
    model.log = lambda *args, **kwargs: None
    losses = [model.training_step(b, 0) for b in ({**every, "labels": labels}, (tokens, labels))]
    assert torch.equal(*losses)
    with pytest.raises(UnsupportedBatchError, match="expected `labels`"):
        model.training_step(every, 0)
    with pytest.raises(UnsupportedBatchError, match="pair of inputs and labels"):
        model.training_step(tokens, 0)


def test_configurations_and_model_types_are_candidates_too() -> None:
    config = transformers.BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48)
    zoo = from_transformers(config, "resnet", num_classes=NUM_CLASSES, vocab_size=40, pad_token_id=3)
    assert zoo.names == ["resnet", "bert"]
    text = zoo.models[1]().network.config  # type: ignore[union-attr,operator]
    assert (text.hidden_size, text.intermediate_size, text.num_labels) == (32, 48, NUM_CLASSES)
    assert (text.vocab_size, text.pad_token_id) == (40, 3)
    assert config.num_labels == 2
    assert config.vocab_size == 30522
    with pytest.raises(UnsupportedModuleError, match="neither images nor text"):
        from_transformers(transformers.WhisperConfig(), num_classes=2)
    with pytest.raises(ValueError, match="No model was given"):
        from_transformers(num_classes=2)


def test_every_configuration_builds_on_the_meta_device() -> None:
    zoo = from_transformers("*", num_classes=NUM_CLASSES, vocab_size=50)
    assert len(zoo.names) >= 30
    for model in zoo.models:
        assert params_of(model) > 1e5, model.name


def test_the_learning_rate_rises_and_falls_to_zero() -> None:
    factors = [warm_up_then_cosine(step, num_steps=100) for step in range(101)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[5:] == sorted(factors[5:], reverse=True)
    assert factors[100] == pytest.approx(0)
    assert 0.45 < factors[52] < 0.55
    assert warm_up_then_cosine(0, num_steps=1) == 1
    assert warm_up_then_cosine(10**6, num_steps=float("inf")) == 1

    class Watched(ImageClassifier):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    rates: list[float] = []
    model = Watched(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), 3, lr=0.5)
    loader = DataLoader(TensorDataset(torch.randn(40, 1, 2, 2), torch.arange(40) % 3), 4)
    quiet_trainer(max_epochs=2).fit(model, loader, loader)
    assert rates == pytest.approx([0.5 * warm_up_then_cosine(step, num_steps=20) for step in range(20)])


def test_a_zoo_is_ranked_by_size_and_the_board_says_what_matters_more() -> None:
    zoo = from_timm(
        "lcnet_035", "lcnet_050", "mobilenetv3_small_050", "test_*resnet*", num_classes=NUM_CLASSES, input_size=32
    )
    selector = ZeroShotSelector(proxies=ZOO_PROXIES)
    leaderboard = selector.rank(zoo, image_batches(32))
    assert leaderboard.provenance["rank_by"] == "params"
    assert leaderboard.errors == {}
    sizes = {candidate.name: count(candidate.build()) for candidate in zoo}
    assert [row["name"] for row in leaderboard] == sorted(sizes, key=sizes.get, reverse=True)  # type: ignore[arg-type]
    assert "balanced+synflow" in leaderboard.columns
    note = leaderboard.notes[-1]
    assert "the training recipe matters more than any proxy" in note
    first = [row["name"] for row in leaderboard][:5]
    assert f"finalists={len(first)}" in note
    assert ", ".join(first) in note
    own = ZeroShotSelector(proxies="params").rank(dict.fromkeys("ab", nn.Flatten), image_batches(32))
    assert not any("zoo" in note for note in own.notes)


def test_scoring_a_model_that_asks_for_the_number_of_steps_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        ZeroShotSelector(proxies="params").rank(from_timm("lcnet_035", num_classes=NUM_CLASSES), image_batches(32))
    assert "stepping batches" not in caplog.text


def test_equal_sizes_are_called_equal() -> None:
    zoo = from_torchvision("squeezenet1_1", "mobilenet_v3_small", num_classes=NUM_CLASSES, input_size=64)
    again = [replace(candidate, name=f"{candidate.name}-2") for candidate in zoo]
    leaderboard = ZeroShotSelector(proxies="params").rank([*zoo, *again], image_batches(64))
    assert (
        "Equal scores: mobilenet_v3_small = mobilenet_v3_small-2, squeezenet1_1 = squeezenet1_1-2." in leaderboard.notes
    )


def test_a_zoos_winner_is_trained(tmp_path: Any) -> None:
    zoo = from_timm("lcnet_035", "lcnet_050", num_classes=NUM_CLASSES, input_size=32)
    selector = ZeroShotSelector(quiet_trainer(max_epochs=1), ZOO_PROXIES, cache=tmp_path / "scores.db")
    loader = DataLoader(TensorDataset(torch.randn(8, 3, 32, 32), torch.arange(8) % NUM_CLASSES), 4)
    selector.fit(zoo, loader, loader)
    assert selector.leaderboard_.best == "lcnet_050"
    assert selector.trainer.global_step == 2  # type: ignore[union-attr]
    assert isinstance(selector.best_model_, ImageClassifier)
