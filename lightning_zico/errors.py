"""What can go wrong, each kind also the built-in exception that a caller would guess."""

import copy
import sys
import traceback
from pathlib import Path
from textwrap import shorten
from typing import Any


class ZiCoError(Exception):
    """Base of every error this package raises on purpose."""

    # KeyError, a base of one child, would print its message in quotes.
    __str__ = Exception.__str__


class UnknownNameError(ZiCoError, KeyError):
    """A name that no registry entry bears."""


class InvalidArgumentError(ZiCoError, ValueError, TypeError):
    """An argument of the wrong kind or out of range; both built-in errors, as scikit-learn's is."""


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Check that an argument is a whole number, and large enough.

    Raises:
        InvalidArgumentError: If it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidArgumentError(f"Invalid {name}={value!r}: expected a whole number of at least {least}.")


class NotLoggedError(ZiCoError, ValueError):
    """A metric to monitor that training does not log."""


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


class NotPutBackError(ZiCoError, RuntimeError):
    """An object that scoring reached and could not leave as it was."""


class SurroundingsError(UnsupportedModuleError):
    """A step that asks for something that is there during training, and not while scoring."""


class HookError(ZiCoError, RuntimeError):
    """A hook that fails, of a module, a data module or a callback."""


class SkippedBatchError(ZiCoError, RuntimeError):
    """A batch that training passes over, so that it has no loss.

    Args:
        reason: Why, as the beginning of a sentence.
        ends_epoch: Whether training passes over all batches behind it as well.
    """

    def __init__(self, reason: str, *, ends_epoch: bool = False) -> None:
        super().__init__(f"{reason}, so training passes over this batch.")
        self.reason = reason
        self.ends_epoch = ends_epoch


class UnsupportedInputError(ZiCoError, ValueError):
    """Inputs of a shape that a model does not take."""


class NoGradientError(ZiCoError, RuntimeError):
    """A loss that depends on no scored parameter, or no parameter to score."""


class NonFiniteError(ZiCoError, ArithmeticError):
    """A loss or a gradient that is NaN or infinite."""


class NotApplicableError(ZiCoError, TypeError):
    """A proxy whose formula has no meaning for a candidate; its score says "not applicable" and why."""


class UnfingerprintableError(ZiCoError, TypeError):
    """Something whose content cannot be hashed, so that it cannot be told from another."""


class CacheError(ZiCoError, OSError):
    """A file that is no cache of scores, or is damaged, or cannot be read or written."""


# Where on an error it is kept who raised it, if that is neither the module nor this package.
_BLAMED = "__zico_blamed__"


def blame(error: BaseException, name: str) -> None:
    """Note on an error what of the user's, other than the module that is scored, has raised it."""
    vars(error).setdefault(_BLAMED, name)


def blamed(error: BaseException) -> str | None:
    """Name what has raised an error, as `blame` noted it; None for the module that is scored."""
    name: str | None = vars(error).get(_BLAMED)
    return name


_MOST_CODE = 80
_MOST_SAID = 300  # characters: torch names every backend where an operation is missing

# Where the place that raised an error is kept on it.
_PLACE = "__zico_place__"

# Internal messages of torch, and what they mean to a user. Those of `torch.func` are many.
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
    """Put an exception of a user's code in one line: its kind and its message, or the line of code that raised it."""
    return f"{type(error).__name__}: {meaning_of(error)}".rstrip(": ")


def meaning_of(error: BaseException) -> str:
    """Put what an exception says in one line, and an internal message of torch in words."""
    if isinstance(error, ZiCoError | LookupError | ImportError):
        return message_of(error)
    said = _said_by(error)
    return next((words for part, words in _INTERNAL.items() if part in said), message_of(error))


def message_of(error: BaseException) -> str:
    """Put what an exception says in one line; one that says nothing is told by the line of code that raised it.

    What others say at length is cut; the errors of this package end with what to do.
    """
    message = _said_by(error)
    if len(message) > _MOST_SAID and not isinstance(error, ZiCoError):
        message = f"{message[: _MOST_SAID - 4].rsplit(' ', 1)[0]} ..."
    return message or vars(error).get(_PLACE) or _place_of(error)


def _said_by(error: BaseException) -> str:
    try:
        return " ".join(str(error).split())
    except Exception:  # a `__str__` of the user's own that fails
        return ""


def _place_of(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return ""
    place, code = f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}", frames[-1].line or ""
    return f"`{shorten(code, _MOST_CODE, placeholder=' ...')}` ({place})" if code else f"({place})"


def kept(error: Exception) -> Exception:
    """Make an error that was caught fit to be kept: the frames in its traceback would keep tensors and graphs alive.

    The lines of the traceback become a note, which Python prints with the error from 3.11 on.
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
    """Copy an error that is kept, to be raised: the traceback of the original would keep alive whoever asks for it.

    An error that cannot be copied, or says nothing of itself, is given itself.
    """
    try:
        copied = copy.copy(error)
        return copied if str(copied) == str(error) else error
    except Exception:
        return error


def traceback_of(error: BaseException) -> str:
    """Put an exception's whole traceback in a text, which keeps nothing alive; that of a kept error is its note."""
    lines = traceback.format_exception(error)
    if sys.version_info < (3, 11):
        lines += getattr(error, "__notes__", ())
    return "".join(lines)
