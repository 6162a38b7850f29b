"""Common parts of all zoos: a model that is named but not yet built, its size, and a list of such models."""

import fnmatch
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from textwrap import shorten
from typing import TYPE_CHECKING, ClassVar, NamedTuple, TypeAlias

import torch
from torch import nn

from lightning_zico._imports import import_optional
from lightning_zico._registry import unknown_name
from lightning_zico._typing import is_count
from lightning_zico.candidates import Candidate
from lightning_zico.engine.scope import preserved_rng
from lightning_zico.engine.size import count_params
from lightning_zico.errors import (
    InvalidArgumentError,
    NotApplicableError,
    UnsupportedInputError,
    WeightsNotLoadedError,
    check_count,
    number_of,
)
from lightning_zico.proxies import Prior
from lightning_zico.texts import count, shortened
from lightning_zico.zoo.classifiers import PRETRAINED_BODY_LR, ImageClassifier

# Proxies for candidates of a zoo; the ranking is by the first. On timm, no measured proxy ranks better within a budget
# than the number of parameters (benchmarks/README.md).
ZOO_PROXIES = ("params", "default")

# The same for pretrained ones: the default recipe decides, and the probe reads in accuracy points.
PRETRAINED_PROXIES = ("default", "ridge_probe")

# Columns of what a zoo knows of its models by name (`Zoo.known`).
KNOWN_COLUMNS = ("prior", "input_size")

# Packages that download or read weights and whose errors are not all OSErrors.
_LOADERS = ("httpx", "httpx2", "huggingface_hub", "safetensors")

_LONGEST_REASON = 120  # characters of another package's error

# As for timm's other heads, and for ViT's.
_HEAD_STD = 0.02

if TYPE_CHECKING:
    from typing_extensions import Self  # in the standard library from Python 3.11 on

InputSize: TypeAlias = int | tuple[int, int] | None


class NothingLeftError(InvalidArgumentError):
    """`exclude` removes all models of a zoo."""


@dataclass(frozen=True)
class ZooModel(ABC):
    """How to build one model. It holds only plain values, so it is cheap, hashable and can be sent to other processes.

    Args:
        name: Name of the model in its zoo.
        num_classes: Number of classes.
        lr: Highest learning rate.
        pretrained: Load weights that were trained on other data; the learning rate of all layers but the head is then a
            tenth.
        head_epochs: Number of epochs at the start in which only the head is trained.

    Attributes:
        zoo: Name of the zoo.
        source: Where its published accuracies come from, for a note.
    """

    zoo: ClassVar[str]
    source: ClassVar[str] = ""
    name: str
    num_classes: int
    lr: float
    pretrained: bool = field(default=False, kw_only=True)
    head_epochs: int = field(default=0, kw_only=True)

    @abstractmethod
    def network(self) -> nn.Module:
        """Build the network, with fresh weights unless the model says otherwise."""

    @abstractmethod
    def __call__(self) -> nn.Module:
        """Build the LightningModule around the network."""

    def published_accuracy(self) -> float | None:
        """Return the accuracy that the zoo publishes for the model's checkpoint, in percent; None if it is unknown."""
        return None

    def native_size(self) -> tuple[int, int] | None:
        """Return height and width of the images that the model is published for; None for texts."""
        return None

    def source_head(self) -> tuple[str, nn.Module]:
        """Load the head that the checkpoint came with, for `leep` and `nce`; the rest of the network is not kept.

        Returns:
            The name of the fresh head among the submodules of the LightningModule, and the layer.

        Raises:
            NotApplicableError: If the checkpoint has no head, or one of several layers.
        """
        raise NotApplicableError(f"'{self.zoo}:{self.name}' has no checkpoint.")

    def untrained(self) -> "Self":
        """Return the same model without weights that would have to be loaded."""
        return replace(self, pretrained=False)


@dataclass(frozen=True)
class ImageModel(ZooModel):
    """How to build one model for images.

    Args:
        in_chans: Number of channels of the images.
        input_size: Height and width that the network should accept; None for its own size, or for any size if it
            accepts any.
        resize: Resize images of other sizes. A network that only supports its own size then keeps it.

    Raises:
        InvalidArgumentError: If ``in_chans`` is not a positive int.
    """

    in_chans: int
    input_size: tuple[int, int] | None
    resize: bool

    def __post_init__(self) -> None:
        object.__setattr__(self, "in_chans", check_count("in_chans", self.in_chans))

    @abstractmethod
    def native_size(self) -> tuple[int, int]:
        """Return height and width of the images that the model is published for."""

    @abstractmethod
    def own_size(self) -> tuple[int, int] | None:
        """Return the image size that the network accepts by default; None if it accepts any size."""

    @abstractmethod
    def build(self, size: tuple[int, int] | None) -> nn.Module:
        """Build the network for images of a size; None for its own size, or for any."""

    @property
    def weights_fit_any_size(self) -> bool:
        """Whether pretrained weights can be loaded into a network that is built for another size."""
        return True

    def network(self) -> nn.Module:
        """Build the network."""
        return self.build(self._size_to_build())

    def _size_to_build(self) -> tuple[int, int] | None:
        """Choose the size for which to build the network.

        Raises:
            UnsupportedInputError: If it only accepts a size other than ``input_size``, and images are not resized.
        """
        own = self.own_size()
        if own is None or self.input_size in (None, own):
            return None
        if self.weights_fit_any_size and _can_be_made_for_its_size(self.untrained()):
            return self.input_size
        if self.resize:
            return None
        wanted, taken = (" x ".join(map(str, size)) for size in (self.input_size or own, own))
        raise UnsupportedInputError(
            f"'{self.name}' takes images of {taken} and cannot be built for {wanted}. Pass `resize=True` to resize the "
            "images, or leave the model out with `exclude`."
        )

    def __call__(self) -> ImageClassifier:
        """Build the network and its LightningModule; a head that is all zeros is drawn at random."""
        made_for = self._size_to_build()
        own = self.own_size()
        network = self.build(made_for)
        _draw_zero_heads(network, self.num_classes)
        return ImageClassifier(
            network,
            self.num_classes,
            in_chans=self.in_chans,
            input_size=self.input_size if own is None else made_for or own,
            resize=self.resize,
            lr=self.lr,
            body_lr_factor=PRETRAINED_BODY_LR if self.pretrained else 1.0,
            head_epochs=self.head_epochs,
            source_head=self.source_head if self.pretrained else None,
        )


class ImageShape(NamedTuple):
    """What image models are built for: fields of `ImageModel`."""

    in_chans: int
    input_size: tuple[int, int] | None
    resize: bool


@dataclass(frozen=True, repr=False)
class Zoo:
    """Candidates of a zoo, none of them built yet. Can be iterated any number of times, and ranked.

    With several zoos, the names include those of the zoos, such as ``timm:resnet18`` and ``torchvision:resnet18``.

    Args:
        models: Models in order.
        max_params: Larger models are left out while iterating; `params_of` returns their sizes. None for no limit,
            which computes no sizes.

    Example:
        >>> zoo = from_zoo("torchvision:resnet*", num_classes=10)  # doctest: +SKIP
        >>> ZeroShotSelector(proxies=ZOO_PROXIES).rank(zoo, datamodule)  # doctest: +SKIP
    """

    models: tuple[ZooModel, ...]
    max_params: float | None = None

    def __post_init__(self) -> None:
        limit = number_of(self.max_params)
        if self.max_params is not None and (limit is None or not limit > 0):
            raise InvalidArgumentError(
                f"Invalid max_params={self.max_params!r}: expected a positive number, or None for no limit."
            )

    def __repr__(self) -> str:
        first = f", first {shortened(self.names[0])}" if self.models else ""
        return f"<Zoo of {count(len(self.models), 'model')}{first}>"

    @property
    def names(self) -> list[str]:
        """Names of all models, including those above ``max_params``."""
        several = len({model.zoo for model in self.models}) > 1
        return [f"{model.zoo}:{model.name}" if several else model.name for model in self.models]

    @property
    def pretrained(self) -> bool:
        """Whether all models load weights that were trained on other data."""
        return all(model.pretrained for model in self.models)

    @property
    def known(self) -> list[Prior]:
        """What is known of the candidates before they are scored, as columns: `KNOWN_COLUMNS`, as far as there are."""
        return [known for known in (self.prior, self.input_size) if known is not None]

    @property
    def input_size(self) -> Prior | None:
        """Side of the images that each model is published for, in pixels, by name; None for texts alone."""
        sizes = {name: model.native_size() for name, model in zip(self.names, self.models, strict=True)}
        sides = {name: float(max(size)) for name, size in sizes.items() if size is not None}
        return Prior(sides, name="input_size") if sides else None

    @property
    def prior(self) -> Prior | None:
        """Published accuracies of the candidates, by name; None if there are none."""
        published = {name: model.published_accuracy() for name, model in zip(self.names, self.models, strict=True)}
        known = {name: accuracy for name, accuracy in published.items() if accuracy is not None}
        sources = {model.source: None for name, model in zip(self.names, self.models, strict=True) if name in known}
        return Prior(known, source="; ".join(sources)) if known else None

    def __iter__(self) -> Iterator[Candidate]:
        """Yield the candidates. One whose size cannot be computed is included; its row will have the reason."""
        is_empty = True
        for name, model in zip(self.names, self.models, strict=True):
            if self.max_params is None or _keeps(model, self.max_params):
                is_empty = False
                yield Candidate(name, model, pretrained=model.pretrained)
        if is_empty:
            smallest = min(self.models, key=params_of)
            raise InvalidArgumentError(
                f"No model has at most {self.max_params:,.0f} parameters; the smallest, "
                f"'{smallest.name}', has {params_of(smallest):,}. Raise the limit."
            )

    def __length_hint__(self) -> int:
        """Return the number of candidates, if it is known without computing their sizes."""
        return len(self.models) if self.max_params is None else NotImplemented


@contextmanager
def loading_weights(model: ZooModel, folder: str | Path, variable: str) -> Iterator[None]:
    """Turn an error of a body that loads pretrained weights into one that names the model and the folder.

    Args:
        model: The model; nothing changes if it is not pretrained.
        folder: Folder in which the weights are looked for before they are downloaded.
        variable: Environment variable that sets the folder.

    Raises:
        WeightsNotLoadedError: If the weights cannot be read or downloaded, or do not fit. Other errors of the body,
            such as that of an argument that the model does not take, are not changed.
    """
    try:
        yield
    except Exception as error:
        if not model.pretrained or not _comes_from_loading(error):
            raise
        said = shorten(f"{type(error).__name__}: {error}", _LONGEST_REASON, placeholder=" ...").removesuffix(".")
        raise WeightsNotLoadedError(
            f"The weights of '{model.zoo}:{model.name}' could neither be loaded from {folder} ({variable} sets this "
            f"folder) nor downloaded into it: {said}. Connect to the internet, put the file there, or leave the model "
            "out with `exclude`."
        ) from error


def hub_folder() -> str:
    """Return the folder into which Hugging Face's hub downloads weights."""
    constants = import_optional("huggingface_hub.constants", "Pretrained models need huggingface_hub", "zoo")
    return str(constants.HF_HUB_CACHE)


def _comes_from_loading(error: Exception) -> bool:
    """Whether an error is one of reading, downloading or fitting weights; `load_state_dict` raises a RuntimeError."""
    if isinstance(error, NotImplementedError | torch.OutOfMemoryError):  # RuntimeErrors as well
        return False
    packages = {base.__module__.partition(".")[0] for base in type(error).__mro__}
    return isinstance(error, OSError | EOFError | UnpicklingError | RuntimeError) or not packages.isdisjoint(_LOADERS)


@cache  # not on disk: a count takes some tenths of a second, and the models differ between versions of a zoo
def params_of(model: ZooModel) -> int:
    """Count the parameters of a model on the meta device, where weights have shapes but no memory.

    A model that cannot be built there is built on the CPU and discarded.
    """
    model = model.untrained()
    with preserved_rng(0):
        try:
            with torch.device("meta"):
                return count_params(model.network())
        except UnsupportedInputError:
            raise
        except Exception:  # weights drawn by NumPy or read while building; other errors are raised again below
            return count_params(model.network())


@cache
def _can_be_made_for_its_size(model: ImageModel) -> bool:
    """Whether a network built for ``input_size`` on the meta device accepts two images; no zoo lists this."""
    try:
        with torch.device("meta"), torch.no_grad():
            model.build(model.input_size)(torch.empty(2, model.in_chans, *model.input_size or ()))
    except Exception:  # an unknown argument, patches that do not fit, or a fixed number of patches
        return False
    return True


def match_names(
    kind: str, patterns: Sequence[str], known: Sequence[str], exclude: str | Sequence[str] = ()
) -> tuple[str, ...]:
    """Find the names that match patterns, each once, in the order of the patterns.

    Args:
        kind: Kind of the names, for the error message.
        patterns: Names, or shell patterns.
        known: All names; matches of one pattern keep their order.
        exclude: Patterns of names to leave out.

    Raises:
        UnknownNameError: If a pattern matches nothing. The message suggests similar names.
        ValueError: If there is no pattern.
        NothingLeftError: If no name is left.

    Example:
        >>> match_names("model", ["res*", "vit"], ["resnet18", "resnet50", "vgg11", "vit"], exclude="*50")
        ('resnet18', 'vit')
    """
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise InvalidArgumentError(
                f"Invalid name {pattern!r}: expected names or patterns one by one, such as 'resnet*', 'vgg11'."
            )
    if not patterns:
        raise ValueError("No name was given: expected names or patterns, such as 'resnet*', or '*' for all.")
    found: dict[str, None] = {}
    for pattern in patterns:
        names = [pattern] if pattern in known else [name for name in known if fnmatch.fnmatchcase(name, pattern)]
        if not names:
            raise unknown_name(kind, pattern, known)
        found.update(dict.fromkeys(names))
    return leave_out(kind, tuple(found), exclude)


def leave_out(kind: str, names: Sequence[str], exclude: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names that match none of the patterns of ``exclude``.

    Raises:
        NothingLeftError: If no name is left.
    """
    excluded = [exclude] if isinstance(exclude, str) else exclude
    kept = tuple(name for name in names if not any(fnmatch.fnmatchcase(name, pattern) for pattern in excluded))
    if not kept:
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise NothingLeftError(f"Invalid exclude={exclude!r}: it leaves out every {kind} that was named ({shown}).")
    return kept


def size_of(input_size: InputSize) -> tuple[int, int] | None:
    """Return ``input_size`` as height and width.

    Raises:
        ValueError: If it is neither one positive int nor two.

    Example:
        >>> size_of(32)
        (32, 32)
    """
    if input_size is None:
        return None
    sides = tuple(input_size) if isinstance(input_size, Iterable) else (input_size, input_size)
    if len(sides) != 2 or not all(map(is_count, sides)):
        raise ValueError(f"Invalid input_size={input_size!r}: expected a side length, such as 32, or (height, width).")
    return int(sides[0]), int(sides[1])


def fill_native_sizes(models: Iterable[ZooModel]) -> tuple[ZooModel, ...]:
    """Return models; pretrained ones for images without a size get images of the size that they are published for."""
    return tuple(
        replace(model, input_size=model.native_size())
        if isinstance(model, ImageModel) and model.pretrained and model.input_size is None
        else model
        for model in models
    )


def image_shape(
    in_chans: int | None, input_size: InputSize, resize: bool | None, pretrained: bool = False
) -> ImageShape:
    """Return what image models are built for.

    None stands for three channels, for their own size, and for resizing only pretrained models' images to that size.
    """
    size = size_of(input_size)
    return ImageShape(
        3 if in_chans is None else in_chans, size, pretrained and size is None if resize is None else resize
    )


def check_num_classes(num_classes: int | None) -> int:
    """Validate ``num_classes`` and return it.

    Raises:
        ValueError: If it is not a whole number, or there are fewer than two classes.
    """
    number = number_of(num_classes)
    if not isinstance(number, int) or number < 2:
        raise ValueError(
            f"Invalid num_classes={num_classes!r}: expected a whole number of at least 2; or pass `data` to read it "
            "there."
        )
    return number


def _draw_zero_heads(network: nn.Module, num_classes: int) -> None:
    """Draw the weights of a last layer that is all zeros, as in timm's MLP-Mixers: no gradient passes through it.

    Training fixes that in its first step; without training, proxies would only see the last layer.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear) and module.out_features == num_classes and not module.weight.any():
            nn.init.trunc_normal_(module.weight, std=_HEAD_STD)


def _keeps(model: ZooModel, max_params: float) -> bool:
    try:
        return params_of(model) <= max_params
    except Exception:
        return True
