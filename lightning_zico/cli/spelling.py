"""Short forms on the command line, in configuration files and in environment variables, spelled out for the parser."""

import json
import os
import shlex
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from lightning_zico._imports import import_optional
from lightning_zico.cli.inputs import short_data
from lightning_zico.cli.program import ENV_PREFIX, PROG

# Options of data that are true or false; they may be given before the class of the data is known.
_DATA_FLAGS = frozenset({"--data.skip_unreadable"})


def spell_out(args: list[str], flags: Collection[str]) -> list[str]:
    """Expand short forms for jsonargparse: ``-o``, flags, ``--n_jobs``, data by name, and the model of `score`.

    Data becomes a class path so that its options may follow, as in ``--data cifar10 --data.batch_size 128``.

    Args:
        args: Arguments of the command line.
        flags: Options that are true or false, for which jsonargparse expects a value.
    """
    flags = _DATA_FLAGS.union(flags)
    if args[:1] == ["score"] and args[1:] and not args[1].startswith("-"):
        args = ["score", "--model", *args[1:]]
    written: list[str] = []
    for before, arg, after in zip(["", *args], args, [*args[1:], ""], strict=False):
        option, equals, value = arg.partition("=")
        if before in _SHORT:
            written.append(_SHORT[before](arg))
        elif option in _SHORT and equals:
            written.append(f"{option}={_SHORT[option](value)}")
        elif before in flags and arg.lower() in ("true", "false"):
            written[-1] = f"{before}={arg.lower()}"
        elif arg in flags:
            written.append(f"{arg}=true")
        elif option == "--n_jobs":
            written += ["--executor", "processes", arg.replace("--n_jobs", "--num_workers", 1)]
        elif arg == "--data.help" and (not after or after.startswith("-")):
            written.append(_help_on_data(args))
        else:
            written.append("--output" if arg == "-o" else arg)
    return written


def _spell_out_data(data: str) -> str:
    """Expand the name of a dataset or a folder into a class path and options, so that more options may follow."""
    short = short_data(data)
    return data if short is None else json.dumps(_as_config(*short))


def _as_config(kind: type, options: Mapping[str, str]) -> dict[str, Any]:
    return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": dict(options)}


def _spell_out_config(config: str) -> str:
    """Replace the path of a file that gives data in short form by the file's text, with the data spelled out."""
    if not Path(config).is_file():
        return config  # the parser reports what is wrong with it
    yaml: Any = import_optional("yaml", f"`{PROG}` needs PyYAML", "cli")
    try:
        read = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError):
        return config
    data = read.get("data") if isinstance(read, dict) else None
    short = short_data(data) if isinstance(data, str) else None
    return config if short is None else str(yaml.safe_dump({**read, "data": _as_config(*short)}, sort_keys=False))


_SHORT = {"--data": _spell_out_data, "--config": _spell_out_config, "-c": _spell_out_config}


@contextmanager
def spelled_environment(command: str) -> Iterator[None]:
    """Expand the environment variables for data and for a configuration file as on the command line."""
    prefix = f"{ENV_PREFIX}_{command.upper()}__"
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
    short = short_data(behind[0])
    return f"--data.help={behind[0] if short is None else _as_config(*short)['class_path']}"


def finals_command(given: list[str], options: Mapping[str, str]) -> str:
    """Return the shell command that repeats this run with finals and trains the winner.

    Args:
        given: Arguments of this run.
        options: Options that have other values in the run of finals.
    """
    replaced = {*options, "-o"}
    others = [
        arg
        for before, arg in pairwise(["", *given])
        if before not in replaced and arg.partition("=")[0] not in replaced
    ]
    finals = [part for option in options.items() for part in option]
    return shlex.join([PROG, *others, *finals, "--trainer.max_epochs", "10"])
