"""Ctrl-C at a chosen step of code."""

import gc
import linecache
import signal
import sys
from collections.abc import Callable
from typing import Any

import pytest

# Python runs no handler before the first call of a block.
_WITHOUT_CALL = ("try:", "finally:", "_held.inside.discard(self)")


def interrupted_at(step: int, body: Callable[[], None], files: tuple[str, ...], first: str) -> bool:
    """Call a function, and press Ctrl-C at one of the steps of some files.

    Args:
        step: Which, from 1.
        body: The function.
        files: Endings of the names of the files.
        first: Name of the function with which counting begins.

    Returns:
        Whether there were so many steps.
    """
    left, has_begun = step, False

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal left, has_begun
        name = frame.f_code.co_filename
        if not name.endswith(files):
            return None
        has_begun = has_begun or frame.f_code.co_name == first
        line = linecache.getline(name, frame.f_lineno).strip()
        if sys.version_info < (3, 11) and event == "call" and frame.f_lasti >= 0:
            return trace  # a generator goes on: what is raised here passes by its handlers, which no signal does
        if has_begun and event in ("call", "line") and line not in _WITHOUT_CALL:  # not where a function returns
            left -= 1
            if left == 0:
                signal.raise_signal(signal.SIGINT)
        return trace

    gc.disable()  # Python drops what is raised while a generator is collected
    sys.settrace(trace)
    try:
        body()
    finally:
        sys.settrace(None)
        gc.enable()
        with pytest.raises(KeyboardInterrupt):  # no signal waits for something that has ended
            signal.raise_signal(signal.SIGINT)
    return left <= 0
