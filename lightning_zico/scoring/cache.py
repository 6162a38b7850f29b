"""Caches: where scores are kept, so that none is computed twice."""

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

from lightning_zico.errors import CacheError
from lightning_zico.folders import remove_leftovers, temporary_folder
from lightning_zico.owners import Owner, begin_run, end_run

_APPLICATION_ID = int.from_bytes(b"ZiCo", "big")  # tells our files from those of other programs
_FORMAT = 1  # of the table; to be counted up when it changes
_MAGIC = b"SQLite format 3\0"
# https://www.sqlite.org/fileformat.html, "The Database Header"
_HEADER_BYTES, _FORMAT_AT, _APPLICATION_ID_AT = 100, slice(60, 64), slice(68, 72)
_PAGE_BYTES_AT, _NUM_PAGES_AT = slice(16, 18), slice(28, 32)
_SCORES = (
    "CREATE TABLE scores (candidate TEXT, proxy TEXT, entry TEXT NOT NULL, hash TEXT NOT NULL, "
    "PRIMARY KEY (candidate, proxy)) WITHOUT ROWID"
)
# Files of earlier versions lack this table; it is made with the first claim.
_CLAIMS = "CREATE TABLE claims (candidate TEXT PRIMARY KEY, owner TEXT NOT NULL, since REAL NOT NULL) WITHOUT ROWID"
_SCHEMA = {"scores": ("table", _SCORES), "claims": ("table", _CLAIMS)}
# A write takes milliseconds; a longer wait is for a process that hangs.
BUSY_TIMEOUT_S = 60
# A claim that is older no longer holds: its owner hangs, or was killed where that cannot be seen from here.
LEASE_S = 1800

Keep: TypeAlias = Callable[[Mapping[str, str]], None]


@runtime_checkable
class ScoreCache(Protocol):
    """Keeps texts, each under the fingerprints of a candidate and of a proxy."""

    def read(self, candidate: str) -> dict[str, str]:
        """Give what is kept of a candidate.

        Returns:
            By fingerprint of the proxy; empty if nothing is kept.
        """
        ...

    def write(self, candidate: str, entries: Mapping[str, str]) -> None:
        """Keep entries of a candidate: all of them or, if this process dies, none.

        Args:
            candidate: Its fingerprint.
            entries: By fingerprint of the proxy; what was kept under it is replaced.
        """
        ...


@runtime_checkable
class ClaimingCache(ScoreCache, Protocol):
    """A cache that several processes share, and in which they write down what they are about to score."""

    def claim(self, candidate: str) -> AbstractContextManager[Keep | None]:
        """Claim a candidate while the body runs, unless a run that goes on has claimed it.

        Yields:
            A function that takes entries, which are written when the claim is given back; None if another has it.
        """
        ...

    def is_claimed(self, candidate: str) -> bool:
        """Whether a run that goes on is scoring a candidate."""
        ...


class MemoryCache:
    """Keeps scores as long as it lives, in this process: workers that score in others fill copies of their own.

    Example:
        >>> cache = MemoryCache()
        >>> cache.write("candidate", {"zico": "12.5"})
        >>> cache.read("candidate")
        {'zico': '12.5'}
    """

    def __init__(self) -> None:
        self._entries: dict[str, dict[str, str]] = {}

    def read(self, candidate: str) -> dict[str, str]:
        """Give what is kept of a candidate."""
        return dict(self._entries.get(candidate, {}))

    def write(self, candidate: str, entries: Mapping[str, str]) -> None:
        """Keep entries of a candidate."""
        self._entries.setdefault(candidate, {}).update(entries)


class SQLiteCache:
    """Keeps scores in one file, which several processes may read and write at once.

    It is an SQLite database in WAL mode; beside it lie, while it is used or after a kill, a ``-wal`` and a ``-shm``
    file that belong to it. Processes of one machine can share it; WAL does not work over network file systems. Each
    operation opens the file anew, so that an object may be handed to threads and processes. That costs little beside
    scoring: a read was measured at 0.3 ms, a write at 20 ms on a slow disk, most of it waiting until the data is safe.

    What a process is about to score it claims in the file first (`owners.Owner`), so that others leave it alone. The
    claim of a process that is gone, or one that is older than half an hour, no longer holds.

    Args:
        path: Of the file; made if it is not there, whole or not at all. Its folder must be there.

    Raises:
        CacheError: If what is at ``path`` is no cache of scores, or a damaged one. It is left as it is.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if os.fspath(path) == ":memory:" or "\0" in os.fspath(path):
            raise CacheError(
                f"{os.fspath(path)!r} is no path of a file. Give one, such as 'scores.db'; for a cache in memory, give "
                "`MemoryCache()`."
            )
        self.path = Path(path).absolute()
        log = Path(f"{self.path}-wal")
        has_log = log.exists()  # asked first: another process may be making both, the file before its log
        if not os.path.lexists(self.path):
            if has_log:
                raise CacheError(
                    f"'{self.path}' is not there, but '{log.name}' is, the last writes of a file that was there. Bring "
                    "that file back, or delete this one too."
                )
            self._make()
        header = self._checked_header()
        self._check_size(header, log)
        self._check_schema()
        # A reader cannot move what the log holds into a file that may be damaged.
        with self._opened("ro" if has_log else "rw") as connection:
            found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise CacheError(self._damaged(found))

    def read(self, candidate: str) -> dict[str, str]:
        """Give what is kept of a candidate.

        Raises:
            CacheError: If the file cannot be read, or an entry is not what was written.
        """
        with self._opened("rw") as connection:
            rows = connection.execute("SELECT proxy, entry, hash FROM scores WHERE candidate = ?", (candidate,))
            entries = {proxy: (entry, written) for proxy, entry, written in rows}
        for proxy, (entry, written) in entries.items():
            if _hash(candidate, proxy, entry) != written:
                raise CacheError(self._damaged("an entry is not what was written"))
        return {proxy: entry for proxy, (entry, _) in entries.items()}

    def write(self, candidate: str, entries: Mapping[str, str]) -> None:
        """Keep entries of a candidate, in one short transaction.

        Raises:
            CacheError: If the file cannot be written.
        """
        with self._opened("rw") as connection, _transaction(connection):
            _insert(connection, candidate, entries)

    @contextmanager
    def claim(self, candidate: str) -> Iterator[Keep | None]:
        """Claim a candidate while the body runs, unless a run that goes on has claimed it.

        Yields:
            A function that takes entries, which are written in one transaction with giving the claim back; None if
            another has it.

        Raises:
            CacheError: If the file cannot be read or written.
        """
        owner = begin_run()
        kept: dict[str, str] = {}
        try:
            # Left open meanwhile: it is closing that waits until the data is safe.
            with self._opened("rw") as connection:
                if not _claimed_by(connection, candidate, owner):
                    yield None
                    return
                try:
                    yield kept.update
                finally:
                    with _transaction(connection):
                        _insert(connection, candidate, kept)
                        claim = (candidate, json.dumps(owner.to_dict()))
                        connection.execute("DELETE FROM claims WHERE candidate = ? AND owner = ?", claim)
        finally:
            end_run(owner)

    def is_claimed(self, candidate: str) -> bool:
        """Whether a run that goes on is scoring a candidate.

        Raises:
            CacheError: If the file cannot be read.
        """
        with self._opened("rw") as connection:
            return "claims" in _objects(connection) and _is_claimed(connection, candidate)

    def _make(self) -> None:
        try:
            with (
                made_whole(self.path) as fresh,
                closing(sqlite3.connect(fresh, isolation_level=None)) as connection,
            ):
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {_FORMAT}")
                for _, statement in _SCHEMA.values():
                    connection.execute(statement)
        except (OSError, sqlite3.Error) as error:
            raise CacheError(
                f"'{self.path}' cannot be made: {error}. Give a path in a folder that exists, can be written to and "
                "is on a local disk."
            ) from error

    def _checked_header(self) -> bytes:
        """Refuse what is not ours by its first bytes, which SQLite never sees if they are another's."""
        try:
            if self.path.exists() and not self.path.is_file():  # to open a pipe would be to wait
                raise OSError("it is no file")
            with self.path.open("rb") as file:
                header = file.read(_HEADER_BYTES)
        except OSError as error:
            raise CacheError(f"'{self.path}' cannot be read: {error}. Give the path of a file.") from error
        if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
            reason = "is no SQLite database, or one that was cut short"
        elif int.from_bytes(header[_APPLICATION_ID_AT], "big") != _APPLICATION_ID:
            reason = "is the database of another program"
        elif (written := int.from_bytes(header[_FORMAT_AT], "big")) != _FORMAT:
            reason = f"has format {written}, and this version of lightning_zico reads {_FORMAT}"
        else:
            return header
        raise CacheError(f"'{self.path}' {reason}. It is left as it is; give another path, or delete it.")

    def _check_size(self, header: bytes, log: Path) -> None:
        """Refuse a file that lacks its end, which SQLite reads as zeros."""
        page_bytes = int.from_bytes(header[_PAGE_BYTES_AT], "big")
        if page_bytes == 1:  # stands for 65536
            page_bytes = 65536
        needed = page_bytes * int.from_bytes(header[_NUM_PAGES_AT], "big")
        # Asked in this order: where there is no log any more, all that the header speaks of has been moved to the file.
        if not log.exists() and (there := self.path.stat().st_size) < needed:
            raise CacheError(self._damaged(f"it was cut short, {there} of its {needed} bytes are there"))

    def _check_schema(self) -> None:
        """Refuse tables that are not as this package makes them: a view or a trigger runs what its author likes."""
        try:
            found = objects_in(self.path)
        except sqlite3.Error as error:
            raise CacheError(self._damaged(str(error))) from error
        strange = sorted(name for name in found if found[name] != _SCHEMA.get(name))
        if strange or "scores" not in found:
            kind, name = (found[strange[0]][0], strange[0]) if strange else ("missing table", "scores")
            raise CacheError(
                f"'{self.path}' is no cache of scores as lightning_zico makes them: it has a {kind} '{name}'. It is "
                "left as it is; give another path, or delete it."
            )

    def _damaged(self, found: str) -> str:
        reason = " ".join(found.split())
        return f"'{self.path}' is damaged: {reason}. It is left as it is; give another path, or delete it."

    @contextmanager
    def _opened(self, mode: str) -> Iterator[sqlite3.Connection]:
        try:
            with closing(_connected(self.path, f"mode={mode}")) as connection:
                connection.execute("PRAGMA synchronous = NORMAL")  # a loss of power may cost the last writes, no more
                yield connection
        except sqlite3.Error as error:
            if (
                type(error) is sqlite3.DatabaseError
            ):  # so Python raises SQLITE_CORRUPT and SQLITE_NOTADB, and nothing else
                raise CacheError(self._damaged(str(error))) from error
            raise CacheError(
                f"'{self.path}' cannot be used: {error}. See that the file is there, that you may write to it and its "
                "folder, and that the disk has room; then run again, and what was kept is not scored anew."
            ) from error


def objects_in(path: Path) -> dict[str, tuple[str, str | None]]:
    """List what an SQLite database holds, without running any of it and without leaving a file beside it.

    Returns:
        Kind (table, index, view or trigger) and SQL, by name.

    Raises:
        sqlite3.Error: If it is no database, or a damaged one.
    """
    # The log of a database may hold its tables. Without one, SQLite is told to make none.
    how = "mode=ro" if Path(f"{path}-wal").exists() else "mode=ro&immutable=1"
    with closing(_connected(path, how)) as connection:
        return _objects(connection)


def _connected(path: Path, how: str) -> sqlite3.Connection:
    address = f"{path.as_uri()}?{how}"
    connection = sqlite3.connect(address, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None)
    connection.execute("PRAGMA trusted_schema = OFF")
    return connection


def _objects(connection: sqlite3.Connection) -> dict[str, tuple[str, str | None]]:
    # Names with this beginning are SQLite's own, such as the statistics of ANALYZE.
    rows = connection.execute("SELECT name, type, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\'")
    return {name: (kind, sql) for name, kind, sql in rows}


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Make one transaction of the body; should it fail, closing the connection takes it back."""
    connection.execute("BEGIN IMMEDIATE")
    yield
    connection.execute("COMMIT")


def _claimed_by(connection: sqlite3.Connection, candidate: str, owner: Owner) -> bool:
    """Write down that a candidate is an owner's, unless it is another's."""
    with _transaction(connection):
        if "claims" not in _objects(connection):
            connection.execute(_CLAIMS)
        if _is_claimed(connection, candidate):
            return False
        row = (candidate, json.dumps(owner.to_dict()), time.time())
        connection.execute("INSERT OR REPLACE INTO claims VALUES (?, ?, ?)", row)
        return True


def _is_claimed(connection: sqlite3.Connection, candidate: str) -> bool:
    row = connection.execute("SELECT owner, since FROM claims WHERE candidate = ?", (candidate,)).fetchone()
    try:
        return (
            row is not None
            and abs(time.time() - row[1]) < LEASE_S  # also where the clock was set back
            and Owner.from_dict(json.loads(row[0])).lives() is not False
        )
    except (KeyError, TypeError, ValueError):  # written by hand, or by a version to come
        return False


def _insert(connection: sqlite3.Connection, candidate: str, entries: Mapping[str, str]) -> None:
    rows = [(candidate, proxy, entry, _hash(candidate, proxy, entry)) for proxy, entry in entries.items()]
    connection.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?)", rows)


@contextmanager
def made_whole(path: Path) -> Iterator[Path]:
    """Make a file elsewhere in its folder and link it to its place, so that a kill leaves no half of it.

    Of two processes that begin at once, one is faster, and both find the same file then.

    Yields:
        The path to make it at.
    """
    remove_leftovers(path.parent)
    with temporary_folder(path.parent) as folder:
        fresh = Path(folder, "fresh")
        yield fresh
        with suppress(FileExistsError):
            os.link(fresh, path)


CacheLike: TypeAlias = str | os.PathLike[str] | ScoreCache


def check_cache(cache: CacheLike | None) -> None:
    """Refuse what can be no cache.

    Raises:
        TypeError: If it is neither a path, nor a `ScoreCache`, nor None.
    """
    if not (cache is None or isinstance(cache, str | os.PathLike | ScoreCache)) or isinstance(cache, type):
        raise TypeError(
            f"`cache` is {cache!r}; needed is the path of a file, such as 'scores.db', or a `ScoreCache`, such as "
            "`MemoryCache()`."
        )


def opened(cache: CacheLike) -> ScoreCache:
    """Turn a path into the cache in that file.

    Raises:
        CacheError: If there is a file that is no cache of scores.
    """
    return SQLiteCache(cache) if isinstance(cache, str | os.PathLike) else cache


def _hash(*texts: str) -> str:
    # SQLite finds pages that are out of order, not a digit that has changed.
    return hashlib.blake2b("\0".join(texts).encode(), digest_size=16).hexdigest()
