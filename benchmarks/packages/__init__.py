"""Modules of other packages for third_party.py: one file per package, with generated data.

A file ``<package>_models.py`` has ``PACKAGE``, the name of the distribution, and ``ENTRIES``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

NUM_SAMPLES = 8


@dataclass(frozen=True)
class Entry:
    """A module in two sizes and data for it.

    Args:
        name: The name in the package.
        build: Builds a LightningModule of a given width.
        data: Returns a DataLoader or a data module, a new one at every call, with the same data.
        small: The width of the smaller module.
        big: The width of the larger module.
        options: Arguments that scoring needs, such as ``num_samples``.
        validates: Whether it is also validated, since its learning rate depends on a validation metric.
    """

    name: str
    build: Callable[[int], Any]
    data: Callable[[], Any]
    small: int = 8
    big: int = 16
    options: Mapping[str, Any] = field(default_factory=dict)
    validates: bool = False


class Fitted(LightningModule):
    """A network of a package that ships no LightningModule, with the step of the package's own examples."""

    def __init__(
        self, network: nn.Module, loss: Callable[[Any, Any], Tensor], lr: float = 1e-3, **parts: nn.Module
    ) -> None:
        super().__init__()
        self.network = network
        self.loss = loss
        self.lr = lr
        for name, part in parts.items():
            self.add_module(name, part)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Compute the loss of this module on a batch, and log it."""
        loss = self.loss(self, batch)
        self.log("train_loss", loss, batch_size=NUM_SAMPLES)
        return loss

    def configure_optimizers(self) -> Any:
        """Train all parameters that require a gradient."""
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=self.lr)


def batches(make: Callable[[torch.Generator], Any], num_batches: int = 2) -> Callable[[], DataLoader[Any]]:
    """Return a loader of batches that depend only on a seed."""

    def load() -> DataLoader[Any]:
        made: Any = [make(torch.Generator().manual_seed(seed)) for seed in range(num_batches)]
        return DataLoader(made, batch_size=None, collate_fn=_as_it_is)

    return load


def images(g: torch.Generator, size: int = 32, channels: int = 3, num_samples: int = NUM_SAMPLES) -> Tensor:
    """Draw images with values in [0, 1]."""
    return torch.rand(num_samples, channels, size, size, generator=g)


def labels(g: torch.Generator, num_classes: int = 4, num_samples: int = NUM_SAMPLES) -> Tensor:
    """Draw classes."""
    return torch.randint(num_classes, (num_samples,), generator=g)


@cache
def names() -> tuple[str, ...]:
    """List the files of the packages, by the names of the imported modules."""
    return tuple(sorted(path.stem.removesuffix("_models") for path in Path(__file__).parent.glob("*_models.py")))


def _as_it_is(batch: Any) -> Any:
    return batch
