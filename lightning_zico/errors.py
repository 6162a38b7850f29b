"""The errors of this package; each is also the built-in exception that a caller would expect."""

import copy
import sys
import traceback
from numbers import Integral, Real
from pathlib import Path
from textwrap import shorten
from typing import Any


class ZiCoError(Exception):
    """Base of every error this package raises on purpose."""

    def __str__(self) -> str:
        # KeyError, a base class of a subclass, would print the message in quotes.
        return Exception.__str__(self)


class UnknownNameError(ZiCoError, KeyError):
    """A name that no registry entry has."""


class InvalidArgumentError(ZiCoError, ValueError, TypeError):
    """An argument of the wrong type or out of range; both a ValueError and a TypeError, as in scikit-learn."""


def number_of(value: Any) -> int | float | None:
    """Return a number, which may be of NumPy, as an int or a float; None for anything else, including a bool.

    Example:
        >>> import numpy as np
        >>> number_of(np.int64(5)), number_of(np.float32(0.5)), number_of(np.True_), number_of("5")
        (5, 0.5, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    return int(value) if isinstance(value, Integral) else float(value)


def check_count(name: str, value: Any, least: int = 1) -> int:
    """Return an argument that must be a whole number of at least ``least``, as an int.

    Raises:
        InvalidArgumentError: If it is something else.
    """
    number = number_of(value)
    if not isinstance(number, int) or number < least:
        raise InvalidArgumentError(f"Invalid {name}={value!r}: expected a whole number of at least {least}.")
    return number


class NotLoggedError(ZiCoError, ValueError):
    """A monitored metric that training does not log."""


class DuplicateNameError(ZiCoError, ValueError):
    """A name that is already taken."""


class TooFewBatchesError(ZiCoError, ValueError):
    """Fewer batches or samples than a proxy needs, or than were requested from a loader."""


class IdenticalBatchesError(ZiCoError, ValueError):
    """All batches are equal, so no gradient can vary between them."""


class UnsupportedBatchError(ZiCoError, TypeError):
    """A batch that cannot be split into samples, or into inputs and targets."""


class UnsupportedModuleError(ZiCoError, TypeError):
    """A module whose ``training_step`` does not give a loss that can be scored."""


class NotPutBackError(ZiCoError, RuntimeError):
    """An object that scoring changed and could not restore."""


class SurroundingsError(UnsupportedModuleError):
    """A step that asks for something that exists during training but not during scoring."""


class HookError(ZiCoError, RuntimeError):
    """A hook of a module, a data module or a callback that fails."""


class SkippedBatchError(ZiCoError, RuntimeError):
    """A batch that training skips, so it has no loss.

    Args:
        reason: The reason, as the beginning of a sentence.
        ends_epoch: Whether training skips all later batches as well.
    """

    def __init__(self, reason: str, *, ends_epoch: bool = False) -> None:
        super().__init__(f"{reason}, so training passes over this batch.")
        self.reason = reason
        self.ends_epoch = ends_epoch


class UnsupportedInputError(ZiCoError, ValueError):
    """Inputs of a shape that a model does not accept."""


class WeightsNotLoadedError(ZiCoError, OSError):
    """Pretrained weights that can neither be found nor downloaded, or that do not fit the model."""


class NoGradientError(ZiCoError, RuntimeError):
    """A loss that depends on no scored parameter, or no parameter to score."""


class NonFiniteError(ZiCoError, ArithmeticError):
    """A loss or a gradient that is NaN or infinite."""


class NotApplicableError(ZiCoError, TypeError):
    """A proxy whose formula has no meaning for a candidate; its error is "not applicable" with the reason."""


class UnfingerprintableError(ZiCoError, TypeError):
    """An object whose content cannot be hashed, so it cannot be distinguished from others."""


class CacheError(ZiCoError, OSError):
    """A file that is not a cache of scores, is damaged, or cannot be read or written."""


# Attribute of an error with the name of what raised it, if that is neither the module nor this package.
_BLAMED = "__zico_blamed__"


def blame(error: BaseException, name: str) -> None:
    """Record on an error the name of the user's code that raised it, if that is not the scored module."""
    vars(error).setdefault(_BLAMED, name)


def name_to_blame(error: BaseException) -> str | None:
    """Return the name that `blame` recorded for an error; None for the scored module."""
    name: str | None = vars(error).get(_BLAMED)
    return name


_MOST_CODE = 80
_MOST_TEXT = 300  # characters; torch lists every backend if an operation is missing

# Attribute of an error with the place that raised it.
_PLACE = "__zico_place__"

# Internal messages of torch, and their meaning for a user. `torch.func` has many.
_INTERNAL = {
    "higher order operator": "an operator that holds parts of the network, such as `torch.cond`, cannot be looked "
    "into.",
    "modified by an inplace operation": "an operation in place overwrites what the backward pass needs. Write `x = x + "
    "y` instead of `x += y`.",
    "One of the differentiated Tensors does not require grad": "it differentiates with respect to what requires no "
    "gradient.",
    "appears to not have been used in the graph": "it differentiates with respect to what its result does not depend "
    "on.",
    "Inplace update to inference tensor": "a tensor that was made in `torch.inference_mode()` is written to outside of "
    "it. Clone it first.",
    "does not require grad and does not have a grad_fn": "what it differentiates depends on nothing that requires a "
    "gradient.",
    "vmap": "an operation of it cannot run inside `torch.func.vmap`.",
    "functorch": "an operation of it cannot run inside the transforms of `torch.func`.",
    "torch.func": "an operation of it cannot run inside the transforms of `torch.func`.",
}


def in_words(error: Exception) -> str:
    """Describe an exception of user code in one line: its type and message, or the line of code that raised it."""
    return f"{type(error).__name__}: {meaning_of(error)}".rstrip(": ")


def meaning_of(error: BaseException) -> str:
    """Return an exception's message in one line; internal messages of torch are explained."""
    if isinstance(error, ZiCoError | LookupError | ImportError):
        return message_of(error)
    text = _text_of(error)
    return next((words for part, words in _INTERNAL.items() if part in text), message_of(error))


def message_of(error: BaseException) -> str:
    """Return an exception's message in one line, or the line of code that raised it if the message is empty.

    Long messages are cut, except those of this package, which end with what to do.
    """
    message = _text_of(error)
    if len(message) > _MOST_TEXT and not isinstance(error, ZiCoError):
        message = f"{message[: _MOST_TEXT - 4].rsplit(' ', 1)[0]} ..."
    return message or vars(error).get(_PLACE) or _place_of(error)


def _text_of(error: BaseException) -> str:
    try:
        return " ".join(str(error).split())
    except BaseException:  # the user's own `__str__` fails
        return ""


def _place_of(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return ""
    place, code = f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}", frames[-1].line or ""
    return f"`{shorten(code, _MOST_CODE, placeholder=' ...')}` ({place})" if code else f"({place})"


def without_frames(error: Exception) -> Exception:
    """Strip the frames from a caught exception, so that storing it keeps no tensors and graphs alive.

    The lines of the traceback become a note, which Python 3.11 and later print with the error.
    """
    lines = "".join(traceback.format_tb(error.__traceback__))
    vars(error).setdefault(_PLACE, _place_of(error))
    vars(error)["__notes__"] = [*getattr(error, "__notes__", ()), lines]
    link: BaseException | None = error
    while link is not None and link.__traceback__ is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error


def again(error: Exception) -> Exception:
    """Copy a stored error before it is raised; raising the original would keep the caller's frames alive.

    If an error cannot be copied, or its copy has another message, the error itself is returned.
    """
    try:
        copied = copy.copy(error)
        return copied if str(copied) == str(error) else error
    except Exception:
        return error


def traceback_of(error: BaseException) -> str:
    """Return an exception's whole traceback as text, which keeps nothing alive; for a stored error, it is its note."""
    lines = traceback.format_exception(error)
    if sys.version_info < (3, 11):
        lines += getattr(error, "__notes__", ())
    return "".join(lines)
