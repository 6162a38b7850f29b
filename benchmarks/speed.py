"""Time and memory of ZiCo against plain training steps and the published algorithm, on three kinds of networks.

README.md beside this file tells how, and holds the tables that it last printed.

Index conventions:
    B: batches
    *: shape of one parameter
"""

import argparse
import gc
import os
import random
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from networks import NETWORKS
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from lightning_zico import Candidate, ZiCo, score
from lightning_zico.bridge import Reading
from lightning_zico.candidates import Built
from lightning_zico.proxies import resolve_proxies
from lightning_zico.ranking.correlation import bootstrap_interval, spearman
from lightning_zico.scoring.placement import Placement
from lightning_zico.scoring.scorer import Scorer
from lightning_zico.spaces import get_space

Batches: TypeAlias = list[tuple[Tensor, Tensor]]
Kept: TypeAlias = dict[str, list[np.ndarray[Any, Any]]]
T = TypeVar("T")

# The package's promises: time over plain forward and backward by batch size, and how much memory may grow with B.
TIME_LIMITS = {64: 1.05, 16: 1.15}
MEMORY_TOLERANCE = 0.05

COLUMNS = (
    *("network", "batch", "B", "plain s", "ours s", "publ. s", "ours / plain", "publ. / plain"),
    *("plain MB", "ours MB", "publ. MB", "score", "rel. diff."),
)

# The others are compared with the first.
PLACEMENTS = {
    "float32": Placement(),
    "float32, channels last": Placement(channels_last=True),
    "bf16-mixed": Placement(precision="bf16-mixed"),
    "bf16-mixed, channels last": Placement(precision="bf16-mixed", channels_last=True),
}
PRECISION_SEED = 777  # of the networks, as in fidelity.py

_loss_fn = nn.CrossEntropyLoss()


# --- the three ways ------------------------------------------------------------------------------


# Each leaves the model without gradients, as before: memory that one leaves allocated would slow down the next.


def plain(model: nn.Module, batches: Batches) -> None:
    """Run forward and backward on every batch."""
    for batch in batches:
        backward(model, batch)
        model.zero_grad()


def backward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """Compute every parameter's gradient on a batch."""
    inputs, targets = batch
    _loss_fn(model(inputs), targets).backward()


def ours(model: nn.Module, batches: Batches, **options: Any) -> float:
    """Score with the package, by the weights of linear and convolutional layers."""
    result = score(model, batches, proxies=[ZiCo(parameters="published")], loss_fn=_loss_fn, **options)["zico"]
    if result.value is None:
        raise RuntimeError(result.error)
    return result.value


def published(model: nn.Module, batches: Batches) -> float:
    """Score as the published code does (SLDGroup/ZiCo, ``compute_zico.py``)."""
    return published_score(published_gradients(model, batches))


def published_gradients(model: nn.Module, batches: Batches) -> Kept:
    """Keep the gradient of every linear and convolutional weight on every batch."""
    kept: Kept = {}
    for batch in batches:
        backward(model, batch)
        for name, layer in model.named_modules():
            if isinstance(layer, nn.Conv2d | nn.Linear) and layer.weight.grad is not None:
                kept.setdefault(name, []).append(layer.weight.grad.cpu().numpy().copy())
        model.zero_grad()
    return kept


def published_score(kept: Kept) -> float:
    """Combine kept gradients; the lists are replaced by arrays, as in the published code."""
    total = 0.0
    for name in kept:
        kept[name] = gradients = np.array(kept[name])  # type: ignore[assignment]  # [B, *]
        std = np.std(gradients, axis=0)
        mean_abs = np.mean(np.abs(gradients), axis=0)
        ratio = np.sum(mean_abs[std != 0] / std[std != 0])
        total += float(np.log(ratio)) if ratio != 0 else 0.0
    return total


# --- measuring -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timing:
    """Interleaved timings of several functions.

    Args:
        medians_s: Median time of each function, in seconds.
        ratios: Median over the rounds of each function's time over the first's in the same round.
    """

    medians_s: list[float]
    ratios: list[float]


def rounds_of(functions: Sequence[Callable[[], object]], rounds: int, seed: int = 0) -> list[list[float]]:
    """Time functions one after the other, in every round in a new order drawn with the seed.

    Returns:
        Seconds of each function, a row per round.
    """
    table: list[list[float]] = []
    shuffled = random.Random(seed)
    for _ in range(rounds):
        row = [0.0] * len(functions)
        for k in shuffled.sample(range(len(functions)), len(functions)):
            start = time.perf_counter()
            functions[k]()
            row[k] = time.perf_counter() - start
        table.append(row)
    return table


def time_interleaved(functions: Sequence[Callable[[], object]], rounds: int, seed: int = 0) -> Timing:
    """Time functions that take turns (`rounds_of`), and compare them with the first."""
    table = rounds_of(functions, rounds, seed)
    columns = list(zip(*table, strict=True))
    ratios = [statistics.median(row[k] / row[0] for row in table) for k in range(len(functions))]
    return Timing([statistics.median(column) for column in columns], ratios)


def ratio_text(seconds: Sequence[float], over: Sequence[float]) -> str:
    """Write the median over the rounds of a time over another in the same round, with a 95 % bootstrap interval."""

    def median_ratio(a: Sequence[float], b: Sequence[float]) -> float:
        return statistics.median(x / y for x, y in zip(a, b, strict=True))

    interval = bootstrap_interval(median_ratio, seconds, over)
    ends = f" [{interval.low:.2f}, {interval.high:.2f}]" if interval else ""
    return f"{median_ratio(seconds, over):.2f}{ends}"


def peak_bytes(function: Callable[[], T]) -> tuple[int, T]:
    """Run a function; return its peak of torch's memory above the level before, in bytes, and its result."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = function()
    events: Any = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    total = peak = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak, result


def published_peak_bytes(model: nn.Module, batches: Batches) -> tuple[int, float]:
    """Return the same for the published algorithm, including NumPy's arrays."""
    tracemalloc.start()
    step_bytes, kept = peak_bytes(lambda: published_gradients(model, batches))
    kept_bytes = sum(array.nbytes for arrays in kept.values() for array in arrays)
    gc.collect()
    tracemalloc.reset_peak()
    result = published_score(kept)
    statistics_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Either in the last step, when all but its own gradients are kept already, or in the statistics.
    kept_before_bytes = kept_bytes * (len(batches) - 1) // len(batches)
    return max(step_bytes + kept_before_bytes, statistics_bytes), result


# --- one run of the benchmark --------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One network on B batches of one size: time and memory of plain, ours and published, in that order."""

    network: str
    batch_size: int
    num_batches: int
    timing: Timing
    peaks: tuple[int, int, int]
    scores: tuple[float, float]

    @property
    def difference(self) -> float:
        """Relative difference of our score from the published one's."""
        return abs(self.scores[0] / self.scores[1] - 1)


def random_batches(num_batches: int, batch_size: int) -> Batches:
    """Draw batches of noise and labels; time and memory do not depend on the content of an image."""
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(batch_size, 3, 32, 32, generator=generator), torch.randint(10, (batch_size,), generator=generator))
        for _ in range(num_batches)
    ]


def built(network: str) -> nn.Module:
    """Build a network in training mode from a fixed seed."""
    torch.manual_seed(0)
    return NETWORKS[network]().train()


def measure(network: str, batch_size: int, num_batches: int, rounds: int) -> Row:
    """Measure the three ways on the same batches; the run that counts memory is the warm-up of the clock."""
    model, batches = built(network), random_batches(num_batches, batch_size)
    plain(model, batches[:2])  # one-time allocations of a library do not count
    plain_peak, _ = peak_bytes(lambda: plain(model, batches[:2]))  # it keeps nothing from batch to batch
    our_peak, our_score = peak_bytes(lambda: ours(model, batches))
    published_peak, their_score = published_peak_bytes(model, batches)
    timing = time_interleaved([partial(way, model, batches) for way in (plain, ours, published)], rounds)
    peaks = (plain_peak, our_peak, published_peak)
    return Row(network, batch_size, num_batches, timing, peaks, (our_score, their_score))


def measure_samples(network: str, batch_size: int, chunk_sizes: Sequence[int], rounds: int) -> Timing:
    """Time per-sample scoring of one batch by chunk size, over one plain forward and backward of that batch."""
    model, batches = built(network), random_batches(1, batch_size)
    functions: list[Callable[[], object]] = [lambda: plain(model, batches)]
    functions += [partial(ours, model, batches, axis="sample", chunk_size=size) for size in chunk_sizes]
    for function in functions:
        function()
    return time_interleaved(functions, rounds)


def measure_precisions(num_nets: int, batch_size: int, num_batches: int) -> list[list[str]]:
    """Score networks of NAS-Bench-201 in several precisions and memory formats.

    Returns:
        A row of cells for each: its name, the median over networks of its time over float32's, Spearman's rho of its
        ZiCo with float32's with a bootstrap interval, and the number of networks that have a score in all of them.
    """
    batches, (zico,) = random_batches(num_batches, batch_size), resolve_proxies(["zico"])
    scorers = [
        Scorer(Reading.of(batches), [zico], loss_fn=_loss_fn, placement=placement) for placement in PLACEMENTS.values()
    ]
    scores: list[list[float]] = []
    ratios: list[list[float]] = []
    for idx, candidate in enumerate(get_space("nas_bench_201").candidates(num_nets, seed=PRECISION_SEED)):
        # Built and laid out before the clock runs, so that nothing is converted while it does.
        model, laid_out = scorers[0].build(candidate), scorers[0].build(candidate).to(memory_format=torch.channels_last)
        functions = [
            partial(
                scorer.score, Candidate(candidate.name, Built(laid_out if scorer.placement.channels_last else model))
            )
            for scorer in scorers
        ]
        values = [function()["zico"].value for function in functions]  # which warms up as well
        if all(value is not None for value in values):
            scores.append([float(value) for value in values if value is not None])
            ratios.append(time_interleaved(functions, rounds=1, seed=idx).ratios)
    by_placement = [list(column) for column in zip(*scores, strict=True)]
    cells = []
    for idx, name in enumerate(PLACEMENTS):
        rho = spearman(by_placement[idx], by_placement[0])
        interval = bootstrap_interval(spearman, by_placement[idx], by_placement[0])
        ratio = statistics.median(row[idx] for row in ratios)
        agreement = "" if rho is None or interval is None else f"{rho:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
        cells.append([name, f"{ratio:.2f}", agreement, str(len(scores))])
    return cells


# --- what is printed -----------------------------------------------------------------------------


def print_table(console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table of a column of names and columns of numbers; as Markdown into a file or a pipe."""
    table = Table(box=box.SIMPLE_HEAD if console.is_terminal else box.MARKDOWN)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(f"\n{title}\n", highlight=False)
    console.print(table)


def cells_of(row: Row) -> list[str]:
    """Format a row."""
    seconds = [f"{s:.3f}" for s in row.timing.medians_s]
    ratios = [f"{ratio:.2f}" for ratio in row.timing.ratios[1:]]
    megabytes = [f"{peak / 1e6:.1f}" for peak in row.peaks]
    scores = [f"{row.scores[0]:.4f}", f"{row.difference:.0e}"]
    return [row.network, str(row.batch_size), str(row.num_batches), *seconds, *ratios, *megabytes, *scores]


def verdicts(rows: Sequence[Row]) -> list[str]:
    """Describe the measurement for each promise, and whether it holds."""
    fewest, most = min(row.num_batches for row in rows), max(row.num_batches for row in rows)
    lines = []
    for size, limit in TIME_LIMITS.items():
        ratios = {r.network: r.timing.ratios[1] for r in rows if (r.batch_size, r.num_batches) == (size, fewest)}
        measured = ", ".join(f"{network} {ratio:.2f}" for network, ratio in ratios.items())
        promise = f"time over plain, batch {size}, B = {fewest}, at most {limit}"
        lines.append(f"{promise}: {verdict(measured, all(ratio <= limit for ratio in ratios.values()))}")
    peaks = {(row.network, row.batch_size, row.num_batches): row.peaks[1] for row in rows}
    growths = {}
    for (network, size, num_batches), last in peaks.items():
        first = peaks[network, size, fewest]
        if num_batches == most > fewest:
            growths[f"{network} {first / 1e6:.1f} -> {last / 1e6:.1f} MB"] = last / first
    measured = ", ".join(f"{name} ({growth - 1:+.1%})" for name, growth in growths.items())
    holds = all(abs(growth - 1) <= MEMORY_TOLERANCE for growth in growths.values())
    lines.append(f"peak memory, B = {most} as B = {fewest} within {MEMORY_TOLERANCE:.0%}: {verdict(measured, holds)}")
    worst = max(rows, key=lambda row: row.difference)
    lines.append(f"score, ours and published: at most {worst.difference:.0e} apart, relative ({worst.network})")
    return lines


def verdict(measured: str, holds: bool) -> str:
    """Format a measurement and its outcome."""
    return f"{measured}: {'holds' if holds else 'DOES NOT HOLD'}" if measured else "not measured"


def parsed_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[64, 16])
    parser.add_argument("--num-batches", nargs="+", type=int, default=[2, 8, 32], help="each at least 2")
    parser.add_argument("--repeats", type=int, default=9, help="rounds at the fewest batches; fewer at more")
    parser.add_argument("--chunk-sizes", nargs="*", type=int, default=[4, 16], help="chunk sizes of per-sample scoring")
    parser.add_argument(
        "--precision",
        nargs="?",
        type=int,
        const=100,
        metavar="NETWORKS",
        help="compare only precisions, on 100 networks",
    )
    parser.add_argument("--every", action="store_true", help="more batches at every size, not only the smallest")
    parser.add_argument("--quick", action="store_true", help="quick check with one network and two batches")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.networks, arguments.batch_sizes, arguments.num_batches = ["nas_bench_201"], [16], [2]
        arguments.repeats = 3
    return arguments


def main() -> None:
    """Measure and print."""
    arguments = parsed_arguments()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own chatter about devices
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)  # a file or a pipe has no width: nothing is cut
    console.print(f"torch {torch.__version__}, CPU, {torch.get_num_threads()} threads", highlight=False)
    smallest, fewest = min(arguments.batch_sizes), min(arguments.num_batches)
    if arguments.precision:
        title = f"Precision: ZiCo on networks of NAS-Bench-201, {fewest} batches of {smallest}"
        columns = ["precision", "time / float32", "Spearman with float32", "networks"]
        print_table(console, title, columns, measure_precisions(arguments.precision, smallest, fewest))
        return
    rows = []
    for network, size, num_batches in product(arguments.networks, arguments.batch_sizes, arguments.num_batches):
        if arguments.every or size == smallest or num_batches == fewest:
            rounds = max(1, arguments.repeats * fewest // num_batches)
            rows.append(measure(network, size, num_batches, rounds))
            print(*cells_of(rows[-1]), file=sys.stderr, flush=True)  # progress
    print_table(
        console, "Per batch: time, peak memory above weights and batches, score", COLUMNS, list(map(cells_of, rows))
    )
    cells = []
    for network in arguments.networks if arguments.chunk_sizes else ():
        timing = measure_samples(network, smallest, arguments.chunk_sizes, min(3, arguments.repeats))
        ratios = [f"{ratio:.2f}" for ratio in timing.ratios[1:]]
        cells.append([network, str(smallest), f"{timing.medians_s[0]:.3f}", *ratios])
    if cells:
        columns = ["network", "batch", "plain s", *(f"chunks of {size}" for size in arguments.chunk_sizes)]
        print_table(console, "Per sample: time over one plain forward and backward of the same batch", columns, cells)
    for line in ("", *verdicts(rows)):
        console.print(line, highlight=False)


if __name__ == "__main__":
    main()
