"""Eigenvalues and singular values, with rounding errors set to zero or dropped.

Index conventions:
    N: rows of a matrix
    D: columns of the matrix
"""

import torch
from torch import Tensor

from lightning_zico.errors import NotApplicableError

# Rounding errors are several times the precision in small matrices, too.
_LEAST_SIZE = 32


def eigenvalues_of(matrix: Tensor) -> Tensor:
    """Compute the eigenvalues of a positive semidefinite matrix, ``[..., N, N]``; rounding errors are set to zero.

    A zero eigenvalue is computed as at most the largest eigenvalue times ``N`` times the precision of float64. The
    logarithm or inverse of an eigenvalue below that would be determined by rounding errors.

    Returns:
        ``[..., N]``, float64, in ascending order.

    Example:
        >>> eigenvalues_of(torch.ones(2, 2)).tolist()
        [0.0, 2.0]
    """
    eigenvalues = torch.linalg.eigvalsh(matrix.double())
    size = max(matrix.shape[-1], _LEAST_SIZE)
    limit = eigenvalues[..., -1:].abs() * size * torch.finfo(torch.float64).eps
    return eigenvalues.masked_fill(eigenvalues <= limit, 0.0)


def rank_of(matrix: Tensor) -> int:
    """Count the eigenvalues of a positive semidefinite matrix that are not zero.

    Example:
        >>> rank_of(torch.ones(3, 3))
        1
    """
    return int(eigenvalues_of(matrix).count_nonzero())


def thin_svd(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the left singular vectors and the singular values of a matrix, except those that are rounding errors.

    Args:
        rows: ``[N, D]``, float64.

    Returns:
        ``[N, R]`` and ``[R]``, in descending order, with ``R`` the rank. ``rows`` times the right singular vectors is
        the product of both.

    Raises:
        NotApplicableError: If the rank is zero.

    Example:
        >>> left, singular = thin_svd(torch.tensor([[3.0, 4.0], [0.0, 0.0]]).double())
        >>> left.shape, round(float(singular), 6)
        (torch.Size([2, 1]), 5.0)
    """
    left, singular, _ = torch.linalg.svd(rows, full_matrices=False)
    limit = singular[:1] * max(*rows.shape, _LEAST_SIZE) * torch.finfo(torch.float64).eps
    rank = int((singular > limit).sum())
    if rank == 0:
        raise NotApplicableError("the features of all samples are the same.")
    return left[:, :rank], singular[:rank]
