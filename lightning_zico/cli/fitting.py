"""What models of a zoo must know of the data: classes, channels, size and vocabulary."""

from collections.abc import Callable, Mapping, Sequence, Sized
from operator import index
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import Subset

from lightning_zico.bridge import training_loader
from lightning_zico.cli.output import say
from lightning_zico.scoring.repeats import read_repeats
from lightning_zico.zoo import from_zoo
from lightning_zico.zoo.base import ImageModel

# Networks for photographs halve the sides of an image five times; smaller images would shrink to nothing.
_LEAST_SIDE = 32


def _fitted(
    datamodule: LightningDataModule,
    specs: Sequence[str],
    given: Mapping[str, int | None],
    num_batches: int,
    repeats: int = 1,
    *,
    seed: int,
) -> dict[str, int]:
    """Complete the options for models of a zoo from the data (see `_seen`), and print what was found there.

    Raises:
        ValueError: If a vocabulary is given, but the models are for images; or if the batches do not suit the models,
            so that options cannot be read from them.
    """
    known = {key: value for key, value in given.items() if value is not None}
    models = from_zoo(*specs, num_classes=2).models  # only to see their kind; none is built
    for_images = next((model for model in models if isinstance(model, ImageModel)), None)
    if for_images is None:
        of_images = [key for key in ("in_chans", "input_size") if key in known]
        if of_images:
            raise ValueError(
                f"Unexpected --{of_images[0]}={known[of_images[0]]}: it is only for image models, but "
                f"'{models[0].zoo}:{models[0].name}' is a text model. Leave it out."
            )
        return _fitted_to_texts(datamodule, known, num_batches, repeats, seed=seed)
    if "vocab_size" in known:
        raise ValueError(
            f"Unexpected --vocab_size={known['vocab_size']}: it is only for text models, but "
            f"'{for_images.zoo}:{for_images.name}' is an image model. Leave it out, or name only text models, such as "
            "transformers:bert-*."
        )
    needed = [key for key in given if key not in known and key != "vocab_size"]
    if not needed:
        return known
    options = ", ".join(f"--{key}" for key in needed)
    hint = f"{options}; or for texts, name only text models: '{for_images.zoo}:{for_images.name}' is an image model"
    images, classes, by = _seen(datamodule, hint, num_batches, repeats, seed=seed)
    found = {
        "num_classes": classes,
        "in_chans": images.shape[1],
        "input_size": max(*images.shape[2:], _LEAST_SIDE),
    }
    fitted = {**found, **known}
    shape = " x ".join(map(str, images.shape[1:]))
    say(
        f"Models are built for {fitted['num_classes']} classes (as {'you said' if 'num_classes' in known else by}) and "
        f"inputs of {fitted['in_chans']} x {fitted['input_size']} x {fitted['input_size']}; the images are {shape}. "
        "To change this, pass --num_classes, --in_chans or --input_size."
    )
    return fitted


def _fitted_to_texts(
    datamodule: LightningDataModule, known: Mapping[str, int], num_batches: int, repeats: int, *, seed: int
) -> dict[str, int]:
    """Complete the options for text models from the data.

    Raises:
        ValueError: If a batch does not hold texts with labels.
    """
    needed = [key for key in ("num_classes", "vocab_size") if key not in known]
    if not needed:
        return dict(known)
    options = ", ".join(f"--{key}" for key in needed)
    _, classes, by = _seen(datamodule, options, num_batches, repeats, seed=seed, take=_texts_and_labels)
    fitted = {"num_classes": classes, **known}
    if "vocab_size" not in known and (told := getattr(datamodule, "vocab_size", None)) is not None:  # set up by now
        fitted["vocab_size"] = _vocabulary(told)
    by = "you said" if "num_classes" in known else by
    knows = "you said" if "vocab_size" in known else "the data module says"
    tokens = f"{fitted['vocab_size']:,} tokens (as {knows})" if "vocab_size" in fitted else "their own vocabularies"
    say(
        f"Models are built for {fitted['num_classes']} classes (as {by}) and for {tokens}. To change this, pass "
        "--num_classes or --vocab_size."
    )
    return fitted


def _vocabulary(told: Any) -> int:
    """Return the vocabulary size that a data module states.

    Raises:
        ValueError: If it is not a whole number of at least 1.
    """
    size = index(told) if hasattr(told, "__index__") and not isinstance(told, bool) else 0
    if size < 1:
        raise ValueError(
            f"Invalid `vocab_size={told!r}` of the data module: expected a whole number of at least 1. Correct it, or "
            "pass --vocab_size."
        )
    return size


def _images_and_labels(batch: Any, needed: str) -> tuple[Tensor, Tensor]:
    """Split a batch into images and labels.

    Raises:
        ValueError: If it does not hold images with labels that are whole numbers.
    """
    images, labels = batch if isinstance(batch, list | tuple) and len(batch) == 2 else (None, None)
    if not isinstance(images, Tensor) or images.ndim != 4 or not isinstance(labels, Tensor):
        raise ValueError(
            f"Invalid batch: expected a pair of images [N, C, H, W] and labels. For other batches, pass {needed}."
        )
    return images, _whole(labels, "image")


def _texts_and_labels(batch: Any, needed: str) -> tuple[Any, Tensor]:
    """Split a batch into texts and labels, as `SequenceClassifier` does.

    Raises:
        ValueError: If it has no labels that are whole numbers.
    """
    is_pair = isinstance(batch, list | tuple) and len(batch) == 2
    labels = batch.get("labels") if isinstance(batch, Mapping) else batch[1] if is_pair else None
    tokens = batch[0] if is_pair else None
    is_text = not is_pair or (isinstance(tokens, Tensor) and tokens.ndim == 2 and not tokens.is_floating_point())
    if not isinstance(labels, Tensor) or not is_text:
        raise ValueError(
            "Invalid batch: expected a mapping with `labels`, or a pair of tokens [N, T] and labels. For other "
            f"batches, pass {needed}; or for images, name image models."
        )
    return batch, _whole(labels, "text")


def _whole(labels: Tensor, each: str) -> Tensor:
    """Return labels after checking them.

    Raises:
        ValueError: If they are not whole numbers ``[N]``.
    """
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        shape = f"{str(labels.dtype).removeprefix('torch.')} of shape {list(labels.shape)}"
        raise ValueError(
            f"Invalid labels in a batch: {shape}; expected one whole number per {each}, [N], its class. Convert the "
            "labels, or pass candidates of your own with `--candidates`."
        )
    return labels


def _seen(
    datamodule: LightningDataModule,
    needed: str,
    num_batches: int,
    repeats: int = 1,
    *,
    seed: int,
    take: Callable[[Any, str], tuple[Any, Tensor]] = _images_and_labels,
) -> tuple[Any, int, str]:
    """Look at the batches to score on: the first one's inputs, the number of classes, and where that number is from.

    The data module's ``num_classes`` counts first, then the ``classes`` of its training dataset; if neither exists, the
    highest label counts.

    Args:
        datamodule: The data module with the batches.
        needed: Options that replace what the batches do not show, for the error message.
        num_batches: Number of batches in a repeat.
        repeats: Number of repeats of the ranking.
        seed: Seed of the batches.
        take: Splits a batch into inputs and labels.

    Raises:
        ValueError: If a batch does not have the expected form.
    """
    told = getattr(datamodule, "num_classes", None)
    # At least one, because the selector has not validated the numbers yet.
    num_batches, repeats = (1, 1) if isinstance(told, int) else (max(1, num_batches), max(1, repeats))
    batches = [batch for own in read_repeats(datamodule, num_batches, repeats, seed=seed) for batch in own]
    pairs = [take(batch, needed) for batch in batches]
    inputs = pairs[0][0]
    if isinstance(told, int):
        return inputs, told, "the data module says"
    with training_loader(datamodule, seed=seed) as loader:
        listed = _classes_of(getattr(loader, "dataset", None))
    if listed is not None:
        return inputs, listed, "the training dataset says"
    highest = max(int(labels.max()) for _, labels in pairs)
    if highest < 0:
        raise ValueError(
            f"The highest label of the batches is {highest}: expected classes from 0. Pass --num_classes otherwise."
        )
    return inputs, highest + 1, "the batches have"


def _classes_of(dataset: Any) -> int | None:
    """Count the classes that a dataset lists, as torchvision's do; for a subset, those of the full dataset."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    listed = getattr(dataset, "classes", None) or getattr(dataset, "class_to_idx", None)
    return len(listed) if isinstance(listed, Sized) else None
