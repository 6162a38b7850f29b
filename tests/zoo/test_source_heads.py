"""`leep` and `nce` of pretrained zoo models: what the checkpoint's own head predicts, though the model's is fresh."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_zico import Candidate, ZeroShotSelector, score
from lightning_zico.engine.features import FeatureSource
from lightning_zico.engine.probe import Probe
from lightning_zico.engine.scope import preserved_rng
from lightning_zico.errors import NotApplicableError
from lightning_zico.proxies import resolve_proxies
from lightning_zico.proxies.transfer import SourceHeadProxy
from lightning_zico.results import ScoreCard
from lightning_zico.scoring.cache import MemoryCache
from lightning_zico.zoo import ImageClassifier, from_timm, from_torchvision
from lightning_zico.zoo.layers import source_head_of
from tests.reference import transfer as slow
from tests.zoo.checkpoints import CHECKPOINTS, cache_timm, cache_torchvision
from tests.zoo.data import NUM_CLASSES, image_batches

NAMES = ["leep", "nce"]


@torch.no_grad()
def predictions(network: nn.Module, batches: Any, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Predict with a network that has its own head."""
    images = torch.cat([images for images, _ in batches])
    resized = nn.functional.interpolate(images, size, mode="bilinear", antialias=True)
    return network.eval()(resized), torch.cat([labels for _, labels in batches])


def assert_equal_twins(card: Any, network: nn.Module, batches: Any, size: tuple[int, int]) -> None:
    outputs, labels = predictions(network, batches, size)
    assert card["leep"].value == pytest.approx(slow.leep(outputs.softmax(1).numpy(), labels.numpy()), rel=1e-4)
    assert card["nce"].value == pytest.approx(slow.nce(outputs.argmax(1).numpy(), labels.numpy()))
    assert card["leep"].details["num_source_classes"] == outputs.shape[1]


def test_a_model_of_timm_is_scored_by_the_head_that_it_was_pretrained_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = CHECKPOINTS[0]
    saved = cache_timm(tmp_path, monkeypatch, name)[name]
    batches = image_batches(32, 6)
    (model,) = from_timm(name, num_classes=NUM_CLASSES, data=batches, pretrained=True).models
    card = score(Candidate(name, model, pretrained=True), batches, NAMES)
    network = timm.create_model(name.partition(".")[0])
    network.load_state_dict(saved)
    assert_equal_twins(card, network, batches, (224, 224))


def test_a_model_of_torchvision_is_scored_by_the_head_that_it_was_pretrained_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = cache_torchvision(tmp_path, monkeypatch, "mobilenet_v3_small")
    batches = image_batches(32, 6)
    (model,) = from_torchvision("mobilenet_v3_small", num_classes=NUM_CLASSES, pretrained=True, data=batches).models
    card = score(Candidate("m", model, pretrained=True), batches, NAMES)
    network = torchvision.models.mobilenet_v3_small()
    network.load_state_dict(saved)
    assert_equal_twins(card, network, batches, (224, 224))


def test_a_head_before_the_average_over_positions_has_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SqueezeNet's is followed by a ReLU and by the average: the mean of its outputs is not what it predicts."""
    cache_torchvision(tmp_path, monkeypatch, "squeezenet1_1")
    batches = image_batches(32, 6)
    (model,) = from_torchvision("squeezenet1_1", num_classes=NUM_CLASSES, pretrained=True, data=batches).models
    card = score(Candidate("s", model, pretrained=True), batches, NAMES)
    reason = "not applicable: the network's output is not the output of 'network.classifier.1' alone"
    assert all(str(card[name].error).startswith(reason) for name in NAMES)


def test_weights_are_loaded_again_for_these_scores_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache_timm(tmp_path, monkeypatch, CHECKPOINTS[0])
    batches = image_batches(32, 6)
    zoo = from_timm(CHECKPOINTS[0], num_classes=NUM_CLASSES, data=batches, pretrained=True)
    built, create = [], timm.create_model

    def counting(*args: Any, **kwargs: Any) -> nn.Module:
        built.append(kwargs.get("num_classes"))
        return create(*args, **kwargs)

    monkeypatch.setattr(timm, "create_model", counting)

    def times_with_own_head(proxies: list[str]) -> int:
        built.clear()
        ZeroShotSelector(proxies=proxies, enable_progress_bar=False).rank(zoo, batches)
        return built.count(None)

    assert times_with_own_head(["logme", *NAMES]) == times_with_own_head(["logme", "ridge_probe"]) + 1


def test_the_source_head_is_no_part_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache_timm(tmp_path, monkeypatch, CHECKPOINTS[0])
    (model,) = from_timm(CHECKPOINTS[0], num_classes=NUM_CLASSES, pretrained=True).models
    built = model()
    plain = ImageClassifier(model.network(), NUM_CLASSES)
    assert list(built.state_dict()) == list(plain.state_dict())
    torch.manual_seed(3)
    before = torch.get_rng_state()
    name, layer = pickle.loads(pickle.dumps(built)).source_head()
    assert torch.equal(torch.get_rng_state(), before)
    assert (name, layer.out_features) == ("network.classifier", 1000)
    assert model.untrained()().source_head is None


class Head(nn.Module):
    """A network of given features, and what comes after its head."""

    def __init__(self, after: nn.Module, num_classes: int = 3) -> None:
        super().__init__()
        self.fc, self.after = nn.Linear(6, num_classes), after

    def forward(self, inputs: Tensor) -> Tensor:
        return self.after(self.fc(inputs.mean((2, 3)).repeat(1, 2)))


@pytest.mark.parametrize(
    ("after", "applies"), [(nn.Identity(), True), (nn.Flatten(), True), (nn.ReLU(), False), (nn.Softmax(1), False)]
)
def test_what_comes_after_the_head_is_seen(after: nn.Module, applies: bool) -> None:
    torch.manual_seed(0)
    source = nn.Linear(6, 7)
    module = ImageClassifier(Head(after), 3, source_head=lambda: ("network.fc", source))
    batches = image_batches(8, 6)
    card = score(module, batches, NAMES)
    assert (card["leep"].value is not None) is applies
    if applies:
        inputs = torch.cat([images for images, _ in batches]).mean((2, 3)).repeat(1, 2)
        labels = torch.cat([labels for _, labels in batches])
        expected = slow.leep(source(inputs).detach().softmax(1).numpy(), labels.numpy())
        assert card["leep"].value == pytest.approx(expected, rel=1e-5)


def pretrained_module(loads: Callable[[], tuple[str, nn.Module]]) -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier(Head(nn.Identity()), 3, source_head=loads, lr=0.1)


def seven_classes() -> tuple[str, nn.Module]:
    with preserved_rng(1):
        return "network.fc", nn.Linear(6, 7)


def test_a_head_belongs_to_the_weights_that_it_was_trained_with() -> None:
    """Scoring runs the hooks of a training's start, and a training that was interrupted has moved the weights too."""
    batches, trained = image_batches(8, 6), pretrained_module(seven_classes)
    before = score(trained, batches, NAMES)
    assert {score(trained, batches, NAMES)[name].value for name in NAMES} == {before[name].value for name in NAMES}
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = Trainer(max_epochs=1, limit_train_batches=1, enable_model_summary=False, **quiet)
    loader = DataLoader(batches, batch_size=None)  # type: ignore[arg-type, var-annotated]
    trainer.fit(trained, loader, loader)
    restored = pretrained_module(seven_classes)
    restored.load_state_dict(trained.state_dict())
    for module in (trained, restored, pickle.loads(pickle.dumps(trained))):
        card = score(module, batches, [*NAMES, "logme"])
        assert all("not applicable: the weights were trained or replaced since" in str(card[n].error) for n in NAMES)
        assert card["logme"].value is not None


def test_the_winner_of_finals_has_dropped_the_head() -> None:
    batches = DataLoader(image_batches(8, 6), batch_size=None)  # type: ignore[arg-type, var-annotated]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = Trainer(max_epochs=2, enable_model_summary=False, **quiet)
    selector = ZeroShotSelector(
        trainer, ["leep", "params"], finalists=2, final_epochs=1, monitor="val_loss", enable_progress_bar=False
    )
    offered = {name: lambda: pretrained_module(seven_classes) for name in "ab"}
    selector.fit(offered, batches, batches)
    assert all(row["leep"] is not None for row in selector.leaderboard_)
    assert score(selector.best_model_, image_batches(8, 6), "leep")["leep"].value is None


class Saved:
    """Loads a head from a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self) -> tuple[str, nn.Module]:
        return "network.fc", torch.load(self.path, weights_only=False)


def test_a_cache_knows_the_head_that_is_loaded(tmp_path: Path) -> None:
    cache, batches = MemoryCache(), image_batches(8, 6)

    def cards(seed: int, cache: MemoryCache | None) -> tuple[ScoreCard, list[float | None]]:
        torch.manual_seed(seed)
        torch.save(nn.Linear(6, 7), tmp_path / "head.pt")
        selector = ZeroShotSelector(proxies=NAMES, cache=cache, enable_progress_bar=False)
        selector.rank({"a": lambda: pretrained_module(Saved(tmp_path / "head.pt"))}, batches)
        card = selector.cards_["a"]
        return card, [card[name].value for name in NAMES]

    first, second = cards(0, cache), cards(1, cache)
    assert [first[1], second[1]] == [cards(0, None)[1], cards(1, None)[1]]
    assert first[1] != second[1]
    assert [cards(0, cache), cards(1, cache)] == [first, second]  # with the seconds that they took then


def test_a_convolution_of_one_position_is_a_head_as_well() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Conv2d(3, 3, 1)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(images.mean((2, 3), keepdim=True)).flatten(1)

    source = nn.Conv2d(3, 9, 1)
    batches = image_batches(8, 6)
    card = score(ImageClassifier(Net(), 3, source_head=lambda: ("network.head", source)), batches, NAMES)
    images = torch.cat([images for images, _ in batches]).mean((2, 3), keepdim=True)
    outputs = source(images).detach().flatten(1)
    assert card["leep"].value == pytest.approx(
        slow.leep(outputs.softmax(1).numpy(), torch.cat([labels for _, labels in batches]).numpy()), rel=1e-5
    )


def test_a_head_of_several_layers_and_none_have_a_reason() -> None:
    network = timm.create_model("lcnet_050", num_classes=0)
    with pytest.raises(NotApplicableError, match="without a head"):
        source_head_of(network, network.get_classifier())
    with pytest.raises(NotApplicableError, match="not a single layer"):
        source_head_of(network, (nn.Linear(2, 2), nn.Linear(2, 2)))


# One model of each kind of head in timm: linear, convolution, with a hidden layer, after a token, of two heads.
FAMILIES = ("resnet10t", "convnext_atto", "vit_tiny_patch16_224", "levit_128s", "deit_tiny_distilled_patch16_224")


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_outputs_of_the_source_head_are_those_of_the_network_with_its_own_head(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = timm.create_model

    def seeded(own: str, pretrained: bool = False, **options: Any) -> nn.Module:
        """Stand for a checkpoint: the same weights in all layers but the head."""
        torch.manual_seed(0)
        whole = create(own)
        if "num_classes" not in options:
            return whole
        network, body = create(own, **options), whole.state_dict()
        fresh = network.state_dict()
        network.load_state_dict({k: body[k] if body[k].shape == fresh[k].shape else fresh[k] for k in fresh})
        return network

    monkeypatch.setattr(timm, "create_model", seeded)
    (model,) = from_timm(name, num_classes=NUM_CLASSES, pretrained=True).models
    size = model.native_size()
    batches = image_batches(size[0], 4)
    module = model()
    probe = Probe(module, lambda m, batch, idx: nn.functional.cross_entropy(m(batch[0]), batch[1]), batches)
    proxy = resolve_proxies(["leep"])[0]
    assert isinstance(proxy, SourceHeadProxy)
    if name in ("levit_128s", "deit_tiny_distilled_patch16_224"):
        with pytest.raises(NotApplicableError, match="not a single layer"):
            proxy.source_head(probe)
        return
    found = proxy.source_head(probe).outputs
    outputs, _ = predictions(seeded(name), batches, size)
    torch.testing.assert_close(found.float(), outputs, rtol=1e-4, atol=1e-4)
    head = probe.once(FeatureSource()).head
    assert head is not None
    assert head.is_last
