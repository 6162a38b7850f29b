"""Candidates from timm."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import nn

from lightning_zico._imports import imported
from lightning_zico.zoo.base import ImageModel, InputSize, Zoo, check_num_classes, matched, size_of


def from_timm(
    *patterns: str,
    num_classes: int,
    in_chans: int = 3,
    input_size: InputSize = None,
    resize: bool = False,
    max_params: float | None = None,
    exclude: str | Sequence[str] = (),
    pretrained: bool = False,
    lr: float = 1e-3,
) -> Zoo:
    """List models of timm as candidates; none is built before its turn comes.

    Args:
        patterns: Names as `timm.list_models` gives them, or shell patterns of them. A pattern with a dot means names
            with the tag of a checkpoint.
        num_classes: To be told apart.
        in_chans: Channels of the images.
        input_size: Side, or height and width, of the images that the networks are to take. Vision transformers and
            others that are made for one size are made for this one where they can be; those that cannot are rows with
            that reason, or keep their size with ``resize``. None: networks that take any size take images as they come,
            the others their own size, mostly 224.
        resize: Resize images of another size inside the model, with each step.
        max_params: Models with more parameters are left out.
        exclude: Patterns of names to leave out.
        pretrained: Load timm's weights, over the network. Then scores are no longer those of an untrained model.
        lr: Highest learning rate.

    Returns:
        The candidates, to be iterated.

    Raises:
        UnknownNameError: If there is no model of a name; the message has the nearest names.
        ValueError: If an argument is out of range, or nothing is left.
        ModuleNotFoundError: If timm is not installed.
    """
    check_num_classes(num_classes)
    timm = _imported_timm()
    known = timm.list_models()
    if any("." in pattern for pattern in patterns):
        known = [*known, *timm.list_models(pretrained=True)]
    names = matched("model of timm", patterns, known, exclude)
    size = size_of(input_size)
    models = tuple(TimmModel(name, num_classes, lr, in_chans, size, resize, pretrained) for name in names)
    return Zoo(models, max_params)


@dataclass(frozen=True)
class TimmModel(ImageModel):
    """How to build one model of timm.

    Args:
        pretrained: Load timm's weights.
    """

    zoo: ClassVar[str] = "timm"
    pretrained: bool = False

    def own_size(self) -> tuple[int, int] | None:
        """Look into the configuration."""
        config = _imported_timm().get_pretrained_cfg(self.name)
        return (config.input_size[-2], config.input_size[-1]) if config.fixed_input_size else None

    def build(self, size: tuple[int, int] | None) -> nn.Module:
        """Build the network."""
        options = {} if size is None else {"img_size": size}
        return _imported_timm().create_model(
            self.name, pretrained=self.pretrained, num_classes=self.num_classes, in_chans=self.in_chans, **options
        )

    def untrained(self) -> "TimmModel":
        """The same without timm's weights."""
        return replace(self, pretrained=False)


def _imported_timm() -> Any:
    return imported("timm", "Models of timm need timm", "zoo")
