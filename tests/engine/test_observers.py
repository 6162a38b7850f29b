from collections import OrderedDict, UserDict
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from lightning_zico.engine.observers import floating_tensor_in
from tests.engine.models import Output


class NamedOutput(NamedTuple):
    hidden: Tensor
    logits: Tensor


@pytest.mark.parametrize(
    "pack",
    [
        lambda loss, logits: {"loss": loss, "logits": logits},
        lambda loss, logits: OrderedDict(loss=loss, logits=logits),
        lambda loss, logits: UserDict(loss=loss, logits=logits),
        Output,
        NamedOutput,
        lambda loss, logits: (logits, loss),
        lambda loss, logits: [torch.arange(3), {"tokens": torch.arange(2), "scores": logits}],
    ],
)
def test_the_output_is_the_logits_or_the_first_of_floating_point(pack):
    logits = torch.randn(2, 3)
    assert floating_tensor_in(pack(torch.zeros(()), logits)) is logits


def test_without_a_floating_tensor_there_is_none():
    assert floating_tensor_in(torch.arange(3)) is None
    assert floating_tensor_in(None) is None
    assert floating_tensor_in({"logits": None, "ids": torch.arange(3)}) is None
