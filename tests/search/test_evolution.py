"""A population holds whom a plain one holds, and evolution begins when there is somebody to evolve from."""

import random
from typing import Any

import pytest

from lightning_zico import Evolution, Score, ScoreCard
from lightning_zico.scoring.choice import Choice
from lightning_zico.search.evolution import Member, Population
from tests.reference.population import PlainPopulation
from tests.search.spaces import Bits


def newcomer(idx: int, choice: Choice, rng: random.Random, num_costs: int, *, faults: bool) -> Member:
    """Make an arch with scores among which there are ties, and, with faults, some that are missing."""
    scores = {}
    for proxy in choice.proxies:
        error = rng.choice(["failed", "not applicable: no blocks"]) if faults and rng.random() < 0.03 else None
        scores[proxy.name] = Score(proxy.name, None if error else float(rng.randrange(12)), error)
    untrainable = "its loss is nan" if faults and rng.random() < 0.05 else None
    error = "does not build" if faults and rng.random() < 0.05 else None
    card = ScoreCard(f"arch{idx}", scores, error=error, untrainable=untrainable)
    return Member(card.name, card, tuple(float(rng.randrange(8)) for _ in range(num_costs)))


@pytest.mark.parametrize("faults", [False, True])
@pytest.mark.parametrize("num_costs", [0, 1, 2])
@pytest.mark.parametrize("proxies", ["zico", "latency", "size", "default"])
def test_a_population_is_the_plain_one_member_by_member_in_order(proxies: str, num_costs: int, faults: bool) -> None:
    choice, left = Choice.of(proxies), set()
    for seed in range(4):
        rng, size = random.Random(f"{proxies}/{seed}"), 1 + 7 * seed
        population, plain = (kind(size, choice) for kind in (Population, PlainPopulation))
        for idx in range(80):
            member = newcomer(idx, choice, rng, num_costs, faults=faults)
            population.add(member)
            plain.add(member)
            assert population.members == plain.members
            left.add(len(plain.members) < min(idx + 1, size))
            if plain.members and idx % 3 == 0:  # asked now and then, as what is not asked is not worked out
                rival = random.Random(idx)
                drawn = [rival.randrange(len(plain.members)) for _ in range(4)]
                best = plain.members[max(drawn, key=plain.standings.__getitem__)].arch
                assert population.parent(4, random.Random(idx)) == best
    assert left == ({False, True} if faults else {False})


def test_a_newcomer_that_needs_a_fallback_removes_members_without_its_scores_until_the_recipe_applies_again() -> None:
    choice = Choice.of("balanced")  # falls back to `macs+expressivity`, `without_blocks`, then to `size`
    population = Population(3, choice)

    def member(name: str, value: float, **missing: str) -> Member:
        scores = {
            p.name: Score(p.name, None if p.name in missing else value, missing.get(p.name)) for p in choice.proxies
        }
        return Member(name, ScoreCard(name, scores), ())

    of_blocks = ("az_expressivity", "az_expressivity_mean", "az_trainability")
    blocks = dict.fromkeys(of_blocks, "not applicable: no blocks")
    population.add(member("whole", 5.0))
    population.add(member("without params", 4.0, params="failed"))  # a score that only the last fallback asks for
    population.add(member("without blocks", 3.0, **blocks))
    assert [each.arch for each in population.members] == ["whole", "without params", "without blocks"]
    population.add(member("without naswot", 2.0, naswot="not applicable: no ReLU", **blocks))
    assert [each.arch for each in population.members] == ["whole", "without blocks", "without naswot"]
    for idx in range(3):
        population.add(member(f"better {idx}", 6.0 + idx))
    assert [each.arch for each in population.members] == [f"better {idx}" for idx in range(3)]
    population.add(member("without params", 9.0, params="failed"))  # nobody is left without blocks
    assert [each.arch for each in population.members] == ["better 1", "better 2", "without params"]


@pytest.mark.parametrize(("population_size", "num_initial"), [(3, 10), (10, 3), (1, 10)])
def test_evolution_begins_when_the_population_is_full_at_the_latest(population_size: int, num_initial: int) -> None:
    class Watched(Bits):
        def sample(self, rng: random.Random) -> str:
            samples.append(1)
            return super().sample(rng)

    samples: list[int] = []
    choice = Choice.of("params")
    population = Population(population_size, choice)
    evolution = Evolution(population_size, tournament_size=2, num_initial=num_initial)
    begun: list[Any] = []
    for seed in range(20):
        arch = evolution.propose(Watched(), population, random.Random(seed))
        begun.append(len(samples) <= seed)
        population.add(Member(arch, ScoreCard(arch, {"params": Score("params", float(int(arch, 2)))}), ()))
    assert begun == [seed >= min(population_size, num_initial) for seed in range(20)]
