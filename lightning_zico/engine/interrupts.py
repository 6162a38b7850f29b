"""Delay signals that arrive while something is put back until it is complete.

Python runs signal handlers in the main thread, between any two steps of its code. A handler that raises, such as that
of Ctrl-C, would end an undo half-way.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

# Signals by which users, systems and tests end or interrupt a process.
_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK", "SIGALRM") if hasattr(signal, name)
]

_Handler = Callable[[int, FrameType | None], Any]


class SignalWatch:
    """Replaces signal handlers by ones that record what they raise and wait for the end of `uninterrupted`.

    Call `start` and `stop` in the main thread.

    Attributes:
        raised: What a handler raised, such as the KeyboardInterrupt of Ctrl-C; an ``Exception`` is not recorded.
    """

    def __init__(self) -> None:
        self.raised: BaseException | None = None
        self._handlers: dict[int, Any] = {}
        self._outer = _held.watch

    def start(self) -> None:
        """Replace the handlers."""
        self._handlers = {number: signal.getsignal(number) for number in _SIGNALS}
        for number, handler in self._handlers.items():
            if callable(handler):
                signal.signal(number, partial(self._handle, handler))
        _held.watch = self

    def stop(self) -> None:
        """Restore the handlers; those not installed from Python stay."""
        _held.watch = self._outer
        for number, handler in reversed(self._handlers.items()):  # Ctrl-C, the most likely one, last
            if handler is not None:
                signal.signal(number, handler)

    def _handle(self, handler: _Handler, number: int, frame: FrameType | None) -> None:
        if _held.inside:
            _held.waiting.append(partial(self._handle, handler, number, None))
            return
        try:
            handler(number, frame)
        except BaseException as raised:
            if not isinstance(raised, Exception):
                self.raised = raised
            raise


class _Held:
    """Signals that wait, in the main thread."""

    def __init__(self) -> None:
        self.inside: set[uninterrupted] = set()
        self.waiting: list[Callable[[], Any]] = []
        self.watch: SignalWatch | None = None


_held = _Held()


class uninterrupted:  # noqa: N801  # read as a function
    """Run the body of a ``with`` to its end, then the handlers of the signals that arrived in the meantime.

    Handlers run in the main thread only, so this does nothing in other threads.

    Raises:
        BaseException: What a handler raises, such as a KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self._is_main = threading.get_ident() == threading.main_thread().ident
        self._watch: SignalWatch | None = None

    def __enter__(self) -> None:
        if not self._is_main:
            return
        try:
            _held.inside.add(self)
            if _held.watch is None:
                self._watch = SignalWatch()
                self._watch.start()
        except BaseException:  # from a signal that arrived before the handlers were replaced
            self._leave()
            raise

    def __exit__(self, *error: object) -> None:
        if self._is_main:
            self._leave()
            while _held.waiting and not _held.inside:
                _held.waiting.pop(0)()

    def _leave(self) -> None:
        try:
            if self._watch is not None:
                self._watch.stop()
        finally:
            _held.inside.discard(self)


@contextmanager
def finally_called(put_back: Callable[[], Any]) -> Iterator[None]:
    """Run the body, then a function that puts something back, even if Ctrl-C comes before its first step.

    Args:
        put_back: May be called twice.
    """
    try:
        yield
    finally:
        try:
            put_back()
        except BaseException:
            put_back()
            raise
