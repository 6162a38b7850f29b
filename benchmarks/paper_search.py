"""Searches of NAS-Bench-201 by the package, beside published searches and beside a supernet at equal seconds."""

import json
import math
import operator
import statistics
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from fidelity import say
from paper_supernet import Found, search_supernet
from rich.console import Console
from scores import Protocol, cifar10_batches, records_in
from speed import print_table
from tables import Row, nas_bench_201
from torch import __version__ as torch_version
from transfer_zoo import Kept

from lightning_zico import Score, ScoreCard, __version__
from lightning_zico.scoring.executors.base import Job
from lightning_zico.scoring.scorer import Scorer
from lightning_zico.search import ZeroShotSearch
from lightning_zico.texts import count

Record = dict[str, Any]

TARGETS = ("test_cifar10", "test_cifar100")
VALIDATION = "valid_cifar10"
NUMS_TRAINED = (1, 10, 100)  # archs that a random search trains; their accuracies are in the table
WEIGHTS_SEED = 0  # of all archs in all searches, so that these share scores


class Printed(NamedTuple):
    """Accuracies in % with their deviations as printed, and the seconds of a GPU; None where no source gives it."""

    cifar10: str
    cifar100: str | None
    imagenet16: str | None
    seconds: float | None
    source: str


TE_NAS = "TE-NAS, arXiv:2102.11535, table 1"
ZICO = "ZiCo, arXiv:2301.11300, table 4"
PUBLISHED: Mapping[str, Printed] = {
    "DARTS, first order": Printed("54.30 (0.00)", "15.61 (0.00)", "16.32 (0.00)", 10889.87, TE_NAS),
    "DARTS, second order": Printed("54.30 (0.00)", "15.61 (0.00)", "16.32 (0.00)", 29901.67, TE_NAS),
    "GDAS": Printed("93.61 (0.09)", "70.70 (0.30)", "41.84 (0.90)", 28925.91, TE_NAS),
    "ENAS": Printed("54.30 (0.00)", "15.61 (0.00)", "16.32 (0.00)", 13314.51, TE_NAS),
    "RSPS": Printed("87.66 (1.69)", "58.33 (4.34)", "31.14 (3.88)", 8007.13, TE_NAS),
    "SETN": Printed("87.64 (0.00)", "59.05 (0.24)", "32.52 (0.21)", None, "ReLIZO, NeurIPS 2024, table 2"),
    "TE-NAS": Printed("93.9 (0.47)", "71.24 (0.56)", "42.38 (0.46)", 1558, TE_NAS),
    "ZiCo, paper": Printed("94.0 (0.4)", "71.1 (0.3)", "41.8 (0.3)", None, ZICO),
    "params, paper": Printed("93.7", "71.1", "41.4", None, ZICO),
    "SynFlow, paper": Printed("90.4", "71.1", "41.2", None, ZICO),
    "Zen, paper": Printed("90.6", "68.1", "40.8", None, ZICO),
}


@dataclass(frozen=True)
class Settings:
    """How much is searched.

    Args:
        scores: Scores to search by; the supernet takes as long as a search by the first.
        num_trials: Number of trials of a search.
        num_seeds: Number of searches by each score.
        batch_size: Images in a batch of scoring.
    """

    scores: tuple[str, ...] = ("default", "zico", "params")
    num_trials: int = 1000
    num_seeds: int = 5
    batch_size: int = 16


QUICK = Settings(scores=("params",), num_trials=6, num_seeds=2, batch_size=2)


class Remembering:
    """An executor that scores each arch once for all searches, with the same weights, and keeps its card in a file.

    Args:
        path: The file, with one JSON object per line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: dict[str, Record] = {record.pop("arch"): record for record in records_in(path)}

    def run(self, scorers: Sequence[Scorer], jobs: Iterable[Job]) -> Generator[tuple[Job, ScoreCard], None, None]:
        """Yield each arch's card."""
        scorer = replace(scorers[0], seed=WEIGHTS_SEED)
        for job in jobs:
            name = job.candidate.name
            if name not in self.records:
                start = time.process_time()
                card = scorer.score(job.candidate)
                self._store(card, time.process_time() - start)
            yield job, self._card(name)

    def _store(self, card: ScoreCard, seconds: float) -> None:
        scores = {name: {"value": score.value, "error": score.error} for name, score in card.scores.items()}
        record = {"scores": scores, "error": card.error, "untrainable": card.untrainable, "seconds": seconds}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"arch": card.name, **record}, allow_nan=False) + "\n")
        self.records[card.name] = record

    def _card(self, name: str) -> ScoreCard:
        record = self.records[name]
        scores = {key: Score(key, **own) for key, own in record["scores"].items()}
        return ScoreCard(name, scores, record["error"], record["seconds"], record["untrainable"])


def cache_of(folder: Path, score: str, protocol: Protocol) -> Path:
    """Return the file of the cards of all searches by a score."""
    versions = f"torch-{torch_version.partition('+')[0]}-{__version__}"
    return folder / f"paper-search-{score}-{protocol.num_batches}x{protocol.batch_size}-{versions}.jsonl"


def searched(score: str, seed: int, settings: Settings, protocol: Protocol, folder: Path) -> Record:
    """Search once, and add up the seconds of scoring all its archs and of proposing them."""
    executor = Remembering(cache_of(folder, score, protocol))
    search = ZeroShotSearch(
        "nas_bench_201",
        proxies=score,
        num_trials=settings.num_trials,
        batch_size=None,
        seed=seed,
        executor=executor,
        enable_progress_bar=False,
    )
    result = search.run(cifar10_batches(protocol, 32))
    scoring = math.fsum(executor.records[row["arch"]]["seconds"] for row in result.history)
    return {
        "arch": str(result.best),
        "cost_s": scoring + result.provenance["seconds_searching"],
        "num_archs": len(result),
    }


def own_searches(settings: Settings, protocol: Protocol, folder: Path) -> dict[str, list[Found]]:
    """Search by every score and under every seed; what is done is kept."""
    kept = Kept(cache_of(folder, "found", protocol))

    def once(score: str, seed: int) -> Found:
        name = f"{score} {settings.num_trials} {seed}"
        record = kept.once(name, lambda: searched(score, seed, settings, protocol, folder))
        return Found(record["arch"], record["cost_s"], record["num_archs"])

    return {score: [once(score, seed) for seed in range(settings.num_seeds)] for score in settings.scores}


def described(values: Sequence[float]) -> str:
    """Write a mean with its standard deviation over seeds."""
    spread = f" ({statistics.stdev(values):.2f})" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


def rows_of(found: Mapping[str, Sequence[Found]], truths: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """Write what our searches found."""
    rows = []
    for name, runs in found.items():
        num_archs = round(statistics.fmean(own.num_archs for own in runs))
        accuracies = (described([truths[target][own.arch] for own in runs]) for target in TARGETS)
        remark = f"here, one CPU thread, {count(len(runs), 'seed')}, {num_archs} archs"
        rows.append([name, *accuracies, "-", described([own.seconds for own in runs]), remark])
    return rows


def chances_of_best(num_archs: int, num_trained: int) -> list[float]:
    r"""Compute the chance of each arch, from worst to best, to be the best of some that are drawn at random.

    It is :math:`\binom{i}{n-1} / \binom{N}{n}` for the arch with :math:`i` worse ones.
    """
    chances, chance = [], num_trained / num_archs
    for num_worse in reversed(range(num_archs)):
        chances.append(chance)
        chance *= (num_worse - num_trained + 1) / max(1, num_worse)
    return chances[::-1]


def random_rows(rows: Sequence[Row]) -> list[list[str]]:
    """Write what training random archs and keeping the best one finds, in expectation, and its standard deviation."""
    ordered = sorted(rows, key=lambda row: row.truths[VALIDATION])
    written = []
    for num_trained in NUMS_TRAINED:
        chances, cells = chances_of_best(len(ordered), num_trained), []
        for target in TARGETS:
            values = [row.truths[target] for row in ordered]
            mean = math.fsum(map(operator.mul, chances, values))
            variance = math.fsum(chance * (value - mean) ** 2 for chance, value in zip(chances, values, strict=True))
            cells.append(f"{mean:.2f} ({math.sqrt(variance):.2f})")
        name = "a random arch" if num_trained == 1 else f"random, best of {num_trained}"
        remark = "the table" if num_trained == 1 else "the table: the best of them by validation accuracy on CIFAR-10"
        written.append([name, *cells, "-", "-", remark])
    return written


def compare(console: Console, arguments: Any) -> Record:
    """Search, look up the accuracies, print and return the figures."""
    settings: Settings = arguments.search
    table = nas_bench_201(arguments.data)
    truths = {target: {row.name: row.truths[target] for row in table.rows} for target in TARGETS}
    protocol = Protocol(arguments.data / "cifar10_subset.npz", settings.batch_size)
    found = own_searches(settings, protocol, arguments.cache)
    seconds = statistics.fmean(own.seconds for own in found[settings.scores[0]])
    supernets = search_supernet(arguments, round(seconds), settings.num_seeds, truths["test_cifar10"])
    names = {score: f"{score}, {settings.num_trials} trials" for score in settings.scores}
    runs = {names[score]: own for score, own in found.items()} | {f"supernet, {seconds:.0f} s": supernets}
    say(console, f"\nsearch: {settings.num_trials} trials of each search, {count(settings.num_seeds, 'seed')}.")
    published = [
        [name, own.cifar10, own.cifar100 or "-", own.imagenet16 or "-", str(own.seconds or "-"), own.source]
        for name, own in PUBLISHED.items()
    ]
    best = ["optimum", *(f"{max(truths[target].values()):.2f}" for target in TARGETS), "47.31", "", "the table; TE-NAS"]
    columns = ["search", "CIFAR-10 %", "CIFAR-100 %", "ImageNet16 %", "seconds", "source; papers: seconds of a GPU"]
    chance = random_rows(table.rows)
    title = "Test accuracy of the arch that is found, mean (deviation) over seeds; of random search, over all draws"
    print_table(console, title, columns, [*rows_of(runs, truths), *chance, *published, best])
    for own in supernets:
        say(console, f"Supernet: {own.note}")
    return {
        "settings": asdict(settings),
        "found": {
            name: [own._asdict() | {target: truths[target][own.arch] for target in TARGETS} for own in each]
            for name, each in runs.items()
        },
        "random": chance,
        "published": {name: own._asdict() for name, own in PUBLISHED.items()},
    }
