"""Archs are proposed by the evolution, by chance or by a sampler of Optuna."""

from itertools import islice
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_zico import (
    Budget,
    Evolution,
    ZeroShotSearch,
)
from lightning_zico.scoring.choice import Choice
from lightning_zico.search.evolution import Population
from lightning_zico.search.proposals import Offer, Proposer
from lightning_zico.search.trials import Trials, quiet_optuna
from lightning_zico.spaces.plainnet import START
from tests.search.searching import SMALL, ByRule, searched
from tests.search.spaces import Bits

CONFIGS = sorted((Path(__file__).parents[2] / "examples" / "configs").glob("search_*.yaml"))


@pytest.mark.parametrize("sampler", [optuna.samplers.TPESampler, optuna.samplers.NSGAIISampler])
def test_a_sampler_of_optuna_proposes(sampler: Any) -> None:
    executor = ByRule(params=lambda arch: float(arch.count("1")))
    result = searched(
        sampler=sampler(seed=0), executor=executor, budget=Budget(params=170), against="macs", num_trials=15
    )
    assert len(executor.asked) == len(set(executor.asked)) == len(result) == 15
    assert max(row["cost_params"] for row in result) <= 170
    assert result.provenance["num_rejected"] > 0


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_published_searches_are_as_published(path: Path) -> None:
    own = yaml.safe_load(path.read_text())
    assert own.pop("data")["init_args"] | {"root": ""} == {
        "root": "",
        "batch_size": 128,
        "image_size": 224,
        "num_workers": 8,
    }
    millions = int(path.stem.removesuffix("m").rsplit("_", 1)[1])
    budget, evolution = Budget(**own.pop("budget")), Evolution(**own.pop("sampler"))
    assert (budget.macs, budget.depth) == (millions * 1e6, 16 if millions == 1000 else 14)
    assert (evolution.population_size, evolution.tournament_size, evolution.num_mutations) == (512, 1, 2)
    assert evolution.start == str(START)
    assert ZeroShotSearch(budget=budget, sampler=evolution, **own).num_trials == 100_000
    assert len(CONFIGS) == 3


def test_a_mutant_of_the_start_comes_first_and_then_twice_mutated_members() -> None:
    """As published: while there are at most ten members, the start is mutated once."""
    evolution = Evolution(population_size=512, tournament_size=1, num_mutations=2, num_initial=11, start="000000")
    executor = ByRule(params=lambda arch: float(arch.count("1")))
    searched(sampler=Evolution(**{**vars(evolution), "num_initial": 6}), executor=executor, num_trials=30)
    assert {arch.count("1") for arch in executor.asked[:6]} == {1}
    assert all(arch.count("1") % 2 == 1 for arch in executor.asked[6:10])


@given(st.sampled_from(["random", SMALL]), st.integers(0, 3))
def test_proposals_depend_on_the_seed_and_the_number_of_trials(sampler: Any, seed: int) -> None:
    def propose(seed: int) -> list[str]:
        proposer = Proposer(Bits(), sampler, seed)
        with quiet_optuna():
            trials = Trials(None, "study", {}, ["maximize"])
            proposals = proposer.proposals(trials, Population(8, Choice.of("params")))
            archs = [arch for _, arch in islice(proposals, 10)]
            trials.close()
        return archs

    assert propose(seed) == propose(seed) != propose(seed + 1)


def test_an_offer_names_the_blocks_where_the_network_is_wrapped() -> None:
    class Wrapped(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.inner = nn.ModuleDict({"network": network})

    plain, wrapped = (Offer(Bits(), 3, 2, wrap, 0)("101000") for wrap in (None, Wrapped))
    assert plain.name == wrapped.name == "101000"
    assert plain.blocks == ("1", "3", "5")
    assert wrapped.blocks == tuple(f"inner.network.{name}" for name in plain.blocks)
    for candidate in (plain, wrapped):
        assert set(candidate.blocks or ()) <= dict(candidate.build().named_modules()).keys()
    hidden = Offer(Bits(), 3, 2, lambda network: nn.Linear(1, 1), 0)("101000")
    assert hidden.blocks is None


@pytest.mark.parametrize("sampler", ["best", None, 3])
def test_a_sampler_of_another_kind_is_refused(sampler: Any) -> None:
    with pytest.raises(ValueError, match='expected "evolution", "random", an `Evolution` or a sampler of Optuna'):
        Proposer(Bits(), sampler, 0)
