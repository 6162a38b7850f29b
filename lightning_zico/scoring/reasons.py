"""Why a candidate or a score failed, as one line."""

from lightning_zico.errors import (
    NotApplicableError,
    UnsupportedModuleError,
    ZiCoError,
    meaning_of,
    message_of,
    name_to_blame,
)
from lightning_zico.results import NOT_APPLICABLE

# Prefix of a card's `untrainable` if the module raised an exception; the exception follows.
STEP_FAILS = "untrainable: its training step fails: "

# Most characters of a reason: room for a message of others, which is cut before, and for what this package says of it.
LONGEST_REASON = 800
_CUT = " ... "


def describe(error: BaseException) -> str:
    """Describe an exception in one line: its type and its message, or else the line of code that raised it.

    If the user's code other than the scored module raised it, such as a callback, the line begins with its name. A
    message of others is cut after 300 characters, see `message_of`, and a line that still has more than
    `LONGEST_REASON` loses its middle. The traceback has the whole message.
    """
    kind = NOT_APPLICABLE if isinstance(error, NotApplicableError) else type(error).__name__
    reason = f"{kind}: {meaning_of(error)}".rstrip(": ")
    # This package's own errors name it themselves.
    name = None if isinstance(error, ZiCoError) else name_to_blame(error)
    return _without_middle(reason if name is None else f"{name} raised {reason}")


def why_unranked(failure: Exception, *, is_own_step: bool) -> str:
    """Return why a candidate whose step failed has no rank; it is untrainable if its own module raised the error."""
    if name_to_blame(failure) is not None:
        return _without_middle(message_of(failure)) if isinstance(failure, ZiCoError) else describe(failure)
    if isinstance(failure, UnsupportedModuleError):
        reason = _without_middle(message_of(failure))
        return f"untrainable: {reason}" if is_own_step else reason
    return STEP_FAILS + describe(failure)


def _without_middle(reason: str) -> str:
    half = (LONGEST_REASON - len(_CUT)) // 2
    return reason if len(reason) <= LONGEST_REASON else f"{reason[:half]}{_CUT}{reason[-half:]}"
