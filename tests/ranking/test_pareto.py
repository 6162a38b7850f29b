"""Fronts and distances on them, against loops."""

import math
from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from lightning_zico.ranking import crowding_distances, first_front, front_numbers

POINTS = st.integers(1, 3).flatmap(
    lambda m: st.lists(st.tuples(*[st.integers(0, 4).map(float)] * m), min_size=1, max_size=12)
)


def dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return all(x >= y for x, y in zip(a, b, strict=True)) and a != b


@given(POINTS)
def test_a_front_is_what_is_left_when_those_before_it_are_taken_away(points: list[tuple[float, ...]]) -> None:
    left, expected, number = set(range(len(points))), {}, 0
    while left:
        front = {i for i in left if not any(dominates(points[j], points[i]) for j in left)}
        expected |= dict.fromkeys(front, number)
        left, number = left - front, number + 1
    assert front_numbers(points) == [expected[i] for i in range(len(points))]
    assert first_front(points) == [i for i in range(len(points)) if expected[i] == 0]


@given(
    st.lists(
        st.tuples(st.integers(0, 50), st.integers(0, 50)),
        min_size=3,
        max_size=9,
        unique_by=(lambda p: p[0], lambda p: p[1]),
    )
)
def test_a_distance_is_that_of_the_neighbours_in_each_objective(points: list[tuple[int, int]]) -> None:
    for idx, found in enumerate(crowding_distances(points)):
        expected = 0.0
        for axis in (0, 1):
            values = sorted(point[axis] for point in points)
            place = values.index(points[idx][axis])
            if place in (0, len(values) - 1):
                expected = math.inf
            else:
                expected += (values[place + 1] - values[place - 1]) / (values[-1] - values[0])
        assert math.isclose(found, expected)


def test_equal_points_share_a_front_and_nothing_has_none() -> None:
    assert front_numbers(list(product([1.0], [2.0])) * 3) == [0, 0, 0]
    assert front_numbers([]) == first_front([]) == []
    assert crowding_distances([(1.0, 1.0)] * 3)[1] == 0


def test_the_first_front_of_very_many_takes_no_matrix_of_all_pairs() -> None:
    points = [(float(idx % 1000), float(idx)) for idx in range(100_000)]  # all pairs would be 10 GB
    assert first_front(points) == [99_999]
    both = [(float(idx), float(-idx)) for idx in range(100_000)]  # as are scores that grow with the cost
    assert first_front(both) == list(range(100_000))
