"""Register ordinary modules: how to build one, data for it, and its MACs counted by hand."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningModule
from torch import Generator, Tensor
from torch.utils.data import DataLoader

Built = TypeVar("Built", bound=type[LightningModule])

NUM_SAMPLES = 8
NUM_CLASSES = 5


@dataclass(frozen=True)
class Entry:
    """A module that trains, in two sizes.

    Args:
        field: What people use it for.
        build: Width to module.
        data: Two batches or more, a loader, or a data module.
        macs: Width to multiply-accumulate operations per sample, counted by hand. A pair where the count depends on how
            derivatives or operators without a formula are counted: the number lies between. None where an operator
            that has no formula does the work, so that a reason may stand instead of the number.
        small: Width of the smaller one.
        big: Width of the larger one.
        step: ``(module, batch, batch_idx) -> loss`` for modules that optimise manually.
        unweighted: Shell patterns of parameters of two or more dimensions that no product reads: tables, offsets,
            scales.
        comparable: Whether its gradients are the same wherever they are computed: it has its weights before it is
            trained, and a step draws no random numbers and keeps nothing for the next one.
        num_batches: How many batches to score it on.
        num_samples: In a batch, where its tensors leave that open.
    """

    field: str
    build: Callable[[int], LightningModule]
    data: Callable[[], Any]
    macs: Callable[[int], float | tuple[float, float]] | None
    small: int = 4
    big: int = 8
    step: Callable[[Any, Any, int], Tensor] | None = None
    unweighted: Sequence[str] = ()
    comparable: bool = True
    num_batches: int = 2
    num_samples: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What has to be said where it is scored."""
        return {} if self.step is None else {"step": self.step}


ENTRIES: dict[str, Entry] = {}


def ordinary(data: Callable[[], Any], macs: Any, **options: Any) -> Callable[[Built], Built]:
    """Register a class whose only argument without a default is its width."""

    def register(cls: Built) -> Built:
        assert cls.__name__ not in ENTRIES
        ENTRIES[cls.__name__] = Entry(cls.__module__.rpartition(".")[2], cls, data, macs, **options)
        return cls

    return register


class Trained(LightningModule):
    """What most modules have in common."""

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def batches(make: Callable[[Generator], Any], num_batches: int = 2) -> Callable[[], list[Any]]:
    """Make the same batches at every call."""

    def make_all() -> list[Any]:
        return [make(Generator().manual_seed(seed)) for seed in range(num_batches)]

    return make_all


def loader_of(data: Any) -> Any:
    """Put a list of batches into a loader, which is what a `Trainer` takes."""
    return DataLoader(data, batch_size=None, collate_fn=_as_it_is) if isinstance(data, list) else data


def labels(g: Generator, num_classes: int = NUM_CLASSES) -> Tensor:
    return torch.randint(num_classes, (NUM_SAMPLES,), generator=g)


def _as_it_is(batch: Any) -> Any:
    return batch
