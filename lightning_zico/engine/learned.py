"""Observers of gradients, which keep the moments of all gradients or the gradients of the first batch.

Index conventions:
    n: gradients in one chunk
    *: shape of one parameter
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_zico._typing import Params
from lightning_zico.engine.layers import Patterns
from lightning_zico.engine.moments import Moments, add_to_each, reserve
from lightning_zico.engine.observers import GradientFacts, Observer
from lightning_zico.engine.stateless import differentiated
from lightning_zico.engine.tree import parameters
from lightning_zico.errors import NoGradientError, NonFiniteError


class GradientMoments(NamedTuple):
    """Moments of the gradients of one pass, by parameter name, and how the gradients were computed."""

    by_name: dict[str, Moments]
    facts: GradientFacts


@dataclass(unsafe_hash=True)
class MomentsOverBatches(Observer):
    """Computes the moments of the gradients over all batches or samples.

    Args:
        patterns: Which parameters; see `layers.Patterns`.
        of: Whether to use the gradient or its magnitude.
    """

    patterns: Patterns = None
    of: Literal["signed", "abs"] = "signed"

    needs_gradients: ClassVar[bool] = True
    all_batches: ClassVar[bool] = True

    def start(self, module: nn.Module) -> None:
        """Reset the observations."""
        self._merged: dict[str, Moments] = {}
        self._losses: list[Tensor] = []
        self._reserve: list[Tensor] = []

    def wanted(self) -> Patterns:
        """Name the parameters."""
        return self.patterns

    def gradients(self, gradients: Params, losses: Tensor) -> Callable[[], None] | None:
        """Merge the moments of a chunk into those of all chunks."""

        def keep(news: Iterable[Moments]) -> None:
            self._losses.append(losses)
            for name, new in zip(names, news, strict=True):
                if name in self._merged:
                    self._merged[name].merge(new)
                else:
                    self._merged[name] = new
            if len(self._losses) == 1 == len(losses):  # so that if two batches fit into memory, any number does
                self._reserve = reserve(list(self._merged.values()))

        names = list(gradients)
        if len(losses) == 1 and self._merged and not self.may_repeat:
            self._losses.append(losses)
            self._reserve.clear()
            news = [gradients.pop(name)[0] for name in names]
            add_to_each([self._merged[name] for name in names], torch._foreach_abs(news) if self.of == "abs" else news)
            return None
        # Popped, so that a gradient's memory is free as soon as it is merged.
        moments = (Moments.of(_of(gradients.pop(name), self.of)) for name in names)
        if self.may_repeat:
            computed = list(moments)
            return lambda: keep(computed)
        keep(moments)
        return None

    def finished(self, facts: GradientFacts) -> None:
        """Check that losses and gradients are finite and not all zero."""
        self._reserve.clear()
        check_gradients({name: moments.extremes for name, moments in self._merged.items()}, self._losses)
        self.result: GradientMoments = GradientMoments(self._merged, facts)


@dataclass(unsafe_hash=True)
class FirstGradients(Observer):
    """Keeps the gradient of the first batch's mean loss for the weights of layers."""

    needs_gradients: ClassVar[bool] = True

    def start(self, module: nn.Module) -> None:
        """Reset the observations."""
        self.by_name: Params = {}

    def gradients(self, gradients: Params, losses: Tensor) -> Callable[[], None] | None:
        """Keep the gradients."""
        self.by_name = {name: gradient[0] for name, gradient in gradients.items()}
        self._losses = losses
        return None

    def finished(self, facts: GradientFacts) -> None:
        """Check that losses and gradients are finite and not all zero."""
        check_gradients(
            {name: Moments(1, gradient).extremes for name, gradient in self.by_name.items()}, [self._losses]
        )


@dataclass(unsafe_hash=True)
class WeightDifferentiator(Observer):
    """Base class of observers that differentiate the network's output with respect to weights.

    Args:
        names: Names of the weights.
    """

    names: tuple[str, ...] = ()

    needs_graph: ClassVar[bool] = True
    needs_input_graph: ClassVar[bool] = False

    def start(self, module: nn.Module) -> None:
        """Reset the observations."""
        self._module = module

    @property
    def weights(self) -> Params:
        """Tensors that are in the places of the weights while the network runs."""
        there = parameters(self._module)
        return {name: there[name] for name in self.names}

    def differentiated(self, number: Tensor, *, retain_graph: bool = False) -> tuple[Tensor, ...]:
        """Differentiate one number; zeros if it does not depend on a weight, or the step froze that weight."""
        weights = self.weights
        found = differentiated(number, weights, retain_graph=retain_graph)
        return tuple(
            found[name] if name in found else torch.zeros_like(weight, requires_grad=False)
            for name, weight in weights.items()
        )


def check_gradients(extremes: Mapping[str, Sequence[Tensor]], losses: list[Tensor]) -> None:
    """Check that losses and gradients are finite and not all zero, in two transfers from the device.

    Args:
        extremes: By parameter, scalars that are all finite if its gradients are finite, and all zero if these are zero;
            see `Moments.extremes`. Empty for a parameter without entries.
        losses: Losses of the gradients, ``[n]`` each.

    Raises:
        NonFiniteError: If a loss or a magnitude is NaN or infinite.
        NoGradientError: If all magnitudes are zero.
    """
    for idx, loss in enumerate(torch.cat([loss.double() for loss in losses]).tolist()):
        if loss != loss or abs(loss) == float("inf"):
            raise NonFiniteError(
                f"The loss of gradient {idx} is {loss}: expected a finite number. Check the scale of the inputs and "
                "the initial weights."
            )
    names = [name for name, scalars in extremes.items() for _ in scalars]
    numbers = torch.stack([scalar for scalars in extremes.values() for scalar in scalars]).tolist() if names else []
    for name, number in zip(names, numbers, strict=True):
        if not math.isfinite(number):
            raise NonFiniteError(
                f"The gradient of '{name}' has NaN or infinite entries, although the loss is finite. Look for "
                "operations without a derivative at their input (sqrt(0), norm(0)) and for half precision."
            )
    if not any(numbers):
        raise NoGradientError(
            f"The gradients of all {len(extremes)} scored parameters are zero: the loss does not depend on them, or "
            "dead activations block it. Look for `detach()`, `no_grad()` and activations that are always off."
        )


def _of(gradients: Tensor, of: str) -> Tensor:
    return gradients.abs_() if of == "abs" else gradients
