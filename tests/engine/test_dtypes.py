"""One precision for all that a module computes."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_zico.engine.dtypes import OneDtype

FACTORIES: dict[str, Callable[[], Tensor]] = {
    "ones": lambda: torch.ones(3),
    "empty with None": lambda: torch.empty(3, dtype=None).fill_(0.1),
    "rand": lambda: torch.rand(3),
    "linspace": lambda: torch.linspace(0, 1, 7),
    "arange of floats": lambda: torch.arange(0, 1, 0.1),
    "full": lambda: torch.full((3,), 0.1),
    "tensor": lambda: torch.tensor([[0.1], [0.2]]),
    "window": lambda: torch.hann_window(5),
    "frequencies": lambda: torch.fft.fftfreq(5),
}


@pytest.mark.parametrize("make", FACTORIES.values(), ids=FACTORIES)
@pytest.mark.parametrize("follows_casts", [False, True])
def test_constants_are_those_of_the_default_dtype_which_stays(make: Callable[[], Tensor], follows_casts: bool) -> None:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    try:
        want = make()
    finally:
        torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    with OneDtype(torch.float64, follows_casts):
        got = make()
        assert torch.get_default_dtype() == torch.float32
    assert got.dtype == torch.float64
    assert torch.equal(got, want)


@pytest.mark.parametrize(
    "make",
    [lambda: torch.arange(3), lambda: torch.full((2,), 1), lambda: torch.tensor([True]), lambda: torch.tensor(2)],
    ids=["arange", "full", "bools", "tensor"],
)
def test_whole_numbers_stay_whole(make: Callable[[], Tensor]) -> None:
    with OneDtype(torch.float64):
        got = make()
    assert got.dtype == make().dtype
