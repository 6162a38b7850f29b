"""Any LightningModule through its own `training_step`, any data through its own loader; nothing moves on the way."""

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import pytorch_lightning
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from lightning_zico import score
from lightning_zico.bridge.modules import bridged
from lightning_zico.errors import TooFewBatchesError, UnsupportedBatchError, UnsupportedModuleError
from tests.modules import (
    BusyClassifier,
    Classifier,
    assert_same,
    assert_untouched,
    make_batches,
    make_network,
    read_batches,
    state_of,
    twice,
)


def loss_through_bridge(module: nn.Module, batch: Any, **kwargs: Any) -> Tensor:
    with bridged(module, **kwargs) as bridge:
        return bridge.step(module, bridge.prepare(batch, 0), 0)


@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize("axis", ["batch", "sample"])
def test_busy_module_is_bit_identical_after(axis: str, fail: bool) -> None:
    module = BusyClassifier(fail=fail)
    module.losses.append(torch.ones(3))
    module.accuracy.update(torch.eye(3), torch.tensor([0, 1, 1]))
    module.register_forward_hook(lambda *_: None)
    with assert_untouched(module):
        card = score(module, make_batches(), axis=axis, proxies="all")
    assert (card["zico"].error is not None) == fail
    if fail:
        assert "in the middle of a step" in card["zico"].error
    with pytest.raises(RuntimeError, match="not attached"):
        module.trainer  # noqa: B018


def test_batches_are_left_as_they_were() -> None:
    batches = make_batches()
    copies = [tuple(tensor.clone() for tensor in batch) for batch in batches]
    score(BusyClassifier(), batches)  # doubles its images in place
    assert_same(copies, batches)


def test_score_of_training_step_is_that_of_the_same_loss_written_out() -> None:
    module, twin = twice(Classifier)
    busy = BusyClassifier()
    busy.load_state_dict(module.state_dict(), strict=False)
    batches = make_batches()
    written_out = score(twin.network, batches, loss_fn=nn.CrossEntropyLoss())["zico"].value
    assert score(module, batches)["zico"].value == pytest.approx(written_out, rel=1e-6)  # float32 rounding alone


def test_step_may_leave_out_the_index() -> None:
    class NoIndex(Classifier):
        def training_step(self, batch: Any) -> Tensor:
            return super().training_step(batch, 0)

    assert score(NoIndex(), make_batches())["zico"].error is None


def test_loss_in_a_dictionary_is_the_loss() -> None:
    class InDict(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
            return {"loss": super().training_step(batch, batch_idx), "other": torch.zeros(4)}

    plain, in_dict = twice(Classifier)[0], twice(InDict)[0]
    assert score(in_dict, make_batches())["zico"].value == score(plain, make_batches())["zico"].value


def _classifier_that(**methods: Any) -> LightningModule:
    return type("Peculiar", (Classifier,), methods)()


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (_classifier_that(training_step=lambda self, batch, batch_idx: None), "returned None"),
        (_classifier_that(training_step=lambda self, batch, batch_idx: {"logits": 1}), "without a loss"),
        (_classifier_that(training_step=lambda self, batch, batch_idx, optimizer_idx: None), "optimizer_idx"),
        (_classifier_that(training_step=lambda self, dataloader_iter: None), "dataloader_iter"),
        (_classifier_that(automatic_optimization=False), "optimises manually"),
        (
            _classifier_that(
                configure_optimizers=lambda self: [torch.optim.SGD(self.parameters(), 0.1) for _ in range(2)]
            ),
            "several optimisers",
        ),
        (
            _classifier_that(
                configure_optimizers=lambda self: (
                    [torch.optim.SGD(self.parameters(), 0.1) for _ in range(2)],
                    [],
                )
            ),
            "several optimisers",
        ),
        (LightningModule(), "defines no `training_step`"),
        (make_network(), "not a LightningModule"),
    ],
)
def test_module_without_one_loss_names_the_way_out(module: nn.Module, reason: str) -> None:
    error = score(module, make_batches())["zico"].error
    assert error is not None
    assert error.startswith("UnsupportedModuleError")
    assert reason in error
    assert "loss_fn=" in error


def test_loss_fn_is_the_way_out_of_manual_optimisation() -> None:
    class Manual(Classifier):
        automatic_optimization = False

    manual, plain = twice(Manual)[0], twice(Classifier)[0]
    with assert_untouched(manual):
        by_hand = score(manual, make_batches(), loss_fn=nn.functional.cross_entropy)["zico"]
    assert by_hand.value == score(plain, make_batches())["zico"].value


def test_loss_fn_needs_pairs() -> None:
    batches = [{"x": images, "y": labels} for images, labels in make_batches()]
    assert "(inputs, targets)" in score(make_network(), batches, loss_fn=nn.CrossEntropyLoss())["zico"].error


def test_setup_and_configure_model_run_as_before_training_and_leave_nothing() -> None:
    order = []

    class Late(LightningModule):
        def setup(self, stage: Any) -> None:
            order.append(f"setup {stage.value}")
            self.first = nn.Linear(50, 4)

        def configure_model(self) -> None:
            order.append("configure_model")
            self.last = nn.Linear(4, 3)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self.last(self.first(batch[0].flatten(1)).relu()), batch[1])

    module = Late()
    with assert_untouched(module):
        card = score(module, make_batches())
    assert sorted(card["zico"].layers) == ["first.weight", "last.weight"]
    assert order == ["setup fit", "configure_model"]
    assert not list(module.children())


def test_optimisers_and_schedulers_are_at_hand_and_their_absence_is_no_fault() -> None:
    class Asks(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.log("lr", self.lr_schedulers().get_last_lr()[0])
            assert self.optimizers().param_groups[0]["lr"] == 0.1
            return super().training_step(batch, batch_idx)

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), 0.1)
            return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1)}

    with assert_untouched(module := Asks()):
        assert score(module, make_batches())["zico"].error is None
    for configure in (lambda self: None, lambda self: self.trainer.nothing_like_that):
        assert score(_classifier_that(configure_optimizers=configure), make_batches())["zico"].error is None


def test_parts_that_are_lightning_modules_are_attached_and_silent_too() -> None:
    class Parent(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.child = BusyClassifier()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            assert self.child.trainer is self.trainer
            return self.child.training_step(batch, batch_idx)

        def configure_optimizers(self) -> Any:
            return self.child.configure_optimizers()

    with assert_untouched(module := Parent()):
        assert score(module, make_batches())["zico"].error is None


def test_a_compiled_module_is_scored_as_what_was_compiled() -> None:
    module = Classifier()
    assert score(torch.compile(module), make_batches())["zico"].value == score(module, make_batches())["zico"].value


def test_transfer_hooks_run_in_order_and_the_data_modules_come_first() -> None:
    calls: list[str] = []

    class WithHooks(Classifier):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            calls.append("module before")
            return batch

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            calls.append("module after")
            return batch

    class Data(LightningDataModule):
        def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
            calls.append(f"data transfer to {device}")
            return super().transfer_batch_to_device(batch, device, dataloader_idx)

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            calls.append("data after")
            return batch

    loss_through_bridge(WithHooks(), make_batches()[0], datamodule=Data())
    assert calls == ["module before", "data transfer to cpu", "data after"]
    calls.clear()
    loss_through_bridge(WithHooks(), make_batches()[0])
    assert calls == ["module before", "module after"]


def test_eval_mode_is_scored_in_train_mode_and_a_frozen_part_stays_in_eval_mode() -> None:
    training, evaluating = twice(Classifier)
    evaluating.eval()
    with assert_untouched(evaluating):
        value = score(evaluating, make_batches())["zico"].value
    assert value == score(training, make_batches())["zico"].value

    training.network[1].eval()
    frozen = score(training, make_batches())["zico"].value
    twin = make_network()
    twin.load_state_dict(training.network.state_dict())
    twin[1].eval()
    assert frozen == pytest.approx(score(twin, make_batches(), loss_fn=nn.CrossEntropyLoss())["zico"].value, rel=1e-6)
    assert frozen != value


def test_modules_of_pytorch_lightning_are_accepted() -> None:
    class Other(pytorch_lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = make_network()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            assert self.trainer.max_epochs == 1000  # as `pytorch_lightning.Trainer()` shows it
            loss = nn.functional.cross_entropy(self.network(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    module, plain = twice(Other)[0], twice(Classifier)[0]
    with assert_untouched(module):
        other = score(module, make_batches())["zico"]
    assert other.value == score(plain, make_batches())["zico"].value


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_batches_are_cast_to_the_modules_precision(dtype: torch.dtype) -> None:
    module = Classifier().to(dtype)
    with assert_untouched(module):
        card = score(module, make_batches())
    assert card["zico"].error is None
    assert card["zico"].details["dtype"] == str(dtype).removeprefix("torch.")


def test_channels_last_input_is_made_contiguous() -> None:
    class Strict(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            assert batch[0].is_contiguous()
            return super().training_step(batch, batch_idx)

    batches = [(images.to(memory_format=torch.channels_last), labels) for images, labels in make_batches()]
    assert score(Strict(), batches)["zico"].error is None


class Noisy(Dataset[Any]):
    """Augments with the generators of Python, NumPy and torch, and with some of its own."""

    def __init__(self) -> None:
        self.own_numpy = np.random.default_rng(3)
        self.own_legacy = np.random.RandomState(3)
        self.own_python = random.Random(3)
        self.transforms = [{"generator": torch.Generator().manual_seed(3)}]
        self.num_reads = 0

    def __len__(self) -> int:
        return 12

    def __getitem__(self, idx: int) -> Tensor:
        self.num_reads += 1
        own = [self.own_numpy.random(), self.own_legacy.rand(), self.own_python.random()]
        own.append(torch.rand((), generator=self.transforms[0]["generator"]).item())
        return torch.tensor([idx, random.random(), np.random.rand(), torch.rand(()).item(), *own])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_reading_leaves_the_next_epoch_as_it_was(num_workers: int) -> None:
    def make_loader() -> DataLoader[Any]:
        persistent = {"persistent_workers": True} if num_workers else {}
        own = torch.Generator().manual_seed(5)
        return DataLoader(Noisy(), 3, shuffle=True, num_workers=num_workers, generator=own, **persistent)

    def read_after(read: bool) -> list[Tensor]:
        loader = make_loader()
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)
        if read:
            assert len(read_batches(loader, 2)) == 2
        return [*loader, *loader]

    assert_same(read_after(read=False), read_after(read=True))


def test_seed_decides_the_batches_and_nothing_else_does() -> None:
    loader = DataLoader(TensorDataset(torch.arange(100)), 10, shuffle=True)
    torch.manual_seed(1)
    first = read_batches(loader, 3, seed=0)
    torch.manual_seed(2)
    assert_same(first, read_batches(loader, 3, seed=0))
    assert not torch.equal(first[0][0], read_batches(loader, 3, seed=1)[0][0])


def test_datamodule_hooks_run_in_lightnings_order() -> None:
    calls: list[str] = []

    class Data(LightningDataModule):
        def prepare_data(self) -> None:
            calls.append("prepare_data")

        def setup(self, stage: Any) -> None:
            assert self.trainer.training
            calls.append(f"setup {stage.value}")

        def train_dataloader(self) -> Any:
            calls.append("train_dataloader")
            return DataLoader(TensorDataset(torch.arange(8)), 2)

        def teardown(self, stage: Any) -> None:
            calls.append(f"teardown {stage.value}")

    data = Data()
    read_batches(data, 2)
    assert calls == ["prepare_data", "setup fit", "train_dataloader", "teardown fit"]
    assert data.trainer is None
    with pytest.raises(TooFewBatchesError):
        read_batches(data, 5)
    assert calls[4:] == calls[:4]


@dataclass
class Pair:
    x: Tensor
    y: list[Tensor]


@pytest.mark.parametrize("combined", [False, True])
def test_several_loaders_give_what_the_trainer_gives(combined: bool) -> None:
    def loaders() -> Any:
        parts = {"a": DataLoader(torch.arange(6), 2), "b": DataLoader(torch.arange(4), 2)}
        return CombinedLoader(parts, "min_size") if combined else parts

    seen: list[Any] = []

    class Watch(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            seen.append({key: tensor.clone() for key, tensor in batch.items()})
            return self.layer(batch["a"].float()[:, None]).sum()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.0)

    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Watch(), loaders())
    assert_same(seen, read_batches(loaders(), len(seen)))
    assert len(seen) == (2 if combined else 3)


def test_iterables_and_streams_are_read_from_their_start() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(torch.arange(10))

    assert_same(read_batches(DataLoader(Stream(), 4), 2), [torch.arange(4), torch.arange(4, 8)])
    batches = [Pair(torch.zeros(2), [torch.ones(2)]) for _ in range(3)]
    assert read_batches(batches, 2) == batches[:2]
    assert read_batches((batch for batch in batches), 3) == batches


def test_too_few_batches_says_how_many_there_were() -> None:
    with pytest.raises(TooFewBatchesError, match="gave 3 batches, but 4 were requested"):
        read_batches(DataLoader(torch.arange(6), 2), 4)


def test_data_that_is_none_is_refused() -> None:
    with pytest.raises(UnsupportedBatchError, match="int"):
        read_batches(3, 2)


def test_trainer_given_is_put_back_even_when_the_body_raises() -> None:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    module = Classifier()
    before = state_of(module)
    trainer.loggers = loggers = [DummyLogger()]

    def fail() -> None:
        with bridged(module, trainer=trainer):
            assert trainer.loggers is not loggers
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert trainer.loggers is loggers
    assert_same(before, state_of(module))


def test_unsupported_module_is_refused_before_anything_runs() -> None:
    with pytest.raises(UnsupportedModuleError, match="not a LightningModule"):
        bridged(make_network()).__enter__()


class InSetup(Classifier):
    def setup(self, stage: str) -> None:
        self.network[0].weight.data.fill_(0.3)


class InConfigureModel(Classifier):
    def configure_model(self) -> None:
        with torch.no_grad():
            self.network[0].weight.mul_(2)


class InHook(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running", torch.zeros(2, 5, 5))

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.running.mul_(0.9).add_(0.1 * batch[0].mean(0))
        return batch[0] - self.running, batch[1]


class InArray(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.array = np.zeros(2)
        self.pair = (torch.zeros(1), [np.zeros(1)])
        self.generator = np.random.default_rng(0)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.array += 1
        self.pair[0].add_(1)
        self.pair[1][0] += self.generator.random()
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("build", [InSetup, InConfigureModel, InHook, InArray])
def test_what_a_module_writes_in_place_is_put_back(build: Any) -> None:
    module = build()
    arrays = [np.copy(getattr(module, "array", 0)), np.copy(module.pair[1][0]) if build is InArray else 0]
    with assert_untouched(module):
        assert score(module, make_batches())["zico"].error is None
    if build is InArray:
        assert np.array_equal(module.array, arrays[0])
        assert np.array_equal(module.pair[1][0], arrays[1])
        assert torch.equal(module.pair[0], torch.zeros(1))
        assert module.generator.random() == np.random.default_rng(0).random()


# the schedule is stepped where torch does not want it, to see that this leaves no trace
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step\\(\\)` before:UserWarning")
def test_a_step_that_changes_the_trainer_at_work_changes_it_in_training_alone() -> None:
    class Meddler(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.trainer.should_stop = True
            self.trainer.own_counter = getattr(self.trainer, "own_counter", 0) + 1
            self.optimizers().param_groups[0]["lr"] *= 0.5
            self.lr_schedulers().step()
            return super().training_step(batch, batch_idx)

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), 0.1)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    seen = []

    class Watch(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            before = self.photograph(trainer)
            loss_through_bridge(pl_module, make_batches()[0], trainer=trainer)
            seen.append((before, self.photograph(trainer)))

        def photograph(self, trainer: Trainer) -> Any:
            scheduler = trainer.lr_scheduler_configs[0].scheduler
            return trainer.should_stop, hasattr(trainer, "own_counter"), dict(scheduler.state_dict()), trainer.loggers

    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(max_steps=1, accelerator="cpu", callbacks=[Watch()], enable_checkpointing=False, **quiet)
    trainer.fit(Meddler(), DataLoader(TensorDataset(torch.randn(6, 2, 5, 5), torch.arange(6) % 3), 3))
    ((before, after),) = seen
    assert before == after


def test_overridden_transfer_hooks_of_the_data_module_run_for_any_module() -> None:
    class Data(LightningDataModule):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch[0] * 0, batch[1]

    module = make_network()
    with bridged(module, loss_fn=nn.functional.cross_entropy, datamodule=Data()) as bridge:
        assert bridge.prepare(make_batches()[0], 0)[0].abs().max() == 0


def test_sparse_batches_are_passed_on() -> None:
    class Sparse(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step((batch[0].to_dense(), batch[1]), batch_idx)

    batches = [(images.to_sparse(), labels) for images, labels in make_batches()]
    dense = score(twice(Classifier)[0], make_batches())["zico"].value
    assert score(twice(Sparse)[0], batches)["zico"].value == dense
