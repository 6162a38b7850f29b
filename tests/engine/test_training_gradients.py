"""The gradient is the one that training takes, also where a step looks at its own parameters."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_zico import list_proxies, score
from lightning_zico.engine.probe import Probe
from lightning_zico.proxies import ZiCo
from tests.engine.models import assert_same, batches_of, gradients_of, identical
from tests.reference.gradients import per_batch, per_sample

FLOAT32 = 1e-4  # by two routes, of a derivative of a derivative


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3))


def loss_of(m: nn.Module, b: Any) -> Tensor:
    return F.cross_entropy(m(b[0]), b[1])


def penalty(m: nn.Module, b: Any, i: int) -> Tensor:
    loss = loss_of(m, b)
    gradients = torch.autograd.grad(loss, [p for p in m.parameters() if p.requires_grad], create_graph=True)
    return loss + sum(g.square().sum() for g in gradients)


def length(m: nn.Module, b: Any, i: int) -> Tensor:
    """The length of all that is trainable mixes what is scored with what is not."""
    return loss_of(m, b) + torch.stack([p.square().sum() for p in m.parameters() if p.requires_grad]).sum().sqrt()


def adapted(m: nn.Module, b: Any, i: int) -> Tensor:
    """Take one step of MAML inside."""
    params = dict(m.named_parameters())
    gradients = torch.autograd.grad(loss_of(m, b), list(params.values()), create_graph=True)
    moved = {name: p - 0.1 * g for (name, p), g in zip(params.items(), gradients, strict=True)}
    return F.cross_entropy(functional_call(m, moved, (b[0],)), b[1])


def zeroed(m: nn.Module, b: Any, i: int) -> Tensor:
    m.zero_grad()
    loss_of(m, b).backward()
    m.zero_grad()
    return loss_of(m, b)


def frozen_meanwhile(m: Any, b: Any, i: int) -> Tensor:
    m[0].weight.requires_grad_(False)
    m[0].weight.grad = None
    return loss_of(m, b)


STEPS = [penalty, length, adapted, zeroed, frozen_meanwhile]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("scored", [None, ["0.weight", "3.weight"]])
def test_a_step_that_looks_at_its_parameters_has_the_gradient_of_training(step: Any, scored: list[str] | None) -> None:
    module, batches = network(), batches_of(4)
    before = copy.deepcopy(module.state_dict())
    expected = [{name: g[name] for name in scored or g} for g in per_batch(module, with_all(step), batches)]
    actual, _ = gradients_of(module, batches, step, names=scored)
    assert_same(actual, expected, FLOAT32)
    assert identical(module, before)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in module.parameters())


def with_all(step: Any) -> Any:
    """Of a parameter that the step froze `backward` leaves what was there, which is nothing."""

    def on_a_twin(m: nn.Module, b: Any, i: int) -> Tensor:
        loss = step(m, b, i)
        m.requires_grad_(True)
        return loss

    return on_a_twin


@pytest.mark.parametrize("step", [penalty, length, adapted])
def test_per_sample_as_well(step: Any) -> None:
    module, batches = network(), batches_of(4, num_batches=1, num_samples=3)
    names = ["0.weight", "3.weight"]
    expected = [{name: g[name] for name in names} for g in per_sample(module, step, batches)]
    actual, _ = gradients_of(module, batches, step, names=names, axis="sample")
    assert_same(actual, expected, FLOAT32)


@pytest.mark.parametrize("build", [lambda: listed(), lambda: clamped(network())], ids=["in a list", "clamped"])
def test_per_sample_what_vmap_does_not_see(build: Callable[[], Any]) -> None:
    def step(m: Any, b: Any, i: int) -> Tensor:
        return loss_of(m, b) + sum(p.norm() for p in getattr(m, "kept", ()))

    module, batches = build(), batches_of(4, num_batches=1, num_samples=3)
    before = copy.deepcopy(module.state_dict())
    samples = [tuple(tensor[i : i + 1] for tensor in batches[0]) for i in range(3)]
    actual, facts = gradients_of(module, batches, step, axis="sample")
    assert facts.backends == ["loop"]
    assert identical(module, before)
    assert all(p.grad is None for p in module.parameters())
    expected = []
    for sample in samples:
        step(module, sample, 0).backward()
        expected.append({name: p.grad.clone() for name, p in module.named_parameters()})
        module.zero_grad()
    assert_same(actual, expected, FLOAT32)


def test_a_hook_that_steps_an_optimizer_leaves_gradient_and_weights() -> None:
    module, batches = network(), batches_of(4)
    plain, _ = gradients_of(module, batches)
    before = copy.deepcopy(module.state_dict())
    optimizers = {p: torch.optim.SGD([p], lr=1.0) for p in module.parameters()}

    def step(parameter: Tensor) -> None:
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in module.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    stepped, _ = gradients_of(module, batches)
    assert_same(stepped, plain, 0)
    assert identical(module, before)


@pytest.mark.parametrize("axis", ["batch", "sample"])
def test_parameters_are_what_they_are_in_training(axis: Any) -> None:
    module = network()
    module[3].bias.requires_grad_(False)
    module[0].weight.group = "first"
    seen = []

    def step(m: nn.Module, b: Any, i: int) -> Tensor:
        seen.extend((isinstance(p, nn.Parameter), p.requires_grad) for p in m.parameters())
        assert axis == "sample" or m[0].weight.group == "first"
        return loss_of(m, b)

    _, facts = gradients_of(module, batches_of(4, num_batches=1), step, names=["0.weight"], axis=axis)
    assert seen[:6] == [(True, True)] * 5 + [(True, False)]
    assert facts.backends == ["autograd" if axis == "batch" else "vmap"]


@pytest.mark.parametrize("axis", ["batch", "sample"])
def test_hooks_on_parameters_act(axis: Any) -> None:
    module, batches = network(), batches_of(4, num_samples=3)
    mask = (torch.rand(6, 4) > 0.5).float()
    plain, _ = gradients_of(module, batches, axis=axis)
    module[0].weight.register_hook(lambda gradient: gradient * mask)
    module[0].weight.register_post_accumulate_grad_hook(lambda parameter: None)
    masked, facts = gradients_of(module, batches, axis=axis)
    assert_same(masked, [g | {"0.weight": g["0.weight"] * mask} for g in plain], FLOAT32)
    assert facts.backends == ["autograd" if axis == "batch" else "loop"]


def test_a_parameter_of_a_class_of_its_own_keeps_it() -> None:
    class Named(nn.Parameter):
        pass

    module = network()
    module[0].weight = Named(module[0].weight.detach())
    kinds = []

    def step(m: Any, b: Any, i: int) -> Tensor:
        kinds.append(type(m[0].weight))
        return loss_of(m, b)

    gradients_of(module, batches_of(4), step)
    assert set(kinds) == {Named}


# Against Lightning's own training


class Fitted(LightningModule):
    """Trains a network on a loss, and keeps the gradients that the optimizer gets."""

    def __init__(self, net: nn.Module, loss: Callable[..., Tensor] = lambda m, b, i: loss_of(m, b)) -> None:
        super().__init__()
        self.net, self.loss = net, loss
        self.kept: list[dict[str, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(self, batch, batch_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.kept.append(
            {
                name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
                for name, p in self.named_parameters()
                if p.requires_grad
            }
        )


class Apply(nn.Module):
    def __init__(self, function: Callable[..., Tensor], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part if isinstance(part, nn.Module) else nn.Parameter(part))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def pruned(layer: nn.Module) -> nn.Module:
    prune.random_unstructured(layer, "weight", 0.5)
    return layer


def masked(net: nn.Sequential) -> nn.Sequential:
    mask = (torch.rand(6, 4) > 0.5).float()
    net[0].weight.register_hook(lambda gradient: gradient * mask)
    return net


def half_frozen(net: nn.Sequential) -> nn.Sequential:
    net[0].requires_grad_(False)
    return net


def listed() -> nn.Module:
    net = network()
    net.kept = list(net.parameters())
    return net


def bound() -> nn.Module:
    net = network()
    weight = net[3].weight
    net.penalty = lambda: weight.norm()
    return net


def behind(m: Any, b: Any, i: int) -> Tensor:
    """A checkpoint that only `backward()` follows, and a parameter that is kept beside it."""
    x = b[0].clone().requires_grad_()
    return F.cross_entropy(checkpoint(m.net, x, use_reentrant=True), b[1]) + m.net.kept[0].norm()


def alone(m: Any, b: Any, i: int) -> Tensor:
    """Nothing but what is kept."""
    weight, bias, *_ = m.net.kept
    return F.cross_entropy(F.linear(b[0], weight, bias)[:, :3], b[1])


class Adjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, net: nn.Module, x: Tensor, *params: Tensor) -> Tensor:
        ctx.net, ctx.x = net, x
        with torch.no_grad():
            return net(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        with torch.enable_grad():
            found = torch.autograd.grad(ctx.net(ctx.x), list(ctx.net.parameters()), gradient)
        return None, None, *found


class KeptAdjoint(Adjoint):
    """As adjoint solvers are written: with respect to a tuple of parameters that was made in ``__init__``."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        with torch.enable_grad():
            found = torch.autograd.grad(ctx.net(ctx.x), ctx.net.kept, gradient, allow_unused=True)
        return None, None, *found


def penalty_on_kept(m: Any, b: Any, i: int) -> Tensor:
    loss = loss_of(m, b)
    gradients = torch.autograd.grad(loss, m.net.kept, create_graph=True)
    return loss + sum(g.square().sum() for g in gradients)


def sharpness(m: Any, b: Any, i: int) -> Tensor:
    """Take the loss where an optimizer of its own has gone uphill, as sharpness-aware minimisation does."""
    m.net.optimizer[0].zero_grad()
    loss_of(m, b).backward()
    m.net.optimizer[0].step()
    m.net.optimizer[0].zero_grad()
    loss = loss_of(m, b)
    with torch.no_grad():
        for p, saved in zip(m.net.kept, m.net.saved, strict=True):
            assert not torch.equal(p, saved)
    return loss


def climbing() -> nn.Module:
    net = listed()
    net.optimizer = [torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, maximize=True)]
    net.saved = [p.detach().clone() for p in net.parameters()]
    return net


def clamped(net: nn.Sequential) -> nn.Sequential:
    def clamp(parameter: Tensor) -> None:
        assert parameter.grad is not None
        parameter.grad.clamp_(-0.01, 0.01)

    net[0].weight.register_post_accumulate_grad_hook(clamp)
    return net


def attended(m: Any, x: Tensor) -> Tensor:
    h = x.unsqueeze(1) + m.positions
    return m.head(m.attention(h, h, h, need_weights=False)[0].mean(1))


def distilled(m: Any, b: Any, i: int) -> Tensor:
    with torch.no_grad():
        target = m.net.teacher(b[0])
    return F.mse_loss(m.net.student(b[0]), target) + loss_of(m.net.student, b)


def taught() -> nn.Module:
    student = network()
    teacher = copy.deepcopy(student)
    nn.init.normal_(teacher[0].weight)
    return Apply(lambda m, x: m.student(x), student=student, teacher=teacher)


Kind = tuple[Callable[[], nn.Module], Callable[..., Tensor]]
plain_loss: Callable[..., Tensor] = lambda m, b, i: loss_of(m, b)  # noqa: E731
KINDS: dict[str, Kind] = {
    "network": (network, plain_loss),
    "batch norm": (lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)), plain_loss),
    "penalty": (network, penalty),
    "length": (network, length),
    "inner step": (network, adapted),
    "masked": (lambda: masked(network()), plain_loss),
    "half frozen": (lambda: half_frozen(network()), plain_loss),
    "pruned": (lambda: nn.Sequential(pruned(nn.Linear(4, 6)), nn.ReLU(), nn.Linear(6, 3)), plain_loss),
    "spectral norm, old": (lambda: torch.nn.utils.spectral_norm(nn.Linear(4, 3)), plain_loss),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Linear(4, 3)), plain_loss),
    "orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(4, 3)), plain_loss),
    "low rank": (
        lambda: Apply(lambda m, x: x @ m.a @ m.b, a=torch.randn(4, 2), b=torch.randn(2, 3)),
        plain_loss,
    ),
    "lstm": (
        lambda: Apply(lambda m, x: m.head(m.cell(x.unsqueeze(1))[0][:, 0]), cell=nn.LSTM(4, 5), head=nn.Linear(5, 3)),
        plain_loss,
    ),
    "attention": (
        lambda: Apply(
            attended,
            attention=nn.MultiheadAttention(4, 2, batch_first=True),
            positions=torch.zeros(1, 1, 4),
            head=nn.Linear(4, 3),
        ),
        plain_loss,
    ),
    "complex": (
        lambda: Apply(lambda m, x: (x + 0j).matmul(m.w).abs(), w=torch.randn(4, 3, dtype=torch.cfloat)),
        plain_loss,
    ),
    "checkpoint": (lambda: Apply(lambda m, x: checkpoint(m.net, x, use_reentrant=False), net=network()), plain_loss),
    "teacher": (taught, distilled),
    "in a list": (listed, lambda m, b, i: loss_of(m, b) + sum(p.norm() for p in m.net.kept)),
    "in a list, beside a checkpoint": (listed, behind),
    "in a list alone": (listed, alone),
    "in a closure": (bound, lambda m, b, i: loss_of(m, b) + m.net.penalty()),
    "in an adjoint function": (listed, lambda m, b, i: F.cross_entropy(Adjoint.apply(m.net, b[0], *m.net.kept), b[1])),
    "differentiated in a list": (listed, penalty_on_kept),
    "in an adjoint function of a list": (
        listed,
        lambda m, b, i: F.cross_entropy(KeptAdjoint.apply(m.net, b[0], *m.net.kept), b[1]),
    ),
    "an optimizer of its own": (climbing, sharpness),
    "clamped afterwards": (lambda: clamped(network()), plain_loss),
}


def seeded(build: Callable[[], nn.Module], loss: Callable[..., Tensor]) -> Fitted:
    torch.manual_seed(0)
    return Fitted(build(), loss)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_fit(kind: str) -> None:
    build, loss = KINDS[kind]
    batches = batches_of(4, num_samples=5)
    module, twin = (seeded(build, loss) for _ in range(2))  # a copy would have no hooks
    data = TensorDataset(*(torch.cat(tensors) for tensors in zip(*batches, strict=True)))
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        barebones=False,
    )
    trainer.fit(twin, DataLoader(data, batch_size=5))
    probe = Probe(module, lambda m, b, i: m.training_step(b, i), batches)
    seen: list[dict[str, Tensor]] = []
    layers = probe.chosen()

    def keep(chunk: Any) -> None:
        seen.append({name: gradient[0].clone() for name, gradient in chunk.gradients.items()})

    probe.stream(layers, keep, axis="batch")
    expected = [layers.split(gradients) for gradients in twin.kept]
    # buffers: power iteration goes on from batch to batch in training, and starts anew here
    # an optimizer in the step moves the weights for good
    first = slice(1) if "spectral" in kind or "optimizer" in kind else slice(None)
    assert_same(seen[first], expected[first], FLOAT32)
    assert ZiCo().measure(probe).details["covered"] > 0.3


class Reads(Fitted):
    """Looks at its parameters through the optimizer that a trainer gave it."""

    def __init__(self) -> None:
        super().__init__(network(), loss_of_optimized)


def loss_of_optimized(m: Any, b: Any, i: int) -> Tensor:
    parameters = [p for group in m.optimizers().param_groups for p in group["params"]]
    assert parameters[0] is m.net[0].weight
    assert all(p.requires_grad for p in parameters)
    return loss_of(m, b) + sum(p.norm() for p in parameters)


@pytest.mark.parametrize("name", list_proxies())
def test_optimizers_hold_the_parameters_that_the_step_runs_on(name: str) -> None:
    torch.manual_seed(0)
    module, batches = Reads(), batches_of(4)
    before = copy.deepcopy(module.state_dict())
    plain = score(Fitted(copy.deepcopy(module.net)), batches, proxies=[name])
    assert score(module, batches, proxies=[name])[name].error == plain[name].error
    assert identical(module, before)
    assert all(p.grad is None and p.requires_grad for p in module.parameters())


@pytest.mark.parametrize("kind", [torch.optim.Adam, partial(torch.optim.SGD, lr=0.1, momentum=0.9)])
def test_an_optimizer_that_the_step_steps_is_put_back(kind: Any) -> None:
    module, batches = network(), batches_of(4)
    optimizer = kind(module.parameters())
    loss_of(module, batches[0]).backward()
    optimizer.step()
    optimizer.zero_grad()
    before = copy.deepcopy((module.state_dict(), optimizer.state_dict()))

    def step(m: Any, b: Any, i: int) -> Tensor:
        loss_of(m, b).backward()
        optimizer.step()
        optimizer.param_groups[0]["lr"] *= 2
        optimizer.zero_grad()
        return loss_of(m, b)

    first, _ = gradients_of(module, batches, step)
    again, _ = gradients_of(module, batches, step)
    assert_same(again, first, 0)
    assert identical(module, before[0])
    torch.testing.assert_close(optimizer.state_dict(), before[1], rtol=0, atol=0)


@pytest.mark.parametrize("axis", ["batch", "sample"])
def test_a_sparse_gradient_has_the_numbers_of_a_dense_one(axis: Any) -> None:
    def built(is_sparse: bool) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.EmbeddingBag(7, 4, sparse=is_sparse), nn.Linear(4, 3))

    batches = [(torch.randint(7, (5, 4)), torch.randint(3, (5,))) for _ in range(2)]
    sparse, dense = (gradients_of(built(is_sparse), batches, axis=axis)[0] for is_sparse in (True, False))
    assert_same(sparse, dense, FLOAT32)


def test_what_is_not_wanted_is_not_differentiated(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = []
    grad = torch.autograd.grad

    def spy(outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        wanted.append(len(inputs))
        return grad(outputs, inputs, *args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", spy)
    gradients_of(network(), batches_of(4), names=["0.weight"])
    assert wanted == [1, 1]
