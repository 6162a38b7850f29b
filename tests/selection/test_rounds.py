"""How much the rounds of finals agree is Kendall's tau of those in both, with an interval that holds."""

import math

import numpy as np
import pytest
from scipy import stats

from lightning_zico.ranking import kendall_interval
from lightning_zico.selection.finalist import Finalist
from lightning_zico.selection.rounds import compare_rounds
from tests.selection.test_finals import Data, Saying, selector_of, trainer_of

VALUES = [[1.0, 4.0, 0.5, 3.0], [2.0, 3.0, 0.4], [3.0, 2.0], [4.0, 1.0], [5.0], [6.0]]


def finalists(values: list[list[float]]) -> list[Finalist]:
    found = []
    for own in values:
        finalist = Finalist([type("T", (), {"name": "x"})()])  # type: ignore[list-item]
        finalist.rounds = [(value,) for value in own]
        found.append(finalist)
    return found


def test_rounds_are_compared_on_the_finalists_of_both() -> None:
    (own,) = compare_rounds(finalists(VALUES))
    assert (own["round"], own["n"], own["tau"]) == (1, 4, -1.0)
    assert (own["low"], own["high"]) == kendall_interval(-1.0, 4)
    assert compare_rounds(finalists(VALUES[1:])) == []
    assert compare_rounds(finalists([[]])) == []
    (own,) = compare_rounds(finalists([[1.0, 2.0]] * 4))
    assert (own["tau"], own["low"], own["high"]) == (None, None, None)


def test_the_note_gives_the_tau_of_the_first_two_rounds() -> None:
    # The fifth and later ones leave after the first round; the first four change places in the second one.
    builds = {str(idx): (lambda idx=idx: Saying(-idx, idx / 10, (9 - idx) / 10)) for idx in range(8)}
    leaderboard = selector_of(trainer_of(6), 8).fit(builds, Data()).leaderboard_
    low, high = kendall_interval(-1.0, 4)
    said = (
        "Kendall's tau between the order of 4 finalists after 1 epoch and after 2 epochs is -1.00 "
        f"[{low:.2f}, {high:.2f}]: longer finals would be safer. No finalist was dropped."
    )
    assert said in leaderboard.notes
    dropped = selector_of(trainer_of(6), 8, least_agreement=-1).fit(builds, Data()).leaderboard_
    assert said.removesuffix(" No finalist was dropped.") in dropped.notes


@pytest.mark.parametrize("correlation", [0.0, 0.6, 0.95])
def test_the_interval_of_tau_holds_for_few_candidates(correlation: float) -> None:
    generator = np.random.default_rng(5)
    truth, inside, known = 2 / math.pi * math.asin(correlation), [], {}
    for _ in range(300):
        a, noise = generator.normal(size=(2, 6))
        tau = round(float(stats.kendalltau(a, correlation * a + math.sqrt(1 - correlation**2) * noise)[0]), 9)
        known.setdefault(tau, kendall_interval(tau, 6))
        inside.append(known[tau].low <= truth <= known[tau].high)
    assert np.mean(inside) >= 0.93


def test_the_interval_of_tau_is_symmetric_and_narrows() -> None:
    low, high = kendall_interval(0.2, 10)
    assert (-high, -low) == pytest.approx(tuple(kendall_interval(-0.2, 10)), abs=0.1)
    widths = [high - low for low, high in (kendall_interval(0.2, n) for n in (5, 10, 20))]
    assert widths == sorted(widths, reverse=True)
