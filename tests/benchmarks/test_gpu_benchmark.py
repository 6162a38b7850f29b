"""The benchmark of a GPU, on the CPU: what is compared, what fails, and a small run."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import gpu
from speed import random_batches

CPU = gpu.Device("cpu")


def test_a_line_says_whether_its_goal_holds() -> None:
    assert gpu.Line.held("t", 19.0, "19 ms", 20.0).goal == "at most 20: holds"
    assert gpu.Line.held("t", 21.0, "21 ms", 20.0).goal == "at most 20: DOES NOT HOLD"
    assert gpu.Line.held("t", 5.5, "5.5", 5.0, at_most=False).goal == "at least 5: holds"
    assert gpu.Line.held("t", 4.5, "4.5", 5.0, at_most=False).goal == "at least 5: DOES NOT HOLD"


def test_gradients_flow_through_the_networks_that_are_timed() -> None:
    candidates = gpu.networks(3)
    assert len({candidate.name for candidate in candidates}) == 3
    (images, labels), *_ = random_batches(1, 2)
    for candidate in candidates:
        model = candidate.build()
        nn.functional.cross_entropy(model(images), labels).backward()
        assert any(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_a_proxy_without_a_score_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="zico"):
        gpu.scored(nn.Sequential(nn.Flatten()), random_batches(2, 2))


def test_a_part_that_fails_is_a_line_and_the_others_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(device: gpu.Device, size: gpu.Size) -> Iterator[gpu.Line]:
        yield gpu.Line("before", "1 ms")
        raise ValueError("out of memory\nand more")

    monkeypatch.setitem(gpu.PARTS, "small", failing)
    with pytest.raises(SystemExit) as ended:
        gpu.main(["--device", "cpu", "--quick", "--parts", "small", "tests"])
    assert ended.value.code == 1
    printed = capsys.readouterr().out
    assert "1 ms" in printed
    assert "failed: ValueError: out of memory " in printed
    assert "not run: no CUDA device" in printed


def test_no_part_begins_after_the_limit(capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main(["--device", "cpu", "--quick", "--parts", "small", "--limit-s", "0"])
    assert "left out: 0 s have passed" in capsys.readouterr().out


def test_a_small_run_prints_one_table_without_goals(capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main(["--device", "cpu", "--quick", "--parts", "samples", "memory", "tests"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row.split("|")[1].strip() for row in rows[1:]] == [
        "per sample, N = 4: loop over vmap",
        "resnet18, 2 batches, peak",
        "resnet18, 4 batches, peak",
        "tests that need CUDA",
    ]
    assert {row.split("|")[3].strip() for row in rows[1:]} == {""}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_the_way_to_check_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "--device cpu --quick" in capsys.readouterr().err
