"""The command line: options from the signatures of `commands`, errors in one line."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lightning_zico import commands
from lightning_zico.__about__ import __version__
from lightning_zico._imports import imported

# Exit codes: as argparse has it, and as shells have it for who was ended by signal 2.
_WRONG_USE, _INTERRUPTED = 2, 130
_COMMANDS: dict[str, Callable[..., None]] = {
    "rank": commands.rank,
    "score": commands.score,
    "search": commands.search,
    "proxies": commands.proxies,
    "report": commands.report,
}
_FIT_HELP = "Train a model with Lightning's own command line; ZiCoCallback and models of a zoo come by class path."
_PROG = "lightning-zico"
_FLAGS = ("--layers", "--race")  # booleans, to which jsonargparse wants a value


def main(args: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        args: What stands behind the name of the program; of this process if None.

    Returns:
        0 if it did what it was asked, 2 on wrong use, with one line on standard error, 130 after Ctrl-C.
    """
    given = list(sys.argv[1:] if args is None else args)
    is_debugging = "--debug" in given
    given = [arg for arg in given if arg != "--debug"]
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # class paths of the user's own modules; `python -m` has it there already
    try:
        _run(given)
    except KeyboardInterrupt:
        print(f"{_PROG}: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0
    except Exception as error:
        if is_debugging:
            raise
        print(f"{_PROG}: error: {_in_one_line(error)} (--debug shows where)", file=sys.stderr)
        return _WRONG_USE
    return 0


def _run(args: list[str]) -> None:
    args = _spelled_out(args)
    if args[:1] == ["fit"]:
        _fit(args)
        return
    parser = _parser()
    config = parser.parse_args(args)
    arguments = parser.instantiate(config)[config.command].as_dict()
    arguments.pop("config")
    _COMMANDS[config.command](**arguments)


def _parser() -> Any:
    """Make the parser of all commands.

    Raises:
        ModuleNotFoundError: If jsonargparse is not installed.
    """
    parser_of: Any = imported("jsonargparse", f"`{_PROG}` needs jsonargparse", "cli").ArgumentParser
    settings: dict[str, Any] = {"exit_on_error": False, "allow_abbrev": False, "default_env": True}
    parser = parser_of(
        prog=_PROG,
        description="Rank untrained models on a few batches.",
        env_prefix="LIGHTNING_ZICO",
        version=__version__,
        **settings,
    )
    parser.add_argument("--debug", action="store_true", help="Show the traceback of an error; anywhere in the line.")
    subparsers: dict[str, Any] = {}
    parser.add_argument(
        "--print_completion",
        action=_PrintCompletion,
        choices=("bash", "zsh", "tcsh"),
        subparsers=subparsers,
        help="Print a script for a shell that completes commands and options.",
    )
    subcommands = parser.add_subcommands(dest="command")
    for name, function in _COMMANDS.items():
        what = (function.__doc__ or "").split("\n\n", 1)[0]
        subparser = parser_of(description=what, **settings)
        subparser.add_argument("--config", action="config", help="Path of a YAML file with options.")
        subparser.add_function_arguments(function, as_group=False, as_positional=name in ("report", "proxies"))
        subparsers[name] = subparser
        subcommands.add_subcommand(name, subparser, help=what)
    # Never parsed here: what stands behind it is for Lightning.
    subcommands.add_subcommand("fit", parser_of(**settings), help=_FIT_HELP)
    return parser


class _PrintCompletion(argparse.Action):
    """Prints what completes lines of a shell, and ends.

    It is made of a parser of argparse with the same options: what there is for jsonargparse takes minutes, for all
    the classes that data or a trainer may be of.

    Args:
        subparsers: By command.
        words: For `argparse.Action`.
    """

    def __init__(self, *, subparsers: Mapping[str, Any], **words: Any) -> None:
        super().__init__(**words)
        self._subparsers = subparsers

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Print, and end.

        Raises:
            ModuleNotFoundError: If shtab is not installed.
        """
        shtab: Any = imported("shtab", "`--print_completion` needs shtab", "cli")
        plain = argparse.ArgumentParser(prog=_PROG)
        commands_of_it = plain.add_subparsers()
        for name, subparser in self._subparsers.items():
            hints = get_type_hints(_COMMANDS[name])
            added = commands_of_it.add_parser(name, add_help=False, help=name)  # shtab leaves out those without help
            for action in subparser._actions:
                hint = hints.get(action.dest)
                choices = get_args(hint) if get_origin(hint) is Literal else None
                if action.option_strings:
                    added.add_argument(*action.option_strings, choices=choices)
        commands_of_it.add_parser("fit", help="fit")
        print(shtab.complete(plain, shell=values))
        parser.exit()


def _fit(args: list[str]) -> None:
    """Hand over to LightningCLI."""
    _parser()  # says what is missing
    from lightning.pytorch.cli import LightningCLI

    import lightning_zico.zoo  # noqa: F401  # so that its modules are known by their names

    settings: dict[str, Any] = {
        "prog": _PROG,
        "default_env": True,
        "env_prefix": "LIGHTNING_ZICO",
        "exit_on_error": False,
    }
    before, sys.argv = sys.argv, [_PROG, *args]  # given as its argument, it would warn of them
    try:
        LightningCLI(seed_everything_default=0, parser_kwargs=settings, save_config_kwargs={"overwrite": True})
    finally:
        sys.argv = before


def _spelled_out(args: list[str]) -> list[str]:
    """Write what may be short as jsonargparse has it: ``-o``, flags, ``--n_jobs``, data by name, the model of `score`.

    Data becomes a class path, so that its options may follow, as in ``--data cifar10 --data.batch_size 128``.
    """
    if args[:1] == ["score"] and args[1:] and not args[1].startswith("-"):
        args = ["score", "--model", *args[1:]]
    written: list[str] = []
    for before, arg, after in zip(["", *args], args, [*args[1:], ""], strict=False):
        is_data = before == "--data" or arg.startswith("--data=")
        short = commands.short_data(arg.removeprefix("--data=")) if is_data else None
        if short is not None:
            kind, options = short
            if before != "--data":
                written.append("--data")
            written.append(f"{kind.__module__}.{kind.__qualname__}")
            written += [f"--data.{name}={value}" for name, value in options.items()]
        elif arg in _FLAGS and after not in ("true", "false"):
            written.append(f"{arg}=true")
        elif arg.split("=")[0] == "--n_jobs":
            written += ["--executor", "processes", arg.replace("--n_jobs", "--num_workers", 1)]
        else:
            written.append("--output" if arg == "-o" else arg)
    return written


def _in_one_line(error: Exception) -> str:
    """Say in a line what is wrong; of what a value is not, keep the first reason, which is about the class path."""
    text = str(error)
    reasons = re.search(r"Errors:\n\s+- (.*?)(\n\s+- |\n\s+Given value|$)", text, flags=re.DOTALL)
    if reasons:
        text = f"{text.splitlines()[0]} {reasons[1]}"
    return " ".join(text.split()) or type(error).__name__
