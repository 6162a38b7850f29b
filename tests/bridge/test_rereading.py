"""A loader with fewer batches than asked for is read again where that gives others, and the leaderboard says so."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_zico import ZeroShotSearch, ZeroShotSelector, ZiCoCallback, score
from lightning_zico.bridge.data import Reread
from lightning_zico.engine.contents import contents
from lightning_zico.engine.scope import preserved_rng
from lightning_zico.errors import IdenticalBatchesError, TooFewBatchesError
from lightning_zico.search.run import SearchError
from tests.callbacks.training import quiet_trainer
from tests.modules import Classifier, assert_same, assert_untouched, make_batches, read_batches
from tests.search.spaces import Bits

((IMAGES, LABELS),) = make_batches(1, num_samples=12)
DATA = TensorDataset(IMAGES, LABELS)


def loader(batch_size: int, **kwargs: Any) -> DataLoader[Any]:
    return DataLoader(DATA, batch_size, **{"shuffle": True} | kwargs)


class Noisy(Classifier):
    """Draws noise in its step, as diffusion models do."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step((batch[0] + 0.1 * torch.randn_like(batch[0]), batch[1]), batch_idx)


class Augmenting(Classifier):
    """Draws on the way to the device."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [batch[0] + 0.1 * torch.randn_like(batch[0]), batch[1]]


class Stream(IterableDataset[Any]):
    """Another window of a series whenever it is iterated."""

    def __iter__(self) -> Any:
        start = int(torch.randint(6, ()))
        yield IMAGES[start : start + 6], LABELS[start : start + 6]


class Windows:
    """No DataLoader, only something to iterate over."""

    def __iter__(self) -> Any:
        return iter(Stream())


@pytest.mark.parametrize(
    ("make", "num_batches"),
    [
        (lambda: loader(4), 5),
        (lambda: loader(5, drop_last=True), 7),
        (lambda: loader(7, drop_last=True), 3),  # one batch, of other samples each time
        (lambda: DataLoader(Stream(), batch_size=None), 3),
        (Windows, 3),
    ],
)
def test_a_loader_that_draws_is_read_again_until_there_are_enough_batches(make: Any, num_batches: int) -> None:
    data = make()
    with preserved_rng(0):
        by_hand: list[Any] = []
        while len(by_hand) < num_batches:
            new = [batch for batch in data if contents(batch) not in set(map(contents, by_hand))]
            by_hand += new[: num_batches - len(by_hand)]
    before = torch.get_rng_state()
    batches = read_batches(make(), num_batches)
    assert torch.equal(before, torch.get_rng_state())
    assert_same([tuple(batch) for batch in batches], [tuple(batch) for batch in by_hand])
    assert len(set(map(contents, batches))) == num_batches
    assert isinstance(batches, Reread)
    assert not batches.are_copies


def test_the_leaderboard_says_how_often_the_data_was_read() -> None:
    selector = ZeroShotSelector(proxies="zico", num_batches=5)
    leaderboard = selector.rank([Classifier()], loader(4))
    said = (
        "The training data has 3 batches, but 5 were requested: it was read 2 times, and "
        "each pass gave different batches."
    )
    assert said in leaderboard.notes
    assert leaderboard.provenance["reading"] == {
        "num_batches": 5,
        "num_in_a_pass": 3,
        "num_passes": 2,
        "are_copies": False,
    }
    by_hand = score(selector.best_model_, read_batches(loader(4), 5))["zico"].value
    assert leaderboard.rows[0]["score"] == by_hand
    enough = ZeroShotSelector(proxies="zico").rank([Classifier], loader(4))
    assert enough.provenance["reading"] is None
    assert not any("requested" in note for note in enough.notes)


@pytest.mark.parametrize("shuffle", [False, True])
def test_one_batch_of_all_samples_has_no_varying_gradient_in_any_order(shuffle: bool) -> None:
    full = loader(12, shuffle=shuffle)
    selector = ZeroShotSelector(proxies="zico")
    with pytest.raises(IdenticalBatchesError, match=r"one batch.*is not random.*smaller batches"):
        selector.rank([Classifier, lambda: Classifier(8)], full)
    assert selector.best_model_ is None
    assert len(selector.leaderboard_.errors) == 2
    # What compares no batches is ranked, and per sample there is enough to compare.
    default = ZeroShotSelector().rank([Classifier, lambda: Classifier(8)], full)
    assert default.errors == {}
    assert any("The training data has 1 batch, but 2 were requested." in note for note in default.notes)
    assert ZeroShotSelector(proxies="zico", axis="sample").rank([Classifier], full).errors == {}


@pytest.mark.parametrize("build", [Noisy, Augmenting, lambda: Classifier(dropout=0.5)], ids=["step", "hook", "dropout"])
def test_one_batch_is_enough_where_the_step_draws(build: Any) -> None:
    torch.manual_seed(0)
    model = build()
    with assert_untouched(model):
        leaderboard = ZeroShotSelector(proxies="zico").rank(
            {"draws": model, "plain": Classifier}, loader(12, shuffle=False)
        )
    assert leaderboard.best == "draws"
    assert "is not random" in leaderboard.errors["plain"]
    assert any("one batch stands for all: gradients vary only" in note for note in leaderboard.notes)
    slightly_other = (IMAGES + 1e-7, LABELS)  # so that a list of them is not refused
    expected = score(model, [(IMAGES, LABELS), slightly_other])["zico"].value
    assert leaderboard.rows[0]["score"] == pytest.approx(expected, rel=1e-2)


def test_equal_batches_of_a_loader_that_has_several_are_too_few() -> None:
    with pytest.raises(TooFewBatchesError, match=r"gave 3 batches, but 4 were requested; reading it again gave no new"):
        ZeroShotSelector(num_batches=4).rank([Classifier], loader(4, shuffle=False))


def test_what_can_be_read_once_is_not_read_again() -> None:
    with pytest.raises(
        TooFewBatchesError, match=r"gave 1 batch, but 2 were requested\. A generator can be read only once"
    ):
        ZeroShotSelector().rank([Classifier], (batch for batch in make_batches(1)))
    with pytest.raises(TooFewBatchesError, match="Pass 2 batches, or lower `num_batches` to 1"):
        ZeroShotSelector().rank([Classifier], make_batches(1))


def test_a_search_says_how_its_data_was_read() -> None:
    settings = {"num_trials": 3, "num_classes": 3, "proxies": "zico"}
    images = TensorDataset(torch.randn(8, 2, 5, 5), torch.arange(8) % 3)
    result = ZeroShotSearch(Bits(), num_batches=3, **settings).run(DataLoader(images, 4, shuffle=True))
    assert any("it was read 2 times" in note for note in result.notes)
    with pytest.raises(SearchError, match="is not random"):
        ZeroShotSearch(Bits(), **settings | {"num_trials": 30}).run(DataLoader(images, 8))


@pytest.mark.parametrize(("build", "size"), [(Classifier, 7), (Noisy, 12)])
def test_the_callback_reads_again_and_says_so(build: Any, size: int) -> None:
    torch.manual_seed(0)
    callback = ZiCoCallback()
    quiet_trainer(callback, max_epochs=1).fit(build(), loader(size, drop_last=True))
    (record,) = callback.history
    assert record["error"] is None
    assert "The training data has 1 batch, but 2 were requested" in record["note"]


@pytest.mark.parametrize(
    "batch",
    [
        (torch.randn(5, 3), torch.arange(5)),
        {"x": torch.randn(5, 3), "mask": torch.rand(5) > 0.5},
        torch.randn(5, 2, dtype=torch.bfloat16),
        (torch.randn(5, 2, dtype=torch.complex64), ["a"] * 5),
    ],
)
def test_contents_are_the_samples_in_any_order(batch: Any) -> None:
    def changed(order: Tensor, shift: float = 0.0) -> Any:
        def change(tensor: Any) -> Any:
            if not isinstance(tensor, Tensor):
                return tensor
            return tensor[order] + shift if tensor.is_floating_point() or tensor.is_complex() else tensor[order]

        parts = batch.items() if isinstance(batch, dict) else enumerate(batch if isinstance(batch, tuple) else [batch])
        return {key: change(part) for key, part in parts}

    orders = [torch.arange(5), torch.tensor([3, 1, 0, 2, 4])]
    assert len({contents(changed(order)) for order in orders}) == 1
    assert contents(changed(orders[0])) != contents(changed(orders[0], shift=1.0))
    assert contents(changed(orders[0])) != contents(changed(torch.tensor([0, 0, 1, 2, 3])))


def test_contents_of_graphs_are_those_of_their_nodes() -> None:
    class Graph:
        def __init__(self, order: list[int], nodes: Tensor) -> None:
            self.x, self.edge_index = nodes[order], torch.tensor([order, order])

        def clone(self) -> "Graph":
            return self

    nodes = torch.randn(3, 2)
    assert contents(Graph([0, 1, 2], nodes)) == contents(Graph([2, 0, 1], nodes))
    assert contents(Graph([0, 1, 2], nodes)) != contents(Graph([0, 1, 2], nodes + 1))
    assert contents([nodes]) != contents([nn.functional.relu(nodes)])
    assert contents(itertools.count()) == contents(itertools.count())  # by what they pickle to
