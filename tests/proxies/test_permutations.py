"""No proxy's number depends on the order of the samples in a batch, nor on that of a network's hidden units."""

import copy
from fractions import Fraction
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_zico import list_proxies, score
from lightning_zico.engine.spectra import eigenvalues_of, rank_of
from lightning_zico.errors import NotApplicableError
from lightning_zico.proxies import resolve_proxies
from lightning_zico.proxies.naswot import naswot_score
from tests.proxies.models import cnn, mlp

NAMES = [proxy.name for proxy in resolve_proxies("all") if proxy.is_repeatable]
# They look at the first sample alone, or at rows that are drawn.
OF_SOME_SAMPLES = {"meco", "meco_opt", "near", "dextr"}
# They draw weights, or take the first of a layer's.
OF_SOME_UNITS = {"zen", "vkdnw", *list_proxies("az_*")}


def batches(seed: int, shape: tuple[int, ...], num_samples: int = 6) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(num_samples, *shape, generator=generator, dtype=torch.float64),
            torch.randint(3, (num_samples,), generator=generator),
        )
        for _ in range(2)
    ]


def expect(value: float | None, name: str) -> Any:
    """Expect a number but for rounding; PARC ranks distances, of which two that are as good as equal may swap."""
    # 1e-6: sums of float64 in another order, of which ZiCo divides by small deviations
    return None if value is None else pytest.approx(value, rel=1e-6, abs=1e-5 if name == "parc" else None)


def numbers(network: nn.Module, data: list[tuple[Tensor, Tensor]], names: list[str]) -> dict[str, float | None]:
    card = score(network.double(), data, names, F.cross_entropy)
    return {name: card[name].value for name in names}


@settings(max_examples=3)
@given(st.integers(0, 99))
@pytest.mark.parametrize(("build", "shape"), [(cnn, (2, 6, 6)), (mlp, (9,))])
def test_the_order_of_the_samples_changes_no_number(build: type[nn.Module], shape: tuple[int, ...], seed: int) -> None:
    torch.manual_seed(seed)
    network, data = build(), batches(seed, shape)
    names = [name for name in NAMES if name not in OF_SOME_SAMPLES]
    orders = [torch.randperm(len(labels)) for _, labels in data]
    shuffled = [(x[order], y[order]) for (x, y), order in zip(data, orders, strict=True)]
    found, expected = numbers(network, shuffled, names), numbers(network, data, names)
    for name in names:
        assert found[name] == expect(expected[name], name), name


@settings(max_examples=3)
@given(st.integers(0, 99))
def test_the_order_of_hidden_units_changes_no_number(seed: int) -> None:
    torch.manual_seed(seed)
    width = 16
    network = nn.Sequential(nn.Linear(9, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))
    order, other = torch.randperm(width), copy.deepcopy(network)
    with torch.no_grad():
        for tensor in (other[2].weight, other[2].bias):
            tensor.copy_(tensor[order])
        other[4].weight.copy_(other[4].weight[:, order])
    names = [name for name in NAMES if name not in OF_SOME_UNITS]
    data = batches(seed, (9,))
    found, expected = numbers(other, data, names), numbers(network, data, names)
    for name in names:
        assert found[name] == expect(expected[name], name), name


@given(st.integers(2, 12), st.integers(1, 16), st.integers(0, 99))
def test_naswot_is_decided_by_an_exact_rank(num_samples: int, num_units: int, seed: int) -> None:
    codes = torch.randint(2, (num_samples, num_units), generator=torch.Generator().manual_seed(seed)).double()
    matrix = codes @ codes.T + (1 - codes) @ (1 - codes).T
    rank = exact_rank([[int(entry) for entry in row] for row in matrix.tolist()])
    assert rank_of(matrix) == rank
    if rank == num_samples:
        assert naswot_score(matrix, num_units) == float(torch.linalg.slogdet(matrix)[1])
    else:
        with pytest.raises(
            NotApplicableError,
            match=f" {num_units} units show only {rank} independent patterns for the {num_samples} rows of the first",
        ):
            naswot_score(matrix, num_units)


def exact_rank(rows: list[list[int]]) -> int:
    """Eliminate with fractions, which Python does not round."""
    left = [[Fraction(entry) for entry in row] for row in rows]
    rank = 0
    for column in range(len(left[0])):
        pivot = next((idx for idx in range(rank, len(left)) if left[idx][column]), None)
        if pivot is None:
            continue
        left[rank], left[pivot] = left[pivot], left[rank]
        for idx in range(rank + 1, len(left)):
            factor = left[idx][column] / left[rank][column]
            if factor:
                left[idx] = [entry - factor * above for entry, above in zip(left[idx], left[rank], strict=True)]
        rank += 1
    return rank


def test_eigenvalues_of_rounding_are_zero_and_others_stay() -> None:
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(5, 30, 7, generator=generator, dtype=torch.float64)
    found = eigenvalues_of(factors @ factors.mT)
    assert (found[:, :23] == 0).all()
    assert (found[:, 23:] > 0).all()
    full = factors.mT @ factors
    assert torch.equal(eigenvalues_of(full), torch.linalg.eigvalsh(full))


@pytest.mark.parametrize("width", [8, 16, 32, 48])
@pytest.mark.parametrize("order", [0, 1])
def test_a_network_narrower_than_the_batch_has_no_naswot_in_whatever_order(width: int, order: int) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(12, width), nn.ReLU(), nn.Linear(width, 3))
    data = batches(order, (12,), num_samples=64)
    error = score(network.double(), data, "naswot", F.cross_entropy)["naswot"].error
    assert str(error).startswith(f"not applicable: the network's {width} units show only ")
    assert "Lower the batch size" in str(error)
