"""Proxies and recipes are told apart, and a recipe's score is what its members make of it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_zico import Score, ScoreCard, ZiCo
from lightning_zico.errors import DuplicateNameError, UnknownNameError
from lightning_zico.proxies import BASELINES, list_proxies
from lightning_zico.ranking import get_recipe, list_recipes
from lightning_zico.results import NOT_APPLICABLE
from lightning_zico.scoring.choice import chosen, combined
from tests.modules import Fixed
from tests.reference.ranking import sum_of_logs

CHAIN = [get_recipe(name) for name in ("balanced+synflow", "balanced", "without_blocks", "size")]
MEMBERS = ["macs", "naswot", "az_expressivity_mean", "az_trainability", "synflow", "params"]
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


def test_names_are_told_apart_and_the_first_is_ranked_by() -> None:
    default = chosen("default")
    assert list(default.recipes) == ["balanced+synflow"]
    assert [proxy.name for proxy in default.proxies] == MEMBERS
    assert default.first == "balanced+synflow"
    assert chosen("balanced+synflow").columns == default.columns == ["balanced+synflow", *MEMBERS]

    assert chosen("zico").columns == ["zico"]  # also a recipe, but then the two say the same
    assert chosen("zico", with_baselines=True).columns == ["zico", *BASELINES]
    assert chosen("all").first == "balanced+synflow"
    assert chosen("all").columns == ["balanced+synflow", *list_proxies()]

    mixture = chosen(["params", "zoo", ZiCo(name="mine"), "default"])
    assert mixture.first == "params"
    assert mixture.columns[:5] == ["zoo", "balanced+synflow", "params", "mine", "macs"]
    assert sorted(mixture.columns[5:]) == ["az_expressivity_mean", "az_trainability", "naswot", "synflow"]
    assert chosen([ZiCo(name="mine"), "zoo"]).first == "mine"
    assert chosen(["zoo", ZiCo(name="mine")]).first == "zoo"


def test_every_recipe_comes_with_its_members_and_those_of_its_fallbacks() -> None:
    choice = chosen([name for name in list_recipes() if name not in list_proxies()])
    for recipe in choice.recipes.values():
        assert choice.read_by(recipe.name)[0] == recipe.members
        for members in choice.read_by(recipe.name):
            assert set(members) <= {proxy.name for proxy in choice.proxies}
    assert choice.read_by("balanced+synflow") == [recipe.members for recipe in CHAIN]
    assert choice.read_by("macs") == [("macs",)]


def test_unknown_names_are_answered_with_the_nearest_of_both_kinds() -> None:
    with pytest.raises(UnknownNameError, match=r"no proxy or recipe named 'balance'. Did you mean 'balanced'"):
        chosen("balance")
    with pytest.raises(UnknownNameError, match="Did you mean 'zico'"):
        chosen(["default", "zicco"])


def test_what_would_share_a_column_is_refused_and_a_recipe_counts_once() -> None:
    with pytest.raises(DuplicateNameError, match="Two proxies are named 'params'"):
        chosen(["default", "params", "params"])
    with pytest.raises(DuplicateNameError, match=r"A proxy and a recipe are named 'balanced\+synflow'"):
        chosen(["default", Fixed("balanced+synflow")])
    assert chosen(["default", "balanced+synflow", "default"]).columns == chosen("default").columns


def test_an_object_takes_the_place_of_the_member_that_bears_its_name() -> None:
    mine = Fixed("naswot")
    choice = chosen(["default", mine], with_baselines=True)
    assert [proxy for proxy in choice.proxies if proxy.name == "naswot"] == [mine]


@pytest.mark.parametrize("wrong", [[], 5, None, [5], ["default", 5], ["default", ZiCo], ZiCo])
def test_what_is_neither_a_name_nor_a_proxy_is_refused(wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="prox"):
        chosen(wrong)


def test_only_what_is_computed_can_be_ranked_by() -> None:
    choice = chosen(["zico", "default"])
    assert choice.ranked_by(None) == "zico"
    assert choice.ranked_by("default") == choice.ranked_by("balanced+synflow") == "balanced+synflow"
    assert choice.ranked_by("macs") == "macs"
    with pytest.raises(
        UnknownNameError, match=r"`rank_by` is 'zoo', which is not computed\. Add it .* balanced\+synflow, zico"
    ):
        choice.ranked_by("zoo")


def test_the_members_of_the_default_recipe_need_no_labels() -> None:
    assert not any(proxy.needs_labels for proxy in chosen("default").proxies)


@given(tables("n/a", "failed"))
def test_a_recipe_is_that_of_its_chain_which_applies_to_all(table: list[dict[str, Any]]) -> None:
    cards = [card_of(str(idx), values) for idx, values in enumerate(table)]
    added, used = combined(cards, CHAIN[0], chosen("default"))

    applicable = [r for r in CHAIN if all(values[m] != "n/a" for values in table for m in r.members)]
    assert used == (applicable or CHAIN)[0 if applicable else -1]
    ranked = [values for values in table if not any(values[m] in MISSING for m in used.members)]
    expected = iter(sum_of_logs([[values[m] for values in ranked] for m in used.members]))
    for before, after, values in zip(cards, added, table, strict=True):
        score = after["balanced+synflow"]
        missing = [MISSING[values[m]] for m in used.members if values[m] in MISSING]
        assert score.error == (missing[0] if missing else None)
        # 1e-9: the logarithms of the ranks are added in another order
        assert score.value == (None if missing else pytest.approx(next(expected), abs=1e-9))
        assert score.details == {"recipe": used.name}
        assert {name: after[name] for name in before} == before.scores


@given(tables())
def test_members_of_which_lower_is_better_enter_negated(table: list[dict[str, Any]]) -> None:
    turned = [values | {"macs": -values["macs"]} for values in table]
    plain, _ = combined([card_of("a", v) for v in table], CHAIN[0], chosen("default"))
    lower, _ = combined([card_of("a", v) for v in turned], CHAIN[0], chosen(["default", Fixed("macs", False)]))
    assert [card["balanced+synflow"].value for card in lower] == [card["balanced+synflow"].value for card in plain]


def test_a_candidate_that_fails_changes_neither_the_recipe_nor_the_others() -> None:
    good = [card_of("a", complete(macs=2)), card_of("b", complete(naswot=3))]
    bad = [card_of("c", complete(naswot="failed")), ScoreCard.failed("d", MEMBERS, f"{NOT_APPLICABLE}: over budget")]
    alone, _ = combined(good, CHAIN[0], chosen("default"))
    beside, used = combined([*good, *bad], CHAIN[0], chosen("default"))
    assert used.name == "balanced+synflow"
    assert beside[:2] == alone
    assert [card["balanced+synflow"].value for card in beside[2:]] == [None, None]
    assert [card["balanced+synflow"].error for card in beside[2:]] == [
        MISSING["failed"],
        f"{NOT_APPLICABLE}: over budget",
    ]


def test_the_last_of_the_chain_is_used_even_where_it_does_not_apply() -> None:
    cards = [card_of("a", complete(params="n/a", naswot="n/a")), card_of("b", complete())]
    added, used = combined(cards, CHAIN[0], chosen("default"))
    assert used.name == "size"
    assert [card["balanced+synflow"].error for card in added] == [MISSING["n/a"], None]
