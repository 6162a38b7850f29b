"""Caches store scores, so that none is computed twice."""

import hashlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

from lightning_zico.errors import CacheError
from lightning_zico.folders import remove_leftovers, temporary_folder
from lightning_zico.owners import Owner, begin_run, end_run

_APPLICATION_ID = int.from_bytes(b"ZiCo", "big")  # distinguishes our files from those of other programs
_FORMAT = 1  # format of the table; increase it when the table changes
_MAGIC = b"SQLite format 3\0"
# https://www.sqlite.org/fileformat.html, "The Database Header"
_HEADER_BYTES, _FORMAT_AT, _APPLICATION_ID_AT = 100, slice(60, 64), slice(68, 72)
_PAGE_BYTES_AT, _NUM_PAGES_AT = slice(16, 18), slice(28, 32)
_SCORES = (
    "CREATE TABLE scores (candidate TEXT, proxy TEXT, entry TEXT NOT NULL, hash TEXT NOT NULL, "
    "PRIMARY KEY (candidate, proxy)) WITHOUT ROWID"
)
# Files of earlier versions do not have this table; the first claim creates it.
_CLAIMS = "CREATE TABLE claims (candidate TEXT PRIMARY KEY, owner TEXT NOT NULL, since REAL NOT NULL) WITHOUT ROWID"
_SCHEMA = {"scores": ("table", _SCORES), "claims": ("table", _CLAIMS)}
# A write takes milliseconds; a longer wait is for a process that hangs.
BUSY_TIMEOUT_S = 60
# A claim not renewed for this long no longer holds: its owner hangs, or was killed where that cannot be seen from here.
LEASE_S = 1800
# A claim is not renewed for longer: nobody waits for ever for an owner that hangs.
LONGEST_CLAIM_S = 24 * 3600

Store: TypeAlias = Callable[[Mapping[str, str]], None]


@runtime_checkable
class ScoreCache(Protocol):
    """Stores texts, each under the fingerprints of a candidate and of a proxy."""

    def read(self, candidate: str) -> dict[str, str]:
        """Return the entries of a candidate.

        Returns:
            The entries by fingerprint of the proxy; empty if there are none.
        """
        ...

    def write(self, candidate: str, entries: Mapping[str, str]) -> None:
        """Store entries of a candidate: all of them or, if this process dies, none.

        Args:
            candidate: Fingerprint of the candidate.
            entries: Entries by fingerprint of the proxy; they replace earlier ones.
        """
        ...


@runtime_checkable
class ClaimingCache(ScoreCache, Protocol):
    """A cache that several processes share, and in which they record what they are about to score."""

    def claim(self, candidate: str) -> AbstractContextManager[Store | None]:
        """Claim a candidate while the body runs, unless another live run has claimed it.

        Yields:
            A function that takes entries, which are written when the claim is released; None if another run has it.
        """
        ...

    def is_claimed(self, candidate: str) -> bool:
        """Whether a live run is scoring a candidate."""
        ...


class MemoryCache:
    """Store scores in the memory of this process; worker processes fill their own copies.

    Example:
        >>> cache = MemoryCache()
        >>> cache.write("candidate", {"zico": "12.5"})
        >>> cache.read("candidate")
        {'zico': '12.5'}
    """

    def __init__(self) -> None:
        self._entries: dict[str, dict[str, str]] = {}

    def read(self, candidate: str) -> dict[str, str]:
        """Return the entries of a candidate."""
        return dict(self._entries.get(candidate, {}))

    def write(self, candidate: str, entries: Mapping[str, str]) -> None:
        """Store entries of a candidate."""
        self._entries.setdefault(candidate, {}).update(entries)


class SQLiteCache:
    """Store scores in a file that several processes may read and write at the same time.

    The file is an SQLite database in WAL mode. While it is in use, or after a kill, a ``-wal`` and a ``-shm`` file next
    to it belong to it. Processes on one machine can share it; WAL does not work over network file systems. Each
    operation opens the file again, so you may pass the object to threads and processes. This is cheap compared to
    scoring: a read took 0.3 ms, and a write 20 ms on a slow disk, most of it waiting until the data is safe.

    Before a process scores a candidate, it claims it in the file (`owners.Owner`), so that others do not score it too.
    A claim is renewed while its process scores, for a day at most. The claim of a process that is gone no longer holds,
    nor does one that was not renewed for half an hour.

    Args:
        path: Path of the file. A missing file is created, completely or not at all; its folder must exist.

    Raises:
        CacheError: If the file at ``path`` is not a cache of scores, or is damaged. It is left as it is.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if os.fspath(path) == ":memory:" or "\0" in os.fspath(path):
            raise CacheError(
                f"Invalid path {os.fspath(path)!r}: expected the path of a file, such as 'scores.db'. For a cache in "
                "memory, pass `MemoryCache()`."
            )
        self.path: Path = Path(path).absolute()
        log = Path(f"{self.path}-wal")
        has_log = log.exists()  # checked first: another process may be creating both, the file before its log
        if not os.path.lexists(self.path):
            if has_log:
                raise CacheError(
                    f"'{self.path}' is missing, but '{log.name}' with its last writes is there. Restore the missing "
                    "file, or delete this one as well."
                )
            self._make()
        header = self._check_header()
        self._check_size(header, log)
        self._check_schema()
        # A reader cannot move what the log holds into a file that may be damaged.
        with self._open("ro" if has_log else "rw") as connection:
            found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise CacheError(self._describe_damage(found))

    def read(self, candidate: str) -> dict[str, str]:
        """Return the entries of a candidate.

        Raises:
            CacheError: If the file cannot be read, or an entry was changed after it was written.
        """
        with self._open("rw") as connection:
            rows = connection.execute("SELECT proxy, entry, hash FROM scores WHERE candidate = ?", (candidate,))
            entries = {proxy: (entry, written) for proxy, entry, written in rows}
        for proxy, (entry, written) in entries.items():
            if _hash(candidate, proxy, entry) != written:
                raise CacheError(self._describe_damage("an entry was changed after it was written"))
        return {proxy: entry for proxy, (entry, _) in entries.items()}

    def write(self, candidate: str, entries: Mapping[str, str]) -> None:
        """Store entries of a candidate, in one short transaction.

        Raises:
            CacheError: If the file cannot be written.
        """
        with self._open("rw") as connection, _transaction(connection):
            _insert(connection, candidate, entries)

    @contextmanager
    def claim(self, candidate: str) -> Iterator[Store | None]:
        """Claim a candidate while the body runs, unless another live run has claimed it.

        Yields:
            A function that takes entries, which are written in the transaction that releases the claim; None if another
            run has it.

        Raises:
            CacheError: If the file cannot be read or written.
        """
        owner = begin_run()
        entries: dict[str, str] = {}
        try:
            # The connection stays open, because closing it waits until the data is safe.
            with self._open("rw") as connection:
                if not _claim(connection, candidate, owner):
                    yield None
                    return
                try:
                    with self._renewed(candidate, owner):
                        yield entries.update
                finally:
                    with _transaction(connection):
                        _insert(connection, candidate, entries)
                        claim = (candidate, owner.to_json())
                        connection.execute("DELETE FROM claims WHERE candidate = ? AND owner = ?", claim)
        finally:
            end_run(owner)

    @contextmanager
    def _renewed(self, candidate: str, owner: Owner) -> Iterator[None]:
        """Renew a claim while the body runs, in another thread."""
        ended = threading.Event()
        thread = threading.Thread(target=self._renew, args=(candidate, owner, ended), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(BUSY_TIMEOUT_S)

    def _renew(self, candidate: str, owner: Owner, ended: threading.Event) -> None:
        until = time.monotonic() + LONGEST_CLAIM_S
        while not ended.wait(LEASE_S / 3) and time.monotonic() < until:
            # The thread that scores reports a file that cannot be used.
            with suppress(CacheError), self._open("rw") as connection:
                renewed = time.time(), candidate, owner.to_json()
                connection.execute("UPDATE claims SET since = ? WHERE candidate = ? AND owner = ?", renewed)

    def is_claimed(self, candidate: str) -> bool:
        """Whether a live run is scoring a candidate.

        Raises:
            CacheError: If the file cannot be read.
        """
        with self._open("rw") as connection:
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
                f"'{self.path}' cannot be created: {error}. Pass a path in a folder that exists, is writable and is on "
                "a local disk."
            ) from error

    def _check_header(self) -> bytes:
        """Return the first bytes of the file if they are those of a cache, before SQLite opens it.

        Raises:
            CacheError: If they are not.
        """
        try:
            if self.path.exists() and not self.path.is_file():  # opening a pipe would block
                raise OSError("it is not a file")
            with self.path.open("rb") as file:
                header = file.read(_HEADER_BYTES)
        except OSError as error:
            raise CacheError(f"'{self.path}' cannot be read: {error}. Pass the path of a file.") from error
        if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
            reason = "is not an SQLite database, or is truncated"
        elif int.from_bytes(header[_APPLICATION_ID_AT], "big") != _APPLICATION_ID:
            reason = "is the database of another program"
        elif (written := int.from_bytes(header[_FORMAT_AT], "big")) != _FORMAT:
            reason = f"has format {written}, but this version of lightning_zico reads format {_FORMAT}"
        else:
            return header
        raise CacheError(f"'{self.path}' {reason}. It was not changed. Pass another path, or delete the file.")

    def _check_size(self, header: bytes, log: Path) -> None:
        """Check that the file is not truncated; SQLite would read the missing part as zeros."""
        page_bytes = int.from_bytes(header[_PAGE_BYTES_AT], "big")
        if page_bytes == 1:  # stands for 65536
            page_bytes = 65536
        needed = page_bytes * int.from_bytes(header[_NUM_PAGES_AT], "big")
        # The log is checked first: if it is gone, everything that the header counts has been moved to the file.
        if not log.exists() and (there := self.path.stat().st_size) < needed:
            raise CacheError(self._describe_damage(f"it is truncated to {there} of its {needed} bytes"))

    def _check_schema(self) -> None:
        """Check that the tables are those of this package: a view or a trigger could run anything."""
        try:
            found = objects_in(self.path)
        except sqlite3.Error as error:
            raise CacheError(self._describe_damage(str(error))) from error
        strange = sorted(name for name in found if found[name] != _SCHEMA.get(name))
        if strange or "scores" not in found:
            kind, name = (found[strange[0]][0], strange[0]) if strange else ("missing table", "scores")
            raise CacheError(
                f"'{self.path}' is not a cache of scores of lightning_zico: it has a {kind} '{name}'. It was not "
                "changed. Pass another path, or delete the file."
            )

    def _describe_damage(self, found: str) -> str:
        reason = " ".join(found.split())
        return f"'{self.path}' is damaged: {reason}. It was not changed. Pass another path, or delete the file."

    @contextmanager
    def _open(self, mode: str) -> Iterator[sqlite3.Connection]:
        try:
            with closing(_connect(self.path, f"mode={mode}")) as connection:
                connection.execute(
                    "PRAGMA synchronous = NORMAL"
                )  # a power failure may lose the last writes, but nothing else
                yield connection
        except sqlite3.Error as error:
            # Python raises this very class for SQLITE_CORRUPT and SQLITE_NOTADB, and for nothing else.
            if type(error) is sqlite3.DatabaseError:
                raise CacheError(self._describe_damage(str(error))) from error
            if not self.path.exists():
                raise CacheError(
                    f"'{self.path}' was deleted or moved while it was in use, perhaps by a candidate. Restore it, or "
                    "run again to score into a new file."
                ) from error
            raise CacheError(
                f"'{self.path}' cannot be used: {error}. Check that the file exists, that it and its folder are "
                "writable, and that the disk has space; then run again. Stored scores are not computed again."
            ) from error


def objects_in(path: Path) -> dict[str, tuple[str, str | None]]:
    """List the objects in an SQLite database, without running any of its code or creating a file next to it.

    Returns:
        Kind (table, index, view or trigger) and SQL, by name.

    Raises:
        sqlite3.Error: If the file is not a database, or is damaged.
    """
    # The log of a database may hold its tables. If there is none, SQLite must not create one.
    how = "mode=ro" if Path(f"{path}-wal").exists() else "mode=ro&immutable=1"
    with closing(_connect(path, how)) as connection:
        return _objects(connection)


def _connect(path: Path, how: str) -> sqlite3.Connection:
    address = f"{path.as_uri()}?{how}"
    connection = sqlite3.connect(address, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None)
    connection.execute("PRAGMA trusted_schema = OFF")
    return connection


def _objects(connection: sqlite3.Connection) -> dict[str, tuple[str, str | None]]:
    # Names with this prefix are SQLite's own, such as the statistics of ANALYZE.
    rows = connection.execute("SELECT name, type, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\'")
    return {name: (kind, sql) for name, kind, sql in rows}


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Run the body in one transaction; if it fails, closing the connection rolls it back."""
    connection.execute("BEGIN IMMEDIATE")
    yield
    connection.execute("COMMIT")


def _claim(connection: sqlite3.Connection, candidate: str, owner: Owner) -> bool:
    """Claim a candidate for an owner, unless another has claimed it; return whether it was claimed."""
    with _transaction(connection):
        if "claims" not in _objects(connection):
            connection.execute(_CLAIMS)
        if _is_claimed(connection, candidate):
            return False
        row = (candidate, owner.to_json(), time.time())
        connection.execute("INSERT OR REPLACE INTO claims VALUES (?, ?, ?)", row)
        return True


def _is_claimed(connection: sqlite3.Connection, candidate: str) -> bool:
    row = connection.execute("SELECT owner, since FROM claims WHERE candidate = ?", (candidate,)).fetchone()
    try:
        return (
            row is not None
            and abs(time.time() - row[1]) < LEASE_S  # `abs`, since the clock may have been set back
            and Owner.from_json(row[0]).lives() is not False
        )
    except (TypeError, ValueError):  # written by hand, or by a later version
        return False


def _insert(connection: sqlite3.Connection, candidate: str, entries: Mapping[str, str]) -> None:
    rows = [(candidate, proxy, entry, _hash(candidate, proxy, entry)) for proxy, entry in entries.items()]
    connection.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?)", rows)


@contextmanager
def made_whole(path: Path) -> Iterator[Path]:
    """Create a file under another name in its folder and link it into place, so that a kill leaves no partial file.

    If two processes begin at the same time, one is faster, and both then use its file.

    Yields:
        The path at which to create the file.
    """
    remove_leftovers(path.parent)
    with temporary_folder(path.parent) as folder:
        fresh = Path(folder, "fresh")
        yield fresh
        with suppress(FileExistsError):
            os.link(fresh, path)


CacheLike: TypeAlias = str | os.PathLike[str] | ScoreCache


def check_cache(cache: CacheLike | None) -> None:
    """Validate ``cache``.

    Raises:
        TypeError: If it is neither a path, nor a `ScoreCache`, nor None.
    """
    if not (cache is None or isinstance(cache, str | os.PathLike | ScoreCache)) or isinstance(cache, type):
        raise TypeError(
            f"Invalid cache={cache!r}: expected the path of a file, such as 'scores.db', or a `ScoreCache`, such as "
            "`MemoryCache()`."
        )


def open_cache(cache: CacheLike) -> ScoreCache:
    """Return the cache in the file at a path; a `ScoreCache` is returned as it is.

    Raises:
        CacheError: If the file is not a cache of scores, or is damaged.
    """
    return SQLiteCache(cache) if isinstance(cache, str | os.PathLike) else cache


def _hash(*texts: str) -> str:
    # SQLite detects damaged pages, but not a changed digit.
    return hashlib.blake2b("\0".join(texts).encode(), digest_size=16).hexdigest()
