"""Threads that score at the same time take turns, and none waits for its turn for ever."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Interval for checking whether this thread waits for one that waits for it.
_POLL_S = 1.0
# How long a thread may wait for other threads before it counts as waiting for those that it started.
_STUCK_S = 10.0
# A turn is the scoring of one model, or the training of one finalist.
_LONGEST_TURN_S = 3600.0


class Turns:
    """A lock that a thread may take again while it has it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._depth = 0
        self._holder = 0
        self._began = 0.0
        self._there: frozenset[threading.Thread] = frozenset()

    @contextmanager
    def turn(self) -> Iterator[bool]:
        """Wait for other threads, then run the body.

        Yields:
            Whether this is the outermost body of the thread.

        Raises:
            RuntimeError: If the thread whose turn it is waits for this one, or takes more than an hour.
        """
        if not self._lock.acquire(blocking=False):
            self._wait()
        try:
            if not self._depth:
                self._holder, self._began = threading.get_ident(), time.monotonic()
                self._there = frozenset(threading.enumerate())
            self._depth += 1
            try:
                yield self._depth == 1
            finally:
                self._depth -= 1
        finally:
            self._lock.release()

    def _wait(self) -> None:
        wait, since = None, time.monotonic()
        while not self._lock.acquire(timeout=_POLL_S):
            now = time.monotonic()
            if self._find_wait() != wait:
                wait, since = self._find_wait(), now
            if wait is not None and now - since > _STUCK_S:
                raise RuntimeError(
                    "A model is scored in a thread that the scoring of another model started and now waits for. "
                    "Threads that score take turns, so neither would end. Score in the thread of the outer model."
                )
            if now - self._began > _LONGEST_TURN_S:
                raise RuntimeError(
                    f"Another thread has been scoring or training one model for {_LONGEST_TURN_S / 60:.0f} minutes. "
                    'Threads that score take turns. To score models at the same time, pass `executor="processes"`.'
                )

    def _find_wait(self) -> tuple[float, FrameType, int] | None:
        """Return where the other thread waits for threads, if it started this one; None if it does not."""
        if threading.current_thread() in self._there:
            return None
        frame = sys._current_frames().get(self._holder)
        if frame is None or frame.f_code.co_filename != threading.__file__:
            return None
        return self._began, frame, frame.f_lasti
