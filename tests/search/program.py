"""Searches with a storage in a file; run in a process of its own, so that it can be killed and run twice at once.

It logs each scoring to ``scored.txt``, and leaves what it finds in a file named by its process. The environment
variable ``DIE_AT`` is the number of the scoring in which it kills itself, ``DIE_PROPOSING`` that of the proposal;
``TOGETHER`` is how many processes are to be ready before the first of them begins; with ``OPTUNA`` a sampler of Optuna
proposes.
"""

import itertools
import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import optuna
import torch

from lightning_zico import Proxy, ZeroShotSearch
from lightning_zico.search import Evolution
from tests.search.spaces import Bits, batches

NUM_TRIALS = 30


class Logged(Proxy):
    """Writes a line for each arch that it scores; the number is a sum of weights."""

    name = "logged"

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def measure(self, probe: Any) -> float:
        log = Path(self.folder, "scored.txt")
        shape = "-".join(str(p.numel()) for p in probe.module.parameters())
        with log.open("a") as file:
            file.write(f"{os.getpid()} {shape}\n")
        if f"{len(log.read_text().splitlines())}" == os.environ.get("DIE_AT"):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.03)
        return float(sum(parameter.detach().sum() for parameter in probe.module.parameters()))


_num_proposals = itertools.count(1)


class Fatal(Bits):
    """Kills who proposes an arch, where it is asked to."""

    def mutate(self, arch: str, rng: random.Random) -> str:
        self._die_perhaps()
        return super().mutate(arch, rng)

    def suggest(self, trial: Any) -> str:
        arch = super().suggest(trial)
        self._die_perhaps()
        return arch

    def _die_perhaps(self) -> None:
        if f"{next(_num_proposals)}" == os.environ.get("DIE_PROPOSING"):
            os.kill(os.getpid(), signal.SIGKILL)


def main(where: str) -> None:
    folder = Path(where)
    torch.set_num_threads(1)
    (folder / f"ready-{os.getpid()}").touch()
    while len(list(folder.glob("ready-*"))) < int(os.environ.get("TOGETHER", "1")):
        time.sleep(0.01)
    search = ZeroShotSearch(
        Fatal(),
        proxies=Logged(where),
        num_trials=NUM_TRIALS,
        sampler=optuna.samplers.RandomSampler(seed=0)
        if "OPTUNA" in os.environ
        else Evolution(population_size=8, tournament_size=3, num_initial=4),
        storage=folder / "trials.db",
        num_classes=3,
    )
    (folder / f"{os.getpid()}.json").write_text(json.dumps(search.run(batches()).to_dict()))
