"""Messages on standard error, and errors in one line, in the terms of the command line."""

import difflib
import inspect
import re
import sys
import traceback
from collections.abc import Collection
from contextlib import suppress

from lightning_zico.cli.program import PROG
from lightning_zico.cli.specs import ZooSpec, import_object
from lightning_zico.errors import in_words
from lightning_zico.texts import printable

# Kinds of values as jsonargparse calls them, and in plain words.
_IN_WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text", "NoneType": "null"}


def say(text: str) -> None:
    """Print a message on standard error."""
    with suppress(OSError):  # the terminal may have closed
        print(printable(text), file=sys.stderr, flush=True)


def in_one_line(error: Exception) -> str:
    """Return the message of an error; errors from other packages and the user include the exception's type."""
    if _package_of(error) == "jsonargparse":
        return first_reason(str(error))
    is_ours = _package_of(error) == "lightning_zico" or _is_lightnings_refusal(error)
    return " ".join(str(error).split()) if is_ours else in_words(error)


def first_reason(text: str) -> str:
    """Return the first of the many reasons why a value fits no type; the first type is the intended one."""
    kinds = rf"Errors:\n(?:\s+- Not of type {ZooSpec.__name__}.*?)?\s+- (.*?)(?:\n\s+- |\n\s+Given value|$)"
    reason = re.search(kinds, text, re.DOTALL)
    return " ".join((reason[1] if reason else text).split())


def _package_of(error: Exception) -> str:
    """Return the name of the package whose code raised an error."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return str(frames[-1].f_globals.get("__name__", "")).split(".")[0]


def is_wrong_use(error: Exception) -> bool:
    """Whether an argument was refused; otherwise something failed, often the user's code."""
    has_failed = isinstance(error, RuntimeError | ConnectionError | ArithmeticError)
    has_refused = _package_of(error) in ("lightning_zico", "jsonargparse") and not has_failed
    return has_refused or _is_lightnings_refusal(error)


def _is_lightnings_refusal(error: Exception) -> bool:
    return type(error).__name__ == "MisconfigurationException"  # of either of its packages


def in_plain_words(text: str, command: str, known: Collection[str]) -> str:
    """Turn an error message of jsonargparse into one line in the terms of the command line.

    Args:
        text: The error message.
        command: The command; empty if there is none.
        known: Names of the command's options.
    """
    help_ = f"`{PROG} {command} --help`" if command and not command.startswith("-") else f"`{PROG} --help`"
    if unknown := re.search(r'Parser key "data".*Expected a dot import path string: ([^\n]+)', text, flags=re.DOTALL):
        from lightning_zico.cli.inputs import no_data  # takes seconds, and a command with data has loaded it

        return no_data(unknown[1])
    if unknown := re.search(r"argument command: invalid choice: '(.*)' \(choose from (.*)\)", text):
        commands = unknown[2].replace("'", "").split(", ")
        nearest = difflib.get_close_matches(unknown[1], commands, n=1)
        hint = f" Did you mean {nearest[0]}?" if nearest else ""
        return f"There is no command {unknown[1]}.{hint} Expected one of {', '.join(commands)}."
    if text.startswith("the following arguments are required: "):
        names = [name.partition(".")[2] for name in text.partition(": ")[2].split(", ")]
        needed = [f"--{name}" if f"--{name}" in known or not known else name.upper() for name in names]
        return f"`{PROG} {command}` needs {' and '.join(needed)}. See {help_}."
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
    is_kind = bool(kinds) and ("Errors:" not in innermost or first_reason(innermost).startswith("Expected a"))
    if not value or not kinds or not is_kind:
        return first_reason(text)
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
    return list(inspect.signature(import_object(class_path)).parameters)


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
