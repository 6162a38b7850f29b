"""On two processes, the score is that of all gradients together, and the failure of one leaves no other waiting."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler

from lightning_zico import score
from tests.callbacks.ddp_training import FAILURES
from tests.callbacks.training import BATCH_SIZE, PlainImages
from tests.modules import Classifier

ROOT = Path(__file__).parents[2]
# Twenty times what it takes on an idle machine; a rank that waits for ever is what this is for.
TIMEOUT_S = 240


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Train on two processes, and read what each of them wrote."""
    folder = tmp_path_factory.mktemp("ddp")
    command = [sys.executable, "-m", "tests.callbacks.ddp_training", str(folder)]
    # Another cluster's variables would tell Lightning that its processes are started already.
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "PL_", "LOCAL_", "NODE_"))}
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=clean | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            pytest.fail(f"Two processes did not finish in {TIMEOUT_S} s:\n{output}")
    assert process.returncode == 0, output
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("axis", ["batch", "sample"])
def test_every_rank_has_the_score_of_all_batches_together(ranks: list[dict[str, Any]], axis: str) -> None:
    first, second = [results[axis][0] for results in ranks]
    assert first["score"] == second["score"]
    assert first["layers"] == second["layers"]
    batches = []
    for rank in range(2):
        sampler = DistributedSampler(PlainImages(), 2, rank)
        batches += list(itertools.islice(DataLoader(PlainImages(), BATCH_SIZE, sampler=sampler), 2))
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)  # as `photographed` begins
    module = Classifier()
    together = score(module, batches, axis=axis)["zico"]  # type: ignore[arg-type]
    assert first["score"] == pytest.approx(together.value, rel=1e-5)  # order of float32 additions
    assert first["layers"] == pytest.approx(together.layers, rel=1e-5)
    alone = score(module, batches[:2], axis=axis)["zico"]  # type: ignore[arg-type]
    assert first["score"] != pytest.approx(alone.value, rel=1e-3)


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_is_recorded_on_every_rank(ranks: list[dict[str, Any]], failure: str) -> None:
    first, second = [results[failure][0] for results in ranks]
    assert first["error"] == second["error"]
    assert FAILURES[failure] in first["error"]
    assert first["error"].startswith("rank 1: ") == (failure != "one loss")
    assert first["score"] is second["score"] is None


def test_training_on_two_processes_does_not_notice(ranks: list[dict[str, Any]]) -> None:
    # The ranks compared their trainings themselves, or there would be no results.
    for results in ranks:
        assert [record["error"] for record in results["bit-identical"]] == [None, None]
    assert [record["score"] for record in ranks[0]["bit-identical"]] == [
        record["score"] for record in ranks[1]["bit-identical"]
    ]


def test_the_other_package_scores_the_same_on_every_rank(ranks: list[dict[str, Any]]) -> None:
    first, second = [results["pytorch_lightning"][0] for results in ranks]
    assert first["error"] is second["error"] is None
    # The same weights and batches as those of the first training.
    assert first["score"] == second["score"] == ranks[0]["batch"][0]["score"]
