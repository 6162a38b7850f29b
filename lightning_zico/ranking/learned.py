r"""A ranking that learns from the candidates that were trained: which one to train next, and the order of all.

A Gaussian process over the candidates. Its prior mean is the score that ranks them; its kernel makes candidates alike
that have similar scores by every member of the recipe. Only the order of the labels counts.

.. math::
    s_i = \Phi^{-1}\Bigl(\frac{r(i) - 1/2}{n}\Bigr), \qquad
    x_{im} = \Phi^{-1}\Bigl(\frac{r_m(i) - 1/2}{n_m}\Bigr), \qquad
    d_{ij}^2 = \frac{1}{M} \sum_m (x_{im} - x_{jm})^2

.. math::
    t_i = \rho\, \bar s_L + \sqrt{\rho^2 \operatorname{var}(s_L) + 1 - \rho^2} \;
    \Phi^{-1}\Bigl(\frac{r_y(i) - 1/2}{|L|}\Bigr), \qquad i \in L

.. math::
    t = f + \varepsilon, \qquad f \sim \mathcal{GP}\bigl(\rho s,\ (1 - \rho^2)\, e^{-d^2 / 2}\bigr), \qquad
    \varepsilon \sim \mathcal{N}\bigl(0,\ \tfrac12 (1 - \rho^2)\bigr), \qquad \rho = 0.8

Index conventions:
    n: candidates with a score
    M: members of the recipe; ``n_m`` candidates have the score of member m
    L: trained candidates, whose results are the labels y

The ranks r, r_m and r_y count from 1 for the worst, and ties share the mean of their ranks. The labels t have the mean
and the variance that the prior expects of them, so any increasing function of y gives the same result.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, special, stats

from lightning_zico.ranking.aggregate import Values, check_finite
from lightning_zico.ranking.correlation import kendall

Numbers: TypeAlias = NDArray[np.float64]

# Correlation that the prior expects between the scores and the results of training.
PRIOR_CORRELATION = 0.8

# With fewer labels, nothing is learned: candidates are trained in the order of their scores.
FEWEST_LABELS = 8

# How many labels the prior's variance counts for, against the one that the labels show.
_PRIOR_WEIGHT = 4

# Standard deviation of a label's noise, in those of the results without it, unless it was measured: that at which
# Kendall's tau with the truth is 0.9.
LABEL_NOISE = 0.16

# Level of the intervals.
_LEVEL = 0.95

_KERNEL_VARIANCE = 1 - PRIOR_CORRELATION**2
_NOISE_VARIANCE = _KERNEL_VARIANCE / 2

# Pairs of candidates that are compared at once; 8 MB.
_TOGETHER = 1_000_000


class LearnedRank(NamedTuple):
    """The rank that a candidate is expected to have after training, 1 is best.

    Attributes:
        expected: Mean of the rank.
        low: Best rank in the 95 % interval.
        high: Worst rank in the 95 % interval.
    """

    expected: float
    low: int
    high: int


def choose_next(
    scores: Values, members: Mapping[str, Values], labels: Mapping[int, float | None], pending: Sequence[int] = ()
) -> int | None:
    r"""Choose the candidate to train next, in order to find the best one.

    The first `FEWEST_LABELS` are the best by score. After these, it is the one with the greatest expected
    improvement over the best of the trained ones:

    .. math::
        \operatorname{EI}_i = \sigma_i \bigl(\varphi(u_i) + u_i \Phi(u_i)\bigr), \qquad
        u_i = \frac{\mu_i - \max_{l \in L} \mu_l}{\sigma_i}

    with :math:`\mu_i` the mean of :math:`f_i` and :math:`\sigma_i` the standard deviation of
    :math:`f_i + \varepsilon_i`, both given the labels (see the top of this module). Most of :math:`\varepsilon` is
    specific to the candidate: noise of training is assumed to have a variance of :math:`0.16^2` (see `learned_ranks`),
    a seventh of that of :math:`\varepsilon`. So a candidate may differ from similar ones that were trained. The best
    label itself would be too high a bar, since labels have noise and the best one has more of it than others.

    A candidate whose training is not over counts as if its label were the mean that is expected of it ("kriging
    believer"): the means of all stay the same, the variances near it fall, and the bar is the best mean of the trained
    ones and these.

    Args:
        scores: One score per candidate, higher is better; None for a candidate that cannot be ranked and is not chosen.
        members: Scores of the same candidates by each member of the recipe, higher is better. A missing one is replaced
            by what the score says, that is by :math:`s_i`. Without members, only the score counts.
        labels: Results of the trained candidates, by position; higher is better. None for one that failed: it is
            not chosen again, and nothing is learned from it.
        pending: Positions of the candidates whose training is not over; none of them is in ``labels``.

    Returns:
        The position of the candidate; None if all were trained or are pending. Equal candidates are chosen in the order
        of their positions.

    Raises:
        ValueError: If lengths differ, a number is NaN or infinite, or a label's candidate has no score.

    Example:
        >>> choose_next([1.0, 3.0, 2.0], {}, {1: 0.9})  # the first ones come by score
        2

    Source:
        Jones, Schonlau & Welch, *Efficient global optimization of expensive black-box functions*, Journal of Global
        Optimization 1998, for the expected improvement; Picheny, Wagner & Ginsbourger, *A benchmark of kriging-based
        infill criteria for noisy optimization*, Structural and Multidisciplinary Optimization 2013, section 3, for the
        best mean as the bar ("plug-in"); Ginsbourger, Le Riche & Carraro, *Kriging is well-suited to parallelize
        optimization*, 2010, section 4.2, for candidates in training. The prior and the labels by rank are ours
        (benchmarks/README.md, ``finals.py``).
    """
    pool = _Pool.of(scores, members, labels)
    waiting = np.searchsorted(pool.positions, sorted(pending))
    left = np.setdiff1d(np.arange(len(pool.prior)), [*pool.tried, *waiting])
    if not left.size:
        return None
    gain = pool.prior
    if len(pool.trained) >= FEWEST_LABELS:
        mean, _, _ = pool.posterior()
        known = np.concatenate([pool.trained, waiting])
        _, parts = pool.solve(known)
        gain = expected_improvement(mean, np.sqrt(_variance(parts) + _NOISE_VARIANCE), float(mean[known].max()))
    # Where improvement is hopeless for all, rounding makes it equal; then the score decides.
    order = np.lexsort((-pool.prior[left], -gain[left]))
    return int(pool.positions[left[order[0]]])


def choose_spread(scores: Values, num: int) -> list[int]:
    r"""Choose candidates that are spread evenly over a ranking, to learn the order of all.

    They have the places :math:`\lfloor (j + 1/2)\, n / k \rfloor`, counted from 0 for the best.

    Args:
        scores: One score per candidate, higher is better; None for a candidate that cannot be ranked.
        num: Number of candidates k.

    Returns:
        Their positions, best first; all that can be ranked if there are no more.

    Example:
        >>> choose_spread([9.0, 8.0, 7.0, 6.0, 5.0, 4.0], 2)
        [1, 4]
    """
    ranked = [idx for idx, score in enumerate(scores) if score is not None]
    ranked.sort(key=lambda idx: -(scores[idx] or 0.0))  # stable: ties keep the order of their positions
    num = min(num, len(ranked))
    return [ranked[(2 * j + 1) * len(ranked) // (2 * num)] for j in range(num)]


def label_noise(table: Sequence[Sequence[float]]) -> float:
    r"""Measure the noise of labels that are means over several seeds, in standard deviations of the results without it.

    .. math::
        \delta^2 = \frac{1}{R} \Bigl(\frac{1}{\sin(\pi \tau / 2)} - 1\Bigr)

    with R the number of seeds and :math:`\tau` Kendall's tau of the results of two seeds, mean over all pairs of seeds.
    Two normal variables with this tau have the correlation :math:`\sin(\pi \tau / 2)`. Two seeds that add independent
    noise of variance :math:`R \delta^2` to the same results of variance 1 have the correlation
    :math:`1 / (1 + R \delta^2)`. With few candidates, tau is uncertain: eight may show no noise by chance.

    Args:
        table: For each of L trained candidates, one result for each of the R seeds.

    Returns:
        The standard deviation :math:`\delta`, to pass to `learned_ranks`; infinite if the seeds do not agree at all.
        `LABEL_NOISE`, which is assumed, with fewer than two seeds or `FEWEST_LABELS` candidates, or if no two seeds
        have a tau, because the results of the others are all equal.

    Raises:
        ValueError: If candidates differ in their number of seeds, or a result is NaN or infinite.

    Example:
        >>> label_noise([[0.1 * idx, 0.2 * idx] for idx in range(8)])  # both seeds give the same order
        0.0

    Source:
        The relation of tau and correlation: Greiner, 1909, as in `ranking.kendall_interval`.
    """
    seeds = list(zip(*table, strict=True))
    taus = [kendall(one, other) for one, other in combinations(seeds, 2)]
    known = [tau for tau in taus if tau is not None]
    if len(table) < FEWEST_LABELS or not known:
        return LABEL_NOISE
    correlation = math.sin(math.pi / 2 * statistics.fmean(known))
    return math.sqrt((1 / correlation - 1) / len(seeds)) if correlation > 0 else math.inf


def learned_ranks(
    scores: Values,
    members: Mapping[str, Values],
    labels: Mapping[int, float | None],
    noise: float = LABEL_NOISE,
) -> list[LearnedRank | None]:
    r"""Predict the rank of each candidate after training, from the results of those that were trained.

    The labels also show how well the scores predict them. Given them, f and :math:`f + \varepsilon` have Student's
    distribution with :math:`\nu` degrees of freedom, the means of the Gaussian process, and its variances times

    .. math::
        \lambda = \frac{\nu_0 + (t - \rho s_L)^\top K^{-1} (t - \rho s_L)}{\nu}, \qquad \nu = \nu_0 + |L|, \qquad
        \nu_0 = 4

    with K the covariance of the labels. A candidate that was not trained is expected at the rank
    :math:`1 + \sum_{j \ne i} P(g_j > g_i)`, where g is f for a trained candidate, :math:`f + \varepsilon` for the
    others, and normal with independent parts. The ends of its interval are the same sum at the ends of the 95 %
    interval of :math:`g_i`.

    A trained candidate with :math:`a_i - 1/2` labels above its own is expected at the rank

    .. math::
        \tfrac12 + n\, \Phi(m_i / \sqrt{1 + v}), \qquad
        m_i = \frac{\Phi^{-1}(a_i / |L|)}{\sqrt{1 + \delta^2}}, \qquad v = \frac{\delta^2}{1 + \delta^2}

    with :math:`\delta` the noise of a label, which adds to a standard normal result: given the label, the result has
    the mean :math:`m_i` and the variance v. The ends of its interval are at the distances

    .. math::
        \sqrt{\Bigl(t_{0.975, \nu}\, \frac{n - |L|}{|L|}\Bigr)^2 \sum_{l \in L} p_l (1 - p_l) + n^2 \bigl(
        \Phi(m_i \pm t_{0.975, \nu} \sqrt{v}) - \Phi(m_i / \sqrt{1 + v}) \bigr)^2}

    with :math:`p_l` the probability that :math:`f_l + \varepsilon_l` is above :math:`t_i` before training. If
    :math:`\delta` was not measured, it is assumed to be 0.16, at which the Kendall's tau of two rankings, by labels
    with and without noise, is 0.9. The intervals of other candidates do not depend on it: :math:`\varepsilon` has the
    noise in it, and :math:`\lambda` grows with it.

    A rank r stands for the numbers from r - 1/2 to r + 1/2, so ends are rounded to the nearest rank.

    The labels should be spread over the ranking (`choose_spread`). Those of the best candidates alone tell little about
    the others, and the intervals do not hold for them.

    Args:
        scores: As for `choose_next`.
        members: As for `choose_next`.
        labels: As for `choose_next`.
        noise: Standard deviation :math:`\delta` of a label's noise (`label_noise`).

    Returns:
        One rank per candidate; None for a candidate without a score, and for all with fewer than `FEWEST_LABELS`
        labels, for which the intervals are too narrow.

    Raises:
        ValueError: As for `choose_next`, or if the noise is negative or NaN.

    Example:
        >>> scores = [float(score) for score in range(100)]
        >>> first, *_ = learned_ranks(scores, {}, {idx: scores[idx] for idx in choose_spread(scores, 20)})
        >>> first.low <= 100 <= first.high
        True

    Source:
        The conjugate prior of a variance: Rasmussen & Williams, *Gaussian Processes for Machine Learning*, 2006,
        section 9.9 (Student's t process). Coverage was measured (benchmarks/README.md, ``finals.py``).
    """
    if not noise >= 0:
        raise ValueError(f"Invalid noise={noise}: expected a standard deviation of at least 0.")
    pool = _Pool.of(scores, members, labels)
    ranks: list[LearnedRank | None] = [None] * len(scores)
    if len(pool.trained) < FEWEST_LABELS:
        return ranks
    mean, variance, scale = pool.posterior()
    quantile = float(stats.t.ppf((1 + _LEVEL) / 2, _PRIOR_WEIGHT + len(pool.trained)))
    deviation = np.sqrt(scale * (variance + _NOISE_VARIANCE))
    deviation[pool.trained] = np.sqrt(scale * variance[pool.trained])
    margin, certain = quantile * deviation, np.zeros_like(mean)
    above = np.stack(
        [
            _num_above(mean, deviation, mean, deviation),
            _num_above(mean, deviation, mean + margin, certain),
            _num_above(mean, deviation, mean - margin, certain),
        ]
    )
    above[:, pool.trained] = pool.num_above_trained(scale, quantile, noise)
    expected, low, high = np.clip(1 + above, 1, len(mean))
    for position, *own in zip(pool.positions.tolist(), expected.tolist(), low.tolist(), high.tolist(), strict=True):
        ranks[position] = LearnedRank(own[0], math.ceil(own[1] - 0.5), math.floor(own[2] + 0.5))
    return ranks


def normal_scores(values: Numbers) -> Numbers:
    r"""Turn numbers into quantiles of the normal distribution by their ranks, :math:`\Phi^{-1}((r - 1/2) / n)`."""
    return np.asarray(special.ndtri((stats.rankdata(values) - 0.5) / max(len(values), 1)), dtype=np.float64)


def expected_improvement(mean: Numbers, deviation: Numbers, best: float) -> Numbers:
    """Compute how much normally distributed values exceed the best one on average; see `choose_next`."""
    u = (mean - best) / deviation
    density = np.exp(-(u**2) / 2) / np.sqrt(2 * np.pi)
    return np.asarray(deviation * (density + u * special.ndtr(u)), dtype=np.float64)


@dataclass(frozen=True)
class _Pool:
    """The candidates with a score, as the Gaussian process sees them.

    Args:
        positions: Their positions among all candidates, [n].
        prior: Normal scores s, [n].
        features: Normal scores x, [n, M].
        tried: Indices of those that were trained, or failed in training.
        trained: Indices of those that have a label, [L].
        labels: Their labels t, [L].
    """

    positions: NDArray[np.int64]
    prior: Numbers
    features: Numbers
    tried: NDArray[np.int64]
    trained: NDArray[np.int64]
    labels: Numbers

    @classmethod
    def of(cls, scores: Values, members: Mapping[str, Values], labels: Mapping[int, float | None]) -> "_Pool":
        for name, values in {"scores": scores, **members}.items():
            if len(values) != len(scores):
                raise ValueError(f"'{name}' has {len(values)} scores: expected {len(scores)}, one per candidate.")
            check_finite(name, values)
        check_finite("labels", list(labels.values()))
        positions = np.array([idx for idx, score in enumerate(scores) if score is not None], dtype=np.int64)
        if unknown := set(labels) - set(positions.tolist()):
            raise ValueError(f"The candidates at {sorted(unknown)} have labels, but no score. Leave them out.")
        prior = normal_scores(_taken(scores, positions))
        columns = [_filled(_taken(values, positions), prior) for values in members.values()] or [prior]
        tried = np.searchsorted(positions, sorted(labels))
        known = sorted(idx for idx, label in labels.items() if label is not None)
        trained = np.searchsorted(positions, known)
        own = prior[trained]
        spread = np.sqrt(PRIOR_CORRELATION**2 * own.var() + _KERNEL_VARIANCE) if known else 0.0
        center = PRIOR_CORRELATION * own.mean() if known else 0.0
        t = center + spread * normal_scores(np.array([labels[idx] for idx in known], dtype=np.float64))
        return cls(positions, prior, np.stack(columns, axis=1), tried, trained, t)

    def posterior(self) -> tuple[Numbers, Numbers, float]:
        """Compute mean and variance of f for every candidate, [n] each, and the factor of the variances.

        The factor is that of `learned_ranks`; the variances are without it.
        """
        factor, parts = self.solve(self.trained)
        unexpected = self.labels - PRIOR_CORRELATION * self.prior[self.trained]
        residuals = linalg.solve_triangular(factor, unexpected, lower=True)
        mean = PRIOR_CORRELATION * self.prior + residuals @ parts
        scale = (_PRIOR_WEIGHT + float(residuals @ residuals)) / (_PRIOR_WEIGHT + len(self.trained))
        return mean, _variance(parts), scale

    def solve(self, known: NDArray[np.int64]) -> tuple[Numbers, Numbers]:
        """Compute the Cholesky factor F of the covariance of some candidates' labels, and :math:`F^{-1} k` for all.

        Args:
            known: Indices of these candidates, [m].

        Returns:
            The factor, [m, m], and the other, [m, n].
        """
        pairs = zip(self.features[known].T, self.features.T, strict=True)
        squares = sum((a[:, None] - b) ** 2 for a, b in pairs) / self.features.shape[1]  # [m, n]
        kernel = _KERNEL_VARIANCE * np.exp(-squares / 2)
        factor = linalg.cholesky(kernel[:, known] + _NOISE_VARIANCE * np.eye(len(known)), lower=True)
        return factor, linalg.solve_triangular(factor, kernel, lower=True)

    def num_above_trained(self, scale: float, quantile: float, noise: float) -> Numbers:
        """Estimate how many candidates are above each trained one, and the ends of the interval, [3, L].

        Args:
            scale: The factor of the variances.
            quantile: The quantile of Student's distribution.
            noise: The standard deviation of a label's noise.
        """
        num, num_trained = len(self.prior), len(self.trained)
        ahead = stats.rankdata(-self.labels) - 0.5  # itself is half ahead
        known = 1 / math.hypot(1, noise)  # correlation of labels with and without noise
        unknown = math.sqrt(1 - known**2)
        mean = special.ndtri(ahead / num_trained) * known
        share = special.ndtr(mean / math.hypot(1, unknown))
        deviation = np.sqrt(scale * (_KERNEL_VARIANCE + _NOISE_VARIANCE))
        chances = special.ndtr((PRIOR_CORRELATION * self.prior[self.trained, None] - self.labels) / deviation)
        places = (num / num_trained - 1) * np.sqrt((chances * (1 - chances)).sum(axis=0))
        below, above = (
            np.hypot(quantile * places, num * (special.ndtr(mean + sign * quantile * unknown) - share))
            for sign in (-1, 1)
        )
        count = num * share - 0.5
        return np.stack([count, count - below, count + above])


def _variance(parts: Numbers) -> Numbers:
    """Compute the variance of f for every candidate, [n], from what `_Pool.solve` returns, [m, n]."""
    return np.asarray(_KERNEL_VARIANCE - (parts**2).sum(axis=0), dtype=np.float64)


def _taken(values: Values, positions: Sequence[int] | NDArray[np.int64]) -> Numbers:
    """Take the numbers of some candidates; NaN where there is none."""
    return np.array([np.nan if values[idx] is None else values[idx] for idx in positions], dtype=np.float64)


def _filled(values: Numbers, prior: Numbers) -> Numbers:
    """Turn a member's scores into normal scores, and replace missing ones by those of the score that ranks."""
    there = np.logical_not(np.isnan(values))
    filled = prior.copy()
    filled[there] = normal_scores(values[there])
    return filled


def _num_above(mean: Numbers, deviation: Numbers, values: Numbers, deviations: Numbers) -> Numbers:
    """Count for each candidate how many others are expected above a normally distributed value of its own, [n]."""
    counts = np.empty(len(mean))
    rows = max(_TOGETHER // max(len(mean), 1), 1)
    for start in range(0, len(mean), rows):
        part = slice(start, start + rows)
        apart = (mean[None, :] - values[part, None]) / np.hypot(deviation[None, :], deviations[part, None])
        above = special.ndtr(apart)
        above[np.arange(len(above)), np.arange(start, start + len(above))] = 0
        counts[part] = above.sum(axis=1)
    return counts
