"""Samples for features are read only if a proxy needs them, in a pass of their own, and leave the data as it was."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lightning_zico import ZeroShotSelector, score
from lightning_zico.bridge.data import TrainingData
from lightning_zico.scoring.cache import MemoryCache
from tests.modules import Classifier, make_batches

READ: list[int] = []  # indices of the samples


class Images(Dataset[Any]):
    """Notes what is read, where it is not undone after reading."""

    def __init__(self, count: int = 40) -> None:
        (self.samples,) = make_batches(1, count)

    def __len__(self) -> int:
        return len(self.samples[1])

    def __getitem__(self, idx: int) -> tuple[Tensor, Tensor]:
        READ.append(idx)
        return self.samples[0][idx], self.samples[1][idx]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        images = Images(1000)
        return (images[idx] for idx in range(1000))


class Data(LightningDataModule):
    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Images(), batch_size=16)


def num_read(proxies: Any, **options: Any) -> int:
    READ.clear()
    score(Classifier(), DataLoader(Images(), batch_size=4), proxies, **options)
    return len(READ)


def test_proxies_that_look_at_no_features_read_no_further_samples() -> None:
    assert num_read(["zico", "naswot", "params"]) == 8
    assert num_read(["zico", "knn"], num_samples_transfer=10) == 8 + 12
    assert num_read(["zico", "knn"]) == 8 + 40


@pytest.mark.parametrize(
    "data",
    [
        lambda: DataLoader(Images(), batch_size=4),
        lambda: DataLoader(Images(), batch_size=16),
        Data,
        lambda: DataLoader(Stream(), batch_size=6),
        lambda: make_batches(5, 6),
        lambda: [DataLoader(Images(), batch_size=4)],
    ],
    ids=["loader", "rebuilt", "data module", "stream", "list", "loaders"],
)
def test_there_are_as_many_samples_as_requested_rounded_up_to_whole_batches(data: Any) -> None:
    with TrainingData(data()) as source:
        reading = source.read(2, batch_size=6, num_samples_transfer=11)
    assert len(reading.batches) == 2
    assert sum(len(tree_leaves(batch)[-1]) for batch in reading.transfer_batches) == 12


def test_a_small_data_set_gives_all_its_samples_once() -> None:
    with TrainingData(DataLoader(Images(), batch_size=16, shuffle=True)) as source:
        reading = source.read(2, num_samples_transfer=1000)
    rows = torch.cat([inputs.flatten(1) for inputs, _ in reading.transfer_batches])
    assert sorted(rows[:, 0].tolist()) == sorted(Images().samples[0].flatten(1)[:, 0].tolist())


def test_data_that_can_be_read_once_gives_no_further_samples() -> None:
    with TrainingData(iter(make_batches(5))) as source:
        assert source.read(2, num_samples_transfer=100).transfer_batches == ()


def test_all_repeats_and_all_candidates_see_samples_of_their_seed() -> None:
    loader = DataLoader(Images(), batch_size=4, shuffle=True)

    def ranked(seed: int) -> list[float | None]:
        selector = ZeroShotSelector(
            proxies="logme", num_samples_transfer=20, seed=seed, repeats=2, enable_progress_bar=False
        )
        board = selector.rank({"a": Classifier, "b": partial(Classifier, width=4)}, loader)
        return [row["logme"] for row in board.rows]

    first = ranked(0)
    assert first[0] == first[1] is not None
    assert ranked(0) == first
    assert ranked(5) != first


def test_the_cache_knows_which_samples_the_features_are_of() -> None:
    cache = MemoryCache()

    def values(num_samples: int) -> dict[str, Any]:
        selector = ZeroShotSelector(
            proxies=["logme", "zico"], num_samples_transfer=num_samples, cache=cache, enable_progress_bar=False
        )
        selector.rank({"a": Classifier}, DataLoader(Images(), batch_size=4))
        card = selector.cards_["a"]
        return {name: (card[name].value, card[name].seconds) for name in ("logme", "zico")}

    few, many, again = values(16), values(40), values(16)
    assert few == again
    assert few["logme"][0] != many["logme"][0]
    assert few["zico"][0] == many["zico"][0]
