"""The parser: options from the signatures of `commands`."""

import argparse
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lightning_zico.__about__ import __version__
from lightning_zico._imports import imported
from lightning_zico.cli import commands
from lightning_zico.cli.inputs import ZooSpec, check_model, datamodule_of
from lightning_zico.cli.messages import in_plain_words
from lightning_zico.cli.program import ENV_PREFIX, PROG
from lightning_zico.errors import InvalidArgumentError

COMMANDS: dict[str, Callable[..., str | None]] = {
    "rank": commands.rank,
    "score": commands.score,
    "search": commands.search,
    "proxies": commands.proxies,
    "report": commands.report,
}


_FIT_HELP = "Train a model with Lightning's own command line; give ZiCoCallback and zoo models by class path."


def build_parser() -> tuple[Any, dict[str, list[str]]]:
    """Make the parser of all commands.

    Returns:
        The parser, and the names of the options of each command.

    Raises:
        ModuleNotFoundError: If jsonargparse is not installed.
    """
    parser_of: Any = imported("jsonargparse", f"`{PROG}` needs jsonargparse", "cli").ArgumentParser
    imported("jsonargparse.typing", "", "cli").register_type(
        ZooSpec, serializer=lambda model: str(ZooSpec(model)), fail_already_registered=False
    )
    settings: dict[str, Any] = {"exit_on_error": False, "allow_abbrev": False, "default_env": True}
    parser = parser_of(
        prog=PROG,
        description="Rank untrained models on a few batches.",
        env_prefix=ENV_PREFIX,
        version=__version__,
        **settings,
    )
    parser.add_argument("--debug", action="store_true", help="Show the traceback of an error; allowed at any position.")
    subparsers: dict[str, Any] = {}
    parser.add_argument(
        "--print_completion",
        action=_PrintCompletion,
        choices=("bash", "zsh", "tcsh"),
        subparsers=subparsers,
        help="Print a shell script that completes commands and options.",
    )
    subcommands = parser.add_subcommands(dest="command")
    for name, function in COMMANDS.items():
        what = (function.__doc__ or "").split("\n\n", 1)[0]
        subparser = parser_of(description=what, **settings)
        subparser.add_argument("--config", action="config", help="Path of a YAML file with options.")
        subparser.add_function_arguments(function, as_group=False, as_positional=name in ("report", "proxies"))
        subparser.dump = partial(_dumped, subparser.dump)
        subparsers[name] = subparser
        subcommands.add_subcommand(name, subparser, help=what)
    # Never parsed here: its arguments go to Lightning.
    subcommands.add_subcommand("fit", parser_of(**settings), help=_FIT_HELP)
    return parser, {name: list(subparser._option_string_actions) for name, subparser in subparsers.items()}


def _dumped(dump: Callable[..., str], options: Any, **settings: Any) -> str:
    """Return options as YAML for `--print_config`, after checking that the data and the model's class path exist."""
    data, model = options.get("data"), options.get("model")
    if isinstance(data, str):
        datamodule_of(data)
    if isinstance(model, str):
        check_model(model)
    return dump(options, **settings)


class _PrintCompletion(argparse.Action):
    """Prints a completion script for a shell, and exits.

    The script is made from a plain argparse parser with the same options: jsonargparse's own completion takes minutes,
    because it looks through all classes that data or a trainer may have.

    Args:
        subparsers: Parsers by command.
        words: Keyword arguments of `argparse.Action`.
    """

    def __init__(self, *, subparsers: Mapping[str, Any], **words: Any) -> None:
        super().__init__(**words)
        self._subparsers = subparsers

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Print the script and exit.

        Raises:
            ModuleNotFoundError: If shtab is not installed.
        """
        shtab: Any = imported("shtab", "`--print_completion` needs shtab", "cli")
        plain = argparse.ArgumentParser(prog=PROG)
        commands_of_it = plain.add_subparsers()
        for name, subparser in self._subparsers.items():
            hints = get_type_hints(COMMANDS[name])
            added = commands_of_it.add_parser(name, add_help=False, help=name)  # shtab leaves out those without help
            for action in subparser._actions:
                hint = hints.get(action.dest)
                choices = get_args(hint) if get_origin(hint) is Literal else None
                if action.option_strings:
                    added.add_argument(*action.option_strings, choices=choices)
        commands_of_it.add_parser("fit", help="fit")
        print(shtab.complete(plain, shell=values))
        parser.exit()


def run_fit(args: list[str]) -> None:
    """Run LightningCLI."""
    build_parser()  # raises an error that says what is missing
    from lightning.pytorch.cli import LightningCLI

    import lightning_zico.zoo  # noqa: F401  # so that its modules can be given by name

    settings: dict[str, Any] = {
        "prog": PROG,
        "default_env": True,
        "env_prefix": ENV_PREFIX,
        "exit_on_error": False,
    }
    before, sys.argv = sys.argv, [PROG, *args]  # passed as its argument, they would cause a warning
    try:
        LightningCLI(seed_everything_default=0, parser_kwargs=settings, save_config_kwargs={"overwrite": True})
    except argparse.ArgumentError as error:
        raise InvalidArgumentError(in_plain_words(str(error), args, {})) from error
    finally:
        sys.argv = before
