"""Collect the scores of several repeats, and merge them into one card per candidate."""

import statistics
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from lightning_zico._typing import Batch
from lightning_zico.bridge.data import Reading, TrainingData
from lightning_zico.candidates import Built, Candidate, Candidates, iterate_candidates
from lightning_zico.engine.batches import all_equal
from lightning_zico.errors import IdenticalBatchesError, TooFewBatchesError
from lightning_zico.proxies import BASELINES
from lightning_zico.ranking.racing import race
from lightning_zico.ranking.uncertainty import standard_error, uncertainties
from lightning_zico.results import Row, Score, ScoreCard
from lightning_zico.scoring.choice import Choice, Used, combined, used_among
from lightning_zico.scoring.executors.base import Job
from lightning_zico.zoo import ZooModel


def read_repeats(data: Any, num_batches: int, repeats: int, *, seed: int = 0) -> list[list[Batch]]:
    """Read the batches of every repeat, and tear down the data module, if any; see `readings`."""
    with TrainingData(data) as training_data:
        return [reading.batches for reading in readings(training_data, num_batches, repeats, seed=seed)]


def readings(data: TrainingData, num_batches: int, repeats: int, *, seed: int = 0) -> list[Reading]:
    """Read the batches of all repeats at once, since they are few and a wrong number then fails before any scoring.

    Args:
        data: The data. A data module and loaders are read again for every repeat, with its own seed; the data module
            is set up once per repeat, and stays as the last repeat left it. An iterable of batches, which a seed does
            not affect, is read further: it must give ``repeats`` times ``num_batches`` batches.
        num_batches: Number of batches in each repeat.
        repeats: Number of repeats.
        seed: The seed of the first repeat; repeat r has ``seed + r``.

    Returns:
        The batches by repeat, with their loader.

    Raises:
        TooFewBatchesError: If the data gives too few batches.
        IdenticalBatchesError: If all repeats have the same batches.
    """
    loaders = any(isinstance(leaf, DataLoader) for leaf in tree_leaves(data.data))
    if data.datamodule is not None or loaders or repeats == 1:
        by_repeat = [data.read(num_batches, seed=seed + idx) for idx in range(repeats)]
    else:
        try:
            batches, loader = data.read(num_batches * repeats, seed=seed)
        except TooFewBatchesError as error:
            raise TooFewBatchesError(
                f"An iterable of batches cannot be shuffled, so {repeats} repeats of {num_batches} batches need "
                f"{num_batches * repeats} batches. Pass that many, or a DataLoader that shuffles. {error}"
            ) from error
        starts = range(0, len(batches), num_batches)
        by_repeat = [Reading(batches[start : start + num_batches], loader) for start in starts]
    if all_equal([reading.batches for reading in by_repeat]):
        raise IdenticalBatchesError(
            f"All {repeats} repeats have the same batches: the data is not shuffled, or it is shuffled with its own "
            "generator, which the seed does not affect. Shuffle without a generator, or pass a list of "
            f"{num_batches * repeats} batches."
        )
    return by_repeat


class Tally:
    """Cards by candidate, in the order they were offered, and by repeat.

    Args:
        choice: The proxies to compute and the recipes to combine.
        repeats: Maximum number of repeats of a candidate; with one, cards stay as they are.

    Attributes:
        num_of_a_zoo: Number of candidates from a zoo.
    """

    def __init__(self, choice: Choice, repeats: int) -> None:
        self.choice = choice
        self.repeats = repeats
        self._cards: dict[str, dict[int, ScoreCard]] = {}
        self._places: dict[str, int] = {}
        self._built: set[str] = set()
        self.num_of_a_zoo = 0

    def jobs(self, candidates: Iterable[Candidate], repeats: Iterable[int]) -> Iterator[Job]:
        """Yield all jobs of one candidate before the next; a candidate that failed gets no further jobs.

        Args:
            candidates: Candidates, taken one at a time.
            repeats: Indices of the repeats.
        """
        for candidate in candidates:
            if candidate.name not in self._cards:
                self._cards[candidate.name] = {}
                self._places[candidate.name] = len(self._places)
                if isinstance(candidate.build, Built):
                    self._built.add(candidate.name)
                self.num_of_a_zoo += isinstance(candidate.build, ZooModel)
            cards = self._cards[candidate.name]
            for repeat_idx in repeats:
                if not any(_cannot_rank(card) for card in cards.values()):
                    yield Job(candidate, repeat_idx)

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
        return _by_repeat(cards)

    def place(self, name: str) -> int:
        """Return the position of a candidate in the order they were offered, from 0."""
        return self._places[name]

    def cut(self, most: int, *, least: int = 1) -> None:
        """Drop the cards of an unfinished round, so that the remaining cards can be compared.

        Args:
            most: Maximum number of repeats to keep of a candidate; the first ones are kept.
            least: A candidate with fewer repeats than that is dropped, unless it failed.
        """
        kept = {}
        for name, cards in self._cards.items():
            first = {repeat_idx: card for repeat_idx, card in cards.items() if repeat_idx < most}
            if len(first) >= least or any(_cannot_rank(card) for card in first.values()):
                kept[name] = first
        self._cards = kept

    def merged(self) -> list[ScoreCard]:
        """Combine recipes in each repeat, and average.

        Like a proxy, a recipe has one number per repeat: its members' scores in that repeat, combined over all
        candidates. Its score is the mean of these numbers. Averaging the members first and then combining them would
        give a score without repeats, whose uncertainty is unknown; and the mean of a heavy-tailed member would depend
        on its largest value, which counts only as one rank when ranks are averaged.

        A candidate that left a race keeps its last scores in later repeats, so that a rank is always a rank among all
        candidates. Otherwise, ranks would change whenever a candidate leaves.

        Returns:
            One card per candidate, in the order they were offered.
        """
        if self.repeats == 1:
            return self._combined([cards[0] for cards in self._cards.values()], self.used())
        return [_averaged(cards) for cards in self._in_repeats().values()]

    def uncertainty(self, rank_by: str, *, seed: int = 0) -> dict[str, Row]:
        """Compute the uncertainty of each candidate's rank; candidates that cannot be ranked are left out.

        Args:
            rank_by: Name of the score that decides.
            seed: The seed of the bootstrap.

        Returns:
            The columns, by candidate. For a candidate that left a race, the interval of its rank is that at the moment
            when it left, among those that had come as far; whether it is the best, or tied, is None. Repeats that are
            equal because the weights are equal give no uncertainty.
        """
        said: dict[str, Row] = {}
        in_repeats = self._in_repeats()
        for count in sorted({len(cards) for cards in in_repeats.values()}):
            reached = [_averaged(cards[:count]) for cards in in_repeats.values() if len(cards) >= count]
            numbers = {card.name: directed_repeats(card, rank_by, self.choice) for card in reached}
            table = {name: values for name, values in numbers.items() if values is not None}
            said |= {name: {**row, "p_best": None, "tie": None} for name, row in said.items() if name not in table}
            said |= {
                name: uncertainty._asdict()
                for name, uncertainty in zip(table, uncertainties(list(table.values()), seed=seed), strict=True)
            }
        for name in self.equal_repeats(rank_by):
            said[name] |= dict.fromkeys(("std_error", "rank_low", "rank_high", "p_best"))
        return said

    def num_with_same_weights(self) -> int:
        """Count the factories that built the same weights in all repeats."""
        return sum(_have_same_weights(cards.values()) for name, cards in self._cards.items() if name not in self._built)

    def equal_repeats(self, rank_by: str) -> list[str]:
        """List the candidates whose scores are equal in all repeats because their weights are equal.

        Counts of weights or operations are excluded: they are equal in all repeats for every candidate, and certain.
        """
        if set(self.choice.read_by(rank_by)[0]) <= {*BASELINES, "prior"}:
            return []
        scores = {
            name: directed_repeats(_averaged(row), rank_by, self.choice) for name, row in self._in_repeats().items()
        }
        return [
            name
            for name, values in scores.items()
            if values is not None and len(set(values)) == 1 and _have_same_weights(self._cards[name].values())
        ]

    def used(self) -> dict[str, Used]:
        """Choose the recipes to use in place of the named ones, once for all repeats, from all candidates."""
        first = self.settled()
        return {recipe.name: used_among(first, recipe) for recipe in self.choice.recipes.values()}

    def settled(self) -> list[ScoreCard]:
        """List the first card of each candidate; a score that failed in any repeat counts as failed."""
        return [row[0] for row in self._rows().values()]

    def _rows(self) -> dict[str, list[ScoreCard]]:
        """List each candidate's cards by repeat; a score that failed in one repeat counts as failed in all."""
        rows = {name: _by_repeat(cards) for name, cards in self._cards.items()}
        return rows if self.repeats == 1 else {name: _settled(row) for name, row in rows.items()}

    def _in_repeats(self) -> dict[str, list[ScoreCard]]:
        """Combine recipes in each repeat, and list each candidate's cards by repeat."""
        rows, used = self._rows(), self.used()
        most = max(map(len, rows.values()), default=0)
        repeats = [
            self._combined([row[min(repeat_idx, len(row) - 1)] for row in rows.values()], used)
            for repeat_idx in range(most)
        ]
        columns = zip(*repeats, strict=True)  # [R, n] -> [n, R]
        return {name: list(cards[: len(rows[name])]) for name, cards in zip(rows, columns, strict=True)}

    def _combined(self, cards: list[ScoreCard], used: Mapping[str, Used]) -> list[ScoreCard]:
        for recipe in self.choice.recipes.values():
            cards, _ = combined(cards, recipe, self.choice, used[recipe.name])
        return cards


def raced(
    candidates: Candidates,
    tally: Tally,
    rank_by: str,
    score: Callable[[Candidates, Sequence[int]], None],
    *,
    top_k: int = 1,
    seed: int = 0,
) -> list[Candidate]:
    """Score every candidate once, then race those that can be ranked.

    Args:
        candidates: As for `ZeroShotSelector.rank`.
        tally: An empty tally; it holds all cards afterwards.
        rank_by: Name of the score that decides.
        score: Function that scores candidates in the repeats with these indices, and adds the cards to the tally.
        top_k: How many of the first candidates are wanted.
        seed: The seed of the bootstrap for the rank intervals.

    Returns:
        All candidates, in the order they were offered.

    Raises:
        TypeError: If the candidates are an iterator of built modules.
    """
    kept: list[Candidate] = []
    num_scored = 1  # repeats that every contender has
    try:
        score(_keeping(candidates, kept), range(1))
    except BaseException:
        tally.cut(num_scored)
        raise

    def numbers() -> dict[str, list[float] | None]:
        return {card.name: directed_repeats(card, rank_by, tally.choice) for card in tally.merged()}

    first = numbers()
    runners = [candidate for candidate in kept if first[candidate.name] is not None]

    def scored(contenders: list[int], num_repeats: int) -> list[list[float] | None]:
        nonlocal num_scored
        names = [runners[idx].name for idx in contenders]
        try:
            score([runners[idx] for idx in contenders], range(num_scored, num_repeats))
        except BaseException:
            tally.cut(num_scored)
            raise
        num_scored = num_repeats
        by_name = numbers()
        return [by_name[name] for name in names]

    race(len(runners), tally.repeats, scored, top_k=top_k, seed=seed)
    return kept


def _keeping(candidates: Candidates, kept: list[Candidate]) -> Iterator[Candidate]:
    """Yield every candidate and keep it, since a race scores it again."""
    for candidate in iterate_candidates(candidates):
        if isinstance(candidates, Iterator) and isinstance(candidate.build, Built):
            raise TypeError(
                f"`race=True` scores candidates again, so it would hold all modules of the {type(candidates).__name__} "
                f"in memory, such as '{candidate.name}'. Offer factories, or a list of the modules."
            )
        kept.append(candidate)
        yield candidate


def directed_repeats(card: ScoreCard, name: str, choice: Choice) -> list[float] | None:
    """List a candidate's scores in all repeats, negated if lower is better; None if it cannot be ranked by them."""
    if choice.directed(card, name) is None:
        return None
    return [value if choice.higher_is_better(name) else -value for value in card[name].repeats]


def _by_repeat(cards: Mapping[int, ScoreCard]) -> list[ScoreCard]:
    return [cards[repeat_idx] for repeat_idx in sorted(cards)]


def _cannot_rank(card: ScoreCard) -> bool:
    return card.error is not None or card.untrainable is not None


def _have_same_weights(cards: Collection[ScoreCard]) -> bool:
    found = {card.weights for card in cards}
    return len(cards) > 1 and len(found) == 1 and None not in found


def _settled(cards: list[ScoreCard]) -> list[ScoreCard]:
    """Mark a score that failed in one repeat as failed in all, because a mean over the others is not comparable.

    Args:
        cards: The cards of one candidate, by repeat.

    Returns:
        As many cards, or one if the candidate itself failed. A failed score has the reason of the first repeat in which
        it failed.
    """
    failed = next((idx for idx, card in enumerate(cards) if _cannot_rank(card)), None)
    if failed is not None:  # the repeats before it add nothing
        return [_told(cards[failed], failed)]
    errors: dict[str, str] = {}
    for idx, card in enumerate(cards):
        for name, score in card.scores.items():
            if score.error is not None:
                errors.setdefault(name, _with_repeat(score.error, idx))
    return [
        replace(card, scores=dict(card.scores) | {name: Score(name, None, error) for name, error in errors.items()})
        for card in cards
    ]


def _told(card: ScoreCard, repeat_idx: int) -> ScoreCard:
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


def _averaged(cards: Sequence[ScoreCard]) -> ScoreCard:
    """Merge the cards of all repeats into one; reasons are the same in all of them."""
    first = cards[0]
    scores = {name: _mean([card[name] for card in cards]) for name in first}
    if _have_same_weights(cards):
        # With the same weights, a deviation of zero does not mean certainty; counts are certain in any case.
        unsure = [name for name, score in scores.items() if score.std_error == 0 and name not in (*BASELINES, "prior")]
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
        repeats=values,
    )
