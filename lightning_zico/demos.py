"""Small real candidates and data: eight models for scikit-learn's 1,797 images of digits."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from lightning_zico._imports import import_optional
from lightning_zico.errors import check_count

_NUM_CLASSES = 10
_NUM_TRAIN = 1437  # four fifths
_MAX_EPOCHS = 20  # enough to bring all but the smallest candidates near their best


class DigitsDataModule(LightningDataModule):
    """Handwritten digits, ``[N, 1, 8, 8]`` in 0..1, which ship with scikit-learn: 1,437 to train, 360 to validate.

    Args:
        batch_size: Number of images in a batch.

    Raises:
        InvalidArgumentError: If ``batch_size`` is not a whole number of at least 1.
        ModuleNotFoundError: In ``setup``, if scikit-learn is not installed.
    """

    num_classes = _NUM_CLASSES

    def __init__(self, batch_size: int = 32) -> None:
        super().__init__()
        self.batch_size: int = check_count("batch_size", batch_size)

    def setup(self, stage: str) -> None:
        """Read the images and split them, always in the same way."""
        datasets = import_optional("sklearn.datasets", "The digits come with scikit-learn", "demo")
        images, labels = datasets.load_digits(return_X_y=True)
        data = TensorDataset(torch.tensor(images).float().view(-1, 1, 8, 8) / 16, torch.tensor(labels).long())
        parts = [_NUM_TRAIN, len(data) - _NUM_TRAIN]
        self.train_data, self.val_data = random_split(data, parts, torch.Generator().manual_seed(0))

    def train_dataloader(self) -> DataLoader[Any]:
        """Return a shuffled loader without the last, smaller batch."""
        return DataLoader(self.train_data, self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return a loader with all images in one batch."""
        return DataLoader(self.val_data, len(self.val_data))


class DigitsClassifier(LightningModule):
    """A network for digits, trained with cross-entropy and Adam.

    Args:
        network: ``[N, 1, 8, 8] -> [N, 10]``.
        lr: Learning rate.
    """

    def __init__(self, network: nn.Module, lr: float = 2e-3) -> None:
        super().__init__()
        self.network = network
        self.lr = lr

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits."""
        return self.network(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Compute the mean cross-entropy."""
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the accuracy."""
        self.log("val_acc", (self(batch[0]).argmax(dim=1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return an Adam optimiser."""
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class SmallViT(nn.Module):
    """A vision transformer over the sixteen 2 x 2 patches of an 8 x 8 image.

    Args:
        width: Width of a token.
        depth: Number of transformer blocks.
        heads: Number of attention heads in each block.
    """

    def __init__(self, width: int = 32, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.patches: nn.Conv2d = nn.Conv2d(1, width, kernel_size=2, stride=2)
        self.positions: nn.Parameter = nn.Parameter(0.02 * torch.randn(16, width))
        block = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks: nn.TransformerEncoder = nn.TransformerEncoder(block, depth, enable_nested_tensor=False)
        self.head: nn.Linear = nn.Linear(width, _NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits."""
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.positions  # [N, 16, width]
        return self.head(self.blocks(tokens).mean(dim=1))


def mlp(*widths: int) -> nn.Sequential:
    """Stack linear layers of these widths with ReLU between them."""
    sizes = [64, *widths]
    hidden = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(sizes[-1], _NUM_CLASSES))


def cnn(*channels: int, batch_norm: bool = False) -> nn.Sequential:
    """Stack 3 x 3 convolutions of these channels; every second one halves the image."""
    parts: list[nn.Module] = []
    for idx, (a, b) in enumerate(pairwise((1, *channels))):
        parts.append(nn.Conv2d(a, b, 3, stride=1 + idx % 2, padding=1))
        parts += [nn.BatchNorm2d(b)] if batch_norm else []
        parts.append(nn.ReLU())
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], _NUM_CLASSES))


def digits_candidates() -> dict[str, Callable[[], DigitsClassifier]]:
    """Return factories of eight candidates of different kinds by name; each builds one with fresh weights.

    Example:
        >>> list(digits_candidates())
        ['mlp-64', 'mlp-256', 'mlp-64x4', 'cnn-8', 'cnn-32x3', 'cnn-bn-16x2', 'cnn-bn-32x4', 'vit-32x2']
    """
    networks: dict[str, Callable[[], nn.Module]] = {
        "mlp-64": partial(mlp, 64),
        "mlp-256": partial(mlp, 256),
        "mlp-64x4": partial(mlp, 64, 64, 64, 64),
        "cnn-8": partial(cnn, 8),
        "cnn-32x3": partial(cnn, 32, 32, 32),
        "cnn-bn-16x2": partial(cnn, 16, 16, batch_norm=True),
        "cnn-bn-32x4": partial(cnn, 32, 32, 32, 32, batch_norm=True),
        "vit-32x2": SmallViT,
    }
    return {name: partial(_classifier, network) for name, network in networks.items()}


def _classifier(network: Callable[[], nn.Module]) -> DigitsClassifier:
    return DigitsClassifier(network())


def quiet_trainer() -> Trainer:
    """Return a trainer that trains on the CPU for twenty epochs, and writes and shows nothing."""
    return Trainer(
        max_epochs=_MAX_EPOCHS,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def trained_accuracy(build: Callable[[], LightningModule]) -> float:
    """Train a candidate with a `quiet_trainer`, as a selector with seed 0 trains a winner.

    Args:
        build: Function that builds the candidate.

    Returns:
        Accuracy on the validation images, in %.
    """
    seed_everything(0, verbose=False)
    model = build()
    seed_everything(0, verbose=False)  # a selector's build does not affect the global generators
    trainer = quiet_trainer()
    trainer.fit(model, datamodule=DigitsDataModule())
    return 100 * trainer.callback_metrics["val_acc"].item()
