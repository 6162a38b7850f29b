"""Short searches, whose archs may be scored by a rule."""

from collections.abc import Generator, Iterable, Sequence
from typing import Any

from lightning_zico import (
    Evolution,
    Score,
    ScoreCard,
    SearchResult,
    ZeroShotSearch,
)
from lightning_zico.scoring.executors.base import Job
from lightning_zico.scoring.scorer import Scorer
from lightning_zico.spaces import NASBench201
from tests.search.spaces import Bits, batches

SMALL = Evolution(population_size=8, tournament_size=3, num_initial=4)


class ByRule:
    """An executor that scores by a rule, builds nothing, and remembers what it was asked for."""

    def __init__(self, **rules: Any) -> None:
        self.rules = rules
        self.asked: list[str] = []

    def run(self, scorers: Sequence[Scorer], jobs: Iterable[Job]) -> Generator[tuple[Job, ScoreCard], None, None]:
        for job in jobs:
            name = job.candidate.name
            self.asked.append(name)
            values = {proxy: self.rules[proxy](name) for proxy in scorers[0].names}
            scores = {p: Score(p, v, None if v is not None else "it does not like it") for p, v in values.items()}
            yield job, ScoreCard(name, scores)


def searched(space: Any = None, **kwargs: Any) -> SearchResult:
    given = {"num_trials": 20, "sampler": SMALL, "num_classes": 3, "proxies": "params"} | kwargs
    return ZeroShotSearch(space or Bits(), **given).run(batches())


def searched_nas_bench(score: Any, sampler: Any, seed: int, **kwargs: Any) -> SearchResult:
    """Search NAS-Bench-201 for 150 trials, for images of 32 x 32."""
    executor = ByRule(params=score)
    return searched(
        "nas_bench_201", resolution=32, num_trials=150, executor=executor, sampler=sampler, seed=seed, **kwargs
    )


def without_seconds(result: SearchResult) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in result.history]


def size_of(text: str) -> float:
    return float(NASBench201().params(NASBench201().parse(text)))
