"""The tables of correlations in ZiCo's paper beside the figures that `fidelity.py` has written."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fidelity import say
from published import Published, published
from rich.console import Console
from speed import print_table

Record = dict[str, Any]

PAPER = "Z"  # the source's key in published.py

# The tables of the paper that are known here: benchmark and targets, and where the paper has them.
TABLES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "nas-bench-201": ("table 3", ("test_cifar10", "test_cifar100", "test_imagenet16_120")),
    "nas-bench-101": ("figure 3", ("val_accuracy",)),
    "transnas-micro": ("table 5", ("autoencoder", "class_scene", "jigsaw", "normal")),
    "nats-bench-size": ("table 3", ("test_cifar10", "test_cifar100", "test_imagenet16_120")),
}
NO_ACCURACIES = "no accuracies here"
NOT_SCORED = "not scored"


@dataclass(frozen=True)
class Cell:
    """A cell of the paper's tables: what is printed there, and ours.

    Args:
        benchmark: The benchmark.
        target: The accuracy with which scores are compared.
        proxy: The proxy.
        published: Kendall's tau and Spearman's rho in the paper.
        ours: Our figures, as `fidelity.py` writes them; None if there are none.
        reason: Why there are none; empty if there are.
    """

    benchmark: str
    target: str
    proxy: str
    published: Published
    ours: Record | None
    reason: str = ""

    @property
    def is_inside(self) -> bool | None:
        """Whether the published tau lies within our interval; None if either is missing."""
        if self.ours is None or self.ours["tau_interval"] is None or self.published.tau is None:
            return None
        low, high = self.ours["tau_interval"]
        return bool(low <= self.published.tau <= high)

    @property
    def difference(self) -> float | None:
        """Our tau minus the published one; None if either is missing."""
        known = self.ours is not None and self.ours["tau"] is not None and self.published.tau is not None
        return self.ours["tau"] - self.published.tau if known else None  # type: ignore[index,operator]


def targets_in(results: Path, benchmark: str) -> Mapping[str, Record]:
    """Read the figures of a benchmark, by target and proxy; those of `results/paper` where the others lack a proxy."""
    figures: dict[str, Record] = {}
    for path in (results / "paper" / f"{benchmark}.json", results / f"{benchmark}.json"):
        if path.is_file():
            for target, own in json.loads(path.read_text(encoding="utf-8"))["targets"].items():
                figures.setdefault(target, {}).update(own["scores"])
    return figures


def cells_of(results: Path) -> Iterator[Cell]:
    """Yield all cells of the paper's tables, in its order."""
    for benchmark, (_, targets) in TABLES.items():
        figures = targets_in(results, benchmark)
        for target in targets:
            for proxy, entry in published(benchmark, target).items():
                if entry.source != PAPER:
                    continue
                ours = figures.get(target, {}).get(proxy)
                reason = "" if ours else NOT_SCORED if target in figures else NO_ACCURACIES
                yield Cell(benchmark, target, proxy, entry, ours, reason)


def row_of(cell: Cell) -> list[str]:
    """Write a cell as a row of a table."""
    paper = [f"{value:.2f}" if value is not None else "-" for value in (cell.published.tau, cell.published.rho)]
    if cell.ours is None:
        return [cell.proxy, *paper, cell.reason, "", "", "", ""]
    own = [_told(cell.ours["tau"], cell.ours["tau_interval"]), _told(cell.ours["rho"], cell.ours["rho_interval"])]
    gap = "-" if cell.difference is None else f"{cell.difference:+.2f}"
    inside = {True: "inside", False: "outside", None: "-"}[cell.is_inside]
    return [cell.proxy, *paper, *own, str(cell.ours["n"]), gap, inside]


def _told(value: float | None, interval: Sequence[float] | None) -> str:
    ends = "" if interval is None else f" [{interval[0]:.2f}, {interval[1]:.2f}]"
    return "-" if value is None else f"{value:.2f}{ends}"


def compare(console: Console, arguments: Any) -> Record:
    """Print all tables, and return what they hold."""
    cells = list(cells_of(arguments.results))
    columns = [
        "proxy",
        "paper: tau",
        "rho",
        "ours: tau [95 %]",
        "rho [95 %]",
        "n",
        "ours - paper",
        "published tau",
    ]
    for benchmark, (place, targets) in TABLES.items():
        for target in targets:
            rows = [row_of(cell) for cell in cells if (cell.benchmark, cell.target) == (benchmark, target)]
            print_table(console, f"{benchmark}, {target} (the paper's {place})", columns, rows)
    known = [cell for cell in cells if cell.ours is not None]
    inside = sum(cell.is_inside is True for cell in known)
    said = (
        f"{len(known)} of {len(cells)} cells have figures here; the published tau is inside our interval in {inside}."
    )
    say(console, said)
    return {
        "cells": [
            asdict(cell)
            | {
                "published": {"tau": cell.published.tau, "rho": cell.published.rho},
                "is_inside": cell.is_inside,
                "difference": cell.difference,
            }
            for cell in cells
        ]
    }
