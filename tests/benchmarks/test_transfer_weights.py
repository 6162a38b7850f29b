"""Real ImageNet weights: what a transfer score has to say of them, if it says anything."""

import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_zico import ScoreCard, ZeroShotSelector
from lightning_zico.zoo.classifiers import ImageClassifier
from tests.data import data_file

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import transfer_imagenet
from transfer_zoo import SCORES

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True, scope="module")
def _has_weights() -> None:
    pytest.importorskip("timm")
    try:
        transfer_imagenet.weights_file(0)
    except ModuleNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def cards() -> dict[str, dict[str, ScoreCard]]:
    """Score cards of the pretrained and of the untrained network, for both halves of CIFAR-10's classes."""
    folder, cards = data_file("cifar10_subset.npz").parent, {}
    for target, images in transfer_imagenet.targets_in(folder, 100).items():
        loader = DataLoader(TensorDataset(transfer_imagenet.resized(images.images, 96), images.labels), batch_size=25)
        selector = ZeroShotSelector(proxies=list(SCORES), enable_progress_bar=False)
        factories = {
            name: partial(_classifier, is_pretrained=name == "pretrained") for name in transfer_imagenet.SOURCES
        }
        selector.rank(factories, loader)
        cards[target] = selector.cards_
    return cards


def _classifier(*, is_pretrained: bool) -> ImageClassifier:
    return ImageClassifier(transfer_imagenet.network_of(0, is_pretrained=is_pretrained), 1000)


# With more features than samples, the class means of any features lie far apart in units of the shrunk covariance:
# permuted labels give the untrained network 3.88 of at most 4, true ones 3.89; the pretrained one has 3.56 and 3.76.
_FAILS = pytest.mark.xfail(strict=True, reason="H-score prefers features that are shrunk less")


@pytest.mark.parametrize("name", [pytest.param(name, marks=_FAILS) if name == "hscore" else name for name in SCORES])
def test_a_score_prefers_pretrained_weights_to_untrained_ones(
    name: str, cards: dict[str, dict[str, ScoreCard]]
) -> None:
    for target, own in cards.items():
        trained, untrained = own["pretrained"][name], own["untrained"][name]
        assert trained.value is not None, trained.error
        assert untrained.value is not None, untrained.error
        assert trained.value > untrained.value, target


def test_the_weights_are_loaded_into_the_right_layers() -> None:
    """The checkpoint's own ImageNet classes: photographs of a class of CIFAR-10 get names of its kind."""
    folder = data_file("cifar10_subset.npz").parent
    images = transfer_imagenet.targets_in(folder, 100)["odd classes"]
    network = transfer_imagenet.network_of(0, is_pretrained=True)
    with torch.no_grad():
        predicted = network(transfer_imagenet.resized(images.test_images, 128)).argmax(1)
    dogs = predicted[images.test_labels == 2]  # of automobile, cat, dog, horse and truck
    assert ((dogs >= 151) & (dogs <= 268)).double().mean() > 0.5  # ImageNet's breeds of dogs
