"""What repeats say of a ranking agrees with counting every resample, and with known coverage."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lightning_zico.ranking.uncertainty import (
    bootstrap_ranks,
    difference_interval,
    rank_interval,
    standard_error,
    tie_groups,
    uncertainties,
)

FEW = st.integers(-3, 3).map(float)  # ties are frequent
TABLES = st.integers(2, 4).flatmap(
    lambda repeats: st.lists(st.lists(FEW, min_size=repeats, max_size=repeats), min_size=1, max_size=6)
)


def every_resample(table):
    """Rank by counting, for each of the R^R equally probable draws."""
    num_repeats = len(table[0])
    for draw in itertools.product(range(num_repeats), repeat=num_repeats):
        sums = [sum(int(row[idx]) for idx in draw) for row in table]
        yield [1 + sum(other > own for other in sums) for own in sums]


@given(TABLES)
def test_the_probability_of_being_best_is_the_share_of_all_resamples(table):
    expected = np.zeros(len(table))
    total = 0
    for ranks in every_resample(table):
        expected += [(rank == 1) / ranks.count(1) for rank in ranks]
        total += 1
    said = [u.p_best for u in uncertainties(table, num_resamples=2000)]
    assert sum(said) == pytest.approx(1)
    # The deviation of a share of 2000 draws is at most 0.011; five of them.
    np.testing.assert_allclose(said, expected / total, atol=0.056)


@given(TABLES)
def test_intervals_hold_ranks_that_occur_and_the_middle_of_them(table):
    occurring = [set(ranks) for ranks in zip(*every_resample(table), strict=True)]
    ranks = bootstrap_ranks(np.array(table), num_resamples=500)
    for own, possible, said in zip(ranks.T, occurring, uncertainties(table, num_resamples=500), strict=True):
        assert (said.rank_low, said.rank_high) == rank_interval(own)
        assert {said.rank_low, said.rank_high} <= possible
        assert np.mean((own >= said.rank_low) & (own <= said.rank_high)) >= 0.95


def test_the_same_repeats_are_drawn_for_all_so_that_a_common_luck_does_not_blur():
    luck = np.random.default_rng(0).normal(size=6) * 100
    first, second = uncertainties([luck + 0.1, luck])
    assert (first.rank_low, first.rank_high, first.p_best) == (1, 1, 1.0)
    assert (second.rank_low, second.rank_high, second.tie) == (2, 2, 2)
    assert first.std_error == pytest.approx(np.std(luck, ddof=1) / math.sqrt(6))


def test_a_seed_draws_the_same():
    table = np.random.default_rng(0).normal(size=(5, 4)).tolist()
    assert uncertainties(table, seed=3) == uncertainties(table, seed=3)
    assert uncertainties(table, seed=3) != uncertainties(table, seed=4)


def test_one_repeat_says_nothing():
    assert uncertainties([[1.0], [2.0]]) == [(None, None, None, None, None, 1)] * 2
    assert standard_error([1.0]) is None
    assert uncertainties([]) == []


@given(st.lists(st.tuples(FEW, FEW), min_size=2, max_size=8))
def test_the_interval_of_a_difference_is_that_of_the_paired_t_test(pairs):
    a, b = zip(*pairs, strict=True)
    low, high = difference_interval(a, b)
    differences = np.subtract(a, b)
    if np.ptp(differences) == 0:
        assert low == high == differences[0]
    else:
        expected = stats.ttest_rel(a, b).confidence_interval(0.95)
        assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-9)  # a few sums of floats


@pytest.mark.parametrize("num_repeats", [2, 3, 8])
def test_the_interval_of_a_difference_covers_the_truth_in_95_of_100_cases(num_repeats):
    draws = np.random.default_rng(0).normal(0.7, 2.0, size=(2000, num_repeats))
    intervals = [difference_interval(row, np.zeros(num_repeats)) for row in draws]
    covered = np.mean([low <= 0.7 <= high for low, high in intervals])
    assert covered == pytest.approx(0.95, abs=0.02)  # the deviation of such a share is 0.005


def test_groups_are_measured_from_their_first_not_from_neighbour_to_neighbour():
    noise = np.array([[1.0, -1.0, 1.0, -1.0], [-1.0, 1.0, -1.0, 1.0], [1.0, -1.0, 1.0, -1.0], [-1.0, 1.0, -1.0, 1.0]])
    table = noise + np.array([[6.0], [4.5], [3.0], [-9.0]])
    # Differences from the first: 1.5 with noise, 3 without any, so that the third opens a group.
    assert tie_groups(table.tolist()) == [1, 1, 2, 3]
    assert tie_groups(table[::-1].tolist()) == [3, 2, 1, 1]


def test_equal_candidates_are_a_tie_and_share_being_best():
    first, second, third = uncertainties([[1.0, 2.0], [1.0, 2.0], [0.0, 1.0]])
    assert (first.p_best, second.p_best, third.p_best) == (0.5, 0.5, 0.0)
    assert (first.tie, second.tie, third.tie) == (1, 1, 2)
    assert (second.rank_low, second.rank_high) == (1, 1)


def test_wrong_tables_are_refused():
    with pytest.raises(ValueError, match=r"\[1, 2\] repeats: expected the same number for all"):
        uncertainties([[1.0], [1.0, 2.0]])
    with pytest.raises(ValueError, match=r"\[0\] repeats"):
        uncertainties([[], []])
    with pytest.raises(ValueError, match="num_resamples=0"):
        uncertainties([[1.0, 2.0]], num_resamples=0)
    with pytest.raises(ValueError, match="NaN or infinite"):
        uncertainties([[1.0, math.nan], [0.0, 0.0]])
    with pytest.raises(ValueError, match="The number of repeats is 1: expected at least 2"):
        difference_interval([1.0], [2.0])
