"""Data modules for image folders and for torchvision's datasets, as the command line needs them."""

import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Subset

from lightning_zico._imports import import_optional
from lightning_zico.errors import check_count

# ImageNet's mean and deviation, which every model zoo uses: https://pytorch.org/vision/stable/models.html.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_VAL_FRACTION = 0.1  # if images have no separate folder for validation
_LEAST_BATCHES = 2  # ZiCo needs two
# About sixty photographs from a phone are checked in seconds; larger folders are checked when an image fails to load.
_MOST_BYTES_AT_ONCE = 2**28
_PATIENCE_S = 30  # a network that drops packets would keep a download waiting for ever


class _Images(NamedTuple):
    """A dataset of torchvision: its class, its number of classes, and the arguments that select each part."""

    class_name: str
    num_classes: int
    train: Mapping[str, Any] = {"train": True}
    val: Mapping[str, Any] = {"train": False}


# The datasets whose images all have the same size.
TORCHVISION_DATASETS: Mapping[str, _Images] = {
    "cifar10": _Images("CIFAR10", 10),
    "cifar100": _Images("CIFAR100", 100),
    "mnist": _Images("MNIST", 10),
    "fashion_mnist": _Images("FashionMNIST", 10),
    "kmnist": _Images("KMNIST", 10),
    "svhn": _Images("SVHN", 10, {"split": "train"}, {"split": "test"}),
    "stl10": _Images("STL10", 10, {"split": "train"}, {"split": "test"}),
}


class _ImageDataModule(LightningDataModule):
    """Loaders of images ``[N, C, H, W]``, shuffled for training."""

    train_data: Dataset[Any]
    val_data: Dataset[Any]

    def __init__(self, batch_size: int, num_workers: int) -> None:
        super().__init__()
        self.batch_size: int = check_count("batch_size", batch_size)
        self.num_workers: int = check_count("num_workers", num_workers, least=0)
        self.min_batches = _LEAST_BATCHES

    def train_dataloader(self) -> DataLoader[Any]:
        """Return a shuffled loader without the last, smaller batch; batches shrink if there would be too few."""
        most = max(1, len(self.train_data) // self.min_batches)  # type: ignore[arg-type]
        batch_size = min(self.batch_size, most)
        return DataLoader(self.train_data, batch_size, shuffle=True, drop_last=True, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return a loader in order."""
        return DataLoader(self.val_data, self.batch_size, num_workers=self.num_workers)


class ImageFolderDataModule(_ImageDataModule):
    """Images in one folder per class, as in torchvision's ``ImageFolder``: ``root/cat/1.png``.

    If ``root`` has a folder ``train`` with subfolders, these are the classes, and the subfolders of ``val`` or ``test``
    are used for validation; some classes may be missing there. Otherwise a tenth of the images, drawn with a fixed
    seed, is kept for validation, and each class keeps an image for training. Images are cropped to squares and
    normalised as for ImageNet. Grey values of 16 bits and those in 0..1 are scaled to 8 bits.

    Args:
        root: The folder.
        batch_size: Number of images in a batch; fewer if the folder has too few for ``min_batches`` batches.
        image_size: Side of the squares.
        num_workers: Number of processes that read images; 0 to read them in this process.
        skip_unreadable: Leave out images that cannot be read, and list them on standard error.
        min_batches: Minimum number of training batches. The command line passes the number that it scores on.

    Raises:
        InvalidArgumentError: If a number is not a whole number, or too small.
        FileNotFoundError: In ``setup``, if there is no folder with images.
        ValueError: In ``setup``, if a class exists only for validation, or there is only one image; in loaders, if the
            scale of grey values is unknown.
        OSError: If images cannot be read; the message lists all of them. Raised in ``setup``, or in loaders if there
            are so many images that they are checked only when one fails to load.
        ModuleNotFoundError: In ``setup``, if torchvision is not installed.
    """

    def __init__(
        self,
        root: str,
        batch_size: int = 64,
        image_size: int = 224,
        num_workers: int = 0,
        skip_unreadable: bool = False,
        min_batches: int = _LEAST_BATCHES,
    ) -> None:
        super().__init__(batch_size, num_workers)
        self.root = root
        self.image_size: int = check_count("image_size", image_size)
        self.skip_unreadable = skip_unreadable
        self.min_batches: int = check_count("min_batches", min_batches)
        self._unreadable: dict[Path, list[str]] = {}  # by folder, so that each is looked through once

    @property
    def num_classes(self) -> int:
        """Number of class folders."""
        return sum(entry.is_dir() for entry in os.scandir(self._train_root))

    def setup(self, stage: str) -> None:
        """Find the images."""
        self.train_data = self._images(self._train_root)
        found = (Path(self.root, name) for name in ("val", "test"))
        val_root = next((root for root in found if root.is_dir()), None) if self._is_split else None
        if val_root is not None:
            self.val_data = self._images(val_root)
            self._number_as_in_train(self.val_data)
            return
        images: Any = self.train_data
        train, val = _split([label for _, label in images.samples])
        if not val:
            raise ValueError(
                f"'{self.root}' has only {len(images)} readable image: expected at least two, one of them for "
                "validation. Add images."
            )
        self.train_data, self.val_data = Subset(images, train), Subset(images, val)

    @property
    def _is_split(self) -> bool:
        train = Path(self.root, "train")  # may also be a class of that name, with images in it
        return train.is_dir() and any(entry.is_dir() for entry in train.iterdir())

    @property
    def _train_root(self) -> Path:
        return Path(self.root, "train") if self._is_split else Path(self.root)

    def _images(self, root: Path) -> Dataset[Any]:
        torchvision = _imported_torchvision()
        transforms = torchvision.transforms
        steps = [
            transforms.Resize(self.image_size),
            transforms.CenterCrop(self.image_size),
            transforms.ToTensor(),
            transforms.Normalize(_MEAN, _STD),
        ]
        if root.is_dir() and not any(entry.is_dir() for entry in root.iterdir()):
            raise FileNotFoundError(
                f"'{root}' has no folders in it: expected one folder of images per class, such as "
                f"'{root / 'cat' / '1.png'}'."
            )
        try:
            images: Any = torchvision.datasets.ImageFolder(str(root), transforms.Compose(steps))
        except FileNotFoundError as error:  # a class without images
            raise FileNotFoundError(f"In '{root}': {error}. Put images in each folder, or remove it.") from None
        paths = [path for path, _ in images.samples]
        if root not in self._unreadable and (self.skip_unreadable or _num_bytes(paths) <= _MOST_BYTES_AT_ONCE):
            self._unreadable[root] = unreadable(paths)
            if self._unreadable[root] and self.skip_unreadable:
                print(f"Left out {_listed(self._unreadable[root], paths, root)}.", file=sys.stderr, flush=True)
        left_out = set(self._unreadable.get(root, ()))
        if left_out and not self.skip_unreadable:
            raise OSError(_refusal(self._unreadable[root], paths, root))
        images.samples = [sample for sample in images.samples if sample[0] not in left_out]
        images.targets = [label for _, label in images.samples]
        images.loader = _Reader(root, paths)
        found: Dataset[Any] = images
        return found

    def _number_as_in_train(self, val_data: Any) -> None:
        """Number the validation classes as in training, since a folder numbers only the classes that are in it."""
        numbers: dict[str, int] = self.train_data.class_to_idx  # type: ignore[attr-defined]
        unknown = [name for name in val_data.classes if name not in numbers]
        if unknown:
            raise ValueError(
                f"'{val_data.root}' has the class '{unknown[0]}', which '{self._train_root}' does not have. Add images "
                "of it there, or remove the class."
            )
        val_data.target_transform = [numbers[name] for name in val_data.classes].__getitem__


class _Reader:
    """Read images; if one cannot be read, find all others that cannot be read either."""

    def __init__(self, root: Path, paths: Sequence[str]) -> None:
        self._root, self._paths = root, paths

    def __call__(self, path: str) -> Any:
        try:
            return read_image(path)
        except OSError:
            raise OSError(_refusal(unreadable(self._paths) or [path], self._paths, self._root)) from None


class TorchvisionDataModule(_ImageDataModule):
    """A dataset of torchvision whose images all have the same size, scaled to -1..1; downloaded if missing.

    Args:
        dataset: Name of the dataset, such as ``"cifar10"``.
        root: Folder with the dataset, laid out as by torchvision, or the folder to download it to.
        batch_size: Number of images in a batch.
        num_workers: Number of processes that read images; 0 to read them in this process.
        download: Whether the dataset may be downloaded.

    Raises:
        ValueError: If there is no dataset of that name.
        ConnectionError: In ``prepare_data``, if the dataset is missing and cannot be downloaded.
        ModuleNotFoundError: In ``prepare_data``, if torchvision is not installed.
    """

    def __init__(
        self,
        dataset: str,
        root: str = "data",
        batch_size: int = 64,
        num_workers: int = 0,
        download: bool = True,
    ) -> None:
        super().__init__(batch_size, num_workers)
        if dataset not in TORCHVISION_DATASETS:
            raise ValueError(f"Invalid dataset={dataset!r}: expected one of {', '.join(TORCHVISION_DATASETS)}.")
        self.dataset = dataset
        self.root = root
        self.download = download

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return TORCHVISION_DATASETS[self.dataset].num_classes

    def prepare_data(self) -> None:
        """Download what is missing."""
        for part in ("train", "val"):
            try:
                with _patience():
                    self._images(part, download=self.download)
            except (OSError, RuntimeError) as error:  # torchvision raises RuntimeError for missing or damaged files
                tried = "could not be downloaded" if self.download else "`download` is False"
                raise ConnectionError(
                    f"'{self.dataset}' is not in '{self.root}' and {tried}: {type(error).__name__}: {error} Pass the "
                    "folder that has it as `root`, or use data that needs no network, such as `digits`."
                ) from error

    def setup(self, stage: str) -> None:
        """Open the files."""
        self.train_data, self.val_data = (self._images(part, download=False) for part in ("train", "val"))

    def _images(self, part: str, *, download: bool) -> Dataset[Any]:
        torchvision = _imported_torchvision()
        known = TORCHVISION_DATASETS[self.dataset]
        steps: list[Callable[[Any], Any]] = [torchvision.transforms.ToTensor(), _centred]
        build = getattr(torchvision.datasets, known.class_name)
        images: Dataset[Any] = build(
            self.root, transform=torchvision.transforms.Compose(steps), download=download, **getattr(known, part)
        )
        return images


def read_image(path: str) -> Any:
    """Read an image as RGB with 8 bits per channel; grey images with more bits are scaled, where PIL would clip them.

    Raises:
        OSError: If the image cannot be read.
        ValueError: If it has grey values that are neither 16-bit nor in 0..1.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
            deep = image.mode == "F" or image.mode.startswith("I")
            return (Image.fromarray(_in_8_bits(np.asarray(image), path)) if deep else image).convert("RGB")
    except (OSError, SyntaxError) as error:  # PIL raises SyntaxError for a damaged PNG
        raise OSError(f"'{path}' cannot be read as an image: {error}. Repair or remove it.") from error


def unreadable(paths: Sequence[str]) -> list[str]:
    """List the files that cannot be read as images, in the given order."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # PIL releases the GIL while it reads and decompresses
        return [path for path, can in zip(paths, threads.map(_can_be_read, paths), strict=True) if not can]


def _can_be_read(path: str) -> bool:
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.draft("RGB", (1, 1))  # decodes a JPEG at its lowest resolution, but still reads the whole file
            image.load()
    except (OSError, SyntaxError):
        return False
    return True


def _num_bytes(paths: Sequence[str]) -> int:
    return sum(os.path.getsize(path) for path in paths)


def _listed(unread: Sequence[str], paths: Sequence[str], root: Path) -> str:
    names = ", ".join(f"'{os.path.relpath(path, root)}'" for path in unread)
    return f"{len(unread)} of {len(paths)} images in '{root}', which cannot be read: {names}"


def _refusal(unread: Sequence[str], paths: Sequence[str], root: Path) -> str:
    return (
        f"Found {_listed(unread, paths, root)}. Repair or remove them, or pass `skip_unreadable=True` "
        "(--data.skip_unreadable on the command line)."
    )


def _split(labels: Sequence[int]) -> tuple[list[int], list[int]]:
    """Draw a tenth of the images for validation, always the same ones, so that each class keeps one for training.

    Returns:
        Indices of the images for training and for validation.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).tolist()
    num_val = min(max(1, round(_VAL_FRACTION * len(labels))), len(labels) - 1)
    train, val = order[: len(labels) - num_val], order[len(labels) - num_val :]
    have = {labels[idx] for idx in train}
    for idx in list(val):
        if labels[idx] not in have and len(val) > 1:
            have.add(labels[idx])
            val.remove(idx)
            train.append(idx)
    return train, val


def _in_8_bits(values: NDArray[Any], path: str) -> NDArray[np.uint8]:
    most, unit = (1.0, "values in 0..1") if values.dtype.kind == "f" else (65535.0, "16-bit values (0..65535)")
    if not (values.min() >= 0 and values.max() <= most):
        raise ValueError(
            f"'{path}' has grey values from {values.min()} to {values.max()}: expected {unit}. Scale them."
        )
    return np.round(values / most * 255).astype(np.uint8)


def _centred(image: torch.Tensor) -> torch.Tensor:
    return 2 * image - 1


@contextmanager
def _patience() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_PATIENCE_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _imported_torchvision() -> Any:
    return import_optional("torchvision", "Images need torchvision", "zoo")
