"""Jobs on a Ray cluster."""

import itertools
import logging
import os
import pickle
import re
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from lightning_zico._imports import import_optional
from lightning_zico.errors import CacheError
from lightning_zico.results import ScoreCard
from lightning_zico.scoring.arguments import positive
from lightning_zico.scoring.cache import ScoreCache
from lightning_zico.scoring.cached_scorer import CachedScorer
from lightning_zico.scoring.executors import pool
from lightning_zico.scoring.executors.base import Job
from lightning_zico.scoring.executors.messages import (
    Outcome,
    Parcel,
    answer,
    loading_error,
    pack,
    read_answer,
    report_loading_error,
)
from lightning_zico.scoring.executors.processes import AsHere, JobRunner
from lightning_zico.scoring.reasons import describe
from lightning_zico.scoring.scorer import Scorer

T = TypeVar("T")
R = TypeVar("R")

# How often to restart a task whose worker process or node is lost. On a cluster, this happens without the candidate's
# fault more often than on one machine.
_MAX_RETRIES = 2
# Number of queued tasks in addition to the running ones, so that no core waits for the next task to be sent.
_NUM_QUEUED = 2


class RayExecutor:
    """Run jobs as tasks of a Ray cluster, and yield each when it finishes; lost tasks are restarted.

    Batches and proxies are put into the object store once. Candidates are sent as factories, and instances with their
    weights. All nodes need this package and everything that the candidates import. An open connection is used and left
    open. A cache stays on this machine, whatever node a task runs on.

    Args:
        address: Address of the cluster, as for `ray.init`. None for the open connection; if there is none, for a
            cluster on this machine only, which ends with the ranking.
        num_cpus: Number of cores for a candidate, which is also the number of threads that it computes with.
        num_gpus: Number of GPUs for a candidate; with a fraction, candidates share them.
        timeout_s: Time limit per candidate, in seconds, including building. A candidate that takes longer is ended and
            becomes a row with that reason. Code that never releases the GIL cannot be ended.

    Raises:
        ModuleNotFoundError: If Ray is not installed.
        ValueError: If ``num_cpus`` or ``timeout_s`` is not positive, or ``num_gpus`` negative.
    """

    def __init__(
        self, address: str | None = None, num_cpus: float = 1, num_gpus: float = 0, timeout_s: float | None = None
    ) -> None:
        if not num_cpus > 0 or not num_gpus >= 0:
            raise ValueError(
                f"Invalid num_cpus={num_cpus!r}, num_gpus={num_gpus!r}: expected a positive number of cores and at "
                "least 0 GPUs per candidate."
            )
        self.timeout_s: float | None = positive("timeout_s", timeout_s)
        _import_ray()
        self.address = address
        self.num_cpus = num_cpus
        self.num_gpus = num_gpus

    def run(self, scorers: Sequence[Scorer], jobs: Iterable[Job]) -> Generator[tuple[Job, ScoreCard], None, None]:
        """Score each job's candidate with its scorer, and yield each card when it is finished.

        Raises:
            RuntimeError: If the cluster has too few cores or GPUs for one candidate, or a node cannot load the scorers,
                or takes longer than `pool.LOADING_S`.
            CacheError: If a scorer's cache fails.
        """
        with self._connected() as ray:
            scoring = JobRunner([scorer.in_memory() for scorer in _with_caches_here(ray, scorers)])
            with closing(self._call(ray, scoring, lambda _: jobs)) as coming:
                for job, outcome in coming:
                    yield job, scoring.card(job, outcome)

    def call(
        self, function: Callable[[T], R], items: Callable[[int], Iterable[T | None]]
    ) -> Generator[tuple[T, Outcome[R]], None, None]:
        """Call a function on items; see `CallingExecutor.call`.

        Raises:
            TypeError: If the function cannot be sent.
            RuntimeError: If the cluster has too few cores or GPUs, or a node cannot load the function, or takes longer
                than `pool.LOADING_S`.
        """
        with self._connected() as ray:
            yield from self._call(ray, function, items)

    @contextmanager
    def _connected(self) -> Iterator[Any]:
        """Use the open connection, or one that is closed at the end."""
        ray = _import_ray()
        is_own = not ray.is_initialized()
        if is_own:
            ray.init(address=self.address, log_to_driver=False, logging_level=logging.WARNING)
        try:
            yield ray
        finally:
            if is_own:
                ray.shutdown()

    def _call(
        self, ray: Any, function: Callable[[T], R], items: Callable[[int], Iterable[T | None]]
    ) -> Generator[tuple[T, Outcome[R]], None, None]:
        pending: dict[Any, tuple[T, _TimeLimit, float]] = {}
        try:
            shared = ray.put(pack(AsHere.of(function, num_threads=max(1, int(self.num_cpus)))))
            resources = {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus}
            answer_task = ray.remote(**resources, max_retries=_MAX_RETRIES)(_answer_task)
            late = _actor_here(ray, _Late).remote()
            parcels = (None if item is None else Parcel(item) for item in items(self._num_at_once(ray)))
            task_idxs = itertools.count()
            while True:
                while len(pending) < self._num_at_once(ray) + _NUM_QUEUED and (parcel := next(parcels, None)):
                    if parcel.unsent is not None:
                        yield parcel.item, parcel.unsent
                        continue
                    limit = _TimeLimit(pool.LOADING_S, self.timeout_s, late, next(task_idxs))
                    ref = answer_task.remote(shared, parcel.message, limit)
                    pending[ref] = parcel.item, limit, time.monotonic()
                if not pending:
                    return
                (ref,), _ = ray.wait(list(pending), num_returns=1)
                item, limit, started = pending.pop(ref)
                yield item, _outcome(ray, ref, limit, started)
        finally:
            for ref in pending:
                ray.cancel(ref, force=True)

    def _num_at_once(self, ray: Any) -> int:
        """Return how many tasks can run at the same time; nodes may come and go."""
        resources = ray.cluster_resources()
        num_running = resources.get("CPU", 0) // self.num_cpus
        if self.num_gpus:
            num_running = min(num_running, resources.get("GPU", 0) // self.num_gpus)
        if num_running < 1:
            raise RuntimeError(
                f"Each candidate needs num_cpus={self.num_cpus} and num_gpus={self.num_gpus}, but the cluster has "
                f"{resources.get('CPU', 0):g} cores and {resources.get('GPU', 0):g} GPUs. Add a node, or pass smaller "
                "numbers."
            )
        return int(num_running)


class _Late:
    """Record what tasks ran out of time with, in an actor on the driver's machine."""

    def __init__(self) -> None:
        self._answers: dict[int, bytes] = {}

    def add(self, task_idx: int, answer: bytes) -> None:
        self._answers[task_idx] = answer

    def get(self, task_idx: int) -> bytes | None:
        return self._answers.get(task_idx)


@dataclass(frozen=True)
class _TimeLimit:
    """End the process of a task that takes too long. Ray restarts the task, which then checks whether it was too slow.

    Args:
        loading_s: Time limit for loading what all tasks need, in seconds.
        seconds: Time limit of a task itself; None for none.
        late: Actor of a `_Late`.
        task_idx: Index of the task with this limit.
    """

    loading_s: float
    seconds: float | None
    late: Any
    task_idx: int

    def answer(self) -> bytes | None:
        """Return the answer of the task if it took too long, else None."""
        late_answer: bytes | None = _import_ray().get(self.late.get.remote(self.task_idx))
        return late_answer

    def for_loading(self) -> AbstractContextManager[None]:
        """End the process if the body takes longer than `loading_s`."""
        return self._end_after(self.loading_s, pickle.dumps(f"it took more than {self.loading_s:g} s"))

    def for_scoring(self) -> AbstractContextManager[None]:
        """End the process if the body takes longer than `seconds`."""
        if self.seconds is None:
            return nullcontext()
        outcome = Outcome[Any](None, f"took more than {self.seconds:g} s", seconds=self.seconds)
        return self._end_after(self.seconds, pickle.dumps(outcome))

    @contextmanager
    def _end_after(self, seconds: float, late_answer: bytes) -> Iterator[None]:
        timer = threading.Timer(seconds, self._end, [late_answer])
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _end(self, late_answer: bytes) -> None:
        _import_ray().get(self.late.add.remote(self.task_idx, late_answer))
        os._exit(1)


class _Keeper:
    """A cache, in an actor on the machine where its file is."""

    def __init__(self, cache: ScoreCache) -> None:
        self._cache = cache

    def read(self, candidate: str) -> dict[str, str]:
        return self._cache.read(candidate)

    def write(self, candidate: str, entries: Mapping[str, str]) -> None:
        self._cache.write(candidate, entries)


@dataclass(frozen=True)
class _CacheElsewhere:
    """A cache that calls the actor that holds it, from any node."""

    keeper: Any

    def read(self, candidate: str) -> dict[str, str]:
        entries: dict[str, str] = self._fetch(self.keeper.read.remote(candidate))
        return entries

    def write(self, candidate: str, entries: Mapping[str, str]) -> None:
        self._fetch(self.keeper.write.remote(candidate, dict(entries)))

    def _fetch(self, ref: Any) -> Any:
        ray = _import_ray()
        try:
            return ray.get(ref)
        except ray.exceptions.RayTaskError as raised:
            raise raised.cause from None
        except ray.exceptions.RayError as raised:
            raise CacheError(f"The cache on the driver's machine cannot be reached: {_plain(raised)}.") from None


def _actor_here(ray: Any, kind: type) -> Any:
    """Return a remote class whose actors run on this machine."""
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    return ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)(kind)


def _with_caches_here(ray: Any, scorers: Sequence[Scorer]) -> list[Scorer]:
    actor = _actor_here(ray, _Keeper)
    caches: dict[int, _CacheElsewhere] = {}
    for scorer in scorers:
        if isinstance(scorer, CachedScorer) and id(scorer.cache) not in caches:
            caches[id(scorer.cache)] = _CacheElsewhere(actor.remote(scorer.cache))
    return [
        replace(scorer, cache=caches[id(scorer.cache)]) if isinstance(scorer, CachedScorer) else scorer
        for scorer in scorers
    ]


def _answer_task(scoring: bytes, message: bytes, limit: _TimeLimit) -> bytes:
    if late_answer := limit.answer():
        return late_answer
    try:
        with limit.for_loading():
            function = pickle.loads(scoring)
    except Exception as raised:
        return report_loading_error(raised)
    with limit.for_scoring():
        return answer(function, message)


def _outcome(ray: Any, ref: Any, limit: _TimeLimit, started: float) -> Outcome[Any]:
    try:
        return _read(ray.get(ref))
    except ray.exceptions.RayTaskError as raised:
        if isinstance(raised.cause, Exception):  # not from a candidate, since `answer` catches those
            raise loading_error(_plain(raised.cause)) from None
        reason = _plain(raised.cause)
    except ray.exceptions.WorkerCrashedError:
        if late_answer := limit.answer():
            return _read(late_answer)
        reason = f"the process died, in {1 + _MAX_RETRIES} attempts"
    except ray.exceptions.RayError as raised:
        reason = _plain(raised)
    return Outcome(None, reason, seconds=time.monotonic() - started)


def _read(message: bytes) -> Outcome[Any]:
    outcome = read_answer(message)
    assert outcome is not None  # a task never reports that it is ready for the next item
    return outcome


def _plain(error: BaseException) -> str:
    """Describe an exception in one line, without the colours of Ray's messages."""
    return re.sub(r"\x1b\[[0-9;]*m", "", describe(error))


def _import_ray() -> Any:
    return import_optional(
        "ray", "`RayExecutor` needs Ray", "ray", otherwise="`ProcessExecutor` needs no extra package."
    )
