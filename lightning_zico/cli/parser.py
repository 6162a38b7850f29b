"""The parser: options from the signatures of `commands`. Only the chosen command is imported."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from lightning_zico.__about__ import __version__
from lightning_zico._imports import import_optional
from lightning_zico.cli.class_options import OptionsOf
from lightning_zico.cli.help import arrange_help, with_lines
from lightning_zico.cli.messages import in_plain_words
from lightning_zico.cli.program import ENV_PREFIX, PROG
from lightning_zico.cli.specs import ZooSpec, check_model
from lightning_zico.errors import InvalidArgumentError

# The functions of `commands` by name, with the first sentence of their docstrings: importing them takes seconds.
COMMANDS: Mapping[str, str] = {
    "rank": "Rank candidates on a few batches; with a trainer, also train the winner.",
    "score": "Print the score card of one model.",
    "search": "Search a space of architectures within a budget.",
    "proxies": "List the proxies and the recipes, with a description and the evidence for each recipe.",
    "report": "Write the page or the table of a ranking or a search again, from its JSON; without an output, print it.",
}
_FIT_HELP = "Train a model with Lightning's own command line; give ZiCoCallback and zoo models by class path."
_POSITIONAL = ("proxies", "report")  # commands whose first arguments need no name
_SETTINGS: Mapping[str, Any] = {"exit_on_error": False, "allow_abbrev": False, "default_env": True}


def short_help() -> str:
    """Return the usage and what each command does, without options and without importing the parser."""
    commands = {**COMMANDS, "fit": _FIT_HELP}
    lines = [f"  {name:{max(map(len, commands))}}  {what}" for name, what in commands.items()]
    usage, more = f"Usage: {PROG} COMMAND [OPTIONS]", f"`{PROG} COMMAND --help` lists its options."
    return "\n".join([usage, "", *lines, "", more])


@dataclass(frozen=True)
class Parser:
    """The parser of a command line.

    Args:
        parser: Parser of jsonargparse for all commands; only `command` has its options.
        command: The chosen command; None if there is none.
        subparser: Parser of that command.
    """

    parser: Any
    command: str | None
    subparser: Any

    @property
    def options(self) -> list[str]:
        """Names of the command's options."""
        return list(self.subparser._option_string_actions) if self.command else []

    @property
    def flags(self) -> frozenset[str]:
        """Those that are true or false."""
        actions = self.subparser._option_string_actions.items() if self.command else ()
        return frozenset(name for name, action in actions if getattr(action, "_typehint", None) is bool)

    def parse(self, args: Sequence[str]) -> Callable[[], Mapping[str, str] | None]:
        """Parse arguments.

        Returns:
            The command with its arguments; it returns what the command returns.

        Raises:
            InvalidArgumentError: If they are wrong.
        """
        try:
            config = self.parser.parse_args(args)
        except (argparse.ArgumentError, UnicodeDecodeError) as error:  # the latter for a file that is not a text
            command = self.command or (args[0] if args else "")
            raise InvalidArgumentError(in_plain_words(str(error), command, self.options)) from error
        values = self.parser.instantiate(config)[config.command].as_dict()
        function = _function(config.command)
        arguments = {
            name: values[name] if group is None else {option: values[option] for option in group.names}
            for name, group in _parameters(function)
        }
        return partial(function, **arguments)


def build_parser(args: Sequence[str]) -> Parser:
    """Make the parser of all commands, with the options of the one that is chosen.

    Raises:
        ModuleNotFoundError: If jsonargparse is not installed.
    """
    parser_of: Any = import_optional("jsonargparse", f"`{PROG}` needs jsonargparse", "cli").ArgumentParser
    parser = parser_of(
        prog=PROG,
        description="Rank untrained models on a few batches.",
        env_prefix=ENV_PREFIX,
        version=__version__,
        **_SETTINGS,
    )
    parser.formatter_class = with_lines(parser.formatter_class)  # also that of the commands
    parser.add_argument("--debug", action="store_true", help="Show the traceback of an error; allowed at any position.")
    parser.add_argument(
        "--print_completion",
        action=_PrintCompletion,
        choices=("bash", "zsh", "tcsh"),
        help="Print a shell script that completes commands and options.",
    )
    chosen = args[0] if args else os.environ.get(f"{ENV_PREFIX}_COMMAND")
    subcommands = parser.add_subcommands(dest="command")
    subparsers = {}
    for name, what in COMMANDS.items():
        subparsers[name] = _command_parser(name) if name == chosen else parser_of(**_SETTINGS)
        subcommands.add_subcommand(name, subparsers[name], help=what)
    # Never parsed here: its arguments go to Lightning.
    subcommands.add_subcommand("fit", parser_of(**_SETTINGS), help=_FIT_HELP)
    command = chosen if chosen in subparsers else None
    return Parser(parser, command, subparsers.get(command or ""))


def _command_parser(name: str) -> Any:
    """Make the parser of one command, in the order of its parameters."""
    function = _function(name)
    import_optional("jsonargparse.typing", "", "cli").register_type(
        ZooSpec, serializer=lambda model: str(ZooSpec(model)), fail_already_registered=False
    )
    parser: Any = import_optional("jsonargparse", "", "cli").ArgumentParser(description=COMMANDS[name], **_SETTINGS)
    parser.add_argument("--config", action="config", help="Path of a YAML file with options.")
    every = [parameter for parameter, _ in _parameters(function)]
    for parameter, group in _parameters(function):
        if group is None:
            others = set(every) - {parameter}
            parser.add_function_arguments(function, as_group=False, as_positional=name in _POSITIONAL, skip=others)
        elif isinstance(group.source, type):
            parser.add_class_arguments(group.source, as_group=False, instantiate=False, skip=set(group.leave_out))
        else:
            parser.add_function_arguments(group.source, as_group=False, skip=set(group.leave_out))
    for action in parser._actions:
        action.help = action.help and action.help.replace("`", "")
    arrange_help(parser, name)
    parser.dump = partial(_dump, parser.dump)
    return parser


def _function(command: str) -> Callable[..., Mapping[str, str] | None]:
    from lightning_zico.cli import commands

    function: Callable[..., Mapping[str, str] | None] = getattr(commands, command)
    return function


def _parameters(function: Callable[..., Any]) -> Iterator[tuple[str, OptionsOf | None]]:
    """Yield the parameters of a command, and the options that one stands for if these are several."""
    for name, hint in get_type_hints(function, include_extras=True).items():
        if name != "return":
            marks = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
            yield name, next((mark for mark in marks if isinstance(mark, OptionsOf)), None)


def _dump(dump: Callable[..., str], options: Any, **settings: Any) -> str:
    """Return options as YAML for `--print_config`, after checking that the data and the model's class path exist."""
    from lightning_zico.cli.inputs import datamodule_of

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
    """

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Print the script and exit.

        Raises:
            ModuleNotFoundError: If shtab is not installed.
        """
        shtab: Any = import_optional("shtab", "`--print_completion` needs shtab", "cli")
        plain = argparse.ArgumentParser(prog=PROG)
        commands_of_it = plain.add_subparsers()
        for name in COMMANDS:
            added = commands_of_it.add_parser(name, add_help=False, help=name)  # shtab leaves out those without help
            for action in _command_parser(name)._actions:
                if action.option_strings:
                    added.add_argument(*action.option_strings, choices=_choices(getattr(action, "_typehint", None)))
        commands_of_it.add_parser("fit", help="fit")
        print(shtab.complete(plain, shell=values))
        parser.exit()


def _choices(hint: Any) -> list[str] | None:
    """Return the words that an option takes; None if it takes none.

    Example:
        >>> _choices(Literal["gpu", "cpu"] | int | None)
        ['gpu', 'cpu']
    """
    if get_origin(hint) is Literal:
        return [word for word in get_args(hint) if isinstance(word, str)]
    return [word for part in get_args(hint) for word in _choices(part) or ()] or None


def run_fit(args: list[str]) -> None:
    """Run LightningCLI.

    Raises:
        InvalidArgumentError: If an argument is wrong.
        ModuleNotFoundError: If jsonargparse is not installed.
    """
    import_optional("jsonargparse", f"`{PROG}` needs jsonargparse", "cli")
    from lightning.pytorch.cli import LightningCLI

    from lightning_zico.cli import commands  # noqa: F401  # so that what they use can be given by name

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
        raise InvalidArgumentError(in_plain_words(str(error), "fit", ())) from error
    finally:
        sys.argv = before
