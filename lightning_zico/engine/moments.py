"""Moments of gradients, streamed: any number of gradients is reduced to three tensors of their shape.

Index conventions:
    B: batches or samples whose gradients are compared
    *: shape of one parameter
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Moments:
    r"""Count, mean, mean magnitude and deviation of the gradients of one parameter.

    They are merged pairwise, so that chunks, ranks and workers may arrive in any order:

    .. math::
        n = n_a + n_b, \quad \delta = \mu_b - \mu_a, \quad \mu = \mu_a + \frac{n_b}{n}\delta, \quad
        S = S_a + S_b + \frac{n_a n_b}{n}\delta^2

    with :math:`S` the sum of squared deviations from the mean. Its root is stored, since the gradients of deep
    networks reach 1e-25, whose squares are zero in float32; ``hypot`` adds the roots without squaring them.

    For up to two gradients, the mean magnitude follows from the others and needs no memory: for one it is
    :math:`|\mu|`, and for two :math:`(|a| + |b|) / 2 = \max(|a + b|, |a - b|) / 2`, where :math:`|a - b| / 2` is the
    standard deviation.

    Args:
        count: Number of gradients.
        mean: Mean of the gradient, ``[*]``.
        magnitude: Mean of the gradient's magnitude, ``[*]``. It is ignored for up to two gradients.
        deviation: Root of the sum of squared deviations, ``[*]``. It is ignored for a single gradient, whose deviation
            is zero.

    Example:
        >>> moments = Moments.of(torch.tensor([[1.0, 2.0], [3.0, 2.0]]))
        >>> moments.mean, moments.std
        (tensor([2., 2.]), tensor([1., 0.]))

    Source:
        Chan, Golub & LeVeque, *Updating formulae and a pairwise algorithm for computing sample variances*, 1979.
    """

    count: int
    mean: Tensor
    magnitude: Tensor | None = None
    deviation: Tensor | None = None

    @classmethod
    def of(cls, gradients: Tensor) -> "Moments":
        """Compute the moments of a stack of gradients.

        Args:
            gradients: ``[B, *]``, ``B >= 1``. Half precision is converted to float32. The stack is consumed: its memory
                is reused for a single gradient, and overwritten for several.
        """
        gradients = _raised(gradients)
        if len(gradients) == 1:
            return cls(1, gradients[0])
        # One after the other: on a CPU, this takes a fifteenth of the time of norms over dimension 0 (torch 2.14). The
        # moments get their own memory, so that the stack can be freed.
        moments = cls(1, gradients[0].clone())
        moments.add(gradients[1].clone())
        for gradient in gradients[2:]:
            moments.add(gradient)
        return moments

    def add(self, gradient: Tensor) -> None:
        """Add one more gradient, see `add_to_each`."""
        add_to_each([self], [gradient])

    def merge(self, other: "Moments") -> None:
        """Add the moments of other gradients of the same parameter, in place; ``other`` is consumed."""
        count = self.count + other.count
        share = other.count / count
        self.magnitude = None if count == 2 else self.mean_abs.lerp_(other.mean_abs, share)
        delta = other.mean.sub_(self.mean)
        self.mean.add_(delta, alpha=share)
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
    def mean_abs(self) -> Tensor:
        """Mean of the gradient's magnitude, ``[*]``; do not write to it."""
        if self.count > 2 and self.magnitude is not None:
            return self.magnitude
        if self.count == 1:
            return self.mean.abs()
        return torch.maximum(self.mean.abs(), self.std)

    @property
    def extremes(self) -> list[Tensor]:
        """Scalars that are all finite if `mean_abs` is finite, and all zero if it is zero."""
        if not self.mean.numel():
            return []
        if self.count > 2 and self.magnitude is not None:
            return [self.magnitude.amax()]
        # `aminmax` takes a tenth of the time of `mean.abs().amax()`, which allocates new memory.
        bounds = list(torch.aminmax(self.mean))
        return bounds if self.count == 1 or self.deviation is None else [*bounds, self.deviation.amax()]

    @property
    def std(self) -> Tensor:
        """Population standard deviation (``ddof=0``), ``[*]``."""
        if self.count == 1 or self.deviation is None:
            return torch.zeros_like(self.mean)
        return self.deviation / math.sqrt(self.count)


# The standard deviation of two numbers, divided by the root of the sum of their squared deviations.
_ROOT_HALF = math.sqrt(0.5)


def add_to_each(moments: Sequence[Moments], gradients: Sequence[Tensor]) -> None:
    """Add one more gradient to each of several moments, in place. The results are those of `Moments.merge`.

    Args:
        moments: Moments with the same count.
        gradients: One for each, ``[*]``; treated as in `Moments.of`.
    """
    count = moments[0].count if moments else 0
    share = 1 / (count + 1)
    scale = math.sqrt(count * share)
    deltas = [_raised(gradient) for gradient in gradients]
    # The first deviation overwrites the gradient, since allocating new memory takes longer than computing.
    roots = deltas if count == 1 else [each.deviation for each in moments if each.deviation is not None]
    means = [each.mean for each in moments]
    if count == 1:
        for _, (mean, delta) in portions(means, deltas):
            _move(mean, delta, share, scale)
            torch._foreach_abs_(delta)
    else:
        if count == 2:
            for each in moments:
                each.magnitude = torch.empty_like(each.mean)
        magnitudes = [each.magnitude for each in moments if each.magnitude is not None]
        for _, (mean, magnitude, root, delta) in portions(means, magnitudes, roots, deltas):
            if count == 2:
                _start(magnitude, mean, root)
            for so_far, new in zip(magnitude, delta, strict=True):
                so_far.lerp_(new.abs(), share)
            _move(mean, delta, share, scale)
            for so_far, new in zip(root, delta, strict=True):
                torch.hypot(new, so_far, out=so_far)
    for each, deviation in zip(moments, roots, strict=True):
        each.deviation = deviation
        each.count += 1


def reserve(moments: Sequence[Moments]) -> list[Tensor]:
    """Allocate the memory that moments of one gradient need to hold and add any number of gradients.

    It is one block per device. Many small ones would fragment the memory, so that later allocations would have to come
    from the operating system.
    """
    alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for each in moments:
        alike.setdefault((each.mean.device, each.mean.dtype), []).append(each.mean)
    return [
        means[0].new_empty(2 * sum(mean.numel() for mean in means) + max(map(_most_at_once, means)))
        for means in alike.values()
    ]


def _start(magnitudes: list[Tensor], means: list[Tensor], roots: list[Tensor]) -> None:
    """Write the mean magnitudes of two gradients, without new memory."""
    torch._foreach_copy_(magnitudes, means)
    torch._foreach_abs_(magnitudes)
    torch._foreach_div_(magnitudes, _ROOT_HALF)
    torch._foreach_maximum_(magnitudes, roots)
    torch._foreach_mul_(magnitudes, _ROOT_HALF)


def _move(means: list[Tensor], deltas: list[Tensor], share: float, scale: float) -> None:
    """Move means towards new gradients, and turn these into their signed part of the deviations."""
    torch._foreach_sub_(deltas, means)
    torch._foreach_add_(means, deltas, alpha=share)
    torch._foreach_mul_(deltas, scale)


def _raised(gradients: Tensor) -> Tensor:
    """Convert half precision to float32."""
    return gradients.float() if gradients.dtype in (torch.float16, torch.bfloat16) else gradients


# Numbers in a portion. On a CPU 256 KiB of float32, so that several fit into the second-level cache of a core. On other
# devices enough for the launch of an operation to take little of its time, but few enough to keep temporaries small.
_PORTION = 2**16
_PORTION_ELSEWHERE = 2**24


def portions(*lists: Sequence[Tensor]) -> Iterator[tuple[list[int], list[list[Tensor]]]]:
    """Cut and group tensors, for operations on all tensors of a group at once.

    The next operation finds the results of the last one in a CPU's cache, and small tensors share one call.

    Args:
        lists: Lists of the same length, whose n-th tensors have the same shape, device and dtype.

    Yields:
        For each group, the indices of the tensors in it, and lists of these tensors, or of views of parts of them.
        Tensors whose memory is not contiguous are not cut.
    """
    indices: list[int] = []
    group: list[list[Tensor]] = [[] for _ in lists]
    kind, room = None, 0
    for idx, tensors in enumerate(zip(*lists, strict=True)):
        first = tensors[0]
        for parts in _pieces(tensors):
            size = parts[0].numel()
            if indices and (size > room or (first.device, first.dtype) != kind):
                yield indices, group
                indices, group = [], [[] for _ in lists]
            if not indices:
                kind = (first.device, first.dtype)
                room = _PORTION if first.device.type == "cpu" else _PORTION_ELSEWHERE
            room -= size
            indices.append(idx)
            for part, tensors_so_far in zip(parts, group, strict=True):
                tensors_so_far.append(part)
    if indices:
        yield indices, group


def _most_at_once(tensor: Tensor) -> int:
    """Count the numbers of a tensor that one operation works on."""
    return min(tensor.numel(), _PORTION) if tensor.device.type == "cpu" else tensor.numel()


def _pieces(tensors: tuple[Tensor, ...]) -> Iterable[tuple[Tensor, ...]]:
    """Cut tensors of one shape into views, on a CPU and if their memory is contiguous."""
    if _most_at_once(tensors[0]) == tensors[0].numel() or not all(tensor.is_contiguous() for tensor in tensors):
        return (tensors,)
    return zip(*(tensor.view(-1).split(_PORTION) for tensor in tensors), strict=True)
