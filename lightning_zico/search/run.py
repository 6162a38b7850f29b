"""One run of a search: propose archs, score them, and rank all that were scored."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from typing import Any

from lightning_zico.errors import ZiCoError
from lightning_zico.ranking import first_front, kendall_where_both
from lightning_zico.results import Row, ScoreCard, SearchResult, as_provenance, ranks_of
from lightning_zico.results.saturated import collect_saturated
from lightning_zico.scoring.cached_scorer import score_jobs
from lightning_zico.scoring.choice import Choice
from lightning_zico.scoring.executors.base import Executor, Job
from lightning_zico.scoring.progress import ProgressReport
from lightning_zico.scoring.provenance import recipe_facts, versions
from lightning_zico.scoring.scorer import Scorer
from lightning_zico.search.costs import LATENCY, ArchCosts
from lightning_zico.search.evolution import Member, Population, scores_of
from lightning_zico.search.proposals import Offer, Proposer
from lightning_zico.search.trials import Finished, Trials, import_optuna
from lightning_zico.spaces import SearchSpace

_LONGEST_NAME = 40  # characters of an arch beside the progress bar
_COST = "cost_"  # prefix of the names of the columns with costs
# Most proposals in a row for one trial that are over the budget or known; in PlainNet they take about two seconds.
_MOST_PROPOSALS = 10_000
# If this many first archs of a search all fail in the same way, the archs are not to blame.
_MOST_FAILURES = 20


class BudgetError(ZiCoError, ValueError):
    """No arch was found within the budget."""


class SearchError(ZiCoError, RuntimeError):
    """Every arch of a search fails, for example because the loss does not fit the data."""


class SearchRun:
    """One run of a search.

    Args:
        space: The space of the archs.
        choice: The proxies, the recipes and the score to rank by.
        scorer: Scores the candidates.
        trials: Trials of the study.
        costs: Costs of archs.
        proposer: Proposes archs.
        offer: Turns an arch into a candidate.
        executor: Where candidates are scored.
        num_trials: Total number of trials.
        against: Costs to keep low as well.
        progress: Where progress is reported.
    """

    def __init__(
        self,
        space: SearchSpace[Any],
        choice: Choice,
        scorer: Scorer,
        trials: Trials,
        costs: ArchCosts,
        proposer: Proposer,
        offer: Offer,
        *,
        executor: Executor,
        num_trials: int,
        against: Sequence[str],
        progress: ProgressReport,
    ) -> None:
        self._space, self._choice, self._scorer, self._trials, self._costs = space, choice, scorer, trials, costs
        self._proposer, self._offer, self._executor = proposer, offer, executor
        self._num_trials, self._against = num_trials, tuple(against)
        self._progress = progress
        size = proposer.evolution.population_size if proposer.evolution else 1
        self._population = Population(size, choice)
        self._claimed: dict[str, int] = {}
        self._exhausted = False
        self._broke_off = True
        self._best: float | None = None  # by a proxy, so that higher is better
        self._num_rejected = self._num_scored = self._num_failed = 0
        self._seconds = {"seconds": 0.0, "seconds_searching": 0.0}
        self._take_in(trials.finished)

    def score_all(self) -> None:
        """Propose and score until there are enough trials."""
        start = time.perf_counter()
        with self._progress.follow(self._num_trials, self._how_it_goes, self._trials.num_finished) as follower:
            while True:
                num_before = self._num_scored
                with closing(score_jobs(self._executor, [self._scorer], self._jobs())) as coming:
                    for job, card in coming:
                        with self._counted():
                            number = self._claimed.pop(job.candidate.name)
                            self._trials.finish(number, card, self._values(card))
                            self._look()
                        self._seconds["seconds"] = time.perf_counter() - start
                        self._num_scored += 1
                        follower.finish(card, self._trials.num_finished)
                        self._check_hope(card)
                # Go on if a process died meanwhile, or a trial was ended by hand, until there are enough trials.
                if self._num_scored == num_before or self._exhausted:
                    break
        self._broke_off = False

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count the time of the body as time spent on searching, not on scoring."""
        start = time.perf_counter()
        yield
        self._seconds["seconds_searching"] += time.perf_counter() - start

    def _check_hope(self, last: ScoreCard) -> None:
        """Stop if only failures are to be expected.

        Raises:
            SearchError: If the first archs have all failed in the same way.
        """
        if self._trials.num_finished != _MOST_FAILURES or scores_of([last], self._choice) != [None]:
            return
        reason = last.error or _first_error(last)
        if all((trial.card.error or _first_error(trial.card)) == reason for trial in self._trials.finished):
            raise SearchError(f"The first {_MOST_FAILURES} archs all failed in the same way: {reason}")

    def _how_it_goes(self) -> str:
        """Describe the progress: the best score; for a combined score, which depends on the set, the best arch."""
        up = self._choice.higher_is_better()
        best = "" if self._best is None else f"best {self._best if up else -self._best:.6g}, "
        if self._choice.recipe is not None and (leader := self._population.best) is not None:
            best = f"best {leader if len(leader) <= _LONGEST_NAME else leader[: _LONGEST_NAME - 1] + '…'}, "
        rate = self._num_scored / max(self._seconds["seconds"], 1e-9)
        failed = f"{self._num_failed:,} failed, " if self._num_failed else ""
        return f"{best}{self._num_rejected:,} rejected, {failed}{rate:.1f} trials/s"

    def result(self, settings: Mapping[str, Any]) -> SearchResult:
        """Rank all archs that were scored, as one set.

        Args:
            settings: Everything that scores and proposals depend on, for the record.
        """
        self._look()
        finished = sorted(self._trials.finished, key=lambda trial: trial.number)
        cards = [trial.card for trial in finished]
        scores = scores_of(cards, self._choice)
        on_front = self._on_front(cards, scores)
        up = self._choice.higher_is_better()
        rows: list[Row] = []
        for idx, (trial, score, rank) in enumerate(zip(finished, scores, ranks_of(scores), strict=True)):
            shown = None if score is None else score if up else -score
            error = trial.card.error or trial.card.untrainable
            if score is None and error is None:
                error = _first_error(trial.card)
            arch = self._space.parse(trial.arch)
            rows.append(
                {
                    "trial": idx,
                    "rank": rank,
                    "arch": trial.arch,
                    "score": shown,
                    **{proxy.name: trial.card.scores[proxy.name].value for proxy in self._choice.proxies},
                    **{f"{_COST}{name}": cost for name, cost in self._costs.of(arch).items()},
                    "on_front": idx in on_front,
                    "error": error,
                    "seconds": trial.card.seconds,
                }
            )
        return SearchResult(
            tuple(rows),
            as_provenance(
                {
                    **settings,
                    **self._facts(cards),
                    "kendall_with": _agreement_with_costs(rows, scores),
                    **self._saturation_facts(cards, scores),
                }
            ),
        )

    def _saturation_facts(self, cards: Sequence[ScoreCard], scores: Sequence[float | None]) -> dict[str, Any]:
        scored = {card.name for card, score in zip(cards, scores, strict=True) if score is not None}
        saturated = collect_saturated(scored, cards, [proxy.name for proxy in self._choice.proxies])
        return {"saturated": saturated} if saturated else {}

    def _facts(self, cards: Sequence[ScoreCard]) -> dict[str, Any]:
        recipe = self._choice.recipe
        used = None if recipe is None else self._choice.recipes_for(cards, recipe)
        return {
            "higher_is_better": self._choice.higher_is_better(),
            "recipes": {} if recipe is None or used is None else {recipe.name: recipe_facts(used, recipe, cards)},
            "study": self._trials.study.study_name,
            "num_trials": self._num_trials,
            "num_rejected": self._num_rejected,
            "num_elsewhere": self._trials.num_elsewhere,
            "exhausted": self._exhausted,
            "broke_off": self._broke_off,
            **self._seconds,
            "versions": {**versions(), "optuna": import_optuna().__version__},
        }

    def _on_front(self, cards: Sequence[ScoreCard], scores: Sequence[float | None]) -> set[int]:
        """Return the indices of the cards that no other dominates."""
        points = {}
        for idx, (card, score) in enumerate(zip(cards, scores, strict=True)):
            low = self._costs_to_lower(card)
            if score is not None and low is not None:
                points[idx] = (score, *(-cost for cost in low))
        idxs = list(points)
        return {idxs[position] for position in first_front(list(points.values()))}

    def _jobs(self) -> Iterator[Job]:
        """Propose archs, one whenever the executor can take it, so that a proposal uses all scores so far."""
        while True:
            with self._counted():
                claimed = self._next()
            if claimed is None:
                return
            number, arch = claimed
            self._claimed[str(arch)] = number
            yield Job(self._offer(arch))

    def _next(self) -> tuple[int, Any] | None:
        """Claim an arch that is new and within the budget; None if there are enough trials or none is found."""
        num_proposals = num_rejected = 0
        reason: str | None = None
        while num_proposals < _MOST_PROPOSALS:
            self._look()
            num_counted = self._trials.num_counted
            if num_counted >= min(self._num_trials, self._space.size):
                self._exhausted = num_counted < self._num_trials
                return None
            for number, arch in islice(
                self._proposer.proposals(self._trials, self._population), _MOST_PROPOSALS - num_proposals
            ):
                num_proposals += 1
                reason = "known" if self._trials.knows(str(arch)) else self._costs.excess(arch)
                num_rejected += reason not in (None, "known")
                if reason is None:
                    claimed = self._trials.claim(str(arch), num_rejected, self._num_trials, number)
                    if claimed is not None:
                        return claimed, arch
                    break
                if number is not None:
                    self._trials.discard(number, reason)
        self._exhausted = True
        self._num_rejected += num_rejected
        if num_rejected == num_proposals and not self._trials.num_counted:
            raise BudgetError(self._hopeless(reason))
        return None

    def _hopeless(self, excess: str | None) -> str:
        start = self._proposer.evolution.start if self._proposer.evolution else None
        begin = ""
        if start is not None:
            costs = self._costs.of(self._space.parse(start))
            begin = " The start arch has " + ", ".join(f"{cost:,} {name}" for name, cost in costs.items()) + "."
        return (
            f"{_MOST_PROPOSALS:,} proposals in a row were over the budget; the last one: {excess}.{begin} Raise the "
            "budget, or start from a smaller arch: `Evolution(start=...)`."
        )

    def _look(self) -> None:
        self._take_in(self._trials.update())

    def _take_in(self, news: Sequence[Finished]) -> None:
        for trial in news:
            self._num_rejected += trial.num_rejected
            self._num_failed += scores_of([trial.card], self._choice) == [None]
            score = None if self._choice.recipe is not None else self._choice.direct_score(trial.card)
            if score is not None:
                self._best = score if self._best is None else max(self._best, score)
            if self._proposer.evolution is not None and (low := self._costs_to_lower(trial.card)) is not None:
                self._population.add(Member(trial.arch, trial.card, low))

    def _costs_to_lower(self, card: ScoreCard) -> tuple[float, ...] | None:
        """Return the costs to keep low; None if a latency could not be measured."""
        if not self._against:
            return ()
        costs: dict[str, float | None] = {**self._costs.of(self._space.parse(card.name))}
        if LATENCY in self._against:
            costs[LATENCY] = card.scores["latency"].value
        low = tuple(cost for name in self._against if (cost := costs[name]) is not None)
        return low if len(low) == len(self._against) else None

    def _values(self, card: ScoreCard) -> list[float | None]:
        """List the numbers for Optuna."""
        values = [card.scores[name].value for name in self._choice.chains[0]]
        low = self._costs_to_lower(card)
        return [*values, *([None] if low is None else low)]


def _first_error(card: ScoreCard) -> str | None:
    return next((score.error for score in card.scores.values() if score.error), None)


def _agreement_with_costs(rows: Sequence[Row], scores: Sequence[float | None]) -> dict[str, float | None]:
    """Compare the order by score with that by each cost of the archs; Kendall's tau, None where it is not defined."""
    costs = [key for key in rows[0] if key.startswith(_COST)] if rows else []
    return {key.removeprefix(_COST): kendall_where_both(scores, [row[key] for row in rows]) for key in costs}
