"""How much accuracy ways to choose a model lose, at equal training compute: without training, with finals, by chance.

README.md beside this file tells how.
"""

import argparse
import logging
import random
import statistics
import sys
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import torch
from fidelity import Study, keep, positive, sampled, say, study
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from rich.console import Console
from scores import Protocol, Running
from speed import print_table
from tables import Table, add_folders, figures_folder, nas_bench_201
from torch.utils.data import Subset, random_split
from workers import outcomes

from lightning_zico import ZeroShotSelector
from lightning_zico.demos import DigitsDataModule, digits_candidates, quiet_trainer
from lightning_zico.engine.scope import preserved_rng, seed_all
from lightning_zico.ranking import bootstrap_interval, combine, get_recipe
from lightning_zico.scoring.choice import Choice

Record: TypeAlias = dict[str, Any]

BENCHMARKS = ("digits", "nas-bench-201")
RANKINGS = ("params", "zico", "default")  # beside chance
FULL_EPOCHS = 200  # of a training in NAS-Bench-201


@dataclass(frozen=True)
class Loss:
    """The loss of a chooser against the best candidate, in accuracy points, one number per repeat.

    Args:
        chooser: The way in which it chooses.
        num_entrants: Number of candidates that it trains to choose among them; 1 for none.
        epochs: Total number of trained epochs.
        values: One loss per repeat (a seed, or a pool).
        picks: The choice of each repeat; empty if the loss is an average over choices.
    """

    chooser: str
    num_entrants: int
    epochs: int
    values: tuple[float, ...]
    picks: tuple[str, ...] = ()


# --- digits: everyone is trained, and every chooser is read from the curves -----------------------


@dataclass(frozen=True)
class Curve:
    """Accuracies of one training, in %, one per epoch: on the images that finals look at, and on the others."""

    validation: tuple[float, ...]
    test: tuple[float, ...]


class HeldOutDigits(DigitsDataModule):
    """Digits with 360 test images that are used neither in training nor in finals."""

    def setup(self, stage: str) -> None:
        """Split the test images from the training images, always the same ones."""
        super().setup(stage)
        parts = [len(self.train_data) - len(self.val_data), len(self.val_data)]
        self.train_data, self.test_data = random_split(self.train_data, parts, torch.Generator().manual_seed(1))


def trained(name: str, seed: int, num_epochs: int) -> Curve:
    """Train a candidate as finals do, and record its accuracies after each epoch."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")  # this is a process of its own
    data, validation, test = HeldOutDigits(), list[float](), list[float]()

    def note(trainer: Trainer, module: LightningModule) -> None:
        if not trainer.sanity_checking:
            validation.append(100 * float(trainer.callback_metrics["val_acc"]))
            test.append(accuracy(module, data.test_data))

    with preserved_rng(seed):
        model = digits_candidates()[name]()
    trainer = quiet_trainer()
    trainer.fit_loop.max_epochs = num_epochs
    trainer.callbacks = [LambdaCallback(on_train_epoch_end=note)]  # type: ignore[attr-defined]
    seed_all(seed)
    trainer.fit(model, datamodule=data)
    return Curve(tuple(validation), tuple(test))


def accuracy(module: LightningModule, data: Subset[Any]) -> float:
    """Compute the accuracy on all images at once, in %."""
    images, labels = (torch.stack([torch.as_tensor(pair[part]) for pair in data]) for part in (0, 1))
    module.eval()
    with torch.no_grad():
        right = (module(images).argmax(dim=1) == labels).float().mean()
    module.train()
    return 100 * float(right)


def digits_orders(seed: int) -> dict[str, list[str]]:
    """Rank the candidates by each score on two whole batches of the data, the best first."""
    selector = ZeroShotSelector(proxies=["default", "zico"], batch_size=None, seed=seed, enable_progress_bar=False)
    rows = selector.rank(digits_candidates(), HeldOutDigits()).rows
    columns = {"params": "params", "zico": "zico", "default": "score"}
    orders = {name: sorted(rows, key=lambda row: row[column], reverse=True) for name, column in columns.items()}
    return {name: [row["name"] for row in order] for name, order in orders.items()}


def digits_losses(
    curves: Sequence[Mapping[str, Curve]],
    orders: Sequence[Mapping[str, list[str]]],
    finalists: int,
    final_epochs: Sequence[int],
) -> list[Loss]:
    """Let all choosers choose, each with the same total number of epochs.

    A chooser that trains ``k`` candidates for ``e`` epochs has ``(k - 1) e`` epochs less for its choice, whose training
    continues from its checkpoint.

    Args:
        curves: The curve of each candidate, one mapping per seed.
        orders: The ranking by each score, one mapping per seed.
        finalists: Number of candidates in the finals.
        final_epochs: Epochs of each finalist; every entry is a way to choose of its own.
    """
    total = len(next(iter(curves[0].values())).test)
    names = list(curves[0])
    means = {name: statistics.fmean(own[name].test[-1] for own in curves) for name in names}
    best = max(names, key=lambda name: means[name])
    by_chance = [own[best].test[-1] - statistics.fmean(own[name].test[-1] for name in names) for own in curves]
    losses = [Loss("random", 1, total, tuple(by_chance))]
    ways = [(name, name, 1, 0) for name in RANKINGS]
    ways += [(f"{name} + finals, {e} each", name, finalists, e) for e in final_epochs for name in RANKINGS]
    ways.append(("everyone, 1 each", "default", len(names), 1))
    for label, ranking, entrants, epochs in ways:
        values, picks = [], []
        for own, order in zip(curves, orders, strict=True):
            first = order[ranking][:entrants]
            # If several are equal, the first by score, as in the selector's finals.
            pick = max(first, key=lambda name: own[name].validation[epochs - 1]) if epochs else first[0]
            left = total - (entrants - 1) * epochs
            values.append(own[best].test[-1] - own[pick].test[left - 1])
            picks.append(pick)
        losses.append(Loss(label, entrants, total, tuple(values), tuple(picks)))
    return losses


def digits(console: Console, arguments: argparse.Namespace) -> Record:
    """Train every candidate under every seed, choose, print, and return the figures."""
    tasks = {
        f"{name}, seed {seed}": partial(trained, name, seed, arguments.epochs)
        for seed in range(arguments.seeds)
        for name in digits_candidates()
    }
    curves: list[dict[str, Curve]] = [{} for _ in range(arguments.seeds)]
    with closing(outcomes(tasks, arguments.workers, timeout_s=600.0)) as coming:
        for label, outcome in coming:
            if outcome.result is None:
                raise RuntimeError(f"{label} could not be trained: {outcome.error}")
            name, _, seed = label.partition(", seed ")
            curves[int(seed)][name] = outcome.result
    curves = [{name: own[name] for name in digits_candidates()} for own in curves]  # in order again
    orders = [digits_orders(seed) for seed in range(arguments.seeds)]
    losses = digits_losses(curves, orders, arguments.finalists, arguments.final_epochs)
    say(console, f"\ndigits: {len(curves[0])} candidates, {arguments.epochs} epochs for each chooser in all.")
    say(console, f"Mean, minimum and maximum of {arguments.seeds} seeds, on test images that no chooser uses.")
    rows = [
        [
            own.chooser,
            str(own.num_entrants),
            str(own.epochs),
            f"{statistics.fmean(own.values):.2f} [{min(own.values):.2f}, {max(own.values):.2f}]",
            ", ".join(f"{name} x{count}" for name, count in Counter(own.picks).most_common(2)),
        ]
        for own in losses
    ]
    columns = ["chooser", "trained to choose", "epochs in all", "points lost [least, most]", "most frequent choice"]
    print_table(console, "Accuracy lost against the candidate that is best on average", columns, rows)
    return {"losses": [asdict(own) for own in losses], "curves": [{k: asdict(v) for k, v in c.items()} for c in curves]}


# --- NAS-Bench-201: training is looked up ----------------------------------------------------------


def pools_of(num_archs: int, size: int, num_pools: int, seed: int) -> list[list[int]]:
    """Draw pools of archs, by their positions."""
    generator = random.Random(seed)
    return [generator.sample(range(num_archs), size) for _ in range(num_pools)]


def table_losses(
    own: Study, choice: Choice, pools: Sequence[Sequence[int]], entrants: Sequence[int], seed: int
) -> list[Loss]:
    """Let all choosers choose in every pool: the best on the validation images of the first ``k``, trained to the end.

    Args:
        own: The archs and their scores.
        choice: Proxies and recipes that were scored.
        pools: Positions of archs.
        entrants: The numbers ``k``.
        seed: The seed of the random choices.
    """
    recipe = get_recipe("default")
    validation, test = own.truths("valid_cifar10"), own.truths("test_cifar10")
    generator = random.Random(seed)
    values: dict[tuple[str, int], list[float]] = {}
    for pool in pools:
        scores = {proxy.name: [own.scores[proxy.name][idx] for idx in pool] for proxy in choice.proxies}
        by = {"params": scores["params"], "zico": scores["zico"], "default": combine(recipe, scores)}
        orders = {name: best_first(pool, column) for name, column in by.items()}
        orders = {"random": generator.sample(list(pool), len(pool)), **orders}
        best = max(test[idx] for idx in pool)
        for k in entrants:
            for name, order in orders.items():
                pick = max(order[:k], key=lambda idx: validation[idx])
                values.setdefault((name, k), []).append(best - test[pick])
        everyone = max(pool, key=lambda idx: validation[idx])
        values.setdefault(("everyone", len(pool)), []).append(best - test[everyone])
    return [Loss(name, k, k * FULL_EPOCHS, tuple(lost)) for (name, k), lost in values.items()]


def best_first(pool: Sequence[int], scores: Sequence[float | None]) -> list[int]:
    """Order archs by a score; those without one come last."""
    pairs = sorted(zip(pool, scores, strict=True), key=lambda pair: (pair[1] is None, -(pair[1] or 0.0)))
    return [idx for idx, _ in pairs]


def nas_bench(console: Console, arguments: argparse.Namespace, table: Table) -> Record:
    """Compute missing scores, choose in many pools, print, and return the figures."""
    protocol = Protocol(arguments.data / "cifar10_subset.npz")
    choice = Choice.of(["default", "zico"], with_baselines=True)
    drawn = sampled(table, arguments.sample, protocol.seed)
    own = study(drawn, choice, protocol, Running(arguments.workers), arguments.cache, with_times=False)
    pools = pools_of(len(drawn.rows), min(arguments.pool, len(drawn.rows)), arguments.pools, protocol.seed)
    entrants = sorted({1, arguments.finalists})
    losses = table_losses(own, choice, pools, entrants, protocol.seed)
    say(console, f"\nnas-bench-201: {len(pools)} pools of {len(pools[0])} of {len(drawn.rows)} archs.")
    say(console, f"Archs are trained to the end, {FULL_EPOCHS} epochs: the table has no accuracies after one epoch.")
    say(console, "The best by valid_cifar10 is chosen, and the loss is in test_cifar10.")
    rows = []
    for loss in losses:
        interval = bootstrap_interval(lambda a, _: float(a.mean()), loss.values, loss.values)
        assert interval is not None
        mean = f"{statistics.fmean(loss.values):.2f} [{interval.low:.2f}, {interval.high:.2f}]"
        nothing = sum(value == 0 for value in loss.values) / len(loss.values)
        rows.append([loss.chooser, str(loss.num_entrants), str(loss.epochs), mean, f"{100 * nothing:.0f} %"])
    columns = ["chooser", "trained", "epochs in all", "points lost [95 %]", "finds the best"]
    print_table(console, "Accuracy lost against the best arch of the pool", columns, rows)
    return {
        "pools": len(pools),
        "losses": [asdict(replace(own, values=(statistics.fmean(own.values),))) for own in losses],
    }


# --- the command line ----------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--benchmark", action="append", choices=BENCHMARKS, help="may be repeated; default both")
    made.add_argument(
        "--finalists", type=positive, default=4, help="number of candidates that are trained to choose among them"
    )
    made.add_argument(
        "--final-epochs",
        type=positive,
        nargs="+",
        default=[1, 3],
        help="epochs that each of them is trained, on digits",
    )
    made.add_argument("--epochs", type=positive, default=20, help="total epochs of each chooser, on digits")
    made.add_argument("--seeds", type=positive, default=5, help="seeds of weights and training, on digits")
    made.add_argument("--sample", type=positive, default=300, help="archs that are scored")
    made.add_argument("--pool", type=positive, default=50, help="archs to choose from")
    made.add_argument("--pools", type=positive, default=500, help="number of pools")
    made.add_argument("--workers", type=positive, default=2, help="processes, each with one thread")
    made.add_argument("--quick", action="store_true", help="show in a minute that it runs")
    add_folders(made)
    return made


def main(words: Sequence[str] | None = None) -> None:
    """Train or look up, choose, print and save."""
    arguments = (usage := parser()).parse_args(words)
    if arguments.quick:
        vars(arguments).update(epochs=8, final_epochs=[1], seeds=1, sample=5, pool=3, pools=50)
    asked = dict.fromkeys(arguments.benchmark or BENCHMARKS)
    spent = max((arguments.finalists - 1) * max(arguments.final_epochs), len(digits_candidates()) - 1)
    if "digits" in asked and spent >= arguments.epochs:
        usage.error(f"Invalid --epochs {arguments.epochs}: expected more than {spent}, which choosing takes.")
    try:
        table = nas_bench_201(arguments.data) if "nas-bench-201" in asked else None
    except OSError as error:
        usage.error(f"{error} `--benchmark digits` needs no data.")
    console = Console(width=None if Console().is_terminal else 200)  # a file or a pipe has no width: nothing is cut
    record: Record = {}
    if "digits" in asked:
        record["digits"] = digits(console, arguments)
    if table is not None:
        record["nas-bench-201"] = nas_bench(console, arguments, table)
    keep(figures_folder(arguments) / "regret.json", [], record)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("Stopped. The scores of NAS-Bench-201 are kept.")
