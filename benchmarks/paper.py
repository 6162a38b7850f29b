"""The claims of ZiCo's paper beside what this package gives: its tables, its theorems, its searches.

README.md beside this file tells how, and has the protocol.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import paper_imagenet
import paper_search
import paper_tables
import paper_theory
import torch
from fidelity import positive
from rich.console import Console
from tables import add_folders, figures_folder

from lightning_zico import __version__

PARTS: Mapping[str, Callable[[Console, Any], dict[str, Any]]] = {
    "tables": paper_tables.compare,
    "theory": paper_theory.compare,
    "search": paper_search.compare,
    "imagenet": paper_imagenet.compare,
}


def keep(path: Path, record: Mapping[str, Any]) -> None:
    """Write figures to a file, with the versions that they depend on."""
    versions = {"torch": torch.__version__, "lightning_zico": __version__}
    machine = {"num_cpus": os.cpu_count(), "python": platform.python_version()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"versions": versions, "machine": machine, **record}, indent=1) + "\n")


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--part", action="append", choices=PARTS, help="may be repeated; default all")
    made.add_argument("--networks", type=positive, help="networks that are trained in part theory")
    made.add_argument("--trials", type=positive, help="trials of each search on NAS-Bench-201")
    made.add_argument("--seeds", type=positive, help="searches by each score, and trainings of each network")
    made.add_argument("--quick", action="store_true", help="show in two minutes that it runs")
    add_folders(made)
    return made


def with_settings(arguments: argparse.Namespace) -> argparse.Namespace:
    """Add the settings of the parts."""
    given = {"num_trials": arguments.trials, "num_seeds": arguments.seeds}
    search = paper_search.QUICK if arguments.quick else paper_search.Settings()
    arguments.search = replace(search, **{name: value for name, value in given.items() if value is not None})
    theory = paper_theory.QUICK if arguments.quick else paper_theory.Settings()
    arguments.theory = replace(
        theory,
        num_networks=arguments.networks or theory.num_networks,
        num_seeds=arguments.seeds or theory.num_seeds,
    )
    arguments.imagenet = paper_imagenet.QUICK if arguments.quick else paper_imagenet.Settings()
    return arguments


def main(words: Sequence[str] | None = None) -> None:
    """Run the parts, print and save."""
    arguments = with_settings((usage := parser()).parse_args(words))
    torch.set_num_threads(1)
    console = Console(width=None if Console().is_terminal else 250)  # a file or a pipe has no width: nothing is cut
    for part in dict.fromkeys(arguments.part or PARTS):
        try:
            keep(figures_folder(arguments) / f"paper-{part}.json", PARTS[part](console, arguments))
        except (OSError, ModuleNotFoundError) as error:
            usage.error(str(error))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("Stopped. The same command goes on from here.")
