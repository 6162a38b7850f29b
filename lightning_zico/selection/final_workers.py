"""Finals in other processes: several finalists are trained at the same time, each on a copy of the trainer."""

import copy
import io
import multiprocessing
import platform
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import torch
from torch.utils._pytree import tree_map_only
from torch.utils.data import DataLoader

from lightning_zico.bridge.trainers import without_iterator
from lightning_zico.candidates import Candidates, iterate_candidates
from lightning_zico.engine.scope import preserved_rng
from lightning_zico.scoring.executors.base import CallingExecutor
from lightning_zico.scoring.executors.pool import worker_idx
from lightning_zico.scoring.reasons import describe
from lightning_zico.selection.final_cache import FinalsCache
from lightning_zico.selection.finalist import Conditions, Finalist
from lightning_zico.selection.rounds import borrowed

_MOST_BYTES = 2**26  # that one pickler writes, since it keeps what it has pickled


@dataclass(frozen=True)
class FinalWorkers:
    """Train finalists in worker processes; `play` is a `rounds.Play`.

    Args:
        executor: Starts the processes.
        devices: Devices that candidates are scored on, one per worker in turn, if they are of the trainer's kind.
    """

    executor: CallingExecutor
    devices: Sequence[str] = ()

    def play(
        self, conditions: Conditions, schedule: Callable[[int], Iterator[Finalist | None]]
    ) -> Generator[Finalist, None, None]:
        """Train the finalists of a schedule; one whose process fails has the reason as its error.

        Raises:
            TypeError: If the data can no longer be pickled after the ranking has set it up.
        """
        conditions.trainer.callbacks = []  # the trainer is borrowed
        data = _without_state(conditions.data)
        _pickle("After `setup`, the data", data, more=" No finalist was trained; `leaderboard_` has the ranking.")
        train = TrainInWorker(
            conditions._replace(data=data, rewind=_not_here, cache=None),
            conditions.cache,
            tuple(self.devices),
            platform.node(),
        )
        with closing(self.executor.call(train, schedule)) as coming:
            for finalist, outcome in coming:
                if outcome.result is None:
                    finalist.fail(str(outcome.error), outcome.seconds)
                else:
                    finalist.adopt(outcome.result)
                yield finalist


@dataclass(frozen=True)
class TrainInWorker:
    """Train a finalist for a round in a worker process.

    Args:
        conditions: The conditions, without what belongs to the process that holds the finals.
        cache: Stores the trainings; None if nothing does.
        devices: See `FinalWorkers`.
        machine: Name of the machine whose main process has run the data module's ``prepare_data``.
    """

    conditions: Conditions
    cache: FinalsCache | None
    devices: Sequence[str]
    machine: str

    def __call__(self, finalist: Finalist) -> Finalist:
        """Train it, and return it without its builds."""
        self._check_files(finalist)
        # A worker of the pool is a daemon, which may not start workers of a loader; it ends with all that it started.
        multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
        if self.conditions.data.get("datamodule") is not None and platform.node() == self.machine:
            self.conditions.data["datamodule"].prepare_data = _do_nothing
        trainer = self.conditions.trainer
        trainer.strategy._root_device = device_of_worker(trainer.strategy.root_device, self.devices, worker_idx())
        for training in finalist.trainings:
            training.use_own_checkpoint()
        with borrowed(trainer) as rewind, preserved_rng():
            finalist.play(self.conditions._replace(rewind=rewind, cache=self.cache))
        for training in finalist.trainings:
            del training.build
        return finalist

    def _check_files(self, finalist: Finalist) -> None:
        """Check that this machine has the files of the finals.

        Raises:
            FileNotFoundError: If it does not.
        """
        needed = [training.checkpoint.parent for training in finalist.trainings]
        needed += [] if self.cache is None else [Path(self.cache.cache.path).parent]
        missing = [str(path) for path in needed if not path.exists()]
        if missing:
            raise FileNotFoundError(
                f"The machine of this worker cannot reach '{missing[0]}', where finals keep their checkpoints. Set "
                "`TMPDIR`, and put `cache` if there is one, into a folder that all machines share, or train on one "
                "machine."
            )


def device_of_worker(root: torch.device, devices: Sequence[str], worker_idx: int) -> torch.device:
    """Choose the device on which a worker trains.

    Args:
        root: The trainer's device.
        devices: Devices to use in turn, if they are of the same kind.
        worker_idx: Index of the worker.

    Example:
        >>> device_of_worker(torch.device("cuda:0"), ["cuda:0", "cuda:1"], 3)
        device(type='cuda', index=1)
    """
    own = [device for device in map(torch.device, devices) if device.type == root.type]
    return own[worker_idx % len(own)] if own else root


def check_can_be_sent(trainer: Any, data: Mapping[str, Any], candidates: Candidates) -> None:
    """Check that all that finals need can be sent to worker processes, and that the trainer starts none itself.

    Candidates are checked if they are in a list, tuple or dict; other iterables may build them as they yield them.

    Raises:
        ValueError: If the trainer starts processes itself.
        TypeError: If the trainer, the data or a candidate cannot be pickled.
    """
    if trainer.world_size > 1 or trainer.strategy.launcher is not None:
        raise ValueError(
            f"`trainer` trains in processes of its own ({type(trainer.strategy).__name__}), so it cannot be used in "
            'those of `finals_executor`. Pass a `Trainer(devices=1, strategy="auto")`, or leave `finals_executor` out.'
        )
    with borrowed(trainer):
        trainer.callbacks = []
        _pickle("`trainer`", trainer)
        _pickle("The data", _without_state(data))
    if isinstance(candidates, list | tuple | dict):
        file = _Nowhere()
        pickler = cloudpickle.Pickler(file)  # pickles what candidates have in common, such as a class, only once
        for candidate in iterate_candidates(candidates):
            if file.num_bytes > _MOST_BYTES:
                file = _Nowhere()
                pickler = cloudpickle.Pickler(file)
            _pickle(f"Candidate '{candidate.name}'", candidate, pickler=pickler)


def _pickle(what: str, sent: Any, *, pickler: Any = None, more: str = "") -> None:
    """Pickle an object into nothing.

    Raises:
        TypeError: If that is not possible.
    """
    try:
        (pickler or cloudpickle.Pickler(_Nowhere())).dump(sent)
    except Exception as raised:
        raise TypeError(
            f"{what} cannot be pickled, so `finals_executor` cannot send it to other processes: {describe(raised)}. "
            f"Make it picklable, or leave `finals_executor` out.{more}"
        ) from raised


class _Nowhere(io.RawIOBase):
    """A file that keeps nothing, and counts the bytes that are written to it."""

    num_bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self.num_bytes += size
        return size


def _without_state(data: Mapping[str, Any]) -> dict[str, Any]:
    """Copy the arguments of `Trainer.fit` without iterators of loaders, and the trainer that a data module had."""
    found: dict[str, Any] = tree_map_only(DataLoader, without_iterator, dict(data))
    if getattr(found.get("datamodule"), "trainer", None) is not None:
        found["datamodule"] = copy.copy(found["datamodule"])
        found["datamodule"].trainer = None
    return found


def _do_nothing() -> None:
    pass


def _not_here() -> None:
    raise RuntimeError("A worker rewinds its own trainer.")
