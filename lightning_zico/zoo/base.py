"""What all zoos share: a model that is named and not built, its size, and a listing of such models."""

import fnmatch
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, ClassVar, TypeAlias

import torch
from torch import nn

from lightning_zico._registry import unknown_name
from lightning_zico.candidates import Candidate
from lightning_zico.engine.scope import preserved_rng
from lightning_zico.engine.size import count_params
from lightning_zico.errors import InvalidArgumentError, UnsupportedInputError, check_count
from lightning_zico.zoo.classifiers import ImageClassifier

# What to compute for candidates of a zoo: the first is ranked by. On timm, nothing that was measured ranks better than
# the number of parameters within a budget (benchmarks/README.md).
ZOO_PROXIES = ("params", "default")

# Of timm's other heads, and of ViT's.
_HEAD_STD = 0.02

if TYPE_CHECKING:
    from typing_extensions import Self  # in the library from Python 3.11 on

InputSize: TypeAlias = int | tuple[int, int] | None


@dataclass(frozen=True)
class ZooModel(ABC):
    """How to build one model: plain values alone, so that it costs nothing, travels to other processes and is hashable.

    Args:
        name: In its zoo.
        num_classes: To be told apart.
        lr: Highest learning rate.

    Attributes:
        zoo: Name of the zoo.
    """

    zoo: ClassVar[str]
    name: str
    num_classes: int
    lr: float

    @abstractmethod
    def network(self) -> nn.Module:
        """Build the network, with fresh weights unless it says otherwise."""

    @abstractmethod
    def __call__(self) -> nn.Module:
        """Build the LightningModule around the network."""

    def untrained(self) -> "Self":
        """The same model without weights that would have to be loaded."""
        return self


@dataclass(frozen=True)
class ImageModel(ZooModel):
    """How to build one model for images.

    Args:
        in_chans: Channels of the images.
        input_size: Height and width that the network is to take; None for its own, or any if it takes any.
        resize: Resize images of another size; a network that is made for another size and no other keeps it then.

    Raises:
        InvalidArgumentError: If there is no channel.
    """

    in_chans: int
    input_size: tuple[int, int] | None
    resize: bool

    def __post_init__(self) -> None:
        check_count("in_chans", self.in_chans)

    @abstractmethod
    def own_size(self) -> tuple[int, int] | None:
        """Tell the one size of images that the network is made for if nothing is said; None if it takes any."""

    @abstractmethod
    def build(self, size: tuple[int, int] | None) -> nn.Module:
        """Build the network, for images of a size; None for its own, or any."""

    def network(self) -> nn.Module:
        """Build the network."""
        return self.build(self._size_to_build())

    def _size_to_build(self) -> tuple[int, int] | None:
        """Choose the size that the network is made for.

        Raises:
            UnsupportedInputError: If it takes one size alone, which is not ``input_size``, and images are not resized.
        """
        own = self.own_size()
        if own is None or self.input_size in (None, own):
            return None
        if _can_be_made_for_its_size(self.untrained()):
            return self.input_size
        if self.resize:
            return None
        wanted, taken = (" x ".join(map(str, size)) for size in (self.input_size or own, own))
        raise UnsupportedInputError(
            f"'{self.name}' takes images of {taken}, and cannot be made for those of {wanted}. Pass `resize=True` to "
            "resize them, or leave the model out with `exclude`."
        )

    def __call__(self) -> ImageClassifier:
        """Build the network and what trains it; a head that begins at zero is drawn."""
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
        )


@dataclass(frozen=True)
class Zoo:
    """Candidates of a zoo, none of them built: to be iterated, any number of times, and ranked.

    Those of several zoos bear the names of their zoos as well, ``timm:resnet18`` and ``torchvision:resnet18``.

    Args:
        models: In their order.
        max_params: Larger ones are left out while iterating; their sizes are found by `params_of`. None for no limit,
            and no look at sizes.

    Example:
        >>> zoo = from_zoo("torchvision:resnet*", num_classes=10)  # doctest: +SKIP
        >>> ZeroShotSelector(proxies=ZOO_PROXIES).rank(zoo, datamodule)  # doctest: +SKIP
    """

    models: tuple[ZooModel, ...]
    max_params: float | None = None

    def __post_init__(self) -> None:
        limit = self.max_params
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int | float) or not limit > 0):
            raise InvalidArgumentError(
                f"Invalid max_params={limit!r}: expected a positive number, or None for no limit."
            )

    @property
    def names(self) -> list[str]:
        """Of all models, those above ``max_params`` included."""
        several = len({model.zoo for model in self.models}) > 1
        return [f"{model.zoo}:{model.name}" if several else model.name for model in self.models]

    def __iter__(self) -> Iterator[Candidate]:
        """Give one candidate after the other; one whose size cannot be found is given too, and will say why."""
        is_empty = True
        for name, model in zip(self.names, self.models, strict=True):
            if self.max_params is None or _keeps(model, self.max_params):
                is_empty = False
                yield Candidate(name, model)
        if is_empty:
            smallest = min(self.models, key=params_of)
            raise InvalidArgumentError(
                f"None of the {len(self.models)} models has at most {self.max_params:,.0f} parameters; the smallest, "
                f"'{smallest.name}', has {params_of(smallest):,}. Raise the limit."
            )

    def __length_hint__(self) -> int:
        """Tell how many candidates there are, if that is known without a look at their sizes."""
        return len(self.models) if self.max_params is None else NotImplemented


@cache  # not in a file: a count takes some tenths of a second, and other versions of a zoo have other models
def params_of(model: ZooModel) -> int:
    """Count the parameters of a model on the meta device, where weights have shapes and no memory.

    A model that cannot be built there is built on the CPU and let go.
    """
    model = model.untrained()
    with preserved_rng(0):
        try:
            with torch.device("meta"):
                return count_params(model.network())
        except UnsupportedInputError:
            raise
        except Exception:  # weights that are drawn by NumPy or looked at while building; what else is wrong comes again
            return count_params(model.network())


@cache
def _can_be_made_for_its_size(model: ImageModel) -> bool:
    """Build a network for ``input_size`` on the meta device and show it two images: no zoo has a list of who can."""
    try:
        with torch.device("meta"), torch.no_grad():
            model.build(model.input_size)(torch.empty(2, model.in_chans, *model.input_size or ()))
    except Exception:  # an unknown argument, patches that do not fit, or a number of them that is built in
        return False
    return True


def matched(
    kind: str, patterns: Sequence[str], known: Sequence[str], exclude: str | Sequence[str] = ()
) -> tuple[str, ...]:
    """Find the names that patterns mean, each once, in the order of the patterns.

    Args:
        kind: What is named, for the error message.
        patterns: Names, or shell patterns.
        known: All names, in the order within a pattern.
        exclude: Patterns of what to leave out.

    Raises:
        UnknownNameError: If a pattern matches nothing; the message has the nearest names.
        ValueError: If there is no pattern, or nothing is left.

    Example:
        >>> matched("model", ["res*", "vit"], ["resnet18", "resnet50", "vgg11", "vit"], exclude="*50")
        ('resnet18', 'vit')
    """
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise InvalidArgumentError(
                f"Invalid name {pattern!r}: expected names or patterns one by one, such as 'resnet*', 'vgg11'."
            )
    if not patterns:
        raise ValueError("There is no name; needed are names or patterns, such as 'resnet*', or '*' for all.")
    found: dict[str, None] = {}
    for pattern in patterns:
        names = [pattern] if pattern in known else [name for name in known if fnmatch.fnmatchcase(name, pattern)]
        if not names:
            raise unknown_name(kind, pattern, known)
        found.update(dict.fromkeys(names))
    excluded = [exclude] if isinstance(exclude, str) else exclude
    kept = tuple(name for name in found if not any(fnmatch.fnmatchcase(name, pattern) for pattern in excluded))
    if not kept:
        raise ValueError(f"`exclude` leaves none of the {len(found)} names: {', '.join(excluded)}.")
    return kept


def size_of(input_size: InputSize) -> tuple[int, int] | None:
    """Turn what the user gives into height and width.

    Raises:
        ValueError: If it is neither a positive number nor two.

    Example:
        >>> size_of(32)
        (32, 32)
    """
    if input_size is None:
        return None
    sides = (input_size, input_size) if isinstance(input_size, int) else tuple(input_size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"`input_size` is {input_size!r}; needed is a side, such as 32, or (height, width).")
    return sides[0], sides[1]


def check_num_classes(num_classes: int) -> None:
    """Refuse what cannot be told apart.

    Raises:
        ValueError: If there are fewer than two classes.
    """
    if not isinstance(num_classes, int) or num_classes < 2:
        raise ValueError(f"`num_classes` is {num_classes!r}; needed is a whole number from 2.")


def _draw_zero_heads(network: nn.Module, num_classes: int) -> None:
    """Draw the weights of a last layer that begins at zero, as timm's MLP-Mixers do: no gradient passes it.

    Training repairs that in its first step; untrained, every proxy would see the last layer alone.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear) and module.out_features == num_classes and not module.weight.any():
            nn.init.trunc_normal_(module.weight, std=_HEAD_STD)


def _keeps(model: ZooModel, max_params: float) -> bool:
    try:
        return params_of(model) <= max_params
    except Exception:
        return True
