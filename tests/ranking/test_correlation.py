"""Measures agree with counting, are None where they are not defined, and never warn (a warning fails these tests)."""

import functools
import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from lightning_zico.ranking import (
    Interval,
    bootstrap_interval,
    kendall,
    kendall_where_both,
    ndcg,
    regret_at_k,
    spearman,
)
from tests.reference import ranking as reference

MEASURES = [kendall, spearman, ndcg, regret_at_k]
FEW = st.integers(-3, 3).map(float)  # ties are frequent
ANY = st.floats(-1e100, 1e100)


def pairs(values, min_size=0, max_size=6):
    # Every order is tried by the twins: 6! of them.
    return st.lists(st.tuples(values, values), min_size=min_size, max_size=max_size).map(
        lambda rows: ([a for a, _ in rows], [b for _, b in rows])
    )


def varied(values):
    return len(set(values)) > 1


@given(pairs(FEW, max_size=20))
def test_kendall_is_what_counting_pairs_gives(pair):
    tau = kendall(*pair)
    if varied(pair[0]) and varied(pair[1]):
        assert tau == pytest.approx(reference.tau_b(*pair), abs=1e-12)  # one rounded root
    else:
        assert tau is None


@given(pairs(FEW, max_size=20))
def test_spearman_is_pearson_of_counted_ranks(pair):
    rho = spearman(*pair)
    if varied(pair[0]) and varied(pair[1]):
        assert rho == pytest.approx(reference.pearson(*map(reference.rank, pair)), abs=1e-12)
    else:
        assert rho is None


@given(pairs(FEW), st.integers(1, 7))
def test_ndcg_is_the_average_over_all_orders_of_the_tied(pair, k):
    gain = ndcg(*pair, k)
    if varied(pair[1]):
        assert gain == pytest.approx(reference.ndcg(*pair, k), abs=1e-12)  # sums of a few terms
    else:
        assert gain is None


@given(pairs(FEW, min_size=1), st.integers(1, 7))
def test_regret_is_the_average_over_all_orders_of_the_tied(pair, k):
    assert regret_at_k(*pair, k) == pytest.approx(reference.regret(*pair, k), abs=1e-12)


@given(pairs(FEW, min_size=2, max_size=30), st.integers(1, 30))
def test_ndcg_is_that_of_scikit_learn_on_the_scaled_truth(pair, k):
    scores, truth = map(np.array, pair)
    if varied(truth):
        gains = (truth - truth.min()) / np.ptp(truth)
        assert ndcg(scores, truth, k) == pytest.approx(ndcg_score([gains], [scores], k=k), abs=1e-12)


@given(pairs(ANY, max_size=20))
def test_no_measure_is_ever_nan(pair):
    for measure in MEASURES:
        value = measure(*pair)
        assert value is None or (type(value) is float and math.isfinite(value))
    for correlation in (kendall(*pair), spearman(*pair)):
        assert correlation is None or -1 <= correlation <= 1
    assert regret_at_k(*pair) is None or regret_at_k(*pair) >= 0
    assert ndcg(*pair) is None or 0 <= ndcg(*pair) <= 1


@given(st.lists(ANY, min_size=2, max_size=20, unique=True), st.integers(1, 20))
def test_the_perfect_order_loses_nothing(truth, k):
    places = [float(sum(other < t for other in truth)) for t in truth]
    assert kendall(places, truth) == pytest.approx(1)
    assert spearman(places, truth) == pytest.approx(1)
    assert ndcg(places, truth, k) == pytest.approx(1)
    assert regret_at_k(places, truth, k) == 0


@given(st.lists(ANY, min_size=2, max_size=20, unique=True))
def test_the_reverse_order_is_the_worst(truth):
    places = [float(sum(other > t for other in truth)) for t in truth]
    assert kendall(places, truth) == pytest.approx(-1)
    assert spearman(places, truth) == pytest.approx(-1)
    assert ndcg(places, truth, 1) == 0
    assert regret_at_k(places, truth) == pytest.approx(max(truth) - min(truth))


@given(pairs(FEW, min_size=2, max_size=12))
def test_correlations_know_no_direction_between_the_two(pair):
    a, b = pair
    for measure in (kendall, spearman):
        if measure(a, b) is not None:
            assert measure(b, a) == pytest.approx(measure(a, b))
            assert measure([-x for x in a], b) == pytest.approx(-measure(a, b))


@given(pairs(FEW, min_size=2, max_size=12))
def test_shift_and_scale_of_the_truth_do_not_change_ndcg(pair):
    scores, truth = pair
    before, after = ndcg(scores, truth, 3), ndcg(scores, [0.9 + t / 100 for t in truth], 3)
    assert (before is None) == (after is None)
    assert before == pytest.approx(after, abs=1e-9) if before is not None else True  # 0.9 + t / 100 is rounded


def test_regret_is_in_the_unit_of_the_truth_and_shrinks_with_k():
    scores, truth = [5.0, 4.0, 3.0, 2.0], [91.0, 90.0, 93.5, 94.0]
    assert [regret_at_k(scores, truth, k) for k in (1, 2, 3, 4, 9)] == [3.0, 3.0, 0.5, 0.0, 0.0]


def test_a_fraction_counts_from_all_candidates():
    rng = np.random.default_rng(0)
    scores, truth = rng.normal(size=(2, 40))
    for measure in (ndcg, regret_at_k):
        assert measure(scores, truth, 0.1) == measure(scores, truth, 4)
        assert measure(scores, truth, 0.001) == measure(scores, truth, 1)
        assert measure(scores, truth, 1.0) == measure(scores, truth, 40) == measure(scores, truth, 99)
    assert ndcg(scores, truth) == ndcg(scores, truth, 40)


@pytest.mark.parametrize("measure", [ndcg, regret_at_k])
@pytest.mark.parametrize("k", [0, -1, 0.0, 1.5, math.nan])
def test_a_count_out_of_range_is_refused(measure, k):
    with pytest.raises(ValueError, match=r"Invalid k=.*: expected a whole number of at least 1, or a fraction"):
        measure([1.0, 2.0], [1.0, 2.0], k)


@pytest.mark.parametrize("measure", [*MEASURES, functools.partial(bootstrap_interval, kendall)])
def test_wrong_pairs_are_refused(measure):
    with pytest.raises(ValueError, match=r"shapes \[2\] and \[1\]: expected one number per candidate"):
        measure([1.0, 2.0], [1.0])
    for bad in (math.nan, math.inf, None):
        with pytest.raises(ValueError, match=r"Candidate 1 has the numbers .* expected finite numbers. Leave out"):
            measure([1.0, 2.0], [1.0, bad])


def test_what_is_not_defined_is_none():
    assert [measure([], []) for measure in MEASURES] == [None] * 4
    assert [measure([1.0], [2.0]) for measure in MEASURES] == [None, None, None, 0.0]
    assert [measure([1.0, 2.0], [3.0, 3.0]) for measure in MEASURES] == [None, None, None, 0.0]
    assert kendall([1.0, 1.0], [3.0, 4.0]) is spearman([1.0, 1.0], [3.0, 4.0]) is None


def noisy(num_candidates):
    rng = np.random.default_rng(1)
    truth = rng.normal(size=num_candidates)
    return truth + rng.normal(size=num_candidates), truth


@pytest.mark.parametrize("measure", [*MEASURES, functools.partial(ndcg, k=0.1)])
def test_the_interval_is_that_of_the_seed_and_covers_the_measure(measure):
    a, b = noisy(40)
    first = bootstrap_interval(measure, a, b, num_resamples=200, seed=3)
    assert first == bootstrap_interval(measure, a.tolist(), b.tolist(), num_resamples=200, seed=3)
    assert first != bootstrap_interval(kendall, a, b, num_resamples=200, seed=4)
    assert isinstance(first, Interval)
    assert first.low <= measure(a, b) <= first.high


def test_the_interval_widens_with_the_level_and_narrows_with_the_candidates():
    a, b = noisy(320)

    def width(n, level):
        low, high = bootstrap_interval(kendall, a[:n], b[:n], level=level, num_resamples=200)
        return high - low

    assert width(20, 0.5) < width(20, 0.9)
    # Its width falls with the root of n: sixteen times the candidates, a quarter of it, give or take the noise.
    assert 2.5 < width(20, 0.9) / width(320, 0.9) < 6


def test_the_interval_has_the_width_that_theory_gives():
    # Without any relation the deviation of tau is sqrt(2 (2n + 5) / (9 n (n - 1))) (Kendall 1938).
    a, b = np.random.default_rng(0).normal(size=(2, 100))
    low, high = bootstrap_interval(kendall, a, b)
    deviation = math.sqrt(2 * 205 / (9 * 100 * 99))
    assert (high - low) / (2 * 1.96 * deviation) == pytest.approx(1, abs=0.25)  # one draw of 100 pairs


def test_resamples_without_a_measure_are_left_out():
    # Of two candidates half of the resamples draw one of them twice: constant, so no tau; all others give 1.
    assert bootstrap_interval(kendall, [1.0, 2.0], [1.0, 2.0]) == (1.0, 1.0)
    assert bootstrap_interval(kendall, [1.0, 1.0], [1.0, 2.0]) is None
    assert bootstrap_interval(kendall, [], []) is None
    assert bootstrap_interval(regret_at_k, [1.0], [2.0]) == (0.0, 0.0)


def test_options_out_of_range_are_refused():
    for level in (0.0, 1.0, 95):
        with pytest.raises(ValueError, match=r"Invalid level=.* above 0 and below 1"):
            bootstrap_interval(kendall, [1.0], [1.0], level=level)
    with pytest.raises(ValueError, match="num_resamples=0: expected at least 1"):
        bootstrap_interval(kendall, [1.0], [1.0], num_resamples=0)


def test_three_hundred_candidates_take_seconds():
    start = time.process_time()
    bootstrap_interval(kendall, *noisy(300))
    assert time.process_time() - start < 10  # 0.4 s measured; counting pairs in Python takes minutes


@given(st.lists(st.tuples(st.none() | st.integers(0, 4), st.none() | st.integers(0, 4)), max_size=8))
def test_where_a_number_is_missing_the_candidate_is_left_out(rows):
    both = [(a, b) for a, b in rows if a is not None and b is not None]
    tau = kendall_where_both([a for a, _ in rows], [b for _, b in rows])
    assert tau == kendall([a for a, _ in both], [b for _, b in both])
    if tau is not None:
        assert tau == pytest.approx(reference.tau_b(*zip(*both, strict=True)))
