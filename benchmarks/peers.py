"""Time of our scores against those of other codes, whose algorithms are written out plainly here.

README.md beside this file tells how.

Index conventions:
    N: samples in a batch
    *: shape of one parameter
"""

import argparse
import copy
from collections.abc import Callable, Sequence
from functools import partial
from types import MethodType

import torch
import torch.nn.functional as F  # noqa: N812
from networks import NETWORKS
from rich.console import Console
from speed import backward, built, ours, print_table, published, random_batches, ratio_text, rounds_of
from torch import Tensor, nn

from lightning_zico import score

_Batch = tuple[Tensor, Tensor]

# The networks of `networks.py` without the transformer, since layers are replaced by their forward passes here, and
# attention calls its last layer's weights without it.
CONVOLUTIONAL = [name for name in NETWORKS if name != "vit_tiny"]

_loss_fn = nn.CrossEntropyLoss()
_EPSILON = 1e-5  # in `jacob_cov`, from the published code


# --- zero-cost-nas -------------------------------------------------------------------------------

# Abdelfattah et al., ICLR 2021, arXiv:2101.08134, with code at SamsungLabs/zero-cost-nas. Each proxy makes its own copy
# of the network and its own passes of the batch, and sums over the weights of linear and convolutional layers.


def layers_of(model: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    """List the linear and convolutional layers."""
    return [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def grad_norm(model: nn.Module, batch: _Batch) -> float:
    """Sum the norms of the gradients of the layers."""
    backward(model, batch)
    return sum(float(layer.weight.grad.norm()) for layer in layers_of(model) if layer.weight.grad is not None)


def plain(model: nn.Module, batch: _Batch) -> float:
    """Sum weight times gradient."""
    backward(model, batch)
    products = [layer.weight.grad * layer.weight for layer in layers_of(model) if layer.weight.grad is not None]
    return sum(float(product.detach().sum()) for product in products)


def l2_norm(model: nn.Module, batch: _Batch) -> float:
    """Sum the norms of the weights."""
    return sum(float(layer.weight.detach().norm()) for layer in layers_of(model))


def snip(model: nn.Module, batch: _Batch) -> float:
    """Sum the magnitudes of the gradients with respect to masks of ones, by which the weights are multiplied."""
    masks = []
    for layer in layers_of(model):
        mask = torch.ones_like(layer.weight, requires_grad=True)
        layer.weight.requires_grad = False
        masks.append(mask)
        layer.forward = MethodType(partial(_forward_masked, mask=mask), layer)  # type: ignore[method-assign]
    backward(model, batch)
    return sum(float(mask.grad.abs().sum()) for mask in masks if mask.grad is not None)


def grasp(model: nn.Module, batch: _Batch) -> float:
    """Sum weight times Hessian times gradient, with the sign of the public code."""
    weights = [layer.weight for layer in layers_of(model)]
    inputs, targets = batch
    first = torch.autograd.grad(_loss_fn(model(inputs), targets), weights)
    second = torch.autograd.grad(_loss_fn(model(inputs), targets), weights, create_graph=True)
    product: Tensor = torch.stack([(a * b).sum() for a, b in zip(first, second, strict=True)]).sum()
    product.backward()
    return sum(float(-(weight * weight.grad).detach().sum()) for weight in weights if weight.grad is not None)


def fisher(model: nn.Module, batch: _Batch) -> float:
    """Sum half the mean square of activation times gradient, of every channel as often as it has weights."""
    kept: list[tuple[int, Tensor]] = []
    for layer in layers_of(model):

        def keep(module: nn.Module, inputs: object, output: Tensor, fan_in: int = layer.weight[0].numel()) -> None:
            output.retain_grad()
            kept.append((fan_in, output))

        layer.register_forward_hook(keep)
    backward(model, batch)
    total = 0.0
    for fan_in, output in kept:
        if output.grad is None:
            raise RuntimeError("The loss does not depend on a layer.")
        product = (output * output.grad).detach()  # [N, C, *]
        per_sample = product.sum(dim=list(range(2, product.ndim))) if product.ndim > 2 else product  # [N, C]
        total += fan_in * float((per_sample.square().mean(dim=0) / 2).abs().sum())
    return total


def jacob_cov(model: nn.Module, batch: _Batch) -> float:
    """Score how differently the outputs of samples depend on their inputs."""
    inputs = batch[0].clone().requires_grad_()
    outputs = model(inputs)
    outputs.backward(torch.ones_like(outputs))
    if inputs.grad is None:
        raise RuntimeError("The output does not depend on the input.")
    eigenvalues = torch.linalg.eigvalsh(torch.corrcoef(inputs.grad.flatten(1).double()))
    return float(-(torch.log(eigenvalues + _EPSILON) + 1 / (eigenvalues + _EPSILON)).sum())


def synflow(model: nn.Module, batch: _Batch) -> float:
    """Sum weight times gradient of the sum of the outputs of ones, with the weights' magnitudes and without norms."""
    _without_norms(model)
    model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
    model(torch.ones(1, *batch[0].shape[1:], dtype=torch.float64, device=batch[0].device)).sum().backward()
    return sum(
        float((layer.weight * layer.weight.grad).detach().abs().sum())
        for layer in layers_of(model)
        if layer.weight.grad is not None
    )


ZERO_COST_NAS: dict[str, Callable[[nn.Module, _Batch], float]] = {
    "grad_norm": grad_norm,
    "plain": plain,
    "l2_norm": l2_norm,
    "snip": snip,
    "grasp": grasp,
    "fisher": fisher,
    "jacob_cov": jacob_cov,
    "synflow": synflow,
}


def zero_cost_nas(model: nn.Module, batch: _Batch, proxies: Sequence[str]) -> dict[str, float]:
    """Compute proxies as zero-cost-nas does, each on its own copy of the network."""
    return {name: ZERO_COST_NAS[name](copy.deepcopy(model), batch) for name in proxies}


def _forward_masked(layer: nn.Conv2d | nn.Linear, inputs: Tensor, *, mask: Tensor) -> Tensor:
    if isinstance(layer, nn.Conv2d):
        return layer._conv_forward(inputs, layer.weight * mask, layer.bias)
    return F.linear(inputs, layer.weight * mask, layer.bias)


def _without_norms(model: nn.Module) -> None:
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())


# --- measuring -----------------------------------------------------------------------------------


def together(model: nn.Module, batch: _Batch, proxies: Sequence[str]) -> dict[str, float]:
    """Compute proxies with this package, together.

    Raises:
        RuntimeError: If one has no value.
    """
    card = score(model, [batch], proxies=proxies, loss_fn=_loss_fn)
    values = {name: card[name].value for name in proxies}
    missing = {name: card[name].error for name, value in values.items() if value is None}
    if missing:
        raise RuntimeError(f"There is no score: {missing}")
    return {name: value for name, value in values.items() if value is not None}


def training_step(model: nn.Module, optimizer: torch.optim.Optimizer, batches: Sequence[_Batch]) -> None:
    """Take a step of training on every batch."""
    for batch in batches:
        backward(model, batch)
        optimizer.step()
        optimizer.zero_grad()


def measure(network: str, batch_size: int, proxies: Sequence[str], rounds: int) -> list[str]:
    """Time all ways on the same network and batches, taking turns.

    Returns:
        The cells of a row: network, batch size, milliseconds of a training step, and ratios.
    """
    model, trained, batches = built(network), built(network), random_batches(2, batch_size)
    optimizer = torch.optim.SGD(trained.parameters(), lr=1e-3)
    sharing = [name for name in proxies if name != "grasp"]
    functions: list[Callable[[], object]] = [
        partial(training_step, trained, optimizer, batches[:1]),
        partial(together, model, batches[0], sharing),
        partial(zero_cost_nas, model, batches[0], sharing),
        partial(together, model, batches[0], proxies),
        partial(zero_cost_nas, model, batches[0], proxies),
        partial(training_step, trained, optimizer, batches),
        partial(ours, model, batches),
        partial(published, model, batches),
    ]
    for function in functions:
        function()  # what a library allocates once
    step, own, theirs, own_all, theirs_all, steps, zico, their_zico = zip(*rounds_of(functions, rounds), strict=True)
    pairs = ((own, step), (theirs, own), (theirs_all, own_all), (zico, steps), (their_zico, zico))
    milliseconds = 1000 * sorted(step)[len(step) // 2]
    return [network, str(batch_size), f"{milliseconds:.0f}", *(ratio_text(a, b) for a, b in pairs)]


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--networks", nargs="+", choices=CONVOLUTIONAL, default=CONVOLUTIONAL)
    made.add_argument("--batch-sizes", nargs="+", type=int, default=[64, 16])
    made.add_argument("--proxies", nargs="+", choices=ZERO_COST_NAS, default=list(ZERO_COST_NAS))
    made.add_argument("--rounds", type=int, default=9)
    made.add_argument("--quick", action="store_true", help="quick check with one network and two rounds")
    return made


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print."""
    arguments = parser().parse_args(words)
    if arguments.quick:
        arguments.networks, arguments.batch_sizes, arguments.rounds = ["nas_bench_201"], [16], 2
    console = Console(width=None if Console().is_terminal else 200)  # a file or a pipe has no width: nothing is cut
    console.print(
        f"torch {torch.__version__}, CPU, {torch.get_num_threads()} threads, {arguments.rounds} rounds; "
        f"proxies: {', '.join(arguments.proxies)}",
        highlight=False,
        soft_wrap=True,
    )
    rows = [
        measure(network, size, arguments.proxies, arguments.rounds)
        for network in arguments.networks
        for size in arguments.batch_sizes
    ]
    columns = ["network", "batch", "step ms", "ours / step", "zero-cost-nas / ours", "with grasp, both"]
    columns += ["ZiCo, ours / steps", "published ZiCo / ours"]
    print_table(console, "Median ratios over rounds, with 95 % intervals", columns, rows)


if __name__ == "__main__":
    main()
