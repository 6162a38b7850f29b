"""A value that is the maximum that its samples allow says so, and a ranking says whom it cannot tell apart."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_zico import Leaderboard, Score, ScoreCard, SearchResult, ZeroShotSelector, score
from lightning_zico.proxies import SWAP, saturation
from lightning_zico.ranking import RECIPES, Evidence, Recipe
from tests.modules import make_batches, make_network
from tests.search.searching import ByRule, searched

Batches = list[tuple[Tensor, Tensor]]


def wide(width: int = 64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(50, width), nn.ReLU(), nn.Linear(width, 3))


def convolutional(width: int) -> nn.Module:
    torch.manual_seed(0)
    return make_network(width)


def features(signal: float) -> Batches:
    """Make forty samples of three Gaussian classes, whose means are far apart or the same."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(40) % 3
    means = signal * torch.eye(6)[:3]
    return [(torch.randn(40, 6, generator=generator) + means[labels], labels)]


class WithHead(nn.Sequential):
    """Layers of which the last is the checkpoint's own head."""

    def source_head(self) -> tuple[str, nn.Module]:
        name, head = list(self.named_children())[-1]
        return name, head


def identity(num_outputs: int) -> nn.Module:
    """A head that puts out its first inputs, behind a layer that changes nothing."""
    layers = [nn.Linear(6, 6), nn.Linear(6, num_outputs)]
    for layer in layers:
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)
    return WithHead(*layers)


def sources(num_samples: int, order: int) -> Batches:
    """Make samples of five classes of the source, of which three classes of the target follow if the order is one."""
    source = torch.arange(num_samples) % 5
    return [(torch.eye(6)[source], (source if order == 1 else torch.arange(num_samples)) % 3)]


class Case(NamedTuple):
    at_maximum: tuple[Callable[[], nn.Module], Batches]
    below: tuple[Callable[[], nn.Module], Batches]
    maximum: float
    num_samples: int
    more_samples: str | None


FEW = make_batches(num_samples=3)
CASES = {
    "swap": Case((wide, FEW), (lambda: wide(2), FEW), 2.0**3, 3, "batch_size"),
    "linear_regions": Case((lambda: convolutional(64), FEW), (lambda: convolutional(1), FEW), 1000.0, 1000, None),
    "knn": Case(
        (lambda: identity(3), features(50.0)), (lambda: identity(3), features(0.0)), 100.0, 40, "num_samples_transfer"
    ),
    "ridge_probe": Case(
        (lambda: identity(3), features(50.0)), (lambda: identity(3), features(0.0)), 100.0, 40, "num_samples_transfer"
    ),
    "nce": Case(
        (lambda: identity(5), sources(20, 1)), (lambda: identity(5), sources(20, 0)), 0.0, 20, "num_samples_transfer"
    ),
}


def measured(name: str, of: tuple[Callable[[], nn.Module], Batches]) -> Score:
    build, batches = of
    return score(build(), batches, name, F.cross_entropy)[name]


@pytest.mark.parametrize("name", CASES)
def test_a_value_says_that_it_is_the_maximum_exactly_where_it_is(name: str) -> None:
    case = CASES[name]
    found, below = measured(name, case.at_maximum), measured(name, case.below)
    assert found.value == case.maximum
    expected = saturation(True, case.num_samples, case.more_samples)
    assert found.details.items() >= expected.items()
    assert below.value is not None
    assert below.value < case.maximum
    assert "saturated" not in below.details


def test_inputs_of_the_original_size_that_all_differ_are_the_maximum() -> None:
    found = score(wide(), FEW, "linear_regions", F.cross_entropy)["linear_regions"]
    assert (found.value, found.details["inputs"]) == (3.0, "own size")
    assert found.details.items() >= saturation(True, 3, None).items()


def test_patterns_weighed_by_the_size_tell_networks_apart() -> None:
    found = score(wide(), FEW, SWAP(mu=1e3, sigma=1e6), F.cross_entropy)["swap"]
    assert found.value is not None
    assert found.value < 8
    assert "saturated" not in found.details


SWAPS = {
    2: "swap is at its maximum for 2 of 4 candidates with 3 samples, so it cannot tell them apart. Raise `batch_size`.",
    3: "swap is at its maximum for 3 of 4 candidates with 3 samples, so it cannot tell them apart. Raise `batch_size`.",
}


def notes_of(leaderboard: Leaderboard | SearchResult) -> list[str]:
    return [note for note in leaderboard.notes if "maximum" in note]


@pytest.mark.parametrize("num_saturated", range(4))
@pytest.mark.parametrize("repeats", [1, 2])
def test_a_ranking_says_whom_a_score_cannot_tell_apart(num_saturated: int, repeats: int) -> None:
    candidates = {str(idx): lambda idx=idx: wide(64 if idx < num_saturated else 1) for idx in range(4)}
    selector = ZeroShotSelector(proxies="swap", loss_fn=F.cross_entropy, repeats=repeats)
    batches = make_batches(num_batches=4, num_samples=3)
    leaderboard = selector.rank(candidates, batches)
    assert sum(row["swap"] == 8 for row in leaderboard) == num_saturated
    assert notes_of(leaderboard) == ([SWAPS[num_saturated]] if num_saturated > 1 else [])
    assert notes_of(Leaderboard.from_json(leaderboard.to_json())) == notes_of(leaderboard)
    assert notes_of(leaderboard.head(1)) == notes_of(leaderboard)


@pytest.mark.usefixtures("_own_registries")
def test_so_does_a_ranking_by_a_recipe_of_which_it_is_a_member() -> None:
    RECIPES.register("mine", Recipe("mine", ("macs", "swap"), "mean_rank", Evidence(), "of this test"))
    candidates = {str(width): lambda width=width: wide(width) for width in (1, 64, 65)}
    leaderboard = ZeroShotSelector(proxies="mine", loss_fn=F.cross_entropy).rank(candidates, FEW)
    assert leaderboard.provenance["rank_by"] == "mine"
    assert notes_of(leaderboard) == [SWAPS[2].replace("of 4", "of 3")]


class Saturating(ByRule):
    """Says of the archs that begin with a one that they are at the maximum."""

    def run(self, *args: Any) -> Any:
        for job, card in super().run(*args):
            is_maximum = job.candidate.name.startswith("1")
            found = {
                name: replace(each, details=saturation(is_maximum, 3, "batch_size"))
                for name, each in card.scores.items()
            }
            yield job, replace(card, scores=found)


def test_so_does_a_search_from_its_stored_trials(tmp_path: Any) -> None:
    given = {"proxies": "swap", "num_trials": 30, "storage": tmp_path / "trials.db", "name": "patterns"}
    executor = Saturating(swap=lambda arch: 8.0 if arch.startswith("1") else float(arch.count("1")))
    result = searched(executor=executor, **given)
    most = sum(row["arch"].startswith("1") for row in result.history)
    assert most > 3
    assert notes_of(result) == [SWAPS[2].replace("2 of 4", f"{most} of 30")]
    again = searched(executor=executor, **given)
    assert len(executor.asked) == 30
    assert notes_of(again) == notes_of(again.to_leaderboard()) == notes_of(result)


def card(name: str, value: float | None, num_samples: int | None, *columns: str) -> ScoreCard:
    details = {} if num_samples is None else saturation(True, num_samples, "batch_size")
    error = None if value is not None else "not applicable: none."
    return ScoreCard(name, {column: Score(column, value, error, details=details) for column in columns})


def board(*cards: ScoreCard) -> Leaderboard:
    return Leaderboard.of(cards, rank_by="knn", columns=list(cards[0]))


@given(st.lists(st.tuples(st.sampled_from([None, 8.0, 16.0]), st.sampled_from([True, False]), st.booleans())))
def test_the_note_counts_those_at_the_same_maximum_among_those_with_a_rank(drawn: list[Any]) -> None:
    cards = [
        card(str(idx), value, int(value).bit_length() - 1 if value and is_maximum else None, "knn")
        for idx, (value, is_maximum, _) in enumerate(drawn)
    ]
    cards = [
        replace(each, untrainable=None if trains else "no") for each, (_, _, trains) in zip(cards, drawn, strict=True)
    ]
    notes = notes_of(Leaderboard.of(cards, rank_by="knn", columns=["knn"]))
    ranked = [value for value, _, trains in drawn if trains and value is not None]
    expected = []
    for value, num_samples in ((8.0, 3), (16.0, 4)):
        most = sum(drawn_value == value and is_max and trains for drawn_value, is_max, trains in drawn)
        if most > 1:
            expected.append(f"knn is at its maximum for {most} of {len(ranked)} candidates with {num_samples} samples")
    assert sorted(note.partition(",")[0] for note in notes) == sorted(expected)


def test_scores_that_agree_are_one_note() -> None:
    cards = [card(name, 100.0, 40, "knn", "ridge_probe") for name in "abc"]
    assert notes_of(board(*cards)) == [
        "knn, ridge_probe are at their maximum for 3 of 3 candidates with 40 samples, so they cannot tell them apart. "
        "Raise `batch_size`."
    ]


def test_a_maximum_in_one_repeat_of_several_is_none() -> None:
    cards = [card(name, 8.0, 3, "knn") for name in "ab"]
    for by_repeat, is_noted in (((8.0, 8.0), True), ((8.0, 7.0), False)):
        scores = [replace(each, scores={"knn": replace(each["knn"], by_repeat=by_repeat)}) for each in cards]
        assert bool(notes_of(board(*scores))) == is_noted


def test_details_of_a_proxy_of_the_users_own_are_left_alone() -> None:
    cards = [ScoreCard(name, {"knn": Score("knn", 1.0, details={"saturated": "green"})}) for name in "ab"]
    assert notes_of(board(*cards)) == []
