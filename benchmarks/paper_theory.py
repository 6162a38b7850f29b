"""ZiCo's theorems by experiment: gradients at initialisation against the loss after some steps, and against the gap.

Index conventions:
    B: batches
    N: images
    *: shape of one weight
"""

import hashlib
import itertools
import json
import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from fidelity import say
from rich.console import Console
from search import without_dead_edges
from speed import print_table
from tables import found, nas_bench_201
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transfer_zoo import Kept

from lightning_zico.engine.scope import preserved_rng
from lightning_zico.ranking import Interval, bootstrap_interval, kendall
from lightning_zico.spaces import NASBench201, NASBench201Arch
from lightning_zico.texts import count

Record = dict[str, Any]
Columns = Mapping[str, Sequence[float]]

MEAN = torch.tensor([0.4914, 0.4822, 0.4465]).view(1, 3, 1, 1)
STD = torch.tensor([0.2470, 0.2435, 0.2616]).view(1, 3, 1, 1)
SPACE = NASBench201()

# What the claim says of each value: a larger or smaller one is better.
SIGNS = {"mean": 1, "deviation": -1, "ratio": 1, "zico": 1, "params": 1, "layers": 1}


class Images(NamedTuple):
    """Images ``[N, 3, 32, 32]`` and labels ``[N]``."""

    images: Tensor
    labels: Tensor

    def batches(self, size: int) -> list[tuple[Tensor, Tensor]]:
        """Split into batches, in order."""
        return list(zip(self.images.split(size), self.labels.split(size), strict=True))


@dataclass(frozen=True)
class Settings:
    """The experiment; README.md beside this file explains it.

    Args:
        num_networks: Number of networks.
        num_images: Number of images of either set.
        steps: Numbers of steps after which the losses are measured.
        num_seeds: Number of seeds of weights and of the order of images.
        batch_size: Images in a step.
        lr: Learning rate.
    """

    num_networks: int = 30
    num_images: int = 512
    steps: tuple[int, ...] = (0, 10, 50, 200)
    num_seeds: int = 2
    batch_size: int = 32
    lr: float = 0.1

    @property
    def larger_batch_size(self) -> int:
        """Images in a batch of gradients at initialisation, and of losses."""
        return 2 * self.batch_size

    def cache(self, folder: Path) -> Path:
        """Return the file of the trainings, which do not depend on their number."""
        own = {key: value for key, value in asdict(self).items() if not key.startswith("num_") or key == "num_images"}
        text = json.dumps(own | {"torch": torch.__version__}, sort_keys=True)
        return folder / f"paper-theory-{hashlib.sha256(text.encode()).hexdigest()[:12]}.jsonl"


QUICK = Settings(num_networks=4, num_images=32, steps=(0, 1, 2), num_seeds=2, batch_size=8)


# --- one network ---------------------------------------------------------------------------------


def drawn(num_networks: int, seed: int = 0) -> list[NASBench201Arch]:
    """Draw different networks through which something flows."""
    rng, archs = random.Random(seed), dict[NASBench201Arch, None]()
    while len(archs) < num_networks:
        arch = SPACE.sample(rng)
        if set(without_dead_edges(arch).ops) != {"none"}:
            archs[arch] = None
    return list(archs)


def images_of(data: Path, split: str, num_images: int) -> Images:
    """Read the first images of CIFAR-10's subset, normalised."""
    with np.load(found(data / "cifar10_subset.npz")) as file:
        images, labels = (torch.from_numpy(file[f"{name}_{split}"][:num_images]) for name in ("x", "y"))
    return Images(((images.permute(0, 3, 1, 2) / 255 - MEAN) / STD).contiguous(), labels.long())


def gradients_of(network: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Compute the gradients of each weight matrix or kernel, [B, *]."""
    weights = [parameter for parameter in network.parameters() if parameter.ndim >= 2]
    by_batch = [
        torch.autograd.grad(cross_entropy(network(images), labels), weights, allow_unused=True)
        for images, labels in batches
    ]
    return [torch.stack(own) for own in zip(*by_batch, strict=True) if own[0] is not None]


def values_of(gradients: Sequence[Tensor]) -> dict[str, float]:
    """Average the logarithms of mean, deviation and ratio over layers, and sum up ZiCo.

    Layers without a gradient are left out; ratios also leave out weights that do not vary.
    """
    layers: dict[str, list[float]] = {"mean": [], "deviation": [], "ratio": [], "zico": []}
    for own in gradients:
        size, deviation = own.abs().mean(dim=0), own.std(dim=0, correction=0)  # [*]
        varies = deviation > 0
        if not varies.any():
            continue
        ratios = size[varies] / deviation[varies]
        layers["mean"].append(math.log(size.mean()))
        layers["deviation"].append(math.log(deviation.mean()))
        layers["ratio"].append(math.log(ratios.mean()))
        layers["zico"].append(math.log(ratios.sum()))
    return {name: (math.fsum if name == "zico" else statistics.fmean)(own) for name, own in layers.items()}


@torch.no_grad()
def mean_loss(network: nn.Module, data: Images, batch_size: int) -> float:
    """Compute the loss on all images, with the statistics of each batch."""
    sums = [cross_entropy(network(x), y, reduction="sum").item() for x, y in data.batches(batch_size)]
    return math.fsum(sums) / len(data.labels)


def losses_of(network: nn.Module, train: Images, test: Images, settings: Settings, seed: int) -> Record:
    """Train a network, and measure the losses after some steps."""
    optimizer = torch.optim.SGD(network.parameters(), lr=settings.lr)
    generator = torch.Generator().manual_seed(seed)
    losses: Record = {"train": [], "test": []}
    order: list[Tensor] = []
    for step in range(max(settings.steps) + 1):
        if step in settings.steps:
            for name, data in (("train", train), ("test", test)):
                losses[name].append(mean_loss(network, data, settings.larger_batch_size))
        order = order or list(torch.randperm(len(train.labels), generator=generator).split(settings.batch_size))
        places = order.pop()
        optimizer.zero_grad()
        cross_entropy(network(train.images[places]), train.labels[places]).backward()
        optimizer.step()
    return losses


def experiment(arch: NASBench201Arch, train: Images, test: Images, settings: Settings, seed: int) -> Record:
    """Measure the gradients of a network, then train it."""
    with preserved_rng(seed):
        network = SPACE.build(arch).train()
    values = values_of(gradients_of(network, train.batches(settings.larger_batch_size)))
    return {"values": values, **losses_of(network, train, test, settings, seed)}


# --- all of them ---------------------------------------------------------------------------------


def partial_kendall(a: Any, b: Any, fixed: Any) -> float | None:
    """Compute Kendall's partial tau of two columns, with a third one held fixed; None where it has no value.

    Source:
        Kendall, *Partial rank correlation*, Biometrika 1942.
    """
    taus = kendall(a, b), kendall(a, fixed), kendall(b, fixed)
    if any(tau is None for tau in taus):
        return None
    ab, af, bf = (tau or 0.0 for tau in taus)
    below = (1 - af**2) * (1 - bf**2)
    return (ab - af * bf) / math.sqrt(below) if below > 0 else None


def with_interval(
    measure: Callable[..., float | None], *columns: Sequence[float]
) -> tuple[float | None, Interval | None]:
    """Compute a measure of several columns, and its interval over resamples of the networks."""
    arrays = [np.asarray(column, dtype=float) for column in columns]

    def on(places: Any, _: Any) -> float | None:
        return measure(*(array[places.astype(int)] for array in arrays))

    everyone = np.arange(len(arrays[0]), dtype=float)
    return on(everyone, everyone), bootstrap_interval(on, everyone, everyone)


def targets_of(records: Sequence[Record], settings: Settings) -> dict[str, list[float]]:
    """Return what training shows of each network, higher is better."""
    later = [idx for idx, step in enumerate(settings.steps) if step]
    targets = {f"training loss, {settings.steps[k]} steps": [-own["train"][k] for own in records] for k in later}
    targets["gap"] = [own["train"][-1] - own["test"][-1] for own in records]
    return targets | {"test loss": [-own["test"][-1] for own in records]}


def averaged(records: Sequence[Record]) -> Record:
    """Average values and losses over seeds."""
    values = {name: statistics.fmean(own["values"][name] for own in records) for name in records[0]["values"]}
    losses = {name: np.mean([own[name] for own in records], axis=0).tolist() for name in ("train", "test")}
    return {"values": values, **losses}


def between_seeds(by_seed: Sequence[Columns]) -> dict[str, float]:
    """Average Kendall's tau between the targets of any two seeds; nothing for a single seed."""
    pairs = list(itertools.combinations(by_seed, 2))
    taus = {name: [kendall(one[name], other[name]) or 0.0 for one, other in pairs] for name in by_seed[0]}
    return {name: statistics.fmean(own) for name, own in taus.items() if own}


def written(measured: tuple[float | None, Interval | None]) -> str:
    """Write a measure with its interval, and a star if that excludes zero."""
    value, interval = measured
    if value is None or interval is None:
        return "-"
    star = "" if interval.low <= 0 <= interval.high else " *"
    return f"{value:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}]{star}"


def compare(console: Console, arguments: Any) -> Record:
    """Run what is missing, print the correlations, and return them."""
    settings: Settings = arguments.theory
    train, test = (images_of(arguments.data, split, settings.num_images) for split in ("train", "test"))
    accuracy = {row.name: row.truths["test_cifar10"] for row in nas_bench_201(arguments.data).rows}
    kept, archs = Kept(settings.cache(arguments.cache)), drawn(settings.num_networks)
    by_seed = [
        [
            kept.once(f"train {seed} {arch}", lambda a=arch, s=seed: experiment(a, train, test, settings, s))
            for arch in archs
        ]
        for seed in range(settings.num_seeds)
    ]
    records = [averaged(own) for own in zip(*by_seed, strict=True)]
    predictors = {name: [own["values"][name] for own in records] for name in records[0]["values"]}
    predictors |= {"params": [SPACE.params(arch) for arch in archs], "layers": [SPACE.depth(arch) for arch in archs]}
    predictors = {name: [SIGNS[name] * value for value in column] for name, column in predictors.items()}
    targets = targets_of(records, settings)
    ceilings = between_seeds([targets_of(own, settings) for own in by_seed])
    targets["accuracy, 200 epochs"] = [accuracy[str(arch)] for arch in archs]
    say(console, f"\ntheory: {len(archs)} networks of NAS-Bench-201, {count(settings.num_seeds, 'seed')}.")
    for k, step in enumerate(settings.steps):
        means = [statistics.fmean(own[name][k] for own in records) for name in ("train", "test")]
        say(console, f"Mean loss after {step} steps: {means[0]:.2f} in training, {means[1]:.2f} in test.")
    figures = print_claims(console, predictors, targets, ceilings)
    seconds = kept.seconds("train")
    say(console, f"All trainings took {seconds / 60:.1f} minutes.")
    return {"settings": asdict(settings), "archs": list(map(str, archs)), "records": records, **figures}


def print_claims(console: Console, predictors: Columns, targets: Columns, ceilings: Mapping[str, float]) -> Record:
    """Print Kendall's tau of all predictors with all targets, with a fixed number of layers, and of short training."""
    names = {name: f"{'small' if SIGNS[name] < 0 else 'large'} {name}" for name in predictors}
    taus = {x: {y: with_interval(kendall, predictors[x], targets[y]) for y in targets} for x in predictors}
    rows = [[names[x], *(written(taus[x][y]) for y in targets)] for x in predictors]
    if ceilings:
        rows.append(["between seeds", *(f"{ceilings[y]:+.2f}" if y in ceilings else "" for y in targets)])
    title = "Kendall's tau [95 %] with a low training loss, a small gap, a low test loss (*: excludes zero)"
    print_table(console, title, ["of a", *targets], rows)
    fixed = {
        x: {y: with_interval(partial_kendall, predictors[x], targets[y], predictors["layers"]) for y in targets}
        for x in predictors
        if x != "layers"
    }
    rows = [[names[x], *(written(fixed[x][y]) for y in targets)] for x in fixed]
    title = "The same with the number of layers held fixed (Kendall's partial tau)"
    print_table(console, title, ["of a", *targets], rows)
    *short, final = targets
    after = {x: with_interval(kendall, targets[x], targets[final]) for x in short}
    rows = [[x, written(after[x])] for x in short]
    print_table(console, f"What training for a moment says of the {final}", ["low", "Kendall's tau [95 %]"], rows)
    return {"taus": taus, "taus_at_fixed_layers": fixed, "between_seeds": dict(ceilings), "short_training": after}
