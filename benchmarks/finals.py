"""How much finals lose if they learn which candidate to train next, against those of the first candidates by score.

README.md beside this file tells how.
"""

import argparse
import itertools
import math
import random
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
from fidelity import Study, keep, positive, sampled, say, study
from regret import best_first, pools_of
from rich.console import Console
from scores import Protocol, Running
from speed import print_table
from tables import LOADERS, add_folders

from lightning_zico.ranking import Interval, combine, get_recipe, kendall
from lightning_zico.ranking.aggregate import Values
from lightning_zico.ranking.learned import (
    FEWEST_LABELS,
    LearnedRank,
    choose_next,
    choose_spread,
    label_noise,
    learned_ranks,
    normal_scores,
)
from lightning_zico.scoring.choice import Choice

Record: TypeAlias = dict[str, Any]
Numbers: TypeAlias = np.ndarray[Any, Any]
Losses: TypeAlias = dict[tuple[str, int], list[float]]  # by chooser and k, one per draw of archs

DRAWS = {"nas-bench-201": 6, "nas-bench-101": 3, "transnas-micro": 6}
SEEDS = {"nas-bench-201": 791, "nas-bench-101": 777, "transnas-micro": 791}
CHOOSERS = ("random", "params", "macs", "first by score", "learned")
ENTRANTS = (4, 8, 16, 24, 32, 48, 64)
LABELS = {"clean": 0.0, "noisy": math.sqrt(math.sin(0.45 * math.pi) ** -2 - 1)}  # Kendall's tau with the truth is 0.9
LABELS_OF_ORDERS = {**LABELS, "noisier": math.sqrt(math.sin(0.35 * math.pi) ** -2 - 1)}  # and 0.7
NUM_RANDOM = 20  # orders at random in a pool, of which the mean counts
NUM_RESAMPLES = 1000


@dataclass(frozen=True)
class Pool:
    """Archs to choose from, as all choosers see them.

    Args:
        scores: Their scores by the default recipe, among these archs.
        members: Their scores by each of its members.
        sizes: Their params and macs.
        truths: Their accuracies after training.
        labels: What training them shows; the mean of two seeds.
        by_seed: What each of the two seeds shows.
    """

    scores: Values
    members: Mapping[str, Values]
    sizes: Mapping[str, Values]
    truths: Numbers
    labels: Numbers
    by_seed: Numbers


def pool_of(own: Study, idxs: Sequence[int], target: str, noise: float, seed: int) -> Pool:
    """Take some archs of a study."""
    recipe = get_recipe("default")
    columns = {name: [own.scores[name][idx] for idx in idxs] for name in {*recipe.members, "params", "macs"}}
    truths = np.array([own.truths(target)[idx] for idx in idxs])
    generator = np.random.default_rng(seed)
    labels = normal_scores(truths) + noise * generator.normal(size=len(idxs))
    # The noise of the mean, and half the difference of the seeds, are independent and have the same variance.
    apart = noise * generator.normal(size=len(idxs))
    by_seed = np.stack([labels - apart, labels + apart], axis=1)
    members = {name: columns[name] for name in recipe.members}
    sizes = {name: columns[name] for name in ("params", "macs")}
    return Pool(combine(recipe, columns), members, sizes, truths, labels, by_seed)


def orders_of(pool: Pool, most: int, seed: int) -> dict[str, list[list[int]]]:
    """List the orders in which each chooser trains at most ``most`` archs of a pool; several for chance."""
    everyone = range(len(pool.truths))
    generator = random.Random(seed)
    found = {"random": [generator.sample(everyone, len(everyone)) for _ in range(NUM_RANDOM)]}
    for name, scores in {**pool.sizes, "first by score": pool.scores}.items():
        found[name] = [best_first(everyone, scores)]
    labels: dict[int, float | None] = {}
    while len(labels) < most and (chosen := choose_next(pool.scores, pool.members, labels)) is not None:
        labels[chosen] = float(pool.labels[chosen])
    return {**found, "learned": [list(labels)]}


def loss(pool: Pool, order: Sequence[int], k: int) -> float:
    """Compute what is lost by choosing the best by label of the first ``k``, in % of best - median of the pool."""
    chosen = max(order[:k], key=lambda idx: pool.labels[idx])
    best = pool.truths.max()
    return float(100 * (best - pool.truths[chosen]) / (best - np.median(pool.truths)))


def draws_of(num_draws: int, size: int, num_pools: int, seed: int) -> list[list[list[int]]]:
    """Cut archs into draws, and draw pools of nine tenths of each draw, by their places."""
    pools = pools_of(size, 9 * size // 10, num_draws * num_pools, seed)
    return [
        [[size * draw + idx for idx in pool] for pool in pools[num_pools * draw : num_pools * (draw + 1)]]
        for draw in range(num_draws)
    ]


def losses_of(own: Study, draws: Sequence[Sequence[Sequence[int]]], noise: float) -> Losses:
    """Let all choosers choose in every pool: for each chooser and ``k``, one loss per draw, in %.

    It is the mean over the pools of the draw and over the targets.
    """
    found: Losses = {}
    for draw, pools in enumerate(draws):
        lost: dict[tuple[str, int], list[float]] = {}
        for target, (place, idxs) in itertools.product(own.table.targets, enumerate(pools)):
            seed = len(pools) * draw + place
            pool = pool_of(own, idxs, target, noise, seed)
            for name, orders in orders_of(pool, max(ENTRANTS), seed).items():
                for k in ENTRANTS:
                    lost.setdefault((name, k), []).extend(loss(pool, order, k) for order in orders)
        for key, values in lost.items():
            found.setdefault(key, []).append(statistics.fmean(values))
    return found


@dataclass(frozen=True)
class Order:
    """How well the order of all is learned from ``k`` archs spread over the ranking, mean over pools and targets.

    Args:
        k: Number of archs that were trained.
        by_score: Kendall's tau of the score with the accuracies of the archs that were not trained.
        learned: That of the learned order.
        inside: Share of all archs whose rank is in its interval, with the noise measured from the two seeds.
        inside_trained: The same share of the archs that were trained.
        width: Mean width of the intervals, as a share of the ranks.
        inside_assumed: Share of all archs whose rank is in its interval, with the noise that is assumed without seeds.
        width_assumed: Mean width of these intervals.
    """

    k: int
    by_score: float
    learned: float
    inside: float
    inside_trained: float
    width: float
    inside_assumed: float
    width_assumed: float


def learned_order(own: Study, pools: Sequence[Sequence[int]], noise: float, k: int) -> Order:
    """Learn the order of all in every pool."""
    rows = []
    for seed, idxs in enumerate(pools):
        for target in own.table.targets:
            pool = pool_of(own, idxs, target, noise, seed)
            rows.append(order_figures(pool, k))
    return Order(k, *(statistics.fmean(column) for column in zip(*rows, strict=True)))


def order_figures(pool: Pool, k: int) -> tuple[float, ...]:
    """Compute the figures of `Order` for a pool; archs without a score are left out."""
    chosen = choose_spread(pool.scores, k)
    labels = {idx: float(pool.labels[idx]) for idx in chosen}
    assumed = learned_ranks(pool.scores, pool.members, labels)
    there = [idx for idx, rank in enumerate(assumed) if rank is not None]
    measured = learned_ranks(pool.scores, pool.members, labels, label_noise(pool.by_seed[chosen].tolist()))
    truths = pool.truths[there]
    rest = [place for place, idx in enumerate(there) if idx not in chosen]
    ranks = [rank for rank in measured if rank is not None]
    taus = [
        kendall([values[place] for place in rest], truths[rest])
        for values in ([pool.scores[idx] or 0.0 for idx in there], [-rank.expected for rank in ranks])
    ]
    inside, width = coverage(ranks, truths)
    trained = [own for own, idx in zip(inside, there, strict=True) if idx in chosen]
    inside_assumed, width_assumed = coverage([rank for rank in assumed if rank is not None], truths)
    figures = statistics.fmean(inside), statistics.fmean(trained), width
    return (*(tau or 0.0 for tau in taus), *figures, statistics.fmean(inside_assumed), width_assumed)


def coverage(ranks: Sequence[LearnedRank], truths: Numbers) -> tuple[list[bool], float]:
    """Return whether the rank by accuracy of each arch is in its interval, and the mean width of all, in ranks / n."""
    better, equal = (np.sum(compare(truths[None, :], truths[:, None]), axis=1) for compare in (np.greater, np.equal))
    first, last = 1 + better, better + equal  # those of equal accuracy share these ranks
    inside = [
        rank.low <= high and low <= rank.high
        for rank, low, high in zip(ranks, first.tolist(), last.tolist(), strict=True)
    ]
    return inside, statistics.fmean(rank.high - rank.low for rank in ranks) / len(ranks)


# --- what is printed and kept --------------------------------------------------------------------


def mean_of(tables: Sequence[Sequence[float]]) -> tuple[float, Interval]:
    """Average over the draws of each table, and over tables, with an interval of resamples of the draws."""
    generator = np.random.default_rng(0)
    means = [
        np.array(values)[generator.integers(len(values), size=(NUM_RESAMPLES, len(values)))].mean(axis=1)
        for values in tables
    ]
    low, high = np.quantile(np.mean(means, axis=0), [0.025, 0.975]).tolist()
    return statistics.fmean(statistics.fmean(values) for values in tables), Interval(low, high)


def told(tables: Sequence[Sequence[float]], sign: str = "") -> str:
    """Write a mean over draws and its interval."""
    mean, interval = mean_of(tables)
    return f"{mean:{sign}.1f} [{interval.low:{sign}.1f}, {interval.high:{sign}.1f}]"


def gaps_of(losses: Losses, k: int) -> list[float]:
    """Subtract the loss of the first by score from that of learned finals, in every draw."""
    pairs = zip(losses["learned", k], losses["first by score", k], strict=True)
    return [learned - first for learned, first in pairs]


def print_losses(console: Console, title: str, tables: Sequence[Losses]) -> None:
    """Print the losses of all choosers, mean of some tables, and how much less the learning ones lose."""
    rows = [[name, *(told([own[name, k] for own in tables]) for k in ENTRANTS)] for name in CHOOSERS]
    rows.append(["learned - first by score", *(told([gaps_of(own, k) for own in tables], "+") for k in ENTRANTS)])
    print_table(console, title, ["chooser", *(f"k = {k}" for k in ENTRANTS)], rows)


def print_orders(console: Console, title: str, orders: Sequence[Order]) -> None:
    """Print how well the order of all is learned."""
    rows = [
        [
            *(str(o.k), *(f"{value:.3f}" for value in (o.by_score, o.learned, o.inside, o.inside_trained))),
            *(f"{o.width:.2f}", f"{o.inside_assumed:.3f}", f"{o.width_assumed:.2f}"),
        ]
        for o in orders
    ]
    columns = [
        *("k", "tau by score", "tau learned", "noise measured: in the interval", "of the trained", "width / n"),
        *("noise assumed: in the interval", "width / n"),
    ]
    print_table(console, title, columns, rows)


def laws(
    losses: Mapping[tuple[str, str], Losses],
    orders: Mapping[tuple[str, str], Sequence[Order]],
) -> list[str]:
    """Check which laws hold, on all benchmarks and with both kinds of labels."""
    worse = [
        f"{name}, {kind}, k = {k}"
        for (name, kind), own in losses.items()
        for k in ENTRANTS
        if mean_of([gaps_of(own, k)])[1].low > 0
    ]
    outside: dict[str, list[str]] = {"noise measured": [], "noise assumed": []}
    for (name, kind), row in orders.items():
        for own in row:
            for how, inside in zip(outside, (own.inside, own.inside_assumed), strict=True):
                if not 0.90 <= inside <= 0.98:
                    outside[how].append(f"{name}, {kind}, k = {own.k} ({100 * inside:.1f} %)")
    lines = []
    for law, broken in {
        "learned finals are nowhere worse than finals of the first by score": worse,
        **{f"90 to 98 % of the ranks are in their 95 % interval, {how}": found for how, found in outside.items()},
    }.items():
        lines.append(f"{law}: {'DOES NOT HOLD: ' + '; '.join(broken) if broken else 'holds'}")
    return lines


# --- the command line ----------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--benchmark", action="append", choices=DRAWS, help="may be repeated; default all")
    made.add_argument("--draws", type=positive, help="draws of archs; default 6, or 3 of NAS-Bench-101")
    made.add_argument("--seed", type=int, help="of the archs that are drawn; default those of README.md")
    made.add_argument("--size", type=positive, default=100, help="archs of a draw")
    made.add_argument("--pools", type=positive, default=10, help="pools of nine tenths of a draw")
    made.add_argument("--workers", type=positive, default=1, help="processes, each with one thread")
    add_folders(made)
    return made


def main(words: Sequence[str] | None = None) -> None:
    """Compute missing scores, choose in many pools, print and save."""
    arguments = (usage := parser()).parse_args(words)
    choice = Choice.of("default", with_baselines=True)
    try:
        tables = [LOADERS[name](arguments.data) for name in dict.fromkeys(arguments.benchmark or DRAWS)]
    except OSError as error:
        usage.error(str(error))
    console = Console(width=None if Console().is_terminal else 200)  # a file or a pipe has no width: nothing is cut
    studies, losses, orders = [], {}, {}
    for table in tables:
        seed = SEEDS[table.benchmark] if arguments.seed is None else arguments.seed
        protocol = Protocol(arguments.data / "cifar10_subset.npz", seed=seed)
        num_draws, size = arguments.draws or DRAWS[table.benchmark], arguments.size
        drawn = sampled(table, num_draws * size, seed)
        own = study(drawn, choice, protocol, Running(arguments.workers), arguments.cache, with_times=False)
        studies.append(own)
        draws = draws_of(num_draws, size, arguments.pools, seed)
        pools = [pool for draw in draws for pool in draw]
        what = f"{num_draws} draws of {size} archs, each with {arguments.pools} pools of {len(pools[0])}"
        say(console, f"\n{table.benchmark}: {what}.")
        for kind, noise in LABELS.items():
            losses[table.benchmark, kind] = losses_of(own, draws, noise)
            title = f"{table.benchmark}, {kind} labels: loss in % of best - median [95 %]"
            print_losses(console, title, [losses[table.benchmark, kind]])
        for kind, noise in LABELS_OF_ORDERS.items():
            counts = [k for k in ENTRANTS if k >= FEWEST_LABELS]
            orders[table.benchmark, kind] = [learned_order(own, pools, noise, k) for k in counts]
            print_orders(console, f"{table.benchmark}, {kind} labels: the order of all", orders[table.benchmark, kind])
    for kind in LABELS:
        over = [losses[table.benchmark, kind] for table in tables]
        print_losses(console, f"mean of the benchmarks, {kind} labels: loss in % of best - median [95 %]", over)
    for line in laws(losses, orders):
        say(console, line)
    record: Record = {
        "losses": [
            {"benchmark": name, "labels": kind, "chooser": chooser, "k": k, "by_draw": values}
            for (name, kind), own in losses.items()
            for (chooser, k), values in own.items()
        ],
        "orders": [
            {"benchmark": name, "labels": kind, **asdict(own)} for (name, kind), row in orders.items() for own in row
        ],
    }
    keep(arguments.results / "finals.json", studies, record)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("Stopped. The same command goes on from here.")
