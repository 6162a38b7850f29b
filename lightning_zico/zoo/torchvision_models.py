"""Candidates from torchvision."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from lightning_zico._imports import import_optional
from lightning_zico._registry import natural_key
from lightning_zico.engine.scope import preserved_rng
from lightning_zico.errors import check_count
from lightning_zico.zoo.base import (
    ImageModel,
    InputSize,
    Zoo,
    check_num_classes,
    fill_native_sizes,
    image_shape,
    loading_weights,
    match_names,
)
from lightning_zico.zoo.fitting import fits_data
from lightning_zico.zoo.layers import last_layer, replace_heads, source_head_of, take_channels

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
    pretrained: bool = False,
    head_epochs: int = 0,
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
        pretrained: Load torchvision's default weights, downloaded if they are not in its cache (``TORCH_HOME``), with a
            fresh last layer; otherwise as for `from_timm`.
        head_epochs: Number of epochs at the start in which only the head is trained, for pretrained models.
        lr: Highest learning rate; that of all layers but the head is a tenth of it in pretrained models.

    Returns:
        An iterable of the candidates, without auxiliary heads. Their column ``prior`` is the top-1 accuracy on
        ImageNet-1k that torchvision lists: of the weights that are loaded, or else of the architecture's best.

    Raises:
        UnknownNameError: If there is no model with a given name. The message suggests similar names.
        ValueError: If an argument is out of range, or no model is left.
        ModuleNotFoundError: If torchvision is not installed.
    """
    num_classes, shape = check_num_classes(num_classes), image_shape(in_chans, input_size, resize, pretrained)
    models = _import_models()
    known = sorted(models.list_models(module=models), key=natural_key)
    names = match_names("model of torchvision", patterns, known, exclude)
    head_epochs = check_count("head_epochs", head_epochs, 0)
    weights: dict[str, Any] = {"pretrained": pretrained, "head_epochs": head_epochs}
    listed = [TorchvisionModel(name, num_classes, lr, *shape, **weights) for name in names]
    return Zoo(fill_native_sizes(listed), max_params)


@dataclass(frozen=True)
class TorchvisionModel(ImageModel):
    """How to build one model of torchvision."""

    zoo: ClassVar[str] = "torchvision"
    source: ClassVar[str] = "top-1 accuracy on ImageNet-1k as the installed torchvision lists it"

    def published_accuracy(self) -> float | None:
        """Return that of the default weights if they are loaded; for an untrained model, that of the best ones."""
        every = _import_models().get_model_weights(self.name)
        weights = [every.DEFAULT] if self.pretrained else list(every)
        known = [each.meta["_metrics"].get("ImageNet-1K", {}).get("acc@1") for each in weights]
        return max((accuracy for accuracy in known if accuracy is not None), default=None)

    def native_size(self) -> tuple[int, int]:
        """Return the size to which the default weights' transforms crop images."""
        size = self._weights.transforms().crop_size[0]
        return size, size

    def own_size(self) -> tuple[int, int] | None:
        """Return the size, if the family has a fixed one."""
        if self._family not in _SIZE_ARGUMENTS:
            return None
        return self.native_size() if self.pretrained else _OWN_SIZE

    @property
    def weights_fit_any_size(self) -> bool:
        """Whether pretrained weights can be loaded into a network that is built for another size: never."""
        return not self.pretrained

    def build(self, size: tuple[int, int] | None) -> nn.Module:
        """Build the network."""
        models = _import_models()
        if self.pretrained:
            network = self._load()
            if self.name == "inception_v3":  # torchvision drops those of googlenet itself
                network.aux_logits, network.AuxLogits = False, None
            if self.name in _WITH_AUXILIARY_HEADS and self.in_chans != 3:
                network.transform_input = False  # it normalises three channels anew, and drops others
            replace_heads(network, self.num_classes)
        else:
            options: dict[str, Any] = {}
            if self.name in _WITH_AUXILIARY_HEADS:
                options = {"aux_logits": False, "init_weights": True}
            elif self._family in _SIZE_ARGUMENTS:
                options = _SIZE_ARGUMENTS[self._family](*size or _OWN_SIZE)
            network = models.get_model(self.name, weights=None, num_classes=self.num_classes, **options)
        if self.in_chans != 3:
            take_channels(network, self.in_chans, keep=self.pretrained)
        return network

    def source_head(self) -> tuple[str, nn.Module]:
        """Load the checkpoint's own head."""
        with preserved_rng():
            network = self._load()
        return source_head_of(network, last_layer(network)[1])

    def _load(self) -> Any:
        """Load the network with its own classes."""
        with loading_weights(self, Path(torch.hub.get_dir(), "checkpoints"), "TORCH_HOME"):
            return _import_models().get_model(self.name, weights=self._weights, progress=False)

    @property
    def _weights(self) -> Any:
        """The default weights, not loaded."""
        return _import_models().get_model_weights(self.name).DEFAULT

    @property
    def _family(self) -> str:
        return self.name.split("_")[0]


def _import_models() -> Any:
    return import_optional("torchvision.models", "Models of torchvision need torchvision", "zoo")
