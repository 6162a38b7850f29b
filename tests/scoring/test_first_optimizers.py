"""What torch does when the first optimiser of a class is created is not taken for something that a candidate did."""

import functools
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_zico import ZeroShotSelector
from tests.modules import NUM_CLASSES, make_batches
from tests.processes import run_in_a_new_interpreter


class Net(LightningModule):
    def __init__(self, optimizer: str) -> None:
        super().__init__()
        self.layer, self.optimizer = nn.Sequential(nn.Flatten(), nn.Linear(50, NUM_CLASSES)), optimizer

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.layer(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        kind: Any = getattr(torch.optim, self.optimizer)
        return kind(self.parameters())


class Patching(Net):
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        kind: Any = getattr(torch.optim, self.optimizer)
        kind.step = functools.wraps(kind.step)(lambda self, closure=None: None)
        return super().training_step(batch, batch_idx)


def changes(kind: type[Net], optimizers: list[str], **settings: Any) -> dict[str, list[str]]:
    selector = ZeroShotSelector(proxies="params", enable_progress_bar=False, **settings)
    offered = {f"{idx}-{name}": partial(kind, name) for idx, name in enumerate(optimizers)}
    first = selector.rank(offered, make_batches())
    if settings:  # numbers under settings of the process that were changed are not stored
        assert first.to_dict() == selector.rank(offered, make_batches()).to_dict()
    return first.provenance.get("process_changes", {})


def check_order(path: str, *optimizers: str) -> None:
    """Rank in a process that has created no optimiser yet."""
    assert changes(Net, list(optimizers), cache=path) == {}
    for name in dict.fromkeys(optimizers):
        assert list(changes(Patching, [name]).values()) == [[f"`torch.{name}.step`"]]


@pytest.mark.parametrize("order", [("AdamW", "Adam", "SGD"), pytest.param(("Adam", "AdamW"), marks=pytest.mark.slow)])
def test_an_optimizer_of_a_new_kind_changes_nothing_and_one_that_is_patched_is_found(
    order: tuple[str, ...], tmp_path: Path
) -> None:
    run_in_a_new_interpreter(check_order, str(tmp_path / "scores.db"), *order)
