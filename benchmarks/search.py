"""The search: a small version of ZiCo's published one, evolution against chance, and screening of an Optuna study.

README.md beside this file tells how.
"""

import argparse
import csv
import gzip
import random
import statistics
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import optuna
import torch
import yaml
from rich.console import Console
from scores import Protocol, cifar10_batches
from speed import print_table
from tables import Table, add_folders, found, nas_bench_201
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from lightning_zico import Budget, Candidate, Score, ScoreCard
from lightning_zico.bridge import Reading
from lightning_zico.demos import DigitsDataModule
from lightning_zico.integrations import ScreeningSampler
from lightning_zico.proxies import BASELINES, resolve_proxies
from lightning_zico.scoring.executors.base import Job
from lightning_zico.scoring.scorer import Scorer
from lightning_zico.search import Evolution, ZeroShotSearch
from lightning_zico.search.costs import ArchCosts
from lightning_zico.spaces import NASBench201, NASBench201Arch
from lightning_zico.spaces.nas_bench_201 import EDGES

Batches: TypeAlias = list[tuple[Tensor, Tensor]]

HERE = Path(__file__).parent
CONFIG = HERE.parent / "examples" / "configs" / "search_imagenet_450m.yaml"
PARTS = ("reduced", "chance", "nas-bench-201", "screening")
VALIDATION_AND_TEST = ("valid_cifar10", "test_cifar10")
TRAININGS = (5, 10, 20, 50)

# The networks that the published searches found, by million MACs (SLDGroup/ZiCo).
PUBLISHED = {
    450: "SuperConvK3BNRELU(3,16,2,1)SuperResIDWE1K7(16,40,2,40,1)SuperResIDWE2K7(40,80,2,64,1)"
    "SuperResIDWE4K7(80,96,2,96,5)SuperResIDWE2K7(96,224,2,224,5)SuperConvK1BNRELU(224,2048,1,1)",
    600: "SuperConvK3BNRELU(3,24,2,1)SuperResIDWE1K7(24,48,2,48,1)SuperResIDWE2K7(48,72,2,72,1)"
    "SuperResIDWE6K5(72,160,2,96,1)SuperResIDWE6K7(160,200,2,112,5)SuperResIDWE6K7(200,168,1,168,4)"
    "SuperConvK1BNRELU(168,2048,1,1)",
    1000: "SuperConvK3BNRELU(3,48,2,1)SuperResIDWE1K7(48,48,2,72,1)SuperResIDWE1K7(48,80,2,128,1)"
    "SuperResIDWE2K7(80,160,2,144,3)SuperResIDWE4K7(160,288,2,232,4)SuperResIDWE6K5(288,232,1,208,5)"
    "SuperConvK1BNRELU(232,2048,1,1)",
}


# --- ZiCo's search for ImageNet ------------------------------------------------------------------


def configured(path: Path, **changes: Any) -> ZeroShotSearch:
    """Read a search from its file, with other images than the file names.

    Args:
        path: A file with options of ``lightning-zico search``, such as in ``examples/configs``.
        changes: Arguments of `ZeroShotSearch` that override those in the file.
    """
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    del config["data"]
    made = {"budget": Budget(**config["budget"]), "sampler": Evolution(**config["sampler"]), "resolution": 224}
    # The images are the benchmark's, in batches of the size that its command line names: they are not cut.
    return ZeroShotSearch(**(config | made | {"accelerator": None, "batch_size": None} | changes))


def batches_of(data: Path, batch_size: int, resolution: int) -> Batches:
    """Read two batches of CIFAR-10's images, else of digits, enlarged."""
    if (data / "cifar10_subset.npz").is_file():
        return cifar10_batches(Protocol(data / "cifar10_subset.npz", batch_size), resolution)
    digits = DigitsDataModule(batch_size)
    digits.setup("fit")
    pairs = [pair for pair, _ in zip(digits.train_dataloader(), range(2))]  # noqa: B905  # two of many
    return [(interpolate(images.expand(-1, 3, -1, -1), size=resolution), labels) for images, labels in pairs]


def scored(search: ZeroShotSearch, batches: Batches, texts: Mapping[str, str]) -> dict[str, float]:
    """Score archs as a search does."""
    proxies = resolve_proxies([search.proxies])
    scorer = Scorer(Reading.of(batches), proxies, loss_fn=cross_entropy, seed=search.seed)
    scores = {}
    for name, text in texts.items():
        arch = search.space.parse(text)
        build = lambda arch=arch: search.space.build(arch, search.num_classes)  # noqa: E731
        scores[name] = scorer.score(Candidate(name, build, search.space.blocks(arch)))[proxies[0].name].value
    return scores


def microseconds_of_rejection(search: ZeroShotSearch, num_archs: int = 2000) -> float:
    """Time the proposal of a mutant of the published network, and the check that it is over a budget."""
    space, rng = search.space, random.Random(0)
    costs = ArchCosts(space, Budget(macs=1.0), (), resolution=224, num_classes=1000, in_channels=3)
    parent = space.parse(PUBLISHED[450])
    start = time.perf_counter()
    for _ in range(num_archs):
        arch = space.mutate(parent, rng)
        str(arch)
        if costs.excess(arch) is None:
            raise AssertionError("an arch of less than one MAC")
    return 1e6 * (time.perf_counter() - start) / num_archs


def reduced(console: Console, arguments: argparse.Namespace) -> None:
    """Run the small version of the published search, and compare with the published networks."""
    search = configured(CONFIG, seed=arguments.first_seed, storage=arguments.storage, num_trials=arguments.trials)
    search.sampler = replace(search.sampler, population_size=arguments.population)
    batches = batches_of(arguments.data, arguments.batch_size, arguments.resolution)
    if arguments.storage is not None:
        arguments.storage.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    result = search.run(batches)
    minutes = (time.perf_counter() - start) / 60
    told = result.provenance
    console.print(
        f"{CONFIG.name}: {len(result)} trials, population {told['sampler']['population_size']}, "
        f"2 batches of {arguments.batch_size} at {arguments.resolution} pixels, {minutes:.1f} minutes."
    )
    console.print(result.notes[0])
    if told["seconds"]:
        console.print(f"Scoring took {100 * (1 - told['seconds_searching'] / told['seconds']):.1f} % of the time.")
    console.print(f"An arch is proposed and rejected in {microseconds_of_rejection(search):.0f} microseconds.")
    texts = {"the best that was found": result.best, "the start": search.sampler.start}
    texts |= {f"published, {millions}M": text for millions, text in PUBLISHED.items()}
    scores = scored(search, batches, texts)
    rows = [
        [
            name,
            f"{scores[name]:.2f}",
            f"{search.space.macs(search.space.parse(text), 224, num_classes=1000) / 1e6:.1f}",
            str(search.space.depth(search.space.parse(text))),
            text,
        ]
        for name, text in texts.items()
    ]
    print_table(console, "In the same protocol", ["network", "score", "M MACs", "layers", "arch"], rows)
    arguments.results.mkdir(parents=True, exist_ok=True)
    result.to_json(arguments.results / "search-reduced.json")


# --- evolution against chance --------------------------------------------------------------------


def chance(console: Console, arguments: argparse.Namespace) -> None:
    """Compare the best score of evolution and of random archs, on PlainNet within 450 million MACs."""
    batches = batches_of(arguments.data, 8, 32)
    best: dict[str, list[float]] = {"evolution": [], "random": []}
    for seed in arguments.seeds:
        for name, values in best.items():
            search = configured(
                CONFIG, storage=None, seed=seed, num_trials=arguments.chance_trials, proxies=arguments.chance_proxy
            )
            evolution = replace(search.sampler, population_size=arguments.population, tournament_size=8)
            search.sampler = evolution if name == "evolution" else "random"
            values.append(search.run(batches).ranked[0]["score"])
            console.print(f"seed {seed}, {name}: {values[-1]:.2f}")
    rows = [[name, f"{statistics.median(v):.2f}", f"{min(v):.2f}", f"{max(v):.2f}"] for name, v in best.items()]
    protocol = f"{arguments.chance_proxy}, 2 batches of 8 at 32 pixels, {arguments.chance_trials} trials"
    title = f"{protocol}: best score of {len(arguments.seeds)} seeds"
    print_table(console, title, ["sampler", "median", "least", "most"], rows)


# --- NAS-Bench-201: scores and accuracies are looked up ------------------------------------------


class Lookup:
    """An executor that looks up scores that others have computed, instead of scoring.

    Args:
        cards: The score card of each arch.
    """

    def __init__(self, cards: Mapping[str, ScoreCard]) -> None:
        self._cards = cards

    def run(self, scorers: Sequence[Scorer], jobs: Iterable[Job]) -> Generator[tuple[Job, ScoreCard], None, None]:
        """Yield each arch's card."""
        for job in jobs:
            yield job, self._cards[job.candidate.name]


def without_dead_edges(arch: NASBench201Arch) -> NASBench201Arch:
    """Put ``none`` on the edges that no path from input to output takes: the function is the same."""
    used = [op != "none" for op in arch.ops]
    pairs = list(zip(EDGES, used, strict=True))
    reached, leading = {0}, {3}
    for (source, target), is_used in pairs:
        if is_used and source in reached:
            reached.add(target)
    for (source, target), is_used in reversed(pairs):
        if is_used and target in leading:
            leading.add(source)
    ops = (op if s in reached and t in leading else "none" for (s, t), op in zip(EDGES, arch.ops, strict=True))
    return NASBench201Arch(tuple(ops))


def cards_by_others(folder: Path, table: Table) -> dict[str, ScoreCard]:
    """Read NASWOT and SynFlow as NAS-Bench-Suite-Zero computed them; MACs and parameters are the space's."""
    path = found(folder / "nas_bench_201_proxies_by_others_cifar10.csv.gz")
    with gzip.open(path, "rt", newline="") as file:
        by_place = {int(line["index"]): line for line in csv.DictReader(file)}
    place_of = {row.name: place for place, row in enumerate(table.rows)}
    space, cards = NASBench201(), {}
    for row in table.rows:
        arch = space.parse(row.name)
        line = by_place[place_of[str(without_dead_edges(arch))]]
        values = {"naswot": float(line["nwot"]), "synflow": float(line["synflow"])}
        values |= {"macs": float(space.macs(arch)), "params": float(space.params(arch))}
        cards[row.name] = ScoreCard(row.name, {name: Score(name, value) for name, value in values.items()})
    return cards


def unread_batches() -> list[tuple[Tensor, Tensor]]:
    """Make two batches for an executor that looks scores up."""
    return [(torch.full((1, 3, 32, 32), float(idx)), torch.zeros(1, dtype=torch.long)) for idx in range(2)]


def nas_bench(console: Console, arguments: argparse.Namespace) -> None:
    """Search with looked-up scores, and look up the accuracy of the result."""
    table = nas_bench_201(arguments.data)
    accuracy = {row.name: row.truths["test_cifar10"] for row in table.rows}
    cards = cards_by_others(arguments.data, table)
    most = max(accuracy.values())
    batches = unread_batches()
    rows = []
    for proxies in ("without_blocks", "naswot", "params"):
        for sampler in (Evolution(), "random"):
            found_archs = []
            for seed in arguments.seeds:
                search = ZeroShotSearch(
                    "nas_bench_201",
                    proxies=proxies,
                    num_trials=1000,
                    sampler=sampler,
                    seed=seed,
                    executor=Lookup(cards),
                )
                found_archs.append(str(search.run(batches).best))
            values = [accuracy[arch] for arch in found_archs]
            name = sampler if isinstance(sampler, str) else "evolution"
            median = statistics.median(values)
            rows.append([proxies, name, f"{median:.2f}", f"{min(values):.2f}", f"{most - median:.2f}"])
    largest = max(cards, key=lambda arch: cards[arch]["params"].value)
    rows.append(["params", "all 15,625", f"{accuracy[largest]:.2f}", "", f"{most - accuracy[largest]:.2f}"])
    rng = np.random.default_rng(0)
    drawn = float(np.median(rng.choice(list(accuracy.values()), 1000)))
    rows.append(["none", "one arch", f"{drawn:.2f}", "", f"{most - drawn:.2f}"])
    columns = ["score", "sampler", "median accuracy %", "least", "regret"]
    title = f"NAS-Bench-201, CIFAR-10: what 1,000 trials find, {len(arguments.seeds)} seeds; the best has {most:.2f} %"
    print_table(console, title, columns, rows)
    console.print("Scores are looked up: naswot is NAS-Bench-Suite-Zero's nwot; without_blocks combines it with MACs.")


# --- screening of an Optuna study: scores and trainings are looked up -----------------------------


class NamedArch(nn.Identity):
    """Stands for the network of an arch, whose score and accuracy are looked up."""

    def __init__(self, arch: NASBench201Arch) -> None:
        super().__init__()
        self.arch = str(arch)


class ProposalLookup(Lookup):
    """The same for proposals of a study, which are named by their parameters."""

    def run(self, scorers: Sequence[Scorer], jobs: Iterable[Job]) -> Generator[tuple[Job, ScoreCard], None, None]:
        """Yield the card of each proposal's arch."""
        missing = {name: Score(name, None, "It is not looked up.") for name in BASELINES}
        for job in jobs:
            known = self._cards[job.candidate.build().arch]
            yield job, ScoreCard(job.candidate.name, missing | dict(known.scores))


def study_of(
    base: optuna.samplers.BaseSampler,
    proxies: str | None,
    table: Table,
    cards: Mapping[str, ScoreCard],
    num_trials: int,
) -> list[str]:
    """Let a study train archs of NAS-Bench-201, by the accuracies on the validation images.

    Args:
        base: The sampler.
        proxies: What screens eight of its proposals for each trial; None for no screening.
        table: The accuracies.
        cards: The scores.
        num_trials: Number of trainings.

    Returns:
        The archs in the order in which they were trained.
    """
    space, accuracy, archs = NASBench201(), {row.name: row.truths["valid_cifar10"] for row in table.rows}, list[str]()

    def suggest(trial: optuna.trial.BaseTrial) -> NamedArch:
        return NamedArch(space.suggest(trial))

    def objective(trial: optuna.Trial) -> float:
        archs.append(suggest(trial).arch)
        return accuracy[archs[-1]]

    if proxies is not None:
        settings = {"executor": ProposalLookup(cards), "loss_fn": cross_entropy}
        base = ScreeningSampler(base, suggest, unread_batches(), proxies=proxies, **settings)
    study = optuna.create_study(sampler=base, direction="maximize")
    study.optimize(objective, n_trials=num_trials)
    return archs


def screening(console: Console, arguments: argparse.Namespace) -> None:
    """Compare the best arch after some trainings, with and without screening of what is trained."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    table = nas_bench_201(arguments.data)
    cards = cards_by_others(arguments.data, table)
    validation, test = ({row.name: row.truths[name] for row in table.rows} for name in VALIDATION_AND_TEST)
    numbers = [num for num in TRAININGS if num <= arguments.screening_trials]
    rows = []
    for name, sampler in {"random": optuna.samplers.RandomSampler, "TPE": optuna.samplers.TPESampler}.items():
        for proxies in (None, "params", "without_blocks"):
            lost: dict[int, list[float]] = {num: [] for num in numbers}
            for seed in arguments.seeds:
                archs = study_of(sampler(seed=seed), proxies, table, cards, max(numbers))
                for num in numbers:
                    best = max(archs[:num], key=lambda arch: validation[arch])
                    lost[num].append(max(test.values()) - test[best])
            cells = [f"{np.mean(own):.2f} +- {np.std(own) / len(own) ** 0.5:.2f}" for own in lost.values()]
            rows.append([name, proxies or "-", *cells])
    title = f"NAS-Bench-201, CIFAR-10: points lost, mean of {len(arguments.seeds)} seeds and its standard error"
    print_table(console, title, ["sampler", "screened by", *(f"{num} trainings" for num in numbers)], rows)


# --- the command line ----------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--part", action="append", choices=PARTS, help="may be repeated; default all")
    made.add_argument("--storage", type=Path, help="file of the trials, from which a killed run resumes")
    made.add_argument("--trials", type=int, default=300, help="trials of the small search")
    made.add_argument("--population", type=int, default=64, help="population of the small search")
    made.add_argument("--batch-size", type=int, default=16, help="batch size of the small search")
    made.add_argument("--resolution", type=int, default=96, help="size of the images of the small search, in pixels")
    made.add_argument("--chance-trials", type=int, default=150, help="trials of each search against chance")
    made.add_argument("--chance-proxy", default="zico", help="proxy of these searches")
    made.add_argument("--screening-trials", type=int, default=max(TRAININGS), help="trainings of each Optuna study")
    made.add_argument("--first-seed", type=int, default=0)
    made.add_argument("--num-seeds", type=int, default=5)
    add_folders(made, cache=False)
    return made


def main(words: Sequence[str] | None = None) -> None:
    """Search, print and save."""
    arguments = (usage := parser()).parse_args(words)
    arguments.seeds = range(arguments.first_seed, arguments.first_seed + arguments.num_seeds)
    console = Console(width=None if Console().is_terminal else 400)
    runs = {"reduced": reduced, "chance": chance, "nas-bench-201": nas_bench, "screening": screening}
    for part in dict.fromkeys(arguments.part or PARTS):
        try:
            runs[part](console, arguments)
        except OSError as error:
            usage.error(str(error))


if __name__ == "__main__":
    main()
