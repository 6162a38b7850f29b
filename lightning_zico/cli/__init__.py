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
from lightning_zico.cli.messages import in_one_line, is_wrong_use
from lightning_zico.cli.parser import build_parser, run_fit, short_help
from lightning_zico.cli.program import ENV_PREFIX, FAILED, INTERRUPTED, NO_READER, PROG, WRONG_USE, is_interrupted
from lightning_zico.texts import printable

_READS_CODE = frozenset({"rank", "score", "search", "fit"})  # by `--candidates`, `--model` and `--data`


def main(args: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        args: The arguments after the name of the program; those of this process if None.

    Returns:
        0 on success; 2 on wrong use and 1 on failure, each with one line on standard error; 130 after Ctrl-C; 141 if
        the reader of the output has closed the pipe.
    """
    given = list(sys.argv[1:] if args is None else args)
    _place_working_folder(given)
    with _any_text(), warnings.catch_warnings():
        # It comes from Lightning's own calls, which users cannot change.
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        code = _code_of(given)
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it ends
            return NO_READER
        return code


def _place_working_folder(given: list[str]) -> None:
    """Make the working folder importable for commands that take class paths, after all installed packages."""
    if _READS_CODE.intersection(given[:1]) and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def _code_of(given: list[str]) -> int:
    """Run a command and return its exit code."""
    is_debugging = "--debug" in given
    given = [arg for arg in given if arg != "--debug"]
    if not given and f"{ENV_PREFIX}_COMMAND" not in os.environ:
        print(f"{short_help()}\n{PROG}: error: Pass a command: one of those above.", file=sys.stderr)
        return WRONG_USE
    try:
        _run(given)
    except (KeyboardInterrupt, SystemExit) as ended:
        if is_interrupted(ended):
            print(f"{PROG}: interrupted", file=sys.stderr)
            return INTERRUPTED
        code = getattr(ended, "code", None)
        return code if isinstance(code, int) else 0
    except Exception as error:
        if is_debugging:
            raise
        print(f"{PROG}: error: {printable(in_one_line(error))} (--debug shows where)", file=sys.stderr)
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
        print(f"To hold finals among the first, run: {finals_command(given, finals)}", file=sys.stderr)
