"""A user's package, and what the tests of the command line share."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


DIGITS = ["--data", "digits", "--candidates", "lightning_zico.demos.digits_candidates"]


QUIET = [f"--trainer.{name}=false" for name in ("logger", "enable_checkpointing", "enable_progress_bar")]


KNOWN = "model,top1,count\nlcnet_035,60.5,1\nlcnet_050,63.1,2\n"


MODULE = """
import time
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from lightning_zico.demos import DigitsClassifier, DigitsDataModule, digits_candidates, mlp


class Mlp(DigitsClassifier):
    def __init__(self, width: int = 16, lr: float = 1e-3):
        super().__init__(mlp(width), lr)


class MyDataModule(DigitsDataModule):
    pass


class Texts(LightningDataModule):
    def train_dataloader(self):
        texts = torch.arange(40_000 - 8 * 5, 40_000).view(8, 5)
        labels = torch.arange(8) % 2
        return DataLoader([{"input_ids": text, "labels": label} for text, label in zip(texts, labels)], 4)


class TextsThatSay(Texts):
    def setup(self, stage):
        self.vocab_size = 40_000


class TextsThatCount(Texts):
    vocab_size = True


class Unknown(LightningDataModule):
    def train_dataloader(self):
        return DataLoader([{"input_ids": torch.arange(5), "labels": -100}] * 4, 2)


class Unlabelled(LightningDataModule):
    def train_dataloader(self):
        return DataLoader([{"input_ids": torch.arange(5)}] * 4, 2)


def my_candidates():
    return {"narrow": Mlp, "wide": lambda: Mlp(32)}


def hungry():
    def eat():
        held = bytearray(400_000_000)
        time.sleep(100)

    return {"hungry": eat}


def many():
    for idx in range(3000):
        if idx == 3:
            Path("three are done").touch()
        yield Mlp


class Endless(Mlp):
    def on_train_epoch_start(self):
        if self.current_epoch == 2:
            Path("two epochs").touch()


def endless():
    return {"endless": Endless}


def named():
    return {"\\N{ROCKET}": Mlp, "\\udcff": lambda: Mlp(32)}


def broken():
    raise RuntimeError("in the user's own code")


def failing():
    return [broken]


def ending():
    raise SystemExit(4)


def nothing():
    return None


def texts():
    return ["resnet18"]


class Refusing(DigitsDataModule):
    def setup(self, stage):
        raise ValueError("in setup,\\non two lines")


class Untrainable(Mlp):
    def on_train_start(self):
        raise KeyError("in training")
"""


def rows_of(folder: str = "zico-results") -> list[dict[str, Any]]:
    return json.loads(Path(folder, "leaderboard.json").read_text(encoding="utf-8"))["rows"]


def without_seconds(rows: Any) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def run(*args: str, cwd: Path, stdout: int = subprocess.PIPE, encoding: str = "utf-8") -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding, "PYTHONUNBUFFERED": ""}
    command = [sys.executable, "-m", "lightning_zico", *args]
    return subprocess.Popen(
        command,
        env=environment,
        encoding="utf-8",
        cwd=cwd,
        stdout=stdout,
        stderr=subprocess.PIPE,
    )
