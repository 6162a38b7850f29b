"""What is public shows itself shortly, whatever it holds."""

import random
from typing import Any

import lightning_zico as zico
from lightning_zico import Leaderboard, Score, ScoreCard, SearchResult, ZeroShotSelector
from lightning_zico.candidates import iterate_candidates
from lightning_zico.ranking import get_recipe, list_recipes
from lightning_zico.spaces import get_space, list_spaces
from lightning_zico.spaces.plainnet import START
from lightning_zico.zoo import from_zoo
from tests.modules import Classifier, make_batches
from tests.results.boards import card, make

LONG = "x" * 10_000 + "\n\x1b[2J"


def examples_of_public_classes() -> dict[type, list[Any]]:
    scores = {str(idx): Score(LONG, None, LONG, traceback=LONG) for idx in range(1000)}
    scores["zico"] = Score("zico", 1.5, layers={str(idx): 1.0 for idx in range(1000)}, std_error=0.25)
    long = ScoreCard(LONG, scores)
    leaderboard = Leaderboard.of([long] * 100, rank_by="zico", columns=["zico"], provenance={"rank_by": LONG})
    rows = [{"trial": 0, "rank": 1, "arch": LONG, "score": 1.0, "on_front": True, "error": None, "seconds": 0.1}]
    selector = ZeroShotSelector(prior={str(idx): 1.0 for idx in range(1000)})
    return {
        zico.Budget: [zico.Budget(1e6, 2e6, depth=3, latency_s=0.1, memory_bytes=1e9)],
        zico.Candidate: [zico.Candidate(LONG, Classifier), *iterate_candidates({"a": Classifier()})],
        zico.Evolution: [zico.Evolution(start=str(START))],
        Leaderboard: [leaderboard, Leaderboard(())],
        zico.Prior: [zico.Prior({str(idx): 1.0 for idx in range(1000)})],
        zico.ProcessExecutor: [zico.ProcessExecutor(2)],
        zico.Proxy: [zico.ZiCo()],
        zico.RayExecutor: [zico.RayExecutor()],
        Score: list(scores.values()),
        ScoreCard: [long],
        SearchResult: [SearchResult(tuple(rows * 100))],
        zico.ZeroShotSearch: [zico.ZeroShotSearch("nas_bench_201")],
        ZeroShotSelector: [selector, selector.rank({LONG: Classifier}, make_batches())],
        zico.ZiCo: [zico.ZiCo()],
        zico.ZiCoCallback: [zico.ZiCoCallback()],
    }


def test_the_repr_of_everything_public_fits_three_lines() -> None:
    examples = examples_of_public_classes()
    assert set(examples) == {value for value in map(zico.__dict__.get, zico.__all__) if isinstance(value, type)}
    for shown in (shown for of_one in examples.values() for shown in of_one):
        assert len(repr(shown)) <= 3 * 120, type(shown)
        assert repr(shown).isprintable()
    assert repr(examples[Score][-1]) == "<Score 'zico': 1.5 ± 0.25, 1,000 layers>"
    assert repr(make(card("a", 1.0), card("c", None))) == "<Leaderboard of 2 candidates by 'zico', best 'a', 1 failed>"


def test_recipes_zoos_and_archs_fit_three_lines_as_well() -> None:
    zoo = from_zoo("torchvision:*", num_classes=10)
    archs = [get_space(name).sample(random.Random(seed)) for name in list_spaces() for seed in range(20)]
    for shown in (*map(get_recipe, list_recipes()), zoo, *archs):
        assert len(repr(shown)) <= 3 * 120, type(shown)
        assert repr(shown).isprintable()
    assert repr(zoo) == f"<Zoo of {len(zoo.names)} models, first {zoo.names[0]!r}>"
    assert repr(get_recipe("without_blocks")) == "<Recipe 'without_blocks': log_rank of macs, naswot>"
