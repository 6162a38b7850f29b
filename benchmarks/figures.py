"""Figures: how well scores predict accuracies after training, and by how much one is better than another."""

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from lightning_zico.ranking import Interval, bootstrap_interval, kendall, ndcg, regret_at_k, spearman

# One number per candidate; None if it has none.
Values: TypeAlias = Sequence[float | None]
Numbers: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Figures:
    """How well a score predicts a target, over the ``n`` candidates that have it; None where a measure has no value.

    Args:
        n: Number of candidates.
        tau: Kendall's tau.
        tau_interval: 95 % interval of tau.
        rho: Spearman's rho.
        rho_interval: 95 % interval of rho.
        ndcg: nDCG of the best tenth by score.
        regret_1: Loss from training only the best by score, in the target's unit.
        regret_5: Loss from training only the five best.
        same_family: Share of the pairs within a family that are ordered right; None if there are no families.
    """

    n: int
    tau: float | None
    tau_interval: Interval | None
    rho: float | None
    rho_interval: Interval | None
    ndcg: float | None
    regret_1: float | None
    regret_5: float | None
    same_family: float | None


@dataclass(frozen=True)
class Difference:
    """By how much the tau of one score exceeds that of another, over the ``n`` candidates that have both."""

    n: int
    value: float | None
    interval: Interval | None

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval excludes zero, so that other candidates of the kind would hardly change the sign."""
        return self.interval is not None and not self.interval.low <= 0 <= self.interval.high


def common(*columns: Sequence[object]) -> list[int]:
    """List the candidates that have an entry in every column."""
    return [idx for idx, entries in enumerate(zip(*columns, strict=True)) if None not in entries]


def taken(values: Values, idxs: Sequence[int]) -> Numbers:
    """Take the numbers of some candidates."""
    return np.array([values[idx] for idx in idxs], dtype=np.float64)


def figures_of(scores: Values, truths: Sequence[float], families: Sequence[str | None]) -> Figures:
    """Compare a score with a target; all three have one entry per candidate, None where there is none."""
    idxs = common(scores)
    a, b = taken(scores, idxs), taken(truths, idxs)
    return Figures(
        n=len(idxs),
        tau=kendall(a, b),
        tau_interval=bootstrap_interval(kendall, a, b),
        rho=spearman(a, b),
        rho_interval=bootstrap_interval(spearman, a, b),
        ndcg=ndcg(a, b, k=0.1),
        regret_1=regret_at_k(a, b, k=1),
        regret_5=regret_at_k(a, b, k=5),
        same_family=same_family_share(scores, truths, families),
    )


def same_family_share(scores: Values, truths: Sequence[float], families: Sequence[str | None]) -> float | None:
    """Compute the share of pairs within a family, of different truth, that the scores order right; a tie is half."""
    points = []
    for i, j in itertools.combinations(common(scores, families), 2):
        if families[i] == families[j] and truths[i] != truths[j]:
            a, b = taken(scores, [i, j])
            points.append(0.5 if a == b else float((a > b) == (truths[i] > truths[j])))
    return statistics.fmean(points) if points else None


def difference(first: Values, second: Values, targets: Sequence[Sequence[float]]) -> Difference:
    """Compare two scores by tau, or by the mean of their taus with several targets, on the same candidates.

    The interval is that of the difference itself: in each resample both scores have the same candidates and targets.
    """
    idxs = common(first, second)
    a, b = taken(first, idxs), taken(second, idxs)
    truths = [taken(target, idxs) for target in targets]

    def exceeds(places: Numbers, _: Numbers) -> float | None:
        drawn = places.astype(int)
        taus = [(kendall(a[drawn], truth[drawn]), kendall(b[drawn], truth[drawn])) for truth in truths]
        gaps = [one - other for one, other in taus if one is not None and other is not None]
        return statistics.fmean(gaps) if len(gaps) == len(taus) else None

    everyone = np.arange(len(idxs), dtype=float)  # positions are resampled, so that one draw serves scores and targets
    return Difference(len(idxs), exceeds(everyone, everyone), bootstrap_interval(exceeds, everyone, everyone))
