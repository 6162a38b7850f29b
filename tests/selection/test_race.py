"""A race has the winner of the full run on half of the repeats, and every candidate keeps the numbers it had."""

import math
from typing import Any

import numpy as np
import pytest
from torch import nn

from lightning_zico import Candidate, Score, ScoreCard, ZeroShotSelector
from lightning_zico.candidates import iterate_candidates
from lightning_zico.scoring.choice import Choice
from lightning_zico.selection.race import hold_race
from lightning_zico.selection.tally import Tally
from tests.modules import Classifier, make_network
from tests.selection.played import played, race_table
from tests.selection.test_selector import Data, Quadruple, broken
from tests.selection.test_tally import drawn


@pytest.mark.slow
def test_a_race_finds_the_full_runs_winner_on_half_of_the_repeats() -> None:
    for seed in range(3):
        table = race_table(seed)
        full, raced = played(table), played(table, race=True)
        assert raced[1].best == full[1].best
        assert sum(full[0].proxies.counts) == 64
        assert 8 < sum(raced[0].proxies.counts) <= 32
        assert min(raced[0].proxies.counts) == 1
        assert isinstance(raced[0].best_model_, nn.Linear)
        assert raced[1].provenance["race"] is True


@pytest.mark.slow
def test_a_race_by_a_recipe_has_the_full_runs_winner_in_95_of_100_simulations() -> None:
    choice, num_candidates, repeats = Choice.of("default"), 32, 10
    names = [proxy.name for proxy in choice.proxies]
    candidates = [Candidate(str(idx), make_network) for idx in range(num_candidates)]
    agreed = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        quality = rng.normal(size=(num_candidates, 1))
        means = 0.7 * quality + math.sqrt(1 - 0.7**2) * rng.normal(size=(num_candidates, len(names)))
        table = means[..., None] + 0.1 * rng.normal(size=(num_candidates, len(names), repeats))
        winners, counts = [], []
        for is_race in (False, True):
            tally, count = Tally(choice, repeats), 0

            def score(offered: Any, asked: Any, tally: Tally = tally, table: Any = table) -> None:
                nonlocal count
                for job in tally.jobs(iterate_candidates(offered), asked):
                    values = table[int(job.candidate.name), :, job.repeat_idx].tolist()
                    scores = {name: Score(name, value) for name, value in zip(names, values, strict=True)}
                    tally.add(job, ScoreCard(job.candidate.name, scores))
                    count += 1

            if is_race:
                hold_race(candidates, tally, score)
            else:
                score(candidates, range(repeats))
            said = tally.uncertainty()
            best = max(
                tally.merge(), key=lambda card: (len(card[choice.rank_by].by_repeat), card[choice.rank_by].value)
            )
            assert len(said) == num_candidates
            winners.append(best.name)
            counts.append(count)
        agreed += winners[0] == winners[1]
        assert counts[1] <= counts[0] / 2
    assert agreed >= 95


def test_a_race_with_one_repeat_each_notes_that_there_are_no_error_bars() -> None:
    _, leaderboard = played([[1.0, 2.0, 3.0], [2.0, 3.0, 4.0]], race=True)
    assert any("no error bars" in note for note in leaderboard.notes)


# In the second the early repeats are the lucky ones, so that who left has the higher mean.
@pytest.mark.parametrize("luck", [0.0, 100.0])
def test_a_raced_leaderboard_is_ordered_by_how_far_candidates_came(luck: float) -> None:
    table = [[score - luck * repeat_idx for repeat_idx, score in enumerate(row)] for row in race_table(0)]
    selector, leaderboard = played(table, race=True)
    rows = [row for row in leaderboard if row["rank"]]
    assert [row["rank"] for row in rows] == list(range(1, 9))
    for row in rows:
        idx, count = int(row["name"][1:]), row["num_repeats"]
        assert count == selector.proxies.counts[idx]
        assert list(selector.cards_[row["name"]]["played"].by_repeat) == table[idx][:count]
        assert row["score"] == pytest.approx(np.mean(table[idx][:count]))
        assert (row["std_error"] is None) == (row["rank_low"] is None) == (count == 1)
    keys = [(-row["num_repeats"], -row["score"]) for row in rows]
    assert keys == sorted(keys)
    most = max(row["num_repeats"] for row in rows)
    finalists = [row for row in rows if row["num_repeats"] == most]
    assert sum(row["p_best"] for row in finalists) == pytest.approx(1)
    assert all(row["p_best"] is row["tie"] is None for row in rows[len(finalists) :])
    assert f"Race: the first {len(finalists)} have {most} repeats" in " ".join(leaderboard.notes)


def test_a_candidate_that_fails_during_a_race_is_out_and_the_others_go_on() -> None:
    table: list[list[float | None]] = [[float(idx)] * 8 for idx in range(8)]
    table[7][2] = None
    table[6] = [None] * 8
    _, leaderboard = played(table, race=True)
    assert leaderboard.best == "c5"
    assert leaderboard.errors == {
        "c6": "RuntimeError: no luck (in repeat 0)",
        "c7": "RuntimeError: no luck (in repeat 2)",
    }


def test_a_recipe_ranks_a_race_and_every_candidate_failing_is_no_crash() -> None:
    selector = ZeroShotSelector(repeats=4, race=True, controlled_by="params")
    widths = {str(width): lambda width=width: Classifier(width) for width in (2, 4, 8, 16)}
    leaderboard = selector.rank({**widths, "broken": broken}, Data())
    assert leaderboard.best == ZeroShotSelector(repeats=4).rank(widths, Data()).best == "16"
    assert leaderboard.provenance["kendall_with"]["params"] == 1.0
    assert all(row["controlled"] == 0 for row in leaderboard if row["rank"])
    assert len(ZeroShotSelector(repeats=4, race=True).rank([broken, broken], Data()).errors) == 2


def test_a_race_accepts_a_generator_of_factories_but_not_of_modules() -> None:
    selector = ZeroShotSelector(proxies="zico", repeats=4, race=True)
    leaderboard = selector.rank((build for build in (Classifier, Quadruple)), Data())
    assert leaderboard.best == "Quadruple"
    assert selector.rank([Classifier(), Quadruple()], Data()).best == "Quadruple"
    with pytest.raises(TypeError, match=r"modules of the generator in memory, such as 'Classifier'\. Offer factories"):
        selector.rank((build() for build in (Classifier, Quadruple)), Data())


def test_the_table_of_a_race_shows_how_many_repeats_there_were() -> None:
    _, leaderboard = played(race_table(0), race=True)
    assert "repeats" in drawn(leaderboard)[2]
    assert "repeats" not in drawn(played([[1.0, 2.0], [3.0, 5.0]])[1])[2]
