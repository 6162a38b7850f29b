"""The program: its name, and the exit codes with which it ends."""

PROG = "lightning-zico"
ENV_PREFIX = "LIGHTNING_ZICO"
# Exit codes: those of argparse, and the shells' for a program that was ended by signal 2.
FAILED, WRONG_USE, INTERRUPTED = 1, 2, 130
# Exit code after a broken pipe: 128 + SIGPIPE.
NO_READER = 141


def is_interrupted(ended: BaseException) -> bool:
    """Whether Ctrl-C was the reason; a trainer turns it into a SystemExit."""
    return isinstance(ended, KeyboardInterrupt) or (
        isinstance(ended, SystemExit) and isinstance(ended.__context__, KeyboardInterrupt)
    )
