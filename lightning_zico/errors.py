"""What can go wrong, each kind also the built-in exception that a caller would guess."""


class ZiCoError(Exception):
    """Base of every error this package raises on purpose."""

    # KeyError, a base of one child, would print its message in quotes.
    __str__ = Exception.__str__


class UnknownNameError(ZiCoError, KeyError):
    """A name that no registry entry bears."""


class DuplicateNameError(ZiCoError, ValueError):
    """A name that is taken."""


class TooFewBatchesError(ZiCoError, ValueError):
    """Fewer batches or samples than a proxy needs, or than a loader was asked for."""


class IdenticalBatchesError(ZiCoError, ValueError):
    """All batches are equal, so that no gradient can vary between them."""


class UnsupportedBatchError(ZiCoError, TypeError):
    """A batch that cannot be split into samples, or into inputs and targets."""


class UnsupportedModuleError(ZiCoError, TypeError):
    """A module whose loss cannot be had from its own ``training_step``."""


class NoGradientError(ZiCoError, RuntimeError):
    """A loss that depends on no scored parameter, or no parameter to score."""


class NonFiniteError(ZiCoError, ArithmeticError):
    """A loss or a gradient that is NaN or infinite."""


class NotApplicableError(ZiCoError, TypeError):
    """A proxy whose formula has no meaning for a candidate; its score says "not applicable" and why."""
