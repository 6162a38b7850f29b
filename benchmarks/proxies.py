"""The cost of each proxy, alone and in a set, on a NAS-Bench-201 network.

README.md beside this file tells how, and holds the table that it last printed.
"""

import argparse
import copy
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from speed import print_table, random_batches
from torch import Tensor, nn

from lightning_zico import list_proxies, score
from lightning_zico.proxies import az, linear_regions, zen
from lightning_zico.spaces import get_space

# Measured apart: a pass for each sample or class, second derivatives, and a clock that runs the network nine times.
APART = {"gradsign", "knas", "ntk_cond", "vkdnw", "grasp", "latency"}
SHARED_PASS = "zico"
LIMIT = 2.5  # all others together, over the most expensive shared pass alone
# The limit is for batches of at least this size, the smallest that ZiCo's paper finds sufficient. With smaller ones,
# the passes that cannot be shared take most of the time: they have other numbers of inputs.
LEAST_BATCH = 64
ARCH = "|nor_conv_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_3x3~1|nor_conv_3x3~2|"


class Passes:
    """A count of forward passes, by calls of the loss, and of backward passes, by calls of autograd."""

    def __init__(self) -> None:
        self.forward = self.backward = 0

    def loss_fn(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute the mean cross-entropy."""
        self.forward += 1
        return nn.functional.cross_entropy(outputs, targets)


def seconds_of(model: nn.Module, batches: list[tuple[Tensor, Tensor]], proxies: Sequence[str]) -> float:
    """Time a score; an error is raised."""
    start = time.perf_counter()
    card = score(model, batches, proxies=proxies, loss_fn=nn.CrossEntropyLoss())
    elapsed = time.perf_counter() - start
    for name in proxies:
        if card[name].error:
            raise RuntimeError(f"{name}: {card[name].error}")
    return elapsed


def passes_of(model: nn.Module, batches: list[tuple[Tensor, Tensor]], proxies: Sequence[str]) -> str:
    """Count the passes of a score."""
    passes, original = Passes(), torch.autograd.grad

    def counting(*args: object, **kwargs: object) -> object:
        passes.backward += 1
        return original(*args, **kwargs)

    torch.autograd.grad = counting  # type: ignore[assignment]
    try:
        score(model, batches, proxies=proxies, loss_fn=passes.loss_fn)
    finally:
        torch.autograd.grad = original
    return f"{passes.forward} + {passes.backward}"


def seconds_of_passes(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> float:
    """Time only the passes of the set, without any observer: no set of these proxies costs less."""
    model = copy.deepcopy(model)
    in_float64 = copy.deepcopy(model).double()
    size, *shape = batches[0][0].shape
    start = time.perf_counter()
    weights = list(model.parameters())
    for batch_idx, (inputs, targets) in enumerate(batches):
        inputs = inputs.clone().requires_grad_(batch_idx == 0)
        outputs = model(inputs)
        if batch_idx == 0:  # `jacob_cov`
            torch.autograd.grad(outputs.sum(), inputs, retain_graph=True)
        torch.autograd.grad(nn.functional.cross_entropy(outputs, targets), weights)
    inputs = torch.randn(min(size, az.NUM_INPUTS), *shape, requires_grad=True)
    torch.autograd.grad(model(inputs).sum(), inputs)
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(min(size, zen.NUM_INPUTS), *shape))
        model(torch.randn(linear_regions.NUM_INPUTS, shape[0], *[linear_regions.RESOLUTION] * 2))
    flow = in_float64.eval()(torch.ones(1, *shape, dtype=torch.float64)).sum()
    torch.autograd.grad(flow, list(in_float64.parameters()))
    return time.perf_counter() - start


@dataclass(frozen=True)
class Costs:
    """Median seconds of each proxy alone and of the sets, and ratios within rounds, for one batch size."""

    alone: dict[str, float]
    shared_over_pass: float
    passes_over_pass: float
    all_over_parts: float


def measure(model: nn.Module, batches: list[tuple[Tensor, Tensor]], repeats: int) -> Costs:
    """Time every proxy alone and in a set, in a new random order in every round; the slow ones once."""
    names = list_proxies()
    together = [name for name in names if name not in APART]
    repeated = {name: [name] for name in together} | {"shared": together}
    for proxies in repeated.values():
        seconds_of(model, batches, proxies)  # what a library allocates once
    rounds: list[dict[str, float]] = []
    shuffled = random.Random(0)
    for _ in range(repeats):
        rounds.append(
            {
                name: seconds_of(model, batches, repeated[name])
                for name in shuffled.sample(list(repeated), len(repeated))
            }
            | {"passes": seconds_of_passes(model, batches)}
        )
    alone = {name: statistics.median(row[name] for row in rounds) for name in repeated}
    once = {name: seconds_of(model, batches, [name]) for name in sorted(APART)}
    alone |= once | {"all": seconds_of(model, batches, names)}
    ratios = [statistics.median(row[key] / row[SHARED_PASS] for row in rounds) for key in ("shared", "passes")]
    return Costs(alone, *ratios, alone["all"] / sum(alone[name] for name in names))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[64, 16], help="the table is of the first")
    parser.add_argument("--num-batches", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    space = get_space("nas_bench_201")
    torch.manual_seed(0)
    model = space.build(space.parse(ARCH))
    names = list_proxies()
    together = [name for name in names if name not in APART]
    console = Console(width=None if Console().is_terminal else 200)
    console.print(
        f"torch {torch.__version__}, CPU, {torch.get_num_threads()} threads, {arguments.num_batches} batches",
        highlight=False,
    )
    verdicts = []
    for size in arguments.batch_sizes:
        batches = random_batches(arguments.num_batches, size)
        costs = measure(model, batches, arguments.repeats)
        for what, measured, limit, least_batch in (
            (
                f"{len(together)} proxies together over `{SHARED_PASS}` alone",
                costs.shared_over_pass,
                LIMIT,
                LEAST_BATCH,
            ),
            (f"all {len(names)} over the sum of each alone", costs.all_over_parts, 1.0, 1),
        ):
            if size < least_batch:
                verdict = f"the limit is for batches of {least_batch} and more"
            else:
                verdict = f"at most {limit}: {'holds' if measured <= limit else 'DOES NOT HOLD'}"
            verdicts.append(f"batch {size}: {what}: {measured:.2f}; {verdict}")
        verdicts.append(
            f"batch {size}: their passes alone, made plainly, over `{SHARED_PASS}`: {costs.passes_over_pass:.2f}"
        )
        if size == arguments.batch_sizes[0]:
            card = score(model, batches, proxies=together, loss_fn=nn.CrossEntropyLoss())
            rows = []
            for name in names:
                in_set = f"{1000 * card[name].seconds:.0f}" if name in together else "apart"
                rows.append([name, f"{1000 * costs.alone[name]:.0f}", in_set, passes_of(model, batches, [name])])
            for title, key, members in (
                (f"the {len(together)} together", "shared", together),
                (f"all {len(names)}", "all", names),
            ):
                rows.append([title, f"{1000 * costs.alone[key]:.0f}", "", passes_of(model, batches, members)])
            columns = ["proxy", "ms alone", "ms in the set, after the shared passes", "passes, forward + backward"]
            print_table(console, f"Proxies, alone and in a set, batches of {size}", columns, rows)
    for line in verdicts:
        console.print(line, highlight=False)


if __name__ == "__main__":
    main()
