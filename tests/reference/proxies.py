"""Proxies that need derivatives: one backward pass at a time, gradients of weights as NumPy vectors in float64."""

import copy
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.reference.gradients import gradient_of, per_batch, per_sample, with_constant_batch_norm
from tests.reference.watch import (
    BATCH_NORMS,
    as_double,
    calls,
    copy_of,
    correlations,
    flat,
    layer_calls,
    layer_output_size,
    layer_weights,
    layers_of,
    num_patterns,
    separated,
    weight_name,
)
from tests.reference.zico import zico_from_stacks

Loss = Callable[[Tensor, Tensor], Tensor]
Batch = tuple[Tensor, Tensor]


def layer_gradients(model: nn.Module, x: Tensor, y: Tensor, loss_fn: Loss = F.cross_entropy) -> dict[str, np.ndarray]:
    """Gradient of each layer's weight on a batch, by name."""
    gradients = gradient_of(copy_of(model), _step(loss_fn), (as_double(x), as_double(y)))
    return {name: gradients[name].numpy() for name in layer_weights(model)}


def sample_gradients(model: nn.Module, x: Tensor, y: Tensor, loss_fn: Loss = F.cross_entropy) -> list[np.ndarray]:
    """Gradient of all layers' weights for each sample, `[P]`, under the batch's statistics as constants."""
    batch = (as_double(x), as_double(y))
    pinned = with_constant_batch_norm(copy_of(model), _step(loss_fn), batch)
    gradients = per_sample(pinned, _step(loss_fn), [batch])
    return [flat(of_one[name] for name in layer_weights(model)) for of_one in gradients]


def grad_norm(model: nn.Module, x: Tensor, y: Tensor, loss_fn: Loss = F.cross_entropy) -> float:
    return float(sum(np.sqrt(np.sum(g**2)) for g in layer_gradients(model, x, y, loss_fn).values()))


def l2_norm(model: nn.Module) -> float:
    return float(sum(np.sqrt(np.sum(flat([w.double()]) ** 2)) for w in layer_weights(model).values()))


def plain(model: nn.Module, x: Tensor, y: Tensor, loss_fn: Loss = F.cross_entropy) -> float:
    return float(sum(products.sum() for products in _weights_times_gradients(model, x, y, loss_fn)))


def snip(model: nn.Module, x: Tensor, y: Tensor, loss_fn: Loss = F.cross_entropy) -> float:
    return float(sum(np.abs(products).sum() for products in _weights_times_gradients(model, x, y, loss_fn)))


def grasp(model: nn.Module, x: Tensor, y: Tensor, loss_fn: Loss = F.cross_entropy) -> float:
    """Write down the whole Hessian, row by row, and multiply."""
    twin = copy_of(model)
    weights = list(layer_weights(twin).values())
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernel of attention has no second derivative
        loss = loss_fn(twin(as_double(x)), as_double(y))
    gradients = torch.autograd.grad(loss, weights, create_graph=True, materialize_grads=True)
    g = torch.cat([gradient.reshape(-1) for gradient in gradients])  # [P]
    hessian = np.zeros((len(g), len(g)))
    if g.requires_grad:
        for i in range(len(g)):
            hessian[i] = flat(torch.autograd.grad(g[i], weights, retain_graph=True, materialize_grads=True))
    return float(-flat(weights) @ (hessian @ flat([g])))


def fisher(model: nn.Module, x: Tensor, y: Tensor, loss_fn: Loss = F.cross_entropy, *, fan_in: bool = True) -> float:
    """Loop over calls, channels and samples."""
    twin = copy_of(model)
    outputs: list[tuple[nn.Module, Tensor]] = []

    def keep(layer: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        output.retain_grad()
        outputs.append((layer, output))
        return output.clone()  # an activation in place must not overwrite what is kept

    for layer in layers_of(twin).values():
        layer.register_forward_hook(keep)
    loss_fn(twin(as_double(x)), as_double(y)).backward()
    total = 0.0
    for layer, output in outputs:
        if output.grad is None:
            continue
        saliency = (output * output.grad).detach().numpy()
        if isinstance(layer, nn.Linear):
            saliency = np.moveaxis(saliency, -1, 1)  # [B, *, C] -> [B, C, *]
        factor = _fan_in(layer) if fan_in else 1
        for channel in range(saliency.shape[1]):
            squares = [float(saliency[sample, channel].sum()) ** 2 for sample in range(len(saliency))]
            total += factor * 0.5 * sum(squares) / len(squares)
    return total


def synflow(model: nn.Module, x: Tensor) -> float:
    """Swap batch-normalisation modules for identities and run on ones, or on the first sample's own integers."""
    twin = copy_of(model)
    for name, module in list(twin.named_modules()):
        if isinstance(module, BATCH_NORMS):
            parent, _, child = name.rpartition(".")
            setattr(twin.get_submodule(parent), child, nn.Identity())
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.copy_(parameter.abs())
    sample = torch.ones(1, *x.shape[1:], dtype=torch.float64) if x.is_floating_point() else x[:1]
    twin(sample).sum().backward()
    weights = [weight for weight in layer_weights(twin).values() if weight.grad is not None]
    return float(np.log(sum((weight * weight.grad).abs().sum().item() for weight in weights)))


def input_jacobian(model: nn.Module, x: Tensor) -> np.ndarray:
    """Derivative of the sum of all logits by each sample, `[B, D]`, or by what an embedding makes of each."""
    if x.is_floating_point():
        leaf = as_double(x).requires_grad_()
        copy_of(model)(leaf).sum().backward()
        return leaf.grad.reshape(len(x), -1).numpy()
    twin = copy_of(model)
    leaves: list[Tensor] = []

    def cut(_module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    for module in twin.modules():
        if isinstance(module, nn.Embedding):
            module.register_forward_hook(cut)
    twin(x).sum().backward()
    return np.concatenate([leaf.grad.reshape(len(x), -1).numpy() for leaf in leaves], axis=1)


def jacob_cov(model: nn.Module, x: Tensor) -> float:
    matrix = correlations(input_jacobian(model, x))
    if np.isnan(matrix).any():
        return float("nan")
    eigenvalues = np.linalg.eigvalsh(matrix)
    return float(-sum(np.log(v + 1e-5) + 1 / (v + 1e-5) for v in eigenvalues))


def epe_nas(model: nn.Module, x: Tensor, y: Tensor) -> float:
    jacobian = input_jacobian(model, x)
    with torch.no_grad():
        num_classes = copy_of(model)(as_double(x)).shape[1]
    sums, counts = [], []
    for label in sorted(set(y.tolist())):
        rows = jacobian[[i for i in range(len(y)) if y[i] == label]]
        if len(rows) >= 2:
            sums.append(sum(np.log(abs(entry) + 1e-5) for entry in correlations(rows).reshape(-1)))
            counts.append(len(rows))
    if num_classes <= 100:
        return float(sum(abs(s) for s in sums))
    means = [s / count for s, count in zip(sums, counts, strict=True)]
    return float(sum(abs(c - d) for c in means for d in means) / len(means))


def ntk_cond(model: nn.Module, x: Tensor) -> float:
    """One backward pass per sample through the joint forward pass."""
    twin = copy_of(model)
    logits = twin(as_double(x))
    rows = []
    for sample in range(len(x)):
        twin.zero_grad(set_to_none=False)
        logits[sample].sum().backward(retain_graph=True)
        weights = layer_weights(twin).values()
        rows.append(flat(torch.zeros_like(w) if w.grad is None else w.grad for w in weights))
    eigenvalues = np.linalg.eigvalsh(np.array([[np.dot(a, b) for b in rows] for a in rows]))
    return float(-(eigenvalues.max() / eigenvalues.min()))


def gradsign(model: nn.Module, x: Tensor, y: Tensor, loss_fn: Loss = F.cross_entropy) -> float:
    signs = [np.sign(g) for g in sample_gradients(model, x, y, loss_fn)]
    return float(np.mean(np.abs(sum(signs))))


def knas(model: nn.Module, x: Tensor, y: Tensor, loss_fn: Loss = F.cross_entropy) -> float:
    gradients = sample_gradients(model, x, y, loss_fn)
    return float(np.mean([np.dot(a, b) for a in gradients for b in gradients]))


def vkdnw(model: nn.Module, x: Tensor, num_entries: int = 8) -> float:
    """Sum the Fisher information over samples and classes, one outer product at a time."""
    x = as_double(x)
    twin = with_constant_batch_norm(copy_of(model), lambda module, batch, _idx: module(batch[0]), (x,))
    weights = list(layer_weights(twin).values())
    information: np.ndarray | float = 0.0
    for sample in range(len(x)):
        log_p = F.log_softmax(twin(x[sample : sample + 1])[0], dim=0)  # [K]
        for k in range(len(log_p)):
            gradients = torch.autograd.grad(log_p[k], weights, retain_graph=True, materialize_grads=True)
            s = flat(gradient.reshape(-1)[:num_entries] for gradient in gradients)
            information = information + np.exp(log_p[k].item()) * np.outer(s, s) / len(x)
    # a rank-deficient matrix has eigenvalues of -1e-18, which no logarithm takes
    eigenvalues = np.clip(np.linalg.eigvalsh(information), 0, None)
    deciles = [np.quantile(eigenvalues, tenth / 10) for tenth in range(1, 10)]
    shares = [decile / sum(deciles) for decile in deciles]
    return float(len(weights) - sum(p * np.log(p) for p in shares if p > 0))


def lswag(model: nn.Module, batches: Sequence[Batch], loss_fn: Loss = F.cross_entropy) -> float:
    total = 0.0
    for stack in _stacks(model, batches, loss_fn).values():
        magnitudes = np.abs(stack).reshape(len(stack), -1)
        inverses = [1 / np.std(magnitudes[:, w]) for w in np.flatnonzero(np.ptp(magnitudes, axis=0))]
        if inverses:
            total += np.log(sum(inverses))
    return float(total * num_patterns(model, batches[0][0]))


def zico_bc(model: nn.Module, batches: Sequence[Batch], loss_fn: Loss = F.cross_entropy, beta: float = 1.0) -> float:
    """Layers that never run have no output and no term; of one that runs twice the last output counts."""
    terms = {}
    for call in layer_calls(model, batches[0][0]):
        positions, channels = layer_output_size(call)
        terms[weight_name(model, call.name)] = np.log(positions / np.sqrt(channels))
    return float(zico_from_stacks(_stacks(model, batches, loss_fn)) - beta * sum(terms.values()))


def params_live(model: nn.Module, x: Tensor, y: Tensor, loss_fn: Loss = F.cross_entropy) -> float:
    return float(sum(g.size for g in layer_gradients(model, x, y, loss_fn).values() if g.any()))


def macs_live(model: nn.Module, x: Tensor, y: Tensor, loss_fn: Loss = F.cross_entropy) -> float:
    """Each call counts; a transposed convolution multiplies its weight at each position of its input."""
    live = {name for name, g in layer_gradients(model, x, y, loss_fn).items() if g.any()}
    total = 0
    for call in layer_calls(model, x):
        if weight_name(model, call.name) in live:
            positions, _ = layer_output_size(call)
            if isinstance(call.module, nn.modules.conv._ConvTransposeNd):
                positions = call.input[0, 0].size
            total += positions * call.module.weight.numel()
    return float(total)


def intrain(model: nn.Module, x: Tensor, y: Tensor, loss_fn: Loss = F.cross_entropy) -> float:
    """Attention has one output, and the gradients of a linear layer for each projection."""
    ratios = {}
    names = {*layers_of(model), *(n for n, m in model.named_modules() if isinstance(m, nn.MultiheadAttention))}
    for call in calls(model, x, lambda name, _module: name in names):
        output = np.moveaxis(call.output, 1, -1) if isinstance(call.module, nn.modules.conv._ConvNd) else call.output
        covariance = np.atleast_2d(np.cov(output.reshape(-1, output.shape[-1]).T, bias=True))
        ratios[call.name] = np.trace(covariance) ** 2 / np.trace(covariance @ covariance)
    healths = [np.std(g) / np.abs(g).max() for g in layer_gradients(separated(model), x, y, loss_fn).values()]
    return float(sum(np.log(ratio) for ratio in ratios.values()) * (1 + sum(healths)) / np.log(len(ratios) + 1))


def curvature(model: nn.Module, point: Tensor, velocity: Tensor, chosen: Sequence[int], step: float = 1e-3) -> float:
    """Central differences along the circle `cos(t) point + sin(t) velocity`, in float64."""
    twin = copy_of(model)

    def outputs(angle: float) -> np.ndarray:
        with torch.no_grad():
            return twin(math.cos(angle) * point + math.sin(angle) * velocity).reshape(-1)[list(chosen)].numpy()

    before, here, after = outputs(-step), outputs(0.0), outputs(step)
    v, a = (after - before) / (2 * step), (after - 2 * here + before) / step**2
    return float(np.sqrt(v @ v * (a @ a) - (v @ a) ** 2) / (v @ v) ** 1.5)


def az_trainability(model: nn.Module, block_names: Sequence[str], x0: Tensor, vs: Sequence[Tensor]) -> float:
    """Run anew for each pair of blocks, cut at the first of the two."""
    terms = []
    for pair, direction in enumerate(vs):
        v = as_double(direction)
        u = _pulled_back(model, block_names, x0, pair, v)
        if u.shape == v.shape and np.array_equal(u, v.numpy()):
            continue
        if v.ndim == 4:
            u = _pixel_unshuffle(u, u.shape[2] // v.shape[2])
            u, v = np.moveaxis(u, 1, -1), v.movedim(1, -1)
        rows_u, rows_v = u.reshape(-1, u.shape[-1]), v.numpy().reshape(-1, v.shape[-1])
        # of tokens, the multiple of the signs is averaged by itself
        beta = float(np.vdot(rows_u, rows_v) / np.vdot(rows_v, rows_v)) if v.ndim == 3 else 0.0
        width = rows_v.shape[1]
        known = beta * np.eye(width) if beta else 0.0
        rows = zip(rows_u, rows_v, strict=True)
        mean = known + sum(np.outer(a - beta * b if beta else a, b) for a, b in rows) / len(rows_v)  # [C', C]
        sigma = np.linalg.svd(mean, compute_uv=False).max()
        terms.append(2 - sigma - 1 / (sigma + 1e-6))
    return float(np.mean(terms)) if terms else float("nan")


def _pulled_back(model: nn.Module, block_names: Sequence[str], x0: Tensor, pair: int, v: Tensor) -> np.ndarray:
    """Derivative of `<v, output of block pair + 1>` by the output of block `pair`."""
    twin = copy_of(model)
    outputs: list[Tensor] = []

    def cut(_block: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if len(outputs) == pair:
            output = output.detach().clone().requires_grad_()
        outputs.append(output)
        return output.clone()  # what the next block does in place must not reach what is kept

    for name in block_names:
        twin.get_submodule(name).register_forward_hook(cut)
    twin(as_double(x0))
    (outputs[pair + 1] * v).sum().backward()
    leaf = outputs[pair]
    return np.zeros(leaf.shape) if leaf.grad is None else leaf.grad.numpy()


def _pixel_unshuffle(u: np.ndarray, r: int) -> np.ndarray:
    """Turn each square of `r * r` positions into channels."""
    assert u.shape[2] % r == 0
    assert u.shape[3] % r == 0
    shifted = [u[:, c, i::r, j::r] for c in range(u.shape[1]) for i in range(r) for j in range(r)]
    return np.stack(shifted, axis=1)  # [B, C * r * r, h, w]


def _step(loss_fn: Loss) -> Callable[[nn.Module, tuple[Tensor, ...], int], Tensor]:
    return lambda module, batch, _idx: loss_fn(module(batch[0]), batch[1])


def _stacks(model: nn.Module, batches: Sequence[Batch], loss_fn: Loss) -> dict[str, np.ndarray]:
    """Gradients of each layer's weight over the batches, `[N, *]`."""
    doubled = [(as_double(x), as_double(y)) for x, y in batches]
    gradients = per_batch(copy_of(model), _step(loss_fn), doubled)
    return {name: np.stack([g[name].numpy() for g in gradients]) for name in layer_weights(model)}


def _weights_times_gradients(model: nn.Module, x: Tensor, y: Tensor, loss_fn: Loss) -> list[np.ndarray]:
    weights = layer_weights(copy.deepcopy(model).double())
    return [weights[name].detach().numpy() * g for name, g in layer_gradients(model, x, y, loss_fn).items()]


def _fan_in(layer: nn.Module) -> float:
    num_outputs = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    return layer.weight.numel() / num_outputs
