"""What is learned from training agrees with inverting the matrix in the open, and its intervals hold."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lightning_zico.ranking.learned import (
    FEWEST_LABELS,
    LABEL_NOISE,
    choose_next,
    choose_spread,
    label_noise,
    learned_ranks,
)
from tests.reference import learned as reference

FEW = st.integers(-3, 3).map(float)  # ties are frequent


@st.composite
def pools(draw, fewest=1, most=24):
    """Scores, members with gaps, and labels of some candidates, of which some failed."""
    n = draw(st.integers(fewest, most))
    maybe = st.one_of(FEW, FEW, FEW, st.none())
    scores = draw(st.lists(maybe, min_size=n, max_size=n).filter(lambda s: any(v is not None for v in s)))
    names = draw(st.lists(st.sampled_from("abc"), unique=True))
    members = {name: draw(st.lists(maybe, min_size=n, max_size=n)) for name in names}
    ranked = [idx for idx, score in enumerate(scores) if score is not None]
    tried = draw(st.lists(st.sampled_from(ranked), unique=True))
    return scores, members, {idx: draw(maybe) for idx in tried}


def simulated(seed, n=120, num_members=3):
    """A pool whose members and results share a part; the scores are the mean of the members."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=n)
    table = shared + rng.normal(size=(num_members, n))
    truth = shared + 0.5 * rng.normal(size=n) + 0.5 * table[0]
    members = {str(idx): row.tolist() for idx, row in enumerate(table)}
    return table.mean(axis=0).tolist(), members, truth.tolist()


@given(pools(), st.integers(0, 3))
def test_the_choice_is_that_of_an_inverted_matrix(pool, num_pending):
    scores, members, labels = pool
    left = [idx for idx, score in enumerate(scores) if score is not None and idx not in labels]
    pending = left[:num_pending]
    chosen = choose_next(scores, members, labels, pending)
    if len(left) == len(pending):
        assert chosen is None
    elif sum(label is not None for label in labels.values()) < FEWEST_LABELS:
        assert chosen == reference.first_left(scores, {**labels, **dict.fromkeys(pending)})
    else:
        gains = reference.gains(scores, members, labels, pending)
        assert gains[chosen] == pytest.approx(max(gains.values()), abs=1e-6)


@given(pools(), st.sampled_from([0.0, 0.05, 0.16, 0.5, 2.0]))
def test_the_ranks_are_those_of_an_inverted_matrix(pool, noise):
    scores, members, labels = pool
    found = learned_ranks(scores, members, labels, noise)
    if sum(label is not None for label in labels.values()) < FEWEST_LABELS:
        assert found == [None] * len(scores)
        return
    expected = reference.ranks(scores, members, labels, noise)
    assert [idx for idx, rank in enumerate(found) if rank is not None] == sorted(expected)
    for idx, (middle, low, high) in expected.items():
        assert found[idx].expected == pytest.approx(middle, abs=1e-6)
        assert low - 0.5 - 1e-6 <= found[idx].low <= low + 0.5 + 1e-6
        assert high - 0.5 - 1e-6 <= found[idx].high <= high + 0.5 + 1e-6


@given(pools(fewest=9), st.floats(0.1, 10))
def test_only_the_order_of_the_labels_counts(pool, scale):
    scores, members, labels = pool
    other = {idx: None if label is None else math.exp(scale * label) for idx, label in labels.items()}
    assert choose_next(scores, members, other) == choose_next(scores, members, labels)
    assert learned_ranks(scores, members, other) == learned_ranks(scores, members, labels)


def test_the_first_eight_come_by_score_and_failed_ones_are_no_labels():
    scores, members, truth = simulated(0)
    by_score = sorted(range(len(scores)), key=lambda idx: -scores[idx])
    labels = {}
    for idx in by_score[: FEWEST_LABELS + 2]:
        assert choose_next(scores, members, labels) == idx
        labels[idx] = None if len(labels) < 2 else truth[idx]  # the first two fail
    assert choose_next(scores, members, labels) not in labels


def test_every_candidate_is_chosen_once_and_none_without_a_score():
    scores, members, truth = simulated(1, n=30)
    scores[3] = None
    labels = {}
    while (chosen := choose_next(scores, members, labels)) is not None:
        assert chosen not in labels
        labels[chosen] = truth[chosen]
    assert sorted(labels) == [idx for idx in range(30) if idx != 3]


def test_equal_labels_teach_nothing_but_that_and_one_candidate_is_no_choice():
    scores, members, _ = simulated(2, n=40)
    first = sorted(range(40), key=lambda idx: -scores[idx])[:FEWEST_LABELS]
    assert choose_next(scores, members, dict.fromkeys(first, 0.5)) not in first
    assert choose_next([1.0], {"a": [None]}, {}) == 0
    assert choose_next([1.0], {}, {0: 0.1}) is None
    assert choose_next([], {}, {}) is None


def test_a_good_surprise_leads_to_its_likes():
    """Two kinds of candidates with the same scores; all that was trained of the second is better."""
    scores = [float(-idx) for idx in range(40)]
    members = {"kind": [float(idx % 2) for idx in range(40)], "score": scores}
    labels = {idx: float(idx % 2) + 0.01 * idx for idx in range(FEWEST_LABELS)}
    assert choose_next(scores, members, labels) % 2 == 1


def test_candidates_in_training_spread_the_choices():
    """Of equal candidates that look like one in training, and others that do not, the others come first."""
    scores = [float(-idx) for idx in range(8)] + [0.0] * 6
    members = {"kind": [0.0] * 8 + [1.0, 1.0, 1.0, 5.0, 5.0, 5.0]}
    labels = {idx: float(idx) for idx in range(8)}
    first = choose_next(scores, members, labels)
    second = choose_next(scores, members, labels, [first])
    assert members["kind"][first] != members["kind"][second]


@given(st.integers(1, 50), st.integers(1, 60))
def test_spread_choices_are_as_far_apart_as_they_can_be(n, num):
    scores = [float(-idx) for idx in range(n)]
    places = choose_spread([*scores, None], num)
    assert len(set(places)) == min(n, num)
    bounds = [-0.5 - places[0] - 0.5, *places, 2 * n - 0.5 - places[-1] - 0.5]  # mirrored at both ends
    gaps = np.diff(bounds)
    assert gaps.max() - gaps.min() <= 2


@pytest.mark.parametrize("num", [8, 16, 32])
def test_intervals_of_ranks_hold_and_learning_orders_better_than_the_score(num):
    inside, learned, by_score = [], [], []
    for seed in range(30):
        scores, members, truth = simulated(seed)
        chosen = choose_spread(scores, num)
        ranks = learned_ranks(scores, members, {idx: truth[idx] for idx in chosen})
        true = stats.rankdata([-value for value in truth])
        inside += [rank.low <= own <= rank.high for rank, own in zip(ranks, true, strict=True)]
        learned.append(stats.kendalltau([-rank.expected for rank in ranks], truth)[0])
        by_score.append(stats.kendalltau(scores, truth)[0])
    assert 0.9 <= np.mean(inside) <= 0.98
    assert np.mean(learned) > np.mean(by_score)


@pytest.mark.parametrize("num_seeds", [2, 3])
@pytest.mark.parametrize("noise", [0.0, 0.2, 0.6])
def test_the_noise_of_labels_is_measured_from_their_seeds(noise, num_seeds):
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(2000, 1))
    table = truth + noise * math.sqrt(num_seeds) * rng.normal(size=(2000, num_seeds))
    measured = label_noise(table.tolist())
    assert measured == pytest.approx(np.std(table.mean(axis=1) - truth[:, 0]), rel=0.1)
    assert label_noise(np.exp(table).tolist()) == pytest.approx(measured)


def test_noise_that_cannot_be_measured_is_assumed_and_seeds_that_disagree_show_no_order():
    for table in ([[0.1], [0.2]] * 8, [[0.1, 0.2]] * 8, [[0.1, 0.2], [0.2, 0.1]], []):
        assert label_noise(table) == LABEL_NOISE
    with_a_constant = [[float(idx), float(idx % 3), 0.0] for idx in range(9)]
    tau = stats.kendalltau(range(9), [idx % 3 for idx in range(9)]).statistic  # the one pair that has a tau
    assert label_noise(with_a_constant) == pytest.approx(math.sqrt((1 / math.sin(math.pi / 2 * tau) - 1) / 3))
    opposed = [[float(idx), float(-idx)] for idx in range(8)]
    assert label_noise(opposed) == math.inf
    scores = [float(idx) for idx in range(40)]
    ranks = learned_ranks(scores, {}, {idx: float(idx) for idx in range(0, 40, 5)}, math.inf)
    assert all((ranks[idx].low, ranks[idx].high) == (1, 40) for idx in range(0, 40, 5))


@pytest.mark.parametrize(("row", "match"), [([0.3], "shorter|longer"), ([0.1, math.nan], "nan")])
def test_noise_of_results_that_are_missing_is_refused(row, match):
    with pytest.raises(ValueError, match=match):
        label_noise([*[[0.1, 0.2]] * 8, row])


@pytest.mark.parametrize("noise", [-0.1, math.nan])
def test_a_noise_that_is_no_deviation_is_refused(noise):
    with pytest.raises(ValueError, match=f"Invalid noise={noise}: expected a standard deviation of at least 0"):
        learned_ranks([1.0, 2.0], {}, {}, noise)


@pytest.mark.parametrize("noise", [0.0, 0.4, 0.8])
def test_intervals_of_ranks_hold_for_labels_of_two_seeds(noise):
    inside, trained, outer = [], [], []
    for seed in range(40):
        scores, members, truth = simulated(seed)
        chosen = choose_spread(scores, 64)
        errors = noise * math.sqrt(2) * np.std(truth) * np.random.default_rng(seed).normal(size=(64, 2))
        table = np.array(truth)[chosen, None] + errors
        labels = dict(zip(chosen, table.mean(axis=1).tolist(), strict=True))
        ranks = learned_ranks(scores, members, labels, label_noise(table.tolist()))
        true = stats.rankdata([-value for value in truth])
        own = [rank.low <= place <= rank.high for rank, place in zip(ranks, true, strict=True)]
        by_label = sorted(chosen, key=labels.__getitem__)
        inside += own
        trained += [own[idx] for idx in chosen]
        outer += [own[idx] for idx in (*by_label[:8], *by_label[-8:])]
    assert 0.9 <= np.mean(inside) <= 0.98
    assert 0.9 <= np.mean(trained) <= 0.98
    assert np.mean(outer) >= 0.9


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (([1.0, 2.0], {"a": [1.0]}, {}), "'a' has 1 scores: expected 2"),
        (([1.0, math.nan], {}, {}), "Score 1 of 'scores' is nan"),
        (([1.0, 2.0], {"a": [1.0, math.inf]}, {}), "Score 1 of 'a' is inf"),
        (([1.0, 2.0], {}, {0: math.nan}), "Score 0 of 'labels' is nan"),
        (([1.0, None], {}, {1: 2.0}), r"candidates at \[1\] have labels, but no score"),
        (([1.0], {}, {4: None}), r"candidates at \[4\] have labels, but no score"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(arguments, match):
    for function in (choose_next, learned_ranks):
        with pytest.raises(ValueError, match=match):
            function(*arguments)
