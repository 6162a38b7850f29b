"""Eigenvalues of symmetric matrices, told from what rounding leaves of zero.

Index conventions:
    N: rows and columns of a matrix
"""

import torch
from torch import Tensor

# In small matrices rounding errors are some times the precision, too.
_LEAST_SIZE = 32


def eigenvalues_of(matrix: Tensor) -> Tensor:
    """Compute the eigenvalues of a positive semidefinite matrix, ``[..., N, N]``; those of rounding are zero exactly.

    Rounding leaves of zero at most the largest one times ``N`` times the precision of float64. Whatever takes a
    logarithm or an inverse of an eigenvalue below that would be made of rounding errors.

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
