"""Image folders as people have them, and what is found out of data before models are built for it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from lightning_zico.bridge import read_batches
from lightning_zico.commands import _seen
from lightning_zico.datamodules import ImageFolderDataModule, read_image
from lightning_zico.demos import DigitsDataModule
from lightning_zico.errors import TooFewBatchesError


def fill(root: Path, **num_images: int) -> Path:
    """Write grey images, a folder a class."""
    for name, count in num_images.items():
        (root / name).mkdir(parents=True)
        for idx in range(count):
            Image.new("RGB", (9, 8), (10 * idx, 0, 0)).save(root / name / f"{idx}.png")
    return root


def set_up(root: Path, batch_size: int = 2) -> ImageFolderDataModule:
    data = ImageFolderDataModule(str(root), batch_size=batch_size, image_size=8)
    data.setup("fit")
    return data


def test_a_class_has_the_same_number_in_training_and_validation(tmp_path: Path) -> None:
    fill(tmp_path / "train", ants=2, bees=2, cats=2)
    fill(tmp_path / "val", ants=1, cats=2)
    data = set_up(tmp_path)
    labels: list[int] = torch.cat([labels for _, labels in data.val_dataloader()]).tolist()
    assert [data.train_data.classes[label] for label in labels] == ["ants", "cats", "cats"]  # type: ignore[attr-defined]
    fill(tmp_path / "val", dogs=1)
    with pytest.raises(ValueError, match=r"val' has the class 'dogs', which '.*train' has not"):
        set_up(tmp_path)


def test_a_class_called_train_is_a_class(tmp_path: Path) -> None:
    data = set_up(fill(tmp_path, plane=3, train=4))
    assert (data.num_classes, len(data.train_data) + len(data.val_data)) == (2, 7)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "suffix", "values"),
    [
        (np.uint16, "png", [0, 257, 32896, 65535]),
        (np.uint16, "tif", [0, 257, 32896, 65535]),
        (np.int32, "tif", [0, 257, 32896, 65535]),
        (np.float32, "tif", [0, 1 / 255, 128 / 255, 1]),
    ],
)
def test_grey_of_more_than_8_bits_is_scaled(kind: Any, suffix: str, values: list[float], tmp_path: Path) -> None:
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(np.array([values], dtype=kind)).save(path)
    seen = np.asarray(read_image(str(path)))
    assert seen.shape == (1, 4, 3)
    assert (seen == np.array([0, 1, 128, 255])[None, :, None]).all()


def test_grey_without_a_known_scale_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep.tif"
    for kind, values in (
        (np.float32, [0, 3.5]),
        (np.float32, [0, np.nan]),
        (np.int32, [-1, 5]),
        (np.int32, [0, 65536]),
    ):
        Image.fromarray(np.array([values], dtype=kind)).save(path)
        with pytest.raises(ValueError, match=r"deep\.tif' has grey values from"):
            read_image(str(path))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1"])
def test_other_images_are_what_pil_makes_of_them(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    noise = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path)
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB"))
    assert (np.asarray(read_image(str(path))) == expected).all()


@pytest.mark.parametrize("damage", [lambda content: content[: len(content) // 2], lambda content: b"no image"])
def test_an_image_that_cannot_be_read_is_named(damage: Any, tmp_path: Path) -> None:
    fill(tmp_path, cats=4, dogs=4)
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    for path in tmp_path.glob("dogs/*.png"):
        Image.fromarray(noise).save(path)
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(OSError, match=r"dogs/\d\.png' cannot be read as an image: .* Mend or remove it"):
        list(set_up(tmp_path).train_dataloader())


@pytest.mark.parametrize(("num_images", "most"), [(20, 9), (64, 29)])
def test_too_few_images_say_which_batch_size_would_do(num_images: int, most: int, tmp_path: Path) -> None:
    fill(tmp_path, cats=num_images // 2, dogs=num_images // 2)
    data = ImageFolderDataModule(str(tmp_path), batch_size=64, image_size=8)
    num_train = num_images - round(num_images / 10)
    said = rf"from {num_train} samples in batches of 64: lower `batch_size` to at most {most}\.$"
    with pytest.raises(TooFewBatchesError, match=said):
        read_batches(data, 2)
    data.batch_size = most
    assert len(read_batches(data, 2)) == 2
    data.batch_size = most + 1  # one batch, which is drawn anew in the second reading
    assert read_batches(data, 2).num_passes == 2


def test_where_no_batch_size_would_do_nothing_is_counted() -> None:
    said = {
        "Lower `num_batches` to 2, or shuffle": DataLoader(torch.arange(3), 2),
        "Lower `num_batches` to 9, or shuffle": DataLoader(torch.arange(9), batch_size=None),
        "Check that its dataset has samples": DataLoader(torch.arange(0), 2),
        "Pass 10 batches, or lower `num_batches` to 1": [torch.arange(3)],
        "generator can be read only once": (torch.arange(3) for _ in range(2)),
    }
    for way_out, data in said.items():
        with pytest.raises(TooFewBatchesError, match=way_out):
            read_batches(data, 10)


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
    return _seen(data, "--num_classes", num_batches, repeats, seed=0)[1:]


def test_classes_are_told_by_the_data_module_then_the_dataset_then_the_labels() -> None:
    assert classes_of(DigitsDataModule(batch_size=4)) == (10, "the data module says")
    dataset = Listing()
    assert classes_of(Data(dataset)) == classes_of(Data(Subset(dataset, range(4)))) == (5, "the training dataset says")
    data = Data(dataset)
    data.num_classes = 7
    assert classes_of(data) == (7, "the data module says")


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
    with pytest.raises(ValueError, match=f"labels of a batch are {kind}; needed is one whole number an image"):
        classes_of(Data(labelled(labels)))
