"""Ranking is fair, honest and without side effects; the winner is trained as if nobody had ranked."""

import gc
import io
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import pytorch_lightning
import rich
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_zico import Budget, Candidate, Proxy, ZeroShotSelector, score
from lightning_zico.engine.scope import preserved_rng
from lightning_zico.errors import IdenticalBatchesError, TooFewBatchesError, UnknownNameError, UnsupportedBatchError
from lightning_zico.ranking import combine, get_recipe, list_recipes
from lightning_zico.results import leaderboard_table
from tests.modules import (
    Classifier,
    Fixed,
    Numbered,
    assert_same,
    assert_untouched,
    make_batches,
    make_network,
    read_batches,
)


class Data(LightningDataModule):
    """Shuffled random images, augmented with NumPy and torch."""

    def train_dataloader(self) -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(0)
        images, labels = torch.randn(24, 2, 5, 5, generator=generator), torch.arange(24) % 3
        return DataLoader(TensorDataset(images, labels), 6, shuffle=True, collate_fn=self.augmented)

    @staticmethod
    def augmented(samples: Any) -> Any:
        images, labels = torch.utils.data.default_collate(samples)
        return images + 0.1 * torch.randn_like(images) + float(np.random.rand()), labels


class Quadruple(Classifier):
    def __init__(self) -> None:
        super().__init__(width=16)


def quiet_trainer(**kwargs: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", enable_checkpointing=False, max_epochs=2, **quiet, **kwargs)


def broken() -> LightningModule:
    raise RuntimeError("cannot be built")


class Nan(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * torch.nan


class Raising(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        raise KeyError("no such\nkey")


class Repeating(Classifier):
    """Its layers are named one by one, so that nothing in it is repeated."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        layers = [nn.Conv2d(2, width, 3), nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)]
        self.network = nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3))


# Of the default and its fallbacks.
MEMBERS = ("macs", "naswot", "az_expressivity_mean", "az_trainability", "synflow", "az_expressivity", "params")


def simulated(*names: str, **kwargs: Any) -> ZeroShotSelector:
    """Make a selector to which `Numbered` candidates say themselves what the members' scores are."""
    proxies = [*names, *map(Fixed, MEMBERS)]
    return ZeroShotSelector(proxies=proxies, loss_fn=nn.functional.cross_entropy, **kwargs)


def numbers_of(*values: float | None) -> dict[str, float | None]:
    return dict(zip(MEMBERS, values, strict=True))


def test_rows_are_ranked_by_the_score_and_carry_the_baselines() -> None:
    selector = ZeroShotSelector(proxies="zico", num_batches=3)
    leaderboard = selector.rank({"small": Classifier, "large": Quadruple}, Data())
    assert leaderboard is selector.leaderboard_
    assert [row["rank"] for row in leaderboard] == [1, 2]
    assert [row["name"] for row in leaderboard] == ["large", "small"]
    for row in leaderboard:
        assert list(row) == [
            "rank", "name", "score", "zico", "params", "macs", "num_layers", "sum_log_numel", "error", "seconds",
        ]  # fmt: skip
        assert row["score"] == row["zico"]
    assert isinstance(selector.best_model_, Quadruple)
    assert leaderboard.provenance["rank_by"] == "zico"
    assert leaderboard.provenance["batch_shapes"] == [[6, 2, 5, 5], [6]]


def test_provenance_has_the_hash_of_the_batches() -> None:
    def hash_of(batches: Any) -> str | None:
        return ZeroShotSelector(proxies="params").rank([Classifier], batches).provenance["batches_hash"]

    assert hash_of(make_batches()) == hash_of(make_batches())
    changed = make_batches()
    changed[1][0][5, 1, 4, 4] += 1e-6
    assert hash_of(changed) != hash_of(make_batches())
    unhashable = [(images, labels, threading.Lock()) for images, labels in make_batches()]
    assert hash_of(unhashable) is None


def test_a_row_equals_score_on_the_same_weights_and_batches() -> None:
    selector = ZeroShotSelector(proxies="all", num_batches=3, seed=5)
    leaderboard = selector.rank([Classifier], Data())
    with preserved_rng(5):
        module = Classifier()
    card = score(module, read_batches(Data(), 3, seed=5), proxies=["zico", *get_recipe("default").members], seed=5)
    for name in card:
        assert leaderboard.rows[0][name] == card[name].value


def test_ranking_does_not_depend_on_order_or_on_the_generators() -> None:
    candidates = {"a": Classifier, "b": Quadruple, "c": lambda: Classifier(8, dropout=0.5)}
    torch.manual_seed(1)
    first = {row["name"]: row["score"] for row in ZeroShotSelector().rank(candidates, Data())}
    torch.manual_seed(2)
    turned = dict(reversed(candidates.items()))
    assert {row["name"]: row["score"] for row in ZeroShotSelector().rank(turned, Data())} == first


def test_ranking_leaves_generators_and_instances_bit_identical() -> None:
    module = Classifier()
    with assert_untouched(module):
        ZeroShotSelector().rank([module, Quadruple, broken], Data())


def test_failures_are_rows_with_reasons_ranked_last() -> None:
    selector = ZeroShotSelector(proxies="zico", budget=Budget(params=200))
    frozen = Classifier().requires_grad_(False)
    candidates = {"broken": broken, "nan": Nan, "good": Classifier, "raises": Raising, "frozen": frozen}
    candidates |= {"large": Quadruple, "no module": lambda: 3}
    leaderboard = selector.rank(candidates, Data())
    assert leaderboard.best == "good"
    assert isinstance(selector.best_model_, Classifier)
    assert [row["rank"] for row in leaderboard] == [1] + [None] * 6
    assert all(row["score"] is None for row in leaderboard.rows[1:])
    errors = leaderboard.errors
    assert errors["broken"] == "does not build: RuntimeError: cannot be built"
    assert "nan" in errors["nan"]
    assert errors["raises"] == "untrainable: its training step fails: KeyError: 'no such\\nkey'"
    assert "none of its parameters is trainable" in errors["frozen"]
    assert errors["large"].startswith("over budget: ")
    assert "3.00" not in errors["large"]
    assert "built a int" in errors["no module"]
    assert leaderboard.rows[1]["error"] is not None


def test_a_candidate_over_budget_is_never_differentiated() -> None:
    class Forbidden(Quadruple):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            assert batch[0].is_meta, "scored although over budget"
            return super().training_step(batch, batch_idx)

    limits = {"macs": 1e3, "params": 100, "depth": 1}
    for name, limit in limits.items():
        error = ZeroShotSelector(budget=Budget(**{name: limit})).rank([Forbidden], Data()).errors["Forbidden"]
        assert f" {name}, " in error
    with pytest.raises(ValueError, match="macs=-1"):
        Budget(macs=-1)


def test_fit_trains_the_winner_as_without_a_ranking() -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    selector = ZeroShotSelector(trainer=quiet_trainer(), seed=5)
    assert selector.fit([Classifier, Quadruple, broken], datamodule=Data()) is selector

    torch.manual_seed(3)
    np.random.seed(3)
    with preserved_rng(5):
        by_hand = Quadruple()
    quiet_trainer().fit(by_hand, datamodule=Data())
    assert_same(by_hand.state_dict(), selector.best_model_.state_dict())
    with preserved_rng(5):
        untrained = Quadruple()
    assert not torch.equal(untrained.network[0].weight, by_hand.network[0].weight)


def test_an_instance_that_wins_is_trained_itself() -> None:
    small, large = Classifier(), Quadruple()
    before = large.network[0].weight.clone()
    loader = DataLoader(TensorDataset(torch.randn(12, 2, 5, 5), torch.arange(12) % 3), 4)
    selector = ZeroShotSelector(trainer=quiet_trainer()).fit([small, large], loader)
    assert selector.best_model_ is large
    assert not torch.equal(large.network[0].weight, before)
    assert selector.trainer.current_epoch == 2


def test_rank_by_any_column_in_its_direction() -> None:
    class Smallness(Proxy):
        name = "smallness"
        higher_is_better = False

        def measure(self, probe: Any) -> float:
            return probe.params

    candidates = {"small": Classifier, "large": Quadruple}
    assert ZeroShotSelector(rank_by="params").rank(candidates, Data()).best == "large"
    selector = ZeroShotSelector(proxies=["zico", Smallness()], rank_by="smallness")
    assert selector.rank(candidates, Data()).best == "small"
    assert isinstance(selector.best_model_, Classifier)
    assert not isinstance(selector.best_model_, Quadruple)


def test_equal_scores_share_a_rank_and_the_first_offered_wins() -> None:
    selector = ZeroShotSelector(proxies="params")
    leaderboard = selector.rank({"b": Classifier, "a": Classifier, "c": lambda: Classifier(2)}, Data())
    assert [(row["rank"], row["name"]) for row in leaderboard] == [(1, "b"), (1, "a"), (3, "c")]


def test_a_generator_is_never_all_in_memory() -> None:
    alive: list[weakref.ref[nn.Module]] = []

    def candidates() -> Iterator[LightningModule]:
        for _ in range(8):
            assert sum(ref() is not None for ref in alive) <= 2  # the best and the last
            module = Classifier()
            alive.append(weakref.ref(module))
            yield module
            del module

    gc.disable()  # what is let go must go at once, not when the collector comes by
    try:
        selector = ZeroShotSelector(proxies="zico")
        selector.rank(candidates(), Data())
        assert sum(ref() is not None for ref in alive) == 1
    finally:
        gc.enable()


def test_memory_of_built_candidates_is_released() -> None:
    alive: list[weakref.ref[nn.Module]] = []

    def build() -> LightningModule:
        assert sum(ref() is not None for ref in alive) == 0
        module = Classifier()
        alive.append(weakref.ref(module))
        return module

    gc.disable()
    try:
        ZeroShotSelector().rank((Candidate(str(idx), build) for idx in range(5)), Data())
    finally:
        gc.enable()
    assert len(alive) == 6  # five to score, the winner once more


def test_wrong_calls_are_refused_at_once() -> None:
    with pytest.raises(UnknownNameError, match="zico"):
        ZeroShotSelector(proxies=["zicco"])
    with pytest.raises(UnknownNameError, match="rank_by"):
        ZeroShotSelector(rank_by="accuracy")
    with pytest.raises(ValueError, match="`zico` needs at least 2"):
        ZeroShotSelector(proxies=["balanced+synflow", "zico"], num_batches=1)
    with pytest.raises(ValueError, match="Invalid num_batches=0: expected a whole number of at least 1"):
        ZeroShotSelector(num_batches=0)
    with pytest.raises(UnknownNameError, match="Invalid controlled_by='zico': expected a baseline: params, macs"):
        ZeroShotSelector(proxies="zico", controlled_by="zico")
    with pytest.raises(ValueError, match="axis"):
        ZeroShotSelector(axis="both")
    with pytest.raises(ValueError, match="trainer="):
        ZeroShotSelector().fit([Classifier], Data())
    with pytest.raises(ValueError, match="empty"):
        ZeroShotSelector().rank([], Data())
    with pytest.raises(TypeError, match="list"):
        ZeroShotSelector().rank(Classifier(), Data())
    with pytest.raises(TypeError, match="would use it up"):
        ZeroShotSelector(trainer=quiet_trainer()).fit([Classifier], iter([]))
    with pytest.raises(TooFewBatchesError, match="4 batches, but 5"):
        ZeroShotSelector(num_batches=5).rank([Classifier], make_batches(4))
    with pytest.raises(IdenticalBatchesError):
        ZeroShotSelector(proxies="zico").rank([Classifier], [(torch.ones(2, 2, 5, 5), torch.tensor([0, 1]))] * 2)


def test_nothing_to_train_says_why_and_keeps_the_leaderboard() -> None:
    selector = ZeroShotSelector(trainer=quiet_trainer(), proxies="zico")
    with pytest.raises(RuntimeError, match=r"All 2 candidates failed.*cannot be built"):
        selector.fit([broken, Nan], Data())
    assert selector.best_model_ is None
    assert len(selector.leaderboard_.errors) == 2
    selector = ZeroShotSelector(trainer=quiet_trainer(), loss_fn=nn.functional.cross_entropy)
    with pytest.raises(TypeError, match="LightningModules"):
        selector.fit([make_network], Data())
    assert selector.leaderboard_.best == "make_network"


@pytest.mark.parametrize(("interactive", "enabled"), [(True, True), (True, False), (False, True)])
def test_the_table_is_only_shown_in_interactive_terminals(
    interactive: bool, enabled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.StringIO()
    monkeypatch.setattr(rich, "_console", Console(file=out, force_terminal=interactive, width=120))
    ZeroShotSelector(enable_progress_bar=enabled).rank({"small [b]": Classifier, "broken": broken}, Data())
    shown = "small [b]" in out.getvalue() and "cannot be built" in out.getvalue()
    assert shown == (interactive and enabled)
    assert bool(out.getvalue()) == shown


def test_candidates_data_and_trainer_may_all_be_of_pytorch_lightning() -> None:
    class Other(pytorch_lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = make_network()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    class OtherData(pytorch_lightning.LightningDataModule):
        def train_dataloader(self) -> DataLoader[Any]:
            return Data().train_dataloader()

    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pytorch_lightning.Trainer(accelerator="cpu", max_epochs=1, enable_checkpointing=False, **quiet)
    selector = ZeroShotSelector(trainer=trainer).fit([Other, broken], OtherData())
    assert isinstance(selector.best_model_, Other)
    assert trainer.global_step == 4


def test_fit_takes_a_list_of_batches_and_a_loader_as_training_does() -> None:
    images, labels = torch.randn(12, 2, 5, 5), torch.arange(12) % 3
    batches = [(images[i : i + 4], labels[i : i + 4]) for i in range(0, 12, 4)]
    selector = ZeroShotSelector(trainer=quiet_trainer()).fit([Classifier], batches)
    assert selector.trainer.global_step == 6

    def loader() -> DataLoader[Any]:
        return DataLoader(TensorDataset(images, labels), 4, shuffle=True)

    torch.manual_seed(3)
    selector = ZeroShotSelector(trainer=quiet_trainer()).fit([Classifier], loader())
    with preserved_rng(0):
        by_hand = Classifier()
    torch.manual_seed(3)
    quiet_trainer().fit(by_hand, loader())
    assert_same(by_hand.state_dict(), selector.best_model_.state_dict())


def test_keys_that_are_no_strings_become_names() -> None:
    leaderboard = ZeroShotSelector().rank({1: Classifier, 2: Quadruple}, Data())
    assert leaderboard.best == "2"
    assert leaderboard_table(leaderboard).row_count == 2


def test_a_winner_that_does_not_build_again_is_named_and_the_leaderboard_kept() -> None:
    built = []

    def once() -> LightningModule:
        if built:
            raise RuntimeError("only once")
        built.append(1)
        return Classifier()

    selector = ZeroShotSelector()
    with pytest.raises(
        RuntimeError, match=r"'once' won, but could not be built a second time: RuntimeError: only once"
    ):
        selector.rank([once], Data())
    assert selector.leaderboard_.best == "once"


@pytest.mark.parametrize("wrong", [[], [5], 5, ZeroShotSelector])
def test_wrong_proxies_are_refused(wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="prox"):
        ZeroShotSelector(proxies=wrong)
    with pytest.raises((TypeError, ValueError), match="prox"):
        score(Classifier(), read_batches(Data(), 2), proxies=wrong)


def test_arguments_of_a_wrong_kind_are_refused() -> None:
    with pytest.raises(TypeError, match="Budget"):
        ZeroShotSelector(budget={"params": 5})
    with pytest.raises(ValueError, match=r"Budget\(params='five'\)"):
        Budget(params="five")
    with pytest.raises(ValueError, match=r"2\.5"):
        ZeroShotSelector(num_batches=2.5)
    with pytest.raises(ValueError, match="`zico` needs at least 2"):
        ZeroShotSelector(proxies="zico", num_batches=1, rank_by="params")
    with pytest.raises(TypeError, match="instance of a module"):
        score(Classifier, read_batches(Data(), 2))
    for data in (5, None):
        with pytest.raises(UnsupportedBatchError):
            ZeroShotSelector(trainer=quiet_trainer()).fit([Classifier], data)


def test_the_default_recipe_ranks_and_stands_before_its_members_and_the_baselines() -> None:
    candidates = {"small": Classifier, "large": Quadruple, "wide": lambda: Classifier(8)}
    selector = ZeroShotSelector()
    leaderboard = selector.rank(candidates, Data())
    columns = ["rank", "name", "score", "balanced+synflow", *MEMBERS, "num_layers", "sum_log_numel", "error", "seconds"]
    assert leaderboard.columns == columns
    assert leaderboard.provenance["rank_by"] == "balanced+synflow"
    for row in leaderboard:
        assert row["score"] == row["balanced+synflow"] == selector.cards_[row["name"]]["balanced+synflow"].value
    by_name = {row["name"]: row["score"] for row in leaderboard}
    for proxies in ("default", "balanced+synflow", ["default", "zico"], "all"):
        again = ZeroShotSelector(proxies=proxies).rank(candidates, Data())
        assert {row["name"]: row["score"] for row in again} == by_name


def test_every_recipe_is_what_its_members_columns_combine_to() -> None:
    recipes = [name for name in list_recipes() if name != "zico"]
    selector = ZeroShotSelector(proxies=[*recipes, "zico"], rank_by="zico")
    leaderboard = selector.rank({"a": Repeating, "b": lambda: Repeating(8), "c": lambda: Repeating(6)}, Data())
    assert leaderboard.provenance["rank_by"] == "zico"
    for name in recipes:
        said = leaderboard.provenance["recipes"][name]
        used = get_recipe(said["used"])
        assert (said["members"], said["aggregate"]) == (list(used.members), used.aggregate)
        table = {member: [row[member] for row in leaderboard] for member in used.members}
        assert [row[name] for row in leaderboard] == combine(used, table)


@pytest.mark.parametrize(
    ("bad", "error"),
    [(broken, "does not build"), (lambda: Classifier().to("meta"), "meta device"), (lambda: 3, "built a int")],
)
def test_a_failed_candidate_is_one_row_and_changes_nothing_for_the_others(bad: Any, error: str) -> None:
    good = {"small": Classifier, "large": Quadruple}
    alone = ZeroShotSelector().rank(good, Data())
    beside = ZeroShotSelector().rank({"bad": bad, **good}, Data())
    assert beside.provenance["recipes"] == alone.provenance["recipes"]
    assert beside.provenance["recipes"]["balanced+synflow"]["used"] == "balanced+synflow"
    assert [(row["rank"], row["name"], row["score"]) for row in beside.rows[:2]] == [
        (row["rank"], row["name"], row["score"]) for row in alone
    ]
    assert error in beside.errors["bad"]


def test_one_candidate_without_blocks_makes_all_fall_back_and_the_notes_say_so() -> None:
    class Flat(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.network = nn.Sequential(nn.Flatten(), nn.Linear(50, 8), nn.ReLU(), nn.Linear(8, 3))

    blocks = Candidate("without", Flat, blocks=["network.1"])
    selector = ZeroShotSelector()
    leaderboard = selector.rank([Candidate("with", Flat, blocks=["network.1", "network.3"]), Quadruple], Data())
    assert leaderboard.provenance["recipes"]["balanced+synflow"]["used"] == "balanced+synflow"
    assert leaderboard.notes[0] == (
        "balanced+synflow: log_rank of macs, naswot, az_expressivity_mean, az_trainability, synflow."
    )
    leaderboard = selector.rank([blocks, Quadruple], Data())
    assert not leaderboard.errors
    assert leaderboard.provenance["recipes"]["balanced+synflow"]["used"] == "without_blocks"
    assert leaderboard.notes[0].startswith(
        "balanced+synflow fell back to without_blocks (log_rank of macs, naswot) for all of these candidates: "
        "az_expressivity_mean, az_trainability and az_expressivity have no number for without: the network has no "
        "blocks"
    )
    table = {name: [row[name] for row in leaderboard] for name in ("macs", "naswot")}
    assert [row["score"] for row in leaderboard] == combine(get_recipe("without_blocks"), table)
    assert selector.cards_["without"]["az_trainability"].error.startswith("not applicable: ")
    assert selector.cards_["Quadruple"]["az_trainability"].value is not None


class Squared(nn.Module):
    """Multiplies features, as linear attention does, and normalises them: without that they explode."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(8, 8), nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x).relu() ** 2)


def test_one_candidate_whose_flow_leaves_float64_makes_all_fall_back_to_the_recipe_without_it() -> None:
    def squaring(num_blocks: int) -> nn.Module:
        blocks = [Squared() for _ in range(num_blocks)]
        return nn.Sequential(nn.Flatten(), nn.Linear(50, 8), nn.ReLU(), *blocks, nn.Linear(8, 3))

    candidates = {f"{n} blocks": partial(squaring, n) for n in (12, 2, 3)}
    selector = ZeroShotSelector(loss_fn=nn.functional.cross_entropy)
    leaderboard = selector.rank(candidates, make_batches())
    reason = selector.cards_["12 blocks"]["synflow"].error
    assert reason.startswith("not applicable: the flow at")
    assert "exceeds the range of float64" in reason
    assert leaderboard.provenance["recipes"]["balanced+synflow"]["used"] == "balanced"
    assert leaderboard.notes[0].startswith("balanced+synflow fell back to balanced (log_rank of ")
    assert "synflow has no number for 12 blocks: the flow at" in leaderboard.notes[0]
    assert not leaderboard.errors
    members = get_recipe("balanced").members
    table = {name: [row[name] for row in leaderboard] for name in members}
    assert [row["score"] for row in leaderboard] == combine(get_recipe("balanced"), table)

    selector.rank({name: build for name, build in candidates.items() if name != "12 blocks"}, make_batches())
    assert selector.leaderboard_.provenance["recipes"]["balanced+synflow"]["used"] == "balanced+synflow"


def test_trainability_has_no_vote_where_blocks_put_out_tokens() -> None:
    def encoder(width: int) -> nn.Module:
        layers = [nn.TransformerEncoderLayer(width, 2, width, 0.0, batch_first=True) for _ in range(3)]
        return nn.Sequential(nn.Flatten(1, 2), nn.Linear(5, width), *layers, nn.Flatten(), nn.Linear(10 * width, 3))

    selector = ZeroShotSelector(loss_fn=nn.functional.cross_entropy)
    leaderboard = selector.rank({f"{width}": partial(encoder, width) for width in (8, 12)}, make_batches())
    assert leaderboard.provenance["recipes"]["balanced+synflow"]["used"] == "macs+expressivity"
    assert leaderboard.notes[0].startswith("balanced+synflow fell back to macs+expressivity (log_rank of macs, az_exp")
    assert "its blocks output tokens" in leaderboard.notes[0]
    members = get_recipe("macs+expressivity").members
    table = {name: [row[name] for row in leaderboard] for name in members}
    assert [row["score"] for row in leaderboard] == combine(get_recipe("macs+expressivity"), table)


class OneHot(nn.Module):
    """Numbers for tokens, without an embedding to differentiate with respect to."""

    def forward(self, tokens: Tensor) -> Tensor:
        return nn.functional.one_hot(tokens, 9).float()


def test_tokens_make_a_recipe_that_differentiates_inputs_fall_back() -> None:
    def build() -> nn.Module:
        return nn.Sequential(OneHot(), nn.Linear(9, 4), nn.ReLU(), nn.Flatten(), nn.Linear(20, 3))

    tokens = [(torch.randint(9, (6, 5)), torch.randint(3, (6,))) for _ in range(2)]
    selector = ZeroShotSelector(proxies=["size", "block_free"], loss_fn=nn.functional.cross_entropy)
    leaderboard = selector.rank([build, build], tokens)
    assert leaderboard.provenance["recipes"]["block_free"]["used"] == "without_blocks"
    assert leaderboard.notes[0] == "size: log_rank of params, macs."
    assert leaderboard.notes[1].startswith(
        "block_free fell back to without_blocks (log_rank of macs, naswot) for all of these candidates: jacob_cov "
        "has no number for build and 1 more: the network reads no floating-point tensor"
    )


LEVELS = st.one_of(st.sampled_from([0.0, 1.0, 2.0]), st.sampled_from([0.0, 1.0, 2.0, None, float("nan")]))


@given(
    st.lists(st.tuples(*[LEVELS] * len(MEMBERS)), min_size=1, max_size=7),
    st.sampled_from(["balanced+synflow", "zoo", "size", "macs"]),
    st.booleans(),
)
# What the second is better by does not count in the end, since the third has none.
@example([(1.0,) * 7, (*[1.0] * 3, 2.0, *[1.0] * 3), (*[0.0] * 3, None, *[0.0] * 3)], "balanced+synflow", False)
def test_the_winner_of_a_generator_of_instances_is_the_leaderboards_first(
    table: list[Any], rank_by: str, lower: bool
) -> None:
    modules = [Numbered(numbers_of(*values)) for values in table]
    selector = simulated("balanced+synflow", "zoo", "size", rank_by=rank_by)
    selector.proxies[3].higher_is_better = not lower  # of macs
    by_name = {f"Numbered-{idx + 1}" if idx else "Numbered": module for idx, module in enumerate(modules)}
    leaderboard = selector.rank((module for module in modules), make_batches())
    assert selector.best_model_ is by_name.get(leaderboard.best)
    if leaderboard.best is not None:
        assert leaderboard.rows[0]["rank"] == 1
    turned = selector.rank(iter(modules[::-1]), make_batches())
    assert sorted(r["score"] for r in turned if r["rank"]) == sorted(r["score"] for r in leaderboard if r["rank"])


def test_of_many_instances_only_those_that_may_win_stay_alive() -> None:
    drawn = torch.randn(300, 1, generator=torch.Generator().manual_seed(0))
    table = (drawn + 0.3 * torch.randn(300, len(MEMBERS), generator=torch.Generator().manual_seed(1))).double().numpy()
    is_beaten = (table[None] > table[:, None]).all(axis=2)  # [n, n], the one of the row by that of the column
    fronts = [int((~is_beaten[:n, :n].any(axis=1)).sum()) for n in range(301)]
    alive: list[weakref.ref[nn.Module]] = []

    def candidates() -> Iterator[nn.Module]:
        for num_offered, values in enumerate(table.tolist()):
            assert sum(ref() is not None for ref in alive) <= fronts[num_offered] + 1  # and the last
            module = Numbered(numbers_of(*values))
            alive.append(weakref.ref(module))
            yield module
            del module

    gc.disable()
    try:
        selector = simulated("default")
        selector.rank(candidates(), make_batches())
        assert max(fronts) < 100
        assert sum(ref() is not None for ref in alive) == 1
    finally:
        gc.enable()
    assert selector.best_model_.numbers["macs"] == selector.leaderboard_.rows[0]["macs"]


@pytest.mark.parametrize("proxies", ["default", "macs"])
def test_only_the_first_of_equal_instances_stays_alive_and_wins(proxies: str) -> None:
    alive: list[weakref.ref[nn.Module]] = []

    def candidates() -> Iterator[nn.Module]:
        for _ in range(6):
            assert sum(ref() is not None for ref in alive) <= 2  # the first, and the last until this one comes
            module = Numbered(numbers_of(*[1] * len(MEMBERS)))
            alive.append(weakref.ref(module))
            yield module
            del module

    selector = simulated(*([proxies] if proxies == "default" else []))
    assert len(selector.rank(candidates(), make_batches())) == 6
    assert selector.best_model_ is alive[0]()
    assert [row["rank"] for row in selector.leaderboard_] == [1] * 6
    assert selector.leaderboard_.best == "Numbered"


def test_what_cannot_be_trained_is_not_ranked_and_changes_no_recipe_even_where_no_proxy_needs_a_gradient() -> None:
    frozen = partial(_frozen, Classifier)
    selector = ZeroShotSelector()
    leaderboard = selector.rank({"plain": Classifier, "nan": Nan, "frozen": frozen}, Data())
    assert [row["rank"] for row in leaderboard] == [1, None, None]
    assert "its loss on the first batch is nan" in leaderboard.errors["nan"]
    assert "none of its parameters is trainable" in leaderboard.errors["frozen"]
    assert leaderboard.provenance["recipes"]["balanced+synflow"]["used"] == "balanced+synflow"
    assert selector.cards_["nan"]["naswot"].value == selector.cards_["plain"]["naswot"].value


def _frozen(build: Callable[[], nn.Module]) -> nn.Module:
    return build().requires_grad_(False)


def test_blocks_of_a_candidate_are_those_that_are_looked_at() -> None:
    selector = ZeroShotSelector(proxies="az")
    selector.rank([Candidate("named", Repeating, blocks=["network.0", "network.2"])], Data())
    assert list(selector.cards_["named"]["az_expressivity"].details["blocks"]) == ["network.0", "network.2"]
    card = score(Candidate("named", Repeating, ["network.1", "network.2"]), make_batches(), proxies="az")
    assert list(card["az_expressivity"].details["blocks"]) == ["network.1", "network.2"]
