"""The benchmark of models of timm: which are drawn, how it resumes, and what it prints."""

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lightning_zico import Candidate

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import zoo

PART = zoo.Part(("a", "b"), 16, 2, 30.0, {"a": 30.0, "b": 20.0}, 10**9, {"b": "too slow"})


def test_drawn_models_are_small_and_of_their_own_size() -> None:
    timm = pytest.importorskip("timm")
    candidates = list(zoo.drawn(3, seed=1))
    assert len({candidate.name for candidate in candidates}) == 3
    for candidate in candidates:
        with torch.device("meta"):
            model = candidate.build()
        assert sum(parameter.numel() for parameter in model.parameters()) <= zoo.MAX_PARAMS
        assert model.input_size == timm.get_pretrained_cfg(candidate.name).input_size[-2:]
    assert [c.name for c in zoo.drawn(3, seed=1)] == [c.name for c in candidates]
    assert [c.name for c in zoo.drawn(3, seed=2)] != [c.name for c in candidates]


def test_a_measured_part_is_found_again_and_half_a_line_is_not(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "zoo.jsonl"
    zoo.Journal(path).add(PART)
    with open(path, "a") as file:
        file.write('{"names": ["c"')
    journal = zoo.Journal(path)
    assert journal.parts == [PART]
    assert journal.part(["a", "b"], 16, 2) == PART
    assert journal.part(["a"], 16, 2) is journal.part(["a", "b"], None, 2) is journal.part(["a", "b"], 16, 1) is None
    journal.add(replace(PART, batch_size=None))
    assert zoo.Journal(path).parts == [PART, replace(PART, batch_size=None)]


def test_a_run_measures_only_the_parts_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def ranked(candidates: Sequence[Candidate], batch_size: int | None, num_workers: int, timeout_s: float) -> zoo.Part:
        names = tuple(candidate.name for candidate in candidates)
        asked.append((names, batch_size))
        if len(asked) == 4:
            raise KeyboardInterrupt
        return zoo.Part(names, batch_size, num_workers, 1.0, dict.fromkeys(names, 1.0), 1, {})

    monkeypatch.setattr(zoo, "ranked", ranked)
    candidates = [Candidate(name, torch.nn.Identity) for name in "abc"]
    arguments = zoo.parser().parse_args(["--part", "2"])
    with pytest.raises(KeyboardInterrupt):
        zoo.measured(zoo.Journal(tmp_path / "zoo.jsonl"), candidates, arguments)
    parts = zoo.measured(zoo.Journal(tmp_path / "zoo.jsonl"), candidates, arguments)
    assert [part.names for part in parts] == [("a", "b"), ("a", "b"), ("c",), ("c",)]
    assert asked == [(("a", "b"), 16), (("a", "b"), None), (("c",), 16), (("c",), None), (("c",), None)]


def test_a_row_sums_up_the_parts_of_a_batch_size() -> None:
    parts = [PART, replace(PART, names=("c",), elapsed_s=60.0, peak_bytes=2 * 10**9, errors={})]
    cells = zoo.cells_of([*parts, replace(PART, batch_size=None)], 16)
    assert cells == ["16", "3", "1.5", "2.0", "1", "2000"]
    assert zoo.seconds_of(parts, 16) == 100.0


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="there is no /proc")
def test_the_peak_includes_processes_of_processes() -> None:
    program = (
        "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(end=str(len(bytes(10**8)))); input()'])"
    )
    with zoo.watched_memory() as peak:
        before = sum(zoo.resident_bytes(pid) for pid in [None, *zoo.descendants()])
        child = subprocess.Popen(
            [sys.executable, "-u", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        assert child.stdout.read(1) == "1"
        assert child.pid in zoo.descendants()
        assert len(zoo.descendants()) >= 2
        deadline = time.monotonic() + 60
        while peak[0] <= before and time.monotonic() < deadline:
            time.sleep(zoo.MEMORY_PERIOD_S)
        child.communicate("\n")
    assert peak[0] > before


@pytest.mark.slow
def test_a_ranking_of_two_models_is_measured() -> None:
    candidates = [Candidate(name, torch.nn.Identity) for name in ("one", "two")]
    part = zoo.ranked(candidates, 16, num_workers=1, timeout_s=100.0)
    assert part.names == ("one", "two")
    assert {*part.errors} == {*part.seconds} == {"one", "two"}
    assert part.elapsed_s >= sum(part.seconds.values()) > 0
    assert part.peak_bytes > zoo.resident_bytes(None) / 2


def test_filling_weights_is_a_part_of_building() -> None:
    building, filling = zoo.building_seconds([Candidate("wide", lambda: torch.nn.Linear(3000, 3000))])
    assert building > 0
    assert filling > 0
    assert zoo.building_seconds([Candidate("nothing", torch.nn.Identity)])[1] == 0
