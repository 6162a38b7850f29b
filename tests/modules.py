"""LightningModules and data for tests of everything above the engine, and what it means that nothing was touched."""

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from lightning_zico import Proxy
from lightning_zico._typing import Batch
from lightning_zico.bridge import TrainingData
from lightning_zico.errors import NotApplicableError

NUM_CLASSES = 3


def make_batches(num_batches: int = 2, num_samples: int = 6, seed: int = 7) -> list[tuple[Tensor, Tensor]]:
    """Make random images ``[N, 2, 5, 5]`` with labels."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(num_samples, 2, 5, 5, generator=generator),
            torch.randint(NUM_CLASSES, (num_samples,), generator=generator),
        )
        for _ in range(num_batches)
    ]


def make_network(width: int = 4, dropout: float = 0.0) -> nn.Sequential:
    """Make a small CNN with batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(2, width, 3),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, NUM_CLASSES),
    )


class Classifier(LightningModule):
    """As plain as a LightningModule can be."""

    def __init__(self, width: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        self.network = make_network(width, dropout)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters())


class BusyClassifier(Classifier):
    """Does in its step what LightningModules do there: logs, counts, measures, asks its trainer."""

    def __init__(self, width: int = 4, fail: bool = False) -> None:
        super().__init__(width)
        self.save_hyperparameters()
        self.fail = fail
        self.accuracy = MulticlassAccuracy(NUM_CLASSES)
        self.losses: list[Tensor] = []
        self.outputs: dict[str, list[Tensor]] = {"train": []}
        self.num_steps = 0

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        images, labels = batch
        images.mul_(2)
        logits = self(images)
        loss = nn.functional.cross_entropy(logits, labels)
        self.num_steps += 1
        self.losses.append(loss)
        self.outputs["train"].append(loss.detach())
        self.log("loss", loss, prog_bar=True, sync_dist=True)
        self.log_dict({"accuracy": self.accuracy(logits, labels), "epoch": float(self.current_epoch)})
        self.logger.experiment.add_scalar("loss", loss, self.global_step)
        assert self.trainer.max_epochs >= 1
        assert self.trainer.training
        assert self.device == images.device
        assert self.hparams.width == self.network[0].out_channels
        self.optimizers().param_groups[0]["lr"]
        self.network[3].eval()
        random.random(), np.random.rand(), torch.rand(1)
        if self.fail:
            raise RuntimeError("in the middle of a step")
        return {"loss": loss, "logits": logits}


class Numbered(nn.Module):
    """Carries the numbers that `Fixed` proxies say of it: None for "not applicable", NaN for a failure."""

    def __init__(self, numbers: dict[str, float | None]) -> None:
        super().__init__()
        self.numbers = numbers
        self.linear = nn.Linear(50, NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.flatten(1))


class Fixed(Proxy):
    """Says of a `Numbered` module what it carries."""

    def __init__(self, name: str, higher_is_better: bool = True) -> None:
        self.name = name
        self.higher_is_better = higher_is_better

    def measure(self, probe: Any) -> float:
        number = probe.module.numbers[self.name]
        if number is None:
            raise NotApplicableError("the module has no such part.")
        return number


@contextmanager
def assert_untouched(module: nn.Module) -> Iterator[None]:
    """Assert that the body leaves a module and all generators bit-identical."""
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter) if parameter.requires_grad else None
    before = state_of(module)
    yield
    assert_same(before, state_of(module))


def state_of(module: nn.Module) -> dict[str, Any]:
    """Photograph all of a module that must not change, and the generators."""
    return {
        "tensors": copy.deepcopy({n: t.detach() for n, t in (*module.named_parameters(), *module.named_buffers())}),
        "identities": {n: id(t) for n, t in (*module.named_parameters(), *module.named_buffers())},
        "grads": copy.deepcopy({n: p.grad for n, p in module.named_parameters()}),
        "grad_identities": {n: id(p.grad) for n, p in module.named_parameters()},
        "requires_grad": {n: p.requires_grad for n, p in module.named_parameters()},
        "training": {n: m.training for n, m in module.named_modules()},
        "attributes": {n: _plain(vars(m)) for n, m in module.named_modules()},
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),
        "torch": torch.get_rng_state(),
    }


def assert_same(before: Any, after: Any, path: str = "state") -> None:
    """Compare nested containers, tensors bit for bit."""
    assert type(before) is type(after), path
    if isinstance(before, Tensor):
        assert torch.equal(before, after), path
    elif isinstance(before, dict):
        assert list(before) == list(after), path
        for key in before:
            assert_same(before[key], after[key], f"{path}.{key}")
    elif isinstance(before, list | tuple):
        assert len(before) == len(after), path
        for idx, (a, b) in enumerate(zip(before, after, strict=True)):
            assert_same(a, b, f"{path}[{idx}]")
    else:
        assert before == after, path


def _plain(value: Any) -> Any:
    """Copy containers and tensors; replace other objects by their identity."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, Tensor):
        return value.detach().clone()
    return value if isinstance(value, bool | int | float | str | type(None)) else id(value)


def twice(build: Callable[[], Any]) -> tuple[Any, Any]:
    """Build two things from the same seed."""
    torch.manual_seed(0)
    first = build()
    torch.manual_seed(0)
    return first, build()


def read_batches(data: Any, num_batches: int, *, seed: int = 0) -> list[Batch]:
    """Read the first batches of training data, and tear down a data module."""
    with TrainingData(data) as training_data:
        return training_data.read(num_batches, seed=seed).batches
