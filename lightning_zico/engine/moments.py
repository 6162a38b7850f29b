"""Moments of gradients, streamed: what is left of any number of gradients is three tensors of their shape.

Index conventions:
    B: batches or samples whose gradients are compared
    *: shape of one parameter
"""

import math
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
        mean: Of the gradient, ``[*]``.
        mean_abs: Of the gradient's magnitude, ``[*]``.
        deviation: Root of the sum of squared deviations, ``[*]``. Of a single gradient it is zero, and this is None or
            memory to write to.

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
        """Take the moments of a stack of gradients.

        Args:
            gradients: ``[B, *]``, ``B >= 1``. Half precision is raised to float32. The stack is consumed: its memory is
                reused for a single gradient, and overwritten for several.
        """
        if gradients.dtype in (torch.float16, torch.bfloat16):
            gradients = gradients.float()
        if len(gradients) == 1:
            return cls(1, gradients[0], gradients[0].abs(), None)
        # One after the other: on a CPU a fifteenth of the time that norms over dimension 0 take (torch 2.14). What is
        # kept is memory of its own, so that the stack can go.
        first = gradients[0].clone()
        moments = cls(1, first, first.abs(), torch.empty_like(first))
        for gradient in gradients[1:]:
            moments.merge(cls(1, gradient, gradient.abs(), None))
        return moments

    def merge(self, other: "Moments") -> None:
        """Take in the moments of other gradients of the same parameter, in place; ``other`` is consumed."""
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
        else:  # a single gradient's deviation is memory to write to, or None
            self.deviation = between.abs_() if self.deviation is None else torch.abs(between, out=self.deviation)
        self.count = count

    @property
    def std(self) -> Tensor:
        """Population standard deviation (``ddof=0``), ``[*]``."""
        if self.count == 1 or self.deviation is None:
            return torch.zeros_like(self.mean)
        return self.deviation / math.sqrt(self.count)
