"""LightningModules that train an unchanged network of a zoo."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from lightning_zico.errors import (
    InvalidArgumentError,
    NotApplicableError,
    UnsupportedBatchError,
    UnsupportedInputError,
    UnsupportedModuleError,
    check_count,
    number_of,
)
from lightning_zico.zoo.layers import last_layers

# Loads the head of a checkpoint; returns its name and the layer.
LoadsHead: TypeAlias = Callable[[], tuple[str, nn.Module]]

# Usual value for training from scratch with AdamW (Touvron et al., DeiT, arXiv:2012.12877, and timm's scripts).
_WEIGHT_DECAY = 0.05
_WARM_UP = 0.05  # of all steps
# Share of the learning rate with which the body of a pretrained model is trained on, since only its head is fresh.
PRETRAINED_BODY_LR = 0.1


class _Classifier(LightningModule, ABC):
    """Cross-entropy, accuracy, AdamW with warm-up and cosine decay; subclasses define the structure of a batch."""

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        lr: float,
        weight_decay: float,
        body_lr_factor: float,
        head_epochs: int,
        source_head: LoadsHead | None,
    ) -> None:
        super().__init__()
        factor = number_of(body_lr_factor)
        if factor is None or not factor >= 0:
            raise InvalidArgumentError(f"Invalid body_lr_factor={body_lr_factor!r}: expected a number of at least 0.")
        self.head_epochs: int = check_count("head_epochs", head_epochs, 0)
        self.network = network
        self.num_classes = num_classes
        self.lr = lr
        self.weight_decay = weight_decay
        self.body_lr_factor = factor
        self.source_head = source_head
        self.val_acc: MulticlassAccuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_acc: MulticlassAccuracy = MulticlassAccuracy(num_classes, average="micro")

    @abstractmethod
    def split(self, batch: Any) -> tuple[Any, Tensor]:
        """Split a batch into the inputs of the network and the labels ``[N]``."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Compute the mean cross-entropy."""
        inputs, labels = self.split(batch)
        loss = nn.functional.cross_entropy(self(inputs), labels)
        self.log("train_loss", loss)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Drop the checkpoint's head: it belongs to the weights before this step."""
        self._drop_source_head()

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights, as of a training that goes on, and drop the checkpoint's head."""
        self._drop_source_head()
        return super().load_state_dict(state_dict, strict, assign)

    def _drop_source_head(self) -> None:
        if self.source_head is not None:
            self.source_head = _no_source_head

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log ``val_loss`` and ``val_acc``."""
        self._evaluate(batch, "val", self.val_acc)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Log ``test_loss`` and ``test_acc``."""
        self._evaluate(batch, "test", self.test_acc)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Configure AdamW with a learning rate that rises linearly and then decays as a cosine to zero.

        In a training without an end, the learning rate stays constant. The body has a group of parameters of its own if
        it is trained otherwise than the head. In the ``head_epochs``, its learning rate is zero, so its parameters stay
        bit-identical; its gradients are computed all the same, and running statistics of its normalisation go on.

        Raises:
            InvalidArgumentError: If ``head_epochs`` are asked for and the length of an epoch is unknown.
            UnsupportedModuleError: If the body is to be trained otherwise, and the network has no head.
        """
        num_steps = float(self.trainer.estimated_stepping_batches)
        groups: list[dict[str, Any]] = [{"params": list(self.parameters())}]
        factors: list[Callable[[int], float]] = [partial(warm_up_then_cosine, num_steps=num_steps)]
        if self.body_lr_factor != 1 or self.head_epochs:
            head = {p for module in head_of(self.network, self.num_classes) for p in module.parameters()}
            groups = [
                {"params": [p for p in self.parameters() if p not in head], "lr": self.body_lr_factor * self.lr},
                {"params": [p for p in self.parameters() if p in head]},
            ]
            factors = [partial(warm_up_then_cosine, num_steps=num_steps, first=self._num_head_steps()), *factors]
        optimizer = torch.optim.AdamW(groups, lr=self.lr, weight_decay=self.weight_decay)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _num_head_steps(self) -> int:
        """Count the steps of the first ``head_epochs``."""
        if not self.head_epochs:
            return 0
        steps = self.trainer.num_training_batches / self.trainer.accumulate_grad_batches
        if not math.isfinite(steps):
            raise InvalidArgumentError(
                f"Invalid head_epochs={self.head_epochs}: the length of an epoch is unknown. Pass "
                "`limit_train_batches` to the trainer, or leave `head_epochs` out."
            )
        return self.head_epochs * math.ceil(steps)

    def _evaluate(self, batch: Any, stage: str, accuracy: MulticlassAccuracy) -> None:
        inputs, labels = self.split(batch)
        logits = self(inputs)
        accuracy(logits, labels)
        num = len(labels)
        self.log(f"{stage}_loss", nn.functional.cross_entropy(logits, labels), prog_bar=True, batch_size=num)
        self.log(f"{stage}_acc", accuracy, prog_bar=True, batch_size=num)


def head_of(network: nn.Module, num_classes: int) -> list[nn.Module]:
    """Return the layers of a network that output its logits; the other layers are its body.

    Networks of timm know theirs; of others it is the last linear layer or convolution with an output for each class.
    Distilled networks have two.

    Raises:
        UnsupportedModuleError: If there is none.

    Example:
        >>> head_of(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), 3)
        [Linear(in_features=8, out_features=3, bias=True)]
    """
    get_own = getattr(network, "get_classifier", None)
    own = get_own() if callable(get_own) else ()
    known = own if isinstance(own, list | tuple) else [own]
    heads = [module for module in known if isinstance(module, nn.Module) and any(True for _ in module.parameters())]
    if not heads:
        heads += [layer for _, layer in last_layers(network, num_classes)]
    if not heads:
        raise UnsupportedModuleError(
            f"The network has no linear layer or convolution with {num_classes} outputs, so its head is unknown. "
            "Leave the model out, or put its network into a classifier with `body_lr_factor=1` and `head_epochs=0`, "
            "which trains all layers alike."
        )
    return heads


class ImageClassifier(_Classifier):
    """A network for images and how to train it: cross-entropy, accuracy, AdamW with warm-up and cosine decay.

    Batches are pairs ``([N, C, H, W], [N])``. It logs ``train_loss``, ``val_loss``, ``val_acc``, ``test_loss`` and
    ``test_acc``.

    Args:
        network: ``[N, C, H, W] -> [N, K]``, or with an output that has ``logits``.
        num_classes: Number of classes, K.
        in_chans: Number of channels that the network accepts, C; None to leave the check to the network.
        input_size: Image size ``(H, W)`` that the network accepts; None for any.
        resize: Resize images of other sizes to ``input_size``; otherwise they are an error.
        lr: Highest learning rate.
        weight_decay: Weight decay of AdamW.
        body_lr_factor: Share of the learning rate for all parameters but those of the head (see `head_of`): below 1 for
            a pretrained network, 0 to train the head alone.
        head_epochs: Number of epochs at the start in which only the head is trained.
        source_head: Loads the head that the network was pretrained with, for `leep` and `nce`: returns the name of the
            network's head among this module's submodules, such as ``"network.fc"``, and the layer. Called only if they
            are computed, and dropped once this module is trained or loads other weights. None if the network is not
            pretrained.

    Raises:
        InvalidArgumentError: If ``body_lr_factor`` or ``head_epochs`` is out of range.

    Example:
        >>> model = ImageClassifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), 3, input_size=(4, 4), resize=True)
        >>> model(torch.randn(2, 1, 8, 8)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        *,
        in_chans: int | None = None,
        input_size: tuple[int, int] | None = None,
        resize: bool = False,
        lr: float = 1e-3,
        weight_decay: float = _WEIGHT_DECAY,
        body_lr_factor: float = 1.0,
        head_epochs: int = 0,
        source_head: LoadsHead | None = None,
    ) -> None:
        super().__init__(network, num_classes, lr, weight_decay, body_lr_factor, head_epochs, source_head)
        self.in_chans = in_chans
        self.input_size = input_size
        self.resize = resize

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits.

        Raises:
            UnsupportedInputError: If the network does not accept images of this size or number of channels.
        """
        channels, *size = images.shape[1:]
        if self.in_chans not in (None, channels):
            raise UnsupportedInputError(
                f"The images have {channels} channels; the network takes {self.in_chans}. Pass `in_chans={channels}`."
            )
        if self.input_size is not None and self.input_size != tuple(size):
            if not self.resize:
                taken = " x ".join(map(str, self.input_size))
                raise UnsupportedInputError(
                    f"The images are {size[0]} x {size[1]}; the network takes only {taken}. Pass `resize=True` "
                    "to resize them, or their size as `input_size`."
                )
            images = nn.functional.interpolate(images, self.input_size, mode="bilinear", antialias=True)
        return _logits(self.network(images))

    def split(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Split a batch into images and labels."""
        return _pair(batch)


class SequenceClassifier(_Classifier):
    """A network for sequences of tokens and how to train it, in the same way as `ImageClassifier`.

    Batches are mappings as returned by tokenisers and their collators (``input_ids``, ``attention_mask``, ..., and
    ``labels``), or pairs ``([N, T], [N])`` of token ids and labels.

    Args:
        network: Called with the mapping without its labels as keyword arguments, or with the token ids. Its output has
            ``logits`` ``[N, K]``, or is the logits.
        num_classes: Number of classes, K.
        lr: Highest learning rate.
        weight_decay: Weight decay of AdamW.
        body_lr_factor: As for `ImageClassifier`.
        head_epochs: As for `ImageClassifier`.
        source_head: As for `ImageClassifier`.

    Example:
        >>> network = nn.Sequential(nn.EmbeddingBag(50, 8), nn.Linear(8, 3))
        >>> SequenceClassifier(network, 3)(torch.randint(50, (2, 7))).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        *,
        lr: float = 5e-4,
        weight_decay: float = _WEIGHT_DECAY,
        body_lr_factor: float = 1.0,
        head_epochs: int = 0,
        source_head: LoadsHead | None = None,
    ) -> None:
        super().__init__(network, num_classes, lr, weight_decay, body_lr_factor, head_epochs, source_head)

    def forward(self, tokens: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Compute the logits."""
        return _logits(self.network(**tokens) if isinstance(tokens, Mapping) else self.network(tokens))

    def split(self, batch: Any) -> tuple[Any, Tensor]:
        """Split a batch into the inputs of the network and the labels.

        Raises:
            UnsupportedBatchError: If it is a mapping without labels.
        """
        if not isinstance(batch, Mapping):
            return _pair(batch)
        if "labels" not in batch:
            raise UnsupportedBatchError(f"The batch has {', '.join(batch)}: expected `labels` as well.")
        return {name: part for name, part in batch.items() if name != "labels"}, batch["labels"]


def warm_up_then_cosine(step: int, *, num_steps: float, first: int = 0) -> float:
    """Return the factor of the learning rate in a step, counted from 0; zero before the ``first`` one.

    ``num_steps`` may be infinite.
    """
    if step < first:
        return 0.0
    step, num_steps = step - first, num_steps - first
    if not math.isfinite(num_steps):
        return 1.0
    num_rising = max(1, round(_WARM_UP * num_steps))
    if step < num_rising:
        return (step + 1) / num_rising
    done = (step - num_rising) / max(1, num_steps - num_rising)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def _no_source_head() -> tuple[str, nn.Module]:
    raise NotApplicableError(
        "the weights were trained or replaced since the checkpoint was loaded, so its head does not belong to them."
    )


def _pair(batch: Any) -> tuple[Tensor, Tensor]:
    try:
        inputs, labels = batch
    except (TypeError, ValueError) as error:
        raise UnsupportedBatchError(
            f"The batch is a {type(batch).__name__}: expected a pair of inputs and labels."
        ) from error
    return inputs, labels


def _logits(outputs: Any) -> Tensor:
    return getattr(outputs, "logits", outputs)
