"""Candidates from transformers, built from a configuration: no weights are loaded."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from lightning_zico._imports import import_optional
from lightning_zico.errors import UnsupportedModuleError
from lightning_zico.zoo.base import (
    ImageModel,
    InputSize,
    Zoo,
    ZooModel,
    check_num_classes,
    image_shape,
    matched,
    size_of,
)
from lightning_zico.zoo.classifiers import SequenceClassifier
from lightning_zico.zoo.fitting import fits_data

# Of ImageNet-1k's images, on which the checkpoints with these configurations were trained.
_USUAL_SIZE = 224, 224


def _encoder(width: int, depth: int, heads: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
    }


# From names to the model type and its changes to the default configuration. The sizes of BERT are those of Turc et al.,
# arXiv:1908.08962; the others are those of the checkpoints of that name.
CONFIGS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "albert-base": ("albert", _encoder(768, 12, 12)),
    "bert-tiny": ("bert", _encoder(128, 2, 2)),
    "bert-mini": ("bert", _encoder(256, 4, 4)),
    "bert-small": ("bert", _encoder(512, 4, 8)),
    "bert-medium": ("bert", _encoder(512, 8, 8)),
    "bert-base": ("bert", {}),
    "deberta-v3-xsmall": ("deberta-v2", _encoder(384, 12, 6)),
    "distilbert-base": ("distilbert", {}),
    "electra-small": ("electra", {}),
    "minilm-l6": ("bert", _encoder(384, 6, 12)),
    "mobilebert": ("mobilebert", {}),
    "mpnet-base": ("mpnet", {}),
    "roberta-base": ("roberta", {}),
    "squeezebert": ("squeezebert", {}),
    "beit-base": ("beit", {}),
    "convnext-tiny": ("convnext", {}),
    "convnextv2-atto": ("convnextv2", {"depths": [2, 2, 6, 2], "hidden_sizes": [40, 80, 160, 320]}),
    "deit-tiny": ("deit", _encoder(192, 12, 3)),
    "deit-small": ("deit", _encoder(384, 12, 6)),
    "dinov2-small": ("dinov2", {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6}),
    "focalnet-tiny": ("focalnet", {}),
    "mobilenet-v2": ("mobilenet_v2", {}),
    "poolformer-s12": ("poolformer", {}),
    "pvt-v2-b0": ("pvt_v2", {}),
    "regnet-y-040": ("regnet", {}),
    "resnet-18": (
        "resnet",
        {"hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2], "layer_type": "basic"},
    ),
    "resnet-50": ("resnet", {}),
    "swin-tiny": ("swin", {}),
    "swinv2-tiny": ("swinv2", {}),
    "vit-tiny": ("vit", _encoder(192, 12, 3)),
    "vit-small": ("vit", _encoder(384, 12, 6)),
    "vit-base": ("vit", {}),
}


@fits_data
def from_transformers(
    *models: Any,
    num_classes: int | None = None,
    in_chans: int | None = None,
    input_size: InputSize = None,
    resize: bool | None = None,
    data: Any = None,
    vocab_size: int | None = None,
    pad_token_id: int = 0,
    max_params: float | None = None,
    exclude: str | Sequence[str] = (),
    lr: float = 5e-4,
) -> Zoo:
    """List models of transformers for images or text as candidates; each is only built when it is scored.

    Args:
        models: Names of `CONFIGS` or shell patterns (``"bert*"``); model types with their default configuration
            (``"roberta"``); or configurations, such as ``BertConfig(num_hidden_layers=3)``, which are named after their
            model type. A model for images becomes an `ImageClassifier`, one for text a `SequenceClassifier`.
        num_classes: As for `from_timm`.
        in_chans: For images: as for `from_timm`.
        input_size: For images: as for `from_timm`. Set in every configuration that has an ``image_size``.
        resize: For images: as for `from_timm`.
        data: As for `from_timm`. For text, it gives the classes, and the vocabulary if a data module has the attribute
            ``vocab_size``. All models must then be for images, or all for text.
        vocab_size: For text: the vocabulary size of the tokeniser; None to read it from ``data``, or for that of each
            configuration.
        pad_token_id: For text: the padding id of the tokeniser.
        max_params: Models with more parameters are left out.
        exclude: Patterns of names to leave out.
        lr: Highest learning rate.

    Returns:
        An iterable of the candidates.

    Raises:
        UnknownNameError: If a name is neither a configuration nor a model type. The message suggests similar names.
        UnsupportedModuleError: If a configuration belongs to a model that classifies neither images nor text.
        ValueError: If an argument is out of range, or no model is left.
        ModuleNotFoundError: If transformers is not installed.
    """
    num_classes, shape = check_num_classes(num_classes), image_shape(in_chans, input_size, resize)
    if vocab_size is not None and vocab_size < 1:
        raise ValueError(
            f"Invalid vocab_size={vocab_size}: expected a whole number of at least 1, or None for each model's own."
        )
    image_types, text_types = _model_types()
    configs = {name: (kind, dict(changes)) for name, (kind, changes) in CONFIGS.items()}
    for kind in (*image_types, *text_types):
        if kind in models:
            configs.setdefault(kind, (kind, {}))
    names = [model for model in models if isinstance(model, str)]
    wanted = (
        [(n, *configs[n]) for n in matched("model of transformers", names, list(configs), exclude)] if names else []
    )
    wanted += [(config.model_type, *_plain(config)) for config in models if not isinstance(config, str)]
    if not wanted:
        raise ValueError("No model was given: expected names or configurations, such as 'bert-tiny' or `BertConfig()`.")

    def model_of(name: str, kind: str, changes: dict[str, Any]) -> ZooModel:
        if kind in image_types:
            return TransformersImageModel(name, num_classes, lr, *shape, kind, json.dumps(changes, sort_keys=True))
        if kind not in text_types:
            raise UnsupportedModuleError(f"'{kind}' classifies neither images nor text in transformers.")
        changes |= {"pad_token_id": pad_token_id} | ({} if vocab_size is None else {"vocab_size": vocab_size})
        return TransformersTextModel(name, num_classes, lr, kind, json.dumps(changes, sort_keys=True))

    return Zoo(tuple(model_of(*each) for each in wanted), max_params)


@dataclass(frozen=True)
class TransformersImageModel(ImageModel):
    """How to build one model of transformers for images.

    Args:
        model_type: Model type in transformers.
        changes: Changes to the default configuration of the type, as JSON.
    """

    zoo: ClassVar[str] = "transformers"
    model_type: str
    changes: str

    def native_size(self) -> tuple[int, int]:
        """Return the size in the configuration; without one, that of the images on which all were trained."""
        return self.own_size() or _USUAL_SIZE

    def own_size(self) -> tuple[int, int] | None:
        """Return the size in the configuration."""
        size = getattr(self._config(), "image_size", None)
        return size_of(size if size is None or isinstance(size, int) else tuple(size))

    def build(self, size: tuple[int, int] | None) -> nn.Module:
        """Build the network."""
        from transformers import AutoModelForImageClassification

        return AutoModelForImageClassification.from_config(self._config(size))

    def _config(self, size: tuple[int, int] | None = None) -> Any:
        changes = json.loads(self.changes) | {"num_channels": self.in_chans}
        if size is not None:
            changes["image_size"] = size[0] if size[0] == size[1] else list(size)
        return _config(self.model_type, changes, self.num_classes)


@dataclass(frozen=True)
class TransformersTextModel(ZooModel):
    """How to build one model of transformers for text.

    Args:
        model_type: Model type in transformers.
        changes: Changes to the default configuration of the type, as JSON.
    """

    zoo: ClassVar[str] = "transformers"
    model_type: str
    changes: str

    def network(self) -> nn.Module:
        """Build the network."""
        from transformers import AutoModelForSequenceClassification

        config = _config(self.model_type, json.loads(self.changes), self.num_classes)
        return AutoModelForSequenceClassification.from_config(config)

    def __call__(self) -> SequenceClassifier:
        """Build the network and its LightningModule."""
        return SequenceClassifier(self.network(), self.num_classes, lr=self.lr)


def _config(model_type: str, changes: Mapping[str, Any], num_classes: int) -> Any:
    from transformers import AutoConfig

    config = AutoConfig.for_model(model_type, **changes)
    config.architectures = config.architectures or []  # some versions iterate over it even if it is None (deit, 5.24)
    config.num_labels = num_classes  # as an argument, it could contradict the class names of the configuration
    return config


def _plain(config: Any) -> tuple[str, dict[str, Any]]:
    """Return the model type of a configuration, and its changes to the default of that type."""
    changes = json.loads(config.to_json_string())
    return changes.pop("model_type"), {key: value for key, value in changes.items() if key != "transformers_version"}


def _model_types() -> tuple[frozenset[str], frozenset[str]]:
    """Return the model types that classify images, and those that classify text."""
    module = "transformers.models.auto.modeling_auto"
    modeling_auto = import_optional(module, "Models of transformers need transformers", "transformers")
    images = frozenset(modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES)
    return images, frozenset(modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)
