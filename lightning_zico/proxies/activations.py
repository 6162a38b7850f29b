"""What proxies that compare samples by their activations share: all activation functions must see the same rows.

Index conventions:
    N: rows, which are samples, or their tokens, nodes or views
"""

from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn

from lightning_zico.engine.observers import Observer, Rows
from lightning_zico.engine.probe import Probe
from lightning_zico.errors import NotApplicableError

ACTIVATION_FUNCTIONS = "its activation functions"

A = TypeVar("A", bound="Activations")


class RowsDifferError(NotApplicableError):
    """Activation functions see different numbers of rows."""


@dataclass(unsafe_hash=True)
class Activations(Observer):
    """Looks at the inputs of all activation functions, row by row; a subclass overrides `look`.

    Attributes:
        rows: Rows that the activation functions saw.
    """

    def start(self, module: nn.Module) -> None:
        """Reset the observations."""
        self.rows: Rows = Rows()
        self._num_rows: int | None = None

    def activation(self, before: Tensor, after: Tensor) -> None:
        """Check the rows of an activation function, and look at its input."""
        if before.ndim == 0:
            return
        if self._num_rows not in (None, len(before)):
            self.differ()
            return
        self._num_rows = len(before)
        self.rows.see(before)
        self.look(before)

    def look(self, before: Tensor) -> None:
        """Look at the input of an activation function, ``[N, ...]``, with the same N in every call."""

    def differ(self) -> None:
        """Handle an activation function whose number of rows differs from those before it."""
        raise RowsDifferError("its activation functions see different numbers of samples.")

    @property
    def num_rows(self) -> int:
        """Number of rows, the same for all activation functions."""
        if self._num_rows is None:
            raise NotApplicableError("the network has no activation function.")
        return self._num_rows

    def ended(self) -> None:
        """Raise if the network has no activation function."""
        _ = self.num_rows


@dataclass(unsafe_hash=True)
class ActivationsOfNetwork(Activations):
    """Ignore activation functions with other rows after the last layer: they belong to the loss, as in a hinge loss.

    It observes the calls of submodules, which takes time, so the observer without it is tried first. It is the first
    base of a class whose second base is that observer.
    """

    def start(self, module: nn.Module) -> None:
        """Reset the observations."""
        super().start(module)
        self._have_differed = False

    def differ(self) -> None:
        """Note the difference, and wait for another layer."""
        self._have_differed = True

    def module_call(self, name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Raise if a layer follows an activation function with other rows."""
        if self._have_differed and id(module) in self.layout.holding:
            super().differ()


def observed_activations(probe: Probe, observer: A, of_network: A) -> A:
    """Return the observer after it has seen the first batch.

    Args:
        probe: The probe of the candidate.
        observer: Tried first.
        of_network: The same as `ActivationsOfNetwork`, used if activation functions see different numbers of rows.

    Raises:
        NotApplicableError: If the network has no activation function, if these see different numbers of rows, or if
            they see only part of the batch at a time.
    """
    try:
        seen = probe.observed(observer)
    except RowsDifferError:
        seen = probe.observed(of_network)
    probe.check_rows(seen.rows, ACTIVATION_FUNCTIONS)
    return seen
