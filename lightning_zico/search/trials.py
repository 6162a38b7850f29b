"""Trials in an Optuna storage, which several processes on several machines may work on at once."""

import json
import os
import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar
from urllib.parse import unquote, urlsplit

from lightning_zico._imports import import_optional
from lightning_zico.errors import ZiCoError
from lightning_zico.owners import Owner, begin_run, end_run
from lightning_zico.results import Score, ScoreCard
from lightning_zico.results.saturated import saturation_of
from lightning_zico.scoring.cache import BUSY_TIMEOUT_S, made_whole, objects_in
from lightning_zico.scoring.cached_scorer import is_lasting

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage, RDBStorage
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

    StorageLike: TypeAlias = str | os.PathLike[str] | BaseStorage

A = TypeVar("A")

# Keys of the attributes that are stored with a trial, or with the study.
_CLAIM, _CARD, _DISCARDED, _SETTINGS = "claim", "card", "discarded", "settings"
# Tables that identify a database of Optuna.
_OPTUNAS = frozenset({"studies", "trials", "version_info"})


class SettingsError(ZiCoError, ValueError):
    """The study was begun with other settings, so that its scores are not comparable."""


class StorageError(ZiCoError, OSError):
    """A file or a database cannot hold trials: it does not exist, cannot be written, or is something else."""


@dataclass(frozen=True)
class Finished:
    """A trial that is done.

    Args:
        number: Number of the trial in its study.
        arch: String of the arch.
        card: All its scores, without layers, and of the details only those that say that a score is at its maximum.
        num_rejected: Number of archs over the budget that were proposed for this trial before this arch.
    """

    number: int
    arch: str
    card: ScoreCard
    num_rejected: int


class Trials:
    """The trials of one study, as this process sees them; `update` looks for news.

    A trial is for one arch, and counts once it is claimed: the arch and its owner are written to the storage before it
    is scored, so that no other process scores it as well, and the storage shows what a process that died was scoring.
    Any process on the same machine that sees that the owner is gone (`owners.Owner.lives`) takes back its claims. A
    claim that was abandoned on another machine, or in another container, remains: only that arch is lost. Trials that
    were begun or ended by other means, as in a dashboard, do not count.

    Failures that may pass, such as a timeout, count in the run that met them. A later run does not count them, so that
    their archs may be claimed again, unless it sees that the earlier run is still going on.

    Args:
        storage: None for memory; the path of a file, which becomes an SQLite database; the address of a database
            (``"postgresql://..."``); or a storage object of Optuna, such as a ``JournalStorage``.
        name: Name of the study.
        settings: Everything that scores depend on, in plain values. A study is resumed only with the same settings.
        directions: Directions of the numbers that Optuna receives for a trial, ``"minimize"`` or ``"maximize"``.
        sampler: Sampler of Optuna; None if archs are not proposed by Optuna.

    Attributes:
        study: The study of Optuna.
        owner: This process, as its claims name it.

    Raises:
        SettingsError: If the study was begun with other settings.
        StorageError: If the study is not one of a search.
        ModuleNotFoundError: If Optuna is not installed.
    """

    def __init__(
        self,
        storage: "StorageLike | None",
        name: str,
        settings: Mapping[str, Any],
        directions: Sequence[str],
        sampler: "BaseSampler | None" = None,
    ) -> None:
        optuna = import_optuna()
        self._optuna: Any = optuna
        self.study: Study = optuna.create_study(
            storage=_storage_of(storage),
            # It draws nothing and, unlike the default, does not go through all trials each time.
            sampler=sampler or optuna.samplers.RandomSampler(),
            pruner=optuna.pruners.NopPruner(),
            study_name=name,
            directions=list(directions),
            load_if_exists=True,
        )
        self._check_settings(json.loads(json.dumps(settings)))
        self._mine: dict[int, str | None] = {}  # trials of this process that are not done, and their archs
        self._done: set[int] = set()  # finished trials among those that are not settled
        self._num_settled = 0  # all trials before this number have ended, and are not read again
        self._settled: set[str] = set()  # their archs
        self._open: dict[int, str] = {}  # trials that count and come after those, and their archs
        self._finished: dict[str, Finished] = {}
        self._let_go = {trial.number for trial in self._list_unsettled() if _may_pass(trial)}
        self.owner: Owner = begin_run()
        self.update()

    @property
    def finished(self) -> list[Finished]:
        """Trials that are done, one per arch."""
        return list(self._finished.values())

    @property
    def num_finished(self) -> int:
        """Number of trials that are done, in constant time."""
        return len(self._finished)

    @property
    def num_counted(self) -> int:
        """Number of trials that are done or claimed."""
        return len(self._settled) + len(self._open)

    @property
    def num_elsewhere(self) -> int:
        """Number of trials that other processes are scoring."""
        return len(self._open.keys() - self._mine.keys() - self._done)

    def knows(self, arch: str) -> bool:
        """Whether an arch is done or claimed."""
        # A trial of this process is still being scored, even if another process ended it.
        return arch in self._settled or arch in self._open.values() or arch in self._mine.values()

    def update(self) -> list[Finished]:
        """Look at the storage, and take back the claims of processes that are gone.

        Returns:
            The trials that are done since the last look.
        """
        news = []
        self._open = {}
        for trial in self._list_unsettled():
            ended = trial.state.is_finished()
            if not ended and trial.number not in self._mine and _lives(trial) is False:
                self.discard(trial.number, "its process is gone")
                continue
            if ended and self._counts(trial) and trial.number not in self._done:
                self._done.add(trial.number)
                news.append(_read_finished(trial))
            if ended and trial.number == self._num_settled:
                self._num_settled += 1
                self._done.discard(trial.number)
                if self._counts(trial):
                    self._settled.add(trial.user_attrs[_CLAIM]["arch"])
            elif self._counts(trial):
                self._open[trial.number] = trial.user_attrs[_CLAIM]["arch"]
        # If another process has claimed an arch again that failed here, its result replaces this one.
        self._finished |= {each.arch: each for each in news}
        return news

    def ask(self, suggest: "Callable[[Trial], A]") -> tuple[int, A] | None:
        """Begin a trial, and let Optuna's sampler propose an arch for it.

        Args:
            suggest: Makes the choices, see `SearchSpace.suggest`.

        Returns:
            Number of the trial and its arch; None if it was ended elsewhere meanwhile.
        """
        trial = self.study.ask()
        self._mine[trial.number] = None
        try:
            trial.set_user_attr(_CLAIM, self._claim_of(None))
            return trial.number, suggest(trial)
        except self._error_if_ended:
            del self._mine[trial.number]
            return None

    def claim(self, arch: str, num_rejected: int, most: int, number: int | None = None) -> int | None:
        """Store which arch a trial is for, unless another trial is for the same arch, or there are enough trials.

        Args:
            arch: String of the arch.
            num_rejected: See `Finished`.
            most: Largest number of trials.
            number: Number from `ask`. None to begin the trial: it then appears in the storage together with its claim,
                so that a kill never leaves half of it.

        Returns:
            Number of the trial that this process shall score; None if it shall not, and the trial is discarded.
        """
        claim = self._claim_of(arch, num_rejected)
        was_asked = number is not None
        if number is None:
            number = self._begin(claim)
        else:
            try:
                self._storage.set_trial_user_attr(self._id(number), _CLAIM, claim)
            except self._error_if_ended:
                del self._mine[number]
                return None
        self._mine[number] = arch
        # If two trials were begun with their claims, the later one sees the earlier one. If two were made by `ask` and
        # are claimed at the same time, each sees the other, and both give way.
        others = [
            other
            for other in self._list_unsettled()
            if self._counts(other) and (other.number != number if was_asked else other.number < number)
        ]
        if arch in self._settled or any(arch == other.user_attrs[_CLAIM]["arch"] for other in others):
            self.discard(number, "another trial is for the same arch")
        elif len(self._settled) + len(others) >= most:
            self.discard(number, "there are enough trials")
        else:
            return number
        return None

    def discard(self, number: int, reason: str) -> None:
        """End a trial that does not count."""
        self._end(number, _DISCARDED, reason, self._optuna.trial.TrialState.PRUNED)

    def finish(self, number: int, card: ScoreCard, values: Sequence[float | None]) -> None:
        """End a trial with its result, unless it was ended elsewhere meanwhile, so that it does not count.

        Args:
            number: Number of a trial that was claimed.
            card: Score card of the trial, stored as `Finished` describes.
            values: Numbers for Optuna; if one is missing, Optuna records the trial as failed.
        """
        saturated = {name: found for name, score in card.scores.items() if (found := saturation_of(score))}
        rest = {"error": card.error, "untrainable": card.untrainable, "seconds": card.seconds}
        scores = {name: [score.value, score.error] for name, score in card.scores.items()}
        given = [value for value in values if value is not None]
        complete = len(given) == len(values) and card.error is None and card.untrainable is None
        states = self._optuna.trial.TrialState
        state = states.COMPLETE if complete else states.FAIL
        self._end(number, _CARD, {"scores": scores, "saturated": saturated, **rest}, state, given if complete else None)

    def close(self) -> None:
        """Take back this process's own claims that have no result."""
        for number in sorted(self._mine):
            self.discard(number, "the search broke off")
        end_run(self.owner)

    def _counts(self, trial: "FrozenTrial") -> bool:
        stored = trial.user_attrs
        if _DISCARDED in stored or trial.number in self._let_go or stored.get(_CLAIM, {}).get("arch") is None:
            return False
        return _CARD in stored or not trial.state.is_finished()

    def _list_unsettled(self) -> "list[FrozenTrial]":
        return self.study.get_trials(deepcopy=False)[self._num_settled :]

    @property
    def _storage(self) -> "BaseStorage":
        return self.study._storage

    def _id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self.study._study_id, number)

    @property
    def _error_if_ended(self) -> type[Exception]:
        error: type[Exception] = self._optuna.exceptions.UpdateFinishedTrialError
        return error

    def _claim_of(self, arch: str | None, num_rejected: int = 0) -> dict[str, Any]:
        return {"arch": arch, "owner": self.owner.to_dict(), "num_rejected": num_rejected}

    def _begin(self, claim: Mapping[str, Any]) -> int:
        state = self._optuna.trial.TrialState.RUNNING
        begun = self._optuna.trial.create_trial(state=state, user_attrs={_CLAIM: claim})
        trial_id = self._storage.create_new_trial(self.study._study_id, template_trial=begun)
        return self._storage.get_trial_number_from_id(trial_id)

    def _end(self, number: int, key: str, content: Any, state: Any, values: Sequence[float] | None = None) -> None:
        with suppress(self._error_if_ended):
            self._storage.set_trial_user_attr(self._id(number), key, content)
            self.study.tell(number, values, state, skip_if_finished=True)
        self._mine.pop(number, None)

    def _check_settings(self, settings: dict[str, Any]) -> None:
        begun = self.study.user_attrs.get(_SETTINGS)
        if begun is None:
            if self.study.user_attrs or self.study.get_trials(deepcopy=False):
                raise StorageError(
                    f"Study '{self.study.study_name}' in `storage` was not begun by a search of this package, and is "
                    "left as it is. Pass another `name`, or omit it."
                )
            self.study.set_user_attr(_SETTINGS, settings)
            return
        others = [key for key in {**begun, **settings} if begun.get(key) != settings.get(key)]
        if others:
            was = ", ".join(f"{key} {begun.get(key)!r} (now {settings.get(key)!r})" for key in others)
            raise SettingsError(
                f"Study '{self.study.study_name}' was begun with other settings: {was}. Scores under other settings "
                "are not comparable. Pass another `name`, or omit it."
            )


def import_optuna() -> Any:
    """Import Optuna.

    Raises:
        ModuleNotFoundError: If it is not installed.
    """
    return import_optional("optuna", "`ZeroShotSearch` stores its trials with Optuna", "search")


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Silence Optuna's messages below warnings while the body runs."""
    optuna = import_optuna()
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(verbosity, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def _storage_of(storage: "StorageLike | None") -> "BaseStorage":
    optuna = import_optuna()
    if storage is None:
        return optuna.storages.InMemoryStorage()
    if not isinstance(storage, str | os.PathLike | optuna.storages.BaseStorage):
        raise TypeError(f"Invalid storage={storage!r}: expected None, a path, an address or a storage of Optuna.")
    if isinstance(storage, optuna.storages.BaseStorage):
        return storage
    try:
        if isinstance(storage, str) and "://" in storage:
            _check_tables(_tables_at(storage))
            return optuna.storages.RDBStorage(storage)
        path = Path(storage).absolute()
        if not os.path.lexists(path):
            _make_database(path)
        _check_file(path)
        return _in_file(path)
    except Exception as error:  # of the database, its driver or the system
        reason = str(error).splitlines()[0]
        raise StorageError(
            f"Invalid storage={str(storage)!r}: it cannot be opened: {reason}. Pass the path of a file in an existing "
            "folder, either new or written by a search, or the address of a database. Existing data was not changed."
        ) from error


def _in_file(path: Path) -> "RDBStorage":
    from sqlalchemy.engine import URL

    # As a URI, in which SQLite reads `?`, `#` and `%` of the path literally.
    address = URL.create("sqlite", database=path.as_uri(), query={"uri": "true"}).render_as_string()
    arguments = {"connect_args": {"timeout": BUSY_TIMEOUT_S}}
    made: RDBStorage = import_optuna().storages.RDBStorage(address, engine_kwargs=arguments)
    return made


def _make_database(path: Path) -> None:
    """Make the file and its tables as a whole, because two processes may begin at the same time."""
    with made_whole(path) as fresh:
        _in_file(fresh).engine.dispose()
        with closing(sqlite3.connect(fresh)) as connection:
            # So readers do not wait for writers. On a network file system, use a database server or a journal.
            connection.execute("PRAGMA journal_mode = WAL")


def _check_file(path: Path) -> None:
    """Check that a file is a database of Optuna before anything is written to it.

    Raises:
        ValueError: If it is something else.
        OSError: If it cannot be read.
        sqlite3.Error: If it is damaged.
    """
    if not path.is_file():  # opening a pipe would block
        raise ValueError("it is not a file")
    if not path.stat().st_size:
        raise ValueError("it is an empty file")
    objects = objects_in(path)
    if not objects:
        raise ValueError("it is a database without tables")
    # Views and triggers may do anything, and Optuna makes none.
    strange = [f"a {kind} '{name}'" for name, (kind, _) in objects.items() if kind in ("view", "trigger")]
    if strange:
        raise ValueError(f"it has {strange[0]}, which Optuna does not make")
    _check_tables(objects)


def _tables_at(address: str) -> set[str]:
    """List the tables of the database at an address; a file that does not exist yet has none."""
    import sqlalchemy

    url = sqlalchemy.make_url(address)
    if url.get_backend_name() == "sqlite":
        name = url.database or ":memory:"
        path = Path(unquote(urlsplit(name).path) if "uri" in url.query else name).absolute()
        if name != ":memory:" and os.path.lexists(path):
            _check_file(path)
        return set()
    engine = sqlalchemy.create_engine(url)
    try:
        return set(sqlalchemy.inspect(engine).get_table_names())
    finally:
        engine.dispose()


def _check_tables(tables: Collection[str]) -> None:
    """Check that a database with tables has those of Optuna.

    Raises:
        ValueError: If it has not.
    """
    if tables and not _OPTUNAS.issubset(tables):
        raise ValueError(f"it is a database of another program, with {', '.join(sorted(tables)[:3])}")


def _lives(trial: "FrozenTrial") -> bool | None:
    """Whether the run that began a trial goes on; None if this process cannot see it, or it is not a search."""
    claim = trial.user_attrs.get(_CLAIM)
    return None if claim is None else Owner.from_dict(claim["owner"]).lives()


def _may_pass(trial: "FrozenTrial") -> bool:
    """Whether a trial failed for a reason that may be gone, in a run that is not known to go on."""
    if not trial.state.is_finished() or _CARD not in trial.user_attrs:
        return False
    card = _read_finished(trial).card
    return not is_lasting([card.error, *(score.error for score in card.scores.values())]) and not _lives(trial)


def _read_finished(trial: "FrozenTrial") -> Finished:
    claim, stored = trial.user_attrs[_CLAIM], trial.user_attrs[_CARD]
    saturated = stored.get("saturated", {})  # absent in studies of earlier versions
    scores = {
        name: Score(name, value, error, details=saturated.get(name, {}))
        for name, (value, error) in stored["scores"].items()
    }
    card = ScoreCard(claim["arch"], scores, stored["error"], stored["seconds"], stored["untrainable"])
    return Finished(trial.number, claim["arch"], card, claim["num_rejected"])
