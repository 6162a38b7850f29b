"""Zoos: models that others have written, as candidates that cost nothing until they are built."""

from inspect import signature
from typing import Any, cast

from lightning.pytorch import LightningModule

from lightning_zico._registry import unknown_name
from lightning_zico.errors import InvalidArgumentError
from lightning_zico.zoo.base import ZOO_PROXIES, Zoo, ZooModel, params_of
from lightning_zico.zoo.classifiers import ImageClassifier, SequenceClassifier
from lightning_zico.zoo.timm_models import from_timm
from lightning_zico.zoo.torchvision_models import from_torchvision
from lightning_zico.zoo.transformers_models import from_transformers

__all__ = [
    "ZOO_PROXIES",
    "ImageClassifier",
    "SequenceClassifier",
    "Zoo",
    "ZooModel",
    "from_timm",
    "from_torchvision",
    "from_transformers",
    "from_zoo",
    "params_of",
    "zoo_model",
]

_ZOOS = {"timm": from_timm, "torchvision": from_torchvision, "transformers": from_transformers}


def from_zoo(*specs: str, num_classes: int, **options: Any) -> Zoo:
    """List models of one or several zoos as candidates, each zoo by a text.

    Args:
        specs: ``"zoo:pattern,pattern"``, such as ``"timm:resnet*,mobilenetv3*"`` or ``"transformers:bert-*"``; the zoos
            are timm, torchvision and transformers.
        num_classes: To be told apart.
        options: What else `from_timm`, `from_torchvision` or `from_transformers` take; each is given to all zoos.

    Returns:
        The candidates, to be iterated, in the order of the specs. Those of several zoos are called ``timm:resnet18``
        and ``torchvision:resnet18``, those of one ``resnet18``.

    Raises:
        UnknownNameError: If there is no such zoo, or no such model in it.
        ValueError: If there is no spec, or one without a pattern.
        TypeError: If a zoo does not take an option.
    """
    if not specs:
        raise ValueError("There is no spec; needed is one, such as 'timm:resnet*'.")
    zoos = []
    for spec in specs:
        if not isinstance(spec, str):
            raise InvalidArgumentError(f"Invalid spec {spec!r}: expected a text, such as 'timm:resnet*'.")
        name, _, patterns = spec.partition(":")
        if name not in _ZOOS:
            raise unknown_name("zoo", name, list(_ZOOS))
        known = signature(_ZOOS[name]).parameters
        foreign = next((option for option in options if option not in known), None)
        if foreign is not None:
            raise TypeError(
                f"`{foreign}` is {options[foreign]!r}, which models of {name} do not take; needed are options of every "
                "zoo that is named. Leave it out, or name zoos alone that take it."
            )
        zoos.append(_ZOOS[name](*_split(spec, patterns), num_classes=num_classes, **options))
    return Zoo(tuple(model for zoo in zoos for model in zoo.models), zoos[0].max_params)


def zoo_model(
    spec: str,
    num_classes: int,
    in_chans: int = 3,
    input_size: int | None = None,
    resize: bool = False,
    vocab_size: int | None = None,
) -> LightningModule:
    """Build one model by its text, as a factory by class path: ``--model lightning_zico.zoo.zoo_model``.

    Args:
        spec: Such as ``"timm:resnet18"``.
        num_classes: To be told apart.
        in_chans: Channels of the images.
        input_size: Side of the images that the network is to take.
        resize: Resize images of another size.
        vocab_size: Of text: how many tokens the tokeniser knows; None for as many as the model has.

    Raises:
        UnknownNameError: If there is no such zoo, or no such model in it.
        ValueError: If the text means several models.
        TypeError: If there is a vocabulary, and the zoo has no models for text.
    """
    text = {} if vocab_size is None else {"vocab_size": vocab_size}
    zoo = from_zoo(spec, num_classes=num_classes, in_chans=in_chans, input_size=input_size, resize=resize, **text)
    if len(zoo.models) != 1:
        raise ValueError(f"The spec is {spec!r}, which means {len(zoo.models)} models; needed is one.")
    return cast(LightningModule, zoo.models[0]())


def _split(spec: str, patterns: str) -> list[str]:
    names = [pattern.strip() for pattern in patterns.split(",")]
    if not all(names):
        raise ValueError(f"The spec is {spec!r}; needed is a zoo with names or patterns, such as 'timm:resnet*'.")
    return names
