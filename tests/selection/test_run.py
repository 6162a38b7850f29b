"""A run scores every candidate in every repeat, holds those that may win, and keeps what is done if it breaks off."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_zico import Candidate, Score, ScoreCard
from lightning_zico.bridge import Reading
from lightning_zico.scoring.choice import Choice
from lightning_zico.scoring.executors.base import Job
from lightning_zico.scoring.progress import ProgressReport
from lightning_zico.scoring.scorer import Scorer
from lightning_zico.selection.run import Run
from tests.modules import make_batches, make_network


class ByTable:
    """An executor that scores by a table, candidate by repeat, and may be interrupted."""

    def __init__(self, table: list[list[float]], stops_after: int | None = None) -> None:
        self.table = table
        self.stops_after = stops_after

    def run(self, scorers: Sequence[Scorer], jobs: Iterator[Job]) -> Iterator[tuple[Job, ScoreCard]]:
        for number, job in enumerate(jobs):
            if number == self.stops_after:
                raise KeyboardInterrupt
            value = self.table[int(job.candidate.name)][job.repeat_idx]
            yield job, ScoreCard(job.candidate.name, {"params": Score("params", value)})


def run_of(table: list[list[float]], **kwargs: Any) -> Run:
    choice = Choice.of("params")
    scorers = [Scorer(Reading.of(make_batches(1)), choice.proxies, seed=seed) for seed in range(len(table[0]))]
    return Run(scorers, choice, ByTable(table, **kwargs), progress=ProgressReport("Ranking", enabled=False))


def candidates_of(table: list[list[float]]) -> list[Candidate]:
    return [Candidate(str(idx), make_network) for idx in range(len(table))]


TABLES = st.integers(1, 3).flatmap(
    lambda repeats: st.lists(
        st.lists(st.integers(0, 5).map(float), min_size=repeats, max_size=repeats), min_size=1, max_size=6
    )
)


@given(TABLES, st.integers(1, 3))
def test_the_first_by_the_mean_are_on_the_shortlist(table: list[list[float]], top_k: int) -> None:
    run = run_of(table)
    shortlist = {candidate.name for candidate in run.score_all(candidates_of(table), top_k=top_k)}
    means = {card.name: card["params"].value for card in run.tally.merge()}
    assert means == pytest.approx({str(idx): sum(row) / len(row) for idx, row in enumerate(table)})
    assert set(sorted(means, key=lambda name: -(means[name] or 0.0))[:top_k]) <= shortlist


@given(TABLES, st.integers(0, 17))
def test_after_an_interruption_those_that_have_all_repeats_are_there(table: list[list[float]], num_done: int) -> None:
    repeats = len(table[0])
    run = run_of(table, stops_after=num_done)
    if num_done >= len(table) * repeats:
        run.score_all(candidates_of(table), top_k=1)
    else:
        with pytest.raises(KeyboardInterrupt):
            run.score_all(candidates_of(table), top_k=1)
    assert [card.name for card in run.tally.merge()] == [
        str(idx) for idx in range(min(num_done // repeats, len(table)))
    ]
