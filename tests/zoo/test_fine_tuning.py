"""Fine-tuning: groups of parameters, epochs in which only the head is trained, and finals of pretrained candidates."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import timm
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_zico import Candidate, ZeroShotSelector, score
from lightning_zico.errors import InvalidArgumentError, UnsupportedModuleError
from lightning_zico.zoo import ImageClassifier, SequenceClassifier, from_timm, from_transformers
from lightning_zico.zoo.classifiers import head_of
from tests.zoo.data import NUM_CLASSES, image_batches

QUIET: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "accelerator": "cpu",
}
NUM_BATCHES = 3


def network(width: int = 6) -> nn.Module:
    """Build a small network with a normalisation."""
    body = nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    return nn.Sequential(body, nn.Linear(width, NUM_CLASSES))


def loader() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(4 * NUM_BATCHES, 3, 8, 8, generator=generator)
    return DataLoader(list(zip(images, torch.arange(len(images)) % NUM_CLASSES, strict=True)), batch_size=4)


def train(model: LightningModule, epochs: int, *, data: Any = None, **settings: Any) -> Trainer:
    trainer = Trainer(max_epochs=epochs, **{**QUIET, **settings})
    trainer.fit(model, loader() if data is None else data, loader())
    return trainer


class Watch(Callback):
    """Keeps the parameters after each epoch, and the learning rates of each step."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []
        self.rates: list[list[float]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.states.append({name: p.detach().clone() for name, p in pl_module.named_parameters()})


def is_head(name: str) -> bool:
    return name.startswith("network.1.")


def test_without_being_asked_there_is_one_group_of_parameters() -> None:
    trainer = train(ImageClassifier(network(), NUM_CLASSES), 1)
    (group,) = trainer.optimizers[0].param_groups
    assert group["initial_lr"] == 1e-3


def test_the_body_has_a_smaller_learning_rate_in_every_step() -> None:
    torch.manual_seed(0)
    model, watch = ImageClassifier(network(), NUM_CLASSES, lr=1e-2, body_lr_factor=0.1), Watch()
    trainer = train(model, 2, callbacks=[watch])
    body, head = trainer.optimizers[0].param_groups
    assert (body["initial_lr"], head["initial_lr"]) == (pytest.approx(1e-3), 1e-2)
    named = {id(parameter): name for name, parameter in model.named_parameters()}
    assert [is_head(named[id(parameter)]) for parameter in (*body["params"], *head["params"])] == [False] * 4 + [
        True
    ] * 2
    assert len(watch.rates) == 2 * NUM_BATCHES
    assert all(slow == pytest.approx(0.1 * fast) for slow, fast in watch.rates)


def test_a_factor_of_one_trains_as_without_it() -> None:
    models = []
    for options in ({}, {"body_lr_factor": 1.0, "head_epochs": 0}):
        torch.manual_seed(0)
        models.append(ImageClassifier(network(), NUM_CLASSES, **options))
        train(models[-1], 1)
    first, second = (model.state_dict() for model in models)
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_only_the_head_moves_in_the_first_epochs(accumulate: int) -> None:
    torch.manual_seed(0)
    model, watch = ImageClassifier(network(), NUM_CLASSES, body_lr_factor=0.5, head_epochs=2), Watch()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, 4, callbacks=[watch], accumulate_grad_batches=accumulate)
    for before, after, is_frozen in zip([start, *watch.states], watch.states, (True, True, False, False), strict=False):
        for name in start:
            assert torch.equal(before[name], after[name]) == (is_frozen and not is_head(name)), name


def test_a_training_that_goes_on_from_a_checkpoint_keeps_the_body_frozen(tmp_path: Any) -> None:
    torch.manual_seed(0)
    model = ImageClassifier(network(), NUM_CLASSES, head_epochs=2)
    start = copy.deepcopy(model)
    whole, parts = Watch(), Watch()
    train(copy.deepcopy(model), 3, callbacks=[whole])
    trainer = Trainer(max_epochs=3, callbacks=[parts, StopAfterOne()], **QUIET)
    trainer.fit(model, loader(), loader())
    trainer.save_checkpoint(tmp_path / "paused.ckpt")
    again = Trainer(max_epochs=3, callbacks=[parts], **QUIET)
    again.fit(start, loader(), loader(), ckpt_path=tmp_path / "paused.ckpt")
    assert len(parts.states) == 3
    for one, other in zip(whole.states, parts.states, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


class StopAfterOne(Callback):
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop = True


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        while True:
            yield torch.randn(3, 8, 8), 0


def test_epochs_of_the_head_need_epochs_with_an_end() -> None:
    model = ImageClassifier(network(), NUM_CLASSES, head_epochs=1)
    with pytest.raises(InvalidArgumentError, match="the length of an epoch is unknown"):
        train(model, 1, data=DataLoader(Endless(), batch_size=4), max_steps=2)
    train(model, 1, data=DataLoader(Endless(), batch_size=4), limit_train_batches=2)


def test_a_network_without_a_head_is_refused_if_its_body_is_to_be_trained_otherwise() -> None:
    with pytest.raises(UnsupportedModuleError, match="no linear layer or convolution with 3 outputs"):
        head_of(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), 3)


@pytest.mark.parametrize("kind", [ImageClassifier, SequenceClassifier])
@pytest.mark.parametrize("wrong", [{"body_lr_factor": -0.1}, {"body_lr_factor": "0.1"}, {"head_epochs": -1}])
def test_wrong_values_are_refused(kind: Callable[..., LightningModule], wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match=f"Invalid {next(iter(wrong))}="):
        kind(network(), NUM_CLASSES, **wrong)


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("resnet18", ["fc"]),
        ("vit_tiny_patch16_224", ["head"]),
        ("deit_tiny_distilled_patch16_224", ["head", "head_dist"]),
        ("convnext_atto", ["head.fc"]),
        ("lcnet_050", ["classifier"]),
    ],
)
def test_networks_of_timm_know_their_heads(name: str, heads: list[str]) -> None:
    with torch.device("meta"):
        built = timm.create_model(name, num_classes=NUM_CLASSES)
    assert head_of(built, NUM_CLASSES) == [built.get_submodule(head) for head in heads]


def test_the_head_of_a_text_model_is_its_last_layer() -> None:
    (model,) = from_transformers("bert-tiny", num_classes=NUM_CLASSES).models
    built = model.network()
    assert head_of(built, NUM_CLASSES) == [built.classifier]


def test_pretrained_models_of_a_zoo_are_fine_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **options: create(name, **options))
    built = from_timm("lcnet_050", num_classes=NUM_CLASSES, pretrained=True, head_epochs=1).models[0]()
    assert (built.body_lr_factor, built.head_epochs) == (0.1, 1)
    plain = from_timm("lcnet_050", num_classes=NUM_CLASSES).models[0]()
    assert (plain.body_lr_factor, plain.head_epochs) == (1.0, 0)


def test_how_a_model_is_fine_tuned_changes_no_score() -> None:
    torch.manual_seed(0)
    net = network()
    options: list[dict[str, Any]] = [{}, {"body_lr_factor": 0.1, "head_epochs": 3}]
    proxies = ["zico", "logme", "ridge_probe", "grad_norm"]
    cards = [
        score(ImageClassifier(net, NUM_CLASSES, **each), image_batches(8, 16), proxies=proxies) for each in options
    ]
    assert {name: cards[0][name].value for name in proxies} == {name: cards[1][name].value for name in proxies}
    assert all(cards[0][name].value is not None for name in proxies)


def test_finals_of_pretrained_candidates_fine_tune_them() -> None:
    """The body stays that of the checkpoint in finals that are as long as the epochs of the head."""
    torch.manual_seed(0)
    saved = {name: network(width).state_dict() for name, width in (("a", 6), ("b", 8))}

    def build(name: str) -> ImageClassifier:
        net = network(6 if name == "a" else 8)
        net.load_state_dict(saved[name])
        return ImageClassifier(net, NUM_CLASSES, body_lr_factor=0.1, head_epochs=2)

    trainer = Trainer(max_epochs=2, **QUIET)
    offered = [Candidate(name, lambda name=name: build(name), pretrained=True) for name in saved]
    selector = ZeroShotSelector(trainer, finalists=2, monitor="val_loss", enable_progress_bar=False)
    selector.fit(offered, loader(), loader())
    assert selector.leaderboard_.provenance["rank_by"] == "transfer"
    assert {row["final_epochs"] for row in selector.leaderboard_} == {1}
    winner = selector.best_model_
    assert isinstance(winner, ImageClassifier)
    start = saved[str(selector.leaderboard_.best)]
    for name, parameter in winner.network.named_parameters():
        assert torch.equal(parameter, start[name]) == (not name.startswith("1.")), name
