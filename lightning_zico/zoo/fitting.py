"""What models of a zoo must know of the data: the number of classes, channels, image size and vocabulary."""

import warnings
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import wraps
from operator import index
from typing import Any, NamedTuple, TypeAlias, TypeVar, cast

import torch
from torch import Tensor
from torch.utils.data import Subset

from lightning_zico.bridge import TrainingData, check_data, check_readable_again
from lightning_zico.errors import InvalidArgumentError, number_of
from lightning_zico.texts import count
from lightning_zico.zoo.base import ImageModel, InputSize, Zoo, ZooModel, size_of

# Splits a batch into inputs and labels; the text says which options replace what it does not show.
Split: TypeAlias = Callable[[Any, str], tuple[Any, Tensor]]
ListsModels = TypeVar("ListsModels", bound=Callable[..., Zoo])

# Networks for photographs halve the sides of an image five times; smaller images would shrink to nothing.
_LEAST_SIDE = 32
# Batches to look at if nobody says how many classes there are; a selector scores on as many by default.
_NUM_BATCHES = 2
# Samples to look at if the number of classes is known; a selector scores on as many by default.
_BATCH_SIZE = 16

_IMAGE_OPTIONS = ("num_classes", "in_chans", "input_size")
_TEXT_OPTIONS = ("num_classes", "vocab_size")


@dataclass(frozen=True)
class Fitting:
    """The options of a zoo that suit the data.

    Args:
        options: Keyword arguments of `from_zoo`: those that were given, and those that were found.
        sentence: What was found, for the user; None if everything was given.
        are_classes_known: False if the number of classes is only read from the labels of some batches, so that there
            may be more.
    """

    options: dict[str, Any]
    sentence: str | None = None
    are_classes_known: bool = True


class Classes(NamedTuple):
    """A number of classes and its source, such as ``"the data module says"``."""

    num: int
    source: str
    are_known: bool


class Look(NamedTuple):
    """The inputs of a first batch, and the classes of the data."""

    inputs: Any
    classes: Classes


def fit_zoo(
    models: Sequence[ZooModel],
    data: Any,
    given: Mapping[str, Any],
    *,
    num_batches: int = _NUM_BATCHES,
    batch_size: int | None = _BATCH_SIZE,
    repeats: int = 1,
    seed: int = 0,
    prefix: str = "",
) -> Fitting:
    """Complete the options of a zoo from the data; given options are kept, and nothing is read if none is missing.

    The number of classes is the data module's ``num_classes``, or else the number of ``classes`` of its training
    dataset. If neither exists, it is the highest label of the batches plus one. Images give the number of channels and
    the longer side, but at least 32; pretrained models keep the size that they are published for. A data module for
    text gives its ``vocab_size`` if it has one.

    Args:
        models: Models of the zoo, of which only the kind and the name matter. One image model makes it a zoo for
            images.
        data: A LightningDataModule, a DataLoader or a list of batches.
        given: Options that are already known, by name; None for those to be found.
        num_batches: Number of batches in a repeat of the ranking.
        batch_size: As for `ZeroShotSelector`. The highest label is always read from whole batches.
        repeats: Number of repeats of the ranking.
        seed: Seed of the batches.
        prefix: What messages write before an option: ``--`` on the command line.

    Raises:
        InvalidArgumentError: If an option is given that models of this kind do not have, or the data can be read only
            once.
        ValueError: If the batches do not suit the models.
    """
    known = {key: value for key, value in given.items() if value is not None}
    for_images = next((model for model in models if isinstance(model, ImageModel)), None)
    wanted = _TEXT_OPTIONS if for_images is None else _IMAGE_OPTIONS
    foreign = next((key for key in known if key not in wanted), None)
    if foreign is not None:
        raise InvalidArgumentError(_not_for(models[0] if for_images is None else for_images, foreign, known, prefix))
    # Pretrained models get images of the size that they are published for.
    has_own_sizes = for_images is not None and for_images.pretrained and "input_size" not in known
    missing = [key for key in wanted if key not in known and not (has_own_sizes and key == "input_size")]
    if not missing:
        return Fitting(known)
    hint = _list_options(prefix, *missing)
    if for_images is not None:
        hint += f"; or for texts, name only text models: '{_full_name(for_images)}' is an image model"
    look = look_at(
        data,
        hint,
        known.get("num_classes"),
        num_batches=num_batches,
        batch_size=batch_size,
        repeats=repeats,
        seed=seed,
        prefix=prefix,
        split=_split_texts if for_images is None else _split_images,
    )
    return (
        _fit_texts(look, data, known, prefix) if for_images is None else _fit_images(look, known, prefix, has_own_sizes)
    )


def list_for_data(
    list_models: Callable[..., Zoo], names: Sequence[str], data: Any, options: Mapping[str, Any], **reading: Any
) -> tuple[Zoo, Fitting]:
    """List models that suit the data.

    The models are listed twice: first only to see whether they are for images or for text.

    Args:
        list_models: Function that lists them, such as `from_zoo`.
        names: Its positional arguments.
        data: As for `fit_zoo`.
        options: Its keyword arguments; None for those to be read from the data. Images are resized unless ``resize`` is
            given.
        reading: Further arguments of `fit_zoo`.

    Returns:
        The models, and what they were built for.
    """
    shapes = (*_IMAGE_OPTIONS, "vocab_size")
    others = {name: value for name, value in options.items() if name not in shapes}
    models = list_models(*names, num_classes=2, **others).models
    fitting = fit_zoo(models, data, {name: options.get(name) for name in shapes}, **reading)
    if others.get("resize") is None:
        others["resize"] = True
    return list_models(*names, **fitting.options, **others), fitting


def fits_data(list_models: ListsModels) -> ListsModels:
    """Decorate a function that lists models, so that it reads from ``data`` what is not given (see `fit_zoo`)."""

    @wraps(list_models)
    def list_fitting(*names: Any, data: Any = None, **options: Any) -> Zoo:
        if data is None:
            return list_models(*names, **options)
        zoo, fitting = list_for_data(list_models, names, data, options)
        if not fitting.are_classes_known:
            warnings.warn(
                f"Models are built for {count(fitting.options['num_classes'], 'class')}, the highest label of "
                f"{_NUM_BATCHES} batches plus one, since neither the data module nor its dataset says how many there "
                "are. If there are more, pass `num_classes`.",
                stacklevel=2,
            )
        return zoo

    return cast(ListsModels, list_fitting)


def look_at(
    data: Any,
    needed: str,
    num_classes: int | None = None,
    *,
    num_batches: int = _NUM_BATCHES,
    batch_size: int | None = _BATCH_SIZE,
    repeats: int = 1,
    seed: int = 0,
    prefix: str = "",
    split: Split | None = None,
) -> Look:
    """Look at the first batch, and find the number of classes as `fit_zoo` does.

    Args:
        data: As for `fit_zoo`.
        needed: Options that replace what the batches do not show, for the error message.
        num_classes: The number of classes if it was given.
        num_batches: As for `fit_zoo`.
        batch_size: As for `fit_zoo`.
        repeats: As for `fit_zoo`.
        seed: As for `fit_zoo`.
        prefix: As for `fit_zoo`.
        split: Splits a batch into inputs and labels; None for images.

    Raises:
        InvalidArgumentError: If the data can be read only once.
        ValueError: If a batch does not have the expected form.
    """
    check_data(data)
    check_readable_again(
        data,
        "data",
        "so nothing would be left to score on",
        "Pass a LightningDataModule, a DataLoader or a list of batches",
    )
    split = split or _split_images
    with TrainingData(data) as training_data:
        # At least one of each, because the selector has not validated the numbers yet.
        few = None if batch_size is None else max(1, batch_size)
        batches, loader, *_ = training_data.read(1, seed=seed, batch_size=few)
        inputs, _ = split(batches[0], needed)
        classes = _stated_classes(data, getattr(loader.iterables, "dataset", None), num_classes)
        if classes is not None:
            return Look(inputs, classes)
        # Whole batches, which show more labels.
        starts = range(seed, seed + max(1, repeats))
        own = [training_data.read(max(1, num_batches), seed=start).batches for start in starts]
    highest = max(int(split(batch, needed)[1].max()) for batches in own for batch in batches)
    if highest < 0:
        raise ValueError(
            f"The highest label of the batches is {highest}: expected classes from 0. Pass {prefix}num_classes "
            "otherwise."
        )
    return Look(inputs, Classes(highest + 1, "the batches have", are_known=False))


def _stated_classes(data: Any, dataset: Any, given: int | None) -> Classes | None:
    """Return the number of classes that the user, the data module or the training dataset states."""
    if given is not None:
        return Classes(given, "you said", are_known=True)
    stated = number_of(getattr(data, "num_classes", None))
    if isinstance(stated, int):
        return Classes(stated, "the data module says", are_known=True)
    listed = _classes_of(dataset)
    return None if listed is None else Classes(listed, "the training dataset says", are_known=True)


def _fit_images(look: Look, known: Mapping[str, Any], prefix: str, has_own_sizes: bool) -> Fitting:
    images, classes = look
    found = {
        "num_classes": classes.num,
        "in_chans": images.shape[1],
        "input_size": max(*images.shape[2:], _LEAST_SIDE),
    }
    options = {**found, **known}
    if has_own_sizes:
        del options["input_size"]
    size: InputSize = options.get("input_size")
    sides = ["each model's own size"] if size is None else [*(size_of(size) or ())]
    built_for = " x ".join(map(str, (options["in_chans"], *sides)))
    shape = " x ".join(map(str, images.shape[1:]))
    sentence = (
        f"Models are built for {count(classes.num, 'class')} (as {classes.source}) and inputs of {built_for}; the "
        f"images are {shape}. To change this, pass {_list_options(prefix, *_IMAGE_OPTIONS, last=' or ')}."
    )
    return Fitting(options, sentence, classes.are_known)


def _fit_texts(look: Look, data: Any, known: Mapping[str, Any], prefix: str) -> Fitting:
    classes = look.classes
    options = {"num_classes": classes.num, **known}
    if "vocab_size" not in known and (stated := getattr(data, "vocab_size", None)) is not None:  # set up by now
        options["vocab_size"] = _vocabulary(stated, prefix)
    source = "you said" if "vocab_size" in known else "the data module says"
    tokens = f"{options['vocab_size']:,} tokens (as {source})" if "vocab_size" in options else "their own vocabularies"
    sentence = (
        f"Models are built for {count(classes.num, 'class')} (as {classes.source}) and for {tokens}. To change this, "
        f"pass {_list_options(prefix, *_TEXT_OPTIONS, last=' or ')}."
    )
    return Fitting(options, sentence, classes.are_known)


def _list_options(prefix: str, *options: str, last: str = ", ") -> str:
    """List options as messages write them."""
    *others, final = (f"{prefix}{option}" for option in options)
    return f"{', '.join(others)}{last}{final}" if others else final


def _full_name(model: ZooModel) -> str:
    return f"{model.zoo}:{model.name}"


def _not_for(model: ZooModel, option: str, known: Mapping[str, Any], prefix: str) -> str:
    """Return the error message for an option that a kind of models does not have."""
    is_image = isinstance(model, ImageModel)
    wanted, kind = ("text", "an image") if is_image else ("image", "a text")
    way_out = ", or name only text models, such as transformers:bert-*" if is_image else ""
    return (
        f"Unexpected {prefix}{option}={known[option]}: it is only for {wanted} models, but '{_full_name(model)}' is "
        f"{kind} model. Leave it out{way_out}."
    )


def _vocabulary(stated: Any, prefix: str) -> int:
    """Return the vocabulary size that a data module states.

    Raises:
        ValueError: If it is not a whole number of at least 1.
    """
    size = index(stated) if hasattr(stated, "__index__") and not isinstance(stated, bool) else 0
    if size < 1:
        raise ValueError(
            f"Invalid `vocab_size={stated!r}` of the data module: expected a whole number of at least 1. Correct it, "
            f"or pass {prefix}vocab_size."
        )
    return size


def _split_images(batch: Any, needed: str) -> tuple[Tensor, Tensor]:
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


def _split_texts(batch: Any, needed: str) -> tuple[Any, Tensor]:
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
            "labels, or pass candidates of your own (--candidates on the command line)."
        )
    return labels


def _classes_of(dataset: Any) -> int | None:
    """Count the classes that a dataset lists, as torchvision's do; for a subset, those of the full dataset."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    listed = getattr(dataset, "classes", None) or getattr(dataset, "class_to_idx", None)
    return len(listed) if isinstance(listed, Sized) else None
