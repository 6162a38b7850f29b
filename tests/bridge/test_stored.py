"""Large samples for features are on disk: the same numbers, in little memory, and nothing is left behind."""

import gc
import pickle
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_zico import ProcessExecutor, ZeroShotSelector
from lightning_zico.bridge import Reading, stored
from lightning_zico.bridge.data import TrainingData
from lightning_zico.bridge.stored import StoredBatches, hold_batches
from lightning_zico.proxies import resolve_proxies
from lightning_zico.scoring.cache import MemoryCache
from lightning_zico.scoring.cached_scorer import with_cache
from lightning_zico.scoring.scorer import Scorer
from tests.modules import Classifier, make_batches

NAMES = ["logme", "knn", "leep"]


@pytest.fixture(name="on_disk")
def _on_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(stored, "_MOST_IN_MEMORY", 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


class Augmented(Dataset[Any]):
    """Draws noise at each reading."""

    def __init__(self) -> None:
        (self.samples,) = make_batches(1, 40)

    def __len__(self) -> int:
        return 40

    def __getitem__(self, idx: int) -> tuple[Tensor, Tensor]:
        return self.samples[0][idx] + torch.randn_like(self.samples[0][idx]), self.samples[1][idx]


def loader() -> DataLoader[Any]:
    return DataLoader(Augmented(), batch_size=4, shuffle=True)


def assert_same(found: Any, expected: Any) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) and a.stride() == b.stride() for a, b in zip(one, other, strict=True))


def test_few_batches_stay_in_memory() -> None:
    batches = make_batches(3)
    held = hold_batches(iter(batches))
    assert isinstance(held, list)
    assert all(a is b for a, b in zip(held, batches, strict=True))


@pytest.mark.usefixtures("on_disk")
def test_stored_batches_are_those_that_were_read_in_their_order() -> None:
    batches = [(inputs.contiguous(memory_format=torch.channels_last), labels) for inputs, labels in make_batches(5)]
    held = hold_batches(iter(batches))
    assert isinstance(held, StoredBatches)
    assert_same(held, batches)
    assert_same(held[1:4], batches[1:4])
    assert_same([held[-1]], batches[-1:])
    with pytest.raises(IndexError):
        held[5]


@pytest.mark.usefixtures("on_disk")
def test_no_sample_stays_in_memory() -> None:
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def read() -> Iterator[Tensor]:
        nonlocal most
        for _ in range(20):
            batch = torch.randn(4, 2)
            alive.append(weakref.ref(batch))
            most = max(most, sum(ref() is not None for ref in alive))
            yield batch
            del batch

    held = hold_batches(read())
    gc.collect()
    assert len(held) == 20
    assert sum(ref() is not None for ref in alive) == 0
    assert most <= 3  # the first, the one that is being written, and the next


def test_the_file_of_a_view_holds_the_view_alone(on_disk: Path) -> None:
    held = hold_batches(iter(torch.zeros(1000, 1000).split(10)[:2]))
    sizes = [file.stat().st_size for file in on_disk.rglob("*.pt")]
    assert len(held) == len(sizes) == 2
    assert max(sizes) < 2 * 10 * 1000 * 4


def test_a_copy_reads_the_same_folder_and_leaves_it(on_disk: Path) -> None:
    held = hold_batches(iter(make_batches(3)))
    copied = pickle.loads(pickle.dumps(held))
    assert len(pickle.dumps(held)) < 2000
    assert_same(copied, list(held))
    del copied
    gc.collect()
    assert len(list(on_disk.rglob("*.pt"))) == 3
    del held
    gc.collect()
    assert list(on_disk.iterdir()) == []


def test_what_cannot_be_written_stays_in_memory_with_a_warning(on_disk: Path) -> None:
    lock = threading.Lock()
    batches: list[Any] = [torch.zeros(2), {"x": torch.ones(2), "lock": lock}, torch.full((2,), 2.0)]
    with pytest.warns(UserWarning, match="kept in memory, since they cannot be written to .* TMPDIR"):
        held = hold_batches(iter(batches))
    assert [held[0].tolist(), held[1]["x"].tolist(), held[2].tolist()] == [[0, 0], [1, 1], [2, 2]]
    assert held[1] is batches[1]
    assert [path.name for path in on_disk.rglob("*.pt")] == ["0.pt"]


def test_arrays_count_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [{"x": np.ones((2, 3)), "y": [torch.ones(2)]} for _ in range(2)]  # 48 and 8 bytes each
    for most, is_stored in ((2 * 56, False), (2 * 56 - 1, True)):
        monkeypatch.setattr(stored, "_MOST_IN_MEMORY", most)
        held = hold_batches(iter(batches))
        assert isinstance(held, StoredBatches) is is_stored
        assert np.array_equal(held[1]["x"], batches[1]["x"])


def test_classes_of_a_script_are_in_the_files(on_disk: Path) -> None:
    """Worker processes have another `__main__`, as the tests have here."""
    module = types.ModuleType("__main__")
    exec("from typing import NamedTuple\nclass Pair(NamedTuple):\n    x: object", vars(module))
    held = hold_batches(iter([module.Pair(torch.ones(3))]))
    assert len(list(on_disk.rglob("*.pt"))) == 1
    assert held[0].x.tolist() == [1, 1, 1]


@pytest.mark.usefixtures("on_disk")
def test_a_scorer_in_memory_needs_no_files() -> None:
    batches = make_batches(3)
    reading = Reading.of(batches)._replace(transfer_batches=hold_batches(iter(batches)))
    scorer = Scorer(reading, resolve_proxies(["logme"]))
    for own in (scorer, with_cache(scorer, MemoryCache())):
        sent = own.in_memory()
        assert type(sent) is type(own)
        assert isinstance(sent.reading.transfer_batches, list)
        assert_same(sent.reading.transfer_batches, batches)


def values(executor: Any = None) -> dict[str, list[float | None]]:
    selector = ZeroShotSelector(
        proxies=NAMES, num_samples_transfer=30, repeats=2, executor=executor, enable_progress_bar=False
    )
    rows = selector.rank({"a": Classifier, "b": Classifier}, loader()).rows
    return {name: [row[name] for row in rows] for name in NAMES}


def test_scores_are_the_same_on_disk_and_in_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    expected = values()
    monkeypatch.setattr(stored, "_MOST_IN_MEMORY", 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert values() == expected
    assert expected["logme"][0] == expected["logme"][1] is not None
    gc.collect()
    assert list(tmp_path.glob("lightning_zico_*")) == []


def test_a_cache_does_not_care_where_samples_are(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = MemoryCache()

    def seconds() -> float:
        selector = ZeroShotSelector(proxies="logme", num_samples_transfer=30, cache=cache, enable_progress_bar=False)
        selector.rank({"a": Classifier}, loader())
        return selector.cards_["a"]["logme"].seconds

    first = seconds()
    monkeypatch.setattr(stored, "_MOST_IN_MEMORY", 0)
    assert seconds() == first


@pytest.mark.slow
@pytest.mark.usefixtures("on_disk")
def test_worker_processes_read_the_same_files() -> None:
    assert values(ProcessExecutor(2)) == values()


def test_a_list_of_batches_is_its_own_store(on_disk: Path) -> None:
    batches = make_batches(5)
    with TrainingData(batches) as source:
        reading = source.read(2, num_samples_transfer=1000)
    assert all(a is b for a, b in zip(reading.transfer_batches, batches, strict=True))
    assert list(on_disk.iterdir()) == []


def read_loader() -> Any:
    with TrainingData(loader()) as source:
        return source.read(2, seed=3, num_samples_transfer=30).transfer_batches


def read_generator() -> Any:
    class Stream:
        def __iter__(self) -> Iterator[Any]:
            return iter(make_batches(8))

    with TrainingData(Stream()) as source:
        return source.read(2, seed=3, num_samples_transfer=30).transfer_batches


@pytest.mark.parametrize("read", [read_loader, read_generator])
def test_the_same_seed_stores_the_same_samples(monkeypatch: pytest.MonkeyPatch, read: Callable[[], Any]) -> None:
    in_memory = read()
    monkeypatch.setattr(stored, "_MOST_IN_MEMORY", 0)
    first, second = read(), read()
    assert isinstance(in_memory, list)
    assert isinstance(first, StoredBatches)
    assert_same(first, in_memory)
    assert_same(second, in_memory)
