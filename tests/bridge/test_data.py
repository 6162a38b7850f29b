"""Training data is read as lists of batches, under a seed, and everything stays as it was."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

from lightning_zico.bridge import TrainingData, check_readable_again
from lightning_zico.errors import IdenticalBatchesError, InvalidArgumentError, TooFewBatchesError

NUMBERS = torch.arange(24.0)[:, None]


def loader_of(**options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(NUMBERS), **({"batch_size": 4, "shuffle": True} | options))


class Module(LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def prepare_data(self) -> None:
        self.calls.append("prepare")

    def setup(self, stage: str) -> None:
        self.calls.append("setup")

    def train_dataloader(self) -> DataLoader[Any]:
        self.calls.append("loader")
        return loader_of()

    def teardown(self, stage: str) -> None:
        self.calls.append("teardown")


def values_of(batches: Any) -> list[list[float]]:
    return [batch[0].flatten().tolist() for batch in batches]


@given(st.integers(1, 6), st.integers(0, 5))
def test_a_seed_decides_the_batches_and_generators_stay(num_batches: int, seed: int) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    with TrainingData(loader_of()) as data:
        first, again, other = (values_of(data.read(num_batches, seed=s).batches) for s in (seed, seed, seed + 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert first == again != other
    assert len(first) == num_batches
    seen = [value for batch in first for value in batch]
    assert len(set(seen)) == len(seen) == 4 * num_batches


@given(st.integers(1, 3), st.integers(1, 3))
def test_repeats_of_a_list_divide_it_in_its_order(num_batches: int, repeats: int) -> None:
    batches = [(torch.full((2, 1), float(idx)),) for idx in range(num_batches * repeats)]
    readings = TrainingData(batches).read_repeats(num_batches, repeats)
    assert [len(reading.batches) for reading in readings] == [num_batches] * repeats
    assert values_of(batch for reading in readings for batch in reading.batches) == values_of(batches)
    with pytest.raises(TooFewBatchesError, match=rf"need {num_batches * (repeats + 1)} batches\. Pass that many"):
        TrainingData(batches).read_repeats(num_batches, repeats + 1)


def test_repeats_of_a_loader_have_seeds_of_their_own_and_must_differ() -> None:
    data = TrainingData(loader_of())
    by_repeat = [values_of(reading.batches) for reading in data.read_repeats(2, 3, seed=4)]
    assert by_repeat == [values_of(data.read(2, seed=seed).batches) for seed in (4, 5, 6)]
    with pytest.raises(IdenticalBatchesError, match=r"All 3 repeats have the same batches.*a list of 6 batches"):
        TrainingData(loader_of(shuffle=False)).read_repeats(2, 3)


def test_a_data_module_is_set_up_for_each_reading_and_torn_down_before_the_next() -> None:
    module = Module()
    once = ["prepare", "setup", "loader"]
    with TrainingData(module) as data:
        data.read_repeats(2, 2)
        assert module.calls == [*once, "teardown", *once]
    assert module.calls == [*once, "teardown", *once, "teardown"]
    assert module.trainer is None


@pytest.mark.parametrize("num_batches", [None, 1, 3])
def test_given_batches_are_read_whole_and_loaders_twice(num_batches: int | None) -> None:
    batches = [(part, part[:, 0]) for part in NUMBERS.split(4)]
    given_, loaded = (TrainingData(data).read_given(num_batches).batches for data in (batches, loader_of()))
    assert len(given_) == (num_batches or len(batches))
    assert len(loaded) == (num_batches or 2)
    cut = TrainingData(batches).read_given(num_batches, batch_size=2, cuts_given=True).batches
    assert values_of(cut) == [values[:2] for values in values_of(given_)]


def test_a_trainer_gets_the_data_as_it_takes_it() -> None:
    module, loader, batches = Module(), loader_of(), [(NUMBERS,)] * 2
    assert TrainingData(module).fit_arguments() == {"datamodule": module}
    assert TrainingData(loader).fit_arguments(loader) == {"train_dataloaders": loader, "val_dataloaders": loader}
    wrapped = TrainingData(batches).fit_arguments()["train_dataloaders"]
    assert not isinstance(wrapped, list)  # which Lightning would take for several loaders
    assert list(wrapped) == batches
    assert len(wrapped) == 2


@pytest.mark.parametrize("once", [iter([1]), [iter([1])], {"a": (x for x in ())}])
def test_what_can_be_read_only_once_is_recognised_wherever_it_is(once: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"Invalid data: a \w+, which can be read only once, so it would be"):
        check_readable_again(once, "data", "so it would be used up", "Pass a list")
    check_readable_again([loader_of(), [1, 2], None], "data", "", "")
