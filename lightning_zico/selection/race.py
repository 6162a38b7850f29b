"""Repeat only the candidates that can still become finalists."""

from collections.abc import Callable, Iterator, Sequence

from lightning_zico.candidates import Built, Candidate, Candidates, iterate_candidates
from lightning_zico.ranking.racing import race
from lightning_zico.selection.tally import Tally, direct_scores


def hold_race(
    candidates: Candidates,
    tally: Tally,
    score: Callable[[Candidates, Sequence[int]], None],
    *,
    top_k: int = 1,
    seed: int = 0,
) -> list[Candidate]:
    """Score every candidate once, then race those that can be ranked.

    Args:
        candidates: As for `ZeroShotSelector.rank`.
        tally: An empty tally; it holds all cards afterwards.
        score: Function that scores candidates in the repeats with these indices, and adds the cards to the tally.
        top_k: How many of the first candidates are wanted.
        seed: The seed of the bootstrap for the rank intervals.

    Returns:
        All candidates, in the order they were offered.

    Raises:
        TypeError: If the candidates are an iterator of built modules.
    """
    offered: list[Candidate] = []
    num_scored = 1  # repeats that every runner has
    try:
        score(_collect(candidates, offered), range(1))
    except BaseException:
        tally.cut(num_scored)
        raise

    def numbers() -> dict[str, list[float] | None]:
        return {card.name: direct_scores(card, tally.choice) for card in tally.merge()}

    first = numbers()
    runners = [candidate for candidate in offered if first[candidate.name] is not None]

    def score_runners(idxs: list[int], num_repeats: int) -> list[list[float] | None]:
        nonlocal num_scored
        names = [runners[idx].name for idx in idxs]
        try:
            score([runners[idx] for idx in idxs], range(num_scored, num_repeats))
        except BaseException:
            tally.cut(num_scored)
            raise
        num_scored = num_repeats
        by_name = numbers()
        return [by_name[name] for name in names]

    race(len(runners), tally.repeats, score_runners, top_k=top_k, seed=seed)
    return offered


def _collect(candidates: Candidates, collected: list[Candidate]) -> Iterator[Candidate]:
    """Yield every candidate and collect it, since a race scores it again."""
    for candidate in iterate_candidates(candidates):
        if isinstance(candidates, Iterator) and isinstance(candidate.build, Built):
            raise TypeError(
                f"`race=True` scores candidates again, so it would hold all modules of the {type(candidates).__name__} "
                f"in memory, such as '{candidate.name}'. Offer factories, or a list of the modules."
            )
        collected.append(candidate)
        yield candidate
