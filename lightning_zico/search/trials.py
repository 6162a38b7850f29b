"""Trials in an Optuna storage, which several processes on several machines may work on at once."""

import json
import os
import socket
import sqlite3
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from lightning_zico._imports import imported
from lightning_zico.errors import ZiCoError
from lightning_zico.results import Score, ScoreCard
from lightning_zico.scoring.cache import BUSY_TIMEOUT_S, made_whole

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

    StorageLike: TypeAlias = str | os.PathLike[str] | BaseStorage

# Names of what is kept with a trial, or with the study.
_CLAIM, _CARD, _DISCARDED, _SETTINGS = "claim", "card", "discarded", "settings"

# Who has asked for a trial says within milliseconds which arch it is for; who has not after so long was killed between.
_MOST_SECONDS_UNCLAIMED = 60

_live_runs: set[str] = set()  # of this process


class SettingsError(ZiCoError, ValueError):
    """A study that was begun with other settings, so that its scores are not comparable."""


@dataclass(frozen=True)
class Finished:
    """A trial that is done.

    Args:
        number: Of the trial in its study.
        arch: Its string.
        card: All its scores, without layers and details.
        num_rejected: Archs that were over the budget and were proposed before this one, in its place.
    """

    number: int
    arch: str
    card: ScoreCard
    num_rejected: int


class Trials:
    """The trials of one study, as this process sees them; `update` looks for news.

    A trial is of one arch, and counts once it is claimed: the arch is written to the storage before it is scored, so
    that no other process scores it too, and a process that dies leaves word of what it was at. Its claims are taken
    back by whoever sees, on the same machine, that it is gone. What lies abandoned on another machine stays claimed:
    that arch alone is lost.

    Args:
        storage: None for memory; the path of a file, which becomes an SQLite database; the address of a database
            (``"postgresql://..."``); or a storage object of Optuna, such as a ``JournalStorage``.
        name: Of the study.
        settings: All that scores depend on, in plain values. A study is gone on with only under the same.
        directions: Of the numbers that Optuna is told of a trial, ``"minimize"`` or ``"maximize"``.
        sampler: Of Optuna; None where archs are not proposed by Optuna.

    Attributes:
        finished: Trials that are done, in the order in which they became known.

    Raises:
        SettingsError: If the study was begun with other settings.
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
        optuna = imported_optuna()
        self._optuna: Any = optuna
        self.study: Study = optuna.create_study(
            storage=_storage_of(storage),
            # Draws nothing, and unlike the default does not go through all trials each time.
            sampler=sampler or optuna.samplers.RandomSampler(),
            pruner=optuna.pruners.NopPruner(),
            study_name=name,
            directions=list(directions),
            load_if_exists=True,
        )
        self._check_settings(json.loads(json.dumps(settings)))
        self._run = uuid.uuid4().hex
        self._mine: set[int] = set()
        self._done: set[int] = set()  # of those that are not settled
        self._num_settled = 0  # all trials before this number have ended, and are not looked at again
        self._settled: set[str] = set()  # their archs
        self._open: dict[int, str | None] = {}  # trials that count and come after those, and their archs
        self.finished: list[Finished] = []
        _live_runs.add(self._run)
        self.update()

    @property
    def num_counted(self) -> int:
        """Trials that are done, claimed, or about to be."""
        return len(self._settled) + len(self._open)

    @property
    def num_elsewhere(self) -> int:
        """Trials that other processes are at."""
        return self.num_counted - len(self.finished) - len(self._mine)

    def knows(self, arch: str) -> bool:
        """Tell whether an arch is done or claimed."""
        return arch in self._settled or arch in self._open.values()

    def num_before(self, number: int) -> int:
        """Count the trials that count and come before one that has not ended."""
        return len(self._settled) + sum(other < number for other in self._open)

    def update(self) -> list[Finished]:
        """Look at the storage, and take back the claims of processes that are gone.

        Returns:
            The trials that are done since the last look.
        """
        news = []
        self._open = {}
        for trial in self._unsettled():
            ended = trial.state.is_finished()
            if not ended and trial.number not in self._mine and _is_abandoned(trial):
                self._end(trial.number, "its process is gone")
                continue
            if ended and _counts(trial) and trial.number not in self._done:
                self._done.add(trial.number)
                news.append(_finished_of(trial))
            if ended and trial.number == self._num_settled:
                self._num_settled += 1
                self._done.discard(trial.number)
                if _counts(trial):
                    self._settled.add(trial.user_attrs[_CLAIM]["arch"])
            elif _counts(trial):
                self._open[trial.number] = trial.user_attrs.get(_CLAIM, {}).get("arch")
        self.finished += news
        return news

    def ask(self) -> "Trial":
        """Begin a trial; it is not another's."""
        trial = self.study.ask()
        self._mine.add(trial.number)
        return trial

    def claim(self, trial: "Trial", arch: str, num_rejected: int, most: int) -> bool:
        """Write down which arch a trial is for, unless another trial is for it, or there are enough trials.

        Args:
            trial: From `ask`.
            arch: Its string.
            num_rejected: See `Finished`.
            most: Trials that there may be.

        Returns:
            Whether this process is to score it. If not, the trial is discarded.
        """
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "run": self._run}
        trial.set_user_attr(_CLAIM, {"arch": arch, "owner": owner, "num_rejected": num_rejected})
        others = [other for other in self._unsettled() if other.number != trial.number and _counts(other)]
        archs = [other.user_attrs[_CLAIM]["arch"] for other in others if _CLAIM in other.user_attrs]
        # Two that claim one arch at the same time both see the other, and both let go of it.
        if arch in self._settled or arch in archs:
            self.discard(trial, "another trial is for the same arch")
        elif len(self._settled) + sum(other.number < trial.number for other in others) >= most:
            self.discard(trial, "there are enough trials")
        else:
            return True
        return False

    def discard(self, trial: "Trial", reason: str) -> None:
        """End a trial that does not count."""
        self._end(trial.number, reason)
        self._mine.discard(trial.number)

    def finish(self, number: int, card: ScoreCard, values: Sequence[float | None]) -> None:
        """End a trial with what came of it.

        Args:
            number: Of a trial that was claimed.
            card: Kept without layers and details.
            values: What Optuna is told; one that is missing makes it a failed trial to Optuna.
        """
        kept = {"error": card.error, "untrainable": card.untrainable, "seconds": card.seconds}
        scores = {name: [score.value, score.error] for name, score in card.scores.items()}
        self._storage.set_trial_user_attr(self._id(number), _CARD, {"scores": scores, **kept})
        given = [value for value in values if value is not None]
        complete = len(given) == len(values) and card.error is None and card.untrainable is None
        states = self._optuna.trial.TrialState
        self.study.tell(number, given if complete else None, states.COMPLETE if complete else states.FAIL)
        self._mine.discard(number)

    def close(self) -> None:
        """Take back this process's own claims that came to nothing."""
        for number in sorted(self._mine):
            self._end(number, "the search broke off")
        self._mine.clear()
        _live_runs.discard(self._run)

    def _unsettled(self) -> "list[FrozenTrial]":
        return self.study.get_trials(deepcopy=False)[self._num_settled :]

    @property
    def _storage(self) -> "BaseStorage":
        return self.study._storage

    def _id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self.study._study_id, number)

    def _end(self, number: int, reason: str) -> None:
        try:
            self._storage.set_trial_user_attr(self._id(number), _DISCARDED, reason)
        except self._optuna.exceptions.UpdateFinishedTrialError:
            return  # another process ended it a moment ago
        self.study.tell(number, state=self._optuna.trial.TrialState.PRUNED, skip_if_finished=True)

    def _check_settings(self, settings: dict[str, Any]) -> None:
        begun = self.study.user_attrs.get(_SETTINGS)
        if begun is None:
            self.study.set_user_attr(_SETTINGS, settings)
            return
        others = [key for key in {**begun, **settings} if begun.get(key) != settings.get(key)]
        if others:
            was = ", ".join(f"{key} {begun.get(key)!r} (now {settings.get(key)!r})" for key in others)
            raise SettingsError(
                f"Study '{self.study.study_name}' was begun with other settings: {was}. Their scores cannot be "
                "compared. Give another `name`, or none."
            )


def imported_optuna() -> Any:
    """Import Optuna.

    Raises:
        ModuleNotFoundError: If it is not installed.
    """
    return imported("optuna", "`ZeroShotSearch` keeps its trials with Optuna", "search")


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Let Optuna say nothing below a warning while the body runs."""
    optuna = imported_optuna()
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(verbosity, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def _storage_of(storage: "StorageLike | None") -> "BaseStorage":
    optuna = imported_optuna()
    if storage is None:
        return optuna.storages.InMemoryStorage()
    if isinstance(storage, str) and "://" in storage:
        return optuna.storages.RDBStorage(storage)
    if not isinstance(storage, str | os.PathLike):
        return storage
    path = Path(storage).absolute()
    arguments = {"connect_args": {"timeout": BUSY_TIMEOUT_S}}
    if not path.exists():
        _make_database(path, arguments)
    return optuna.storages.RDBStorage(f"sqlite:///{path}", engine_kwargs=arguments)


def _make_database(path: Path, arguments: Mapping[str, Any]) -> None:
    """Make the file and its tables, which two processes that begin at once would both make in one file."""
    with made_whole(path) as fresh:
        made = imported_optuna().storages.RDBStorage(f"sqlite:///{fresh}", engine_kwargs=dict(arguments))
        made.engine.dispose()
        with closing(sqlite3.connect(fresh)) as connection:
            # Readers then do not wait for writers. On a network file system, use a database server or a journal.
            connection.execute("PRAGMA journal_mode = WAL")


def _counts(trial: "FrozenTrial") -> bool:
    """Tell whether a trial is one of the search: neither discarded, nor ended by someone else, as in a dashboard."""
    return _DISCARDED not in trial.user_attrs and (_CARD in trial.user_attrs or not trial.state.is_finished())


def _is_abandoned(trial: "FrozenTrial") -> bool:
    claim = trial.user_attrs.get(_CLAIM)
    if claim is None:
        begun = trial.datetime_start
        return begun is not None and (datetime.now() - begun).total_seconds() > _MOST_SECONDS_UNCLAIMED
    owner = claim["owner"]
    if owner["host"] != socket.gethostname():
        return False
    if owner["pid"] == os.getpid():  # it may be that of a process before this one
        return owner["run"] not in _live_runs
    return not _is_alive(owner["pid"])


def _is_alive(pid: int) -> bool:
    if os.name != "posix":  # elsewhere, signal 0 would end the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return True


def _finished_of(trial: "FrozenTrial") -> Finished:
    claim, kept = trial.user_attrs[_CLAIM], trial.user_attrs[_CARD]
    scores = {name: Score(name, value, error) for name, (value, error) in kept["scores"].items()}
    card = ScoreCard(claim["arch"], scores, kept["error"], kept["seconds"], kept["untrainable"])
    return Finished(trial.number, claim["arch"], card, claim["num_rejected"])
