"""What trains is ranked: ordinary modules of ten fields, trained by a `Trainer` and ranked by the default recipe."""

import inspect
import math
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.parameter import is_lazy

from lightning_zico import Leaderboard, ScoreCard, ZeroShotSelector, ZiCoCallback
from tests.contracts.modules import ENTRIES, Entry, loader_of
from tests.modules import assert_same, state_of

# Lightning and other packages warn of what ordinary modules do: few workers, batch sizes that are guessed, nothing
# returned by a step.
pytestmark = pytest.mark.filterwarnings("ignore")

FIELDS = 10
LEAST_MODULES = 60

Gradients = dict[str, Tensor | None]


@dataclass
class Fitted:
    """What a `Trainer` made of a module: the gradients of each backward pass, the losses, or an error."""

    gradients: list[Gradients] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    error: str | None = None


class Watching(Callback):
    """Keeps gradients and losses, and holds the weights where they are, so that all gradients are of the same ones."""

    def __init__(self, fitted: Fitted) -> None:
        self.fitted = fitted

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 0.0

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.fitted.gradients.append(gradients_of(pl_module))

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if outputs:
            self.fitted.losses.append(float(outputs["loss"]))


def gradients_of(module: torch.nn.Module) -> Gradients:
    return {name: None if p.grad is None else p.grad.clone() for name, p in module.named_parameters()}


def fit(module: LightningModule, entry: Entry, *callbacks: Callback) -> Fitted:
    """Train for two steps, or as many as the entry is scored on."""
    fitted = Fitted()
    torch.manual_seed(3)
    trainer = Trainer(
        max_epochs=1,
        limit_train_batches=entry.num_batches,
        accelerator="cpu",
        devices=1,
        logger=False,
        callbacks=[*callbacks, Watching(fitted)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    try:
        trainer.fit(module, loader_of(entry.data()))
    except Exception as error:
        fitted.error = f"{type(error).__name__}: {error}"
    return fitted


@dataclass
class Run:
    """All that one module was put through."""

    entry: Entry
    trained: Fitted
    leaderboard: Leaderboard
    card: ScoreCard
    before: dict[str, Any]
    after: dict[str, Any]
    data_before: bytes
    data_after: bytes
    offered: LightningModule


def run(entry: Entry) -> Run:
    build = seeded(entry.build, entry.big)
    trained = fit(build(), entry)
    offered, data = build(), entry.data()
    selector = ZeroShotSelector(
        proxies=["default", "zico"],
        num_batches=entry.num_batches,
        num_samples=entry.num_samples,
        seed=0,
        enable_progress_bar=False,
        **entry.options,
    )
    before, data_before = photograph_of(offered), bytes_of(data)
    leaderboard = selector.rank({"small": seeded(entry.build, entry.small), "big": offered}, loader_of(data))
    after, data_after = photograph_of(offered), bytes_of(data)
    card = selector.cards_["big"]
    return Run(entry, trained, leaderboard, card, before, after, data_before, data_after, offered)


def seeded(build: Callable[[int], LightningModule], width: int) -> Callable[[], LightningModule]:
    def built() -> LightningModule:
        torch.manual_seed(1)
        return build(width)

    return built


def photograph_of(module: LightningModule) -> dict[str, Any]:
    """All that must not change; of a parameter that waits for its shape there is only that it waits."""
    waiting = {name: type(p).__name__ for name, p in module.named_parameters() if is_lazy(p)}
    return waiting or state_of(module)


def bytes_of(data: Any) -> bytes:
    """Batches that are at hand as bytes; loaders and data modules make theirs anew."""
    return pickle.dumps(data) if isinstance(data, list) else b""


@pytest.fixture(scope="module", params=ENTRIES)
def ran(request: pytest.FixtureRequest) -> Iterator[Run | Exception]:
    try:
        yield run(ENTRIES[request.param])
    except Exception as error:
        yield error


@pytest.fixture
def result(ran: Run | Exception) -> Run:
    if isinstance(ran, Exception):
        raise ran
    return ran


def assert_trained_alike(first: Fitted, second: Fitted) -> None:
    assert second.error == first.error
    assert second.losses == first.losses
    assert len(second.gradients) == len(first.gradients)
    for a, b in zip(first.gradients, second.gradients, strict=True):
        assert_same(a, b)


def reference_gradients(entry: Entry, trained: Fitted) -> list[Gradients]:
    """Those that a trainer took; of the entry's own step, which no trainer calls, those of plain autograd."""
    if entry.step is None:
        return trained.gradients
    module, gradients = seeded(entry.build, entry.big)(), []
    for idx, batch in enumerate(entry.data()):
        module.zero_grad()
        entry.step(module, batch, idx).backward()
        gradients.append(gradients_of(module))
    return gradients


def zico_by_hand(gradients: list[Gradients]) -> dict[str, float]:
    """Compute what each parameter adds, in double precision; those without a gradient that varies are left out."""
    layers = {}
    for name, first in gradients[0].items():
        if first is None:
            continue
        stack = torch.stack([g[name].to(first.dtype) for g in gradients])
        # Optimisers step real and imaginary parts apart.
        stack = (torch.view_as_real(stack) if stack.is_complex() else stack).double()
        for part, entries in parts_of(name, stack):
            deviation = entries.std(0, correction=0)
            varies = deviation > 0
            total = float((entries.abs().mean(0)[varies] / deviation[varies]).sum())
            if total > 0:
                layers[part] = math.log(total)
    return layers


def parts_of(name: str, stack: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Split the projections that `nn.MultiheadAttention` keeps in one parameter, which are three layers."""
    if name.rpartition(".")[2] != "in_proj_weight":
        yield name, stack
        return
    for letter, third in zip("qkv", stack.chunk(3, dim=1), strict=True):
        yield f"{name}[{letter}]", third


class TestModule:
    def test_trains(self, result: Run) -> None:
        assert result.trained.error is None
        assert all(math.isfinite(loss) for loss in result.trained.losses)
        assert any(g is not None and g.any() for grads in result.trained.gradients for g in grads.values())

    def test_is_ranked_by_the_default_recipe_in_both_sizes(self, result: Run) -> None:
        assert result.leaderboard.errors == {}
        assert sorted(row["rank"] for row in result.leaderboard) in ([1, 1], [1, 2])

    def test_has_the_macs_that_a_hand_counts(self, result: Run) -> None:
        macs, count = result.card["macs"], result.entry.macs
        if count is None:
            assert macs.value is not None or macs.error.startswith("not applicable: ")
            return
        by_hand = count(result.entry.big)
        assert macs.error is None
        if isinstance(by_hand, tuple):
            assert by_hand[0] - 1 <= macs.value <= by_hand[1] + 1
        else:
            assert macs.value == round(by_hand)

    def test_has_the_zico_of_the_gradients_that_training_takes(self, result: Run) -> None:
        entry, zico = result.entry, result.card["zico"]
        assert zico.error is None
        assert zico.value == pytest.approx(math.fsum(zico.layers.values()))
        if not entry.comparable:
            return
        by_hand = zico_by_hand(reference_gradients(entry, result.trained))
        # A weight whose two gradients nearly agree adds a large number that rests on their last digits.
        assert zico.layers == pytest.approx({name: by_hand[name] for name in zico.layers}, rel=2e-3, abs=2e-3)

    def test_looks_at_every_weight_of_a_product(self, result: Run) -> None:
        gradients = reference_gradients(result.entry, result.trained)
        weights = {
            name
            for name in zico_by_hand(gradients)
            if gradients[0][name.partition("[")[0]].ndim >= 2
            and not any(fnmatch(name, p) for p in result.entry.unweighted)
        }
        assert weights <= set(result.card["zico"].layers)

    def test_is_bit_identical_afterwards_where_it_is_offered_built(self, result: Run) -> None:
        assert_same(result.before, result.after)
        assert result.data_before == result.data_after

    def test_trains_afterwards_as_if_it_had_not_been_scored(self, result: Run) -> None:
        assert_trained_alike(result.trained, fit(result.offered, result.entry))

    def test_trains_beside_the_callback_as_without_it(self, result: Run) -> None:
        entry = result.entry
        callback = ZiCoCallback(num_batches=entry.num_batches, **entry.options)
        assert_trained_alike(result.trained, fit(seeded(entry.build, entry.big)(), entry, callback))
        (record,) = callback.history
        assert record["error"] is None
        if entry.comparable:
            assert record["score"] == pytest.approx(result.card["zico"].value, rel=2e-3, abs=2e-3)


def test_sixty_modules_of_ten_fields_are_there() -> None:
    assert len(ENTRIES) >= LEAST_MODULES
    assert len({entry.field for entry in ENTRIES.values()}) == FIELDS


@pytest.mark.parametrize("name", ENTRIES)
def test_the_larger_size_counts_more_macs_by_hand(name: str) -> None:
    entry = ENTRIES[name]
    assert len(inspect.signature(entry.build).parameters) >= 1
    if entry.macs is not None:
        small, big = (entry.macs(width) for width in (entry.small, entry.big))
        assert (small[0] < big[0]) if isinstance(small, tuple) else (small < big)
