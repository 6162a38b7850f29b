"""The candidate that is ranked first is still there at the end, in whatever order the cards arrived."""

from hypothesis import given
from hypothesis import strategies as st

from lightning_zico.candidates import Candidate
from lightning_zico.results import NOT_APPLICABLE, Leaderboard, Score, ScoreCard
from lightning_zico.scoring.choice import Choice
from lightning_zico.selection.shortlist import Shortlist
from lightning_zico.selection.tally import Tally
from tests.modules import Classifier

CHOICE = Choice.of("default")
NAMES = [proxy.name for proxy in CHOICE.proxies]


def card_of(idx: int, values: list[int | None], inapplicable: set[str]) -> ScoreCard:
    scores = {}
    for name, value in zip(NAMES, values, strict=True):
        error = f"{NOT_APPLICABLE}: no" if name in inapplicable else "broken" if value is None else None
        scores[name] = Score(name, None if error or value is None else float(value), error)
    return ScoreCard(str(idx), scores)


# Of ten or more, those that lack a number may be placed beside the others.
@given(st.data(), st.one_of(st.integers(1, 9), st.integers(10, 21)), st.integers(1, 4), st.integers(1, 3))
def test_the_first_of_the_ranking_are_among_the_shortlist(
    data: st.DataObject, num_candidates: int, top_k: int, repeats: int
) -> None:
    # Few different numbers, so that many are equal; missing ones are rare.
    number, rarely = st.sampled_from([0, 1, 2]), st.sampled_from([0, 1, 2] * 8 + [None])
    inapplicable = data.draw(st.sets(st.sampled_from(["synflow", "az_expressivity_mean", "naswot"])))
    few = data.draw(st.sets(st.integers(0, num_candidates - 1), max_size=max(num_candidates // 10, 1)))
    tally, shortlist = Tally(CHOICE, repeats), Shortlist(CHOICE, top_k)
    jobs = list(tally.jobs([Candidate(str(idx), Classifier) for idx in range(num_candidates)], range(repeats)))
    for position in data.draw(st.permutations(range(len(jobs)))):
        job, idx = jobs[position], int(jobs[position].candidate.name)
        card = card_of(idx, [data.draw(rarely if idx in few else number) for _ in NAMES], inapplicable)
        cards = tally.add(job, card)
        if len(cards) == repeats:
            shortlist.add(job.candidate, tally.offer_idx(card.name), cards)
    board = Leaderboard.of(
        tally.merge(),
        rank_by=CHOICE.rank_by,
        columns=NAMES,
        uncertainty=tally.uncertainty() if repeats > 1 else None,
    )
    first = [row["name"] for row in board.rows[:top_k] if row["rank"]]
    assert set(first) <= {candidate.name for candidate in shortlist.candidates}


def test_a_candidate_that_lacks_a_number_is_not_dropped_for_one_that_has_it() -> None:
    # By the recipe "best" may be in the middle, while all that "lacking" has is as good.
    lacking = card_of(0, [9 if name != "synflow" else None for name in NAMES], set())
    best = card_of(1, [9 if name != "synflow" else 0 for name in NAMES], set())
    for order in ((lacking, best), (best, lacking)):
        shortlist = Shortlist(CHOICE)
        for card in order:
            shortlist.add(Candidate(card.name, Classifier), int(card.name), [card])
        assert {candidate.name for candidate in shortlist.candidates} == {"0", "1"}


def test_a_candidate_that_shares_the_first_rank_and_was_offered_earlier_is_not_dropped() -> None:
    # Both are better by the fallback than all others, so that both are placed where the best of the others is.
    shortlist = Shortlist(CHOICE)
    tally = Tally(CHOICE, 1)
    values = [
        [8 if name != "synflow" else None for name in NAMES],
        [9 if name != "synflow" else None for name in NAMES],
    ]
    values += [[idx % 7 for _ in NAMES] for idx in range(20)]
    jobs = list(tally.jobs([Candidate(str(idx), Classifier) for idx in range(len(values))], range(1)))
    for idx, job in enumerate(jobs):
        shortlist.add(job.candidate, idx, tally.add(job, card_of(idx, values[idx], set())))
    first, second = (card[CHOICE.rank_by].value for card in tally.merge()[:2])
    assert first == second is not None
    assert "0" in {candidate.name for candidate in shortlist.candidates}


def test_a_candidate_behind_by_every_score_is_dropped() -> None:
    shortlist = Shortlist(CHOICE, 2)
    for idx in range(20):
        shortlist.add(Candidate(str(idx), Classifier), idx, [card_of(idx, [idx] * len(NAMES), set())])
    assert [candidate.name for candidate in shortlist.candidates] == ["18", "19"]
