"""Every recipe is sound, says what speaks for it, and has a way out."""

import json
import pickle
import re
from pathlib import Path
from statistics import fmean

import pytest

from lightning_zico.errors import DuplicateNameError, UnknownNameError
from lightning_zico.proxies import BASELINES
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

ROOT = Path(__file__).parent.parent.parent
# As `benchmarks/fidelity.py` wrote them.
RESULTS = {
    benchmark: json.loads((ROOT / "benchmarks" / "results" / f"{stem}.json").read_text(encoding="utf-8"))
    for benchmark, stem in zip(BENCHMARKS, ("nas-bench-201", "nas-bench-101", "transnas-micro", "timm"), strict=True)
}


def measured(benchmark, score, key="tau"):
    """Mean over the targets; None if the file has no such score."""
    rows = [target["scores"].get(score) for target in RESULTS[benchmark]["targets"].values()]
    return None if None in rows else fmean(row[key] for row in rows)


def table_rows(path):
    """First name and cells of each row of the table whose head names `BENCHMARKS`."""
    text = (ROOT / path).read_text(encoding="utf-8")
    (table,) = re.findall(rf"^\| \| {BENCHMARKS[0]} .*\n(?:\|.*\n)+", text, flags=re.MULTILINE)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert all(head.startswith(benchmark) for head, benchmark in zip(rows[0][1:5], BENCHMARKS, strict=True))
    return {re.search("`(.+?)`", row[0]).group(1): row[1:] for row in rows[2:]}


FOR_PRETRAINED = ("transfer", "linear_probe")


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
        "linear_probe",
        "macs+expressivity",
        "size",
        "transfer",
        "without_blocks",
        "zico",
        "zoo",
    ]
    assert sorted(list_recipes()) == known
    assert get_recipe("default") is get_recipe("balanced+synflow")
    assert get_recipe("default", pretrained=True) is get_recipe("transfer")
    assert get_recipe("balanced", pretrained=True) is get_recipe("balanced")
    assert set(get_recipe("zoo").members) == {*get_recipe("balanced").members, "params"}
    assert set(get_recipe("az+synflow").members) == {*get_recipe("az").members, "synflow"}
    assert set(get_recipe("balanced+synflow").members) == {*get_recipe("balanced").members, "synflow"}
    assert set(get_recipe("az+naswot").members) == {*get_recipe("az").members, "naswot"}


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_falls_back_to_the_size_in_the_end(name):
    assert get_recipe(name).name == name
    assert chain(name)[-1] == "size"
    if name not in ("zico", "size", "linear_probe"):
        assert chain(name)[-2] == ("linear_probe" if name == "transfer" else "without_blocks")


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_says_what_speaks_for_it(name):
    evidence = get_recipe(name).evidence
    taus = {benchmark: measured(benchmark, name) for benchmark in BENCHMARKS}
    assert evidence.taus == {benchmark: round(tau, 3) for benchmark, tau in taus.items() if tau is not None}
    assert evidence.remark.endswith(".")
    assert get_recipe(name).source
    assert (not evidence.taus) == (name in ("macs+expressivity", "without_blocks", "size", *FOR_PRETRAINED))
    assert evidence.taus or evidence.remark.startswith(("Not measured", "Chosen by the fourth contest"))
    assert ("afterwards" in evidence.remark) == (name in ("balanced", "zoo", "block_free"))


def test_the_baselines_that_a_recipe_has_to_beat_were_measured_everywhere():
    assert {
        name: {benchmark: round(measured(benchmark, name), 3) for benchmark in BENCHMARKS} for name in BASELINES
    } == BASELINE_TAUS


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_what_speaks_for_recipes_was_measured_as_it_says(benchmark):
    (protocol,) = RESULTS[benchmark]["protocols"].values()
    keys = ("seed", "num_batches", "batch_size", "num_candidates")
    said = (777, 2, 8, 165) if benchmark == "timm" else (777, 2, 16, 300)
    assert tuple(protocol[key] for key in keys) == said


def test_the_tables_in_the_documentation_say_what_recipes_say():
    known = {name: get_recipe(name).evidence.taus for name in list_recipes()}
    known = {name: taus for name, taus in known.items() if taus} | BASELINE_TAUS
    in_docs = table_rows("docs/proxies.md")
    assert set(in_docs) == set(known)
    for name, cells in in_docs.items():
        share = measured("timm", name, "same_family")
        assert cells == [*(f"{known[name][benchmark]:.3f}" for benchmark in BENCHMARKS), f"{share:.3f}"], name
    in_short = table_rows("docs/explanation.md")
    assert get_recipe("default").name in in_short
    for name, cells in in_short.items():
        # from the file: what was rounded to three places is not to be rounded again
        assert cells == [f"{measured(benchmark, name):.2f}".lstrip("0") for benchmark in BENCHMARKS], name


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
    with pytest.raises(ValueError, match="expected one of 'log_rank', 'mean_rank' for several members, and None"):
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
    with pytest.raises(
        ValueError, match=r"'without_blocks' needs .* those of naswot are missing. .*fall back to recipe 'size'"
    ):
        combine(get_recipe("without_blocks"), {"macs": [1.0]})
    with pytest.raises(ValueError, match=r"those of params, macs are missing. Score them too\.$"):
        combine(get_recipe("size"), {})
