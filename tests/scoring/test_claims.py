"""Processes that share a cache claim what they score, and a claim outlives no run."""

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from pathlib import Path

import pytest

from lightning_zico import Candidate, ZeroShotSelector, owners
from lightning_zico.bridge import Reading
from lightning_zico.errors import CacheError
from lightning_zico.proxies import resolve_proxies
from lightning_zico.scoring import SerialExecutor, SQLiteCache, cache
from lightning_zico.scoring.cached_scorer import CachedScorer, score_jobs, with_cache
from lightning_zico.scoring.executors.base import Job
from lightning_zico.scoring.scorer import Scorer
from tests.modules import Classifier, make_batches
from tests.processes import started


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "scores.db"


def is_mine(kept: SQLiteCache, candidate: str = "candidate") -> bool:
    with kept.claim(candidate) as keep:
        return keep is not None


def test_a_claim_holds_until_it_is_given_back_with_what_was_scored(path: Path) -> None:
    one, other = SQLiteCache(path), SQLiteCache(path)
    with one.claim("candidate") as keep:
        assert keep is not None
        keep({"proxy": "1"})
        assert not is_mine(other)
        assert is_mine(other, "another")
        assert other.is_claimed("candidate")
        assert other.read("candidate") == {}
    assert not other.is_claimed("candidate")
    assert other.read("candidate") == {"proxy": "1"}
    assert is_mine(other)


def test_a_claim_is_given_back_where_scoring_breaks_off(path: Path) -> None:
    kept = SQLiteCache(path)
    with pytest.raises(KeyboardInterrupt), kept.claim("candidate"):
        raise KeyboardInterrupt
    assert is_mine(kept)


def claim_and_sleep(path: str) -> None:
    with SQLiteCache(path).claim("candidate"):
        Path(f"{path}.claimed").touch()
        time.sleep(600)


def test_the_claim_of_a_process_that_was_killed_is_anybodys(path: Path) -> None:
    process = started(claim_and_sleep, str(path))
    while not Path(f"{path}.claimed").exists():
        time.sleep(0.01)
    kept = SQLiteCache(path)
    assert not is_mine(kept)
    process.kill()
    process.join()
    assert not kept.is_claimed("candidate")
    assert is_mine(kept)


@pytest.mark.parametrize("later_s", [cache.LEASE_S + 1, -cache.LEASE_S - 1])
def test_a_claim_from_elsewhere_holds_as_long_as_its_lease(
    later_s: float, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = SQLiteCache(path)
    with monkeypatch.context() as patch:
        patch.setattr(owners, "_place", lambda: owners.Place("another machine", None, None, None))
        held = kept.claim("candidate")
        held.__enter__()
    assert not is_mine(kept)
    now = time.time()
    monkeypatch.setattr(cache.time, "time", lambda: now + later_s)
    assert is_mine(kept)
    held.__exit__(None, None, None)


def wait_until(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_claim_is_renewed_while_its_owner_scores(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def since() -> float:
        with closing(sqlite3.connect(path)) as connection:
            return float(connection.execute("SELECT since FROM claims").fetchone()[0])

    monkeypatch.setattr(cache, "LEASE_S", 2)
    kept = SQLiteCache(path)
    with kept.claim("candidate"):
        begun = since()
        wait_until(lambda: since() > begun + cache.LEASE_S)
        assert not is_mine(SQLiteCache(path))
    assert is_mine(kept)


def test_a_claim_is_not_renewed_for_ever(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "LEASE_S", 0.5)
    monkeypatch.setattr(cache, "LONGEST_CLAIM_S", 0)
    with SQLiteCache(path).claim("candidate"):
        wait_until(lambda: is_mine(SQLiteCache(path)))


def test_a_file_that_a_candidate_deletes_ends_the_ranking_and_loses_no_score(path: Path) -> None:
    def deleting() -> Classifier:
        for file in list(path.parent.iterdir()):
            file.unlink()
        return Classifier()

    selector = ZeroShotSelector(proxies="params", cache=path, enable_progress_bar=False)
    with pytest.raises(CacheError, match="was deleted or moved while it was in use"):
        selector.rank({"first": Classifier, "deleting": deleting, "last": Classifier}, make_batches())
    assert [row["name"] for row in selector.leaderboard_] == ["first"]


def test_a_file_without_claims_is_read_and_then_has_them(path: Path) -> None:
    SQLiteCache(path).write("candidate", {"proxy": "1"})
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE claims")
    kept = SQLiteCache(path)
    assert kept.read("candidate") == {"proxy": "1"}
    assert not kept.is_claimed("candidate")
    with kept.claim("candidate"):
        assert SQLiteCache(path).is_claimed("candidate")


@pytest.mark.parametrize("owner", ["", "{}", "7", json.dumps({"place": 3})])
def test_a_claim_that_cannot_be_read_does_not_hold(owner: str, path: Path) -> None:
    kept = SQLiteCache(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("INSERT INTO claims VALUES ('candidate', ?, ?)", (owner, time.time()))
    assert is_mine(kept)


def jobs(*widths: int) -> Iterator[Job]:
    for width in widths:
        yield Job(Candidate(f"{width}", lambda width=width: Classifier(width)))


class Noting(SQLiteCache):
    """Notes which candidates are claimed."""

    noted: list[str]

    def claim(self, candidate: str) -> AbstractContextManager[cache.Store | None]:
        self.noted.append(candidate)
        return super().claim(candidate)


def scorer_in(kept: SQLiteCache) -> CachedScorer:
    scorer = with_cache(Scorer(Reading.of(make_batches()), resolve_proxies(["params"])), kept)
    assert isinstance(scorer, CachedScorer)
    return scorer


@pytest.mark.parametrize("is_scored", [True, False])
def test_what_another_process_scores_comes_last_and_is_not_scored_again(is_scored: bool, path: Path) -> None:
    kept = Noting(path)
    kept.noted = []
    scorer = scorer_in(kept)
    expected = {job.candidate.name: scorer.score(job.candidate)["params"].value for job in jobs(1, 2, 3)}
    key, entries = kept.noted[0], kept.read(kept.noted[0])
    path.unlink()
    kept = Noting(path)
    kept.noted = []
    scorer = scorer_in(kept)
    order = []
    with closing(score_jobs(SerialExecutor(), [scorer], jobs(1, 2, 3))) as coming:
        claim = SQLiteCache(path).claim(key)
        keep = claim.__enter__()
        assert keep is not None
        for job, card in coming:
            order.append(job.candidate.name)
            assert card["params"].value == expected[job.candidate.name]
            if job.candidate.name == "3":
                keep(entries if is_scored else {})
                claim.__exit__(None, None, None)
    assert order == ["2", "3", "1"]
    assert kept.noted.count(key) == (1 if is_scored else 2)


ENDLESS = "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) SELECT x FROM r"


@pytest.mark.parametrize(
    "statements",
    [
        [f"CREATE TRIGGER t BEFORE INSERT ON scores BEGIN INSERT INTO claims {ENDLESS}; END"],
        ["DROP TABLE scores", f"CREATE VIEW scores AS {ENDLESS}"],
        ["DROP TABLE claims", f"CREATE VIEW claims AS {ENDLESS}"],
        ["DROP TABLE scores"],
        ["DROP TABLE scores", "CREATE TABLE scores (candidate, proxy, entry, hash AS (hex(zeroblob(100000000))))"],
        ["CREATE TABLE notes (text)"],
    ],
)
def test_a_file_of_ours_with_other_tables_than_ours_is_refused_as_it_is(statements: list[str], path: Path) -> None:
    SQLiteCache(path).write("candidate", {"proxy": "1"})
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)
    before = path.read_bytes()
    with pytest.raises(CacheError, match="It was not changed"):
        SQLiteCache(path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["scores.db"]
