"""How well scores rank pretrained candidates, beside what is known without scoring, and the contest for a recipe.

README.md beside this file tells how, with the rule that decides, which was written down before anything was measured.
An interrupted run resumes.
"""

import argparse
import csv
import itertools
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from fidelity import Record, keep, number, positive, say
from figures import Difference, Numbers
from numpy.typing import NDArray
from rich.console import Console
from scipy import stats
from speed import print_table
from tables import add_folders, figures_folder, found
from transfer_imagenet import ACCURACIES, SOURCES, measurements, targets_in, weights_file
from transfer_zoo import SCORES, SIZES, VERSIONS, Settings, Transfer, check_installed, kept_in, transfers

from lightning_zico.ranking import Interval, kendall, mean_rank, regret_at_k

Positions: TypeAlias = NDArray[np.int64]

PARTS = ("zoo", "imagenet", "published")
PUBLISHED = Path(__file__).with_name("transfer_published.csv")

# Fixed before anything was scored, as is the rule in `decided`. What a contestant is the mean of the ranks of.
PRIOR = "prior"
CONTESTANTS: Mapping[str, tuple[str, ...]] = {
    PRIOR: (PRIOR,),
    "params": ("params",),
    "logme + prior": ("logme", PRIOR),
    "hscore + prior": ("hscore", PRIOR),
    "ridge_probe + prior": ("ridge_probe", PRIOR),
    "all three + prior": ("logme", "hscore", "ridge_probe", PRIOR),
}
# For candidates without a known accuracy, if no contestant is ahead of the prior.
WITHOUT_PRIOR: Mapping[str, tuple[str, ...]] = {
    "logme": ("logme",),
    "hscore": ("hscore",),
    "ridge_probe": ("ridge_probe",),
    "all three": ("logme", "hscore", "ridge_probe"),
}
FINALISTS = (1, 2, 4)
NUM_RESAMPLES = 1000
QUICK = Settings(
    source=(1, 3, 5, 7, 9),  # the classes that are targets otherwise
    pretraining_epochs=1,
    epochs=(("cifar10", 1), ("digits", 1), ("mnist", 1)),
    num_seeds=1,
    num_architectures=4,
)


@dataclass(frozen=True)
class Target:
    """A target to which a zoo is transferred: the truth, and everything that ranks the zoo.

    Args:
        part: The part of the benchmark; targets of a part have the same candidates.
        name: The name of the target.
        truths: Accuracies after fine-tuning, in %, by seed and half of the test images, [S, H, A]; one of either if
            only a mean is known.
        columns: Scores and static orders, higher is better, [A] each; only those that all candidates have.
        gain: By how much pretraining raises the accuracy over random weights, in points; None if it is not known.
        counts: Whether it takes part in the contest.
    """

    part: str
    name: str
    truths: Numbers
    columns: Mapping[str, Numbers]
    gain: Difference | None = None
    counts: bool = True

    @property
    def truth(self) -> Numbers:
        """The mean accuracy of each candidate, [A]."""
        return self.truths.mean(axis=(0, 1))

    @property
    def label(self) -> str:
        """The name with that of the part."""
        return f"{self.part}, {self.name}"

    def column(self, members: Sequence[str]) -> Numbers | None:
        """Return the values of a contestant, the mean of the ranks of its members; None if one is missing."""
        if not all(name in self.columns for name in members):
            return None
        if len(members) == 1:
            return self.columns[members[0]]
        return np.array(mean_rank({name: self.columns[name].tolist() for name in members}), dtype=np.float64)


# --- figures -------------------------------------------------------------------------------------


def weighted_tau(a: Numbers, b: Numbers) -> float | None:
    """Compute the weighted tau, in which exchanges at the top cost more; None if either is constant."""
    if len(set(a.tolist())) < 2 or len(set(b.tolist())) < 2:
        return None
    return float(stats.weightedtau(a, b).statistic)


@dataclass(frozen=True)
class Taus:
    """Weighted taus of several columns on several targets, of all candidates and of resamples of them.

    Args:
        values: Weighted tau by column and target; no entry if the target lacks the column.
        resampled: The same in each resample, [R]; NaN if it is not defined.
    """

    values: Mapping[tuple[str, str], float]
    resampled: Mapping[tuple[str, str], Numbers]

    @classmethod
    def of(cls, columns: Mapping[str, Sequence[str]], targets: Sequence[Target], num_resamples: int) -> "Taus":
        """Resample the candidates within a part, the same for all its targets and columns, and the seeds."""
        values: dict[tuple[str, str], float] = {}
        resampled: dict[tuple[str, str], Numbers] = {}
        for target in targets:
            draws = list(draws_of(target.truths.shape[0], target.truths.shape[2], num_resamples))
            for name, members in columns.items():
                column = target.column(members)
                if column is None:
                    continue
                tau = weighted_tau(column, target.truth)
                if tau is None:
                    continue
                values[name, target.label] = tau
                own = [
                    weighted_tau(column[idxs], target.truths[seeds][:, :, idxs].mean(axis=(0, 1)))
                    for seeds, idxs in draws
                ]
                resampled[name, target.label] = np.array([np.nan if tau is None else tau for tau in own])
        return cls(values, resampled)

    def shared(self, names: Sequence[str]) -> list[str]:
        """List the targets that have all of the columns."""
        labels = dict.fromkeys(label for _, label in self.values)
        return [label for label in labels if all((name, label) in self.values for name in names)]

    def mean(self, name: str, labels: Sequence[str]) -> Difference:
        """Average the weighted tau of a column over targets."""
        return self._over([self.resampled[name, label] for label in labels], [self.values[name, o] for o in labels])

    def difference(self, first: str, second: str) -> Difference:
        """Average the difference of two columns over all targets that both have."""
        labels = self.shared([first, second])
        gaps = [self.resampled[first, label] - self.resampled[second, label] for label in labels]
        return self._over(gaps, [self.values[first, label] - self.values[second, label] for label in labels])

    def is_ahead(self, first: str, second: str) -> bool:
        """Whether the mean difference is above zero with its interval."""
        interval = self.difference(first, second).interval
        return interval is not None and interval.low > 0

    @staticmethod
    def _over(resampled: Sequence[Numbers], values: Sequence[float]) -> Difference:
        if not values:
            return Difference(0, None, None)
        means = np.mean(resampled, axis=0)
        means = means[np.isfinite(means)]
        interval = Interval(*np.quantile(means, [0.025, 0.975]).tolist()) if len(means) else None
        return Difference(len(values), statistics.fmean(values), interval)


def draws_of(num_seeds: int, num_candidates: int, num_resamples: int) -> Iterator[tuple[Positions, Positions]]:
    """Draw seeds and candidates with replacement, the same for all targets with as many."""
    generator = np.random.default_rng(0)
    for _ in range(num_resamples):
        yield generator.integers(num_seeds, size=num_seeds), generator.integers(num_candidates, size=num_candidates)


def decided(taus: Taus, contestants: Mapping[str, Sequence[str]], champion: str) -> str | None:
    """Decide a contest: the contestant that is ahead of the champion and of all with fewer members.

    Args:
        taus: Weighted taus of the contestants.
        contestants: Members by name.
        champion: The contestant to beat.

    Returns:
        The winner; of several, the one with the highest mean gain over the champion. None if there is none.
    """
    ahead = [
        name
        for name, members in contestants.items()
        if name != champion
        and taus.is_ahead(name, champion)
        and all(
            taus.is_ahead(name, other)
            for other, own in contestants.items()
            if len(own) < len(members) and taus.shared([name, other])
        )
    ]
    return max(ahead, key=lambda name: taus.difference(name, champion).value or 0.0) if ahead else None


def best_without_prior(taus: Taus) -> str:
    """Choose the members for candidates without a known accuracy, by the same rule."""
    singles = [name for name, members in WITHOUT_PRIOR.items() if len(members) == 1]
    singles = [name for name in singles if taus.shared([name])]
    shared = taus.shared(singles)
    best = max(singles, key=lambda name: taus.mean(name, shared).value or 0.0)
    return decided(taus, WITHOUT_PRIOR, best) or best


def lost_in_finals(target: Target, column: Numbers | None, k: int, candidates: Positions, seeds: Positions) -> float:
    """Compute the points lost if the first k are fine-tuned and the best on one half of the test images is chosen.

    Args:
        target: The target.
        column: What the first k are chosen by; None for the mean over choices by chance.
        k: Number of candidates that are fine-tuned.
        candidates: The candidates there are, as positions.
        seeds: The seeds to average over.

    Returns:
        Mean over the seeds and both ways to use the halves of the accuracy on the other half: of the candidate that is
        best on average, minus that of the chosen one.
    """
    candidates = np.unique(candidates)
    best = candidates[target.truth[candidates].argmax()]
    if column is None:
        generator = np.random.default_rng(1)
        groups = [generator.permutation(candidates)[:k] for _ in range(100)]
    else:
        groups = [candidates[np.argsort(-column[candidates], kind="stable")[:k]]]
    losses = []
    for group, seed, half in itertools.product(groups, seeds.tolist(), range(target.truths.shape[1])):
        chosen = group[target.truths[seed, half, group].argmax()]
        other = target.truths[seed, half - 1]
        losses.append(float(other[best] - other[chosen]))
    return statistics.fmean(losses)


def finals_of(target: Target, column: Numbers | None, k: int, num_resamples: int) -> Difference:
    """Compute the loss of finals, with the interval over resamples of candidates and seeds."""
    num_seeds, _, num_candidates = target.truths.shape
    value = lost_in_finals(target, column, k, np.arange(num_candidates), np.arange(num_seeds))
    drawn = [
        lost_in_finals(target, column, k, idxs, seeds)
        for seeds, idxs in draws_of(num_seeds, num_candidates, num_resamples)
    ]
    return Difference(num_candidates, value, Interval(*np.quantile(drawn, [0.025, 0.975]).tolist()))


# --- targets -------------------------------------------------------------------------------------


def target_of_zoo(name: str, own: Transfer, num_resamples: int) -> Target:
    """Collect the results of the zoo on a target; the target counts if pretraining helps there."""
    architectures = list(own.halves)
    truths = np.array([own.halves[architecture] for architecture in architectures]).transpose(1, 2, 0)
    gains = truths.mean(axis=(0, 1)) - np.array([own.from_random[architecture] for architecture in architectures])
    means = [gains[idxs].mean() for _, idxs in draws_of(1, len(gains), num_resamples)]
    gain = Difference(len(gains), float(gains.mean()), Interval(*np.quantile(means, [0.025, 0.975]).tolist()))
    columns = complete({key: [own.values[key][name] for name in architectures] for key in own.values})
    columns["linear probe"] = np.array([own.probe[architecture] for architecture in architectures])
    return Target("zoo", name, truths, columns, gain, counts=gain.interval is not None and gain.interval.low > 0)


def complete(columns: Mapping[str, Sequence[float | None]]) -> dict[str, Numbers]:
    """Keep the columns in which every candidate has a number."""
    return {name: np.array(own, dtype=np.float64) for name, own in columns.items() if None not in own}


def published_targets(path: Path = PUBLISHED) -> list[Target]:
    """Read the tables that TLlib publishes."""
    with found(path).open(newline="") as file:
        lines = list(csv.DictReader(line for line in file if not line.startswith("#")))
    targets = []
    for name, group in itertools.groupby(lines, key=lambda line: line["data_set"]):
        rows = list(group)
        columns = {key: np.array([float(row[key]) for row in rows]) for key in ("hscore", "logme", "leep", "nce")}
        columns |= {
            key: np.array([float(row[of]) for row in rows]) for key, of in ((PRIOR, "imagenet"), ("params",) * 2)
        }
        truths = np.array([float(row["accuracy"]) for row in rows]).reshape(1, 1, -1)
        targets.append(Target("published", name, truths, columns))
    return targets


# --- what is printed -----------------------------------------------------------------------------


def with_interval(own: Difference, form: str = ".2f") -> str:
    """Write a number with its interval."""
    if own.value is None or own.interval is None:
        return number(own.value, form)
    return f"{own.value:{form}} [{own.interval.low:{form}}, {own.interval.high:{form}}]"


def print_target(console: Console, target: Target, taus: Taus, columns: Mapping[str, Sequence[str]]) -> None:
    """Print how well each column ranks the candidates of a target, the best first."""
    rows = []
    for name, members in columns.items():
        column = target.column(members)
        if column is None or (name, target.label) not in taus.values:
            continue
        tau, regret = kendall(column, target.truth), regret_at_k(column, target.truth, 1)
        others = [target.columns.get(other) for other in ("linear probe", "width")]
        rows.append(
            [
                name,
                number(tau, ".2f"),
                with_interval(taus.mean(name, [target.label])),
                number(regret, ".2f"),
                *(number(None if other is None else kendall(column, other), ".2f") for other in others),
            ]
        )
    rows.sort(key=lambda row: -taus.values[row[0], target.label])
    title = f"{target.label}: {len(target.truth)} candidates, {target.truth.min():.1f} to {target.truth.max():.1f} %"
    if target.gain is not None:
        title += f"; pretraining adds {with_interval(target.gain, '.1f')} points"
    if not target.counts:
        title += "; it cannot test transfer"
    names = ["ranked by", "tau", "weighted tau [95 %]", "points lost", "tau with linear probe", "tau with width"]
    print_table(console, title, names, rows)


def print_finals(console: Console, targets: Sequence[Target], num_resamples: int) -> None:
    """Print the loss of finals by each order."""
    orders: dict[str, Sequence[str] | None] = {"by chance": None, **CONTESTANTS, **WITHOUT_PRIOR}
    for target in targets:
        rows = []
        for name, members in orders.items():
            column = None if members is None else target.column(members)
            if members is None or column is not None:
                cells = [with_interval(finals_of(target, column, k, num_resamples)) for k in FINALISTS]
                rows.append([name, *cells])
        title = f"{target.label}: points lost, if the first k are fine-tuned and the best of them is taken [95 %]"
        print_table(console, title, ["first by", *(f"k = {k}" for k in FINALISTS)], rows)


def print_imagenet(console: Console, found_here: Mapping[str, Mapping[str, Record]]) -> Record:
    """Print scores of pretrained and untrained networks, and how often a score prefers the pretrained one."""
    wins: dict[str, list[bool]] = {name: [] for name in SCORES}
    for target, records in found_here.items():
        rows = []
        for name, record in records.items():
            cells = [number(record["values"][score], ".4g") for score in SCORES]
            rows.append([name, f"{record['probe']:.1f}", *cells])
        print_table(console, f"imagenet, {target}", ["network", "linear probe, %", *SCORES], rows)
        for variant, score in itertools.product(ACCURACIES, SCORES):
            pair = [
                records[name]["values"][score] for source in SOURCES if (name := f"lite{variant} {source}") in records
            ]
            if len(pair) == 2 and None not in pair:
                wins[score].append(pair[0] > pair[1])
    counted = {score: f"{sum(own)} of {len(own)}" for score, own in wins.items()}
    title = "Pretrained above untrained, networks and targets"
    print_table(console, title, ["score", "preferred"], [list(pair) for pair in counted.items()])
    return counted


def print_contest(console: Console, targets: Sequence[Target], taus: Taus) -> Record:
    """Print the contest, and decide it."""
    labels = [target.label for target in targets if target.counts]
    rows = []
    for name in (*CONTESTANTS, *WITHOUT_PRIOR):
        cells = []
        for part in ("zoo", "published"):
            own = [label for label in taus.shared([name]) if label.startswith(part)]
            cells.append(with_interval(taus.mean(name, own)))
        rows.append([name, *cells, with_interval(taus.difference(name, PRIOR), "+.2f")])
    columns = ["contestant", "zoo", "published", "minus prior, on all targets it has"]
    print_table(console, f"Mean weighted tau over the {len(labels)} targets that count [95 %]", columns, rows)
    winner = decided(taus, CONTESTANTS, PRIOR)
    fallback = None if winner is not None else best_without_prior(taus)
    if winner is not None:
        line = f"By the rule, the recipe is {winner}: {', '.join(CONTESTANTS[winner])}."
    else:
        line = (
            'By the rule, none is ahead of the prior: rank_by="prior" where it is known. Without it, the recipe is '
            f"{', '.join(WITHOUT_PRIOR[str(fallback)])}."
        )
    say(console, line)
    gains = {name: asdict(taus.difference(name, PRIOR)) for name in (*CONTESTANTS, *WITHOUT_PRIOR)}
    return {"winner": winner, "without_prior": fallback, "gains": gains}


# --- the command line ----------------------------------------------------------------------------


@dataclass
class Found:
    """Results of the parts of the benchmark.

    Args:
        targets: Targets of the contest and of the figures.
        record: What is written to the file of the figures.
    """

    targets: list[Target] = field(default_factory=list)
    record: Record = field(default_factory=dict)


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--part", action="append", choices=PARTS, help="may be repeated; default all")
    made.add_argument("--size", type=int, default=128, help="height and width of the images of `imagenet`, in pixels")
    made.add_argument("--times", type=positive, default=1, help="train the zoo so many times as long")
    made.add_argument("--quick", action="store_true", help="show in a minute or two that it runs, with other classes")
    add_folders(made)
    return made


def main(words: Sequence[str] | None = None) -> None:
    """Train, score, compare, decide, print and save."""
    arguments = (usage := parser()).parse_args(words)
    arguments.part = tuple(dict.fromkeys(arguments.part or PARTS))
    variants = (0,) if arguments.quick else tuple(ACCURACIES)
    num_resamples = 20 if arguments.quick else NUM_RESAMPLES
    try:
        check_needs(arguments.part, arguments.data, variants)
    except (ImportError, OSError) as error:
        usage.error(str(error))
    torch.set_num_threads(1)
    console = Console(width=None if Console().is_terminal else 200)  # a file or a pipe has no width: nothing is cut
    own = Found()
    if {"zoo", "imagenet"} & set(arguments.part):
        compute(console, arguments, variants, own, num_resamples)
    if "published" in arguments.part:
        own.targets += published_targets()
    if own.targets:
        compare(console, own, num_resamples)
    keep(figures_folder(arguments) / "transfer.json", [], own.record)


def compute(
    console: Console, arguments: argparse.Namespace, variants: Sequence[int], own: Found, num_resamples: int
) -> None:
    """Train and score the zoo, and score networks with ImageNet weights; both resume."""
    settings = (QUICK if arguments.quick else Settings()).longer(arguments.times)
    kept = kept_in(arguments.cache, settings)
    tell = partial(say, Console(stderr=True))
    if "zoo" in arguments.part:
        zoo = transfers(arguments.data, settings, kept, tell)
        own.targets += [target_of_zoo(name, transfer, num_resamples) for name, transfer in zoo.items()]
        for name, transfer in zoo.items():
            for reason in dict.fromkeys(transfer.errors.values()):
                scores = ", ".join(score for score, error in transfer.errors.items() if error == reason)
                say(console, f"zoo, {name}: no {scores}: {reason}")
    if "imagenet" in arguments.part:
        num_images, size = (40, 64) if arguments.quick else (250, arguments.size)
        measured = measurements(targets_in(arguments.data, num_images), variants, size, kept, tell)
        own.record |= {"imagenet": measured, "preferred": print_imagenet(console, measured)}
    seconds = {kind: kept.seconds(kind) for kind in ("pretrain", "tune", "random", "score", "probe", "imagenet")}
    say(console, f"Minutes: {', '.join(f'{kind} {of / 60:.1f}' for kind, of in seconds.items() if of)}.")
    packages = {name: version(name) for name in VERSIONS}
    own.record |= {"settings": asdict(settings), "versions": packages, "seconds": seconds}


def check_needs(parts: Sequence[str], data: Path, variants: Sequence[int]) -> None:
    """Check that the packages and files of the parts are there.

    Raises:
        ModuleNotFoundError: If a package is not installed.
        FileNotFoundError: If the images are not there.
    """
    if "zoo" in parts:
        check_installed("timm", "torchvision", "sklearn", "mlxtend")
    if "imagenet" in parts:
        check_installed("timm", "sklearn")
        for variant in variants:
            weights_file(variant)
    if {"zoo", "imagenet"} & set(parts):
        found(data / "cifar10_subset.npz")


def compare(console: Console, own: Found, num_resamples: int) -> None:
    """Print all figures of the targets, decide the contest, and note both."""
    singles = {name: (name,) for name in (*SCORES, *SIZES, "linear probe")}
    columns = {**CONTESTANTS, **WITHOUT_PRIOR, **singles}
    taus = Taus.of(columns, own.targets, num_resamples)
    for target in own.targets:
        print_target(console, target, taus, columns)
    print_finals(console, [target for target in own.targets if target.part == "zoo"], num_resamples // 5)
    counted = [target for target in own.targets if target.counts]
    labels = {target.label for target in counted}
    contest = Taus(
        {key: tau for key, tau in taus.values.items() if key[1] in labels},
        {key: tau for key, tau in taus.resampled.items() if key[1] in labels},
    )
    own.record["contest"] = print_contest(console, own.targets, contest)
    own.record["targets"] = [
        {
            "target": target.label,
            "counts": target.counts,
            "truths": target.truths.tolist(),
            "columns": {name: column.tolist() for name, column in target.columns.items()},
            "weighted_taus": {name: tau for (name, label), tau in taus.values.items() if label == target.label},
        }
        for target in own.targets
    ]


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("Stopped. The same command goes on from here.")
