"""The formulas of AZ-NAS, against NumPy, for more and for fewer rows than channels."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_zico import Candidate, score
from lightning_zico.proxies.az import AZTrainability, isotropy, spectral_balance, token_balance

SHAPES = [(4, 9, 6), (8, 8, 8), (6, 3, 40), (50, 5, 7), (1, 4, 4)]


@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
def test_the_spectral_balance_is_that_of_the_largest_singular_value(rows: int, inputs: int, outputs: int) -> None:
    torch.manual_seed(rows)
    gradients, signs = torch.randn(rows, inputs), torch.randn(rows, outputs).sign()
    sigma = np.linalg.svd(gradients.double().numpy().T @ signs.double().numpy() / rows, compute_uv=False).max()
    assert float(spectral_balance(gradients, signs)) == pytest.approx(2 - sigma - 1 / (sigma + 1e-6), rel=1e-5)


@pytest.mark.parametrize(("rows", "channels"), [(rows, channels) for rows, channels, _ in SHAPES if rows > 1])
def test_the_isotropy_is_the_entropy_of_the_eigenvalues_of_the_covariance(rows: int, channels: int) -> None:
    torch.manual_seed(rows)
    features = torch.randn(rows, channels)
    eigenvalues = np.linalg.eigvalsh(np.cov(features.double().numpy().T, bias=True)).clip(0)
    shares = eigenvalues / eigenvalues.sum()
    assert float(isotropy(features)) == pytest.approx(-(shares * np.log(shares + 1e-8)).sum(), rel=1e-5)


@pytest.mark.parametrize("rows", [3, 30])
def test_what_is_not_finite_gives_nan(rows: int) -> None:
    features = torch.ones(rows, 7)
    features[0, 0] = math.inf
    assert math.isnan(isotropy(features))
    assert math.isnan(spectral_balance(features, torch.ones(rows, 5)))


@pytest.mark.parametrize("width", [4, 64, 256])
def test_token_balance_recognises_multiples_of_the_identity_at_any_width(width: int) -> None:
    torch.manual_seed(width)
    signs = torch.randn(100, width).sign()
    for factor, expected in ((1.0, 0.0), (0.5, -0.5), (2.0, -0.5)):
        assert float(token_balance(factor * signs, signs)) == pytest.approx(expected, abs=1e-5)
    published = float(spectral_balance(signs, signs))
    assert published < (-0.9 if width > 4 else 0)  # what it says of an identity depends on the width


def test_with_many_positions_tokens_have_the_published_number() -> None:
    torch.manual_seed(0)
    weight, signs = torch.randn(6, 6), torch.randn(200_000, 6).sign()
    gradients = signs @ weight
    expected = 2 - torch.linalg.matrix_norm(weight, 2) - 1 / torch.linalg.matrix_norm(weight, 2)
    assert float(token_balance(gradients, signs)) == pytest.approx(float(expected), rel=0.02)
    assert float(spectral_balance(gradients, signs)) == pytest.approx(float(expected), rel=0.02)
    wider = signs @ torch.randn(6, 9)
    assert float(token_balance(wider, signs)) == float(spectral_balance(wider, signs))


class Along(nn.Module):
    """A residual block that convolves along one dimension, or along the first of two."""

    def __init__(self, width: int, dims: int) -> None:
        super().__init__()
        self.conv = (
            nn.Conv1d(width, width, 3, padding=1) if dims == 1 else nn.Conv2d(width, width, (3, 1), padding=(1, 0))
        )
        self.norm = (nn.BatchNorm1d if dims == 1 else nn.BatchNorm2d)(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.conv(x)).relu()


class Fire(nn.Module):
    """Concatenates two branches, so that no weight has as many channels as it puts out."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(in_channels, 12, 1)
        self.branches = nn.ModuleList(nn.Conv2d(12, 24, size, padding=size // 2) for size in (1, 3))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.squeeze(x).relu()
        return torch.cat([branch(hidden) for branch in self.branches], dim=1).relu()


def test_maps_with_concatenated_channels_are_maps_whatever_their_width() -> None:
    found = []
    for size in (24, 25):  # the former is also a number of channels
        torch.manual_seed(0)
        network = nn.Sequential(Fire(3), Fire(48), Fire(48), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 4))
        candidate = Candidate("fire", lambda network=network: network, ["0", "1", "2"])
        batches = [(torch.randn(16, 3, size, size), torch.randint(4, (16,)))]
        card = score(candidate, batches, ["az_trainability", "az_expressivity"], F.cross_entropy)
        assert card["az_trainability"].error is None
        found.append(list(card["az_expressivity"].details["blocks"].values()))
    assert found[0] == pytest.approx(found[1], rel=0.05)


@pytest.mark.parametrize("length", [20, 6])
def test_maps_of_one_dimension_are_maps(length: int) -> None:
    found = []
    for dims in (1, 2):
        stem = nn.Conv1d(3, 6, 1) if dims == 1 else nn.Conv2d(3, 6, 1)
        network = nn.Sequential(stem, *(Along(6, dims) for _ in range(3)), nn.Flatten(), nn.Linear(6 * length, 4))
        torch.manual_seed(0)
        shape = (8, 3, length) if dims == 1 else (8, 3, length, 1)
        batches = [(torch.randn(shape), torch.randint(4, (8,))) for _ in range(2)]
        card = score(network, batches, proxies=["az_trainability", "az_expressivity"], loss_fn=F.cross_entropy)
        found.append([card[name].value for name in ("az_trainability", "az_expressivity")])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


class Steps(nn.Module):
    """Turns the neighbours of each step into channels, after it has cropped or padded a map to whole steps.

    It moves numbers and sums nothing, so it preserves the lengths of gradients.
    """

    def __init__(self, steps: Sequence[int], changes: Sequence[int]) -> None:
        super().__init__()
        self.steps, self.changes = steps, changes
        width = 2 * math.prod(steps)
        self.unused = nn.Conv1d(width, width, 1)  # a sign that its outputs are no tokens

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, [end for change in reversed(self.changes) for end in (0, change)])
        for dim, step in enumerate(self.steps, start=2):
            x = torch.cat([x.movedim(dim, 0)[first::step].movedim(0, dim) for first in range(step)], dim=1)
        return x


def trainability(network: nn.Sequential, shape: Sequence[int], tokens: bool = False) -> tuple[float | None, str | None]:
    """Score the second of two blocks on inputs of a shape; return its trainability and, without one, the reason."""
    torch.manual_seed(0)
    batches = [(torch.randn(32, *shape), torch.randint(4, (32,)))]
    candidate = Candidate("maps", lambda: network, ["0", "1"])
    own = score(candidate, batches, [AZTrainability(tokens=tokens)], F.cross_entropy)["az_trainability"]
    return own.value, own.error


@pytest.mark.parametrize(
    ("sizes", "steps", "changes"),
    [
        ((40,), (2,), (0,)),
        ((39,), (2,), (1,)),
        ((8, 8), (2, 2), (0, 0)),
        ((7, 9), (2, 2), (1, -1)),  # one is padded, the other cropped
        ((8, 12), (1, 2), (0, 0)),
        ((24, 18), (4, 3), (0, 0)),
        ((12, 8), (2, 1), (0, 0)),
        ((6, 4, 8), (2, 1, 2), (0, 0, 0)),
    ],
)
def test_a_block_that_only_moves_numbers_preserves_lengths_whatever_its_stride(
    sizes: tuple[int, ...], steps: tuple[int, ...], changes: tuple[int, ...]
) -> None:
    stem = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(sizes) - 1](2, 2, 1)
    network = nn.Sequential(stem, Steps(steps, changes), nn.Flatten(), nn.LazyLinear(4))
    value, error = trainability(network, (2, *sizes))
    assert error is None
    assert -0.15 < value < 0  # zero, but for the error of a mean over a few hundred positions


class Rearranged(nn.Module):
    """Convolves, and puts out positions that do not follow from those of its input by a stride."""

    def __init__(self, rearrange: Callable[[Tensor], Tensor], kernel_size: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, kernel_size)
        self.rearrange = rearrange

    def forward(self, x: Tensor) -> Tensor:
        return self.rearrange(self.conv(x).relu())


def unfolded(x: Tensor) -> Tensor:
    """Cut maps into patches of 2 x 2 pixels, ``[N, C, H, W]`` to ``[N, C, pixels, patches]``, as MobileViT does."""
    return x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).movedim(4, 3).flatten(4, 5).flatten(2, 3).contiguous()


class Merged(nn.Module):
    """Adds up two tokens that follow one another, and may be neighbours in a map or not."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.unflatten(1, (-1, 2)).sum(2)).relu()


@pytest.mark.parametrize(
    ("stem", "block", "shape"),
    [
        (nn.Conv2d(2, 2, 1), Rearranged(lambda x: x, kernel_size=3), (2, 6, 6)),  # no stride leads from 6 to 4
        (nn.Conv2d(2, 2, 1), Rearranged(unfolded), (2, 8, 8)),
        (nn.Conv2d(2, 2, 1), Rearranged(lambda x: x.reshape(*x.shape[:2], 4, 16)), (2, 8, 8)),
        (nn.Conv2d(2, 2, 1), Rearranged(lambda x: unfolded(x).reshape(*x.shape[:2], 2, 32)), (2, 8, 8)),
        (nn.Linear(6, 6), Merged(), (8, 6)),
    ],
    ids=["no stride", "patches", "reshaped", "in a row", "tokens"],
)
def test_blocks_whose_positions_do_not_follow_from_those_before_have_no_trainability(
    stem: nn.Module, block: nn.Module, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def backward_pass(*args: object, **kwargs: object) -> None:
        pytest.fail("a backward pass was made, although the sizes alone tell that nothing corresponds")

    monkeypatch.setattr(torch.autograd, "grad", backward_pass)
    network = nn.Sequential(stem, block, nn.Flatten(), nn.LazyLinear(4))
    value, error = trainability(network, shape, tokens=True)
    assert value is None
    assert "no block's positions correspond" in str(error)


class Pooled(nn.Module):
    """Averages over tokens, and puts out one vector per sample in a shape of its own."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.mean(1)).reshape(len(x), *self.shape)


class Summed(nn.Module):
    """Puts out one number per sample, ``[N]``."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).flatten()


def test_a_vector_has_the_same_trainability_in_any_shape() -> None:
    found = [
        trainability(nn.Sequential(nn.Linear(6, 6), Pooled(shape), nn.Flatten(), nn.Linear(6, 4)), (8, 6), tokens=True)
        for shape in ((6,), (1, 6), (6, 1, 1))
    ]
    assert found[0][1] is None
    assert [value for value, _ in found] == pytest.approx([found[0][0]] * 3, rel=1e-6)


def test_a_block_may_put_out_a_number_for_each_sample() -> None:
    network = nn.Sequential(nn.Linear(6, 6), Summed(), nn.Unflatten(0, (-1, 1)), nn.Linear(1, 4))
    value, error = trainability(network, (6,))
    assert error is None
    assert value is not None
