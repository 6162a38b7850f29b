"""Training with the callback is, bit for bit, training without it."""

import random
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.utils.data import BatchSampler, RandomSampler
from torchmetrics.classification import MulticlassAccuracy

from lightning_zico import ZiCoCallback
from tests.callbacks.training import (
    BATCH_SIZE,
    Batches,
    Caching,
    Collator,
    Counting,
    CountingSampler,
    Images,
    InPlaceSampler,
    OwnGenerators,
    PlainImages,
    RebindingSampler,
    Stream,
    loader,
    photographed,
)
from tests.hidden import KINDS
from tests.modules import NUM_CLASSES, Classifier, assert_same

WITH_DROPOUT = partial(Classifier, dropout=0.5)


def assert_training_does_not_notice(
    build_module: Callable[[], LightningModule] = WITH_DROPOUT,
    build_data: Callable[[], Any] = loader,
    fails: bool = False,
    **kwargs: Any,
) -> list[dict[str, Any]]:
    of_callback = {
        key: kwargs.pop(key) for key in ("axis", "loss_fn", "step", "num_batches", "parameters") if key in kwargs
    }
    callback = ZiCoCallback(every_n_epochs=1, **of_callback)
    without = photographed([], build_module, build_data, **kwargs)
    if fails:
        with pytest.warns(UserWarning, match="`ZiCoCallback` has no score for step"):
            seen = photographed([callback], build_module, build_data, **kwargs)
    else:
        seen = photographed([callback], build_module, build_data, **kwargs)
    assert [record["error"] is not None for record in callback.history] == [fails, fails]
    assert without["batches"]
    assert_same(without, seen)
    return callback.history


class Meddler(Callback):
    def __init__(self, meddle: Callable[[LightningModule], Any]) -> None:
        self.meddle = meddle

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.meddle(pl_module)


@pytest.mark.parametrize(
    "meddle",
    [
        lambda _: torch.rand(1),
        lambda _: np.random.rand(),
        lambda _: random.random(),
        lambda module: module.network[1].running_mean.add_(1e-3),
        lambda module: module.network[0].weight.data.add_(1e-3),
        lambda module: module.network[3].eval(),
    ],
)
def test_the_comparison_sees_what_a_careless_callback_does(meddle: Callable[[LightningModule], Any]) -> None:
    without = photographed([], WITH_DROPOUT)
    assert_same(without, photographed([], WITH_DROPOUT))
    with pytest.raises(AssertionError):
        assert_same(without, photographed([Meddler(meddle)], WITH_DROPOUT))


@pytest.mark.parametrize("axis", ["batch", "sample"])
@pytest.mark.parametrize(
    "workers", [{}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}], ids=["0", "2", "persistent"]
)
def test_augmentation_dropout_and_normalisation_go_on(workers: dict[str, Any], axis: str) -> None:
    assert_training_does_not_notice(build_data=partial(loader, **workers), axis=axis)


def _own_generator(**kwargs: Any) -> Any:
    return loader(generator=torch.Generator().manual_seed(2), **kwargs)


def _batch_sampler() -> Any:
    sampler = RandomSampler(range(18), generator=torch.Generator().manual_seed(4))
    return torch.utils.data.DataLoader(Images(), batch_sampler=BatchSampler(sampler, BATCH_SIZE, drop_last=True))


def _in_place(indices: Callable[[], Any], shuffle: Callable[[Any], None]) -> Callable[[], Any]:
    return lambda: loader(PlainImages(), sampler=InPlaceSampler(indices(), shuffle))


def _shuffle_tensor(indices: Tensor) -> None:
    indices.copy_(indices[torch.randperm(len(indices))])


@pytest.mark.parametrize(
    "build_data",
    [
        pytest.param(_own_generator, id="loader with a generator"),
        pytest.param(partial(_own_generator, num_workers=2, persistent_workers=True), id="same, persistent workers"),
        pytest.param(lambda: loader(OwnGenerators()), id="dataset with generators"),
        pytest.param(lambda: loader(Counting()), id="dataset that counts"),
        pytest.param(lambda: loader(Caching()), id="dataset that caches"),
        pytest.param(lambda: loader(Images(), sampler=CountingSampler()), id="sampler that counts"),
        pytest.param(_in_place(lambda: list(range(18)), random.shuffle), id="sampler that shuffles a list"),
        pytest.param(_in_place(lambda: np.arange(18), np.random.shuffle), id="sampler that shuffles an array"),
        pytest.param(_in_place(lambda: torch.arange(18), _shuffle_tensor), id="sampler that shuffles a tensor"),
        pytest.param(lambda: loader(PlainImages(), sampler=RebindingSampler()), id="sampler that rebinds a tensor"),
        pytest.param(_batch_sampler, id="batch sampler"),
        pytest.param(lambda: loader(Stream()), id="stream"),
        pytest.param(lambda: loader(Stream(), num_workers=2), id="stream, workers"),
        pytest.param(lambda: loader(collate_fn=Collator().collate), id="collate, bound method"),
        pytest.param(lambda: loader(collate_fn=partial(Collator().collate, scale=0.2)), id="collate, partial"),
        pytest.param(
            lambda: loader(collate_fn=(lambda collator: lambda samples: collator.collate(samples))(Collator())),
            id="collate, closure",
        ),
        pytest.param(Batches, id="no loader"),
    ],
)
@pytest.mark.filterwarnings("ignore:Your `IterableDataset` has `__len__` defined")
def test_order_of_batches_goes_on(build_data: Callable[[], Any]) -> None:
    assert_training_does_not_notice(build_data=build_data)


class OfDict(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        batch = batch[0] if isinstance(batch, tuple | list) and isinstance(batch[0], dict) else batch
        parts = batch.values() if isinstance(batch, dict) else batch
        return sum(super(OfDict, self).training_step(part, batch_idx) for part in parts)


@pytest.mark.parametrize(
    "build_data",
    [
        lambda: {"a": loader(), "b": loader(OwnGenerators(), num_workers=2)},
        lambda: [loader(), loader(OwnGenerators())],
        lambda: CombinedLoader({"a": loader(), "b": loader(OwnGenerators())}, "min_size"),
    ],
    ids=["dict", "list", "CombinedLoader"],
)
def test_several_loaders_go_on(build_data: Callable[[], Any]) -> None:
    assert_training_does_not_notice(OfDict, build_data)


class Logging(Classifier):
    """Logs in every way, measures, appends, counts, and schedules its learning rate."""

    def __init__(self) -> None:
        super().__init__(dropout=0.2)
        self.accuracy = MulticlassAccuracy(NUM_CLASSES)
        self.losses: list[Tensor] = []
        self.num_steps = 0

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        logits = self(batch[0])
        loss = nn.functional.cross_entropy(logits, batch[1])
        self.accuracy(logits, batch[1])
        self.num_steps += 1
        self.losses.append(loss.detach())
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log("accuracy", self.accuracy, on_step=False, on_epoch=True)
        self.log_dict({"num_steps": float(self.num_steps), "lr": self.optimizers().param_groups[0]["lr"]})
        if self.logger is not None:
            self.logger.experiment.log_metrics({"own": float(loss.detach())}, self.global_step)
        return {"loss": loss, "logits": logits}

    def on_train_epoch_end(self) -> None:
        self.log("mean_loss", torch.stack(self.losses).mean())
        self.losses.clear()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


@pytest.mark.parametrize("axis", ["batch", "sample"])
def test_metrics_lists_and_logs_of_the_module_go_on(axis: str) -> None:
    assert_training_does_not_notice(Logging, axis=axis)


def test_what_the_module_logs_is_the_same_line_for_line(tmp_path: Any) -> None:
    written = {}
    for name, callbacks in (("without", []), ("with", [ZiCoCallback(every_n_epochs=1)])):
        photographed(callbacks, Logging, logger=CSVLogger(tmp_path, name, version=0), log_every_n_steps=1)
        lines = (tmp_path / name / "version_0" / "metrics.csv").read_text().splitlines()
        header, *rows = [line.split(",") for line in lines]
        written[name] = [
            {key: value for key, value in zip(header, row, strict=True) if value and not key.startswith("zico")}
            for row in rows
        ]
    lines_with = [row for row in written["with"] if set(row) - {"step"}]
    assert any("own" in row for row in written["without"])
    assert lines_with == written["without"]


class Manual(Classifier):
    def __init__(self) -> None:
        super().__init__(dropout=0.5)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(nn.functional.cross_entropy(self(batch[0]), batch[1]))
        optimizer.step()


def test_manual_optimisation_goes_on() -> None:
    assert_training_does_not_notice(Manual, loss_fn=nn.CrossEntropyLoss())
    assert_training_does_not_notice(Manual, step=Classifier.training_step)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_outside_of_the_module_tree_go_on(kind: str) -> None:
    assert_training_does_not_notice(KINDS[kind])


@pytest.mark.parametrize("kind", ["teacher in list", "head with an optimizer"])
@pytest.mark.parametrize(
    "kwargs",
    [
        {"accumulate_grad_batches": 2},
        {"precision": "bf16-mixed"},
        {"gradient_clip_val": 0.1},
        {"deterministic": True},
        {"axis": "sample"},
    ],
    ids=lambda kwargs: next(iter(kwargs)),
)
def test_weights_outside_of_the_module_tree_go_on_in_any_setting(kind: str, kwargs: dict[str, Any]) -> None:
    assert_training_does_not_notice(KINDS[kind], **kwargs)


def _pruned() -> Classifier:
    module = Classifier()
    torch.nn.utils.prune.l1_unstructured(module.network[0], "weight", 0.3)
    return module


def _parametrised() -> Classifier:
    module = Classifier()
    torch.nn.utils.parametrizations.weight_norm(module.network[0])
    torch.nn.utils.parametrizations.spectral_norm(module.network[6])
    return module


class OneCycle(Classifier):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10)]


class Averages(Callback):
    """Averages the weights after each batch, as callbacks for moving averages do."""

    def __init__(self) -> None:
        self.average: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.average = torch.optim.swa_utils.AveragedModel(pl_module.network)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.average.update_parameters(pl_module.network)


@pytest.mark.parametrize("build_module", [_pruned, _parametrised, OneCycle])
def test_weights_and_rates_that_are_computed_go_on(build_module: Callable[[], Classifier]) -> None:
    assert_training_does_not_notice(build_module)


def test_moving_averages_of_callbacks_go_on() -> None:
    averages = [Averages(), Averages()]
    without = photographed([averages[0]])
    assert_same(without, photographed([averages[1], ZiCoCallback(every_n_epochs=1)]))
    assert_same(*(dict(each.average.state_dict()) for each in averages))


class Augmenting(Classifier):
    """Augments on the device, with the global generator and with its own."""

    def __init__(self) -> None:
        super().__init__()
        self.rng = np.random.default_rng(3)
        self.torch_rng = torch.Generator().manual_seed(3)
        self.python_rng = {"one": random.Random(3)}
        self.num_augmented = 0

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        images, labels = batch
        self.num_augmented += 1
        scalar = self.rng.standard_normal() + self.python_rng["one"].random() + self.num_augmented
        return images.add_(0.1 * torch.randn_like(images) + 0.01 * scalar), labels

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        return super().training_step((images + torch.randn(5, generator=self.torch_rng), labels), batch_idx)


def test_augmentation_in_the_module_goes_on() -> None:
    assert_training_does_not_notice(Augmenting)


class AugmentingData(LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        self.rng = np.random.default_rng(3)
        self.num_transfers = 0

    def train_dataloader(self) -> Any:
        return loader()

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.num_transfers += 1
        return batch[0] + 0.01 * self.num_transfers, batch[1]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch[0] + 0.1 * self.rng.standard_normal() + 0.1 * torch.randn(5), batch[1]


def test_augmentation_in_the_data_module_goes_on() -> None:
    assert_training_does_not_notice(build_data=AugmentingData)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"accumulate_grad_batches": 2},
        {"precision": "bf16-mixed"},
        {"limit_train_batches": 1},
        {"gradient_clip_val": 0.1},
        {"reload_dataloaders_every_n_epochs": 1},
        {"overfit_batches": 2},
    ],
    ids=lambda kwargs: next(iter(kwargs)),
)
@pytest.mark.filterwarnings("ignore:You requested to overfit but enabled train dataloader shuffling")
def test_trainer_settings_go_on(kwargs: dict[str, Any]) -> None:
    assert_training_does_not_notice(**kwargs)


class NotANumber(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * float("nan")


# Not among a module's attributes, which are compared.
OWN: "weakref.WeakKeyDictionary[nn.Module, int]" = weakref.WeakKeyDictionary()


class Raising(Classifier):
    """Trains, but cannot be scored: it insists on where its parameters are in memory."""

    def __init__(self) -> None:
        super().__init__()
        OWN[self] = self.network[0].weight.data_ptr()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        torch.rand(1)
        if self.network[0].weight.data_ptr() != OWN[self]:
            raise RuntimeError("only real parameters will do")
        return loss


class LinearLoss(Classifier):
    """Has gradients that are the same for all batches."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return sum(parameter.sum() for parameter in self.parameters()) + 0 * self(batch[0]).sum()


def _one_batch() -> Any:
    return loader(torch.utils.data.Subset(Images(), range(BATCH_SIZE)))


def _same_samples() -> Any:
    return loader(torch.utils.data.Subset(PlainImages(), range(BATCH_SIZE)), shuffle=False)


def _one_shuffled_batch() -> Any:
    return loader(torch.utils.data.Subset(PlainImages(), range(BATCH_SIZE)))


def _same_batches() -> Any:
    return loader(torch.utils.data.Subset(PlainImages(), [0] * 12))


def _one_shot() -> Any:
    return (batch for batch in list(loader(PlainImages())) * 4)


@pytest.mark.parametrize(
    ("build_module", "build_data", "reason"),
    [
        (NotANumber, loader, "NonFiniteError: The loss of gradient 0 is nan"),
        (Raising, loader, "only real parameters will do"),
        (LinearLoss, loader, "IdenticalBatchesError"),
        (Classifier, _same_samples, "IdenticalBatchesError: the training data has only one batch"),
        (Classifier, _one_shuffled_batch, "IdenticalBatchesError: the training data has only one batch"),
        (Classifier, _same_batches, "IdenticalBatchesError: All 2 batches are the same"),
    ],
    ids=["NaN", "raising", "equal gradients", "one batch", "one shuffled batch", "equal batches"],
)
def test_training_goes_on_after_a_failure(build_module: Any, build_data: Any, reason: str) -> None:
    for record in assert_training_does_not_notice(build_module, build_data, fails=True):
        assert reason in record["error"]
        assert record["score"] is None
        assert record["layers"] == {}


def test_equal_samples_are_a_failure_per_sample() -> None:
    history = assert_training_does_not_notice(
        build_data=_same_batches, fails=True, axis="sample", build_module=Classifier
    )
    assert all("IdenticalBatchesError" in record["error"] for record in history)


def test_data_that_can_be_read_once_is_left_to_training() -> None:
    without = photographed([], build_data=_one_shot, limit_train_batches=6)
    callback = ZiCoCallback()
    with pytest.warns(UserWarning, match="`ZiCoCallback` has no score for step 0"):
        seen = photographed([callback], build_data=_one_shot, limit_train_batches=6)
    assert "once" in callback.history[0]["error"]
    assert_same(without, seen)


class Hooked(Classifier):
    """Its hooks before the first step set attributes, count calls, draw numbers, append, and write to weights."""

    def __init__(self) -> None:
        super().__init__(dropout=0.5)
        self.calls = 0
        self.seen: list[Any] = []
        self.scale = 1.0

    def _meddle(self) -> None:
        self.calls += 1
        self.seen.append(self.calls)
        self.scale = 1.0 + 0.1 * torch.rand(()).item() + 0.1 * random.random() + 0.1 * np.random.rand()
        with torch.no_grad():
            self.network[0].weight.mul_(1 + 0.01 * self.scale)
            self.network[1].running_mean.add_(0.1)

    def on_train_start(self) -> None:
        self._meddle()

    def on_train_epoch_start(self) -> None:
        self._meddle()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self._meddle()
        batch[0].mul_(self.scale)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        assert (
            self.calls == self.current_epoch + self.global_step + 3
        )  # at each batch that is scored, those of the first
        return super().training_step(batch, batch_idx) * self.scale


class Shaping(Callback):
    """Counts, draws, changes the batch and the trainer."""

    def __init__(self) -> None:
        self.num_batches = 0
        self.rng = np.random.default_rng(7)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.shift = self.rng.standard_normal()
        for group in trainer.optimizers[0].param_groups:
            group["lr"] *= 0.9

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.num_batches += 1
        batch[0].add_(0.1 * self.shift + 0.01 * self.num_batches + 0.01 * torch.randn(()))


class BringsCallback(Classifier):
    def configure_callbacks(self) -> Any:
        return [Shaping()]


@pytest.mark.parametrize("axis", ["batch", "sample"])
@pytest.mark.parametrize("build_module", [Hooked, BringsCallback])
def test_hooks_that_are_still_to_come_run_as_if_for_the_first_time(build_module: Any, axis: str) -> None:
    assert_training_does_not_notice(build_module, axis=axis)


@pytest.mark.parametrize("position", [0, 1])
def test_callbacks_that_change_the_batch_go_on(position: int) -> None:
    without = photographed([Shaping()], Hooked)
    callbacks: list[Callback] = [Shaping()]
    callbacks.insert(position, ZiCoCallback(every_n_epochs=1))
    assert_same(without, photographed(callbacks, Hooked))
