"""What every cache keeps to."""

import json
import sqlite3
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_zico import Score
from lightning_zico.scoring import MemoryCache, ScoreCache, SQLiteCache
from lightning_zico.scoring.cached_scorer import Entry
from tests.processes import started

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
finite = st.floats(allow_nan=False, allow_infinity=False)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
layers, details = st.dictionaries(texts, finite, max_size=3), st.dictionaries(texts, plain, max_size=3)
scores = st.builds(Score, texts, st.none() | finite, st.none() | texts, finite, layers, details)
entries = st.builds(Entry, scores, finite, st.none() | texts, st.none() | texts, texts)


@pytest.fixture(params=["memory", "sqlite"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], ScoreCache]:
    """Make a new cache with each call."""
    paths = (tmp_path / f"{idx} # é?.db" for idx in range(1000))
    return MemoryCache if request.param == "memory" else lambda: SQLiteCache(next(paths))


def test_what_was_never_written_is_not_there(make: Callable[[], ScoreCache]) -> None:
    cache = make()
    assert isinstance(cache, ScoreCache)
    assert cache.read("candidate") == {}
    cache.write("candidate", {"proxy": "1"})
    assert cache.read("another") == {}
    cache.write("candidate", {})
    assert cache.read("candidate") == {"proxy": "1"}


def test_a_second_write_adds_and_replaces(make: Callable[[], ScoreCache]) -> None:
    cache = make()
    cache.write("candidate", {"a": "1", "b": "2"})
    cache.write("candidate", {"b": "3", "c": "4"})
    assert cache.read("candidate") == {"a": "1", "b": "3", "c": "4"}


def test_what_was_read_can_be_changed_without_the_cache_noticing(make: Callable[[], ScoreCache]) -> None:
    cache = make()
    cache.write("candidate", {"a": "1"})
    cache.read("candidate").clear()
    assert cache.read("candidate") == {"a": "1"}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15)
@given(st.dictionaries(texts, st.dictionaries(texts, entries, max_size=3), max_size=3))
def test_entries_come_back_as_they_were(make: Callable[[], ScoreCache], kept: dict[str, dict[str, Entry]]) -> None:
    cache = make()
    for candidate, by_proxy in kept.items():
        cache.write(candidate, {proxy: entry.to_json() for proxy, entry in by_proxy.items()})
    for candidate, by_proxy in kept.items():
        found = {proxy: Entry.from_json(text) for proxy, text in cache.read(candidate).items()}
        assert found == by_proxy
        for proxy, entry in found.items():
            assert repr(asdict(entry)) == repr(asdict(by_proxy[proxy]))  # minus zero is equal to zero


def write(path: str, number: str) -> None:
    Path(f"{path}.{number}").touch()
    while not all(Path(f"{path}.{other}").exists() for other in "12"):
        time.sleep(0.01)
    cache = SQLiteCache(path)  # both make the file
    for idx in range(150):
        cache.write(f"{number} {idx}", {"proxy": "x" * 5000})
        cache.write("both", {f"{number} {idx}": number})
        assert f"{number} {idx}" in cache.read("both")


def test_two_processes_write_one_file_at_once_and_every_row_is_there(tmp_path: Path) -> None:
    path = tmp_path / "scores.db"
    for writer in [started(write, str(path), number) for number in "12"]:
        writer.join()
        assert writer.exitcode == 0
    cache = SQLiteCache(path)
    names = [f"{number} {idx}" for number in "12" for idx in range(150)]
    assert all(cache.read(name) == {"proxy": "x" * 5000} for name in names)
    assert sorted(cache.read("both")) == sorted(names)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["scores.db", "scores.db.1", "scores.db.2"]


def test_no_connection_is_left_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def recorded(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        opened.append(connect(*args, **kwargs))
        return opened[-1]

    monkeypatch.setattr(sqlite3, "connect", recorded)
    cache = SQLiteCache(tmp_path / "cache.db")
    cache.write("candidate", {"proxy": "1"})
    with cache.claim("another"), pytest.raises(RuntimeError), cache.claim("third"):
        raise RuntimeError
    assert SQLiteCache(cache.path).read("candidate") == {"proxy": "1"}
    assert opened
    for connection in opened:
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            connection.execute("SELECT 1")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_no_entry(number: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        Entry(Score("zico", 1.0, details={"n": number}), 0.0).to_json()


def test_an_entry_is_json_that_anyone_can_read() -> None:
    data = json.loads(Entry(Score("zico", 0.1), 0.5, company="c").to_json())
    assert data["score"]["value"] == 0.1
    assert data["seconds"] == 0.5
