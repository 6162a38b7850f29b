"""Image folders as people have them, and what is found out of data before models are built for it."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset, random_split

from lightning_zico import datamodules
from lightning_zico.datamodules import ImageFolderDataModule, read_image
from lightning_zico.errors import TooFewBatchesError
from tests.modules import read_batches


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
    with pytest.raises(ValueError, match=r"val' has the class 'dogs', which '.*train' does not have"):
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


DAMAGES = [lambda content: content[: len(content) // 2], lambda content: b"no image", lambda content: b""]


def damaged(root: Path, pattern: str, suffix: str = "png", damage: Any = DAMAGES[0]) -> list[str]:
    """Write noise to files and damage them; give their names in order."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    paths = [path.rename(path.with_suffix(f".{suffix}")) for path in sorted(root.glob(pattern))]
    for path in paths:
        Image.fromarray(noise).save(path)
        path.write_bytes(damage(path.read_bytes()))
    return [path.relative_to(root).as_posix() for path in paths]


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_images_that_cannot_be_read_are_all_named_in_one_error(damage: Any, suffix: str, tmp_path: Path) -> None:
    names = damaged(fill(tmp_path, cats=4, dogs=14), "dogs/1*.png", suffix, damage)
    told = f"5 of 18 images in '{tmp_path}', which cannot be read: {', '.join(f'{name!r}' for name in names)}."
    with pytest.raises(OSError, match=re.escape(told) + r" Repair or remove them, or pass `skip_unreadable=True`"):
        set_up(tmp_path)


def test_where_there_are_many_images_they_are_looked_through_when_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datamodules, "_MOST_BYTES_AT_ONCE", 10)
    names = damaged(fill(tmp_path, cats=4, dogs=14), "dogs/1*.png")
    data = set_up(tmp_path)
    with pytest.raises(OSError, match="5 of 18 images") as caught:
        list(data.train_dataloader())
    assert all(name in str(caught.value) for name in names)


def test_images_that_cannot_be_read_are_skipped_and_listed_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path / "train", cats=4, dogs=14)
    fill(tmp_path / "val", cats=3, dogs=3)
    names = damaged(tmp_path / "train", "dogs/1*.png") + damaged(tmp_path / "val", "cats/0.png")
    data = ImageFolderDataModule(str(tmp_path), 2, image_size=8, skip_unreadable=True)
    for _ in range(2):
        data.setup("fit")
    said = capsys.readouterr().err
    assert [said.count(f"'{name}'") for name in names] == [1] * 6
    assert "Left out 5 of 18 images" in said
    assert sum(len(labels) for _, labels in data.train_dataloader()) == 12  # of 13, in batches of two
    assert sum(len(labels) for _, labels in data.val_dataloader()) == 5


@pytest.mark.parametrize("num_batches", [2, 3, 5])
@pytest.mark.parametrize("num_images", [10, 20, 60])
def test_batches_are_no_larger_than_the_folder_allows(num_images: int, num_batches: int, tmp_path: Path) -> None:
    fill(tmp_path, cats=num_images // 2, dogs=num_images // 2)
    data = ImageFolderDataModule(str(tmp_path), image_size=8, min_batches=num_batches)
    num_train = num_images - max(1, round(num_images / 10))
    batches = read_batches(data, num_batches)
    assert {len(labels) for _, labels in batches} == {num_train // num_batches}
    large = ImageFolderDataModule(str(tmp_path), batch_size=1, image_size=8, min_batches=num_batches)
    assert {len(labels) for _, labels in read_batches(large, num_batches)} == {1}


def test_every_class_keeps_an_image_to_train_on(tmp_path: Path) -> None:
    fill(tmp_path, **{f"class{idx}": 1 + idx % 2 for idx in range(40)})
    data = set_up(tmp_path)
    trained = {data.train_data.dataset.samples[idx][1] for idx in data.train_data.indices}  # type: ignore[attr-defined]
    assert trained == set(range(40))
    assert 1 <= len(data.val_data) <= 6  # type: ignore[arg-type]
    assert not set(data.train_data.indices) & set(data.val_data.indices)  # type: ignore[attr-defined]


def test_the_split_is_that_of_random_split_where_classes_are_large(tmp_path: Path) -> None:
    data = set_up(fill(tmp_path, cats=12, dogs=13))
    train, val = random_split(range(25), [23, 2], torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    assert (data.train_data.indices, data.val_data.indices) == (train.indices, val.indices)  # type: ignore[attr-defined]


def test_images_without_a_folder_a_class_say_so(tmp_path: Path) -> None:
    for path in fill(tmp_path, cats=3).glob("cats/*"):
        path.rename(tmp_path / path.name)
    (tmp_path / "cats").rmdir()
    with pytest.raises(FileNotFoundError, match="has no folders in it: expected one folder of images per class"):
        set_up(tmp_path)


def test_a_single_image_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has only 1 readable image: expected at least two"):
        set_up(fill(tmp_path, cats=1))


@pytest.mark.parametrize(("num_samples", "most"), [(18, 9), (58, 29)])
def test_too_few_samples_say_which_batch_size_would_do(num_samples: int, most: int) -> None:
    data = TensorDataset(torch.arange(num_samples))
    said = rf"from {num_samples} samples in batches of 64: lower `batch_size` to at most {most}\.$"
    with pytest.raises(TooFewBatchesError, match=said):
        read_batches(DataLoader(data, 64, drop_last=True), 2)
    assert len(read_batches(DataLoader(data, most, drop_last=True), 2)) == 2


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
