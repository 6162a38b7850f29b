"""What one traced run of a step says about parameters and the batch."""

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from lightning_zico.engine.flow import trace_flow

X, Y = torch.randn(8, 6), torch.randint(3, (8,))
TOKENS = torch.randint(10, (8, 5))


def classify(module: nn.Module, batch: Any, batch_idx: int) -> Tensor:
    return F.cross_entropy(module(batch[0]), batch[1])


class Own(nn.Module):
    """Applies a function to its parameters and its input."""

    def __init__(self, function: Callable[..., Tensor], **shapes: tuple[int, ...]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.randn(shape)))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def bayesian(m: Any, x: Tensor) -> Tensor:
    return F.linear(x, m.mean + F.softplus(m.scale) * torch.randn(3, 6))


def modulated(m: Any, x: Tensor) -> Tensor:
    weight = m.bank * F.linear(x, m.style).view(8, 1, 6, 1)
    return F.conv1d(x.reshape(1, -1, 1), weight.reshape(24, 6, 1), groups=8).view(8, 3)


def pruned(layer: nn.Module) -> nn.Module:
    prune.random_unstructured(layer, "weight", 0.5)
    return layer


class Recurrent(nn.Module):
    def __init__(self, cell: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.cell = cell(2, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x.unflatten(1, (3, 2)))[0][:, -1]


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.positions = nn.Parameter(torch.zeros(1, 1, 6))

    def forward(self, x: Tensor) -> Tensor:
        h = x.unsqueeze(1) + self.positions
        return self.attention(h, h, h, need_weights=False)[0][:, 0]


MULTIPLYING: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "linear": (lambda: nn.Linear(6, 3), {"weight"}),
    "own linear": (lambda: Own(lambda m, x: F.linear(x, m.w), w=(3, 6)), {"w"}),
    "transposed": (lambda: Own(lambda m, x: x @ m.w, w=(6, 3)), {"w"}),
    "einsum": (lambda: Own(lambda m, x: torch.einsum("bi,io->bo", x, m.w), w=(6, 3)), {"w"}),
    "complex": (lambda: Own(lambda m, x: (x * (1 + 1j) @ torch.complex(m.re, m.im)).abs(), re=(6, 3), im=(6, 3)),
                {"re", "im"}),
    "low rank": (lambda: Own(lambda m, x: x @ m.a @ m.b, a=(6, 2), b=(2, 3)), {"a", "b"}),
    "low rank, merged": (lambda: Own(lambda m, x: x @ (m.a @ m.b), a=(6, 2), b=(2, 3)), {"a", "b"}),
    "gain": (lambda: Own(lambda m, x: F.linear(x * m.gain + m.table, m.w), gain=(1, 6), table=(1, 6), w=(3, 6)), {"w"}),
    "bias of two dimensions": (lambda: Own(lambda m, x: torch.addmm(m.bias, x, m.w), bias=(1, 3), w=(6, 3)), {"w"}),
    "random weight": (lambda: Own(bayesian, mean=(3, 6), scale=(3, 6)), {"mean", "scale"}),
    "modulated": (lambda: Own(modulated, bank=(1, 3, 6, 1), style=(6, 6)), {"bank", "style"}),
    "in inference mode": (lambda: Own(lambda m, x: _inferred(m, x), w=(3, 6), v=(3, 3)), {"w", "v"}),
    "bilinear": (lambda: Own(lambda m, x: F.bilinear(x, x, m.w), w=(3, 6, 6)), {"w"}),
    "lstm": (lambda: Recurrent(nn.LSTM), {"cell.weight_ih_l0", "cell.weight_hh_l0"}),
    "gru": (lambda: Recurrent(nn.GRU), {"cell.weight_ih_l0", "cell.weight_hh_l0"}),
    "rnn": (lambda: Recurrent(nn.RNN), {"cell.weight_ih_l0", "cell.weight_hh_l0"}),
    "attention": (Attending, {"attention.in_proj_weight", "attention.out_proj.weight"}),
    "spectral norm, old": (lambda: torch.nn.utils.spectral_norm(nn.Linear(6, 3)), {"weight_orig"}),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Linear(6, 3)), {"parametrizations.weight.original"}),
    "orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(6, 3)), {"parametrizations.weight.original"}),
    "pruned": (lambda: pruned(nn.Linear(6, 3)), {"weight_orig"}),
    "scripted": (lambda: torch.jit.script(nn.Sequential(nn.Linear(6, 3))), {"0.weight"}),
    "frozen": (lambda: nn.Sequential(nn.Linear(6, 3).requires_grad_(False), nn.Linear(3, 3)), {"1.weight"}),
}  # fmt: skip


def _inferred(m: Any, x: Tensor) -> Tensor:
    with torch.inference_mode():
        h = F.linear(x, m.w)
    return F.linear(h.clone(), m.v)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")  # torch's own, of scripting
@pytest.mark.parametrize("kind", MULTIPLYING)
def test_what_a_product_reads_is_found(kind: str) -> None:
    build, expected = MULTIPLYING[kind]
    flow = trace_flow(build(), classify, (X, Y))
    assert flow.failure is None
    assert flow.products == expected
    assert flow.inputs == {0}


def test_a_look_up_reads_its_input_and_multiplies_nothing() -> None:
    module = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(20, 3))
    flow = trace_flow(module, classify, (TOKENS, Y))
    assert flow.products == {"2.weight"}
    assert flow.inputs == {0}


def test_where_the_meta_device_cannot_go_the_own_device_is_asked() -> None:
    module = Own(lambda m, x: F.linear(x * (2.0 if x.sum().item() > 0 else 1.0), m.w), w=(3, 6))
    assert trace_flow(module, classify, (X, Y)).products == {"w"}


def test_a_step_that_fails_leaves_the_question_open() -> None:
    flow = trace_flow(Own(lambda m, x: x @ m.w, w=(5, 3)), classify, (X, Y))
    assert flow.failure is not None
    assert flow.inputs == {0, 1}
    assert flow.reached is None


STEPS: dict[str, tuple[Callable[[nn.Module, Any, int], Tensor], set[int]]] = {
    "distance": (lambda m, b, i: F.mse_loss(m(b[0]), b[1]), {0}),
    "multiplied in the loss": (lambda m, b, i: -(m(b[0]) @ b[1].T).mean(), {0}),
    "weighted by entries": (lambda m, b, i: ((m(b[0]) - b[1]) ** 2 * b[1].sigmoid()).mean(), {0}),
    "learned weight of the loss": (lambda m, b, i: F.mse_loss(m(b[0]), b[1]) * m.scale.exp() + m.scale.sum(), {0}),
    "penalty": (lambda m, b, i: F.mse_loss(m(b[0]), b[1]) + m.weight.square().sum(), {0}),
    "reconstructed": (lambda m, b, i: F.mse_loss(m(b[0]), b[0][:, :3]), {0}),
    "read by the network": (lambda m, b, i: F.mse_loss(m(torch.cat([b[0][:, 3:], b[1]], 1)), b[1]), {0, 1}),
    "met inside": (lambda m, b, i: m(m.up(m(b[0]) * b[1].sigmoid())).mean(), {0, 1}),
    "noised": (lambda m, b, i: F.mse_loss(m(b[0] + (n := torch.randn_like(b[0]))), n[:, :3] + b[1]), {0}),
}


@pytest.mark.parametrize("kind", STEPS)
def test_targets_are_no_inputs(kind: str) -> None:
    module = nn.Linear(6, 3)
    module.scale = nn.Parameter(torch.zeros(1))
    module.up = nn.Linear(3, 6)
    step, expected = STEPS[kind]
    flow = trace_flow(module, step, (X, torch.randn(8, 3)))
    assert flow.failure is None
    assert flow.inputs == expected


def test_a_generators_noise_is_data_and_images_are_read_by_the_discriminator() -> None:
    module = nn.ModuleDict({"g": nn.Sequential(nn.Linear(2, 6), nn.Tanh()), "d": nn.Linear(6, 1)})
    module.gain = nn.Parameter(torch.ones(1, 6))

    def step(m: Any, batch: Any, batch_idx: int) -> Tensor:
        fake = m.g(torch.randn(8, 2)) * m.gain
        return F.softplus(m.d(fake)).mean() + F.softplus(-m.d(batch[0])).mean()

    flow = trace_flow(module, step, (X, Y))
    assert flow.products == {"g.0.weight", "d.weight"}
    assert flow.inputs == {0}


def test_tensors_in_foreign_objects_are_data() -> None:
    graph = SimpleNamespace(x=X, y=Y)
    module = Own(lambda m, b: F.linear((b.x @ m.w) * m.gain, m.v), w=(6, 4), gain=(1, 4), v=(3, 4))
    flow = trace_flow(module, lambda m, b, i: F.cross_entropy(m(b), b.y), graph)
    assert flow.products == {"w", "v"}


def test_a_copy_under_no_grad_is_not_reached() -> None:
    student = nn.Linear(6, 3)
    module = nn.ModuleDict({"student": student, "teacher": copy.deepcopy(student)})

    def step(m: Any, batch: Any, batch_idx: int) -> Tensor:
        with torch.no_grad():
            target = m.teacher(batch[0])
        return F.mse_loss(m.student(batch[0]), target)

    flow = trace_flow(module, step, (X, Y))
    assert flow.products == {"student.weight", "teacher.weight"}
    assert flow.reached == {"student.weight", "student.bias"}


def test_a_step_that_differentiates_is_followed() -> None:
    class Potential(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 4), nn.Linear(4, 1)

    def step(m: Any, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0].clone().requires_grad_()
        energy = m.second(m.first(x).tanh())
        (force,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
        return F.mse_loss(force, batch[1]) + energy.mean()

    flow = trace_flow(Potential(), step, (X, torch.randn(8, 6)))
    assert flow.failure is None
    assert flow.products == {"first.weight", "second.weight"}
    assert flow.inputs == {0}


def test_the_module_and_the_generators_stay_as_they_were() -> None:
    module = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 3))
    before, state = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    trace_flow(module, classify, (X, Y))
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in module.parameters())
