"""Models of a zoo are built for the data: for its classes, channels, sizes and vocabulary."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from lightning_zico import ZeroShotSelector
from lightning_zico.demos import DigitsDataModule
from lightning_zico.errors import InvalidArgumentError
from lightning_zico.zoo import Zoo, fit_zoo, from_timm, from_torchvision, from_transformers, from_zoo
from lightning_zico.zoo.fitting import look_at
from tests.modules import read_batches
from tests.zoo.data import NUM_CLASSES, image_batches, text_batches

pytest.importorskip("timm")
pytest.importorskip("torchvision")
pytest.importorskip("transformers")


class Listing(Dataset[Any]):
    """A dataset that lists its classes, as torchvision's do."""

    classes = ("ant", "bee", "cat", "dog", "eel")

    def __len__(self) -> int:
        return 8

    def __getitem__(self, idx: int) -> tuple[torch.Tensor, int]:
        return torch.full((1, 2, 2), float(idx)), 0


class Data(LightningDataModule):
    def __init__(self, dataset: Dataset[Any], *, shuffle: bool = False) -> None:
        super().__init__()
        self.dataset = dataset
        self.shuffle = shuffle

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.dataset, 2, shuffle=self.shuffle)


def labelled(labels: torch.Tensor) -> TensorDataset:
    return TensorDataset(torch.arange(float(len(labels)))[:, None, None, None], labels)


def classes_of(data: LightningDataModule, num_batches: int = 2, repeats: int = 1) -> tuple[int, str]:
    classes = look_at(data, "num_classes", num_batches=num_batches, repeats=repeats).classes
    return classes.num, classes.source


def test_classes_are_told_by_the_data_module_then_the_dataset_then_the_labels() -> None:
    assert classes_of(DigitsDataModule(batch_size=4)) == (10, "the data module says")
    dataset = Listing()
    assert classes_of(Data(dataset)) == classes_of(Data(Subset(dataset, range(4)))) == (5, "the training dataset says")
    data = Data(dataset)
    data.num_classes = 7
    assert classes_of(data) == (7, "the data module says")


READ: list[int] = []  # outside the dataset, whose state is put back


class Remembering(Listing):
    """Remembers which samples were read."""

    def __len__(self) -> int:
        return 256

    def __getitem__(self, idx: int) -> tuple[torch.Tensor, int]:
        READ.append(idx)
        return super().__getitem__(idx)


def test_a_batch_is_read_only_as_far_as_its_form_needs() -> None:
    READ.clear()
    look = look_at(DataLoader(Remembering(), 256), "num_classes")
    assert look.classes.num == 5
    assert look.inputs.shape[1:] == (1, 2, 2)
    assert sorted(READ) == list(range(16))


def test_every_batch_that_will_be_scored_is_looked_at_for_the_highest_label() -> None:
    data = Data(labelled(torch.tensor([0, 1, 0, 6, 8, 0])))
    assert [classes_of(data, num_batches)[0] for num_batches in (1, 2, 3)] == [2, 7, 9]
    shuffled = Data(labelled(torch.arange(40)), shuffle=True)
    for repeats in (1, 5):
        seen = [labels for r in range(repeats) for _, labels in read_batches(shuffled, 2, seed=r)]
        assert classes_of(shuffled, 2, repeats)[0] == max(int(labels.max()) for labels in seen) + 1


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (torch.zeros(4), r"float32 of shape \[2\]"),
        (torch.eye(4).long(), r"int64 of shape \[2, 4\]"),
        (torch.zeros(4, dtype=torch.bool), r"bool of shape \[2\]"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels: torch.Tensor, kind: str) -> None:
    with pytest.raises(ValueError, match=f"Invalid labels in a batch: {kind}; expected one whole number per image"):
        classes_of(Data(labelled(labels)))


class Photos(Data):
    """Images of four channels, 48 x 40, of three classes."""

    num_classes = NUM_CLASSES

    def __init__(self) -> None:
        super().__init__(TensorDataset(torch.rand(8, 4, 48, 40), torch.arange(8) % NUM_CLASSES))
        self.num_readings = 0

    def train_dataloader(self) -> DataLoader[Any]:
        self.num_readings += 1
        return super().train_dataloader()


class Texts(LightningDataModule):
    num_classes = NUM_CLASSES
    vocab_size = 99

    def train_dataloader(self) -> Any:
        return text_batches()


IMAGES = [
    lambda **options: from_timm("lcnet_035", "lcnet_050", **options),
    lambda **options: from_torchvision("squeezenet*", **options),
    lambda **options: from_transformers("convnextv2-atto", "deit-tiny", **options),
    lambda **options: from_zoo("timm:lcnet_035", "torchvision:squeezenet1_1", **options),
]


@pytest.mark.parametrize("list_models", IMAGES)
def test_data_gives_what_would_be_typed_by_hand(list_models: Callable[..., Zoo]) -> None:
    by_hand = list_models(num_classes=NUM_CLASSES, in_chans=4, input_size=48, resize=True)
    assert list_models(data=Photos()) == by_hand
    assert list_models(data=Photos(), max_params=1e9).models == by_hand.models


@pytest.mark.parametrize("list_models", IMAGES)
@pytest.mark.parametrize(
    "given", [{"num_classes": 5}, {"in_chans": 3}, {"input_size": (64, 32)}, {"resize": False}], ids=str
)
def test_an_explicit_argument_wins_over_the_data(list_models: Callable[..., Zoo], given: dict[str, Any]) -> None:
    found = {"num_classes": NUM_CLASSES, "in_chans": 4, "input_size": 48, "resize": True}
    assert list_models(data=Photos(), **given) == list_models(**{**found, **given})


def test_data_is_read_once_for_all_zoos_and_not_at_all_if_nothing_is_missing() -> None:
    for given, num_readings in (({}, 1), ({"num_classes": 2, "in_chans": 4, "input_size": 32}, 0)):
        photos = Photos()
        from_zoo("timm:lcnet_035", "torchvision:squeezenet1_1", data=photos, **given)
        assert photos.num_readings == num_readings


def test_small_images_are_resized_and_a_list_of_batches_is_data_too() -> None:
    (model,) = from_timm("lcnet_035", data=image_batches(8), num_classes=NUM_CLASSES).models
    assert (model.input_size, model.in_chans, model.resize) == ((32, 32), 3, True)
    digits = DigitsDataModule(batch_size=4)
    assert ZeroShotSelector(proxies="zico").rank(from_timm("lcnet_035", data=digits), digits).errors == {}


def test_text_models_take_classes_and_vocabulary_from_the_data() -> None:
    models = from_transformers("bert-tiny", "roberta-base", data=Texts())
    assert models == from_transformers("bert-tiny", "roberta-base", num_classes=NUM_CLASSES, vocab_size=99)
    own = from_transformers("bert-tiny", data=text_batches(), num_classes=2)
    assert own == from_transformers("bert-tiny", num_classes=2)
    assert from_transformers("bert-tiny", data=Texts(), vocab_size=100, num_classes=NUM_CLASSES) == from_transformers(
        "bert-tiny", num_classes=NUM_CLASSES, vocab_size=100
    )


def test_classes_that_are_only_guessed_from_labels_are_announced() -> None:
    with pytest.warns(UserWarning, match="for 3 classes, the highest label of 2 batches plus one"):
        from_timm("lcnet_035", data=image_batches(32))
    from_timm("lcnet_035", data=Data(Listing()))  # silent; in tests, a warning is an error


def test_fitting_returns_its_sentence_and_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    models = from_timm("lcnet_035", num_classes=2).models
    fitting = fit_zoo(models, Photos(), {"in_chans": 1})
    assert fitting.options == {"num_classes": NUM_CLASSES, "in_chans": 1, "input_size": 48}
    assert fitting.sentence == (
        "Models are built for 3 classes (as the data module says) and inputs of 1 x 48 x 48; the images are "
        "4 x 48 x 40. To change this, pass num_classes, in_chans or input_size."
    )
    assert fit_zoo(models, Photos(), fitting.options).sentence is None
    assert capsys.readouterr() == ("", "")


def test_data_that_does_not_suit_the_models_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="can be read only once"):
        from_timm("lcnet_035", data=iter(image_batches(32)))
    with pytest.raises(ValueError, match="For other batches, pass num_classes, in_chans, input_size; or for texts"):
        from_timm("lcnet_035", data=Texts())
    with pytest.raises(ValueError, match="or for images, name image models"):
        from_transformers("bert-tiny", data=Photos())
    with pytest.raises(InvalidArgumentError, match="in_chans=4: it is only for image models, but 'transformers:bert-t"):
        from_transformers("bert-tiny", data=Texts(), in_chans=4)
    with pytest.raises(ValueError, match=r"Invalid num_classes=None: expected .* or pass `data`"):
        from_timm("lcnet_035")
