"""Finals whose epochs are counted, and which end where they are told to. Also a program for test_finals_cache.

What tells them is in the environment, which is not in the key of a cache.
"""

import json
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lightning_zico import ZeroShotSelector
from tests.selection.test_finals import Data, Net, selector_of, trainer_of

NUM_EPOCHS = 6


class Counted(Net):
    """Writes to the file `COUNTED` which epochs it is trained for, and raises the signal `SIGNAL` at `WHERE`."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        where = f"{-self.numbers['own']:g} {self.current_epoch} {batch_idx}"
        if self.trainer.max_epochs == NUM_EPOCHS and os.environ.get("WHERE") == where:
            signal.raise_signal(int(os.environ["SIGNAL"]))
        return super().training_step(batch, batch_idx)

    def on_train_epoch_end(self) -> None:
        with Path(os.environ["COUNTED"]).open("a") as file:
            file.write(f"{-self.numbers['own']:g} {self.current_epoch}\n")


def builds_of(num: int = 3, kind: type[Net] = Counted) -> dict[str, Any]:
    return {str(idx): partial(kind, -idx, 10 ** -(1 + idx % 3), 0.3) for idx in range(num)}


def fit(cache: Any, num_finalists: int = 3, builds: Any = None, data: Any = None, **kwargs: Any) -> ZeroShotSelector:
    trainer = kwargs.pop("trainer", None) or trainer_of(NUM_EPOCHS)
    selector = selector_of(trainer, num_finalists, cache=cache, **kwargs)
    return selector.fit(builds or builds_of(num_finalists), data or Data(True))


def results(selector: ZeroShotSelector) -> list[Any]:
    columns = ("rank", "name", "final", "final_rank", "final_epochs", "error")
    rows = [[row.get(name) for name in columns] for row in selector.leaderboard_]
    weights = {name: value.tolist() for name, value in selector.best_model_.state_dict().items()}
    return [rows, weights, selector.best_model_.seen]


def main(cache: str, results_path: str) -> None:
    """Hold finals of three epochs, and write the results to a file."""
    torch.set_num_threads(1)
    found = results(fit(cache or None, final_epochs=3))
    Path(results_path).write_text(json.dumps(found))
