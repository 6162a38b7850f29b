"""Which number that is known before any scoring orders the untrained models of a zoo best? See README.md.

Usage:
    python benchmarks/static.py
    python benchmarks/static.py --data path/to/folder --resamples 100
"""

import argparse
import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table
from scipy import stats
from tables import default_folder, found

Numbers: TypeAlias = NDArray[np.float64]
Measure: TypeAlias = Callable[[Numbers, Numbers], float]

INCUMBENT = "params"
LIMITS = {"all": np.inf, "at most 30 M": 30.0, "at most 10 M": 10.0}  # millions of parameters
POOL_SIZE = 20
NUM_POOLS = 1000


class Zoo(NamedTuple):
    """Architectures of a table: their accuracies, families, millions of parameters and contestants' numbers."""

    top1: Numbers
    families: NDArray[np.str_]
    params: Numbers
    contestants: Mapping[str, Numbers]

    def at(self, idxs: NDArray[np.intp]) -> "Zoo":
        """Return some of the architectures, or resampled ones."""
        columns = {name: values[idxs] for name, values in self.contestants.items()}
        return Zoo(self.top1[idxs], self.families[idxs], self.params[idxs], columns)


class Estimate(NamedTuple):
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.2f}, {self.high:.2f}]"


def read_zoo(path: Path) -> Zoo:
    """Read the table; combinations are the means of the ranks among the architectures that are compared."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))

    def column(name: str) -> Numbers:
        return np.array([float(row[name]) for row in rows])

    params, macs, size = column("params_millions"), column("macs_billions"), column("img_size")
    singles = {"params": params, "macs": macs, "input_size": size}
    return Zoo(column("top1"), np.array([row["family"] for row in rows]), params, singles)


def with_combinations(zoo: Zoo) -> Zoo:
    """Add the means of two ranks, among these architectures."""
    ranks = {name: stats.rankdata(values) for name, values in zoo.contestants.items()}
    both = {
        f"{first}+{second}": ranks[first] + ranks[second]
        for first, second in (("macs", "input_size"), ("params", "macs"))
    }
    return zoo._replace(contestants={**zoo.contestants, **both})


def tau(scores: Numbers, top1: Numbers) -> float:
    """Compute Kendall's tau-b."""
    return float(stats.kendalltau(scores, top1).statistic)


def weighted_tau(scores: Numbers, top1: Numbers) -> float:
    """Compute the weighted tau, with the first places by either order counting most."""
    return float(stats.weightedtau(scores, top1).statistic)


def regret(scores: Numbers, top1: Numbers, pools: NDArray[np.intp]) -> float:
    """Compute the mean loss of the first of each pool against its best; of a tie, the mean.

    Args:
        scores: One number per architecture; higher is better.
        top1: Their accuracies, in percent.
        pools: Indices, one row per pool.

    Returns:
        The loss in accuracy points.
    """
    pooled, accuracies = scores[pools], top1[pools]  # [pools, size]
    is_first = pooled == pooled.max(axis=1, keepdims=True)
    return float((accuracies.max(axis=1) - (accuracies * is_first).sum(axis=1) / is_first.sum(axis=1)).mean())


def pools_of(num: int, seed: int) -> NDArray[np.intp]:
    """Draw pools of distinct architectures."""
    rng = np.random.default_rng(seed)
    return np.array([rng.choice(num, min(POOL_SIZE, num), replace=False) for _ in range(NUM_POOLS)])


def resampled(families: NDArray[np.str_], rng: np.random.Generator) -> NDArray[np.intp]:
    """Draw as many families as there are, with replacement, and return the indices of their members."""
    names = np.unique(families)
    members = {name: np.flatnonzero(families == name) for name in names}
    return np.concatenate([members[name] for name in rng.choice(names, len(names))])


def estimates(
    zoo: Zoo, measures: Mapping[str, Measure], *, resamples: int, seed: int
) -> dict[str, dict[str, Estimate]]:
    """Estimate each measure of each contestant, and its difference from the incumbent, ``"name minus"``.

    Args:
        zoo: The architectures.
        measures: Functions of scores and accuracies, by name.
        resamples: Number of resamples of whole families.
        seed: The seed of the resamples.
    """

    def measured(sample: Zoo) -> dict[tuple[str, str], float]:
        sample = with_combinations(sample)
        table = {(m, c): measures[m](values, sample.top1) for m in measures for c, values in sample.contestants.items()}
        return table | {(f"{m} minus", c): value - table[m, INCUMBENT] for (m, c), value in table.items()}

    rng = np.random.default_rng(seed)
    found_values, drawn = measured(zoo), [measured(zoo.at(resampled(zoo.families, rng))) for _ in range(resamples)]
    shown: dict[str, dict[str, Estimate]] = {}
    for (measure, contestant), value in found_values.items():
        low, high = np.nanquantile([draw[measure, contestant] for draw in drawn], (0.025, 0.975))
        shown.setdefault(measure, {})[contestant] = Estimate(value, float(low), float(high))
    return shown


def regrets(zoo: Zoo, *, resamples: int, seed: int) -> dict[str, Estimate]:
    """Estimate the regret of each contestant; each resample draws its own pools, the same for all."""
    rng = np.random.default_rng(seed)

    def measured(sample: Zoo, pools: NDArray[np.intp]) -> dict[str, float]:
        return {
            name: regret(values, sample.top1, pools) for name, values in with_combinations(sample).contestants.items()
        }

    drawn = []
    for draw in range(resamples):
        sample = zoo.at(resampled(zoo.families, rng))
        drawn.append(measured(sample, pools_of(len(sample.top1), seed + 1 + draw)))
    whole = measured(zoo, pools_of(len(zoo.top1), seed))
    bounds = {name: np.quantile([draw[name] for draw in drawn], (0.025, 0.975)) for name in whole}
    return {name: Estimate(value, float(bounds[name][0]), float(bounds[name][1])) for name, value in whole.items()}


def winner(sets: Sequence[tuple[Mapping[str, Mapping[str, Estimate]], Mapping[str, Estimate]]]) -> str:
    """Apply the rule of README.md to the estimates and regrets of all sets, the whole table first."""
    able = [
        name
        for name in sets[0][1]
        if all(
            figures["tau minus"][name].low > 0 and losses[name].value <= losses[INCUMBENT].value
            for figures, losses in sets
        )
    ]
    return max(able, key=lambda name: sets[0][0]["tau"][name].value, default=INCUMBENT)


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=default_folder(), help="Folder with timm_imagenet.csv.")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(words)
    console = Console(width=150, highlight=False)
    whole = read_zoo(found(arguments.data / "timm_imagenet.csv"))
    sets = []
    for title, limit in LIMITS.items():
        zoo = whole.at(np.flatnonzero(whole.params <= limit))
        how = {"resamples": arguments.resamples, "seed": arguments.seed}
        figures, losses = estimates(zoo, {"tau": tau, "weighted tau": weighted_tau}, **how), regrets(zoo, **how)
        sets.append((figures, losses))
        table = Table(title=f"{len(zoo.top1)} architectures, {title}", title_justify="left", box=box.MARKDOWN)
        for name in ("contestant", "tau", f"tau minus {INCUMBENT}'s", "weighted tau", "regret of the first, points"):
            table.add_column(name)
        for name in losses:
            cells = (figures[measure][name] for measure in ("tau", "tau minus", "weighted tau"))
            table.add_row(name, *map(str, cells), str(losses[name]))
        console.print(table)
    console.print(f"Default of zoos by the rule: {winner(sets)}")


if __name__ == "__main__":
    main()
