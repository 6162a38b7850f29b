"""What a step holds outside of its module is not left on the meta device."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_zico import ZeroShotSelector
from tests.modules import make_batches, make_network


class Scheduler:
    """Keeps numbers on the device of what it is given, as noise schedulers do."""

    def __init__(self) -> None:
        self.factors = torch.rand(3)

    def __call__(self, logits: Tensor) -> Tensor:
        self.factors = self.factors.to(logits.device)
        return logits[:, :3] * self.factors


class WeightedLoss(nn.Module):
    """A module whose weights are a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler()

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.scheduler(logits), targets % 3)


def of_a_loss() -> tuple[Scheduler, dict[str, Any], Callable[[], nn.Module]]:
    loss = WeightedLoss()
    return loss.scheduler, {"loss_fn": loss}, make_network


def of_a_closure() -> tuple[Scheduler, dict[str, Any], Callable[[], nn.Module]]:
    scheduler = Scheduler()

    def step(module: nn.Module, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(scheduler(module(batch[0])), batch[1] % 3)

    return scheduler, {"step": step}, make_network


SCHEDULER = Scheduler()
CACHE: dict[str, Scheduler] = {}


class Scheduled(LightningModule):
    """Looks its noise scheduler up in a global variable."""

    def __init__(self) -> None:
        super().__init__()
        self.network = make_network()

    def logits(self, batch: Any) -> Tensor:
        return SCHEDULER(self.network(batch[0]))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.logits(batch), batch[1] % 3)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Activations(OrderedDict[str, type[nn.Module]]):
    """Makes what it holds when it is read, as that of transformers does."""

    def __getitem__(self, key: str) -> Any:
        return super().__getitem__(key)()


ACTIVATIONS = Activations(relu=nn.ReLU)


def by_a_global(module: nn.Module, batch: Any, batch_idx: int) -> Tensor:
    return F.cross_entropy(CACHE["scheduler"](ACTIVATIONS["relu"](module(batch[0]))), batch[1] % 3)


def of_a_global() -> tuple[Scheduler, dict[str, Any], Callable[[], nn.Module]]:
    SCHEDULER.__init__()  # type: ignore[misc]
    return SCHEDULER, {}, Scheduled


def of_a_global_container() -> tuple[Scheduler, dict[str, Any], Callable[[], nn.Module]]:
    CACHE["scheduler"] = Scheduler()
    return CACHE["scheduler"], {"step": by_a_global}, make_network


@pytest.mark.parametrize("case", [of_a_loss, of_a_closure, of_a_global, of_a_global_container])
def test_nothing_outside_of_the_module_stays_on_the_meta_device(case: Any) -> None:
    scheduler, given, build = case()
    before = scheduler.factors
    board = ZeroShotSelector(proxies=["params", "macs", "zico"], **given).rank({"a": build, "b": build}, make_batches())
    assert board.errors == {}
    assert board.missing == {}
    assert [row["macs"] for row in board] == [board.rows[0]["macs"]] * 2
    assert scheduler.factors is before
    assert isinstance(ACTIVATIONS["relu"], nn.ReLU)
