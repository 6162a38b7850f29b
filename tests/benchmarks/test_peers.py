"""The benchmark against other codes: what is timed computes the same scores, and a small run."""

import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import peers
from speed import built, random_batches

PROXIES = list(peers.ZERO_COST_NAS)


def test_the_algorithms_of_zero_cost_nas_give_the_scores_of_the_package() -> None:
    model, (batch,) = built("nas_bench_201"), random_batches(1, 4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    theirs, ours = peers.zero_cost_nas(model, batch, PROXIES), peers.together(model, batch, PROXIES)
    theirs["synflow"] = math.log(theirs["synflow"])  # ours is the logarithm
    for name in PROXIES:
        # In float32 the sum of `plain` cancels: its addends are a thousand times as large.
        assert ours[name] == pytest.approx(theirs[name], rel=1e-3 if name == "plain" else 1e-5), name
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_proxy_without_a_score_stops_the_benchmark() -> None:
    with pytest.raises(RuntimeError, match="There is no score"):
        peers.together(torch.nn.Sequential(torch.nn.Flatten()), random_batches(1, 2)[0], ["grad_norm"])


@pytest.mark.slow
def test_a_small_run_prints_ratios_with_intervals(capsys: pytest.CaptureFixture[str]) -> None:
    peers.main(["--quick", "--proxies", "snip", "synflow"])
    printed = capsys.readouterr().out
    (row,) = [line for line in printed.splitlines() if line.startswith("| nas_bench_201")]
    network, size, milliseconds, *ratios = [cell.strip() for cell in row.strip("|").split("|")]
    assert (network, size) == ("nas_bench_201", "16")
    assert float(milliseconds) > 0
    assert len(ratios) == 5
    for ratio in ratios:
        low, high = map(float, ratio.partition("[")[2].strip("]").split(", "))
        assert 0 < low <= float(ratio.partition(" ")[0]) <= high
