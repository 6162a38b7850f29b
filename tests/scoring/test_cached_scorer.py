"""With a cache nothing is scored twice, and nothing else is different."""

import errno
import json
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn

import lightning_zico.scoring.cached_scorer
from lightning_zico import Budget, Candidate, Proxy, ScoreCard, ZeroShotSelector, ZiCo
from lightning_zico.bridge import Reading
from lightning_zico.engine.scope import preserved_rng
from lightning_zico.errors import CacheError
from lightning_zico.proxies import resolve_proxies
from lightning_zico.scoring import MemoryCache, SQLiteCache
from lightning_zico.scoring import cache as cache_module
from lightning_zico.scoring.cached_scorer import with_cache
from lightning_zico.scoring.placement import Placement
from lightning_zico.scoring.scorer import Scorer
from tests.modules import Classifier, make_batches
from tests.processes import run_in_a_new_interpreter, started
from tests.restart import NUM_CANDIDATES, main
from tests.scoring.test_fingerprint import user_module

ROOT = Path(__file__).parent.parent.parent


class Log:
    """Lists names, and says of itself that its list is no part of it."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __reduce__(self) -> Any:
        return (Log, ())


LOG = Log()


class Counting(Proxy):
    """Writes its name down when it is asked."""

    def __init__(self, name: str = "counting", factor: float = 1.0) -> None:
        self.name = name
        self.factor = factor

    def measure(self, probe: Any) -> float:
        LOG.names.append(self.name)
        return self.factor * float(sum(parameter.detach().sum() for parameter in probe.module.parameters()))


class Watched(MemoryCache):
    """Remembers of which candidates something was written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: set[str] = set()

    def write(self, candidate: str, entries: Mapping[str, str]) -> None:
        self.written.add(candidate)
        super().write(candidate, entries)


@pytest.fixture(autouse=True)
def _nobody_was_asked() -> None:
    LOG.names.clear()


def classifier() -> nn.Module:
    with preserved_rng(0):  # the same weights whatever the seed of the scorer, which is that of dropout as well
        return Classifier(dropout=0.2)


def scorer(**changes: Any) -> Scorer:
    return replace(Scorer(Reading.of(make_batches()), [Counting(), *resolve_proxies(["zico", "params"])]), **changes)


def cards(*scorers: Scorer, build: Callable[[], nn.Module] = classifier) -> list[ScoreCard]:
    return [each.score(Candidate("candidate", build)) for each in scorers]


def test_a_second_time_nothing_is_scored_and_the_card_is_equal_to_the_last_bit() -> None:
    cache = MemoryCache()
    first, second = cards(with_cache(scorer(), cache), with_cache(scorer(), cache))
    assert LOG.names == ["counting"]
    assert repr(first.to_dict()) == repr(second.to_dict())
    assert first["zico"].layers and first["zico"].details  # noqa: PT018
    assert first.seconds > 0


@pytest.mark.parametrize("axis", ["batch", "sample"])
def test_a_card_is_that_of_no_cache_whether_its_proxies_were_scored_together_or_one_by_one(axis: Any) -> None:
    proxies = [proxy for proxy in resolve_proxies("all") if proxy.is_repeatable]
    cache = MemoryCache()
    for proxy in proxies[::2]:
        cards(with_cache(scorer(proxies=[proxy], axis=axis), cache))
    plain, merged = cards(scorer(proxies=proxies, axis=axis), with_cache(scorer(proxies=proxies, axis=axis), cache))
    assert list(merged) == list(plain)
    for name in plain:
        assert replace(merged[name], seconds=0.0) == replace(plain[name], seconds=0.0)
    assert (merged.error, merged.untrainable) == (plain.error, plain.untrainable)


def half(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs, targets) / 2


def half_of_another(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs, targets) / 3


class Plain(LightningDataModule):
    """Has no hook that batches pass."""


class Augmenting(LightningDataModule):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [batch[0] * self.factor, batch[1]]


def other_batches() -> list[Any]:
    batches = make_batches()
    batches[1][0][0, 0, 0, 0] += 1e-6
    return batches


DIFFERENT: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "batches": ({}, {"reading": Reading.of(other_batches())}),
    "order of batches": ({}, {"reading": Reading.of(make_batches()[::-1])}),
    "labels": ({}, {"reading": Reading.of((images, labels.flip(0)) for images, labels in make_batches())}),
    "setting of a proxy": ({"proxies": [Counting()]}, {"proxies": [Counting(factor=2.0)]}),
    "setting of a proxy of ours": ({"proxies": [ZiCo()]}, {"proxies": [ZiCo(std_of="abs")]}),
    "seed": ({}, {"seed": 1}),
    "axis": ({}, {"axis": "sample"}),
    "chunk size": ({"axis": "sample"}, {"axis": "sample", "chunk_size": 2}),
    "loss function": ({"loss_fn": half}, {"loss_fn": half_of_another}),
    "setting of a loss": ({"loss_fn": nn.CrossEntropyLoss()}, {"loss_fn": nn.CrossEntropyLoss(label_smoothing=0.1)}),
    "budget": ({}, {"budget": Budget(params=1)}),
    "precision": ({}, {"placement": Placement(precision="bf16-mixed")}),
    "precisions": ({"placement": Placement(precision="64-true")}, {"placement": Placement(precision="bf16-true")}),
    "memory format": ({}, {"placement": Placement(channels_last=True)}),
    "data module": ({"datamodule": Augmenting(1.0)}, {"datamodule": Augmenting(2.0)}),
}


@pytest.mark.parametrize(("one", "other"), DIFFERENT.values(), ids=DIFFERENT)
def test_whatever_changes_the_number_misses(one: dict[str, Any], other: dict[str, Any]) -> None:
    cache = MemoryCache()
    first, second, third = cards(*(with_cache(scorer(**changes), cache) for changes in (one, other, other)))
    (plain,) = cards(scorer(**other))
    assert {name: score.value for name, score in second.scores.items()} == {
        name: score.value for name, score in plain.scores.items()
    }
    assert repr(third.to_dict()) == repr(second.to_dict()) != repr(first.to_dict())


def test_versions_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = MemoryCache()
    cards(with_cache(scorer(), cache))
    for package in (torch, lightning_zico.scoring.fingerprint):
        monkeypatch.setattr(package, "__version__", "0.0.0")
        cards(with_cache(scorer(), cache))
    assert LOG.names == ["counting"] * 3


@pytest.fixture
def _threads() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
def test_threads_and_autocast_are_those_of_the_place_where_it_is_scored(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    cache = SQLiteCache(tmp_path / "scores.db")
    sent = pickle.dumps(with_cache(scorer(), cache))
    torch.set_num_threads(2)
    cards(pickle.loads(sent), pickle.loads(sent))
    assert LOG.names == ["counting"]
    torch.set_num_threads(1)
    cards(pickle.loads(sent))
    assert LOG.names == ["counting"] * 2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cards(pickle.loads(sent))
    assert LOG.names == ["counting"] * 3
    cards(with_cache(scorer(), cache))
    assert LOG.names == ["counting"] * 3


def test_a_data_module_without_hooks_for_batches_is_not_looked_at() -> None:
    cache = MemoryCache()
    other = Plain()
    other.lock = threading.Lock()
    cards(with_cache(scorer(datamodule=Plain()), cache), with_cache(scorer(datamodule=other), cache))
    assert LOG.names == ["counting"]


def test_weights_blocks_and_source_of_a_candidate_miss_and_its_name_does_not() -> None:
    source = "class Net(nn.Sequential):\n    def forward(self, x):\n        return super().forward(x.relu())\n"

    def net(source: str, bias: float = 0.0) -> Callable[[], nn.Module]:
        def build() -> nn.Module:
            made = user_module(source).Net(nn.Flatten(), nn.Linear(50, 3))
            made[1].bias.data.fill_(bias)
            return made

        return build

    caching = with_cache(scorer(loss_fn=nn.functional.cross_entropy), MemoryCache())
    offered = [
        Candidate("a", net(source)),
        Candidate("same under another name", net(source)),
        Candidate("other weight", net(source, 1e-7)),
        Candidate("other source", net(source.replace("relu", "tanh"))),
        Candidate("other blocks", net(source), blocks=["1"]),
    ]
    found = [caching.score(candidate) for candidate in offered]
    assert len(LOG.names) == 4
    assert [card.name for card in found] == [candidate.name for candidate in offered]
    assert found[0].scores == found[1].scores
    assert found[0]["zico"].value != found[3]["zico"].value


class Nan(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * torch.nan


def outcome(card: ScoreCard) -> tuple[Any, ...]:
    return {name: (s.value, s.error) for name, s in card.scores.items()}, card.error, card.untrainable


def test_what_a_card_says_of_its_candidate_is_what_it_says_without_a_cache_whichever_proxies_came_before() -> None:
    cache = MemoryCache()
    # `params` makes no pass, so that alone it cannot know of the loss.
    sets = [["params", "naswot"], ["params"], ["params", "naswot"], ["naswot"], ["zico", "params"], ["params"]]
    said = []
    for names in sets:
        bare = scorer(proxies=resolve_proxies(names))
        plain, cached, again = cards(bare, with_cache(bare, cache), with_cache(bare, cache), build=Nan)
        assert outcome(cached) == outcome(plain) == outcome(again)
        said.append(plain.untrainable is not None)
    assert said == [True, False, True, True, True, False]


def failing(error: Exception) -> type[Counting]:
    class Failing(Counting):
        def measure(self, probe: Any) -> float:
            super().measure(probe)
            raise error

    return Failing


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError("no memory"), OSError("disk"), KeyError("a bug")])
def test_what_may_pass_is_tried_again(error: Exception) -> None:
    caching = with_cache(scorer(proxies=[failing(error)(), Counting("other")]), MemoryCache())
    first, second = cards(caching, caching)
    assert LOG.names == ["counting", "other", "counting"]
    assert outcome(first) == outcome(second)
    assert first["counting"].error is not None


def test_what_cannot_pass_is_kept() -> None:
    class Infinite(Counting):
        def measure(self, probe: Any) -> float:
            super().measure(probe)
            return float("inf")

    caching = with_cache(scorer(proxies=[Infinite()]), MemoryCache())
    first, second = cards(caching, caching)
    assert LOG.names == ["counting"]
    assert repr(first.to_dict()) == repr(second.to_dict())
    assert "NonFiniteError" in first["counting"].error


def test_a_candidate_over_budget_is_kept_as_that() -> None:
    cache = Watched()
    caching = with_cache(scorer(budget=Budget(params=1)), cache)
    first, second = cards(caching, caching)
    assert repr(first.to_dict()) == repr(second.to_dict())
    assert first.error.startswith("over budget")
    assert cache.written


def test_what_was_too_slow_on_one_machine_is_timed_on_another(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Watched()
    (slow,) = cards(with_cache(scorer(budget=Budget(latency_s=1e-9)), cache))
    assert slow.error.startswith("over budget: ")
    num_kept = len(cache.written)
    assert num_kept
    cards(with_cache(scorer(budget=Budget(latency_s=1e-9)), cache))
    assert len(cache.written) == num_kept
    monkeypatch.setattr("platform.node", lambda: "another")
    cards(with_cache(scorer(budget=Budget(latency_s=1e-9)), cache))
    assert len(cache.written) == num_kept + 1


def test_a_candidate_that_does_not_build_is_built_once_a_time_and_never_kept() -> None:
    built = []

    def broken() -> nn.Module:
        built.append(None)
        raise RuntimeError("cannot be built")

    cache = Watched()
    caching = with_cache(scorer(), cache)
    first, second = cards(caching, caching, build=broken)
    assert outcome(first) == outcome(second) == outcome(*cards(scorer(), build=broken))
    assert len(built) == 3
    assert not cache.written


def test_each_candidate_is_built_once_and_what_is_built_is_what_is_scored() -> None:
    built = []

    def unrepeatable() -> nn.Module:
        module = Classifier()
        module.network[0].bias.data.fill_(len(built))
        built.append(module)
        return module

    cache = MemoryCache()
    (card,) = cards(with_cache(scorer(proxies=[Counting()]), cache), build=unrepeatable)
    assert len(built) == 1
    assert card["counting"].value == pytest.approx(float(sum(p.detach().sum() for p in built[0].parameters())))


def test_what_has_no_fingerprint_is_scored_each_time_and_a_warning_says_so() -> None:
    def locked() -> nn.Module:
        module = Classifier()
        module.lock = threading.Lock()
        return module

    cache = Watched()
    caching = with_cache(scorer(), cache)
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"'lock' has no fingerprint: a lock .* not stored"):
            cards(caching, build=locked)
    assert LOG.names == ["counting"] * 2
    assert not cache.written


def test_a_loss_function_without_a_fingerprint_is_no_reason_not_to_rank() -> None:
    lock = threading.Lock()

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        with lock:
            return nn.functional.cross_entropy(outputs, targets)

    bare = scorer(loss_fn=loss_fn)
    with pytest.warns(UserWarning, match=r"loss_fn\.lock"):
        assert with_cache(bare, MemoryCache()) is bare


def test_a_proxy_without_a_fingerprint_is_scored_each_time_and_the_others_are_not() -> None:
    proxy = Counting()
    proxy.lock = threading.Lock()
    with pytest.warns(UserWarning, match="lock"):
        caching = with_cache(scorer(proxies=[proxy, Counting("other")]), MemoryCache())
    first, second = cards(caching, caching)
    assert LOG.names == ["counting", "other", "counting"]
    assert outcome(first) == outcome(second)


def test_a_clock_is_asked_again_on_another_machine_and_not_on_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = MemoryCache()
    bare = scorer(proxies=resolve_proxies("latency"))
    first, second = cards(with_cache(bare, cache), with_cache(bare, cache))
    assert repr(first.to_dict()) == repr(second.to_dict())
    monkeypatch.setattr("platform.node", lambda: "another")
    (third,) = cards(with_cache(bare, cache))
    assert repr(third.to_dict()) != repr(first.to_dict())


def test_a_leaderboard_is_that_of_no_cache_but_for_its_seconds(tmp_path: Path) -> None:
    candidates = {"a": Classifier, "b": lambda: Classifier(8), "nan": Nan}
    path = tmp_path / "scores.db"
    plain = ZeroShotSelector().rank(candidates, make_batches())
    first = ZeroShotSelector(cache=path).rank(candidates, make_batches())
    second = ZeroShotSelector(cache=str(path)).rank(candidates, make_batches())
    third = ZeroShotSelector(cache=SQLiteCache(path)).rank(candidates, make_batches())
    assert first.to_dict() == second.to_dict() == third.to_dict()
    for with_it, without in zip(first, plain, strict=True):
        assert {**with_it, "seconds": 0} == {**without, "seconds": 0}
    assert first.provenance == plain.provenance
    assert [file.name for file in tmp_path.iterdir()] == ["scores.db"]


def test_a_work_with_a_file_can_be_sent_to_a_worker_and_scores_into_the_same_file(tmp_path: Path) -> None:
    sent = with_cache(scorer(), SQLiteCache(tmp_path / "scores.db"))
    (first,) = cards(pickle.loads(pickle.dumps(sent)))
    (second,) = cards(sent)
    assert LOG.names == ["counting"]
    assert repr(first.to_dict()) == repr(second.to_dict())


def test_wrong_caches_are_refused_at_once(tmp_path: Path) -> None:
    for wrong in (3, object(), MemoryCache):
        with pytest.raises(TypeError, match=r"Invalid cache=.*'scores.db'"):
            ZeroShotSelector(cache=wrong)
    ZeroShotSelector(cache=tmp_path / "no folder" / "scores.db")  # nothing happens before there is something to do
    assert not list(tmp_path.iterdir())


# Files that are no cache, or a damaged one.


def written(path: Path) -> SQLiteCache:
    cache = SQLiteCache(path)
    for idx in range(50):
        cache.write(f"candidate {idx}", {"proxy": f"[{idx}, {'1' * 1000}]"})
    return cache


def text(path: Path) -> None:
    path.write_text("name,score\n" * 100)


def empty(path: Path) -> None:
    path.touch()


def cut_at_its_end(path: Path) -> None:
    written(path)
    os.truncate(path, path.stat().st_size - 100)


def folder(path: Path) -> None:
    path.mkdir()


def cut_short(path: Path) -> None:
    written(path)
    os.truncate(path, path.stat().st_size // 2)


def cut_in_the_header(path: Path) -> None:
    written(path)
    os.truncate(path, 50)


def torn(path: Path) -> None:
    written(path)
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(4096))


def of_another_program(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE scores (candidate, proxy, entry)")
    connection.close()


def of_another_version(path: Path) -> None:
    written(path)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 2")
    connection.close()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (text, "is not an SQLite database"),
        (empty, "is not an SQLite database"),
        (folder, "cannot be read"),
        (cut_short, "is damaged: it is truncated"),
        (cut_at_its_end, "is damaged: it is truncated"),
        (cut_in_the_header, "is truncated"),
        (torn, "is damaged"),
        (of_another_program, "another program"),
        (of_another_version, "has format 2, but this version of lightning_zico reads format 1"),
    ],
)
def test_a_file_that_is_no_whole_cache_is_refused_with_its_reason_and_left_as_it_is(
    make: Callable[[Path], object], reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "scores.db"
    make(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(CacheError, match=reason) as raised:
        ZeroShotSelector(proxies=Counting(), cache=path).rank([Classifier], make_batches())
    assert str(path) in str(raised.value)
    assert isinstance(raised.value, OSError)
    assert not LOG.names
    assert (path.read_bytes() if path.is_file() else None) == before
    assert [file.name for file in tmp_path.iterdir()] == ["scores.db"]


def test_a_folder_that_is_not_there_is_no_place_for_a_cache(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="in a folder that exists"):
        SQLiteCache(tmp_path / "folder" / "scores.db")


@pytest.mark.parametrize("wrong", [":memory:", "scores\0.db"])
def test_what_names_no_file_is_refused(wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CacheError, match=r"expected the path of a file.*`MemoryCache\(\)`"):
        ZeroShotSelector(cache=wrong).rank([Classifier], make_batches())
    assert not list(tmp_path.iterdir())


def test_a_write_that_is_refused_is_no_damage_and_the_error_says_what_to_do(tmp_path: Path) -> None:
    cache = written(tmp_path / "scores.db")
    with sqlite3.connect(cache.path) as connection:
        connection.execute("CREATE TRIGGER t BEFORE INSERT ON scores BEGIN SELECT RAISE(FAIL, 'disk is full'); END")
    connection.close()
    with pytest.raises(CacheError, match=r"cannot be used: disk is full\. Check .* has space; then run again"):
        cache.write("candidate", {"proxy": "1"})
    assert cache.read("candidate 7") != {}


class Full(MemoryCache):
    """Has room for one candidate."""

    is_full = False

    def write(self, candidate: str, entries: Mapping[str, str]) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.is_full = True
        super().write(candidate, entries)


@pytest.mark.parametrize("is_file", [True, False])
def test_scores_that_cannot_be_stored_are_on_the_leaderboard_with_one_warning(
    is_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored: list[str] = []
    insert = cache_module._insert

    def insert_one(connection: sqlite3.Connection, candidate: str, entries: Mapping[str, str]) -> None:
        if stored:
            raise sqlite3.OperationalError("database or disk is full")
        stored.append(candidate)
        insert(connection, candidate, entries)

    monkeypatch.setattr(cache_module, "_insert", insert_one)
    cache = SQLiteCache(tmp_path / "scores.db") if is_file else Full()
    candidates = {f"{width} wide": partial(Classifier, width) for width in (4, 5, 6)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        full = ZeroShotSelector(proxies="zico", cache=cache).rank(candidates, make_batches())
    own = [str(warning.message) for warning in caught if "stored in the cache" in str(warning.message)]
    assert len(own) == 1
    assert own[0].startswith("Scores could not be stored in the cache: ")
    assert "disk is full" in own[0] or "No space left" in own[0]
    assert own[0].endswith(". They are on the leaderboard, and are computed again next time.")
    monkeypatch.undo()
    expected = ZeroShotSelector(proxies="zico").rank(candidates, make_batches())
    assert [(row["name"], row["score"]) for row in full] == [(row["name"], row["score"]) for row in expected]
    again = ZeroShotSelector(proxies=Counting(), cache=cache if is_file else MemoryCache())
    again.rank(candidates, make_batches())  # nobody claims what could not be stored
    assert len(LOG.names) == 3


def test_a_digit_that_has_changed_is_found(tmp_path: Path) -> None:
    cache = written(tmp_path / "scores.db")
    raw = cache.path.read_bytes()
    cache.path.write_bytes(raw.replace(b"[7, 1", b"[8, 1"))
    with pytest.raises(CacheError, match="an entry was changed"):
        SQLiteCache(cache.path).read("candidate 7")
    assert SQLiteCache(cache.path).read("candidate 8") != {}


def test_a_cache_that_was_deleted_meanwhile_is_not_made_anew(tmp_path: Path) -> None:
    cache = written(tmp_path / "scores.db")
    cache.path.unlink()
    with pytest.raises(CacheError, match="was deleted or moved while it was in use"):
        cache.write("candidate", {"proxy": "1"})
    assert not list(tmp_path.iterdir())


LEFT_OPEN = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("INSERT INTO scores VALUES ('left', 'proxy', 'entry', 'hash')")
if sys.argv[2] == "half":
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("INSERT INTO scores VALUES ('half', 'proxy', 'entry', 'hash')")
os.kill(os.getpid(), signal.SIGKILL)
"""


def killed_while_writing(path: Path, how: str) -> None:
    done = subprocess.run([sys.executable, "-c", LEFT_OPEN, str(path), how], check=False)
    assert done.returncode == -signal.SIGKILL
    assert Path(f"{path}-wal").stat().st_size > 0


def test_a_kill_within_a_write_leaves_all_that_was_written_before(tmp_path: Path) -> None:
    cache = written(tmp_path / "scores.db")
    killed_while_writing(cache.path, "half")
    assert SQLiteCache(cache.path).read("candidate 7") == cache.read("candidate 7") != {}
    assert cache.read("half") == {}
    with pytest.raises(CacheError, match="an entry was changed"):  # it is there, with a hash that is none
        cache.read("left")


def test_a_damaged_file_with_a_log_beside_it_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "scores.db"
    written(path)
    killed_while_writing(path, "whole")
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(4096))
    files = (path, Path(f"{path}-wal"))
    before = [file.read_bytes() for file in files]
    with pytest.raises(CacheError, match="is damaged"):
        SQLiteCache(path)
    assert [file.read_bytes() for file in files] == before


def test_the_log_of_a_cache_that_was_deleted_is_not_taken_for_that_of_a_new_one(tmp_path: Path) -> None:
    cache = written(tmp_path / "scores.db")
    killed_while_writing(cache.path, "whole")
    cache.path.unlink()
    with pytest.raises(CacheError, match=r"'scores\.db-wal' with its last writes"):
        SQLiteCache(cache.path)
    assert not cache.path.exists()


def test_nothing_of_the_cache_unpickles() -> None:
    for name in ("cache", "cached_scorer", "fingerprint"):
        source = (ROOT / "lightning_zico" / "scoring" / f"{name}.py").read_text()
        assert not any(word in source for word in ("pickle", "marshal", "torch.load", "torch.save", "eval(", "exec("))


# Programs that are killed.


def restart(folder: Path, *, cached: bool = True, **environment: str) -> ForkServerProcess:
    return started(main, str(folder), *([str(folder / "scores.db")] if cached else []), **environment)


def finished(program: ForkServerProcess, folder: Path) -> dict[str, Any]:
    program.join()
    assert program.exitcode == 0
    return left_by(program.pid, folder)


def left_by(pid: int | None, folder: Path) -> dict[str, Any]:
    return json.loads((folder / f"{pid}.json").read_text())


def without_seconds(leaderboard: dict[str, Any]) -> dict[str, Any]:
    return {**leaderboard, "rows": [{**row, "seconds": None} for row in leaderboard["rows"]]}


def scored(folder: Path) -> list[int]:
    log = folder / "scored.txt"
    return [int(line) for line in log.read_text().split()] if log.exists() else []


def rows(folder: Path) -> int:
    connection = sqlite3.connect(folder / "scores.db")
    (count,) = connection.execute("SELECT count(DISTINCT candidate) FROM scores").fetchone()
    connection.close()
    return count


def test_a_killed_ranking_goes_on_where_it_was_and_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    plain, killed = tmp_path / "plain", tmp_path / "killed"
    plain.mkdir()
    killed.mkdir()
    uninterrupted = restart(plain, cached=False)
    for moment, last in ({"DIE_BUILDING": "4"}, 3), ({"DIE_SCORING": "7"}, 6):
        program = restart(killed, **moment)
        program.join()
        assert program.exitcode == -signal.SIGKILL
        assert scored(killed) == list(range(1, last + 1))
        assert rows(killed) == last
    program = restart(killed)
    while len(scored(killed)) < 9:  # at whatever moment after that
        assert program.is_alive()
        time.sleep(0.001)
    program.kill()
    program.join()
    in_flight = len(scored(killed)) - rows(killed)
    assert in_flight in (0, 1)
    leaderboard = finished(restart(killed), killed)
    assert len(scored(killed)) == NUM_CANDIDATES + in_flight
    assert set(scored(killed)) == set(range(1, NUM_CANDIDATES + 1))
    once_more = left_by(run_in_a_new_interpreter(main, str(killed), str(killed / "scores.db")), killed)
    assert len(scored(killed)) == NUM_CANDIDATES + in_flight
    assert once_more == leaderboard
    expected = without_seconds(finished(uninterrupted, plain))
    assert without_seconds(leaderboard) == expected
    assert all(row["rank"] for row in expected["rows"])


def test_rankings_into_one_file_at_once_give_the_same_and_score_each_candidate_once(tmp_path: Path) -> None:
    boards = [finished(each, tmp_path) for each in [restart(tmp_path) for _ in range(8)]]
    assert all(without_seconds(board) == without_seconds(boards[0]) for board in boards)
    assert rows(tmp_path) == NUM_CANDIDATES
    assert sorted(scored(tmp_path)) == list(range(1, NUM_CANDIDATES + 1))
