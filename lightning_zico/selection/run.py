"""Score every candidate in every repeat, or in a race, and hold those that can still become finalists."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from operator import length_hint

from rich import get_console
from torch import nn

from lightning_zico.budget import OVER_BUDGET
from lightning_zico.candidates import Candidate, Candidates, iterate_candidates
from lightning_zico.results import Leaderboard, ScoreCard, leaderboard_table
from lightning_zico.scoring.cached_scorer import score_jobs
from lightning_zico.scoring.choice import Choice
from lightning_zico.scoring.executors.base import Executor
from lightning_zico.scoring.process_state import preserved_process_state
from lightning_zico.scoring.progress import ProgressReport, is_interactive
from lightning_zico.scoring.reasons import describe
from lightning_zico.scoring.scorer import Scorer, build_candidate
from lightning_zico.selection.entrants import Entrants, Learn, entrants_of
from lightning_zico.selection.race import hold_race
from lightning_zico.selection.shortlist import Shortlist
from lightning_zico.selection.tally import Tally
from lightning_zico.texts import shortened


class Run:
    """Scores candidates once in each repeat.

    Args:
        scorers: The scorer of each repeat.
        choice: The proxies, the recipes and the score to rank by.
        executor: Where candidates are scored.
        progress: Where progress is reported.

    Attributes:
        tally: All cards so far.
    """

    def __init__(
        self, scorers: Sequence[Scorer], choice: Choice, executor: Executor, *, progress: ProgressReport
    ) -> None:
        self.scorers = scorers
        self.tally: Tally = Tally(choice, len(scorers))
        self._executor = executor
        self._progress = progress
        self._rejected: set[str] = set()
        self._failed: set[str] = set()

    def score_all(self, candidates: Candidates, *, top_k: int | None) -> list[Candidate]:
        """Score every candidate in every repeat, and return those that may be among the first ``top_k``; None for all.

        If it is interrupted, the tally holds the candidates that are done.
        """
        shortlist = None if top_k is None else Shortlist(self.tally.choice, top_k)
        everyone: list[Candidate] = []
        repeats = self.tally.repeats

        def hold(candidate: Candidate, cards: list[ScoreCard]) -> None:
            if len(cards) < repeats:
                return
            if shortlist is None:
                everyone.append(candidate)
            else:
                shortlist.add(candidate, self.tally.offer_idx(candidate.name), cards)

        try:
            self._score(candidates, range(repeats), hold)
        except BaseException:
            self.tally.cut(repeats, least=repeats)
            raise
        return everyone if shortlist is None else shortlist.candidates

    def hold_race(self, candidates: Candidates, *, top_k: int, seed: int) -> list[Candidate]:
        """Score every candidate once, race them, and return all of them."""
        return hold_race(candidates, self.tally, self._score, top_k=top_k, seed=seed)

    def _score(
        self,
        candidates: Candidates,
        repeat_idxs: Sequence[int],
        on_done: Callable[[Candidate, list[ScoreCard]], None] = lambda candidate, cards: None,
    ) -> None:
        """Score candidates in some repeats, and report the progress."""
        total = length_hint(candidates) * len(repeat_idxs) or None
        with self._progress.follow(total, self._describe_state) as follower:

            def show_names() -> Iterator[Candidate]:
                for candidate in iterate_candidates(candidates):
                    follower.begin(candidate.name)
                    yield candidate

            jobs = self.tally.jobs(show_names(), repeat_idxs)
            with closing(score_jobs(self._executor, self.scorers, jobs)) as finished:
                for job, card in finished:
                    on_done(job.candidate, self.tally.add(job, card))
                    self._count(card)
                    follower.finish(self.tally.card_so_far(job.candidate.name))

    def _count(self, card: ScoreCard) -> None:
        """Count a candidate that is over the budget as rejected, and another one without any score as failed."""
        if card.error is not None:
            (self._rejected if card.error.startswith(OVER_BUDGET) else self._failed).add(card.name)

    def _describe_state(self) -> str:
        leader = self.tally.leader()
        best = [] if leader is None else [f"best {shortened(leader.name)}"]
        if leader is not None and self.tally.choice.recipe is None:
            best = [f"{best[0]} ({leader[self.tally.choice.rank_by].value:.6g})"]
        failed = [f"{len(self._failed):,} failed"] if self._failed else []
        return ", ".join([*best, f"{len(self._rejected):,} rejected", *failed])

    def entrants(
        self, leaderboard: Leaderboard, candidates: Iterable[Candidate], *, num: int, learn: Learn
    ) -> Entrants:
        """Return the candidates of finals; see `entrants_of`."""
        builds = {candidate.name: partial(build_candidate, candidate) for candidate in candidates}
        return entrants_of(leaderboard, self.tally.choice, builds, num=num, learn=learn)

    def build_again(self, candidate: Candidate) -> nn.Module:
        """Build a candidate as it was scored in the first repeat.

        Raises:
            RuntimeError: If that fails although it worked before.
        """
        try:
            with preserved_process_state():
                return self.scorers[0].build(candidate)
        except Exception as raised:
            raise RuntimeError(
                f"'{candidate.name}' won, but could not be built a second time: {describe(raised)}. Make its factory "
                "repeatable. The ranking is in `leaderboard_`."
            ) from raised


def show(leaderboard: Leaderboard, *, enabled: bool) -> None:
    """Print a leaderboard, if enabled, on a terminal, and on the first rank."""
    if is_interactive(enabled):
        get_console().print(leaderboard_table(leaderboard))
