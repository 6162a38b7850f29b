"""The callback under the trainers of both packages, `lightning` and `pytorch_lightning`, whose classes differ."""

import copy
import importlib
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from torch import Tensor, nn

from lightning_zico import ZiCoCallback, score
from lightning_zico.errors import UnsupportedModuleError
from tests.callbacks.test_zico import first_batches, keys_and_values
from tests.callbacks.training import PlainImages, loader
from tests.modules import assert_same, make_network


@pytest.fixture(params=[lightning.pytorch, pytorch_lightning], ids=["lightning", "pytorch_lightning"])
def package(request: pytest.FixtureRequest) -> ModuleType:
    return request.param


def module_of(package: ModuleType, dropout: float = 0.5) -> Any:
    """Make a classifier of a package, always with the same weights; it logs, and asks for its optimiser."""

    class Net(package.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.network = make_network(dropout=dropout)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = nn.functional.cross_entropy(self.network(batch[0]), batch[1])
            self.log("loss", loss)
            assert self.optimizers().param_groups[0]["lr"] == 0.1
            assert self.trainer.max_epochs == 2
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)

    return Net()


def trained(package: ModuleType, callbacks: Any, module: Any, data: Any = None, **kwargs: Any) -> Any:
    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False} | kwargs
    torch.manual_seed(1)
    trainer = package.Trainer(
        callbacks=callbacks, max_epochs=2, accelerator="cpu", enable_model_summary=False, **settings
    )
    trainer.fit(module, loader(PlainImages()) if data is None else data)
    return trainer


@pytest.mark.parametrize("axis", ["batch", "sample"])
def test_training_is_bit_identical_and_the_score_that_of_its_first_batches(package: ModuleType, axis: Any) -> None:
    without, beside, callback = module_of(package), module_of(package), ZiCoCallback(axis=axis)
    first = copy.deepcopy(beside)
    plain = trained(package, [], without)
    trainer = trained(package, [callback], beside)
    assert_same(without.state_dict(), beside.state_dict())
    assert_same(plain.optimizers[0].state_dict(), trainer.optimizers[0].state_dict())
    assert_same(plain.callback_metrics["loss"], trainer.callback_metrics["loss"])
    first.training_step = lambda batch, batch_idx: nn.functional.cross_entropy(first.network(batch[0]), batch[1])
    expected = score(first, first_batches(loader(PlainImages())), axis=axis)["zico"]
    assert callback.history[0]["score"] == expected.value
    assert callback.history[0]["layers"] == expected.layers


def test_a_callback_may_be_given_alone(package: ModuleType) -> None:
    callback = ZiCoCallback(every_n_epochs=1)
    assert isinstance(callback, package.Callback)
    trained(package, callback, module_of(package))
    assert [record["error"] for record in callback.history] == [None, None]


def test_score_is_logged_and_kept_in_checkpoints(package: ModuleType, tmp_path: Path) -> None:
    callback = ZiCoCallback(every_n_epochs=1)
    logger = importlib.import_module(f"{package.__name__}.loggers").CSVLogger(tmp_path, "csv", version=0)
    trainer = trained(package, [callback], module_of(package), logger=logger, log_every_n_steps=1)
    assert keys_and_values(tmp_path / "csv" / "version_0" / "metrics.csv") == {
        "zico/score": callback.history[-1]["score"]
    }
    assert trainer.callback_metrics["zico/score"] == torch.tensor(callback.history[-1]["score"])
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    saved = torch.load(tmp_path / "end.ckpt", weights_only=True)
    assert saved["callbacks"][callback.state_key] == {"history": callback.history}
    resumed = ZiCoCallback(every_n_epochs=1)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = package.Trainer(callbacks=[resumed], max_epochs=2, accelerator="cpu", enable_model_summary=False, **quiet)
    trainer.fit(module_of(package), loader(PlainImages()), ckpt_path=tmp_path / "end.ckpt")
    assert resumed.history == callback.history


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_copies_are_callbacks_of_the_same_class(package: ModuleType, copied: Any) -> None:
    callback = ZiCoCallback(num_batches=3)
    twin = copied(callback)
    assert type(twin) is type(callback) is ZiCoCallback
    assert vars(twin).keys() == vars(callback).keys()
    assert isinstance(twin, package.Callback)
    assert twin.state_key == callback.state_key


@pytest.mark.parametrize("name", ["FSDPStrategy", "ModelParallelStrategy"])
def test_split_parameters_are_refused(package: ModuleType, name: str) -> None:
    strategy = getattr(importlib.import_module(f"{package.__name__}.strategies"), name)()
    trainer = package.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.__class__ = type(name, (type(strategy),), {})
    with pytest.raises(UnsupportedModuleError, match=f"{name} splits them"):
        ZiCoCallback().setup(trainer, module_of(package), "fit")


def test_several_loaders_of_a_trainer_are_read_as_it_reads_them(package: ModuleType) -> None:
    module = module_of(package)
    step = module.training_step
    module.training_step = lambda batch, batch_idx: step(batch["a"], batch_idx) + step(batch["b"], batch_idx)
    callback = ZiCoCallback()
    parts = {"a": loader(PlainImages()), "b": loader(PlainImages())}
    data = importlib.import_module(f"{package.__name__}.utilities").CombinedLoader(parts, "min_size")
    trained(package, [callback], module, data)
    assert callback.history[0]["error"] is None


@pytest.mark.slow
def test_the_other_package_is_not_imported_for_it() -> None:
    command = "import sys; from lightning_zico import ZiCoCallback; c = ZiCoCallback(); isinstance(c, int); "
    command += "assert 'pytorch_lightning' not in sys.modules; import pytorch_lightning as p; "
    command += "assert isinstance(c, p.Callback); assert p.Trainer(callbacks=c, logger=False).callbacks[0] is c"
    run = partial(subprocess.run, [sys.executable, "-W", "ignore", "-c", command], capture_output=True, text=True)
    assert (process := run()).returncode == 0, process.stderr
