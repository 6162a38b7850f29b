"""Proxies and recipes are told apart, and a recipe's score is what its members make of it."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_zico import Score, ScoreCard, ZiCo
from lightning_zico.errors import DuplicateNameError, UnknownNameError
from lightning_zico.proxies import BASELINES, list_proxies
from lightning_zico.ranking import LAST_RESORT, get_recipe, list_recipes
from lightning_zico.results import NOT_APPLICABLE
from lightning_zico.scoring.choice import Choice, Used
from tests.modules import Fixed
from tests.reference.ranking import sum_of_logs

CHAIN = [
    *map(get_recipe, ("balanced+synflow", "balanced", "macs+expressivity", "without_blocks", "size")),
    LAST_RESORT,
]
MEMBERS = ["macs", "naswot", "az_expressivity_mean", "az_trainability", "synflow", "az_expressivity", "params"]
MISSING = {"n/a": f"{NOT_APPLICABLE}: it has no such part.", "failed": "RuntimeError: it broke."}
NUMBERS = st.one_of(st.integers(-3, 3), st.floats(-1e6, 1e6))


def card_of(name: str, values: dict[str, Any]) -> ScoreCard:
    """Make a card of numbers and of keys of `MISSING`."""
    scores = {
        proxy: Score(proxy, None, MISSING[value]) if value in MISSING else Score(proxy, float(value))
        for proxy, value in values.items()
    }
    return ScoreCard(name, scores)


def complete(**changed: Any) -> dict[str, Any]:
    return dict.fromkeys(MEMBERS, 1.0) | changed


def tables(*missing: str) -> st.SearchStrategy[list[dict[str, Any]]]:
    """Draw scores of all members of the default recipe and its fallbacks, some of them missing."""
    value = st.one_of(NUMBERS, NUMBERS, NUMBERS, st.sampled_from(missing)) if missing else NUMBERS
    return st.lists(st.fixed_dictionaries(dict.fromkeys(MEMBERS, value)), min_size=1, max_size=6)


def test_names_are_resolved_and_the_first_decides() -> None:
    default = Choice.of("default")
    assert list(default.recipes) == ["balanced+synflow"]
    assert [proxy.name for proxy in default.proxies] == MEMBERS
    assert default.rank_by == "balanced+synflow"
    assert Choice.of("balanced+synflow").columns == default.columns == ["balanced+synflow", *MEMBERS]

    assert Choice.of("zico").columns == ["zico"]  # also a recipe, but then the two say the same
    assert Choice.of("zico", with_baselines=True).columns == ["zico", *BASELINES]
    assert Choice.of("all").rank_by == "balanced+synflow"
    assert Choice.of("all").columns == ["balanced+synflow", *list_proxies()]

    mixture = Choice.of(["params", "zoo", ZiCo(name="mine"), "default"])
    assert mixture.rank_by == "params"
    assert mixture.columns[:5] == ["zoo", "balanced+synflow", "params", "mine", "macs"]
    others = ["az_expressivity", "az_expressivity_mean", "az_trainability", "naswot", "synflow"]
    assert sorted(mixture.columns[5:]) == others
    assert Choice.of([ZiCo(name="mine"), "zoo"]).rank_by == "mine"
    assert Choice.of(["zoo", ZiCo(name="mine")]).rank_by == "zoo"


def test_every_recipe_comes_with_its_members_and_those_of_its_fallbacks() -> None:
    choice = Choice.of([name for name in list_recipes() if name not in list_proxies()])
    for recipe in choice.recipes.values():
        chains = choice.with_rank_by(recipe.name).chains
        assert chains[0] == recipe.members
        for members in chains:
            assert set(members) <= {proxy.name for proxy in choice.proxies}
    assert choice.with_rank_by("balanced+synflow").chains == [recipe.members for recipe in CHAIN]
    assert choice.with_rank_by("macs").chains == [("macs",)]


def test_unknown_names_are_answered_with_the_nearest_of_both_kinds() -> None:
    with pytest.raises(UnknownNameError, match=r"no proxy or recipe named 'balance'. Did you mean 'balanced'"):
        Choice.of("balance")
    with pytest.raises(UnknownNameError, match="Did you mean 'zico'"):
        Choice.of(["default", "zicco"])


def test_what_would_share_a_column_is_refused_and_a_recipe_counts_once() -> None:
    with pytest.raises(DuplicateNameError, match="Two proxies are named 'params'"):
        Choice.of(["default", "params", "params"])
    with pytest.raises(DuplicateNameError, match=r"A proxy and a recipe are named 'balanced\+synflow'"):
        Choice.of(["default", Fixed("balanced+synflow")])
    assert Choice.of(["default", "balanced+synflow", "default"]).columns == Choice.of("default").columns


def test_an_object_takes_the_place_of_the_member_that_bears_its_name() -> None:
    mine = Fixed("naswot")
    choice = Choice.of(["default", mine], with_baselines=True)
    assert [proxy for proxy in choice.proxies if proxy.name == "naswot"] == [mine]


@pytest.mark.parametrize("wrong", [[], 5, None, [5], ["default", 5], ["default", ZiCo], ZiCo])
def test_what_is_neither_a_name_nor_a_proxy_is_refused(wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="prox"):
        Choice.of(wrong)


def test_only_what_is_computed_can_be_ranked_by() -> None:
    choice = Choice.of(["zico", "default"])
    assert choice.rank_by == "zico"
    assert Choice.of(["zico", "default"], "default").rank_by == "balanced+synflow"
    assert choice.with_rank_by("macs").rank_by == Choice.of(["zico", "default"], "macs").rank_by == "macs"
    with pytest.raises(
        UnknownNameError, match=r"Invalid rank_by='zoo': it is not computed\. Add it .* balanced\+synflow, zico"
    ):
        choice.with_rank_by("zoo")


def test_the_members_of_the_default_recipe_need_no_labels() -> None:
    assert not any(proxy.needs_labels for proxy in Choice.of("default").proxies)


def scores_by(members: tuple[str, ...], table: list[dict[str, Any]]) -> dict[int, float]:
    """Score who has a number of every member, by index, with the plain formula."""
    complete = [idx for idx, values in enumerate(table) if not any(values[m] in MISSING for m in members)]
    if len(members) == 1:
        return {idx: float(table[idx][members[0]]) for idx in complete}
    sums = sum_of_logs([[table[idx][m] for idx in complete] for m in members])
    return dict(zip(complete, sums, strict=True))


@given(tables("n/a", "failed"))
def test_a_recipe_is_the_first_of_its_chain_that_holds_for_all_whatever_the_reason(table: list[dict[str, Any]]) -> None:
    cards = [card_of(str(idx), values) for idx, values in enumerate(table)]
    added, used = Choice.of("default").combine(cards, CHAIN[0])

    # Of so few candidates one is more than a tenth, so that nobody is placed beside the others.
    holding = [r for r in CHAIN if not any(values[m] in MISSING for values in table for m in r.members)]
    assert used == Used((holding or CHAIN)[0 if holding else -1])
    expected = scores_by(used.recipe.members, table)
    for idx, (before, after) in enumerate(zip(cards, added, strict=True)):
        score = after["balanced+synflow"]
        missing = [MISSING[table[idx][m]] for m in used.recipe.members if table[idx][m] in MISSING]
        assert score.error == (missing[0] if missing else None)
        # 1e-9: the logarithms of the ranks are added in another order
        assert score.value == (None if missing else pytest.approx(expected[idx], abs=1e-9))
        assert score.details == {"recipe": used.recipe.name}
        assert {name: after[name] for name in before} == before.scores


@given(st.data(), st.integers(1, 3), st.sampled_from(["synflow", "naswot", "macs"]), st.sampled_from(sorted(MISSING)))
def test_a_few_are_placed_beside_the_others_at_the_quantile_of_the_fallback(
    data: st.DataObject, num_few: int, member: str, why: str
) -> None:
    num_candidates = data.draw(st.integers(10 * num_few, 45))
    rows = st.fixed_dictionaries(dict.fromkeys(MEMBERS, st.integers(0, 30)))
    table = data.draw(st.lists(rows, min_size=num_candidates, max_size=num_candidates))
    few = data.draw(st.sets(st.integers(0, num_candidates - 1), min_size=num_few, max_size=num_few))
    for idx in few:
        table[idx] |= {member: why}
    cards = [card_of(str(idx), values) for idx, values in enumerate(table)]
    added, used = Choice.of("default").combine(cards, CHAIN[0])

    beside = next(r for r in CHAIN if member not in r.members)
    assert used == Used(CHAIN[0], beside)
    scores, others = scores_by(CHAIN[0].members, table), scores_by(beside.members, table)
    assert len(others) == num_candidates
    ordered = sorted(scores.values())
    for idx, card in enumerate(added):
        score = card["balanced+synflow"]
        assert score.error is None
        if idx not in few:
            assert score.value == pytest.approx(scores[idx], abs=1e-9)
            assert "placed_by" not in score.details
            continue
        assert score.details["placed_by"] == beside.name
        own = others[idx]
        behind = sum(other < own - 1e-9 for other in others.values())
        equal = sum(abs(other - own) <= 1e-9 for other in others.values())
        # The place among all, in the middle of what it shares it with, as a place among the others.
        place = (behind + equal / 2) / num_candidates * len(ordered) - 0.5
        low = min(max(math.floor(place), 0), len(ordered) - 1)
        high = min(max(math.ceil(place), 0), len(ordered) - 1)
        expected = ordered[low] + (ordered[high] - ordered[low]) * (place - math.floor(place))
        assert score.value == pytest.approx(expected, abs=1e-6)

    order = data.draw(st.permutations(range(num_candidates)))
    again, _ = Choice.of("default").combine([cards[idx] for idx in order], CHAIN[0])
    assert [card["balanced+synflow"] for card in again] == [added[idx]["balanced+synflow"] for idx in order]


def test_more_than_a_tenth_make_all_fall_back_and_untrainable_ones_do_not_count() -> None:
    def used(num_lacking: int, num_broken: int) -> Used:
        lacking = [card_of(f"lacking{idx}", complete(synflow="failed")) for idx in range(num_lacking)]
        broken = [replace(card_of(f"b{idx}", complete(naswot="n/a")), untrainable="nan") for idx in range(num_broken)]
        others = [card_of(f"c{idx}", complete()) for idx in range(20 - num_lacking)]
        return Choice.of("default").combine([*lacking, *broken, *others], CHAIN[0])[1]

    assert used(0, 5) == Used(CHAIN[0])
    assert used(2, 5) == Used(CHAIN[0], CHAIN[1])
    assert used(3, 0) == used(3, 10) == Used(CHAIN[1])


@given(tables())
def test_members_of_which_lower_is_better_enter_negated(table: list[dict[str, Any]]) -> None:
    turned = [values | {"macs": -values["macs"]} for values in table]
    plain, _ = Choice.of("default").combine([card_of("a", v) for v in table], CHAIN[0])
    lower, _ = Choice.of(["default", Fixed("macs", False)]).combine([card_of("a", v) for v in turned], CHAIN[0])
    assert [card["balanced+synflow"].value for card in lower] == [card["balanced+synflow"].value for card in plain]


def test_a_candidate_that_does_not_train_changes_neither_the_recipe_nor_the_others() -> None:
    good = [card_of("a", complete(macs=2)), card_of("b", complete(naswot=3))]
    broken = replace(card_of("c", complete(naswot="failed")), untrainable="its loss is nan")
    bad = [broken, ScoreCard.failed("d", MEMBERS, f"{NOT_APPLICABLE}: over budget")]
    alone, _ = Choice.of("default").combine(good, CHAIN[0])
    beside, used = Choice.of("default").combine([*good, *bad], CHAIN[0])
    assert used == Used(CHAIN[0])
    assert beside[:2] == alone
    assert [card["balanced+synflow"].value for card in beside[2:]] == [None, None]
    errors = [card["balanced+synflow"].error for card in beside[2:]]
    assert errors == ["its loss is nan", f"{NOT_APPLICABLE}: over budget"]


def test_no_candidate_that_trains_is_left_out_because_every_other_member_failed() -> None:
    broken = dict.fromkeys(set(MEMBERS) - {"params"}, "failed")
    cards = [card_of("a", complete(params=2) | broken), card_of("b", complete())]
    added, used = Choice.of("default").combine(cards, CHAIN[0])
    assert used == Used(LAST_RESORT)
    assert [card["balanced+synflow"].value for card in added] == [2.0, 1.0]


def test_a_baseline_of_ones_own_that_fails_is_the_end_of_the_chain() -> None:
    cards = [card_of("a", complete(params="n/a", naswot="n/a", az_expressivity="n/a")), card_of("b", complete())]
    added, used = Choice.of("default").combine(cards, CHAIN[0])
    assert used == Used(LAST_RESORT)
    assert [card["balanced+synflow"].error for card in added] == [MISSING["n/a"], None]
