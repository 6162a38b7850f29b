"""SIGTERM and SIGHUP end finals as Ctrl-C does: what is done is kept, and processes and files are cleaned up."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# Signals that end a process at once, unless it handles them. Windows lacks the second one.
_ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
_QUIET_S = 30.0  # time for cleaning up


@contextmanager
def exit_on_signals() -> Iterator[Callable[[], None]]:
    """Let SIGTERM and SIGHUP raise a SystemExit in the body, with the exit code that a shell gives: 128 + the number.

    Others in the 30 seconds after it do nothing: a closed terminal may send several, which would interrupt the cleaning
    up. Later ones raise again, in case the body has caught the exception and goes on. Signals that are ignored, such as
    SIGHUP under ``nohup``, or that the user handles stay as they are. This works only in the main thread.

    Yields:
        A function that restores the handlers before the body ends.
    """
    is_main = threading.current_thread() is threading.main_thread()
    replaced = [number for number in _ENDING if is_main and signal.getsignal(number) is signal.SIG_DFL]
    last_s = -math.inf

    def end(number: int, _: FrameType | None) -> None:
        nonlocal last_s
        now_s = time.monotonic()
        if now_s - last_s > _QUIET_S:
            last_s = now_s
            raise SystemExit(128 + number)

    def restore() -> None:
        while replaced:
            signal.signal(replaced.pop(), signal.SIG_DFL)

    try:
        for number in replaced:
            signal.signal(number, end)
        yield restore
    finally:
        restore()
