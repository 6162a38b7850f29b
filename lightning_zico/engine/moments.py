"""Moments of gradients, streamed: what is left of any number of gradients is three tensors of their shape.

Index conventions:
    B: batches or samples whose gradients are compared
    *: shape of one parameter
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Moments:
    r"""Count, mean, mean magnitude and deviation of the gradients of one parameter.

    Merged pairwise, so that chunks, ranks and workers may come in any order:

    .. math::
        n = n_a + n_b, \quad \delta = \mu_b - \mu_a, \quad \mu = \mu_a + \frac{n_b}{n}\delta, \quad
        S = S_a + S_b + \frac{n_a n_b}{n}\delta^2

    with :math:`S` the sum of squared deviations from the mean. Its root is what is stored, since the gradients of deep
    networks reach 1e-25, whose squares are zero in float32; ``hypot`` adds the roots without squaring them.

    Args:
        count: How many gradients.
        mean: Mean of the gradient, ``[*]``.
        mean_abs: Mean of the gradient's magnitude, ``[*]``.
        deviation: Root of the sum of squared deviations, ``[*]``. Of a single gradient it is zero, and this is None or
            memory in reserve.

    Example:
        >>> moments = Moments.of(torch.tensor([[1.0, 2.0], [3.0, 2.0]]))
        >>> moments.mean, moments.std
        (tensor([2., 2.]), tensor([1., 0.]))

    Source:
        Chan, Golub & LeVeque, *Updating formulae and a pairwise algorithm for computing sample variances*, 1979.
    """

    count: int
    mean: Tensor
    mean_abs: Tensor
    deviation: Tensor | None

    @classmethod
    def of(cls, gradients: Tensor) -> "Moments":
        """Compute the moments of a stack of gradients.

        Args:
            gradients: ``[B, *]``, ``B >= 1``. Half precision is raised to float32. The stack is consumed: its memory is
                reused for a single gradient, and overwritten for several.
        """
        gradients = _raised(gradients)
        if len(gradients) == 1:
            return cls(1, gradients[0], gradients[0].abs(), None)
        # One after the other: on a CPU a fifteenth of the time that norms over dimension 0 take (torch 2.14). What is
        # kept is memory of its own, so that the stack can go.
        first = gradients[0].clone()
        moments = cls(1, first, first.abs(), None)
        moments.add(gradients[1].clone())
        for gradient in gradients[2:]:
            moments.add(gradient)
        return moments

    def add(self, gradient: Tensor) -> None:
        """Add one more gradient, ``[*]``, in place; it is treated as in `of`. The results are those of `merge`.

        It works piece by piece, so that on a CPU the results of one operation are still in the cache for the next.
        """
        gradient = _raised(gradient)
        # The first deviation is written where the gradient is: new memory takes longer to get than to compute with.
        root = gradient if self.count == 1 else self.deviation
        assert root is not None
        share = 1 / (self.count + 1)
        scale = math.sqrt(self.count * share)
        for mean, mean_abs, deviation, delta in pieces(self.mean, self.mean_abs, root, gradient):
            mean_abs.lerp_(delta.abs(), share)
            mean.add_(delta.sub_(mean), alpha=share)
            delta.mul_(scale)
            if self.count > 1:
                torch.hypot(delta, deviation, out=deviation)
            else:
                torch.abs(delta, out=deviation)
        self.deviation = root
        self.count += 1

    def merge(self, other: "Moments") -> None:
        """Add the moments of other gradients of the same parameter, in place; ``other`` is consumed."""
        count = self.count + other.count
        share = other.count / count
        delta = other.mean.sub_(self.mean)
        self.mean.add_(delta, alpha=share)
        self.mean_abs.lerp_(other.mean_abs, share)
        between = delta.mul_(math.sqrt(self.count * share))
        parts = [part.deviation for part in (self, other) if part.count > 1 and part.deviation is not None]
        if parts:
            for part in parts:
                between = torch.hypot(between, part, out=part)
            self.deviation = between
        else:
            self.deviation = between.abs_()
        self.count = count

    @property
    def std(self) -> Tensor:
        """Population standard deviation (``ddof=0``), ``[*]``."""
        if self.count == 1 or self.deviation is None:
            return torch.zeros_like(self.mean)
        return self.deviation / math.sqrt(self.count)


def _raised(gradients: Tensor) -> Tensor:
    """Raise half precision to float32."""
    return gradients.float() if gradients.dtype in (torch.float16, torch.bfloat16) else gradients


# Numbers in a piece: 256 KiB of float32, of which several fit the second-level cache of a core.
_PIECE = 2**16


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut tensors of one shape into views of at most 65,536 numbers.

    On other devices than the CPU, and where memory is not contiguous, they come whole.
    """
    first = tensors[0]
    if first.numel() <= _PIECE or first.device.type != "cpu" or not all(t.is_contiguous() for t in tensors):
        yield tensors
    else:
        yield from zip(*(tensor.view(-1).split(_PIECE) for tensor in tensors), strict=True)
