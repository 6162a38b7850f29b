"""Real ImageNet weights: what a transfer score has to say of them, if it says anything."""

import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_zico import ZeroShotSelector
from lightning_zico.zoo.classifiers import ImageClassifier
from tests.data import data_file

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import transfer_imagenet
from transfer_zoo import SCORES

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _has_weights() -> None:
    pytest.importorskip("timm")
    try:
        transfer_imagenet.weights_file(0)
    except ModuleNotFoundError as error:
        pytest.skip(str(error))


def test_every_score_prefers_pretrained_weights_to_untrained_ones() -> None:
    folder = data_file("cifar10_subset.npz").parent
    for images in transfer_imagenet.targets_in(folder, 100).values():
        inputs = transfer_imagenet.resized(images.images, 96)
        loader = DataLoader(TensorDataset(inputs, images.labels), batch_size=25)

        def factory(is_pretrained: bool) -> ImageClassifier:
            return ImageClassifier(transfer_imagenet.network_of(0, is_pretrained=is_pretrained), 1000)

        selector = ZeroShotSelector(proxies=list(SCORES), enable_progress_bar=False)
        selector.rank({"pretrained": lambda: factory(True), "untrained": lambda: factory(False)}, loader)
        for score in SCORES:
            trained, untrained = (selector.cards_[name][score].value for name in ("pretrained", "untrained"))
            assert trained is not None, selector.cards_["pretrained"][score].error
            assert untrained is not None, selector.cards_["untrained"][score].error
            assert trained > untrained, score


def test_the_weights_are_loaded_into_the_right_layers() -> None:
    """The checkpoint's own ImageNet classes: photographs of a class of CIFAR-10 get names of its kind."""
    folder = data_file("cifar10_subset.npz").parent
    images = transfer_imagenet.targets_in(folder, 100)["odd classes"]
    network = transfer_imagenet.network_of(0, is_pretrained=True)
    with torch.no_grad():
        predicted = network(transfer_imagenet.resized(images.test_images, 128)).argmax(1)
    dogs = predicted[images.test_labels == 2]  # of automobile, cat, dog, horse and truck
    assert ((dogs >= 151) & (dogs <= 268)).double().mean() > 0.5  # ImageNet's breeds of dogs
