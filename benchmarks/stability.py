"""How far scores move with the weights and batches from which they are computed, and the cost of steadier ones.

README.md beside this file tells how.
"""

import argparse
import itertools
import math
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from fidelity import Record, Study, keep, names_of, number, positive, sampled, say
from figures import Values, common, taken
from proxies import APART
from rich.console import Console
from scores import NUM_TIMED, Cache, Protocol, Running, cache_path, cifar10_batches, fill_scores, prepared
from speed import print_table
from tables import Row, Table, add_folders, found, nas_bench_201
from workers import outcomes

from lightning_zico import list_proxies
from lightning_zico.errors import ZiCoError
from lightning_zico.proxies import resolve_proxies
from lightning_zico.ranking import kendall
from lightning_zico.scoring.checks import check_batches

PROXY, TARGET = "zico", "test_cifar10"

# The rule for proposing a cell, fixed before any was measured: see `proposed`.
LEAST_MARGIN = 0.01  # of tau: a smaller difference does not matter for choosing an architecture
LEAST_REPEATS = 2  # fewer have no standard error

TIME_ROUNDS = 3


# --- figures -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """How far a score moves over repeats, for the ``n`` archs that have it in all; None where there is no value.

    Args:
        n: Number of archs.
        ratio: Standard deviation over the repeats of an arch, over that of the archs' means; lower is steadier.
        tau: Kendall's tau between the rankings of two repeats, mean over all pairs of them.
        error: The most frequent reason why an arch has no score; None if all have one.
    """

    n: int
    ratio: float | None
    tau: float | None
    error: str | None = None


@dataclass(frozen=True)
class Cell:
    """ZiCo with one number of batches and one batch size.

    Args:
        num_batches: Number of batches.
        batch_size: Images in a batch.
        taus: Kendall's tau with the accuracies after training, one per repeat.
        tau_between: Tau between the rankings of two repeats, mean over all pairs; None if there is no pair.
        ms: Median milliseconds of an arch; None if they were not measured.
    """

    num_batches: int
    batch_size: int
    taus: tuple[float, ...]
    tau_between: float | None
    ms: float | None

    @property
    def name(self) -> str:
        """Return the name of the cell."""
        return cell_name(self.num_batches, self.batch_size)

    @property
    def tau(self) -> float | None:
        """Average over the repeats."""
        return statistics.fmean(self.taus) if self.taus else None

    @property
    def deviation(self) -> float | None:
        """Standard deviation over the repeats."""
        return statistics.stdev(self.taus) if len(self.taus) >= LEAST_REPEATS else None


@dataclass(frozen=True)
class Proposal:
    """The proposed cell, the one with the best mean tau, and by how much the first may be worse."""

    cell: Cell
    best: Cell
    margin: float


def cell_name(num_batches: int, batch_size: int) -> str:
    """Return the name of a cell of the grid."""
    return f"{num_batches} x {batch_size}"


def spread_ratio(repeats: Sequence[Sequence[float]]) -> float | None:
    r"""Divide the spread of a score within an arch by the spread between archs.

    .. math::
        \sqrt{\frac{1}{A} \sum_a \mathrm{Var}_r\, s_{ra}} \Big/ \sqrt{\mathrm{Var}_a\, \bar s_a}

    Here :math:`s_{ra}` is the score of arch :math:`a` in repeat :math:`r` and :math:`\bar s_a` its mean over the
    repeats. Variances have one degree of freedom less than there are numbers.

    Args:
        repeats: At least two repeats, each with one score per arch, [R, A].

    Returns:
        The ratio, from 0, no unit; lower is steadier. None for fewer than two archs, or if their means are equal.
    """
    scores = np.asarray(repeats, dtype=np.float64)  # [R, A]
    if scores.shape[1] < 2:
        return None
    between = scores.mean(axis=0).std(ddof=1)
    return float(math.sqrt(scores.var(axis=0, ddof=1).mean()) / between) if between > 0 else None


def tau_between(repeats: Sequence[Sequence[float]]) -> float | None:
    """Average Kendall's tau over all pairs of repeats; None if there is no pair, or one has no value."""
    taus = [kendall(a, b) for a, b in itertools.combinations(repeats, 2)]
    known = [tau for tau in taus if tau is not None]
    return statistics.fmean(known) if known and len(known) == len(taus) else None


def proposed(cells: Sequence[Cell]) -> Proposal | None:
    """Choose the cheapest cell whose mean tau is not clearly below the best.

    A mean tau is clearly below if the difference exceeds the larger of `LEAST_MARGIN` and one standard error of the
    best cell's mean over its repeats. Cells with fewer than `LEAST_REPEATS` repeats, or without a time, do not take
    part; None if no cell does. Of equally cheap cells, the better one is chosen.

    Source:
        The one-standard-error rule of Breiman et al., *Classification and Regression Trees*, 1984, with a floor.
    """
    known = [(cell.tau, cell.ms, cell) for cell in cells if cell.tau is not None and cell.ms is not None]
    known = [row for row in known if len(row[2].taus) >= LEAST_REPEATS]
    if not known:
        return None
    best_tau, _, best = max(known, key=lambda row: row[0])
    margin = max(LEAST_MARGIN, statistics.stdev(best.taus) / math.sqrt(len(best.taus)))
    near = [row for row in known if best_tau - row[0] <= margin]
    return Proposal(min(near, key=lambda row: (row[1], -row[0]))[2], best, margin)


# --- scoring -------------------------------------------------------------------------------------


def repeats_of(base: Protocol, num_repeats: int, num_images: int) -> list[Protocol]:
    """List the protocols of repeats, each with its own seed and its own images; fewer if there are too few images."""
    needed = base.num_batches * base.batch_size
    idxs = range(min(num_repeats, num_images // needed))
    return [replace(base, seed=base.seed + idx, first_image=idx * needed) for idx in idxs]


def scored(
    table: Table, protocols: Sequence[Protocol], proxies: Sequence[str], running: Running, folder: Path
) -> list[Cache]:
    """Compute the missing scores of all repeats; one cache per repeat."""
    caches = []
    for idx, protocol in enumerate(protocols, 1):
        caches.append(Cache(cache_path(folder, table, protocol)))
        # The name is what the progress bar shows.
        shown = f"{cell_name(protocol.num_batches, protocol.batch_size)}, repeat {idx} of {len(protocols)}"
        fill_scores(caches[-1], replace(table, benchmark=shown), protocol, proxies, running)
    return caches


def columns_of(caches: Sequence[Cache], table: Table, proxy: str) -> list[Values]:
    """List the scores of a proxy, one column per repeat."""
    return [[cache.score(row.name, proxy) for row in table.rows] for cache in caches]


def spread_of(caches: Sequence[Cache], table: Table, proxy: str) -> Spread:
    """Measure how far a proxy's score moves over repeats."""
    columns = columns_of(caches, table, proxy)
    idxs = common(*columns)
    repeats = [taken(column, idxs) for column in columns]
    errors = Counter(error for cache in caches for row in table.rows if (error := cache.error(row.name, proxy)))
    error = errors.most_common(1)[0][0] if errors else None
    return Spread(len(idxs), spread_ratio(repeats), tau_between(repeats), error)


def time_cells(row: Row, protocols: Mapping[str, Protocol]) -> dict[str, float]:
    """Time ZiCo in every cell, in a new random order in every round.

    Returns:
        Seconds of each cell, median over the rounds.
    """
    score_with = {name: prepared(row, protocol) for name, protocol in protocols.items()}
    for score in score_with.values():
        score([PROXY])  # what a library allocates once
    seconds: dict[str, list[float]] = {name: [] for name in protocols}
    shuffled = random.Random(0)
    for _ in range(TIME_ROUNDS):
        for name in shuffled.sample(list(protocols), len(protocols)):
            start = time.perf_counter()
            score_with[name]([PROXY])
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def timed(table: Table, protocols: Mapping[str, Protocol], running: Running, folder: Path) -> dict[str, float]:
    """Measure the milliseconds of each cell, median over the first few archs, one after the other.

    All times of an arch are measured in one process, since clocks on shared machines vary within minutes.
    """
    first = next(iter(protocols.values()))
    kept = Cache(cache_path(folder, replace(table, benchmark=f"{table.benchmark}-stability-times"), first))
    rows = table.rows[:NUM_TIMED]
    missing = [row for row in rows if not {*protocols} <= {*kept.seconds[row.name]}]
    tasks = {row.name: partial(time_cells, row, protocols) for row in missing}
    for name, outcome in outcomes(tasks, 1, running.timeout_s * (TIME_ROUNDS + 1) * len(protocols)):
        if outcome.result is None:
            print(f"{name}, time: {outcome.error}", file=sys.stderr)
        else:
            kept.add(name, seconds=outcome.result)
    known = {name: [kept.seconds[r.name][name] for r in rows if name in kept.seconds[r.name]] for name in protocols}
    return {name: 1000 * statistics.median(seconds) for name, seconds in known.items() if seconds}


def measured(
    table: Table, grid: Sequence[Sequence[Protocol]], running: Running, folder: Path
) -> tuple[int, list[Cell]]:
    """Measure ZiCo in each cell of a grid, on the archs that have a score in all of it.

    Returns:
        The number of these archs, and the cells.
    """
    columns = [columns_of(scored(table, repeats, [PROXY], running, folder), table, PROXY) for repeats in grid]
    idxs = common(*itertools.chain(*columns))
    truths = [table.rows[idx].truths[TARGET] for idx in idxs]
    firsts = {cell_name(repeats[0].num_batches, repeats[0].batch_size): repeats[0] for repeats in grid}
    ms = timed(replace(table, rows=tuple(table.rows[idx] for idx in idxs)), firsts, running, folder)
    cells = []
    for (name, first), own in zip(firsts.items(), columns, strict=True):
        repeats = [taken(column, idxs) for column in own]
        taus = [tau for tau in (kendall(scores, truths) for scores in repeats) if tau is not None]
        cells.append(Cell(first.num_batches, first.batch_size, tuple(taus), tau_between(repeats), ms.get(name)))
    return len(idxs), cells


# --- what is printed -----------------------------------------------------------------------------


def print_spreads(console: Console, spreads: Mapping[str, Spread], num_archs: int) -> None:
    """Print how far each proxy moves over repeats, the steadiest first."""
    order = {name: math.inf if own.ratio is None else own.ratio for name, own in spreads.items()}
    names = sorted(spreads, key=lambda name: order[name])
    figures = {name: (spreads[name].ratio, spreads[name].tau) for name in names}
    rows = [[name, str(spreads[name].n), *(number(figure, ".3f") for figure in figures[name])] for name in names]
    columns = ["proxy", "archs", "deviation over repeats / over archs", "tau between repeats"]
    print_table(console, "Each proxy over repeats with other weights and other batches", columns, rows)
    for name in names:
        if spreads[name].error:
            say(console, f"{name} lacks {num_archs - spreads[name].n} archs, mostly: {spreads[name].error}")


def print_cells(console: Console, cells: Sequence[Cell], num_archs: int) -> None:
    """Print ZiCo's figures by number of batches and batch size."""
    rows = []
    for cell in cells:
        texts = [cell.name, str(len(cell.taus)), number(cell.tau, ".3f"), number(cell.deviation, ".3f")]
        rows.append([*texts, number(cell.tau_between, ".3f"), number(cell.ms, ".0f")])
    columns = ["batches x size", "repeats", f"tau with {TARGET}", "deviation", "tau between repeats", "ms"]
    print_table(console, f"`{PROXY}`, {num_archs} archs, mean over repeats; median time on one thread", columns, rows)


def told(proposal: Proposal | None) -> str:
    """Describe the proposal and its reason."""
    if proposal is None:
        return f"Nothing is proposed: no cell has a time and {LEAST_REPEATS} repeats with a tau."
    own, best = proposal.cell, proposal.best
    return (
        f"Proposed: num_batches = {own.num_batches}, batch size = {own.batch_size}: the cheapest cell "
        f"({own.ms:.0f} ms) whose tau, {own.tau:.3f}, is not below the best, {best.tau:.3f} of {best.name} "
        f"({best.ms:.0f} ms), by more than {proposal.margin:.3f}, the larger of {LEAST_MARGIN} and one standard error "
        "of the best."
    )


def shortage(own: Protocol, num_repeats: int, asked: int, num_images: int) -> str:
    """Describe why a cell has fewer repeats than requested."""
    needed = own.num_batches * own.batch_size
    few = {0: "it is left out", 1: "it has one, and no part in the proposal"}
    name = cell_name(own.num_batches, own.batch_size)
    result = few.get(num_repeats, f"it has {num_repeats}")
    return f"{name}: {asked} repeats of {needed} images are more than the {num_images} there are; {result}."


# --- the command line ----------------------------------------------------------------------------


def several(text: str) -> int:
    """Read a whole number from 2."""
    value = int(text)
    if value < 2:
        raise ValueError
    return value


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--sample", type=several, default=60, help="archs to draw from NAS-Bench-201")
    made.add_argument("--repeats", type=several, default=5, help="repeats, each with its own weights and batches")
    made.add_argument("--seed", type=int, default=777, help="seed of the sample and of the first repeat")
    made.add_argument("--proxies", help="joined by commas; default all but the slow ones")
    made.add_argument("--batch-size", type=positive, default=16, help="batch size for comparing proxies")
    made.add_argument("--num-batches", type=positive, default=2, help="number of batches for comparing proxies")
    made.add_argument("--grid-batch-sizes", nargs="*", type=positive, default=[8, 16, 64, 128], help="none: no grid")
    made.add_argument(
        "--grid-num-batches",
        nargs="*",
        type=several,
        default=[2, 4, 8],
        help="numbers of batches of ZiCo; none: no grid",
    )
    made.add_argument("--workers", type=positive, default=1, help="processes, each with one thread")
    made.add_argument("--timeout", type=float, default=600.0, help="time limit for one arch, in seconds")
    made.add_argument("--retry", action="store_true", help="score failed archs again")
    add_folders(made)
    return made


def main(words: Sequence[str] | None = None) -> None:
    """Score, compare, print and save."""
    arguments = (usage := parser()).parse_args(words)
    names = names_of(arguments.proxies) if arguments.proxies else [n for n in list_proxies() if n not in APART]
    base = Protocol(arguments.data / "cifar10_subset.npz", arguments.batch_size, arguments.num_batches, arguments.seed)
    pairs = itertools.product(dict.fromkeys(arguments.grid_num_batches), dict.fromkeys(arguments.grid_batch_sizes))
    bases = [replace(base, num_batches=num_batches, batch_size=size) for num_batches, size in pairs]
    try:
        table = nas_bench_201(arguments.data).asked_for([TARGET])
        with np.load(found(base.images)) as file:
            num_images = len(file["y_train"])
        protocols = repeats_of(base, arguments.repeats, num_images)
        if len(protocols) < LEAST_REPEATS:
            needed = LEAST_REPEATS * base.num_batches * base.batch_size
            raise ValueError(f"{LEAST_REPEATS} repeats need {needed} images; there are {num_images}.")
        check_batches(cifar10_batches(base, table.rows[0].resolution), resolve_proxies(names), "batch")
    except (ZiCoError, OSError, ValueError) as error:
        usage.error(str(error))
    drawn = sampled(table, arguments.sample, arguments.seed)
    running = Running(arguments.workers, arguments.timeout, arguments.retry)
    console = Console(width=None if Console().is_terminal else 200)  # a file or a pipe has no width: nothing is cut

    caches = scored(drawn, protocols, names, running, arguments.cache)
    spreads = {name: spread_of(caches, drawn, name) for name in names}
    say(console, f"\n{drawn.benchmark}: {len(drawn.rows)} of {len(table.rows)} archs, seed {base.seed}.")
    say(console, f"{len(protocols)} repeats with {base.num_batches} batches of {base.batch_size}.")
    print_spreads(console, spreads, len(drawn.rows))
    record: Record = {"num_repeats": len(protocols), "spreads": {name: asdict(own) for name, own in spreads.items()}}

    grid = [repeats_of(own, arguments.repeats, num_images) for own in bases]
    if any(grid):
        num_archs, cells = measured(drawn, [repeats for repeats in grid if repeats], running, arguments.cache)
        print_cells(console, cells, num_archs)
    for own, repeats in zip(bases, grid, strict=True):
        if len(repeats) < arguments.repeats:
            say(console, shortage(own, len(repeats), arguments.repeats, num_images))
    if any(grid):
        proposal = proposed(cells)
        say(console, told(proposal))
        record["num_archs"] = num_archs
        record["cells"] = [asdict(cell) | {"tau": cell.tau, "deviation": cell.deviation} for cell in cells]
        record["proposal"] = asdict(proposal) if proposal else None
    keep(arguments.results / "stability.json", [Study(drawn, base, {}, {}, {})], record)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("Stopped. The same command goes on from here.")
