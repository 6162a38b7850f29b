"""Training on two processes, started by `test_ddp`; each rank writes what it saw to a folder.

``python -m tests.callbacks.ddp_training FOLDER``; Lightning starts the second process from the first.
"""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning
import torch
from torch import Tensor

from lightning_zico import ZiCoCallback
from tests.callbacks.training import PlainImages, loader, photographed
from tests.modules import Classifier, assert_same, make_network

# What the module does wrong while it is scored, and on which rank
FAILURES = {"nan": "NonFiniteError", "raise": "cannot be scored here", "one loss": "IdenticalBatchesError"}


QUIET: dict[str, Any] = {
    "max_epochs": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class OfTheOtherPackage(pytorch_lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = make_network()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return torch.nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


class FailsWhenScored(Classifier):
    """Trains on every rank; while it is scored, it fails on one rank, or has gradients that vary on none."""

    def __init__(self, failure: str) -> None:
        super().__init__()
        self.failure = failure
        self.own = self.network[0].weight.data_ptr()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if self.network[0].weight.data_ptr() == self.own:
            return loss
        if self.failure == "one loss":
            return self.network[0].weight.sum()
        if self.global_rank == 1 and self.failure == "raise":
            raise RuntimeError(self.failure + ": cannot be scored here")
        return loss * float("nan") if self.global_rank == 1 else loss


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    train = partial(photographed, strategy="ddp", devices=2)
    results: dict[str, Any] = {}
    for axis in ("batch", "sample"):
        callback = ZiCoCallback(axis=axis)
        train([callback], build_data=partial(loader, PlainImages()))
        results[axis] = callback.history
    for failure in FAILURES:
        callback = ZiCoCallback()
        train([callback], partial(FailsWhenScored, failure), max_epochs=1)
        results[failure] = callback.history
    with_dropout = partial(Classifier, dropout=0.5)
    without = train([], with_dropout)
    callback = ZiCoCallback(every_n_epochs=1)
    seen = train([callback], with_dropout)
    assert_same(without, seen)
    results["bit-identical"] = callback.history
    callback = ZiCoCallback()
    torch.manual_seed(1)
    trainer = pytorch_lightning.Trainer(accelerator="cpu", strategy="ddp", devices=2, callbacks=callback, **QUIET)
    trainer.fit(OfTheOtherPackage(), loader(PlainImages()))
    results["pytorch_lightning"] = callback.history
    rank = torch.distributed.get_rank()
    (folder / f"rank-{rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
