"""Whoever ranking puts first is still there at the end, in whatever order the cards came."""

from hypothesis import given
from hypothesis import strategies as st

from lightning_zico.candidates import Candidate
from lightning_zico.results import NOT_APPLICABLE, Leaderboard, Score, ScoreCard
from lightning_zico.scoring.choice import chosen
from lightning_zico.scoring.contenders import Contenders
from lightning_zico.scoring.repeats import Tally
from tests.modules import Classifier

CHOICE = chosen("default")
NAMES = [proxy.name for proxy in CHOICE.proxies]


def card_of(idx: int, values: list[int | None], inapplicable: set[str]) -> ScoreCard:
    scores = {}
    for name, value in zip(NAMES, values, strict=True):
        error = f"{NOT_APPLICABLE}: no" if name in inapplicable else "broken" if value is None else None
        scores[name] = Score(name, None if error or value is None else float(value), error)
    return ScoreCard(str(idx), scores)


@given(st.data(), st.integers(1, 9), st.integers(1, 4), st.integers(1, 3))
def test_the_first_of_the_ranking_are_among_the_contenders(
    data: st.DataObject, num_candidates: int, num_places: int, repeats: int
) -> None:
    # Few different numbers, so that many are equal; broken ones are rare, or nothing would be ranked.
    number = st.sampled_from([0, 1, 2] * 8 + [None])
    inapplicable = data.draw(st.sets(st.sampled_from(["synflow", "az_progressivity", "naswot"])))
    tally, contenders = Tally(CHOICE, repeats), Contenders(CHOICE.first, CHOICE, num_places)
    jobs = list(tally.jobs([Candidate(str(idx), Classifier) for idx in range(num_candidates)], range(repeats)))
    for idx in data.draw(st.permutations(range(len(jobs)))):
        job = jobs[idx]
        card = card_of(int(job.candidate.name), [data.draw(number) for _ in NAMES], inapplicable)
        cards = tally.add(job, card)
        if len(cards) == repeats:
            contenders.add(job.candidate, tally.place(card.name), cards)
    board = Leaderboard.of(
        tally.merged(),
        rank_by=CHOICE.first,
        columns=NAMES,
        uncertainty=tally.uncertainty(CHOICE.first) if repeats > 1 else None,
    )
    first = [row["name"] for row in board.rows[:num_places] if row["rank"]]
    assert set(first) <= {candidate.name for candidate in contenders.candidates}


def test_who_is_behind_by_every_score_is_let_go() -> None:
    contenders = Contenders(CHOICE.first, CHOICE, 2)
    for idx in range(20):
        contenders.add(Candidate(str(idx), Classifier), idx, [card_of(idx, [idx] * len(NAMES), set())])
    assert [candidate.name for candidate in contenders.candidates] == ["18", "19"]
