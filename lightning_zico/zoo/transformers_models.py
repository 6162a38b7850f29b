"""Candidates from transformers, built from a configuration or loaded from a checkpoint."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import nn

from lightning_zico._imports import import_optional
from lightning_zico.engine.scope import preserved_rng
from lightning_zico.errors import (
    InvalidArgumentError,
    UnsupportedInputError,
    UnsupportedModuleError,
    WeightsNotLoadedError,
    check_count,
)
from lightning_zico.texts import count
from lightning_zico.zoo.base import (
    ImageModel,
    InputSize,
    Zoo,
    ZooModel,
    check_num_classes,
    fill_native_sizes,
    hub_folder,
    image_shape,
    leave_out,
    loading_weights,
    match_names,
    size_of,
)
from lightning_zico.zoo.classifiers import PRETRAINED_BODY_LR, SequenceClassifier
from lightning_zico.zoo.fitting import fits_data
from lightning_zico.zoo.layers import last_layers, replace_heads, source_head_of, take_channels
from lightning_zico.zoo.published import TIMM_SOURCE, timm_accuracies

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

# From names of `CONFIGS` to the repositories of their checkpoints on the hub.
CHECKPOINTS: Mapping[str, str] = {
    "albert-base": "albert/albert-base-v2",
    "bert-tiny": "google/bert_uncased_L-2_H-128_A-2",
    "bert-mini": "google/bert_uncased_L-4_H-256_A-4",
    "bert-small": "google/bert_uncased_L-4_H-512_A-8",
    "bert-medium": "google/bert_uncased_L-8_H-512_A-8",
    "bert-base": "google-bert/bert-base-uncased",
    "deberta-v3-xsmall": "microsoft/deberta-v3-xsmall",
    "distilbert-base": "distilbert/distilbert-base-uncased",
    "electra-small": "google/electra-small-discriminator",
    "minilm-l6": "nreimers/MiniLM-L6-H384-uncased",
    "mobilebert": "google/mobilebert-uncased",
    "mpnet-base": "microsoft/mpnet-base",
    "roberta-base": "FacebookAI/roberta-base",
    "squeezebert": "squeezebert/squeezebert-uncased",
    "beit-base": "microsoft/beit-base-patch16-224",
    "convnext-tiny": "facebook/convnext-tiny-224",
    "convnextv2-atto": "facebook/convnextv2-atto-1k-224",
    "deit-tiny": "facebook/deit-tiny-patch16-224",
    "deit-small": "facebook/deit-small-patch16-224",
    "dinov2-small": "facebook/dinov2-small",
    "focalnet-tiny": "microsoft/focalnet-tiny",
    "mobilenet-v2": "google/mobilenet_v2_1.0_224",
    "poolformer-s12": "sail/poolformer_s12",
    "pvt-v2-b0": "OpenGVLab/pvt_v2_b0",
    "regnet-y-040": "facebook/regnet-y-040",
    "resnet-18": "microsoft/resnet-18",
    "resnet-50": "microsoft/resnet-50",
    "swin-tiny": "microsoft/swin-tiny-patch4-window7-224",
    "swinv2-tiny": "microsoft/swinv2-tiny-patch4-window8-256",
    "vit-base": "google/vit-base-patch16-224",
}
# What the checkpoint of a name has beside its entry in `CONFIGS`.
_CHANGES_OF_CHECKPOINTS: Mapping[str, Mapping[str, Any]] = {"swinv2-tiny": {"image_size": 256, "window_size": 8}}

# Repositories with the same weights as a checkpoint of timm, whose published accuracy is then theirs.
_OF_TIMM: Mapping[str, str] = {
    "facebook/convnext-tiny-224": "convnext_tiny.fb_in1k",
    "facebook/convnextv2-atto-1k-224": "convnextv2_atto.fcmae_ft_in1k",
    "facebook/deit-tiny-patch16-224": "deit_tiny_patch16_224.fb_in1k",
    "facebook/deit-small-patch16-224": "deit_small_patch16_224.fb_in1k",
    "microsoft/swin-tiny-patch4-window7-224": "swin_tiny_patch4_window7_224.ms_in1k",
    "microsoft/swinv2-tiny-patch4-window8-256": "swinv2_tiny_window8_256.ms_in1k",
    "sail/poolformer_s12": "poolformer_s12.sail_in1k",
    "OpenGVLab/pvt_v2_b0": "pvt_v2_b0.in1k",
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
    pretrained: bool = False,
    head_epochs: int = 0,
    lr: float = 5e-4,
) -> Zoo:
    """List models of transformers for images or text as candidates; each is only built when it is scored.

    Args:
        models: Names of `CONFIGS` or shell patterns (``"bert*"``); model types with their default configuration
            (``"roberta"``); or configurations, such as ``BertConfig(num_hidden_layers=3)``, which are named after their
            model type. With ``pretrained``: names of `CHECKPOINTS` or shell patterns; repositories of the hub with
            their owner (``"facebook/convnext-tiny-224"``); or folders of `save_pretrained`. A model for images becomes
            an `ImageClassifier`, one for text a `SequenceClassifier`.
        num_classes: As for `from_timm`.
        in_chans: For images: as for `from_timm`.
        input_size: For images: as for `from_timm`. Set in every configuration that has an ``image_size``.
        resize: For images: as for `from_timm`.
        data: As for `from_timm`. For text, it gives the classes, and the vocabulary if a data module has the attribute
            ``vocab_size``. All models must then be for images, or all for text.
        vocab_size: For text: the vocabulary size of the tokeniser; None to read it from ``data``, or for that of each
            configuration. A checkpoint keeps its own vocabulary, which must not be smaller.
        pad_token_id: For text: the padding id of the tokeniser; a checkpoint keeps its own.
        max_params: Models with more parameters are left out.
        exclude: Patterns of names to leave out.
        pretrained: Load the checkpoints of these names, downloaded if they are not in the cache of the hub
            (``HF_HOME``), with a fresh last layer; otherwise as for `from_timm`. Tokenise texts with the tokeniser of
            the checkpoints; all checkpoints of one ranking must then have the same.
        head_epochs: As for `from_timm`.
        lr: Highest learning rate; that of all layers but the head is a tenth of it in pretrained models.

    Returns:
        An iterable of the candidates. A repository whose configuration cannot be loaded is a candidate that fails with
        the reason.

    Raises:
        UnknownNameError: If a name is neither a configuration nor a model type. The message suggests similar names.
        WeightsNotLoadedError: If no configuration of a repository can be loaded, and there are no other models.
        UnsupportedModuleError: If a configuration belongs to a model that classifies neither images nor text.
        ValueError: If an argument is out of range, or no model is left.
        ModuleNotFoundError: If transformers is not installed.
    """
    num_classes = check_num_classes(num_classes)
    shape = image_shape(in_chans, input_size, resize, pretrained)
    head_epochs = check_count("head_epochs", head_epochs, 0)
    if vocab_size is not None and vocab_size < 1:
        raise ValueError(
            f"Invalid vocab_size={vocab_size}: expected a whole number of at least 1, or None for each model's own."
        )
    if not models:
        raise ValueError("No model was given: expected names or configurations, such as 'bert-tiny' or `BertConfig()`.")
    image_types, text_types = _model_types()
    weights: dict[str, Any] = {"pretrained": pretrained, "head_epochs": head_epochs}

    def model_of(name: str, kind: str, changes: dict[str, Any], checkpoint: str = "") -> ZooModel:
        own = {**weights, "model_type": kind, "checkpoint": checkpoint}
        if kind in image_types:
            return TransformersImageModel(name, num_classes, lr, *shape, changes=_as_json_text(changes), **own)
        if kind not in text_types:
            raise UnsupportedModuleError(f"'{kind}' classifies neither images nor text in transformers.")
        changes |= {"pad_token_id": pad_token_id} | ({} if vocab_size is None else {"vocab_size": vocab_size})
        return TransformersTextModel(name, num_classes, lr, changes=_as_json_text(changes), **own)

    if not pretrained:
        listed = [model_of(*each) for each in _configurations(models, image_types | text_types, exclude)]
        return Zoo(tuple(listed), max_params)
    found: list[ZooModel] = []
    for name, checkpoint in _checkpoints(models, exclude):
        try:
            found.append(model_of(name, *_configuration_of(name, checkpoint), checkpoint))
        except (WeightsNotLoadedError, ValueError) as error:
            found.append(_Unavailable(name, num_classes, lr, **weights, checkpoint=checkpoint, reason=str(error)))
    if all(isinstance(model, _Unavailable) for model in found):
        found[0].network()
    return Zoo(fill_native_sizes(found), max_params)


def _configurations(
    models: Sequence[Any], types: frozenset[str], exclude: str | Sequence[str]
) -> list[tuple[str, str, dict[str, Any]]]:
    """List names, model types and changes to their configurations: those of names first, then those given as such."""
    configs = {name: (kind, dict(changes)) for name, (kind, changes) in CONFIGS.items()}
    for kind in sorted(types.intersection(model for model in models if isinstance(model, str))):
        configs.setdefault(kind, (kind, {}))
    names = [model for model in models if isinstance(model, str)]
    kind = "model of transformers"
    found = [(name, *configs[name]) for name in match_names(kind, names, list(configs))] if names else []
    found += [(config.model_type, *_plain(config)) for config in models if not isinstance(config, str)]
    kept = leave_out(kind, [name for name, *_ in found], exclude)
    return [each for each in found if each[0] in kept]


def _checkpoints(models: Sequence[Any], exclude: str | Sequence[str]) -> list[tuple[str, str]]:
    """List names and their repositories or folders.

    Raises:
        InvalidArgumentError: If a model is a configuration, which has no weights.
    """
    given = next((model for model in models if not isinstance(model, str)), None)
    if given is not None:
        raise InvalidArgumentError(
            f"A {type(given).__name__} has no weights: with `pretrained=True`, pass names of checkpoints, such as "
            "'bert-tiny' or 'google-bert/bert-base-uncased'."
        )
    # All repositories have an owner; another name is one of the table, or wrong.
    has_owner = re.compile(r"[^*?[]*/[^*?[]*").fullmatch
    others = [each for each in models if each not in CHECKPOINTS and (has_owner(each) or os.path.isdir(each))]
    names = match_names("checkpoint of transformers", models, [*CHECKPOINTS, *others], exclude)
    return [(name, CHECKPOINTS.get(name, name)) for name in names]


def _configuration_of(name: str, checkpoint: str) -> tuple[str, dict[str, Any]]:
    """Return the model type of a checkpoint, and its changes to the default configuration of that type.

    The table has them for names of `CHECKPOINTS`, so that these can be listed without a connection.
    """
    if name in CHECKPOINTS:
        kind, changes = CONFIGS[name]
        return kind, {**changes, **_CHANGES_OF_CHECKPOINTS.get(name, {})}
    with loading_weights(_Unavailable(name, 2, 0.0, pretrained=True), hub_folder(), "HF_HOME"):
        return _plain(_load_config(checkpoint))


@dataclass(frozen=True)
class _TransformersModel(ZooModel):
    """How to build one model of transformers.

    Args:
        model_type: Model type in transformers.
        changes: Changes to the default configuration of the type, as JSON.
        checkpoint: The repository of the weights on the hub, or a folder, if it is pretrained.
    """

    zoo: ClassVar[str] = "transformers"
    source: ClassVar[str] = TIMM_SOURCE
    kind: ClassVar[str] = ""  # of the class in transformers that adds a head
    model_type: str = field(default="", kw_only=True)
    changes: str = field(default="{}", kw_only=True)
    checkpoint: str = field(default="", kw_only=True)

    def published_accuracy(self) -> float | None:
        """Return that of the same checkpoint in timm; None if there is none, or nothing is loaded."""
        return timm_accuracies().get(_OF_TIMM.get(self.checkpoint, "")) if self.pretrained else None

    def source_head(self) -> tuple[str, nn.Module]:
        """Load the checkpoint's own head."""
        with preserved_rng(), loading_weights(self, hub_folder(), "HF_HOME"):
            network, missing = self._load(_load_config(self.checkpoint))
        heads = [head for _, head in last_layers(network)]
        return source_head_of(network, None if missing else heads[0] if len(heads) == 1 else heads)

    def _load_network(self) -> Any:
        """Load the network with a fresh head."""
        with loading_weights(self, hub_folder(), "HF_HOME"):
            config = _load_config(self.checkpoint)
        self._check(config)
        with loading_weights(self, hub_folder(), "HF_HOME"):
            network, _ = self._load(_with_classes(config, self.num_classes))
        replace_heads(network, self.num_classes)  # kept if the checkpoint has as many classes
        return network

    def _check(self, config: Any) -> None:
        """Check that the configuration of the checkpoint suits the data."""

    def _load(self, config: Any) -> tuple[Any, list[str]]:
        """Load the checkpoint into a network of a configuration.

        Returns:
            The network, and the names of its weights that the checkpoint does not have: of the head or the pooler.

        Raises:
            RuntimeError: If the checkpoint does not have all weights of the body, or has weights other than those of
                the heads in another shape.
        """
        auto = getattr(
            import_optional("transformers", "Models of transformers need transformers", "transformers"), self.kind
        )
        with _quiet():
            network, info = auto.from_pretrained(
                self.checkpoint, config=config, ignore_mismatched_sizes=True, output_loading_info=True
            )
        heads = [head for head, _ in last_layers(network)]
        other = next((key for key, *_ in info["mismatched_keys"] if key.rpartition(".")[0] not in heads), None)
        if other is not None:
            raise RuntimeError(f"'{other}' has another shape in the checkpoint")
        missing = _weights_among(network, info["missing_keys"])
        body = "" if network.base_model is network else f"{network.base_model_prefix}."
        fresh = (*(f"{head}." for head in heads), "pooler")
        lost = [key for key in missing if key.startswith(body) and not any(part in key for part in fresh)]
        if lost:
            raise RuntimeError(f"the checkpoint lacks {count(len(lost), 'weight')} of the body, such as '{lost[0]}'")
        # In float32 and training mode, as models of other zoos are.
        return network.float().train(), missing


@dataclass(frozen=True)
class TransformersImageModel(_TransformersModel, ImageModel):
    """How to build one model of transformers for images."""

    kind: ClassVar[str] = "AutoModelForImageClassification"

    def native_size(self) -> tuple[int, int]:
        """Return the size in the configuration; without one, that of the images on which all were trained."""
        return self.own_size() or _USUAL_SIZE

    def own_size(self) -> tuple[int, int] | None:
        """Return the size in the configuration."""
        return size_of(getattr(self._config(), "image_size", None))

    @property
    def weights_fit_any_size(self) -> bool:
        """Whether pretrained weights can be loaded into a network that is built for another size: never."""
        return not self.pretrained

    def build(self, size: tuple[int, int] | None) -> nn.Module:
        """Build the network."""
        if not self.pretrained:
            from transformers import AutoModelForImageClassification

            return AutoModelForImageClassification.from_config(self._config(size))
        network: nn.Module = self._load_network()
        if self.in_chans != 3:
            take_channels(network, self.in_chans, keep=True)
            for part in network.modules():
                if getattr(part, "num_channels", None) == 3:  # compared with the images
                    part.num_channels = self.in_chans  # type: ignore[assignment]
        return network

    def _config(self, size: tuple[int, int] | None = None) -> Any:
        changes = json.loads(self.changes) | {"num_channels": self.in_chans}
        if size is not None:
            changes["image_size"] = size[0] if size[0] == size[1] else list(size)
        return _config(self.model_type, changes, self.num_classes)


@dataclass(frozen=True)
class TransformersTextModel(_TransformersModel):
    """How to build one model of transformers for text."""

    kind: ClassVar[str] = "AutoModelForSequenceClassification"

    def network(self) -> nn.Module:
        """Build the network."""
        if self.pretrained:
            network: nn.Module = self._load_network()
            return network
        from transformers import AutoModelForSequenceClassification

        config = _config(self.model_type, json.loads(self.changes), self.num_classes)
        return AutoModelForSequenceClassification.from_config(config)

    def __call__(self) -> SequenceClassifier:
        """Build the network and its LightningModule."""
        return SequenceClassifier(
            self.network(),
            self.num_classes,
            lr=self.lr,
            body_lr_factor=PRETRAINED_BODY_LR if self.pretrained else 1.0,
            head_epochs=self.head_epochs,
            source_head=self.source_head if self.pretrained else None,
        )

    def _check(self, config: Any) -> None:
        wanted, own = json.loads(self.changes).get("vocab_size"), getattr(config, "vocab_size", None)
        if wanted is not None and own is not None and own < wanted:
            raise UnsupportedInputError(
                f"The vocabulary of the texts has {wanted:,} tokens, that of the checkpoint of '{self.name}' {own:,}. "
                "Tokenise them with its own tokeniser, or leave the model out with `exclude`."
            )


@dataclass(frozen=True)
class _Unavailable(_TransformersModel):
    """A checkpoint whose configuration could not be loaded, so that it is unknown what it is for.

    Args:
        reason: Why.
    """

    reason: str = field(default="", kw_only=True)

    def network(self) -> nn.Module:
        """Raise the reason."""
        raise WeightsNotLoadedError(self.reason)

    def __call__(self) -> nn.Module:
        """Raise the reason."""
        return self.network()


def _config(model_type: str, changes: Mapping[str, Any], num_classes: int) -> Any:
    from transformers import AutoConfig

    return _with_classes(AutoConfig.for_model(model_type, **changes), num_classes)


def _with_classes(config: Any, num_classes: int) -> Any:
    config.architectures = config.architectures or []  # some versions iterate over it even if it is None (deit, 5.24)
    config.num_labels = num_classes  # as an argument, it could contradict the class names of the configuration
    return config


def _load_config(checkpoint: str) -> Any:
    auto = import_optional("transformers", "Models of transformers need transformers", "transformers").AutoConfig
    return auto.from_pretrained(checkpoint)


def _weights_among(network: nn.Module, keys: Iterable[str]) -> list[str]:
    """Return the keys of what training changes and classification uses: no constants, counters and masks."""
    learned = {name for name, _ in network.named_parameters()}
    learned |= {name for name, _ in network.named_buffers() if name.endswith(("running_mean", "running_var"))}
    return sorted(key for key in keys if key in learned and "mask_token" not in key)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from listing fresh weights and showing progress bars while the body runs."""
    logging = import_optional("transformers.utils.logging", "Models of transformers need transformers", "transformers")
    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()


def _as_json_text(changes: Mapping[str, Any]) -> str:
    return json.dumps(changes, sort_keys=True)


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
