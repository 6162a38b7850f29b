"""The benchmark of other packages' modules: what it says of modules that train, fail, hang or end their process."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_zico import ZiCoCallback

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import third_party as benchmark
from packages import Entry, Fitted, batches, names

pytestmark = pytest.mark.filterwarnings("ignore")

ROOT = Path(__file__).parents[2]


def classified(module: Any, batch: Any) -> torch.Tensor:
    return F.cross_entropy(module.network(batch[0]), batch[1])


def cnn(width: int) -> Fitted:
    network = nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Fitted(nn.Sequential(network, nn.Linear(width, 3)), classified)


def failing(width: int) -> Fitted:
    raise ValueError("no such\nwidth")


class Counting(Fitted):
    """Has a buffer that is another in each one of its kind."""

    num_built = 0

    def __init__(self, width: int) -> None:
        super().__init__(nn.Sequential(nn.Flatten(), nn.Linear(75, width), nn.ReLU(), nn.Linear(width, 3)), classified)
        Counting.num_built += 1
        self.register_buffer("number", torch.tensor(Counting.num_built))


class Noticing(Counting):
    """Trains otherwise where a callback of ours is."""

    def on_train_start(self) -> None:
        if any(isinstance(callback, ZiCoCallback) for callback in self.trainer.callbacks):
            nn.init.zeros_(self.network[1].bias)


data = batches(lambda g: (torch.randn(8, 3, 5, 5, generator=g), torch.randint(3, (8,), generator=g)))


def test_a_module_that_trains_is_ranked_counted_and_trained_beside_the_callback() -> None:
    row = benchmark.tried("own", "1.0", Entry("CNN", cnn, data))
    assert (row.trains, row.ranked, row.callback) == (None, None, None)
    assert row.macs == 9 * 27 * 16 + 16 * 3
    assert benchmark.cells(row)[:5] == ["own", "1.0", "CNN", "yes", "yes"]
    assert benchmark.cells(row)[-1] == "identical"


def test_a_model_of_a_package_is_tried_through_its_file(tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    benchmark.package_tried("transformers", ["bert"], journal, timeout_s=100)
    begun, row = benchmark.read(journal)
    assert begun["module"] == row["module"] == "bert"
    assert (row["trains"], row["ranked"], row["callback"]) == (None, None, None)
    # Twice: attention with 4 x 16 x 16 products a token, a feed-forward of twice the width; then the head.
    assert row["macs"] == 10 * (2 * (4 * 16 * 16 + 2 * 10 * 16 + 2 * 16 * 32) + 16 * 16 + 16 * 50)
    benchmark.package_tried("transformers", ["bert"], journal, timeout_s=100)
    assert len(benchmark.read(journal)) == 2


def test_a_module_that_does_not_train_is_a_row_with_a_reason_in_one_line() -> None:
    row = benchmark.tried("own", "1.0", Entry("Failing", failing, data))
    assert row.trains == "ValueError: no such width"
    assert benchmark.cells(row)[3:5] == ["no", ""]


def test_training_that_differs_is_told() -> None:
    row = benchmark.tried("own", "1.0", Entry("Noticing", Noticing, data))
    assert row.callback.startswith("training differs: network.1.bias and ")
    assert benchmark.cells(row)[-1] == "differs"


def test_what_differs_without_the_callback_is_not_its_doing() -> None:
    row = benchmark.tried("own", "1.0", Entry("Counting", Counting, data))
    assert row.callback is None


def test_what_takes_too_long_is_a_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = SimpleNamespace(PACKAGE="torch", ENTRIES=[Entry("Hanging", lambda width: time.sleep(60), data)])
    monkeypatch.setattr(benchmark.importlib, "import_module", lambda name: file)
    benchmark.package_tried("own", [], tmp_path / "journal.jsonl", timeout_s=0.2)
    assert benchmark.read(tmp_path / "journal.jsonl")[-1]["trains"] == "It took longer than 0.2 s."


def test_after_a_module_that_ends_its_process_the_next_ones_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes are played: each begins one module; that of the first ends there."""

    def played(tasks: Any, num_workers: int, timeout_s: float) -> Iterator[Any]:
        ((name, task),) = tasks.items()
        journal = task.args[4]
        lines = benchmark.read(journal)
        module = "first" if not lines else "second"
        begun = {"package": "own", "version": "1.0", "module": module}
        with journal.open("a") as out:
            benchmark.add(out, begun)
            if module == "second":
                benchmark.add(out, {**begun, "trains": None, "ranked": None, "callback": None})
        yield name, SimpleNamespace(error="The process died." if module == "first" else None)

    monkeypatch.setattr(benchmark, "outcomes", played)
    rows = benchmark.rows_of("own", [], timeout_s=1)
    assert [(row.module, row.trains) for row in rows] == [("first", "The process died."), ("second", None)]


def test_a_package_that_is_missing_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    error = "ModuleNotFoundError: No module named 'own'"
    monkeypatch.setattr(benchmark, "outcomes", lambda *_, **__: iter([("own", SimpleNamespace(error=error))]))
    (row,) = benchmark.rows_of("own", [], timeout_s=1)
    assert benchmark.cells(row)[:4] == ["own", "not installed", "", "no"]


def test_the_document_counts_what_trains_and_what_is_ranked() -> None:
    rows = [
        benchmark.Row("a", "1", "one", None, None, "default", 12345.0, 0.5, None),
        benchmark.Row("a", "1", "two", None, "it fails", None, None, None, "no score"),
        benchmark.Row("b", "2", "three", "no loss"),
        benchmark.Row("c", None, "", "not installed: nothing"),
    ]
    text = benchmark.document(rows)
    assert "- 3 modules of 2 packages were tried." in text
    assert "- 2 of them train" in text
    assert "- 1 of these are ranked in both sizes by the default recipe: 50.0%" in text
    assert "| a | 1 | one | yes | yes | default | 12,345 | 50.0% | identical |" in text
    assert "- a, two, ranked: it fails" in text


def test_every_package_has_a_file_a_requirement_and_no_release_with_malware_is_allowed() -> None:
    requirements = (ROOT / "benchmarks" / "third_party.txt").read_text().lower().replace("_", "-")
    assert len(names()) >= 15
    for name in names():
        (line,) = [
            line
            for line in (ROOT / "benchmarks" / "packages" / f"{name}_models.py").read_text().splitlines()
            if line.startswith("PACKAGE = ")
        ]
        package = json.loads(line.removeprefix("PACKAGE = ")).lower().replace("_", "-")
        assert any(requirement.split(">")[0].split("[")[0] == package for requirement in requirements.splitlines())
    for line in requirements.splitlines():
        if line.startswith(("lightning", "pytorch-lightning")):
            assert "!=2.6.2" in line
            assert "!=2.6.3" in line
