"""Zoos: existing models as candidates that cost nothing until they are built."""

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any, cast

from lightning.pytorch import LightningModule

from lightning_zico._registry import unknown_name
from lightning_zico.errors import InvalidArgumentError
from lightning_zico.texts import count
from lightning_zico.zoo.base import (
    KNOWN_COLUMNS,
    PRETRAINED_PROXIES,
    ZOO_PROXIES,
    NothingLeftError,
    Zoo,
    ZooModel,
    params_of,
)
from lightning_zico.zoo.classifiers import ImageClassifier, SequenceClassifier
from lightning_zico.zoo.fitting import Fitting, fit_zoo, fits_data
from lightning_zico.zoo.timm_models import from_timm
from lightning_zico.zoo.torchvision_models import from_torchvision
from lightning_zico.zoo.transformers_models import from_transformers

__all__ = [
    "KNOWN_COLUMNS",
    "PRETRAINED_PROXIES",
    "ZOO_PROXIES",
    "Fitting",
    "ImageClassifier",
    "SequenceClassifier",
    "Zoo",
    "ZooModel",
    "fit_zoo",
    "from_timm",
    "from_torchvision",
    "from_transformers",
    "from_zoo",
    "params_of",
    "zoo_model",
]

_ZOOS: Mapping[str, Callable[..., Zoo]] = {
    "timm": from_timm,
    "torchvision": from_torchvision,
    "transformers": from_transformers,
}


@fits_data
def from_zoo(*specs: str, num_classes: int | None = None, data: Any = None, **options: Any) -> Zoo:
    """List models of one or several zoos as candidates, one string per zoo.

    Args:
        specs: ``"zoo:pattern,pattern"``, such as ``"timm:resnet*,mobilenetv3*"`` or ``"transformers:bert-*"``; the zoos
            are timm, torchvision and transformers.
        num_classes: Number of classes; None to read it from ``data``.
        data: As for `from_timm`; read once for all zoos.
        options: Further arguments of `from_timm`, `from_torchvision` or `from_transformers`; each is passed to all
            zoos.

    Returns:
        An iterable of the candidates, in the order of the specs. With several zoos, their names are like
        ``timm:resnet18`` and ``torchvision:resnet18``; with one zoo, like ``resnet18``.

    Raises:
        UnknownNameError: If there is no such zoo, or no such model in it.
        ValueError: If there is no spec, one without a pattern, or no model is left in any zoo.
        TypeError: If a zoo does not take an option.
    """
    if not specs:
        raise ValueError("No spec was given: expected at least one, such as 'timm:resnet*'.")
    zoos, errors = [], []
    for spec in specs:
        if not isinstance(spec, str):
            raise InvalidArgumentError(f"Invalid spec {spec!r}: expected a string, such as 'timm:resnet*'.")
        name, _, patterns = spec.partition(":")
        if name not in _ZOOS:
            raise unknown_name("zoo", name, list(_ZOOS))
        known = signature(_ZOOS[name]).parameters
        foreign = next((option for option in options if option not in known), None)
        if foreign is not None:
            raise TypeError(
                f"Invalid {foreign}={options[foreign]!r}: {name} does not take this option. Leave it out, or name only "
                "zoos that take it."
            )
        try:
            zoos.append(_ZOOS[name](*_split(spec, patterns), num_classes=num_classes, **options))
        except NothingLeftError as error:
            errors.append(error)
    if not zoos:
        raise NothingLeftError(" ".join(map(str, errors))) from errors[0]
    return Zoo(tuple(model for zoo in zoos for model in zoo.models), zoos[0].max_params)


def zoo_model(
    spec: str,
    num_classes: int,
    in_chans: int = 3,
    input_size: int | None = None,
    resize: bool | None = None,
    vocab_size: int | None = None,
    pretrained: bool = False,
) -> LightningModule:
    """Build one model from its spec; usable as a class path: ``--model lightning_zico.zoo.zoo_model``.

    Args:
        spec: Zoo and name, such as ``"timm:resnet18"``.
        num_classes: Number of classes.
        in_chans: Number of channels of the images.
        input_size: Side length of the images that the network should accept.
        resize: Resize images of other sizes. None for True if it is pretrained and ``input_size`` is None, and
            otherwise False.
        vocab_size: For text: the vocabulary size of the tokeniser; None for that of the model.
        pretrained: Load the weights that the zoo publishes, as for `from_timm`.

    Raises:
        UnknownNameError: If there is no such zoo, or no such model in it.
        ValueError: If the spec matches several models.
        TypeError: If ``vocab_size`` is given and the zoo has no models for text.
    """
    options: dict[str, Any] = {"in_chans": in_chans, "input_size": input_size, "resize": resize}
    text = {} if vocab_size is None else {"vocab_size": vocab_size}
    zoo = from_zoo(spec, num_classes=num_classes, pretrained=pretrained, **options, **text)
    if len(zoo.models) != 1:
        raise ValueError(f"The spec {spec!r} matches {count(len(zoo.models), 'model')}: expected exactly one.")
    return cast(LightningModule, zoo.models[0]())


def _split(spec: str, patterns: str) -> list[str]:
    names = [pattern.strip() for pattern in patterns.split(",")]
    if not all(names):
        raise ValueError(f"Invalid spec {spec!r}: expected a zoo with names or patterns, such as 'timm:resnet*'.")
    return names
