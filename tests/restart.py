"""Ranks twelve candidates into a cache; run in a process of its own, so that it can be killed.

What it finds it leaves in the folder, in a file named by its process. The environment variables ``DIE_BUILDING`` and
``DIE_SCORING`` hold the width of the candidate at which it kills itself.
"""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_zico import Candidate, Proxy, ZeroShotSelector
from tests.modules import Classifier, make_batches

NUM_CANDIDATES = 12


class Logged(Proxy):
    """Writes a line for each candidate that it scores; the number is a sum of weights."""

    name = "logged"

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def measure(self, probe: Any) -> float:
        width = probe.module.network[0].out_channels
        die_if(f"{width}" == os.environ.get("DIE_SCORING"))
        time.sleep(0.02)
        with Path(self.folder, "scored.txt").open("a") as log:
            log.write(f"{width}\n")
        return float(sum(parameter.detach().sum() for parameter in probe.module.parameters()))


def die_if(now: bool) -> None:
    if now:
        os.kill(os.getpid(), signal.SIGKILL)


def build(width: int) -> nn.Module:
    die_if(f"{width}" == os.environ.get("DIE_BUILDING"))
    return Classifier(width)


def main(folder: str, cache: str | None = None) -> None:
    torch.set_num_threads(1)
    candidates = [
        Candidate(f"width {width}", lambda width=width: build(width)) for width in range(1, NUM_CANDIDATES + 1)
    ]
    selector = ZeroShotSelector(proxies=["zico", Logged(folder)], rank_by="logged", cache=cache)
    leaderboard = selector.rank(candidates, make_batches())
    Path(folder, f"{os.getpid()}.json").write_text(json.dumps(leaderboard.to_dict()))
