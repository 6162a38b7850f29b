"""A candidate whose training step fails is ranked last with the reason, whatever it is ranked by."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_zico import Proxy, ZeroShotSelector, score
from lightning_zico.bridge import Reading
from lightning_zico.candidates import Candidate
from lightning_zico.proxies import resolve_proxies
from lightning_zico.scoring.cache import MemoryCache
from lightning_zico.scoring.cached_scorer import with_cache
from lightning_zico.scoring.scorer import Scorer
from tests.modules import BusyClassifier, Classifier, assert_untouched, make_batches

PROXIES = ["params", "default", "zico"]


class InForward(Classifier):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images[:, :, :2])


class InLoss(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step((batch[0], batch[1] + 100), batch_idx)


class OnSecondBatch(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if batch_idx == 1:
            raise RuntimeError("no second batch")
        return super().training_step(batch, batch_idx)


class PenalisesGradients(Classifier):
    """Needs a graph of its inputs and of its weights, as in a trainer, and not under ``no_grad``."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        (gradient,) = torch.autograd.grad(loss, self.network[0].weight, create_graph=True)
        return loss + gradient.square().sum()


class LooksWithNumPy(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        mean = float(batch[0].numpy().mean())
        return super().training_step(batch, batch_idx) + mean


class Manual(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class Without(torch.autograd.Function):
    """Has no way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise RuntimeError("no way back")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda loss: None, "The training step skips all 2 batches"),
        (lambda loss: {}, "returned a dictionary without a loss"),
        (lambda loss: {"logits": loss}, "returned a dictionary without a loss"),
        (lambda loss: loss.expand(2), "The loss is a tensor of shape (2,)"),
        (lambda loss: loss.item(), "The loss is float"),
        (lambda loss: Without.apply(loss), "its training step fails: RuntimeError: no way back"),
    ],
    ids=["None", "empty", "another key", "vector", "number", "backward fails"],
)
def test_what_gives_no_gradient_is_ranked_by_no_recipe_and_moves_nobody(make: Any, reason: str) -> None:
    class Odd(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return make(super().training_step(batch, batch_idx))

    batches = make_batches()
    selector = ZeroShotSelector(proxies=["default", "zico"])
    alone = selector.rank({"good": Classifier()}, batches)
    board = selector.rank({"odd": Odd(), "good": Classifier()}, batches)
    assert [(row["name"], row["rank"]) for row in board] == [("good", 1), ("odd", None)]
    assert reason in board.errors["odd"]
    assert board.errors["odd"].startswith("untrainable: ")
    assert board.provenance["recipes"] == alone.provenance["recipes"]


@pytest.mark.parametrize("axis", ["batch", "sample"])
@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (InForward, "RuntimeError: Calculated padded input size"),
        (InLoss, "IndexError: Target 10"),
        (OnSecondBatch, "RuntimeError: no second batch"),
        (lambda: BusyClassifier(fail=True), "RuntimeError: in the middle of a step"),
    ],
)
def test_a_step_that_fails_is_the_cards_own_reason_and_leaves_no_trace(build: Any, reason: str, axis: Any) -> None:
    model = build()
    with assert_untouched(model):
        card = score(model, make_batches(), PROXIES, axis=axis)
    assert (card.untrainable or "").startswith(f"untrainable: its training step fails: {reason}")
    assert card.error is None
    assert card["params"].value == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("axis", ["batch", "sample"])
@pytest.mark.parametrize("build", [PenalisesGradients, LooksWithNumPy])
def test_what_only_scoring_cannot_bear_does_not_count(build: Any, axis: Any) -> None:
    card = score(build(), make_batches(), [*PROXIES, "grasp", "synflow", "jacob_cov"], axis=axis)
    # Torch 2.5 has the third derivative of batch normalisation, which GraSP then needs.
    assert any(part.error for part in card.scores.values()) or torch.__version__.startswith("2.5.")
    assert card.untrainable is None


def test_a_module_with_manual_optimisation_may_well_be_trained() -> None:
    assert score(Manual(), make_batches(), PROXIES).untrainable is None


def test_a_proxys_own_failure_does_not_count() -> None:
    class Failing(Proxy):
        name = "failing"

        def measure(self, probe: Any) -> float:
            raise RuntimeError("a proxy's")

    card = score(InForward(), make_batches(), ["params", Failing()])
    assert card["failing"].error == "RuntimeError: a proxy's"
    assert card.untrainable is None


def test_it_is_ranked_last_by_what_needs_no_pass_as_soon_as_another_proxy_makes_one() -> None:
    class Large(InForward):
        def __init__(self) -> None:
            super().__init__(width=32)

    candidates = {"large and broken": Large, "small": Classifier}
    leaderboard = ZeroShotSelector(proxies=["params", "zico"]).rank(candidates, make_batches())
    assert [(row["name"], row["rank"]) for row in leaderboard] == [("small", 1), ("large and broken", None)]
    assert leaderboard.errors["large and broken"].startswith("untrainable: its training step fails: RuntimeError")
    # No pass is made for a number of parameters alone.
    assert ZeroShotSelector(proxies="params").rank(candidates, make_batches()).best == "large and broken"


class Unlucky(Classifier):
    """Fails as long as there is a file, as a full disk or an occupied device would make it fail."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, images: Tensor) -> Tensor:
        if Path(self.path).exists():
            raise OSError("try again")
        return super().forward(images)


def test_a_failure_that_may_pass_is_in_no_cache(tmp_path: Path) -> None:
    path = tmp_path / "occupied"
    path.touch()
    bare = Scorer(Reading.of(make_batches()), resolve_proxies(["params", "zico"]))
    caching = with_cache(bare, MemoryCache())
    candidate = Candidate("unlucky", lambda: Unlucky(str(path)))
    assert caching.score(candidate).untrainable == "untrainable: its training step fails: OSError: try again"
    path.unlink()
    again = caching.score(candidate)
    assert again.untrainable is None
    assert again["zico"].value == bare.score(candidate)["zico"].value


def test_with_a_loss_function_the_model_and_the_loss_are_the_step() -> None:
    card = score(nn.Flatten(), make_batches(), PROXIES, nn.CrossEntropyLoss())
    assert "none of its parameters" in (card.untrainable or "")
    card = score(nn.Linear(7, 3), make_batches(), PROXIES, nn.CrossEntropyLoss())
    assert (card.untrainable or "").startswith("untrainable: its training step fails: RuntimeError: mat1 and mat2")
