"""The command line: options from the signatures of `commands`, errors in one line."""

import argparse
import difflib
import inspect
import io
import json
import os
import re
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lightning_zico.__about__ import __version__
from lightning_zico._imports import imported
from lightning_zico.cli import commands
from lightning_zico.errors import InvalidArgumentError, in_words
from lightning_zico.texts import printable

# Exit codes: those of argparse, and the shells' for a program that was ended by signal 2.
_FAILED, _WRONG_USE, _INTERRUPTED = 1, 2, 130
_COMMANDS: dict[str, Callable[..., str | None]] = {
    "rank": commands.rank,
    "score": commands.score,
    "search": commands.search,
    "proxies": commands.proxies,
    "report": commands.report,
}
_READS_CODE = frozenset({"rank", "score", "search", "fit"})  # by `--candidates`, `--model` and `--data`
_FIT_HELP = "Train a model with Lightning's own command line; give ZiCoCallback and zoo models by class path."
_PROG = "lightning-zico"
_ENV_PREFIX = "LIGHTNING_ZICO"
# Kinds of values as jsonargparse calls them, and in plain words.
_IN_WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text", "NoneType": "null"}
_FLAGS = (
    "--layers",
    "--race",
    "--prior_lower_is_better",
    "--data.skip_unreadable",
)  # booleans, for which jsonargparse expects a value


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
            return commands.NO_READER
        return code


def _place_working_folder(given: list[str]) -> None:
    """Make the working folder importable for commands that take class paths, after all installed packages."""
    if _READS_CODE.intersection(given[:1]) and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def _code_of(given: list[str]) -> int:
    """Run a command and return its exit code."""
    is_debugging = "--debug" in given
    try:
        _run([arg for arg in given if arg != "--debug"])
    except (KeyboardInterrupt, SystemExit) as ended:
        if commands.is_interrupted(ended):
            print(f"{_PROG}: interrupted", file=sys.stderr)
            return _INTERRUPTED
        code = getattr(ended, "code", None)
        return code if isinstance(code, int) else 0
    except Exception as error:
        if is_debugging:
            raise
        print(f"{_PROG}: error: {printable(_in_one_line(error))} (--debug shows where)", file=sys.stderr)
        return _WRONG_USE if _is_wrong_use(error) else _FAILED
    return 0


def _in_one_line(error: Exception) -> str:
    """Return the message of an error; errors from other packages and the user include the exception's type."""
    if _raised_by(error) == "jsonargparse":
        return _first_reason(str(error))
    is_ours = _raised_by(error) == "lightning_zico" or _is_lightnings_refusal(error)
    return " ".join(str(error).split()) if is_ours else in_words(error)


def _first_reason(text: str) -> str:
    """Return the first of the many reasons why a value fits no type; the first type is the intended one."""
    kinds = rf"Errors:\n(?:\s+- Not of type {commands.ZooSpec.__name__}.*?)?\s+- (.*?)(?:\n\s+- |\n\s+Given value|$)"
    reason = re.search(kinds, text, re.DOTALL)
    return " ".join((reason[1] if reason else text).split())


def _raised_by(error: Exception) -> str:
    """Return the name of the package whose code raised an error."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return str(frames[-1].f_globals.get("__name__", "")).split(".")[0]


def _is_wrong_use(error: Exception) -> bool:
    """Whether an argument was refused; otherwise something failed, often the user's code."""
    has_failed = isinstance(error, RuntimeError | ConnectionError | ArithmeticError)
    has_refused = _raised_by(error) in ("lightning_zico", "jsonargparse") and not has_failed
    return has_refused or _is_lightnings_refusal(error)


def _is_lightnings_refusal(error: Exception) -> bool:
    return type(error).__name__ == "MisconfigurationException"  # of either of its packages


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
    args = _spelled_out(given)
    with _environment(args[0] if args else ""):
        if args[:1] == ["fit"]:
            _fit(args)
            return
        parser, options = _parser()
        try:
            config = parser.parse_args(args)
        except (argparse.ArgumentError, UnicodeDecodeError) as error:  # the latter for a file that is not a text
            raise InvalidArgumentError(_plainly(str(error), args, options)) from error
    arguments = parser.instantiate(config)[config.command].as_dict()
    arguments.pop("config")
    finals = _COMMANDS[config.command](**arguments)
    if finals is not None:
        print(f"To hold finals among the first, run: {_line_of_finals(given, finals)}", file=sys.stderr)


def _line_of_finals(given: list[str], zoo: str) -> str:
    """Return the shell command that repeats this run with finals among these models and trains the winner."""
    others = [
        arg
        for before, arg in pairwise(["", *given])
        if before != "--zoo" and arg != "--zoo" and not arg.startswith("--zoo=")
    ]
    num_finalists = len(zoo.split(","))
    finals = ["--zoo", zoo, "--finalists", str(num_finalists), "--trainer.max_epochs", "10"]
    return shlex.join([_PROG, *others, *finals])


def _parser() -> tuple[Any, dict[str, list[str]]]:
    """Make the parser of all commands.

    Returns:
        The parser, and the names of the options of each command.

    Raises:
        ModuleNotFoundError: If jsonargparse is not installed.
    """
    parser_of: Any = imported("jsonargparse", f"`{_PROG}` needs jsonargparse", "cli").ArgumentParser
    imported("jsonargparse.typing", "", "cli").register_type(
        commands.ZooSpec, serializer=lambda model: str(commands.ZooSpec(model)), fail_already_registered=False
    )
    settings: dict[str, Any] = {"exit_on_error": False, "allow_abbrev": False, "default_env": True}
    parser = parser_of(
        prog=_PROG,
        description="Rank untrained models on a few batches.",
        env_prefix=_ENV_PREFIX,
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
    for name, function in _COMMANDS.items():
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
        commands.datamodule_of(data)
    if isinstance(model, str):
        commands.check_model(model)
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
    """Run LightningCLI."""
    _parser()  # raises an error that says what is missing
    from lightning.pytorch.cli import LightningCLI

    import lightning_zico.zoo  # noqa: F401  # so that its modules can be given by name

    settings: dict[str, Any] = {
        "prog": _PROG,
        "default_env": True,
        "env_prefix": _ENV_PREFIX,
        "exit_on_error": False,
    }
    before, sys.argv = sys.argv, [_PROG, *args]  # passed as its argument, they would cause a warning
    try:
        LightningCLI(seed_everything_default=0, parser_kwargs=settings, save_config_kwargs={"overwrite": True})
    except argparse.ArgumentError as error:
        raise InvalidArgumentError(_plainly(str(error), args, {})) from error
    finally:
        sys.argv = before


def _spelled_out(args: list[str]) -> list[str]:
    """Expand short forms for jsonargparse: ``-o``, flags, ``--n_jobs``, data by name, and the model of `score`.

    Data becomes a class path so that its options may follow, as in ``--data cifar10 --data.batch_size 128``.
    """
    if args[:1] == ["score"] and args[1:] and not args[1].startswith("-"):
        args = ["score", "--model", *args[1:]]
    written: list[str] = []
    for before, arg, after in zip(["", *args], args, [*args[1:], ""], strict=False):
        option, equals, value = arg.partition("=")
        if before in _SHORT:
            written.append(_SHORT[before](arg))
        elif option in _SHORT and equals:
            written.append(f"{option}={_SHORT[option](value)}")
        elif before in _FLAGS and arg.lower() in ("true", "false"):
            written[-1] = f"{before}={arg.lower()}"
        elif arg in _FLAGS:
            written.append(f"{arg}=true")
        elif option == "--n_jobs":
            written += ["--executor", "processes", arg.replace("--n_jobs", "--num_workers", 1)]
        elif arg == "--data.help" and (not after or after.startswith("-")):
            written.append(_help_on_data(args))
        else:
            written.append("--output" if arg == "-o" else arg)
    return written


def _spelled_out_data(data: str) -> str:
    """Expand the name of a dataset or a folder into a class path and options, so that more options may follow."""
    short = commands.short_data(data)
    return data if short is None else json.dumps(_as_config(*short))


def _as_config(kind: type, options: Mapping[str, str]) -> dict[str, Any]:
    return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": dict(options)}


def _spelled_out_config(config: str) -> str:
    """Replace the path of a file that gives data in short form by the file's text, with the data spelled out."""
    if not Path(config).is_file():
        return config  # the parser reports what is wrong with it
    yaml: Any = imported("yaml", f"`{_PROG}` needs PyYAML", "cli")
    try:
        read = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError):
        return config
    data = read.get("data") if isinstance(read, dict) else None
    short = commands.short_data(data) if isinstance(data, str) else None
    return config if short is None else str(yaml.safe_dump({**read, "data": _as_config(*short)}, sort_keys=False))


_SHORT = {"--data": _spelled_out_data, "--config": _spelled_out_config, "-c": _spelled_out_config}


@contextmanager
def _environment(command: str) -> Iterator[None]:
    """Expand the environment variables for data and for a configuration file as on the command line."""
    prefix = f"{_ENV_PREFIX}_{command.upper()}__"
    before = {name: os.environ[name] for name in (f"{prefix}DATA", f"{prefix}CONFIG") if name in os.environ}
    for name, value in before.items():
        os.environ[name] = _SHORT[f"--{name.removeprefix(prefix).lower()}"](value)
    try:
        yield
    finally:
        os.environ.update(before)


def _help_on_data(args: list[str]) -> str:
    """Return the option that prints the help on the given data, or on any data if none is given."""
    behind = [value for option, value in pairwise(args) if option == "--data"]
    behind += [arg.removeprefix("--data=") for arg in args if arg.startswith("--data=")]
    if not behind:
        return "--data.help"
    short = commands.short_data(behind[0])
    return f"--data.help={behind[0] if short is None else _as_config(*short)['class_path']}"


def _plainly(text: str, args: Sequence[str], options: Mapping[str, Collection[str]]) -> str:
    """Turn an error message of jsonargparse into one line in the terms of the command line.

    Args:
        text: The error message.
        args: Arguments of the command line.
        options: Names of the options of each command.
    """
    command = args[0] if args else ""
    known = options.get(command, ())
    help_ = f"`{_PROG} {command} --help`" if command and not command.startswith("-") else f"`{_PROG} --help`"
    if unknown := re.search(r'Parser key "data".*Expected a dot import path string: ([^\n]+)', text, flags=re.DOTALL):
        return commands.no_data(unknown[1])
    if text.startswith("the following arguments are required: "):
        names = [name.partition(".")[2] for name in text.partition(": ")[2].split(", ")]
        needed = [f"--{name}" if f"--{name}" in known or not known else name.upper() for name in names]
        return f"`{_PROG} {command}` needs {' and '.join(needed)}. See {help_}."
    if unknown := re.match(r"unrecognized arguments: (--[^ =]+)|.*does not accept option '([^']+)'", text):
        return _no_option(unknown[1] or f"--{unknown[2]}", known, f"{help_} lists all options.")
    # From the outermost key to that of the wrong value.
    keys = list(dict.fromkeys(re.findall(r'Parser key "([^"]+)"', text)))
    option = f"--{'.'.join(keys)}"
    if unknown := re.search(r"Option '([^']+)' is not accepted", text):
        # Of nested classes, take the last one named before the option, or else the first one named after it.
        before, _, behind = text.partition(unknown[0])
        paths = re.findall(r"class_path[ =]'([^']+)'", before)[-1:] or re.findall(r"class_path[ =]'([^']+)'", behind)
        own = [f"{option}.{name}" for name in _parameters_of(paths[0])] if paths else []
        return _no_option(f"{option}.{unknown[1]}", own, f"Known: {', '.join(own)}.")
    if config := re.search(r"Unable to load config '([^']*)'", text):
        one = next((name for name in known if name.startswith(f"{option}.")), f"{option}.NAME")
        return f"Invalid {option}={config[1]}: expected one of its own options, such as `{one} {config[1]}`."
    if missing := re.search(r": the following arguments are required: ([\w., ]+)", text):
        needed = [f"{option}.{name}" for name in missing[1].split(". ")[0].rstrip(".").split(", ")]
        return f"{option} also needs {' and '.join(needed)}."
    value = re.search(r"(?:Got|Given) value: (.*?)(?:\. Got value|\n|$)", text)
    innermost = text.rpartition(f'Parser key "{keys[-1]}"')[2] if keys else ""
    kinds = re.search(r"Subtypes: \[(.*)\]|Expected a (<class .*?|typing.*?)(?:\. Got value|\n|$)", innermost)
    is_kind = bool(kinds) and ("Errors:" not in innermost or _first_reason(innermost).startswith("Expected a"))
    if not value or not kinds or not is_kind:
        return _first_reason(text)
    if nested := re.match(r"NestedArg\(key='(.*)', val='(.*)'\)", value[1]):
        return f"Invalid {option}.{nested[1]}={nested[2]}: the value of {option} has no options."
    given = "null" if value[1] == "None" else value[1]
    return f"Invalid {option}={given}: expected {_kinds_in_words(kinds[1] or kinds[2], option)}."


def _no_option(name: str, known: Collection[str], else_: str) -> str:
    nearest = difflib.get_close_matches(name, list(known), n=3, cutoff=0.75)
    hint = f" Did you mean {' or '.join(nearest)}?" if nearest else ""
    return f"There is no option {name}.{hint} {else_}"


def _parameters_of(class_path: str) -> list[str]:
    """Return the names of the parameters of a class that jsonargparse has already found."""
    return list(inspect.signature(commands.imported_object(class_path)).parameters)


def _kinds_in_words(kinds: str, option: str) -> str:
    """Return jsonargparse's kinds of values in plain words.

    Example:
        >>> _kinds_in_words("typing.Literal['a', 'b'], <class 'int'>, <class 'NoneType'>", "--c")
        'a, b, a whole number or null'
        >>> _kinds_in_words("<class 'my_pkg.Adam'>, typing.Literal['sgd']", "--optimizer")
        'a class path of Adam (options: --optimizer.NAME) or sgd'
    """
    words: dict[str, None] = {}
    for choices, kind in re.findall(r"typing\.Literal\[(.*?)\]|<class '(.*?)'>", kinds):
        if choices:
            words.update(dict.fromkeys(choices.replace("'", "").split(", ")))
        else:
            words[_IN_WORDS.get(kind, f"a class path of {kind.rpartition('.')[2]} (options: {option}.NAME)")] = None
    *others, last = words or {kinds: None}
    return f"{', '.join(others)} or {last}" if others else last
