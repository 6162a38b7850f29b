"""Notes say what matters for trusting a ranking."""

from typing import Any

from lightning_zico import Leaderboard, Score, ScoreCard
from tests.results.boards import card, make, missing, noted


def test_notes_name_the_recipe_the_baselines_and_a_ranking_by_size() -> None:
    leaderboard = noted(params=0.95, macs=0.9, num_layers=None, sum_log_numel=-1.0)
    assert leaderboard.notes == [
        "balanced fell back to size (log_rank of params, macs) for all of these candidates.",
        "Kendall's tau of this ranking with the trivial baselines: params 0.95, macs 0.90, sum_log_numel -1.00.",
        "This ranking adds little to counting weights: it is almost the same as by params (0.95).",
    ]
    assert str(leaderboard).splitlines()[-4:] == ["c: failed", *leaderboard.notes]
    assert len(noted(params=0.9, macs=None).notes) == 2  # only above
    assert len(noted(params=None).notes) == 1
    assert make(card("a", 1.0)).notes == []


def test_a_recipe_of_one_member_is_its_score() -> None:
    recipe = {"used": "mine", "members": ["zico"], "aggregate": None}
    assert Leaderboard((), {"rank_by": "mine", "recipes": {"mine": recipe}}).notes == ["mine: the score of zico."]
    assert Leaderboard((), {"rank_by": "zico", "recipes": {"mine": recipe}}).notes == []


def test_one_cause_that_fails_many_proxies_is_stored_once_and_is_one_note() -> None:
    leaderboard = missing(("E: no", "E: no"), (None, None), ("E: no", "E: no"))
    assert leaderboard.provenance["missing"] == [
        {"reason": "E: no", "proxies": ["zico", "snip"], "names": ["c0", "c2"]}
    ]
    assert leaderboard.notes == ["zico, snip have no number for 2 of 3 scored candidates: E: no"]
    assert leaderboard.notes[0] in str(leaderboard)


def test_a_note_has_the_most_frequent_of_several_reasons_and_their_number() -> None:
    leaderboard = missing(("E: no", None), ("F", None), ("F", "F"))
    assert leaderboard.notes == [
        "zico has no number for 3 of 3 scored candidates (the most frequent of 2 reasons, 2 times): F",
        "snip has no number for 1 of 3 scored candidates: F",
    ]


def test_notes_on_missing_numbers_stay_few() -> None:
    proxies = [f"p{idx:02}" for idx in range(25)]
    scores = {name: Score(name, None, "same" if idx < 20 else name) for idx, name in enumerate(proxies)}
    board = Leaderboard.of(
        [ScoreCard("a", {"params": Score("params", 1.0), **scores})], rank_by="params", columns=["params", *proxies]
    )
    first, *_, last = board.notes
    assert first == f"{', '.join(proxies[:10])} and 10 more have no number for 1 of 1 scored candidates: same"
    assert last == "Numbers are missing in 3 more columns; `Leaderboard.missing` says why."
    assert len(board.notes) == 4


def lacking(member: str, reason: str, count: int = 1, num_reasons: int = 1) -> dict[str, Any]:
    return {"member": member, "reason": reason, "name": "c0", "count": count, "num_reasons": num_reasons}


def test_the_note_on_a_replaced_recipe_is_not_repeated() -> None:
    recipe = {"used": "size", "members": ["params"], "aggregate": None, "dropped": ["snip"]}
    recipe["lacking"] = [lacking("snip", "not applicable: it has none.")]
    errors = [("not applicable: a", "not applicable: it has none."), (None, None)]
    assert missing(*errors, recipes={"mine": recipe}).notes == [
        "mine fell back to size (the score of params) for all of these candidates: snip has no number for c0: it "
        "has none.",
        "zico has no number for 1 of 2 scored candidates: not applicable: a",
    ]
    assert "snip" in missing(*errors, recipes={"mine": recipe}).missing


def test_a_reason_that_several_members_share_is_listed_once() -> None:
    recipe = {"used": "size", "members": ["params"], "aggregate": None, "dropped": ["snip", "zen", "naswot", "ntk"]}
    reason = "not applicable: it has none."
    shared = [lacking(member, reason, 3) for member in ("snip", "zen", "naswot")]
    recipe["lacking"] = [*shared, lacking("ntk", reason, 2), lacking("fisher", "KeyError: 'x'", 3)]
    assert missing(recipes={"mine": recipe}).notes == [
        "mine fell back to size (the score of params) for all of these candidates: snip, zen and naswot have no "
        "number for c0 and 2 more: it has none; ntk has no number for c0 and 1 more: it has none; fisher failed for c0 "
        "and 2 more: KeyError: 'x'."
    ]


def test_notes_name_the_candidates_that_a_fallback_ranks_and_why() -> None:
    recipe = {"used": "mine", "members": ["params", "snip"], "aggregate": "log_rank", "dropped": []}
    recipe["beside"] = {"used": "size", "members": ["params"], "names": ["c0", "c1"]}
    recipe["lacking"] = [lacking("snip", "KeyError: 'x'", count=2, num_reasons=2)]
    board = missing(recipes={"mine": recipe})
    placed = (
        "mine does not apply to c0, c1; these are placed among the others by size (params), "
        "at the same quantile of the scores: "
        "snip failed for c0 and 1 more (the most frequent of 2 reasons): KeyError: 'x'."
    )
    assert board.notes == [placed]
    assert Leaderboard.from_json(board.to_json()).notes == [placed]
    fallen = recipe | {"used": "other"}
    assert missing(recipes={"mine": fallen}).notes == [
        "mine fell back to other (log_rank of params, snip) for all of these candidates.",
        placed.replace("mine does", "other does"),
    ]


def test_notes_survive_json_and_leave_the_other_forms_alone() -> None:
    leaderboard = noted(params=0.95, macs=None)
    again = Leaderboard.from_json(leaderboard.to_json())
    assert again == leaderboard
    assert again.notes == leaderboard.notes
    assert again.to_csv() == leaderboard.to_csv()
    assert len(leaderboard.to_csv().splitlines()) == 4
    assert set(leaderboard.to_dict()) == {"rows", "provenance"}
