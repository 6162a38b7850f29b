"""SIGTERM and SIGHUP end finals as Ctrl-C does: what is done is kept, and processes and files are cleaned up."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# Signals that end a process at once, unless it handles them. Windows lacks the second one.
_ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def exit_on_signals() -> Iterator[Callable[[], None]]:
    """Let SIGTERM and SIGHUP raise a SystemExit in the body, with the exit code that a shell gives: 128 + the number.

    Only the first one does: a closed terminal may send several, which would interrupt the cleaning up. Signals that are
    ignored, such as SIGHUP under ``nohup``, or that the user handles stay as they are. This works only in the main
    thread.

    Yields:
        A function that restores the handlers before the body ends.
    """
    is_main = threading.current_thread() is threading.main_thread()
    replaced = [number for number in _ENDING if is_main and signal.getsignal(number) is signal.SIG_DFL]
    has_come = False

    def end(number: int, _: FrameType | None) -> None:
        nonlocal has_come
        if not has_come:
            has_come = True
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
