"""Jobs on a Ray cluster."""

import logging
import pickle
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lightning_zico.results import ScoreCard
from lightning_zico.scoring.cache import ScoreCache
from lightning_zico.scoring.cached import CachedWork
from lightning_zico.scoring.executors import Scoring
from lightning_zico.scoring.pool import Outcome, Parcel, answer, packed
from lightning_zico.scoring.scorer import described
from lightning_zico.scoring.work import Job, Work

# How often a task is started again whose worker process or node is lost. On a cluster that happens through no fault of
# the candidate more often than on one machine.
_MAX_RETRIES = 2
# Tasks beyond those that run at once, so that no core waits for the next one to be sent.
_NUM_QUEUED = 2


class RayExecutor:
    """Runs jobs as tasks of a Ray cluster, which come back as they finish; lost ones are started again.

    Batches and proxies are put into the object store once; candidates travel as factories, instances with their
    weights. All nodes need this package and what the candidates import. A connection that is open is used and left
    open. A cache stays on this machine, whichever node a task asks it from. A candidate that hangs is not ended: Ray
    knows no time limit of a task.

    Args:
        address: Of the cluster, as `ray.init` takes it; None for an open connection, or else for a cluster on this
            machine alone, which ends with the ranking.
        num_cpus: Cores for a candidate, which is also the number of threads that it computes with.
        num_gpus: Likewise GPUs; a fraction shares them.

    Raises:
        ModuleNotFoundError: If Ray is not installed.
        ValueError: If ``num_cpus`` is not positive, or ``num_gpus`` negative.
    """

    def __init__(self, address: str | None = None, num_cpus: float = 1, num_gpus: float = 0) -> None:
        if not num_cpus > 0 or not num_gpus >= 0:
            raise ValueError(
                f"`num_cpus` is {num_cpus!r} and `num_gpus` {num_gpus!r}; needed are a positive number of cores and at "
                "least 0 GPUs for a candidate."
            )
        _imported_ray()
        self.address = address
        self.num_cpus = num_cpus
        self.num_gpus = num_gpus

    def run(self, works: Sequence[Work], jobs: Iterable[Job]) -> Generator[tuple[Job, ScoreCard], None, None]:
        """Score each job's candidate by its work, and give each as it is finished.

        Raises:
            RuntimeError: If the cluster has too few cores or GPUs for one candidate.
        """
        ray = _imported_ray()
        is_own = not ray.is_initialized()
        if is_own:
            ray.init(address=self.address, log_to_driver=False, logging_level=logging.WARNING)
        pending: dict[Any, tuple[Job, float]] = {}
        try:
            scoring = Scoring.by(_with_caches_here(ray, works), num_threads=max(1, int(self.num_cpus)))
            shared = ray.put(packed(scoring))
            resources = {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus}
            answered = ray.remote(**resources, max_retries=_MAX_RETRIES)(_answered)
            parcels = map(Parcel, jobs)
            while True:
                while len(pending) < self._window(ray) and (parcel := next(parcels, None)):
                    if parcel.unsent is not None:
                        yield parcel.item, scoring.card(parcel.item, parcel.unsent)
                    else:
                        pending[answered.remote(shared, parcel.message)] = parcel.item, time.monotonic()
                if not pending:
                    return
                (ref,), _ = ray.wait(list(pending), num_returns=1)
                job, started = pending.pop(ref)
                try:
                    outcome = pickle.loads(ray.get(ref))
                except ray.exceptions.RayError as raised:
                    outcome = Outcome(None, described(raised), seconds=time.monotonic() - started)
                yield job, scoring.card(job, outcome)
        finally:
            for ref in pending:
                ray.cancel(ref, force=True)
            if is_own:
                ray.shutdown()

    def _window(self, ray: Any) -> int:
        """How many jobs may be under way: as many as run at once, and a few more; nodes may come and go."""
        resources = ray.cluster_resources()
        num_running = resources.get("CPU", 0) // self.num_cpus
        if self.num_gpus:
            num_running = min(num_running, resources.get("GPU", 0) // self.num_gpus)
        if num_running < 1:
            raise RuntimeError(
                f"A candidate is to have num_cpus={self.num_cpus} and num_gpus={self.num_gpus}; the cluster has "
                f"{resources.get('CPU', 0):g} cores and {resources.get('GPU', 0):g} GPUs. Add a node, or ask for less."
            )
        return int(num_running) + _NUM_QUEUED


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
    """A cache that asks the actor that has it, from any node."""

    keeper: Any

    def read(self, candidate: str) -> dict[str, str]:
        entries: dict[str, str] = _imported_ray().get(self.keeper.read.remote(candidate))
        return entries

    def write(self, candidate: str, entries: Mapping[str, str]) -> None:
        _imported_ray().get(self.keeper.write.remote(candidate, dict(entries)))


def _with_caches_here(ray: Any, works: Sequence[Work]) -> list[Work]:
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)(_Keeper)
    caches: dict[int, _CacheElsewhere] = {}
    for work in works:
        if isinstance(work, CachedWork) and id(work.cache) not in caches:
            caches[id(work.cache)] = _CacheElsewhere(actor.remote(work.cache))
    return [replace(work, cache=caches[id(work.cache)]) if isinstance(work, CachedWork) else work for work in works]


def _answered(scoring: bytes, message: bytes) -> bytes:
    return answer(pickle.loads(scoring), message)


def _imported_ray() -> Any:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "`RayExecutor` needs Ray: `pip install 'lightning-zico[ray]'`. `ProcessExecutor` needs nothing."
        ) from error
    return ray
