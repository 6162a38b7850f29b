"""Candidates per second: two worker processes against one, the overhead of scoring, and long against short rankings.

All figures are ratios inside one run, of rounds that take turns. Run it on a machine that does nothing else.

Usage:
    python benchmarks/throughput.py [--nets 200] [--rounds 5] [--tiny 500 5000]
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import count, islice

import torch
from torch import Tensor, nn

from lightning_zico import Candidate, ProcessExecutor, ZeroShotSelector
from lightning_zico.bridge import Reading
from lightning_zico.scoring.choice import Choice
from lightning_zico.scoring.executors.base import Executor, Job
from lightning_zico.scoring.executors.pool import resident_bytes
from lightning_zico.scoring.executors.processes import SerialExecutor
from lightning_zico.scoring.scorer import Scorer
from lightning_zico.spaces import get_space

Batches = list[tuple[Tensor, Tensor]]

# Results of all workers before the clock starts, for one-time allocations of libraries.
NUM_WARM = 4
loss_fn = nn.CrossEntropyLoss()


def batches_of(num_samples: int, size: int = 32) -> Batches:
    """Draw two batches of random images: scores do not matter here."""
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(num_samples, 3, size, size, generator=generator), torch.arange(num_samples) % 10) for _ in range(2)
    ]


def networks(num_nets: int) -> list[Candidate]:
    """Draw networks from NAS-Bench-201."""
    made = get_space("nas_bench_201").candidates(num_nets, seed=0)
    return list(made)


def rate(executor: Executor, num_workers: int, scorer: Scorer, candidates: Sequence[Candidate]) -> tuple[float, float]:
    """Score candidates, with others before and after them, so that all workers are busy while the clock runs.

    Returns:
        Candidates per second, and the share of the workers' time in which they did not score.
    """
    begun: list[Job] = []

    def jobs() -> Iterator[Job]:
        for idx in count():
            begun.append(Job(candidates[idx % len(candidates)], repeat_idx=0))
            yield begun[-1]

    with closing(executor.run([scorer], jobs())) as done:
        first: set[int] = set()
        while len(first) < num_workers:  # each of the first jobs waits for a worker of its own to start
            job, _ = next(done)
            first |= {idx for idx in range(num_workers) if begun[idx] is job}
        for _ in range(NUM_WARM):
            next(done)
        start = time.perf_counter()
        scoring = sum(card.seconds for _, card in islice(done, len(candidates)))
        elapsed = time.perf_counter() - start
    return len(candidates) / elapsed, 1 - scoring / (elapsed * num_workers)


def compare_workers(num_nets: int, num_rounds: int) -> None:
    """Print the speed of two workers against one, and the overhead of an executor."""
    scorer = Scorer(Reading.of(batches_of(16)), Choice.of("default").proxies, loss_fn=loss_fn)
    ratios, idle, serial_idle = [], [], []
    nets, size = networks(num_nets), max(1, num_nets // num_rounds)
    for start in range(0, size * num_rounds, size):
        part = nets[start : start + size]
        one, _ = rate(ProcessExecutor(1), 1, scorer, part)
        two, share = rate(ProcessExecutor(2), 2, scorer, part)
        _, serial_share = rate(SerialExecutor(), 1, scorer, part)
        ratios.append(two / one)
        idle.append(share)
        serial_idle.append(serial_share)
        print(f"  {size} nets: one worker {one:.2f}/s, two {two:.2f}/s, ratio {two / one:.2f}", flush=True)
    print(
        f"Two workers over one, candidates per second, median of {num_rounds} rounds: {statistics.median(ratios):.2f}"
    )
    print(f"Time of two workers in which they do not score: {statistics.median(idle):.2%}")
    print(f"Time of the serial executor in which it does not score: {statistics.median(serial_idle):.2%}")


def compare_with_passes(num_nets: int) -> None:
    """Print the time of scoring ZiCo against building the network and passing forward and backward."""
    batches = batches_of(64)
    scorer = Scorer(Reading.of(batches), Choice.of("zico").proxies, loss_fn=loss_fn)
    ratios = []
    for candidate in networks(num_nets):
        ours = plain = float("inf")
        for _ in range(3):
            ours = min(ours, _seconds(lambda candidate=candidate: scorer.score(candidate)))  # type: ignore[misc]
            plain = min(plain, _seconds(lambda candidate=candidate: _passed(scorer, candidate)))  # type: ignore[misc]
        ratios.append(ours / plain)
    print(f"Scoring ZiCo over building and passing, batches of 64, {num_nets} nets: {statistics.median(ratios):.3f}")


def _passed(scorer: Scorer, candidate: Candidate) -> None:
    model = scorer.build(candidate)
    for images, labels in scorer.batches:
        model.zero_grad()
        loss_fn(model(images), labels).backward()


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def compare_lengths(few: int, many: int) -> None:
    """Print time per candidate and memory of long and short rankings, of tiny candidates from a generator."""

    def ranked(num_candidates: int) -> tuple[float, float]:
        before = resident_bytes(None)
        candidates = (Candidate(str(idx), tiny(idx)) for idx in range(num_candidates))
        selector = ZeroShotSelector(loss_fn=loss_fn, proxies="zico", enable_progress_bar=False)
        seconds = _seconds(lambda: selector.rank(candidates, batches_of(4, size=8)))
        return seconds / num_candidates, (resident_bytes(None) - before) / 1e6

    ranked(few)
    first, _ = ranked(few)
    long, grown = ranked(many)
    second, _ = ranked(few)
    ratio = long / statistics.mean([first, second])
    print(f"Time per candidate of {many} over that of {few}, which ran before and after: {ratio:.3f}")
    print(f"Memory that ranking {many} adds, their score cards included: {grown:.1f} MB")


def tiny(idx: int) -> Callable[[], nn.Module]:
    """Return a factory of a network with one hidden layer."""
    width = 4 + idx % 13
    return lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, width), nn.ReLU(), nn.Linear(width, 10))


def main() -> None:
    """Print all comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--nets", type=int, default=200, help="networks of NAS-Bench-201")
    parser.add_argument("--rounds", type=int, default=5, help="rounds in which one worker and two take turns")
    parser.add_argument("--tiny", type=int, nargs=2, default=(500, 5000), metavar=("FEW", "MANY"))
    parser.add_argument("--quick", action="store_true", help="quick check with few networks")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.nets, arguments.rounds, arguments.tiny = 2, 2, (20, 60)
    torch.set_num_threads(1)
    compare_workers(arguments.nets, arguments.rounds)
    compare_with_passes(min(arguments.nets, 20))
    compare_lengths(*arguments.tiny)


if __name__ == "__main__":
    main()
