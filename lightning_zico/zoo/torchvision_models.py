"""Candidates from torchvision."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from lightning_zico._imports import imported
from lightning_zico._registry import natural_key
from lightning_zico.zoo.base import ImageModel, InputSize, Zoo, check_num_classes, image_shape, matched
from lightning_zico.zoo.fitting import fits_data

# These are built for one size, and a ViT for one side length: it rejects images that are not square.
_SIZE_ARGUMENTS: Mapping[str, Callable[[int, int], dict[str, Any]]] = {
    "vit": lambda height, width: {"image_size": height},
    "maxvit": lambda height, width: {"input_size": (height, width)},
}
_OWN_SIZE = 224, 224
# Their auxiliary heads would be trained by separate losses, and torchvision warns if `init_weights` is not set.
_WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")


@fits_data
def from_torchvision(
    *patterns: str,
    num_classes: int | None = None,
    in_chans: int | None = None,
    input_size: InputSize = None,
    resize: bool | None = None,
    data: Any = None,
    max_params: float | None = None,
    exclude: str | Sequence[str] = (),
    lr: float = 1e-3,
) -> Zoo:
    """List image models of torchvision as candidates; each is only built when it is scored.

    Args:
        patterns: Names as returned by `torchvision.models.list_models`, or shell patterns.
        num_classes: As for `from_timm`.
        in_chans: As for `from_timm`. Unless it is three, the first convolution is replaced.
        input_size: As for `from_timm`.
        resize: As for `from_timm`.
        data: As for `from_timm`.
        max_params: Models with more parameters are left out.
        exclude: Patterns of names to leave out.
        lr: Highest learning rate.

    Returns:
        An iterable of the candidates, with fresh weights and without auxiliary heads.

    Raises:
        UnknownNameError: If there is no model with a given name. The message suggests similar names.
        ValueError: If an argument is out of range, or no model is left.
        ModuleNotFoundError: If torchvision is not installed.
    """
    num_classes, shape = check_num_classes(num_classes), image_shape(in_chans, input_size, resize)
    models = _imported_models()
    known = sorted(models.list_models(module=models), key=natural_key)
    names = matched("model of torchvision", patterns, known, exclude)
    listed = tuple(TorchvisionModel(name, num_classes, lr, *shape) for name in names)
    return Zoo(listed, max_params)


@dataclass(frozen=True)
class TorchvisionModel(ImageModel):
    """How to build one model of torchvision."""

    zoo: ClassVar[str] = "torchvision"

    def own_size(self) -> tuple[int, int] | None:
        """Return the size, if the family has a fixed one."""
        return _OWN_SIZE if self._family in _SIZE_ARGUMENTS else None

    def build(self, size: tuple[int, int] | None) -> nn.Module:
        """Build the network."""
        options: dict[str, Any] = {}
        if self._family in _SIZE_ARGUMENTS:
            options = _SIZE_ARGUMENTS[self._family](*size or _OWN_SIZE)
        elif self.name in _WITH_AUXILIARY_HEADS:
            options = {"aux_logits": False, "init_weights": True}
        network = _imported_models().get_model(self.name, weights=None, num_classes=self.num_classes, **options)
        if self.in_chans != 3:
            _take_channels(network, self.in_chans)
        return network

    @property
    def _family(self) -> str:
        return self.name.split("_")[0]


def _take_channels(network: nn.Module, in_chans: int) -> None:
    """Replace the first convolution, which takes three channels in every torchvision model, to take ``in_chans``."""
    name, first = next((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    other = nn.Conv2d(
        in_chans,
        first.out_channels,
        first.kernel_size,  # type: ignore[arg-type]
        first.stride,  # type: ignore[arg-type]
        first.padding,  # type: ignore[arg-type]
        bias=first.bias is not None,
    )
    parent, _, attribute = name.rpartition(".")
    setattr(network.get_submodule(parent), attribute, other)


def _imported_models() -> Any:
    return imported("torchvision.models", "Models of torchvision need torchvision", "zoo")
