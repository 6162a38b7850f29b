"""Aggregates speak of ranks only, and of candidates that have every score."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lightning_zico.ranking import log_rank, mean_rank, size_controlled
from tests.reference.ranking import rank, sum_of_logs

# Whole numbers, few of them, so that ties are frequent.
SCORES = st.one_of(st.none(), st.integers(-4, 4).map(float))


@st.composite
def tables(draw, values=SCORES, max_members=4):
    num_candidates = draw(st.integers(0, 8))
    column = st.lists(values, min_size=num_candidates, max_size=num_candidates)
    columns = draw(st.lists(column, min_size=1, max_size=max_members))
    return {f"proxy{i}": column for i, column in enumerate(columns)}


def complete(table):
    """Columns of the candidates that have all members, and the places of these candidates."""
    places = [i for i, row in enumerate(zip(*table.values(), strict=True)) if None not in row]
    return [[column[i] for i in places] for column in table.values()], places


@given(tables())
def test_log_rank_is_the_sum_of_the_logs_of_counted_ranks(table):
    columns, places = complete(table)
    values = log_rank(table)
    assert [i for i, value in enumerate(values) if value is not None] == places
    assert [values[i] for i in places] == pytest.approx(sum_of_logs(columns), abs=1e-12)  # sums of a few logarithms


@given(tables())
def test_mean_rank_is_the_mean_of_counted_ranks(table):
    columns, places = complete(table)
    values = mean_rank(table)
    assert [i for i, value in enumerate(values) if value is not None] == places
    means = [sum(ranks) / (len(places) * len(columns)) for ranks in zip(*map(rank, columns), strict=True)]
    assert [values[i] for i in places] == means


@pytest.mark.parametrize("aggregate", [log_rank, mean_rank])
@given(tables(), st.lists(st.sampled_from([math.exp, math.atan, lambda x: x**3, lambda x: 1e6 * x - 3]), min_size=4))
def test_rising_transformations_of_any_member_change_nothing(aggregate, table, transformations):
    moved = {
        name: [None if v is None else rise(v) for v in column]
        for (name, column), rise in zip(table.items(), transformations, strict=False)
    }
    assert aggregate(moved) == aggregate(table)


@pytest.mark.parametrize("aggregate", [log_rank, mean_rank])
@given(tables(), st.randoms(use_true_random=False))
def test_values_follow_their_candidates_whatever_the_order(aggregate, table, random):
    order = list(range(len(next(iter(table.values())))))
    random.shuffle(order)
    shuffled = {name: [column[i] for i in order] for name, column in table.items()}
    values = aggregate(table)
    assert aggregate(shuffled) == [values[i] for i in order]
    assert aggregate(dict(reversed(table.items()))) == values  # nor does that of the members matter


@pytest.mark.parametrize("aggregate", [log_rank, mean_rank])
@given(tables())
def test_who_is_at_least_as_good_everywhere_is_not_behind(aggregate, table):
    columns, places = complete(table)
    values = aggregate(table)
    rows = list(zip(*columns, strict=True))
    for row, i in zip(rows, places, strict=True):
        for other, j in zip(rows, places, strict=True):
            if all(x >= y for x, y in zip(row, other, strict=True)):
                assert values[i] >= values[j]


def test_log_rank_equals_the_published_lines_of_code():
    rng = np.random.default_rng(0)
    columns = rng.integers(0, 300, (5, 500)).astype(float)
    published = sum(np.log(stats.rankdata(column) / 500) for column in columns)
    ours = log_rank({str(i): column.tolist() for i, column in enumerate(columns)})
    np.testing.assert_allclose(ours, published, rtol=0, atol=1e-12)


def test_equal_products_of_ranks_are_equal_values():
    # 1 x 6 = 2 x 3 = 3 x 2, also where the logarithms of the factors are rounded
    values = log_rank({"a": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "b": [6.0, 3.0, 2.0, 4.0, 5.0, 1.0]})
    assert values[0] == values[1] == values[2] == values[5]


def test_a_single_candidate_is_last_and_first():
    assert log_rank({"a": [3.0], "b": [-1.0]}) == [0.0]
    assert mean_rank({"a": [3.0], "b": [-1.0]}) == [1.0]
    assert size_controlled([3.0], [1.0]) == [0.0]


@pytest.mark.parametrize("aggregate", [log_rank, mean_rank])
def test_who_lacks_a_score_has_none_and_takes_no_rank(aggregate):
    with_gap = aggregate({"a": [1.0, None, 2.0, 9.0], "b": [1.0, 2.0, 3.0, None]})
    without = aggregate({"a": [1.0, 2.0], "b": [1.0, 3.0]})
    assert with_gap == [without[0], None, without[1], None]
    assert aggregate({"a": [None, 1.0], "b": [1.0, None]}) == [None, None]
    assert aggregate({"a": [], "b": []}) == []


@pytest.mark.parametrize("aggregate", [log_rank, mean_rank])
def test_one_more_candidate_changes_the_others(aggregate):
    assert aggregate({"a": [1.0, 2.0]})[0] != aggregate({"a": [1.0, 2.0, 3.0]})[0]


@pytest.mark.parametrize("aggregate", [log_rank, mean_rank])
def test_wrong_tables_are_refused(aggregate):
    with pytest.raises(ValueError, match=r"`scores` is empty.*at least one member"):
        aggregate({})
    with pytest.raises(ValueError, match=r"\{'a': 2, 'b': 1\}: expected one per candidate.*Use None"):
        aggregate({"a": [1.0, 2.0], "b": [1.0]})
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match=r"Score 1 of 'b' is -?(nan|inf).*Use None"):
            aggregate({"a": [1.0, 2.0], "b": [1.0, bad]})


@given(tables(max_members=2).filter(lambda table: len(table) == 2))
def test_what_is_left_of_a_proxy_is_the_residual_of_a_fitted_line(table):
    (y, x), places = complete(table)
    values = size_controlled(*table.values())
    assert [i for i, value in enumerate(values) if value is not None] == places
    y, x = np.array(rank(y)), np.array(rank(x))
    degree = 1 if len(set(x)) > 1 else 0
    fitted = np.polyval(np.polyfit(x, y, degree), x) if len(x) else y
    np.testing.assert_allclose([values[i] for i in places], y - fitted, rtol=0, atol=1e-9)  # by singular values


@given(st.lists(st.floats(-1e6, 1e6), max_size=30))
def test_nothing_at_all_is_left_of_a_proxy_that_repeats_the_size(sizes):
    assert size_controlled([3 * size for size in sizes], sizes) == [0.0] * len(sizes)


def test_a_constant_baseline_explains_nothing():
    assert size_controlled([5.0, 9.0, None, 9.0], [1.0, 1.0, 1.0, 1.0]) == [-1.0, 0.5, None, 0.5]


def test_wrong_pairs_are_refused():
    with pytest.raises(ValueError, match=r"\{'scores': 1, 'baseline': 2\}"):
        size_controlled([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="Score 0 of 'baseline' is nan"):
        size_controlled([1.0], [math.nan])
