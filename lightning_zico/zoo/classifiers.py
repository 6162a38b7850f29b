"""LightningModules that train an unchanged network of a zoo."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from lightning_zico.errors import UnsupportedBatchError, UnsupportedInputError

# Usual value for training from scratch with AdamW (Touvron et al., DeiT, arXiv:2012.12877, and timm's scripts).
_WEIGHT_DECAY = 0.05
_WARM_UP = 0.05  # of all steps


class _Classifier(LightningModule, ABC):
    """Cross-entropy, accuracy, AdamW with warm-up and cosine decay; subclasses define the structure of a batch."""

    def __init__(self, network: nn.Module, num_classes: int, lr: float, weight_decay: float) -> None:
        super().__init__()
        self.network = network
        self.lr = lr
        self.weight_decay = weight_decay
        self.val_acc = MulticlassAccuracy(num_classes, average="micro")
        self.test_acc = MulticlassAccuracy(num_classes, average="micro")

    @abstractmethod
    def split(self, batch: Any) -> tuple[Any, Tensor]:
        """Split a batch into the inputs of the network and the labels ``[N]``."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Compute the mean cross-entropy."""
        inputs, labels = self.split(batch)
        loss = nn.functional.cross_entropy(self(inputs), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log ``val_loss`` and ``val_acc``."""
        self._evaluated(batch, "val", self.val_acc)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Log ``test_loss`` and ``test_acc``."""
        self._evaluated(batch, "test", self.test_acc)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Configure AdamW with a learning rate that rises linearly and then decays as a cosine to zero.

        In a training without an end, the learning rate stays constant.
        """
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        factor = partial(_warm_up_then_cosine, num_steps=float(self.trainer.estimated_stepping_batches))
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _evaluated(self, batch: Any, stage: str, accuracy: MulticlassAccuracy) -> None:
        inputs, labels = self.split(batch)
        logits = self(inputs)
        accuracy(logits, labels)
        num = len(labels)
        self.log(f"{stage}_loss", nn.functional.cross_entropy(logits, labels), prog_bar=True, batch_size=num)
        self.log(f"{stage}_acc", accuracy, prog_bar=True, batch_size=num)


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
    ) -> None:
        super().__init__(network, num_classes, lr, weight_decay)
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

    Example:
        >>> network = nn.Sequential(nn.EmbeddingBag(50, 8), nn.Linear(8, 3))
        >>> SequenceClassifier(network, 3)(torch.randint(50, (2, 7))).shape
        torch.Size([2, 3])
    """

    def __init__(
        self, network: nn.Module, num_classes: int, *, lr: float = 5e-4, weight_decay: float = _WEIGHT_DECAY
    ) -> None:
        super().__init__(network, num_classes, lr, weight_decay)

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


def _warm_up_then_cosine(step: int, *, num_steps: float) -> float:
    """Return the factor of the learning rate in a step, counted from 0; ``num_steps`` may be infinite."""
    if not math.isfinite(num_steps):
        return 1.0
    num_rising = max(1, round(_WARM_UP * num_steps))
    if step < num_rising:
        return (step + 1) / num_rising
    done = (step - num_rising) / max(1, num_steps - num_rising)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


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
