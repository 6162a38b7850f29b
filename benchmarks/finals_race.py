"""A race of finals against successive halving of everyone, on real photographs: accuracy lost for the same epochs.

README.md beside this file tells how.

Index conventions:
    N: images
"""

import argparse
import hashlib
import json
import logging
import math
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from fidelity import keep, say
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from networks import Cell, Residual, VisionTransformer, head, relu_conv_norm
from regret import best_first, pools_of
from rich.console import Console
from speed import print_table
from tables import add_folders, figures_folder, found
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transfer_zoo import Data, Kept, accuracies, check_installed, cifar10

from lightning_zico import ZeroShotSelector
from lightning_zico.engine.scope import preserved_rng, seed_all
from lightning_zico.ranking import combine, get_recipe, kendall
from lightning_zico.selection.entrants import Entrants
from lightning_zico.selection.finalist import Conditions, Finalist, Training
from lightning_zico.selection.rounds import FinalsRules, hold_finals
from lightning_zico.zoo.classifiers import ImageClassifier

Record: TypeAlias = dict[str, Any]
Curve: TypeAlias = Sequence[Sequence[float]]  # after each epoch, the accuracy on each half of the test images, in %

VERSIONS = ("torch", "timm", "lightning", "lightning_zico")  # packages that the results depend on
MEMBERS = get_recipe("default").members
NUM_RANDOM = 20  # orders at random in a pool, of which the mean counts
NUM_RESAMPLES = 1000
FACTOR = 3  # of successive halving of everyone
HALVING = "halving of everyone"


@dataclass(frozen=True)
class Settings:
    """What takes part, and how it is trained.

    Args:
        sizes: The number of sizes of each family, from the smallest.
        num_epochs: Number of epochs of a full training.
        num_images: Number of images to train on.
        num_test_images: Number of images of both test halves together.
        num_seeds: Number of trainings of each candidate.
        batch_size: Images in a batch.
        lr: Highest learning rate.
        num_pools: Number of pools of three quarters of the candidates.
    """

    sizes: int = 4
    num_epochs: int = 12
    num_images: int = 800
    num_test_images: int = 1000
    num_seeds: int = 3
    batch_size: int = 50
    lr: float = 2e-3
    num_pools: int = 40


QUICK = Settings(sizes=2, num_images=50, num_test_images=100, num_seeds=2, num_pools=3)


# --- candidates ----------------------------------------------------------------------------------


def _plain(width: int, depth: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
    inputs = width
    for outputs in (width, 2 * width, 4 * width):
        layers.append(nn.MaxPool2d(2))
        for _ in range(depth):
            layers.append(relu_conv_norm(inputs, outputs))
            inputs = outputs
    return nn.Sequential(*layers, nn.ReLU(), *head(inputs))


def _resnet(width: int, depth: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    inputs = width
    for outputs in (width, 2 * width, 4 * width):
        for _ in range(depth):
            stride = 1 if outputs == inputs else 2
            conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            body = nn.Sequential(conv, nn.BatchNorm2d(outputs), relu_conv_norm(outputs, outputs))
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            projected = nn.Sequential(shortcut, nn.BatchNorm2d(outputs)) if stride == 2 else None
            layers.append(Residual(body, projected, nn.ReLU()))
            inputs = outputs
    return nn.Sequential(*layers, *head(inputs))


def _cells(width: int, depth: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width)]
    for outputs in (width, 2 * width, 4 * width):
        if outputs > width:
            body = nn.Sequential(relu_conv_norm(outputs // 2, outputs, stride=2), relu_conv_norm(outputs, outputs))
            shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(outputs // 2, outputs, 1, bias=False))
            layers.append(Residual(body, shortcut))
        layers.extend(Cell(outputs) for _ in range(depth))
    return nn.Sequential(*layers, nn.BatchNorm2d(4 * width), nn.ReLU(), *head(4 * width))


def _convmixer(width: int, depth: int) -> nn.Module:
    from timm.models.convmixer import ConvMixer

    return ConvMixer(width, depth, kernel_size=5, patch_size=4, num_classes=10)


def _mixer(width: int, depth: int) -> nn.Module:
    from timm.models.mlp_mixer import MlpMixer

    return MlpMixer(10, img_size=32, patch_size=4, num_blocks=depth, embed_dim=width)


def _vit(width: int, depth: int) -> nn.Module:
    return VisionTransformer(depth, width, heads=width // 32)


# Builder, widths and depths of each family; a training takes about half a second an epoch.
FAMILIES: Mapping[str, tuple[Callable[[int, int], nn.Module], tuple[int, int], tuple[int, int]]] = {
    "plain": (_plain, (12, 24), (1, 2)),
    "resnet": (_resnet, (12, 24), (1, 2)),
    "cells": (_cells, (8, 16), (1, 2)),
    "convmixer": (_convmixer, (48, 96), (2, 4)),
    "mixer": (_mixer, (32, 64), (2, 4)),
    "vit": (_vit, (32, 64), (2, 4)),
}


def candidates_of(settings: Settings) -> dict[str, Callable[[], LightningModule]]:
    """List factories of the candidates by name, such as ``vit-32x2``."""

    def module(build: Callable[[int, int], nn.Module], width: int, depth: int) -> LightningModule:
        return ImageClassifier(build(width, depth), 10, lr=settings.lr)

    made = {}
    for family, (build, widths, depths) in FAMILIES.items():
        sizes = [(width, depth) for width in widths for depth in depths][: settings.sizes]
        made |= {f"{family}-{width}x{depth}": partial(module, build, width, depth) for width, depth in sizes}
    return made


# --- training and scoring ------------------------------------------------------------------------


def photographs(folder: Path, settings: Settings) -> Data:
    """Read the images, which are not changed in training."""
    (images, labels), (test_images, test_labels) = (cifar10(folder, range(10), (split,)) for split in ("train", "test"))
    train, test = (
        torch.from_numpy(np.random.default_rng(0).permutation(len(own))[:num])
        for own, num in ((images, settings.num_images), (test_images, settings.num_test_images))
    )
    images, test_images = ((own - 0.5) / 0.25 for own in (images[train], test_images[test]))
    return Data(images, labels[train], test_images, test_labels[test])


def loader_of(data: Data, settings: Settings) -> DataLoader[Any]:
    """Build the loader that candidates are scored and trained on."""
    return DataLoader(TensorDataset(data.images, data.labels), settings.batch_size, shuffle=True)


def quiet_trainer(num_epochs: int) -> Trainer:
    """Return a trainer for the CPU that writes and shows nothing."""
    return Trainer(
        max_epochs=num_epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def trained(build: Callable[[], LightningModule], seed: int, data: Data, settings: Settings) -> Record:
    """Train a candidate in full, as finals do under this seed, and record its curve."""
    halves: list[tuple[float, float]] = []

    def note(trainer: Trainer, module: LightningModule) -> None:
        halves.append(accuracies(module, data))
        module.train()

    with preserved_rng(seed):
        model = build()
    trainer = quiet_trainer(settings.num_epochs)
    trainer.callbacks = [LambdaCallback(on_train_epoch_end=note)]  # type: ignore[attr-defined]
    with preserved_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Lightning, on validation that is left out and on the number of workers
        seed_all(seed)
        trainer.fit(model, loader_of(data, settings))
    return {"halves": halves}


def scored(candidates: Mapping[str, Callable[[], LightningModule]], seed: int, loader: DataLoader[Any]) -> Record:
    """Score all candidates by the default recipe with the public API."""
    selector = ZeroShotSelector(seed=seed, enable_progress_bar=False)
    rows = {row["name"]: row for row in selector.rank(dict(candidates), loader).rows}
    return {"columns": {column: [rows[name][column] for name in candidates] for column in (*MEMBERS, "params")}}


def kept_in(folder: Path, settings: Settings) -> Kept:
    """Open the file of the results, whose name depends on everything that they depend on."""
    own = {key: value for key, value in asdict(settings).items() if key not in ("num_pools", "num_seeds", "sizes")}
    own |= {name: version(name) for name in VERSIONS}
    digest = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()
    return Kept(folder / f"race-{digest[:12]}.jsonl")


@dataclass(frozen=True)
class Results:
    """All scores and trainings.

    Args:
        names: Names of the candidates.
        columns: Their scores by name of the proxy, for each seed; higher is better.
        curves: The curve of each, for each seed.
    """

    names: tuple[str, ...]
    columns: Sequence[Mapping[str, Sequence[float | None]]]
    curves: Sequence[Sequence[Curve]]


def results_of(
    folder: Path, settings: Settings, kept: Kept, tell: Callable[[str], None], minutes: float = math.inf
) -> Results | None:
    """Score and train all candidates; results in the file are not computed again.

    Args:
        folder: The folder of the images.
        settings: What takes part.
        kept: The file of the results.
        tell: Called with a line after every training.
        minutes: The time after which no other training begins.

    Returns:
        The results; None if the time ran out before they were complete.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    candidates, data = candidates_of(settings), photographs(folder, settings)
    deadline = time.monotonic() + 60 * minutes
    for seed in range(settings.num_seeds):
        kept.once(f"score {settings.sizes} {seed}", partial(scored, candidates, seed, loader_of(data, settings)))
        for name, build in candidates.items():
            if time.monotonic() > deadline:
                return None
            own = kept.once(f"train {name} {seed}", partial(trained, build, seed, data, settings))
            tell(f"{name}, seed {seed}: {statistics.fmean(own['halves'][-1]):.1f} %")
    seeds = range(settings.num_seeds)
    return Results(
        tuple(candidates),
        [kept.records[f"score {settings.sizes} {seed}"]["columns"] for seed in seeds],
        [[kept.records[f"train {name} {seed}"]["halves"] for name in candidates] for seed in seeds],
    )


# --- choosers ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Heat:
    """Candidates of a pool under one seed, as all choosers see them.

    Args:
        labels: For each candidate, the accuracy on the validation images after each epoch.
        columns: Their scores by name of the proxy; higher is better.
        truths: Their true accuracies, on the other images.
        seed: The seed of the random orders.
    """

    labels: Sequence[Sequence[float]]
    columns: Mapping[str, Sequence[float | None]]
    truths: Sequence[float]
    seed: int

    @property
    def num_epochs(self) -> int:
        """Number of epochs of a full training."""
        return len(self.labels[0])

    def order(self, by: str) -> list[int]:
        """Order the candidates by ``params`` or by the ``default`` recipe, best first."""
        recipe = combine(get_recipe("default"), self.columns)
        if by == "default":
            return [idx for idx in best_first(range(len(recipe)), recipe) if recipe[idx] is not None]
        return best_first(range(len(recipe)), self.columns[by])


@dataclass(frozen=True)
class Choice:
    """What a chooser chooses, and the epochs of all trainings together, with the rest of the winner's training."""

    pick: int
    epochs: int


def train_first(heat: Heat, order: Sequence[int], k: int) -> Choice:
    """Train the first candidates of an order to the end, and choose the best."""
    return Choice(max(order[:k], key=lambda idx: heat.labels[idx][-1]), min(k, len(order)) * heat.num_epochs)


def train_random(heat: Heat, k: int) -> list[Choice]:
    """Train candidates to the end that are drawn at random, many times."""
    generator, everyone = random.Random(heat.seed), range(len(heat.labels))
    return [train_first(heat, generator.sample(everyone, len(everyone)), k) for _ in range(NUM_RANDOM)]


def train_all_briefly(heat: Heat, k: int) -> Choice:
    """Train everyone for an epoch, the best of these to the end, and choose the best."""
    order = sorted(range(len(heat.labels)), key=lambda idx: -heat.labels[idx][0])
    choice = train_first(heat, order, k)
    return Choice(choice.pick, choice.epochs + max(len(order) - k, 0))


def halve(heat: Heat, rungs: Sequence[int]) -> Choice:
    """Train everyone up to the first rung, the best third up to the second one, and so on, and the best to the end."""
    remaining, before, epochs = list(range(len(heat.labels))), 0, 0
    for rung in rungs:
        epochs += len(remaining) * (rung - before)
        remaining.sort(key=lambda idx: -heat.labels[idx][rung - 1])
        num = 1 if rung == rungs[-1] else max(len(remaining) // FACTOR, 1)
        remaining, before = remaining[:num], rung
    return Choice(remaining[0], epochs + heat.num_epochs - before)


class Recorded(Training):
    """A training that is read from its curve instead of being carried out."""

    def __init__(self, name: str, labels: Sequence[float]) -> None:
        super().__init__(name, nn.Identity, Path(), 0)
        self.labels = labels

    def play(self, conditions: Conditions) -> None:
        """Continue for one round."""
        self.num_epochs = min(self.num_epochs + conditions.num_epochs, len(self.labels))
        self.value, self.logs_monitor = self.labels[self.num_epochs - 1], True


def hold(heat: Heat, trainer: Trainer, k: int, num_epochs: int, by: str, *, learn: bool = False) -> Choice:
    """Hold the finals of the selector, with all its rules, on recorded trainings.

    Args:
        heat: The candidates.
        trainer: Any trainer; it trains nothing.
        k: Number of finalists.
        num_epochs: Number of epochs in a round.
        by: What ranks the candidates: ``default`` or ``params``.
        learn: Whether the finalists are learned.
    """
    order = heat.order(by)
    entrants = Entrants(
        {str(idx): lambda _: nn.Identity() for idx in order},
        [-float(place) for place in range(len(order))],
        {name: [heat.columns[name][idx] for idx in order] for name in MEMBERS},
        num=k,
        learn=learn,
        first_by=by,
    )
    finalists: list[Finalist] = []
    coming = _recorded(entrants.finalists(Path(), seeds=[0], higher_is_better=True), heat)
    rules = FinalsRules(finalists=k, final_epochs=num_epochs, learn=learn, mode="max")
    hold_finals(coming, trainer, {}, finalists=finalists, rules=rules)
    winner = finalists[0]
    spent = sum(own.num_epochs for own in finalists)
    return Choice(int(winner.name), spent + heat.num_epochs - winner.num_epochs)


def _recorded(finalists: Iterable[Finalist], heat: Heat) -> Iterator[Finalist]:
    for finalist in finalists:
        finalist.trainings = (Recorded(finalist.name, heat.labels[int(finalist.name)]),)
        yield finalist


def ways_of(heat: Heat, trainer: Trainer) -> dict[tuple[int, str], Choice | list[Choice]]:
    """Let all choosers choose, by the most epochs that they may spend and their names."""
    default, params = heat.order("default"), heat.order("params")
    return {
        (12, "random"): train_random(heat, 1),
        (12, "largest params"): train_first(heat, params, 1),
        (12, "first by default"): train_first(heat, default, 1),
        (40, "random, best of 3"): train_random(heat, 3),
        (40, "largest params, best of 3"): train_first(heat, params, 3),
        (40, "1 epoch of everyone, best of 2"): train_all_briefly(heat, 2),
        (40, HALVING): halve(heat, (1, 3)),
        (40, "default finals, 8 of 2"): hold(heat, trainer, 8, 2, "default"),
        (40, "params finals, 8 of 2"): hold(heat, trainer, 8, 2, "params"),
        (40, "learned finals, 12 of 1"): hold(heat, trainer, 12, 1, "params", learn=True),
        (52, "random, best of 4"): train_random(heat, 4),
        (52, "largest params, best of 4"): train_first(heat, params, 4),
        (52, "1 epoch of everyone, best of 3"): train_all_briefly(heat, 3),
        (52, HALVING): halve(heat, (1, 3, 9)),
        (52, "default finals, 8 of 3"): hold(heat, trainer, 8, 3, "default"),
        (52, "params finals, 8 of 3"): hold(heat, trainer, 8, 3, "params"),
        (52, "learned finals, 16 of 1"): hold(heat, trainer, 16, 1, "params", learn=True),
    }


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a chooser lost and spent, mean over both halves; one row per pool, one column per seed."""

    losses: np.ndarray[Any, Any]
    epochs: np.ndarray[Any, Any]


def outcomes_of(results: Results, pools: Sequence[Sequence[int]]) -> dict[tuple[int, str], Outcome]:
    """Let all choosers choose in every pool and under every seed, by each half in turn."""
    shape = len(pools), len(results.curves)
    found: dict[tuple[int, str], Outcome] = {}
    trainer = quiet_trainer(len(results.curves[0][0]))
    for pool_idx, pool in enumerate(pools):
        for seed, half in [(seed, half) for seed in range(shape[1]) for half in (0, 1)]:
            heat = heat_of(results, pool, seed, half)
            for key, choices in ways_of(heat, trainer).items():
                own = found.setdefault(key, Outcome(np.zeros(shape), np.zeros(shape)))
                several = choices if isinstance(choices, list) else [choices]
                lost = [max(heat.truths) - heat.truths[choice.pick] for choice in several]
                own.losses[pool_idx, seed] += statistics.fmean(lost) / 2
                own.epochs[pool_idx, seed] += statistics.fmean(choice.epochs for choice in several) / 2
    return found


def heat_of(results: Results, pool: Sequence[int], seed: int, half: int) -> Heat:
    """Take some candidates under a seed; one half of the test images is for choosing, the other one for the truth."""
    labels = [[pair[half] for pair in results.curves[seed][idx]] for idx in pool]
    columns = {name: [values[idx] for idx in pool] for name, values in results.columns[seed].items()}
    truths = [statistics.fmean(curves[idx][-1][1 - half] for curves in results.curves) for idx in pool]
    return Heat(labels, columns, truths, seed)


# --- what is printed and kept --------------------------------------------------------------------


def with_interval(values: np.ndarray[Any, Any], sign: str = "") -> str:
    """Write a mean over pools and seeds, with the 95 % interval when both are drawn again."""
    generator = np.random.default_rng(0)
    means = [
        values[np.ix_(*(generator.integers(num, size=num) for num in values.shape))].mean()
        for _ in range(NUM_RESAMPLES)
    ]
    low, high = np.quantile(means, (0.025, 0.975))
    return f"{values.mean():{sign}.2f} [{low:{sign}.2f}, {high:{sign}.2f}]"


def print_candidates(console: Console, results: Results) -> Record:
    """Print what training gave, and how well scores and short trainings agree with it."""
    curves = np.array(results.curves).mean(axis=-1)  # [seeds, candidates, epochs]
    truths = curves[:, :, -1].mean(axis=0)
    params = results.columns[0]["params"]
    rows = []
    for idx in np.argsort(-truths, kind="stable").tolist():
        deviation = float(np.std(curves[:, idx, -1]))
        epochs = [f"{curves[:, idx, epoch].mean():.1f}" for epoch in (0, 2)]
        rows.append([results.names[idx], f"{params[idx] or 0:,.0f}", *epochs, f"{truths[idx]:.1f}", f"{deviation:.1f}"])
    columns = ["candidate", "params", "1 epoch", "3 epochs", "in full", "deviation of seeds"]
    print_table(console, "Accuracy in %, mean of both halves and all seeds", columns, rows)
    taus: dict[str, list[float]] = {}
    for own, of_seed in zip(results.columns, curves, strict=True):
        orders = {"params": own["params"], "default": combine(get_recipe("default"), own)}
        orders |= {f"epoch {epoch}": of_seed[:, epoch - 1].tolist() for epoch in (1, 3, len(of_seed[0]))}
        for name, values in orders.items():
            there = [idx for idx, value in enumerate(values) if value is not None]
            tau = kendall([values[idx] for idx in there], truths[there])
            taus.setdefault(name, []).append(tau or 0.0)
    means = {name: statistics.fmean(values) for name, values in taus.items()}
    cells = ", ".join(f"{name} {tau:.2f}" for name, tau in means.items())
    say(console, f"Kendall's tau with the accuracy in full, mean of the seeds: {cells}.")
    return {"truths": dict(zip(results.names, truths.tolist(), strict=True)), "taus": means}


def print_race(console: Console, outcomes: Mapping[tuple[int, str], Outcome]) -> None:
    """Print what all choosers lost and spent."""
    for budget in dict.fromkeys(most for most, _ in outcomes):
        rows = []
        for (most, name), own in outcomes.items():
            if most == budget:
                halving = outcomes.get((budget, HALVING))
                against = "" if halving is None or halving is own else with_interval(own.losses - halving.losses, "+")
                rows.append([name, f"{own.epochs.mean():.0f}", with_interval(own.losses), against])
        title = f"At most {budget} epochs: points lost against the best of the pool"
        print_table(console, title, ["chooser", "epochs", "points lost [95 %]", f"minus {HALVING}"], rows)


# --- the command line ----------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--minutes", type=float, default=math.inf, help="begin no training after this time; it resumes")
    made.add_argument("--quick", action="store_true", help="show in a minute that it runs, with tiny trainings")
    add_folders(made)
    return made


def main(words: Sequence[str] | None = None) -> None:
    """Score, train, choose, print and save."""
    arguments = (usage := parser()).parse_args(words)
    settings = QUICK if arguments.quick else Settings()
    try:
        check_installed("timm")
        found(arguments.data / "cifar10_subset.npz")
    except (ImportError, OSError) as error:
        usage.error(str(error))
    torch.set_num_threads(1)
    console = Console(width=None if Console().is_terminal else 200)  # a file or a pipe has no width: nothing is cut
    kept = kept_in(arguments.cache, settings)
    results = results_of(arguments.data, settings, kept, partial(say, Console(stderr=True)), arguments.minutes)
    if results is None:
        say(console, "The time is over. The same command goes on from here.")
        return
    record: Record = {"settings": asdict(settings), "versions": {name: version(name) for name in VERSIONS}}
    record |= print_candidates(console, results)
    pools = pools_of(len(results.names), 3 * len(results.names) // 4, settings.num_pools, 0)
    say(console, f"{len(pools)} pools of {len(pools[0])} of {len(results.names)} candidates.")
    outcomes = outcomes_of(results, pools)
    print_race(console, outcomes)
    say(console, f"Minutes: {sum(own['seconds'] for own in kept.records.values()) / 60:.1f}.")
    record["race"] = [
        {"most_epochs": most, "chooser": name, "epochs": own.epochs.mean(), "points_lost": own.losses.mean()}
        for (most, name), own in outcomes.items()
    ]
    record["curves"] = [dict(zip(results.names, own, strict=True)) for own in results.curves]
    keep(figures_folder(arguments) / "finals_race.json", [], record)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("Stopped. The same command goes on from here.")
