"""Messages to and from processes that call a function on items."""

import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import cloudpickle

from lightning_zico.errors import CacheError, traceback_of
from lightning_zico.scoring.reasons import describe

T = TypeVar("T")
R = TypeVar("R")

# Maximum size of a candidate's result; a score card takes a few kilobytes.
_MOST_ANSWERED = 100_000_000  # bytes


@dataclass(frozen=True)
class Outcome(Generic[R]):
    """The outcome of an item: its result or an error, and the time it took, in seconds."""

    result: R | None
    error: str | None
    traceback: str | None = field(default=None, compare=False)
    seconds: float = field(default=0.0, compare=False)


def pack(function: Callable[..., Any]) -> bytes:
    """Pack a function into a message.

    Raises:
        TypeError: If it cannot be sent.
    """
    try:
        return cloudpickle.dumps(function)
    except Exception as raised:
        raise TypeError(
            "The data for worker processes (trainer, batches, proxies, loss function, data module, callbacks) cannot "
            f"be pickled: {describe(raised)}. Make it picklable, or leave out the executor."
        ) from raised


class Parcel(Generic[T]):
    """An item and the message with it, or its outcome if it cannot be sent."""

    def __init__(self, item: T) -> None:
        self.item = item
        self.num_attempts = 0
        self.message = b""
        self.unsent: Outcome[Any] | None = None
        try:
            self.message = cloudpickle.dumps(item)
        except Exception as raised:
            reason = f"cannot be sent to a worker process: {describe(raised)}"
            self.unsent = Outcome(None, reason, traceback_of(raised))


def answer(function: Callable[[Any], Any], message: bytes | bytearray) -> bytes:
    """Call a function on the item in a message, and return a message with the outcome, for `read_answer`."""
    start = time.monotonic()
    stage = "cannot be loaded in a worker process: "
    try:
        item = pickle.loads(message)
        stage, start = "", time.monotonic()
        packed = cloudpickle.dumps(Outcome[Any](function(item), None, seconds=time.monotonic() - start))
        if len(packed) > _MOST_ANSWERED:
            raise ValueError(
                f"its result takes {len(packed) / 1e6:,.0f} MB, above the limit of {_MOST_ANSWERED / 1e6:,.0f} MB. "
                "Keep large objects out of the details of a score."
            )
        return packed
    except CacheError as raised:
        return pickle.dumps(CacheError(str(raised)))
    except BaseException as raised:  # the item itself raised a KeyboardInterrupt: workers ignore Ctrl-C
        seconds = time.monotonic() - start
        return pickle.dumps(Outcome[Any](None, stage + _reason(raised), traceback_of(raised), seconds))


def _reason(error: BaseException) -> str:
    try:
        return describe(error)
    except BaseException:  # in the exception's own `__str__`
        return type(error).__name__


def report_loading_error(error: BaseException) -> bytes:
    """Return the message that a function cannot be loaded, for `read_answer`."""
    return pickle.dumps(_reason(error))


def loading_error(reason: str) -> RuntimeError:
    """Return the exception for a function that a worker cannot load."""
    return RuntimeError(
        "A worker process cannot load what it needs (trainer, batches, proxies, loss function, data module): "
        f"{reason}. Move the missing code to where other processes can import it."
    )


def read_answer(message: bytes) -> Outcome[Any] | None:
    """Read a worker's message: an outcome, or None if the worker is ready for the next item.

    Raises:
        RuntimeError: If the worker cannot load the function.
        CacheError: If the cache failed.
    """
    try:
        content = pickle.loads(message)
    except Exception as raised:
        return Outcome(None, f"its result cannot be loaded here: {describe(raised)}", traceback_of(raised))
    if isinstance(content, CacheError):
        raise content
    if isinstance(content, str):
        raise loading_error(content)
    outcome: Outcome[Any] | None = content
    return outcome
