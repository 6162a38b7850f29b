"""The program: its name, and the exit codes with which it ends."""

import errno

PROG = "lightning-zico"
ENV_PREFIX = "LIGHTNING_ZICO"
# Exit codes: those of argparse, and the shells' for a program that was ended by a signal: 128 + SIGINT or SIGTERM.
FAILED, WRONG_USE, INTERRUPTED, TERMINATED = 1, 2, 130, 143
# Exit code after a broken pipe: 128 + SIGPIPE.
NO_READER = 141


def is_interrupted(ended: BaseException) -> bool:
    """Whether Ctrl-C was the reason; a trainer turns it into a SystemExit."""
    return isinstance(ended, KeyboardInterrupt) or (
        isinstance(ended, SystemExit) and isinstance(ended.__context__, KeyboardInterrupt)
    )


def is_sigterm(ended: BaseException) -> bool:
    """Whether a trainer ended because of a SIGTERM; the exception has a class in each of Lightning's packages."""
    return any(base.__name__ == "SIGTERMException" for base in type(ended).__mro__)


def is_gone(error: OSError) -> bool:
    """Whether output cannot be written because the reader of the pipe or the terminal is gone."""
    return error.errno in (errno.EPIPE, errno.EIO)
