"""What is no data is refused before anything is read, and what may be data passes."""

import itertools
from collections import UserDict
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_zico import (
    ZeroShotSearch,
    ZeroShotSelector,
    score,
)
from lightning_zico.bridge.checks import check_data
from tests.modules import Classifier, make_batches, make_network
from tests.scoring.test_arguments import IMAGES, LABELS, LOADER, Data, Pair
from tests.search.spaces import Bits


class Graph:
    """Moves to a device, as batches that are objects do."""

    def to(self, device: Any) -> "Graph":
        return self

    def __iter__(self) -> Any:
        return iter([("x", torch.ones(3))])


DATA = {
    "class": (Data, r"Invalid \w+=Data: it is a class. Pass an instance, `Data\(\.\.\.\)`"),
    "class of a loader": (DataLoader, r"DataLoader: it is a class"),
    "one batch": ([IMAGES, LABELS], r"a list of Tensor \(6, 2, 5, 5\), Tensor \(6,\), which looks like one batch"),
    "one batch in a tuple": ((IMAGES, LABELS), "a tuple of Tensor .* looks like one batch"),
    "arrays": ((np.ones((6, 4)), np.ones(6)), "a tuple of ndarray, ndarray, which looks like one batch"),
    "regression": ([torch.randn(4, 8), torch.randn(4, 1)], "looks like one batch"),
    "inputs and names": ([IMAGES, ["a", "b"]], "a list of Tensor .*, list, which looks like one batch"),
    "inputs and a mapping": ((IMAGES, {"y": LABELS}), "looks like one batch"),
    "detection": (([IMAGES[0], IMAGES[1]], [{"boxes": LABELS}] * 2), "looks like one batch"),
    "pairs of inputs and of labels": (([IMAGES, IMAGES], [LABELS, LABELS]), "looks like one batch"),
    "mapping": ({"x": IMAGES, "y": LABELS}, "a dict of tensors, which looks like one batch"),
    "mapping of its own": (UserDict(x=IMAGES), "a UserDict of tensors, which looks like one batch"),
    "named tuple": (Pair(IMAGES, IMAGES), "a Pair of .* looks like one batch"),
    "object": (Graph(), "a Graph, which looks like one batch"),
    "tensor": (IMAGES, r"a single Tensor of shape \(6, 2, 5, 5\); expected"),
    "array": (np.ones((4, 2)), r"a single ndarray of shape \(4, 2\); expected"),
    "text": ("data/", "'data/'; expected a LightningDataModule, a DataLoader or a list of batches"),
    "nothing": (None, "None; expected"),
    "number": (3, "3; expected"),
    "module": (make_network(), "Sequential; expected"),
    "models": ({"a": Classifier}, "a dict that contains a candidate, Classifier; expected .*Pass candidates first"),
    "dataset": (LOADER.dataset, r"the dataset TensorDataset; .*Pass `DataLoader\(dataset, batch_size"),
}


@pytest.mark.parametrize("kind", DATA)
def test_what_is_not_data_is_refused_wherever_data_is_taken(kind: str) -> None:
    data, said = DATA[kind]
    calls = [
        lambda: ZeroShotSelector(proxies="zico").rank([Classifier], data),
        lambda: ZeroShotSelector(trainer=Trainer(accelerator="cpu", logger=False)).fit([Classifier], data),
        lambda: ZeroShotSearch(Bits(), num_classes=3).run(data),
        lambda: score(Classifier(), data),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=said) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "pairs"),
    [
        (make_batches(), True),
        (tuple(make_batches()), True),
        ([list(batch) for batch in make_batches()], True),
        ([IMAGES, IMAGES + 1], False),
        ([torch.ones(4, 7, dtype=torch.long), torch.ones(4, 9, dtype=torch.long)], False),  # tokens of two lengths
        ([[IMAGES[0], IMAGES[1]], [IMAGES[2]]], False),  # images of several sizes
        ([{"x": IMAGES}, {"x": IMAGES, "y": LABELS}], False),
        ([(IMAGES, LABELS, {"a": 1}), (IMAGES, LABELS, None)], False),
        ([Pair(IMAGES, LABELS)] * 2, True),
        ({"a": LOADER, "b": LOADER}, False),
        ([LOADER, LOADER], False),
        (iter(make_batches()), True),
        (Data(), True),
        ([], False),
    ],
)
def test_what_may_be_data_passes(data: Any, pairs: bool) -> None:
    check_data(data, pairs=pairs)


def test_with_a_loss_function_tensors_are_not_batches() -> None:
    tensors = [torch.randn(4, 8), torch.randn(4, 8)]
    assert ZeroShotSelector(proxies="params", step=lambda m, b, i: m(b).mean()).rank([nn.Linear(8, 1)], tensors).best
    with pytest.raises(TypeError, match="looks like one batch"):
        ZeroShotSelector(loss_fn=nn.MSELoss()).rank([nn.Linear(8, 8)], tensors)


def test_a_single_tensor_is_never_taken_for_batches() -> None:
    tensors: list[Tensor] = list(itertools.islice(IMAGES, 2))
    check_data(tensors)  # a list of them may be batches without targets
    with pytest.raises(TypeError, match="single Tensor"):
        check_data(IMAGES)
