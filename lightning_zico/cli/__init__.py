"""The command line: what it prints, its errors in one line, and its exit codes.

Until a command is chosen, nothing is imported that takes long: neither torch nor the rest of the package.
"""

import io
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lightning_zico.__about__ import __version__
from lightning_zico.cli.messages import in_one_line, is_wrong_use, say
from lightning_zico.cli.parser import build_parser, run_fit, short_help
from lightning_zico.cli.program import (
    ENV_PREFIX,
    FAILED,
    INTERRUPTED,
    NO_READER,
    PROG,
    TERMINATED,
    WRONG_USE,
    is_gone,
    is_interrupted,
    is_sigterm,
)

_READS_CODE = frozenset({"rank", "score", "search", "fit"})  # by `--candidates`, `--model` and `--data`


def main(args: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        args: The arguments after the name of the program; those of this process if None.

    Returns:
        0 on success; 2 on wrong use and 1 on failure, each with one line on standard error; 130 after Ctrl-C; 143 and
        129 after SIGTERM and SIGHUP; 141 if the reader of the output has closed the pipe.
    """
    given = list(sys.argv[1:] if args is None else args)
    _place_working_folder(given)
    with _any_text(), warnings.catch_warnings():
        # It comes from Lightning's own calls, which users cannot change.
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        code = _code_of(given)
        return code if _can_flush() else code or NO_READER


def _can_flush() -> bool:
    """Flush what was printed, and return whether it could be written.

    Raises:
        OSError: If something other than a missing reader or terminal is the reason.
    """
    could_all = True
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            if not is_gone(error):
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # else Python complains when it ends
            could_all = False
    return could_all


def _place_working_folder(given: list[str]) -> None:
    """Make the working folder importable for commands that take class paths, after all installed packages."""
    if _READS_CODE.intersection(given[:1]) and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def _code_of(given: list[str]) -> int:
    """Run a command and return its exit code."""
    is_debugging = "--debug" in given
    given = [arg for arg in given if arg != "--debug"]
    if not given and f"{ENV_PREFIX}_COMMAND" not in os.environ:
        say(f"{short_help()}\n{PROG}: error: Pass a command: one of those above.")
        return WRONG_USE
    try:
        _run(given)
    except (KeyboardInterrupt, SystemExit) as ended:
        if is_interrupted(ended):
            say(f"{PROG}: interrupted")
            return INTERRUPTED
        if is_sigterm(ended):
            return TERMINATED
        code = getattr(ended, "code", None)
        return code if isinstance(code, int) else 0
    except Exception as error:
        if is_debugging:
            raise
        say(f"{PROG}: error: {in_one_line(error)} (--debug shows where)")
        return WRONG_USE if is_wrong_use(error) else FAILED
    return 0


@contextmanager
def _any_text() -> Iterator[None]:
    """Write characters that the encoding of standard output lacks, such as those of a candidate's name, as escapes."""
    stream = sys.stdout
    if not isinstance(stream, io.TextIOWrapper):
        yield
        return
    before = stream.errors
    stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        stream.reconfigure(errors=before)


def _run(given: list[str]) -> None:
    if given[:1] == ["fit"]:
        from lightning_zico.cli.spelling import spell_out, spelled_environment

        with spelled_environment("fit"):
            run_fit(spell_out(given, flags=()))
        return
    if given[:1] == ["--version"]:  # also without jsonargparse
        print(f"{PROG} {__version__}")
        return
    parser = build_parser(given)
    if parser.command is None:
        parser.parse(given)  # prints and exits, or raises an error
        return
    from lightning_zico.cli.spelling import finals_command, spell_out, spelled_environment

    with spelled_environment(parser.command):
        run = parser.parse(spell_out(given, parser.flags))
    from lightning_zico.cli.output import logged_on_stderr

    with logged_on_stderr():
        finals = run()
    if finals is not None:
        say(f"To hold finals among the first, run: {finals_command(given, finals)}")
