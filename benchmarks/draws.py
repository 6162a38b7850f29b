"""Batches drawn at random against batches stratified by label: how well and how steadily scores rank.

README.md beside this file tells how, with the rule that decides, which was written down before anything was measured.
"""

import argparse
import itertools
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from fidelity import Record, Study, keep, number, positive, sampled, say, told
from figures import Difference, Numbers, common, taken
from rich.console import Console
from scores import Draw, Protocol, Running
from speed import print_table
from stability import columns_of, scored, several, spread_ratio, tau_between
from tables import Table, add_folders, figures_folder, found, nas_bench_201, transnas_micro

from lightning_zico.errors import ZiCoError
from lightning_zico.ranking import bootstrap_interval, combine, get_recipe, kendall

# Fixed before anything was measured, as is the rule in `is_built`.
SAMPLES = {"nas-bench-201": 30, "transnas-micro": 16}
NUM_REPEATS = 3
SEED = 780  # of the archs, and of the weights and the images of the first repeat; `--quick` has another
CELLS = ((2, 8), (2, 16), (4, 8))  # number of batches, samples in a batch
DRAWS: tuple[Draw, Draw] = ("random", "stratified")
LEAST_GAIN = 0.01  # of tau, as in `stability.py`

LOADERS = {"nas-bench-201": nas_bench_201, "transnas-micro": transnas_micro}
DEFAULT = get_recipe("default")
SCORES = ("zico", "default")
MEMBERS = ["zico", *DEFAULT.members]


@dataclass(frozen=True)
class Cell:
    """One score with one number of batches and one batch size.

    Args:
        num_batches: Number of batches.
        batch_size: Images in a batch.
        repeats: For each draw, the scores of the archs in each repeat, [R, A].
    """

    num_batches: int
    batch_size: int
    repeats: Mapping[Draw, Sequence[Numbers]]

    @property
    def name(self) -> str:
        """Return the name of the cell."""
        return f"{self.num_batches} x {self.batch_size}"


@dataclass(frozen=True)
class Gains:
    """By how much the tau of stratified draws exceeds that of random ones, mean over the cells.

    Args:
        accuracy: In tau with the accuracies after training.
        between: In tau between repeats.
    """

    accuracy: Difference
    between: Difference


# --- figures -------------------------------------------------------------------------------------


def mean_tau(scores: Numbers, targets: Sequence[Numbers]) -> float | None:
    """Average Kendall's tau over the targets; None if one has no value."""
    return _mean([kendall(scores, target) for target in targets])


def mean_over_repeats(repeats: Sequence[Numbers], targets: Sequence[Numbers]) -> float | None:
    """Average Kendall's tau over the repeats and the targets; None if one has no value."""
    return _mean([mean_tau(scores, targets) for scores in repeats])


def gains_of(cells: Sequence[Cell], targets: Sequence[Numbers], num_resamples: int = 1000) -> Gains:
    """Compare the two draws; in each resample, both have the same archs, repeats and targets."""
    everyone = np.arange(len(targets[0]), dtype=float)  # positions are resampled, so that one draw serves all

    def gain(tau_of: Callable[[Sequence[Numbers], Sequence[Numbers]], float | None]) -> Difference:
        def exceeds(places: Numbers, _: Numbers) -> float | None:
            own = places.astype(int)
            by_draw = [
                _mean([tau_of([r[own] for r in cell.repeats[draw]], [t[own] for t in targets]) for cell in cells])
                for draw in DRAWS
            ]
            random, stratified = by_draw
            return None if random is None or stratified is None else stratified - random

        interval = bootstrap_interval(exceeds, everyone, everyone, num_resamples=num_resamples)
        return Difference(len(everyone), exceeds(everyone, everyone), interval)

    return Gains(gain(mean_over_repeats), gain(lambda repeats, _: tau_between(_lists(repeats))))


def is_built(gains: Mapping[tuple[str, str], Gains]) -> bool:
    """Decide whether stratified draws are built into the package.

    They are if, for one of the scores, one of the two gains is at least `LEAST_GAIN` with an interval above zero in
    every space, and no gain of any score in any space has an interval below zero.

    Args:
        gains: The gains by space and score.
    """
    spaces = list(dict.fromkeys(space for space, _ in gains))
    scores = list(dict.fromkeys(score for _, score in gains))
    every = [gain for own in gains.values() for gain in (own.accuracy, own.between)]
    if any(gain.interval is not None and gain.interval.high < 0 for gain in every):
        return False
    return any(
        all(_is_clear(getattr(gains[space, score], which)) for space in spaces)
        for score in scores
        for which in ("accuracy", "between")
    )


def _is_clear(gain: Difference) -> bool:
    large = gain.value is not None and gain.value >= LEAST_GAIN
    return large and gain.interval is not None and gain.interval.low > 0


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


# --- scoring -------------------------------------------------------------------------------------


def measured(
    table: Table, base: Protocol, num_repeats: int, running: Running, folder: Path
) -> tuple[dict[str, list[Cell]], list[Numbers]]:
    """Score the archs of a table in all cells with both draws.

    Returns:
        The cells by score, of the archs that have every score everywhere, and the truths of these archs by target.
    """
    columns = {}
    for (num_batches, batch_size), draw in itertools.product(CELLS, DRAWS):
        own = replace(base, num_batches=num_batches, batch_size=batch_size, draw=draw)
        protocols = [replace(own, seed=base.seed + idx) for idx in range(num_repeats)]
        caches = scored(table, protocols, MEMBERS, running, folder)
        columns[num_batches, batch_size, draw] = {name: columns_of(caches, table, name) for name in MEMBERS}
    idxs = common(*(column for own in columns.values() for repeats in own.values() for column in repeats))
    cells: dict[str, list[Cell]] = {score: [] for score in SCORES}
    for num_batches, batch_size in CELLS:
        by_draw: dict[str, dict[Draw, list[Numbers]]] = {score: {} for score in SCORES}
        for draw in DRAWS:
            own_columns = columns[num_batches, batch_size, draw]
            for score in SCORES:
                by_draw[score][draw] = [
                    _scores_of(score, {name: taken(own_columns[name][idx], idxs) for name in MEMBERS})
                    for idx in range(num_repeats)
                ]
        for score in SCORES:
            cells[score].append(Cell(num_batches, batch_size, by_draw[score]))
    return cells, [taken([row.truths[target] for row in table.rows], idxs) for target in table.targets]


def _scores_of(score: str, members: Mapping[str, Numbers]) -> Numbers:
    if score != "default":
        return members[score]
    return np.array(combine(DEFAULT, {name: values.tolist() for name, values in members.items()}), dtype=np.float64)


# --- what is printed -----------------------------------------------------------------------------


def rows_of(score: str, cells: Sequence[Cell], targets: Sequence[Numbers]) -> list[list[str]]:
    """Format the figures of a score, a row for each cell and draw."""
    rows = []
    for cell, draw in itertools.product(cells, DRAWS):
        repeats = cell.repeats[draw]
        taus = [tau for scores in repeats if (tau := mean_tau(scores, targets)) is not None]
        deviation = statistics.stdev(taus) if len(taus) > 1 else None
        spread = spread_ratio([scores.tolist() for scores in repeats])
        figures = (mean_over_repeats(repeats, targets), deviation, spread, tau_between(_lists(repeats)))
        rows.append([f"{score}, {cell.name}, {draw}", *(number(figure, ".3f") for figure in figures)])
    return rows


def _lists(repeats: Sequence[Numbers]) -> list[list[float]]:
    return [scores.tolist() for scores in repeats]


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--repeats", type=several, default=NUM_REPEATS, help="each with its own weights and batches")
    made.add_argument("--workers", type=positive, default=1, help="processes, each with one thread")
    made.add_argument("--timeout", type=float, default=600.0, help="time limit for one arch, in seconds")
    made.add_argument("--quick", action="store_true", help="quick check with four archs and two repeats")
    add_folders(made)
    return made


def main(words: Sequence[str] | None = None) -> None:
    """Score, compare, print and save."""
    arguments = (usage := parser()).parse_args(words)
    num_repeats = 2 if arguments.quick else arguments.repeats
    base = Protocol(arguments.data / "cifar10_subset.npz", seed=0 if arguments.quick else SEED)
    try:
        tables = [LOADERS[name](arguments.data) for name in SAMPLES]
        found(base.images)
    except (ZiCoError, OSError, ValueError) as error:
        usage.error(str(error))
    console = Console(width=None if Console().is_terminal else 200)  # a file or a pipe has no width: nothing is cut
    running = Running(arguments.workers, arguments.timeout)
    gains: dict[tuple[str, str], Gains] = {}
    studies = []
    for table in tables:
        drawn = sampled(table, 4 if arguments.quick else SAMPLES[table.benchmark], base.seed)
        cells, targets = measured(drawn, base, num_repeats, running, arguments.cache)
        rows = [row for score in SCORES for row in rows_of(score, cells[score], targets)]
        num_left = len(targets[0])
        title = f"{table.benchmark}: {num_left} of {len(drawn.rows)} archs have all scores; {num_repeats} repeats"
        columns = [
            "score, cell, draw",
            "tau",
            "deviation",
            "deviation over repeats / over archs",
            "tau between repeats",
        ]
        print_table(console, title, columns, rows)
        for score in SCORES:
            gains[table.benchmark, score] = gains_of(cells[score], targets, 50 if arguments.quick else 1000)
        studies.append(Study(drawn, base, {}, {}, {}))
    rows = [[f"{space}, {score}", told(own.accuracy), told(own.between)] for (space, score), own in gains.items()]
    columns = ["space, score", "gain in tau", "gain in tau between repeats"]
    print_table(console, "Stratified minus random, mean over the cells (*: the interval excludes zero)", columns, rows)
    verdict = "built" if is_built(gains) else "not built"
    say(console, f"By the rule, stratified draws are {verdict}.")
    record: Record = {f"{space}, {score}": asdict(own) for (space, score), own in gains.items()}
    path = figures_folder(arguments) / "draws.json"
    keep(path, studies, {"num_repeats": num_repeats, "gains": record, "verdict": verdict})


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("Stopped. The same command goes on from here.")
