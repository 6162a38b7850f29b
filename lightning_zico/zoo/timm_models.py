"""Candidates from timm."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import nn

from lightning_zico._imports import import_optional
from lightning_zico.engine.scope import preserved_rng
from lightning_zico.errors import check_count
from lightning_zico.texts import count
from lightning_zico.zoo.base import (
    ImageModel,
    InputSize,
    Zoo,
    check_num_classes,
    fill_native_sizes,
    hub_folder,
    image_shape,
    loading_weights,
    match_names,
)
from lightning_zico.zoo.fitting import fits_data
from lightning_zico.zoo.layers import source_head_of
from lightning_zico.zoo.published import TIMM_SOURCE, timm_accuracies, timm_architectures


@fits_data
def from_timm(
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
    """List models of timm as candidates; each is only built when it is scored.

    Their published accuracies on ImageNet-1k are the column ``prior`` of a ranking (`zoo.published`): of the checkpoint
    that is loaded, or else of the best one of the architecture.

    Args:
        patterns: Names as returned by `timm.list_models`, or shell patterns. A pattern with a dot matches names with
            the tag of a checkpoint.
        num_classes: Number of classes; None to read it from ``data``.
        in_chans: Number of channels of the images; None to read it from ``data``, or for three.
        input_size: Side length, or height and width, of the images that the networks should accept. Vision transformers
            and other networks with a fixed size are built for this size if possible. Otherwise, they become rows with
            the reason, or keep their size with ``resize``. None to read it from ``data``; without ``data``,
            networks that accept any size take images unchanged, and the others use their own size, usually 224. See
            ``pretrained`` for pretrained models.
        resize: Resize images of other sizes inside the model, in each step. None for True with ``data``, otherwise
            False.
        data: A LightningDataModule, a DataLoader or a list of batches to read what is not given, see
            `fitting.fit_zoo`: classes, channels, and the longer side of the images, but at least 32.
        max_params: Models with more parameters are left out.
        exclude: Patterns of names to leave out.
        pretrained: Load timm's weights, downloaded if they are not in its cache (``HF_HOME``), with a fresh last layer,
            also if the checkpoint has as many classes. A network that reads
            other than three channels gets first weights that are summed up or repeated. Without ``input_size``, each
            model then gets images of the size that it is published for, to which they are resized unless ``resize`` is
            False; normalise them as for ImageNet.
        head_epochs: Number of epochs at the start in which only the head is trained, for pretrained models.
        lr: Highest learning rate; that of all layers but the head is a tenth of it in pretrained models.

    Returns:
        An iterable of the candidates.

    Raises:
        UnknownNameError: If there is no model with a given name. The message suggests similar names.
        ValueError: If an argument is out of range, or no model is left.
        ModuleNotFoundError: If timm is not installed.
    """
    num_classes, shape = check_num_classes(num_classes), image_shape(in_chans, input_size, resize, pretrained)
    timm = _import_timm()
    known = timm.list_models()
    if any("." in pattern for pattern in patterns):
        known = [*known, *timm.list_models(pretrained=True)]
    names = match_names("model of timm", patterns, known, exclude)
    head_epochs = check_count("head_epochs", head_epochs, 0)
    weights: dict[str, Any] = {"pretrained": pretrained, "head_epochs": head_epochs}
    models = [TimmModel(name, num_classes, lr, *shape, **weights) for name in names]
    return Zoo(fill_native_sizes(models), max_params)


@dataclass(frozen=True)
class TimmModel(ImageModel):
    """How to build one model of timm."""

    zoo: ClassVar[str] = "timm"
    source: ClassVar[str] = TIMM_SOURCE

    def native_size(self) -> tuple[int, int]:
        """Return the size in the configuration."""
        size = _import_timm().get_pretrained_cfg(self.name).input_size
        return size[-2], size[-1]

    def own_size(self) -> tuple[int, int] | None:
        """Return the size in the configuration, if it is fixed."""
        return self.native_size() if _import_timm().get_pretrained_cfg(self.name).fixed_input_size else None

    def build(self, size: tuple[int, int] | None) -> nn.Module:
        """Build the network."""
        options: dict[str, Any] = {"in_chans": self.in_chans} | ({} if size is None else {"img_size": size})
        create = partial(_import_timm().create_model, self.name, **options)
        with loading_weights(self, hub_folder(), "HF_HOME"):
            network: nn.Module = create(pretrained=False, num_classes=self.num_classes)
            if self.pretrained:
                # With its own classes: for others, timm takes checkpoints that lack weights.
                with preserved_rng():
                    checkpoint = create(pretrained=True)
                _copy_body(checkpoint, network)
        return network

    def source_head(self) -> tuple[str, nn.Module]:
        """Load the checkpoint's own head."""
        with preserved_rng(), loading_weights(self, hub_folder(), "HF_HOME"):
            network = _import_timm().create_model(self.name, pretrained=True)
        return source_head_of(network, network.get_classifier())

    def published_accuracy(self) -> float | None:
        """Return that of the checkpoint that is loaded; for an untrained model, of the best one of its architecture."""
        if "." in self.name:
            return timm_accuracies().get(self.name)
        if not self.pretrained:
            return timm_architectures().get(self.name)
        config = _import_timm().get_pretrained_cfg(self.name)
        return None if config is None else timm_accuracies().get(f"{self.name}.{config.tag}")


def _copy_body(checkpoint: nn.Module, network: nn.Module) -> None:
    """Copy all weights but those of the heads.

    Raises:
        RuntimeError: If the checkpoint lacks others.
    """
    heads = getattr(network, "pretrained_cfg", {}).get("classifier") or ()
    fresh = {f"{head}.{part}" for head in ([heads] if isinstance(heads, str) else heads) for part in ("weight", "bias")}
    body = {key: value for key, value in checkpoint.state_dict().items() if key not in fresh}
    lost = [key for key in network.load_state_dict(body, strict=False).missing_keys if key not in fresh]
    if lost:
        raise RuntimeError(f"the checkpoint lacks {count(len(lost), 'weight')} of the body, such as '{lost[0]}'")


def _import_timm() -> Any:
    return import_optional("timm", "Models of timm need timm", "zoo")
