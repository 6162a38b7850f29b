"""Data of every awkward kind, and training photographed from all sides."""

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from lightning_zico.engine.batches import map_tensors
from tests.modules import NUM_CLASSES, Classifier

NUM_SAMPLES = 18
BATCH_SIZE = 6


class Images(Dataset):
    """Random images, augmented with whatever randomness there is."""

    def __init__(self, num_samples: int = NUM_SAMPLES) -> None:
        generator = torch.Generator().manual_seed(7)
        self.images = torch.randn(num_samples, 2, 5, 5, generator=generator)
        self.labels = torch.arange(num_samples) % NUM_CLASSES

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, idx: int) -> tuple[Tensor, int]:
        return self.images[idx] + self.noise(), int(self.labels[idx])

    def noise(self) -> Tensor:
        return 0.1 * (torch.randn(2, 5, 5) + torch.tensor(np.random.randn()).float() + random.gauss(0, 1))


class PlainImages(Images):
    def noise(self) -> Tensor:
        return torch.zeros(())


class OwnGenerators(Images):
    """Brings a generator of each kind along, some of them in containers."""

    def __init__(self) -> None:
        super().__init__()
        self.python = random.Random(3)
        self.legacy = {"generator": np.random.RandomState(3)}
        self.numpy = [np.random.default_rng(3)]
        self.torch = torch.Generator().manual_seed(3)

    def noise(self) -> Tensor:
        scalar = self.python.gauss(0, 1) + self.legacy["generator"].randn() + self.numpy[0].standard_normal()
        return 0.1 * (torch.randn(2, 5, 5, generator=self.torch) + scalar)


class Counting(Images):
    """Fades with every access."""

    def __init__(self) -> None:
        super().__init__()
        self.num_reads = 0

    def noise(self) -> Tensor:
        self.num_reads += 1
        return torch.tensor(0.01 * self.num_reads)


class Caching(Images):
    """Augments a sample once and keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[int, tuple[Tensor, int]] = {}

    def __getitem__(self, idx: int) -> tuple[Tensor, int]:
        if idx not in self.cache:
            self.cache[idx] = super().__getitem__(idx)
        return self.cache[idx]


class Stream(IterableDataset):
    """Goes on where it stopped."""

    def __init__(self) -> None:
        self.position = 0
        self.source = Images(64)

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        info = torch.utils.data.get_worker_info()
        step = info.num_workers if info else 1
        for _ in range(NUM_SAMPLES // step):
            self.position += 1
            yield self.source[self.position % 64]


class CountingSampler(Sampler[int]):
    """Starts one further every time it is iterated."""

    def __init__(self) -> None:
        self.epoch = 0

    def __len__(self) -> int:
        return NUM_SAMPLES

    def __iter__(self) -> Iterator[int]:
        self.epoch += 1
        return iter([(idx + self.epoch) % NUM_SAMPLES for idx in range(NUM_SAMPLES)])


class InPlaceSampler(Sampler[int]):
    """Shuffles its indices where they are."""

    def __init__(self, indices: Any, shuffle: Callable[[Any], None]) -> None:
        self.indices = indices
        self.shuffle = shuffle

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        self.shuffle(self.indices)
        return (int(idx) for idx in self.indices)


class RebindingSampler(Sampler[int]):
    """Shuffles what is left of its last shuffle."""

    def __init__(self) -> None:
        self.indices = torch.arange(NUM_SAMPLES)

    def __len__(self) -> int:
        return NUM_SAMPLES

    def __iter__(self) -> Iterator[int]:
        self.indices = self.indices[torch.randperm(NUM_SAMPLES)]
        return iter(self.indices.tolist())


class Batches:
    """No loader, only something to iterate over; counts how often."""

    def __init__(self) -> None:
        self.batches = list(loader(PlainImages()))
        self.num_epochs = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        self.num_epochs += 1
        return iter(self.batches[self.num_epochs % 2 :] + self.batches[: self.num_epochs % 2])


class Collator:
    """Collates with a generator of its own."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(5)

    def collate(self, samples: Sequence[tuple[Tensor, int]], scale: float = 0.1) -> tuple[Tensor, Tensor]:
        images = torch.stack([image for image, _ in samples])
        return images + scale * self.rng.standard_normal(), torch.tensor([label for _, label in samples])


def loader(dataset: Dataset[Any] | None = None, **kwargs: Any) -> DataLoader[Any]:
    if kwargs.get("sampler") is None and not isinstance(dataset, IterableDataset):
        kwargs.setdefault("shuffle", True)
    return DataLoader(Images() if dataset is None else dataset, BATCH_SIZE, **kwargs)


class Recorder(Callback):
    """Keeps what reaches the training step, and what is logged."""

    def __init__(self) -> None:
        self.batches: list[Any] = []
        self.losses: list[Tensor] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.batches.append(copy.deepcopy(batch))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if "loss" in outputs:
            self.losses.append(outputs["loss"].detach().clone())


def quiet_trainer(*callbacks: Callback, **kwargs: Any) -> Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(callbacks=list(callbacks), **settings | kwargs)


def photographed(
    callbacks: Sequence[Callback],
    build_module: Callable[[], LightningModule] = Classifier,
    build_data: Callable[[], Any] = loader,
    **kwargs: Any,
) -> dict[str, Any]:
    """Train a fresh module on fresh data, always from the same seed, and keep all that can be told apart."""
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    module, data, recorder = build_module(), build_data(), Recorder()
    trainer = quiet_trainer(*callbacks, recorder, **kwargs)
    trainer.fit(module, data)
    trainer.optimizers[0].zero_grad()
    attributes = {
        key: value for key, value in vars(module).items() if isinstance(value, int | float | list) and key != "held"
    }
    photograph = {
        "weights": dict(module.state_dict()),
        "hidden": getattr(module, "hidden", list)(),  # see `tests.hidden`
        "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
        "batches": recorder.batches,
        "losses": recorder.losses,
        "logged": {key: value for key, value in trainer.callback_metrics.items() if not key.startswith("zico")},
        "attributes": attributes,
        "progress": (trainer.global_step, trainer.current_epoch, trainer.fit_loop.state_dict()),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),
        "torch": torch.get_rng_state(),
    }
    return map_tensors(_bytes, photograph)


def _bytes(tensor: Tensor) -> Tensor:
    """Make NaN equal to itself, and 0 different from -0."""
    return tensor.detach().clone().reshape(-1).view(torch.uint8)
