"""Lazy modules: scored on a copy that has seen one batch, and left lazy."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter, is_lazy

from lightning_zico import Budget, Candidate, ZeroShotSelector, ZiCoCallback, score
from lightning_zico.engine.lazy import copied
from tests.modules import make_batches

PROXIES = ["zico", "params", "macs", "naswot", "synflow", "num_layers", "sum_log_numel"]


class OwnLazy(nn.Module):
    """Gets its width from a hook of its own, as layers of torch_geometric do."""

    def __init__(self, out: int) -> None:
        super().__init__()
        self.weight = UninitializedParameter()
        self.out = out
        self.hook = self.register_forward_pre_hook(self.initialise)

    @torch.no_grad()
    def initialise(self, module: nn.Module, inputs: tuple[Tensor]) -> None:
        self.weight.materialize((self.out, inputs[0].shape[1]))
        nn.init.normal_(self.weight)
        self.hook.remove()
        del self.hook

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight)


class Lazy(LightningModule):
    def __init__(self, width: int = 4, own: bool = False) -> None:
        super().__init__()
        self.calls = 0
        self.network = nn.Sequential(
            *(nn.LazyConv2d(width, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Dropout(0.1)),
            *(nn.Conv2d(width, width, 1), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten()),
            OwnLazy(3) if own else nn.LazyLinear(3),
        )

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.calls += 1
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class Configured(Lazy):
    """Makes its layers where Lightning lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.network = None  # type: ignore[assignment]

    def configure_model(self) -> None:
        if self.network is None:
            self.network = Lazy().network  # type: ignore[unreachable]


PARAMS = (4 * 2 * 9 + 4) + 2 * 4 + (4 * 4 + 4) + 2 * 4 + (4 * 9 * 3 + 3)
MACS = 9 * 4 * 2 * 9 + 9 * 4 * 4 + 36 * 3
LAZY: dict[str, Callable[[], Lazy]] = {"lazy": Lazy, "own": lambda: Lazy(own=True), "configured": Configured}


def photograph(module: nn.Module) -> list[Any]:
    return [
        (
            name,
            type(part),
            {key: id(value) for key, value in vars(part).items()},
            [
                (key, is_lazy(tensor))
                for key, tensor in (*part._parameters.items(), *part._buffers.items())
                if tensor is not None
            ],
            {key: list(value) for key, value in vars(part).items() if "hooks" in key},
        )
        for name, part in module.named_modules()
    ]


@pytest.mark.parametrize("name", LAZY)
def test_a_lazy_module_is_scored_and_stays_lazy(name: str) -> None:
    module = LAZY[name]()
    before, random = photograph(module), torch.get_rng_state()
    card = score(module, make_batches(), PROXIES)
    assert photograph(module) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert {proxy: each.error for proxy, each in card.scores.items() if each.error} == {}
    assert card["params"].value == PARAMS - (3 if name == "own" else 0)
    assert card["macs"].value == MACS
    again = score(module, make_batches(), PROXIES)
    assert {n: s.value for n, s in card.scores.items()} == {n: s.value for n, s in again.scores.items()}


@pytest.mark.parametrize("own", [False, True])
def test_its_scores_are_those_of_a_copy_that_has_seen_a_batch(own: bool) -> None:
    lazy = Lazy(own=own)
    initialised: Any = copied(lazy)
    torch.manual_seed(0)
    initialised.training_step(make_batches()[0], 0)
    initialised.network[1].reset_running_stats()
    initialised.network[5].reset_running_stats()
    initialised.calls = 0
    expected = score(initialised, make_batches(), PROXIES)
    card = score(lazy, make_batches(), PROXIES, seed=0)
    assert {n: s.value for n, s in card.scores.items()} == {n: s.value for n, s in expected.scores.items()}


def test_budgets_see_sizes_and_the_winner_trains() -> None:
    candidates = {"wide": lambda: Lazy(64), "narrow": Lazy, "offered": Lazy()}
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    batches = make_batches()
    selector = ZeroShotSelector(trainer, proxies="zico", budget=Budget(params=2 * PARAMS))
    selector.rank(candidates, batches)
    assert "over budget" in selector.leaderboard_.errors["wide"]
    assert {row["params"] for row in selector.leaderboard_.rows if row["rank"]} == {PARAMS}
    best = selector.best_model_
    assert best is not None
    assert any(map(is_lazy, best.parameters()))
    selector.fit(candidates, batches)
    assert not any(map(is_lazy, selector.best_model_.parameters()))  # type: ignore[union-attr]


class Unreached(Lazy):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.LazyLinear(2)


class Broken(Lazy):
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        raise KeyError("the module's own words")


class Uncopyable(Lazy):
    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("no copies")


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (Unreached, "'head.weight' is lazy"),
        (Broken, 'KeyError: "the module\'s own words"'),
        (Uncopyable, "cannot be copied"),
    ],
)
def test_what_cannot_be_initialised_is_a_row_with_a_reason_and_no_size(build: type[Lazy], reason: str) -> None:
    board = ZeroShotSelector(proxies="params").rank([Candidate("lazy", build), Candidate("fine", Lazy)], make_batches())
    row = board.rows[-1]
    assert (row["name"], row["rank"], row["params"]) == ("lazy", None, None)
    assert reason in row["error"]


def test_the_callback_scores_a_lazy_module_and_training_notices_nothing() -> None:
    def trained(callbacks: list[Any]) -> tuple[dict[str, Tensor], list[Any]]:
        torch.manual_seed(0)
        module = Lazy()
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=2,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=callbacks,
        )
        trainer.fit(module, torch.utils.data.DataLoader(_Listed(make_batches(4)), batch_size=None))
        return module.state_dict(), module.calls

    callback = ZiCoCallback(num_batches=2)
    (with_it, calls), (without, calls_without) = trained([callback]), trained([])
    assert callback.history[0]["error"] is None
    assert callback.history[0]["score"] > 0
    assert calls == calls_without
    assert all(torch.equal(with_it[name], without[name]) for name in without)


class _Listed(torch.utils.data.Dataset[Any]):
    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, idx: int) -> Any:
        return self.batches[idx]


class Skips(Lazy):
    """Passes over its first batches: before it looks at them, after, or by its hook."""

    def __init__(self, how: str, skipped: int) -> None:
        super().__init__()
        self.how, self.skipped = how, skipped

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor | None:  # type: ignore[override]
        if batch_idx >= self.skipped:
            return super().training_step(batch, batch_idx)
        if self.how == "after":
            super().training_step(batch, batch_idx)
        return None

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if self.how == "hook" and batch_idx < self.skipped else None


@pytest.mark.parametrize(("how", "skipped"), [("before", 1), ("before", 2), ("after", 1), ("before", 4), ("hook", 1)])
@pytest.mark.filterwarnings("ignore")
def test_a_lazy_module_is_initialised_by_the_first_batch_that_is_not_skipped(how: str, skipped: int) -> None:
    generator = torch.Generator().manual_seed(0)
    samples = [(torch.randn(2, 5, 5, generator=generator), label % 3) for label in range(16)]
    loader = torch.utils.data.DataLoader(samples, 4)  # type: ignore[arg-type, var-annotated]
    batches, has_batches = list(loader), skipped + 2 <= 4 and how != "hook"
    card = score(Skips(how, skipped), batches)
    callback = ZiCoCallback(num_batches=4)
    trainer = Trainer(accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, callbacks=[callback])
    trainer.fit(Skips(how, skipped), loader)
    if not has_batches:
        assert "The training step skips all 4 batches" in (card["zico"].error or "")
        assert "The training step skips all 4 batches" in (callback.history[0]["error"] or "")
        return
    assert card["zico"].error is None
    assert card["zico"].details["skipped_batches"] == list(range(skipped))
    assert callback.history[0]["error"] is None
