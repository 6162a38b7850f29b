"""Learned finals train the candidates that their results so far make the most promising, and learn the order of all."""

import signal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_zico import Leaderboard, Score, ScoreCard, ZeroShotSelector
from lightning_zico.errors import InvalidArgumentError
from lightning_zico.ranking.learned import (
    LABEL_NOISE,
    choose_next,
    choose_spread,
    label_noise,
    learned_ranks,
)
from lightning_zico.results import LEARNED_COLUMNS, Final
from lightning_zico.scoring.choice import Choice
from lightning_zico.selection.entrants import Entrants, entrants_of
from tests.modules import Fixed
from tests.selection.test_finals import Data, Raising, Saying, Watching, selector_of, trainer_of

NAMES = [f"c{idx:02}" for idx in range(20)]
RNG = np.random.default_rng(3)
SCORES = [float(-idx) for idx in range(20)]
MEMBERS = {name: RNG.normal(size=20).tolist() for name in "ab"}
TRUTH = RNG.normal(size=20).tolist()


def entrants(**kwargs: Any) -> Entrants:
    builds = {name: partial(pytest.fail, "built") for name in NAMES}
    options = {"num": 14, "learn": True, "first_by": "own", **kwargs}
    return Entrants(builds, SCORES, MEMBERS, **options)


def play(own: Entrants, failing: tuple[str, ...] = (), *, higher_is_better: bool = True) -> list[str]:
    """Train without training: each finalist gets its true value, or fails."""
    played = []
    for finalist in own.finalists(Path("nowhere"), seeds=[0], higher_is_better=higher_is_better):
        played.append(finalist.name)
        if finalist.name in failing:
            finalist.error = "broken"
        else:
            finalist.rounds.append((TRUTH[NAMES.index(finalist.name)] * (1 if higher_is_better else -1),))
    return played


@pytest.mark.parametrize("higher_is_better", [True, False])
@pytest.mark.parametrize("failing", [(), ("c01", "c03")])
def test_each_finalist_is_chosen_by_the_results_before_it(failing: tuple[str, ...], higher_is_better: bool) -> None:
    labels: dict[int, float | None] = {}
    expected = []
    for _ in range(14):
        chosen = choose_next(SCORES, MEMBERS, labels)
        assert chosen is not None
        expected.append(NAMES[chosen])
        labels[chosen] = None if NAMES[chosen] in failing else TRUTH[chosen]
    assert play(entrants(), failing, higher_is_better=higher_is_better) == expected
    assert expected[: 8 + len(failing)] == NAMES[: 8 + len(failing)]
    assert expected != NAMES[:14]


def test_without_learning_they_are_the_first_by_score() -> None:
    assert play(entrants(learn=False)) == NAMES[:14]
    assert play(entrants(num=8)) == NAMES[:8]
    for learn in (False, True, "rank"):
        own = entrants(num=30, learn=learn)
        assert own.num == 20
        assert sorted(play(own)) == NAMES


def test_spread_finalists_teach_the_order_of_all() -> None:
    own = entrants(learn="rank")
    played = play(own, ("c01",))
    assert played == [NAMES[idx] for idx in choose_spread(SCORES, 14)]
    labels = {NAMES.index(name): None if name == "c01" else TRUTH[NAMES.index(name)] for name in played}
    expected = learned_ranks(SCORES, MEMBERS, labels)
    learned = own.predict_cells()
    assert learned is not None
    assert [tuple(learned[name].values()) for name in NAMES] == expected
    assert all(tuple(cells) == LEARNED_COLUMNS for cells in learned.values())


def test_several_seeds_measure_the_noise_of_the_first_round() -> None:
    own = entrants(learn="rank")
    table = RNG.normal(size=(20, 1)) + 0.3 * RNG.normal(size=(20, 3))
    for idx, finalist in enumerate(own.finalists(Path("nowhere"), seeds=range(3), higher_is_better=False)):
        finalist.rounds = [tuple(table[idx]), (0.0, 1.0, 2.0)]  # a later round does not count
    chosen = choose_spread(SCORES, 14)
    labels = dict(zip(chosen, (-table[:14].mean(axis=1)).tolist(), strict=True))
    noise = label_noise(table[:14].tolist())
    assert noise != LABEL_NOISE
    learned = own.predict_cells()
    assert learned is not None
    assert [tuple(learned[name].values()) for name in NAMES] == learned_ranks(SCORES, MEMBERS, labels, noise)


def test_only_spread_finalists_teach_and_only_if_enough_finish() -> None:
    for learn in (True, False):
        own = entrants(learn=learn)
        play(own)
        assert own.predict_cells() is None
    own = entrants(learn="rank", num=8)
    play(own, ("c01",))
    assert own.predict_cells() == {}


# --- from a leaderboard ---------------------------------------------------------------------------


def board(choice: Choice, numbers: dict[str, list[float | None]], **provenance: Any) -> Leaderboard:
    """Rank candidates by the first number."""
    cards = [
        ScoreCard(
            name,
            {key: Score(key, values[idx], "no" if values[idx] is None else None) for key, values in numbers.items()},
        )
        for idx, name in enumerate(NAMES[: len(next(iter(numbers.values())))])
    ]
    return Leaderboard.of(
        cards, rank_by=choice.rank_by, columns=list(numbers), provenance={"recipes": {}, **provenance}
    )


def by_recipe(*named: Any) -> tuple[Choice, dict[str, Any]]:
    choice = Choice.of(["size", *named], with_baselines=True)
    return choice, {"recipes": {"size": {"used": "size", "members": ["params", "macs"], "aggregate": "log_rank"}}}


SIZES = {
    "size": [3.0, None, 1.0, 2.0],
    "params": [10.0, 40.0, 30.0, 20.0],
    "macs": [7.0, 8.0, None, 9.0],
    "prior": [0.5, 0.9, None, 0.7],
}


@pytest.mark.parametrize(
    ("learn", "num_of_a_zoo", "named", "first_by", "order"),
    [
        (True, 0, [], "size", ["c00", "c03", "c02"]),
        (False, 4, [], "size", ["c00", "c03", "c02"]),
        (True, 4, [], "params", ["c02", "c03", "c00"]),
        ("rank", 4, [], "params", ["c02", "c03", "c00"]),
        # c02 has no prior: by params it is the first, at the place of the best prior, and its rank decides.
        (True, 4, [Fixed("prior")], "prior", ["c03", "c02", "c00"]),
    ],
)
def test_the_prior_of_a_zoo_is_what_is_published_or_the_size(
    learn: Any, num_of_a_zoo: int, named: list[Any], first_by: str, order: list[str]
) -> None:
    choice, facts = by_recipe(*named)
    leaderboard = board(choice, SIZES, num_of_a_zoo=num_of_a_zoo, **facts)
    builds = {name: partial(pytest.fail, "built") for name in NAMES}
    own = entrants_of(leaderboard, choice, builds, num=3, learn=learn)
    assert own.first_by == first_by
    assert play(own if learn != "rank" else entrants_of(leaderboard, choice, builds, num=3, learn=True)) == order
    assert own.num == 3  # who has no score takes no part


@pytest.mark.parametrize(
    ("used", "members", "prior", "num_pretrained", "order"),
    [
        ("linear_probe", ["ridge_probe"], [None] * 4, 4, ["c00", "c01", "c02", "c03"]),
        ("linear_probe", ["ridge_probe"], [None, None, None, 0.9], 4, ["c00", "c01", "c02", "c03"]),
        ("transfer", ["prior"], [0.9, 0.8, 0.7, 0.6], 4, ["c00", "c01", "c02", "c03"]),
        ("size", ["params", "macs"], [None] * 4, 4, ["c03", "c02", "c01", "c00"]),  # if there is no probe either
        ("linear_probe", ["ridge_probe"], [None] * 4, 0, ["c03", "c02", "c01", "c00"]),  # of random features
    ],
)
def test_a_zoo_keeps_the_order_of_its_probe_if_all_are_pretrained(
    used: str, members: list[str], prior: list[float | None], num_pretrained: int, order: list[str]
) -> None:
    choice = Choice.of("default", with_baselines=True, pretrained=True)
    numbers = {choice.rank_by: [4.0, 3.0, 2.0, 1.0], "params": [1.0, 2.0, 3.0, 4.0], "macs": [1.0, 2.0, 3.0, 4.0]}
    facts = {choice.rank_by: {"used": used, "members": members, "aggregate": None}}
    leaderboard = board(
        choice,
        {**numbers, "ridge_probe": [0.9, 0.8, 0.7, 0.6], "prior": prior},
        num_of_a_zoo=4,
        num_pretrained=num_pretrained,
        recipes=facts,
    )
    builds = {name: partial(pytest.fail, "built") for name in NAMES}
    own = entrants_of(leaderboard, choice, builds, num=4, learn=True)
    assert own.first_by == ("params" if used == "size" or not num_pretrained else choice.rank_by)
    assert play(own) == order


def test_a_prior_that_no_candidate_has_is_none() -> None:
    choice, facts = by_recipe(Fixed("prior"))
    leaderboard = board(choice, {**SIZES, "prior": [None] * 4}, num_of_a_zoo=4, **facts)
    builds = {name: partial(pytest.fail, "built") for name in NAMES}
    assert entrants_of(leaderboard, choice, builds, num=3, learn=True).first_by == "params"


def test_a_zoo_that_is_ranked_by_one_proxy_keeps_its_order() -> None:
    choice = Choice.of([Fixed("own", higher_is_better=False)], with_baselines=True)
    numbers: dict[str, list[float | None]] = {"own": [3.0, 1.0, 2.0], "params": [1.0, 2.0, 3.0]}
    cards = [
        ScoreCard(NAMES[idx], {key: Score(key, values[idx]) for key, values in numbers.items()}) for idx in range(3)
    ]
    leaderboard = Leaderboard.of(
        cards,
        rank_by="own",
        columns=list(numbers),
        higher_is_better=False,
        provenance={"recipes": {}, "num_of_a_zoo": 3},
    )
    builds = {name: partial(pytest.fail, "built") for name in NAMES[:3]}
    assert play(entrants_of(leaderboard, choice, builds, num=3, learn=True)) == ["c01", "c02", "c00"]


# --- with a trainer -------------------------------------------------------------------------------


def values_of(num: int) -> dict[str, float]:
    """Losses after training: the better by score the better, but for the last one."""
    return {name: 1 + idx / 100 - (idx == num - 1) for idx, name in enumerate(NAMES[:num])}


def builds_of(num: int, kind: type[Saying] = Saying) -> dict[str, Any]:
    return {name: partial(kind, -float(idx), values_of(num)[name]) for idx, name in enumerate(NAMES[:num])}


def test_more_than_eight_finalists_are_learned_and_the_same_seed_chooses_alike() -> None:
    boards = [selector_of(trainer_of(6), 9).fit(builds_of(12), Data()).leaderboard_ for _ in range(2)]
    chosen = choose_next(SCORES[:12], {}, {idx: -values_of(12)[NAMES[idx]] for idx in range(8)})
    assert chosen is not None
    for leaderboard in boards:
        assert {row["name"] for row in leaderboard if row["final_epochs"]} == {*NAMES[:8], NAMES[chosen]}
        assert leaderboard.best == ("c11" if chosen == 11 else "c00")
        assert "learned" not in leaderboard.columns
        said = (
            "Finals: 9 candidates, the first 8 by own and then the most promising by the results so far, were trained"
        )
        assert any(note.startswith(said) for note in leaderboard.notes)
    assert [dict(row, seconds=0) for row in boards[0]] == [dict(row, seconds=0) for row in boards[1]]
    plain = selector_of(trainer_of(6), 9, learn=False).fit(builds_of(12), Data()).leaderboard_
    assert any(note.startswith("Finals: the first 9 by score were trained for 1 epoch, then") for note in plain.notes)


def test_the_order_of_all_is_learned_from_the_first_round() -> None:
    selector = selector_of(trainer_of(6), 8, learn="rank")
    leaderboard = selector.fit(builds_of(12), Data()).leaderboard_
    trained = {row["name"] for row in leaderboard if row["final_epochs"]}
    spread = choose_spread(SCORES[:12], 8)
    assert trained == {NAMES[idx] for idx in spread}
    labels = {idx: -values_of(12)[NAMES[idx]] for idx in spread}
    expected = learned_ranks(SCORES[:12], {}, labels)
    for idx, name in enumerate(NAMES[:12]):
        row = leaderboard[name]
        assert tuple(row[column] for column in LEARNED_COLUMNS) == pytest.approx(expected[idx])
    assert leaderboard.columns[3:9] == ["final", "final_rank", "final_epochs", *LEARNED_COLUMNS]
    assert Leaderboard.from_json(leaderboard.to_json()) == leaderboard
    header, first, *_ = str(leaderboard).splitlines()[1:]
    assert "learned  learned 95 %" in header
    assert f"{leaderboard[0]['learned_low']}-{leaderboard[0]['learned_high']}" in first
    assert str(leaderboard.to_pandas()["learned_low"].dtype) == "Int64"
    assert any("8 candidates, spread over the ranking by " in note for note in leaderboard.notes)
    (note,) = [note for note in leaderboard.notes if note.startswith("`learned` is the rank by the first round")]
    assert note.endswith(" How noisy a result is was assumed; `final_seeds=2` measures it.")
    measured = selector_of(trainer_of(6), 8, learn="rank", final_seeds=2).fit(builds_of(12), Data()).leaderboard_
    assert note.removesuffix(" How noisy a result is was assumed; `final_seeds=2` measures it.") in measured.notes
    expected = learned_ranks(SCORES[:12], {}, labels, 0.0)  # both seeds have the same results
    assert [tuple(measured[name][column] for column in LEARNED_COLUMNS) for name in NAMES[:12]] == expected


def test_if_too_few_finish_nothing_is_learned_and_a_note_says_so() -> None:
    builds = builds_of(8)
    builds["c03"] = partial(Raising, -3.0)
    leaderboard = selector_of(trainer_of(6), 8, learn="rank").fit(builds, Data()).leaderboard_
    assert {row["learned"] for row in leaderboard} == {None}
    assert "Fewer than 8 finalists have a result, so the order of all was not learned." in leaderboard.notes
    assert leaderboard.best == "c07"


def test_finals_that_break_off_teach_nothing() -> None:
    trainings = []

    class Interrupted(Saying):
        def on_train_start(self) -> None:
            if self.trainer is trainer:
                trainings.append(self.numbers["own"])
                if len(trainings) > 3:
                    signal.raise_signal(signal.SIGINT)

    trainer = trainer_of(6, callbacks=[Watching()])
    selector = selector_of(trainer, 8, learn="rank")
    with pytest.raises(KeyboardInterrupt):
        selector.fit(builds_of(10, Interrupted), Data())
    assert sum(row["final"] is not None for row in selector.leaderboard_) == 3
    assert "learned" not in selector.leaderboard_.columns


@pytest.mark.parametrize("learn", [True, False, None])
def test_a_ranking_without_finals_is_untouched(learn: Any) -> None:
    modules = {name: Saying(float(idx), 1.0) for idx, name in enumerate(NAMES[:12])}
    boards = []
    for kwargs in ({"num_finalists": 1}, {"num_finalists": 12, "learn": learn}):
        selector = selector_of(**kwargs)
        boards.append(selector.rank(modules, Data()))
        assert selector.best_model_ is modules["c11"]
    plain, other = ([dict(row, seconds=0) for row in own] for own in boards)
    assert plain == other
    assert boards[0].notes == boards[1].notes


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"learn": "best"}, "Invalid learn='best': expected True"),
        ({"learn": 1}, "Invalid learn=1: expected True"),
        ({"learn": "rank"}, "Invalid finalists=1 with `learn='rank'`: expected at least 8"),
        ({"learn": "rank", "finalists": 7}, "Invalid finalists=7 with `learn='rank'`"),
    ],
)
def test_what_cannot_be_learned_is_refused(kwargs: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidArgumentError, match=match):
        ZeroShotSelector(**kwargs)


def test_notes_of_finals_that_were_interrupted_say_who_took_part() -> None:
    cards = [ScoreCard(name, {"own": Score("own", float(-idx))}) for idx, name in enumerate(NAMES[:10])]
    leaderboard = Leaderboard.of(cards, rank_by="own", columns=["own"])
    held = {"monitor": "m", "mode": "min", "finalists": 9, "final_epochs": 1, "halving": True, "first_by": "own"}
    for learn, who in {
        True: "9 candidates, the first 8 by own and then the most promising by the results so far,",
        "rank": "9 candidates, spread over the ranking by own,",
        False: "the first 9 by score",
    }.items():
        own = leaderboard.with_finals([Final("c00", 1.0, 1)], {**held, "learn": learn, "broke_off": True})
        assert own.notes[0] == f"Finals of {who} were interrupted; those trained so far come first."
