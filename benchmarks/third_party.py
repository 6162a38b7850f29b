"""Modules of other packages: which of them a Trainer trains, which the default recipe ranks, and their MACs.

README.md beside this file tells how; third_party.md holds the table that it last wrote.
"""

import argparse
import importlib
import importlib.metadata
import json
import logging
import os
import platform
import random
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import packages
import torch
from lightning.pytorch import LightningModule
from packages import Entry
from workers import outcomes

from lightning_zico import ZeroShotSelector, ZiCoCallback
from lightning_zico.errors import ZiCoError

NUM_STEPS = 2
TIMEOUT_S = 180.0
NOT_INSTALLED = "not installed"
TABLE = Path(__file__).with_suffix(".md")

# The goal of the table: the share of the modules that train which the default recipe ranks.
LEAST_RANKED = 0.95

COLUMNS = ("package", "version", "module", "trains", "ranked", "recipe", "MACs", "covered", "callback")


class TookTooLongError(BaseException):
    """Time is up. Not an `Exception`, since an exception in a proxy would become a reason in the ranking."""


@dataclass(frozen=True)
class Row:
    """The outcome of one module.

    Args:
        package: The name of its distribution.
        version: The version of the distribution; None if it is not installed.
        module: The name of the module; empty for a package that could not be tried.
        trains: None if a Trainer trains it for two steps, else the reason.
        ranked: None if the default recipe ranks it in both sizes, else the reason; empty if it was not tried.
        recipe: The recipe that was used: the default one, or one that it falls back to.
        macs: MACs of the larger size, per sample; None if they are missing.
        covered: The share of its trainable weights that ZiCo looks at.
        callback: None if training with the callback is bit-identical to training without it and there is a score, else
            the reason; empty if it was not tried.
    """

    package: str
    version: str | None
    module: str
    trains: str | None
    ranked: str | None = ""
    recipe: str | None = None
    macs: float | None = None
    covered: float | None = None
    callback: str | None = ""


# --- one module ----------------------------------------------------------------------------------


def tried(package: str, version: str | None, entry: Entry) -> Row:
    """Train a module with and without the callback, and rank it in two sizes."""
    row = Row(package, version, entry.name, trains=None)
    before = attempt(lambda: trained(entry))
    if isinstance(before, str):
        return replace(row, trains=before)
    ranking = attempt(lambda: ranked(entry))
    row = replace(row, ranked=ranking) if isinstance(ranking, str) else replace(row, **ranking)
    return replace(row, callback=attempt(lambda: beside_callback(entry, before)))


def attempt(function: Callable[[], Any]) -> Any:
    """Call a function and return its result, or the exception that it raises in one line."""
    try:
        return function()
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"


def trained(entry: Entry, *callbacks: Any) -> dict[str, torch.Tensor]:
    """Train the larger size for two steps, always from the same seeds, and return its weights and buffers."""
    module, data = seeded(entry), entry.data()
    trainer = trainer_class_of(module)(
        max_epochs=1,
        limit_train_batches=NUM_STEPS,
        limit_val_batches=int(entry.validates),
        num_sanity_val_steps=0,
        accelerator="cpu",
        logger=False,
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    seed(1)
    trainer.fit(module, data)
    if trainer.global_step == 0:
        raise RuntimeError("The trainer took no step.")
    return {name: tensor.detach().clone() for name, tensor in (*module.named_parameters(), *module.named_buffers())}


def ranked(entry: Entry) -> dict[str, Any]:
    """Rank both sizes by the default recipe, with ZiCo beside it."""
    selector = ZeroShotSelector(proxies=["default", "zico"], seed=0, enable_progress_bar=False, **entry.options)
    candidates = {size: partial(entry.build, getattr(entry, size)) for size in ("small", "big")}
    leaderboard = selector.rank(candidates, entry.data())
    card = selector.cards_["big"]
    recipe = next(iter(leaderboard.provenance["recipes"].values()))
    return {
        "ranked": None if all(row["rank"] for row in leaderboard) else next(iter(leaderboard.errors.values())),
        "recipe": recipe["used"],
        "macs": card["macs"].value if "macs" in card else None,
        "covered": card["zico"].details.get("covered") if "zico" in card else None,
    }


def beside_callback(entry: Entry, before: Mapping[str, torch.Tensor]) -> str | None:
    """Train once more, with the callback, and return what differs, or why there is no score."""
    options = {name: value for name, value in entry.options.items() if name in ("step", "loss_fn")}
    callback = ZiCoCallback(**options)
    after = trained(entry, callback)
    differing = differences(before, after)
    if differing:
        # Uninitialised memory of a module, and values that depend on a clock, also differ without the callback.
        differing = sorted(set(differing) - set(differences(before, trained(entry))))
    if differing:
        return f"training differs: {differing[0]} and {len(differing) - 1} others"
    return callback.history[0]["error"] if callback.history else "There is no score."


def differences(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> list[str]:
    """List the names of the tensors that are not bit-identical."""
    return [name for name, tensor in before.items() if not same(tensor, after.get(name))]


def same(a: torch.Tensor, b: torch.Tensor | None) -> bool:
    """Compare bit for bit, NaN with NaN."""
    return b is not None and a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def seeded(entry: Entry) -> Any:
    """Build the larger size."""
    seed(0)
    return entry.build(entry.big)


def seed(value: int) -> None:
    """Seed all generators."""
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


def trainer_class_of(module: Any) -> Any:
    """Find the Trainer of the package that a LightningModule comes from."""
    if isinstance(module, LightningModule):
        from lightning.pytorch import Trainer
    else:
        from pytorch_lightning import Trainer
    return Trainer


# --- one package ---------------------------------------------------------------------------------


def package_tried(name: str, modules: Sequence[str], journal: Path, timeout_s: float) -> None:
    """Try the modules of a package, and write lines for each: when it is tried, and its outcome.

    Args:
        name: The name of its file.
        modules: Names of modules to try; all if empty.
        journal: The file to which lines are added. Modules that are already in it are not tried again.
        timeout_s: Seconds; a module that takes longer is a row that says so.
    """
    file = importlib.import_module(f"packages.{name}_models")
    version = importlib.metadata.version(file.PACKAGE)
    done = {line["module"] for line in read(journal)}
    with journal.open("a") as out:
        for entry in file.ENTRIES:
            if entry.name in done or (modules and entry.name not in modules):
                continue
            add(out, {"module": entry.name, "package": file.PACKAGE, "version": version})
            try:
                with alarm(timeout_s):
                    row = tried(file.PACKAGE, version, entry)
            except TookTooLongError as error:
                row = Row(file.PACKAGE, version, entry.name, str(error))
            add(out, asdict(row))


def rows_of(name: str, modules: Sequence[str], timeout_s: float) -> list[Row]:
    """Try a package in its own process; if a module crashes it, continue with the next module in a new one."""
    with tempfile.TemporaryDirectory() as folder:
        journal, rows = Path(folder, "journal.jsonl"), []
        while True:
            task = partial(quietly, folder, package_tried, name, modules, journal, timeout_s)
            ((_, outcome),) = outcomes({name: task}, num_workers=1, timeout_s=timeout_s * 30)
            lines = read(journal)
            rows = [Row(**line) for line in lines if "trains" in line]
            if outcome.error is None:
                return rows
            begun = lines[-1] if lines else None
            if begun is None or "trains" in begun:
                return [*rows, Row(name, None, "", _why(outcome.error))]
            with journal.open("a") as out:
                add(out, asdict(Row(begun["package"], begun["version"], begun["module"], outcome.error)))


def _why(error: str) -> str:
    missing = error.startswith(("ModuleNotFoundError", "PackageNotFoundError"))
    return f"{NOT_INSTALLED}: {error}" if missing else error


def read(journal: Path) -> list[dict[str, Any]]:
    """Read the lines of a journal."""
    return [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []


def add(out: Any, line: Mapping[str, Any]) -> None:
    """Add a line that is not lost if the process dies."""
    out.write(json.dumps(line) + "\n")
    out.flush()


@contextmanager
def alarm(timeout_s: float) -> Iterator[None]:
    """Raise in the body when time is up, on systems that have such a signal."""

    def ring(*_: Any) -> None:
        raise TookTooLongError(f"It took longer than {timeout_s:g} s.")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def quietly(folder: str, function: Callable[..., None], *arguments: Any) -> None:
    """Call a function in its own process, in a folder for what packages write there, without logs and downloads."""
    os.chdir(folder)
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    function(*arguments)


# --- the table -----------------------------------------------------------------------------------


def document(rows: Sequence[Row]) -> str:
    """Write the counts, the table and the reasons in Markdown."""
    lines = ["# Modules of other packages", "", *counts(rows), "", *table(rows), ""]
    reasons = [
        f"- {row.package}, {row.module or 'all'}, {what}: {reason}"
        for row in rows
        for what, reason in (("trains", row.trains), ("ranked", row.ranked), ("callback", row.callback))
        if reason
    ]
    return "\n".join([*lines, *(["## Reasons", "", *reasons, ""] if reasons else [])])


def counts(rows: Sequence[Row]) -> list[str]:
    """Describe the numbers of modules, packages and outcomes in sentences."""
    modules = [row for row in rows if row.module]
    training = [row for row in modules if row.trains is None]
    ranking = [row for row in training if row.ranked is None]
    scored = [row for row in training if row.callback is None]
    identical = [row for row in training if not (row.callback or "").startswith("training differs")]
    share = len(ranking) / len(training) if training else 0.0
    versions = {name: importlib.metadata.version(name) for name in ("lightning-zico", "lightning", "torch")}
    stands_on = ", ".join(f"{name} {version}" for name, version in versions.items())
    return [
        f"{stands_on}, Python {platform.python_version()}, CPU. Data is generated; nothing is downloaded.",
        "",
        f"- {len(modules)} modules of {len({row.package for row in modules})} packages were tried.",
        f"- {len(training)} of them train: `Trainer.fit` takes two steps.",
        f"- {len(ranking)} of these are ranked in both sizes by the default recipe: {share:.1%} (goal: at least "
        f"{LEAST_RANKED:.0%}).",
        f"- {len(identical)} train bit-identically beside `ZiCoCallback`, which has a score for {len(scored)}.",
    ]


def table(rows: Sequence[Row]) -> list[str]:
    """Write the table in Markdown."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    return [*lines, *("| " + " | ".join(cells(row)) + " |" for row in rows)]


def cells(row: Row) -> list[str]:
    """Format a row."""
    return [
        row.package,
        row.version or (NOT_INSTALLED if (row.trains or "").startswith(NOT_INSTALLED) else ""),
        row.module,
        verdict(row.trains),
        verdict(row.ranked),
        row.recipe or "",
        "" if row.macs is None else f"{row.macs:,.0f}",
        "" if row.covered is None else f"{row.covered:.1%}",
        "identical" if row.callback is None else _callback(row.callback),
    ]


def verdict(reason: str | None) -> str:
    """Return whether something worked, in words; empty if it was not tried."""
    return "yes" if reason is None else ("no" if reason else "")


def _callback(reason: str) -> str:
    return ("differs" if reason.startswith("training differs") else "identical, no score") if reason else ""


# --- command line --------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Try all packages and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--package", action="append", choices=packages.names(), default=[], help="only these packages")
    parser.add_argument("--module", action="append", default=[], help="only modules of these names")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, metavar="S", help="seconds for each module")
    parser.add_argument("--output", type=Path, default=None, help="file of the table; third_party.md without a choice")
    options = parser.parse_args(arguments)
    rows = []
    for name in options.package or packages.names():
        start = time.perf_counter()
        added = rows_of(name, options.module, options.timeout)
        rows += added
        for row in added:
            print("  ".join(cells(row)), flush=True)
            for reason in filter(None, (row.trains, row.ranked, row.callback)):
                print(f"    {reason[:300]}", flush=True)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    print("\n".join(counts(rows)))
    output = options.output or (None if options.package or options.module else TABLE)
    if output is not None:
        output.write_text(document(rows))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ZiCoError as error:
        sys.exit(str(error))
