"""Find the scores that cannot tell candidates apart, because these are at the maximum that the samples allow."""

from collections import Counter
from collections.abc import Container, Sequence
from typing import Any

from lightning_zico.results.rows import Saturated
from lightning_zico.results.scores import Score, ScoreCard

# What `lightning_zico.proxies.saturation` returns.
_DETAILS = ("saturated", "num_samples", "more_samples")


def collect_saturated(scored: Container[str], cards: Sequence[ScoreCard], columns: Sequence[str]) -> list[Saturated]:
    """Collect the scores that are at the same maximum for two or more candidates.

    With repeats, a candidate is at the maximum if it is in all of them.

    Args:
        scored: Names of the candidates that have a rank.
        cards: Score cards of all candidates.
        columns: Names of the scores.
    """
    alike: dict[tuple[int, int, int, str | None], list[str]] = {}
    for column in columns:
        scores = [card.scores[column] for card in cards if card.name in scored and column in card.scores]
        scores = [score for score in scores if score.value is not None]
        maxima = Counter((score.value, *found) for score in scores if (found := tuple(saturation_of(score).values())))
        for (_, _, num_samples, more_samples), count in maxima.items():
            if count > 1:
                alike.setdefault((count, len(scores), num_samples, more_samples), []).append(column)
    return [
        {
            "proxies": proxies,
            "count": count,
            "num_scored": num_scored,
            "num_samples": num_samples,
            "more_samples": more_samples,
        }
        for (count, num_scored, num_samples, more_samples), proxies in alike.items()
    ]


def saturation_of(score: Score) -> dict[str, Any]:
    """Return the details that say that a score is at its maximum, in all repeats; empty if it is not."""
    is_saturated = score.details.keys() >= set(_DETAILS) and len(set(score.by_repeat)) <= 1
    return {key: score.details[key] for key in _DETAILS} if is_saturated else {}
