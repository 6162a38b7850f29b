"""The benchmark of the cost of transfer proxies: every proxy has a number, and samples are the same at each reading."""

import argparse
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("timm")
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import transfer_cost
from transfer_zoo import SCORES

SMALL = argparse.Namespace(model="lcnet_035", num_samples=12, size=32, batch_size=4)


def test_every_proxy_scores_all_samples() -> None:
    scorer = transfer_cost.scorer_of(SMALL)
    assert sum(len(labels) for _, labels in scorer.reading.transfer_batches) == 12
    card = transfer_cost.scored(scorer, transfer_cost.network_of(SMALL.model))
    assert all(card[name].details["num_samples"] == 12 for name in SCORES)


def test_images_are_the_same_at_each_reading() -> None:
    first, second = (torch.cat([images for images, _ in transfer_cost.loader_of(SMALL)]) for _ in range(2))
    assert torch.equal(first, second)
    assert len(first.unique(dim=0)) == 12


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_command_prints_time_and_memory(capsys: pytest.CaptureFixture[str]) -> None:
    transfer_cost.main(["--quick"])
    printed = capsys.readouterr().out
    assert "| all transfer proxies |" in printed
    assert "the samples themselves take 2 MB" in printed
