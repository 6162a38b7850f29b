"""Collect the scores of several repeats, and merge them into one card per candidate."""

import copy
import statistics
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from lightning_zico.candidates import Built, Candidate
from lightning_zico.proxies import BASELINES, Prior
from lightning_zico.ranking.uncertainty import standard_error, uncertainties
from lightning_zico.results import Row, Score, ScoreCard
from lightning_zico.scoring.choice import Choice, Used
from lightning_zico.scoring.executors.base import Job
from lightning_zico.zoo import ZooModel


class Tally:
    """Cards by candidate, in the order they were offered, and by repeat.

    Args:
        choice: The proxies to compute and the recipes to combine.
        repeats: Maximum number of repeats of a candidate; with one, cards stay as they are.

    Attributes:
        num_of_a_zoo: Number of candidates from a zoo.
        num_pretrained: Number of candidates that say that they are pretrained.
    """

    def __init__(self, choice: Choice, repeats: int) -> None:
        self.choice = choice
        self.repeats = repeats
        self._cards: dict[str, dict[int, ScoreCard]] = {}
        self._offer_idxs: dict[str, int] = {}
        self._built: set[str] = set()
        self.num_of_a_zoo: int = 0
        self.num_pretrained: int = 0

    def jobs(self, candidates: Iterable[Candidate], repeat_idxs: Iterable[int]) -> Iterator[Job]:
        """Yield all jobs of one candidate before the next; a candidate that failed gets no further jobs.

        Args:
            candidates: Candidates, taken one at a time.
            repeat_idxs: Indices of the repeats.
        """
        for candidate in candidates:
            if candidate.name not in self._cards:
                self._cards[candidate.name] = {}
                self._offer_idxs[candidate.name] = len(self._offer_idxs)
                if isinstance(candidate.build, Built):
                    self._built.add(candidate.name)
                self.num_of_a_zoo += isinstance(candidate.build, ZooModel)
                self.num_pretrained += candidate.pretrained
            cards = self._cards[candidate.name]
            for repeat_idx in repeat_idxs:
                if not any(_cannot_rank(card) for card in cards.values()):
                    yield Job(candidate, repeat_idx)

    @property
    def is_empty(self) -> bool:
        """Whether there is no card."""
        return not self._cards

    @property
    def num_instances(self) -> int:
        """Number of candidates that were offered as modules, and keep their weights."""
        return len(self._built)

    def add(self, job: Job, card: ScoreCard) -> list[ScoreCard]:
        """Store a card; cards may come in any order.

        Returns:
            All cards of the candidate so far, by repeat.
        """
        cards = self._cards[job.candidate.name]
        cards[job.repeat_idx] = card
        return _in_order(cards)

    def card_so_far(self, name: str) -> ScoreCard:
        """Return a candidate's card: with several repeats, the means of those so far; without recipes."""
        cards = _in_order(self._cards[name])
        return cards[0] if self.repeats == 1 else _average(_spread_failures(cards), self._certain)

    def leader(self) -> ScoreCard | None:
        """Return the card of the first candidate so far; None if none can be ranked."""
        scored = copy.copy(self)
        scored._cards = {name: cards for name, cards in self._cards.items() if cards}
        if scored.is_empty:
            return None
        ranked = [
            (len(card[self.choice.rank_by].by_repeat), score, card)
            for card in scored.merge()
            if (score := self.choice.direct_score(card)) is not None
        ]
        return max(ranked, key=lambda each: each[:2])[2] if ranked else None

    def offer_idx(self, name: str) -> int:
        """Return the position of a candidate in the order they were offered, from 0."""
        return self._offer_idxs[name]

    def cut(self, most: int, *, least: int = 1) -> None:
        """Drop the cards of an unfinished round, so that the remaining cards can be compared.

        Args:
            most: Maximum number of repeats of a candidate; later ones are dropped.
            least: A candidate with fewer repeats than that is dropped, unless it failed.
        """
        remaining = {}
        for name, cards in self._cards.items():
            first = {repeat_idx: card for repeat_idx, card in cards.items() if repeat_idx < most}
            if len(first) >= least or any(_cannot_rank(card) for card in first.values()):
                remaining[name] = first
        self._cards = remaining

    def merge(self) -> list[ScoreCard]:
        """Combine recipes in each repeat, and average.

        Like a proxy, a recipe has one number per repeat: its members' scores in that repeat, combined over all
        candidates. Its score is the mean of these numbers. Averaging the members first and then combining them would
        give a score without repeats, whose uncertainty is unknown; and the mean of a heavy-tailed member would depend
        on its largest value, which counts only as one rank when ranks are averaged.

        In the repeats after a candidate left a race, its last scores count, so that a rank is always a rank among all
        candidates. Otherwise, ranks would change whenever a candidate leaves.

        Returns:
            One card per candidate, in the order they were offered.
        """
        if self.repeats == 1:
            return self._combine_recipes([cards[0] for cards in self._cards.values()], self.recipes_in_use())
        return [_average(cards, self._certain) for cards in self._combine_by_repeat()[0].values()]

    def uncertainty(self, *, seed: int = 0) -> dict[str, Row]:
        """Compute the uncertainty of each candidate's rank; candidates that cannot be ranked are left out.

        Args:
            seed: The seed of the bootstrap.

        Returns:
            The columns, by candidate. For a candidate that left a race, the interval of its rank is that at the moment
            when it left, among those that had come as far; whether it is the best, or tied, is None. Repeats that are
            equal because the weights are equal give no uncertainty.
        """
        by_name: dict[str, Row] = {}
        by_candidate, used = self._combine_by_repeat()
        for count in sorted({len(cards) for cards in by_candidate.values()}):
            reached = [_average(cards[:count], self._certain) for cards in by_candidate.values() if len(cards) >= count]
            numbers = {card.name: direct_scores(card, self.choice) for card in reached}
            table = {name: values for name, values in numbers.items() if values is not None}
            by_name |= {
                name: {**row, "p_best": None, "tie": None} for name, row in by_name.items() if name not in table
            }
            by_name |= {
                name: uncertainty._asdict()
                for name, uncertainty in zip(table, uncertainties(list(table.values()), seed=seed), strict=True)
            }
        for name in self._find_equal_repeats(by_candidate, used):
            by_name[name] |= dict.fromkeys(("std_error", "rank_low", "rank_high", "p_best"))
        return by_name

    def num_with_same_weights(self) -> int:
        """Count the factories that built the same weights in all repeats."""
        return sum(_have_same_weights(cards.values()) for name, cards in self._cards.items() if name not in self._built)

    def equal_repeats(self) -> list[str]:
        """List the candidates whose scores are equal in all repeats because their weights are equal.

        Counts of weights or operations, and known numbers, are excluded: they are equal in all repeats for every
        candidate, and certain.
        """
        return self._find_equal_repeats(*self._combine_by_repeat())

    def _find_equal_repeats(
        self, by_candidate: Mapping[str, list[ScoreCard]], used_recipes: Mapping[str, Used]
    ) -> list[str]:
        used = used_recipes.get(self.choice.rank_by)
        if {*(used.recipe.members if used else (self.choice.rank_by,))} <= self._certain:
            return []
        scores = {name: direct_scores(_average(row, self._certain), self.choice) for name, row in by_candidate.items()}
        return [
            name
            for name, values in scores.items()
            if values is not None and len(set(values)) == 1 and _have_same_weights(self._cards[name].values())
        ]

    @property
    def _certain(self) -> set[str]:
        """Names of the scores that no weights and no data change."""
        return {*BASELINES, *(proxy.name for proxy in self.choice.proxies if isinstance(proxy, Prior))}

    def recipes_in_use(self) -> dict[str, Used]:
        """Choose the recipes to use in place of the named ones, once for all repeats, from all candidates."""
        first = self.first_cards()
        return {recipe.name: self.choice.recipes_for(first, recipe) for recipe in self.choice.recipes.values()}

    def first_cards(self) -> list[ScoreCard]:
        """List the first card of each candidate; a score that failed in any repeat counts as failed."""
        return [row[0] for row in self._rows().values()]

    def _rows(self) -> dict[str, list[ScoreCard]]:
        """List each candidate's cards by repeat; a score that failed in one repeat counts as failed in all."""
        rows = {name: _in_order(cards) for name, cards in self._cards.items()}
        return rows if self.repeats == 1 else {name: _spread_failures(row) for name, row in rows.items()}

    def _combine_by_repeat(self) -> tuple[dict[str, list[ScoreCard]], dict[str, Used]]:
        """Combine recipes in each repeat.

        Returns:
            Each candidate's cards by repeat, and the recipes that were used in place of the named ones.
        """
        rows, used = self._rows(), self.recipes_in_use()
        most = max(map(len, rows.values()), default=0)
        tables = [
            self._combine_recipes([row[min(repeat_idx, len(row) - 1)] for row in rows.values()], used)
            for repeat_idx in range(most)
        ]
        columns = zip(*tables, strict=True)  # [R, n] -> [n, R]
        return {name: list(cards[: len(rows[name])]) for name, cards in zip(rows, columns, strict=True)}, used

    def _combine_recipes(self, cards: list[ScoreCard], used: Mapping[str, Used]) -> list[ScoreCard]:
        for recipe in self.choice.recipes.values():
            cards, _ = self.choice.combine(cards, recipe, used[recipe.name])
        return cards


def direct_scores(card: ScoreCard, choice: Choice) -> list[float] | None:
    """List a candidate's scores in all repeats, negated if lower is better; None if it cannot be ranked by them."""
    if choice.direct_score(card) is None:
        return None
    sign = 1 if choice.higher_is_better() else -1
    return [sign * value for value in card[choice.rank_by].by_repeat]


def _in_order(cards: Mapping[int, ScoreCard]) -> list[ScoreCard]:
    return [cards[repeat_idx] for repeat_idx in sorted(cards)]


def _cannot_rank(card: ScoreCard) -> bool:
    return card.error is not None or card.untrainable is not None


def _have_same_weights(cards: Collection[ScoreCard]) -> bool:
    found = {card.weights for card in cards}
    return len(cards) > 1 and len(found) == 1 and None not in found


def _spread_failures(cards: list[ScoreCard]) -> list[ScoreCard]:
    """Mark a score that failed in one repeat as failed in all, because a mean over the others is not comparable.

    Args:
        cards: The cards of one candidate, by repeat.

    Returns:
        As many cards, or one if the candidate itself failed. A failed score has the reason of the first repeat in which
        it failed.
    """
    failed = next((idx for idx, card in enumerate(cards) if _cannot_rank(card)), None)
    if failed is not None:  # the repeats before it add nothing
        return [_in_repeat(cards[failed], failed)]
    errors: dict[str, str] = {}
    for idx, card in enumerate(cards):
        for name, score in card.scores.items():
            if score.error is not None:
                errors.setdefault(name, _with_repeat(score.error, idx))
    return [
        replace(card, scores=dict(card.scores) | {name: Score(name, None, error) for name, error in errors.items()})
        for card in cards
    ]


def _in_repeat(card: ScoreCard, repeat_idx: int) -> ScoreCard:
    """Add the repeat to a card's reasons."""
    return replace(
        card,
        scores={
            name: replace(score, error=score.error and _with_repeat(score.error, repeat_idx))
            for name, score in card.scores.items()
        },
        error=card.error and _with_repeat(card.error, repeat_idx),
        untrainable=card.untrainable and _with_repeat(card.untrainable, repeat_idx),
    )


def _with_repeat(error: str, repeat_idx: int) -> str:
    sentence = error.removesuffix(".")
    return f"{sentence} (in repeat {repeat_idx}){error[len(sentence) :]}"


def _average(cards: Sequence[ScoreCard], certain: Collection[str]) -> ScoreCard:
    """Merge the cards of all repeats into one; reasons are the same in all of them."""
    first = cards[0]
    scores = {name: _mean([card[name] for card in cards]) for name in first}
    if _have_same_weights(cards):
        # With the same weights, a deviation of zero does not mean certainty.
        unsure = [name for name, score in scores.items() if score.std_error == 0 and name not in certain]
        scores |= {name: replace(scores[name], std_error=None) for name in unsure}
    return replace(first, scores=scores, seconds=sum(card.seconds for card in cards))


def _mean(scores: Sequence[Score]) -> Score:
    """Average one score; details are those of the first repeat."""
    first = scores[0]
    seconds = sum(score.seconds for score in scores)
    values = tuple(score.value for score in scores if score.value is not None)
    if not values:
        return replace(first, seconds=seconds)
    layers = dict.fromkeys(layer for score in scores for layer in score.layers)
    return replace(
        first,
        value=statistics.fmean(values),
        seconds=seconds,
        # A layer without a value in a repeat added nothing to the score.
        layers={layer: statistics.fmean(score.layers.get(layer, 0.0) for score in scores) for layer in layers},
        std_error=standard_error(values),
        by_repeat=values,
    )
