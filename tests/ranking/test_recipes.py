"""Every recipe is sound, says what speaks for it, and has a way out."""

import pickle

import pytest

from lightning_zico.errors import DuplicateNameError, UnknownNameError
from lightning_zico.ranking import (
    BASELINE_TAUS,
    BENCHMARKS,
    RECIPES,
    Evidence,
    Recipe,
    combine,
    get_recipe,
    list_recipes,
    log_rank,
    mean_rank,
)


def recipe(**changes):
    fields = {"name": "ours", "members": ("a", "b"), "aggregate": "mean_rank", "evidence": Evidence(), "source": "here"}
    return Recipe(**{**fields, **changes})


def chain(name):
    """Names of a recipe and of those it falls back to."""
    names = [name]
    while (fallback := get_recipe(names[-1]).fallback) is not None:
        assert fallback not in names
        names.append(fallback)
    return names


def test_the_recipes_are_these():
    known = [
        "az",
        "az+naswot",
        "az+synflow",
        "balanced",
        "balanced+synflow",
        "block_free",
        "size",
        "without_blocks",
        "zico",
        "zoo",
    ]
    assert sorted(list_recipes()) == known
    assert get_recipe("default") is get_recipe("balanced+synflow")
    assert set(get_recipe("zoo").members) == {*get_recipe("balanced").members, "params"}
    assert set(get_recipe("az+synflow").members) == {*get_recipe("az").members, "synflow"}
    assert set(get_recipe("balanced+synflow").members) == {*get_recipe("balanced").members, "synflow"}
    assert set(get_recipe("az+naswot").members) == {*get_recipe("az").members, "naswot"}


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_falls_back_to_the_size_in_the_end(name):
    assert get_recipe(name).name == name
    assert chain(name)[-1] == "size"
    if name not in ("zico", "size"):
        assert chain(name)[-2] == "without_blocks"


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_says_what_speaks_for_it(name):
    evidence = get_recipe(name).evidence
    assert set(evidence.taus) <= set(BENCHMARKS)
    assert all(-1 <= tau <= 1 for tau in evidence.taus.values())
    assert evidence.remark.endswith(".")
    assert get_recipe(name).source
    unmeasured = name in ("without_blocks", "size", "az+synflow", "balanced+synflow")
    assert (not evidence.taus) == unmeasured == ("Not measured." in evidence.remark)
    assert ("afterwards" in evidence.remark) == (name in ("balanced", "zoo", "block_free"))


def test_the_baselines_that_a_recipe_has_to_beat_were_measured_everywhere():
    assert set(BASELINE_TAUS) == {"params", "macs", "sum_log_numel"}
    assert all(tuple(taus) == BENCHMARKS for taus in BASELINE_TAUS.values())
    assert "timm" not in get_recipe("block_free").evidence.taus


def test_a_recipe_survives_pickling():
    assert pickle.loads(pickle.dumps(get_recipe("zoo"))) == get_recipe("zoo")


def test_unknown_and_taken_names_are_refused():
    with pytest.raises(UnknownNameError, match=r"no recipe named 'balance'. Did you mean 'balanced'"):
        get_recipe("balance")
    with pytest.raises(DuplicateNameError, match="recipe named 'zico' already"):
        RECIPES.register("zico", recipe())


@pytest.mark.parametrize("members", [(), ("a", "a")])
def test_a_recipe_names_each_member_once(members):
    with pytest.raises(ValueError, match="at least one proxy, each named once"):
        recipe(members=members)


@pytest.mark.parametrize("changes", [{"aggregate": None}, {"members": ("a",)}, {"aggregate": "sum"}])
def test_the_aggregate_fits_the_number_of_members(changes):
    with pytest.raises(ValueError, match="needed is one of 'log_rank', 'mean_rank' for several members, and None"):
        recipe(**changes)


def test_combining_is_the_named_aggregate_of_the_members():
    scores = {"a": [1.0, 2.0, 3.0, None], "b": [3.0, 1.0, 9.0, 1.0], "params": [None, 1.0, 2.0, 3.0]}
    members = {name: scores[name] for name in ("a", "b")}
    assert combine(recipe(), scores) == mean_rank(members)
    assert combine(recipe(aggregate="log_rank"), scores) == log_rank(members)


def test_a_single_member_is_taken_as_it_is():
    assert combine(get_recipe("zico"), {"zico": [3.5, None, -1.0]}) == [3.5, None, -1.0]
    with pytest.raises(ValueError, match="Score 0 of 'zico' is nan"):
        combine(get_recipe("zico"), {"zico": [float("nan")]})


def test_a_member_without_scores_is_named_with_the_way_out():
    with pytest.raises(ValueError, match=r"'without_blocks' needs .* none of naswot. .*fall back to recipe 'size'"):
        combine(get_recipe("without_blocks"), {"macs": [1.0]})
    with pytest.raises(ValueError, match=r"none of params, macs. Score them too\.$"):
        combine(get_recipe("size"), {})
