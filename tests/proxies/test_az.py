"""The formulas of AZ-NAS, against NumPy, for more and for fewer rows than channels."""

import math

import numpy as np
import pytest
import torch

from lightning_zico.proxies.az import isotropy, spectral_balance

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
