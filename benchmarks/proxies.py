"""The cost of each proxy, alone and in a set, on a NAS-Bench-201 network, and of the default recipe on three networks.

README.md beside this file tells how, and holds the table that it last printed.
"""

import argparse
import copy
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from networks import NETWORKS
from rich.console import Console
from speed import Batches, built, plain, print_table, random_batches, ratio_text, rounds_of
from torch import Tensor, nn

from lightning_zico import list_proxies, score
from lightning_zico.engine.size import count_params
from lightning_zico.proxies import az, linear_regions, resolve_proxies, zen
from lightning_zico.ranking import chain_of, get_recipe
from lightning_zico.results import NOT_APPLICABLE
from lightning_zico.spaces import get_space

# Measured apart: a pass for each sample or class, second derivatives, and a clock that runs the network nine times.
APART = {"gradsign", "knas", "ntk_cond", "vkdnw", "grasp", "dextr", "latency"}
# They do not apply to convolutional networks.
OF_TRANSFORMERS = {"head_confidence", "v_pca", "w_pca"}
SHARED_PASS = "zico"
QUICK_BATCH = 16  # of the first table, with `--quick`; VKDNW needs that many
LIMIT = 2.5  # all others together, over the most expensive shared pass alone
# The limit is for batches of at least this size, the smallest that ZiCo's paper finds sufficient. With smaller ones,
# the passes that cannot be shared take most of the time: they have other numbers of inputs.
LEAST_BATCH = 64
# With the members of its fallbacks, which are scored as well.
DEFAULT = list(dict.fromkeys(name for link in chain_of(get_recipe("default")) for name in link.members))
RECIPE_LIMIT = 0.9  # the default recipe over `zico`
LARGE = 11e6  # parameters of a network whose weights cost more than its passes
ARCH = "|nor_conv_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_3x3~1|nor_conv_3x3~2|"


def compared_proxies() -> list[str]:
    """List the proxies that apply and look at the batches; those for pretrained models look at more samples."""
    found = resolve_proxies(list_proxies())
    return [proxy.name for proxy in found if not proxy.needs_features and proxy.name not in OF_TRANSFORMERS]


class Passes:
    """A count of forward passes, by calls of the loss, and of backward passes, by calls of autograd."""

    def __init__(self) -> None:
        self.forward = self.backward = 0

    def loss_fn(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute the mean cross-entropy."""
        self.forward += 1
        return nn.functional.cross_entropy(outputs, targets)


def seconds_of(
    model: nn.Module, batches: list[tuple[Tensor, Tensor]], proxies: Sequence[str], *, may_not_apply: bool = False
) -> float:
    """Time a score; an error is raised, unless it is "not applicable" and ``may_not_apply``."""
    start = time.perf_counter()
    card = score(model, batches, proxies=proxies, loss_fn=nn.CrossEntropyLoss())
    elapsed = time.perf_counter() - start
    for name in proxies:
        error = card[name].error
        if error and not (may_not_apply and error.startswith(NOT_APPLICABLE)):
            raise RuntimeError(f"{name}: {error}")
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
    names = compared_proxies()
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


def compare_proxies(console: Console, model: nn.Module, sizes: Sequence[int], num_batches: int, repeats: int) -> None:
    """Print the cost of each proxy, with the table of the first batch size."""
    names = compared_proxies()
    together = [name for name in names if name not in APART]
    verdicts = []
    for size in sizes:
        batches = random_batches(num_batches, size)
        costs = measure(model, batches, repeats)
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
        if size == sizes[0]:
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


# --- the default recipe ---------------------------------------------------------------------------


@dataclass(frozen=True)
class RecipeCost:
    """The time of the default recipe and of ZiCo, each alone, on the same batches in rounds that take turns."""

    network: str
    batch_size: int
    default_s: Sequence[float]
    zico_s: Sequence[float]

    @property
    def ratio(self) -> float:
        """Median over the rounds of the recipe's time over ZiCo's."""
        return statistics.median(a / b for a, b in zip(self.default_s, self.zico_s, strict=True))

    def cells(self) -> list[str]:
        """Format a row."""
        milliseconds = [f"{1000 * statistics.median(seconds):.0f}" for seconds in (self.zico_s, self.default_s)]
        return [self.network, str(self.batch_size), *milliseconds, ratio_text(self.default_s, self.zico_s)]


def measure_recipe(network: str, batch_size: int, num_batches: int, rounds: int) -> RecipeCost:
    """Time the default recipe and ZiCo."""
    model, batches = built(network), random_batches(num_batches, batch_size)
    # Where a member does not apply, as to tokens, a fallback ranks.
    functions = [
        partial(seconds_of, model, batches, proxies, may_not_apply=True) for proxies in (DEFAULT, [SHARED_PASS])
    ]
    for function in functions:
        function()  # what a library allocates once
    default, zico = zip(*rounds_of(functions, rounds), strict=True)
    return RecipeCost(network, batch_size, default, zico)


def wide() -> nn.Module:
    """Build a network of three linear layers, whose passes are short; 11 M parameters."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3072, 2400), nn.ReLU(), nn.Linear(2400, 1600), nn.ReLU(), nn.Linear(1600, 10)
    )


def plain_passes(proxy: str, model: nn.Module, in_float64: nn.Module, batches: Batches) -> None:
    """Make the passes of a proxy without anything else.

    Args:
        proxy: `zico`, `naswot`, `az_trainability`, `zen` or `synflow`.
        model: The network.
        in_float64: The same network in float64 and evaluation mode.
        batches: The batches.
    """
    size, *shape = batches[0][0].shape
    if proxy == "zico":
        plain(model, batches)
    elif proxy == "synflow":
        flow = in_float64(torch.ones(1, *shape, dtype=torch.float64)).sum()
        torch.autograd.grad(flow, list(in_float64.parameters()))
    elif proxy == "az_trainability":
        inputs = torch.randn(min(size, az.NUM_INPUTS), *shape, requires_grad=True)
        torch.autograd.grad(model(inputs).sum(), inputs)
    else:
        with torch.no_grad():
            for inputs in (
                [batches[0][0]] if proxy == "naswot" else [torch.randn(min(size, zen.NUM_INPUTS), *shape)] * 2
            ):
                model(inputs)


def measure_weights(network: str, model: nn.Module, batch_size: int, rounds: int) -> list[list[str]]:
    """Time proxies above their passes, and plain draws and copies of the weights, by parameter.

    Returns:
        A row of cells for each.
    """
    batches, in_float64 = random_batches(2, batch_size), copy.deepcopy(model).double().eval()
    proxies = ("zico", "naswot", "az_trainability", "zen", "synflow")
    functions: list[Callable[[], object]] = []
    for proxy in proxies:
        functions.append(partial(seconds_of, model, batches, [proxy]))
        functions.append(partial(plain_passes, proxy, model, in_float64, batches))
    functions.append(lambda: [torch.randn_like(parameter) for parameter in model.parameters()])
    functions.append(lambda: [parameter.detach().double() for parameter in model.parameters()])
    for function in functions:
        function()  # what a library allocates once
    columns = list(zip(*rounds_of(functions, rounds), strict=True))
    num_params = count_params(model)
    title = f"{network}, {num_params / 1e6:.1f} M"
    rows = []
    for idx, proxy in enumerate(proxies):
        own, passes = columns[2 * idx : 2 * idx + 2]
        above = statistics.median(a - b for a, b in zip(own, passes, strict=True))
        milliseconds = [f"{1000 * statistics.median(seconds):.0f}" for seconds in (own, passes)]
        rows.append([f"{title}, {proxy}", str(batch_size), *milliseconds, f"{1e9 * above / num_params:.1f}"])
    for what, seconds in zip(("drawn plainly", "copied to float64 plainly"), columns[-2:], strict=True):
        median = statistics.median(seconds)
        rows.append([f"{title}, weights {what}", "", f"{1000 * median:.0f}", "", f"{1e9 * median / num_params:.1f}"])
    return rows


def compare_recipe(
    console: Console, networks: Sequence[str], sizes: Sequence[int], num_batches: int, rounds: int
) -> None:
    """Print the cost of the default recipe, and what large networks pay for their weights."""
    costs = [measure_recipe(network, size, num_batches, rounds) for network in networks for size in sizes]
    columns = ["network", "batch", "ZiCo ms", "default ms", "default / ZiCo"]
    print_table(console, "The default recipe and ZiCo, each alone", columns, [cost.cells() for cost in costs])
    rows = measure_weights("wide", wide(), min(sizes), rounds)
    for network in networks:
        if count_params(model := built(network)) >= LARGE:
            rows += measure_weights(network, model, min(sizes), rounds)
    columns = ["network, proxy", "batch", "ms alone", "ms of its passes", "ns above, per parameter"]
    print_table(console, "Large networks: what is paid for weights rather than for passes", columns, rows)
    for size in sizes:
        ratios = {cost.network: cost.ratio for cost in costs if cost.batch_size == size}
        told = ", ".join(f"{network} {ratio:.2f}" for network, ratio in ratios.items())
        verdict = "holds" if max(ratios.values()) <= RECIPE_LIMIT else "DOES NOT HOLD"
        console.print(f"batch {size}: the default recipe over `zico`, at most {RECIPE_LIMIT}: {told}: {verdict}")


# --- all of it -----------------------------------------------------------------------------------


def small() -> nn.Module:
    """Build a network of two blocks on which every proxy can be computed in a moment, for `--quick`."""

    def block(in_channels: int, out_channels: int) -> nn.Module:
        convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU())

    return nn.Sequential(block(3, 8), block(8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


def parsed_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="for the recipe")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[64, 16], help="the table is of the first")
    parser.add_argument("--num-batches", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=9, help="rounds of the recipe and ZiCo")
    parser.add_argument("--recipe", action="store_true", help="compare only the default recipe with ZiCo")
    parser.add_argument("--quick", action="store_true", help="quick check of all parts, on one network")
    arguments = parser.parse_args(words)
    if arguments.quick:
        arguments.networks, arguments.batch_sizes, arguments.rounds = ["nas_bench_201"], [16], 2
    return arguments


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print."""
    arguments = parsed_arguments(words)
    torch.manual_seed(0)
    space = get_space("nas_bench_201")
    model = space.build(space.parse(ARCH))
    console = Console(width=None if Console().is_terminal else 200)
    console.print(
        f"torch {torch.__version__}, CPU, {torch.get_num_threads()} threads, {arguments.num_batches} batches",
        highlight=False,
    )
    sizes, num_batches = arguments.batch_sizes, arguments.num_batches
    if arguments.quick:
        compare_proxies(console, small(), [QUICK_BATCH], num_batches, repeats=1)
    elif not arguments.recipe:
        compare_proxies(console, model, sizes, num_batches, arguments.repeats)
    compare_recipe(console, arguments.networks, sizes, num_batches, arguments.rounds)


if __name__ == "__main__":
    main()
