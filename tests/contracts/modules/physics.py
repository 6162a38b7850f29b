"""Equations, operators, forces: networks that are differentiated, integrated or transformed."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.func import functional_call, hessian, vmap

from tests.contracts.modules.registry import NUM_SAMPLES, Trained, batches, ordinary

GRID = 16


class MLP(nn.Sequential):
    def __init__(self, in_features: int, width: int, out_features: int) -> None:
        super().__init__(
            *(nn.Linear(in_features, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh()),
            nn.Linear(width, out_features),
        )


def mlp_macs(in_features: int, w: int, out_features: int) -> int:
    return in_features * w + w * w + w * out_features


def collocation(g: Generator) -> Any:
    return {name: torch.rand(NUM_SAMPLES, 1, generator=g) for name in ("t", "x")}


@ordinary(
    batches(collocation),
    # Twice the network, its first and its second derivatives.
    lambda w: (2 * mlp_macs(2, w, 1), 12 * mlp_macs(2, w, 1)),
)
class HeatEquation(Trained):
    """The residual of an equation, by two derivatives, and the value at the start."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = MLP(2, width, 1)
        self.log_diffusivity = nn.Parameter(torch.zeros(()))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.net(torch.cat([t, x], 1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        t, x = (batch[name].requires_grad_() for name in ("t", "x"))
        u = self(t, x)
        u_t, u_x = torch.autograd.grad(u, (t, x), torch.ones_like(u), create_graph=True)
        (u_xx,) = torch.autograd.grad(u_x, x, torch.ones_like(u_x), create_graph=True)
        start = self(torch.zeros_like(t), x.detach()) - torch.sin(torch.pi * x.detach())
        return (u_t - self.log_diffusivity.exp() * u_xx).square().mean() + start.square().mean()


def molecules(g: Generator) -> Any:
    return {
        "positions": torch.randn(NUM_SAMPLES, 4, 3, generator=g),
        "energy": torch.randn(NUM_SAMPLES, generator=g),
        "forces": torch.randn(NUM_SAMPLES, 4, 3, generator=g),
    }


@ordinary(batches(molecules), lambda w: (12 * mlp_macs(1, w, 1), 12 * 3.2 * mlp_macs(1, w, 1)))
class Potential(Trained):
    """Energies from distances, and forces as their derivative."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pair = MLP(1, width, 1)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        positions = positions.requires_grad_(True)
        first, second = torch.where(~torch.eye(4, dtype=torch.bool, device=positions.device))
        distance = (positions[:, first] - positions[:, second]).norm(dim=-1, keepdim=True)
        energy = self.pair(torch.exp(-distance)).sum((1, 2))
        return energy, -torch.autograd.grad(energy.sum(), positions, create_graph=self.training)[0]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        energy, forces = self(batch["positions"])
        return F.mse_loss(energy, batch["energy"]) + 10 * F.mse_loss(forces, batch["forces"])


states = batches(lambda g: (torch.randn(NUM_SAMPLES, 2, generator=g), torch.randn(NUM_SAMPLES, 2, generator=g)))


@ordinary(states, lambda w: (mlp_macs(2, w, 1), 3.2 * mlp_macs(2, w, 1)))
class Hamiltonian(Trained):
    """Motion from the derivative of an energy, with gradients switched on whatever was said outside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.energy = MLP(2, width, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        state, change = batch
        with torch.enable_grad():
            state = state.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.energy(state).sum(), state, create_graph=True)
        return F.mse_loss(torch.stack([slope[:, 1], -slope[:, 0]], 1), change)


@ordinary(states, lambda w: (mlp_macs(2, w, 1), 14 * mlp_macs(2, w, 1)))
class Lagrangian(Trained):
    """A Hessian for each sample, by torch.func inside the step."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = MLP(2, width, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        state, wanted = batch
        params = dict(self.net.named_parameters())

        def value(x: Tensor) -> Tensor:
            return functional_call(self.net, params, (x,)).squeeze()

        curvature = vmap(hessian(value))(state)
        return F.mse_loss((curvature + torch.eye(2, device=state.device)).sum(-1), wanted)


@ordinary(
    batches(lambda g: (torch.randn(NUM_SAMPLES, 2, generator=g), torch.randn(NUM_SAMPLES, 5, 2, generator=g))),
    lambda w: 5 * mlp_macs(2, w, 2),
)
class NeuralODE(Trained):
    """Five steps of Euler."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.field = MLP(2, width, 2)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        state, wanted = batch
        path = []
        for _ in range(5):
            state = state + 0.2 * self.field(state)
            path.append(state)
        return F.mse_loss(torch.stack(path, 1), wanted)


def functions(g: Generator) -> Any:
    places = torch.linspace(0, 1, 10)[:, None]
    return torch.randn(NUM_SAMPLES, GRID, generator=g), places, torch.randn(NUM_SAMPLES, 10, generator=g)


@ordinary(
    batches(functions),
    # The trunk sees the ten places once a batch.
    lambda w: mlp_macs(GRID, w, 5) + 10 * mlp_macs(1, w, 5) / NUM_SAMPLES + 5 * 10,
    num_samples=NUM_SAMPLES,
)
class DeepONet(Trained):
    """A function from its values, evaluated at places that all samples share."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch, self.trunk = MLP(GRID, width, 5), MLP(1, width, 5)
        self.bias = nn.Parameter(torch.zeros(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        values, places, wanted = batch
        out = torch.einsum("nk,pk->np", self.branch(values), self.trunk(places)) + self.bias
        return F.mse_loss(out, wanted)


@ordinary(
    batches(lambda g: (torch.randn(NUM_SAMPLES, 1, GRID, generator=g), torch.randn(NUM_SAMPLES, 1, GRID, generator=g))),
    None,
)
class FourierOperator(Trained):
    """Multiplies frequencies with complex weights."""

    def __init__(self, width: int, num_modes: int = 4) -> None:
        super().__init__()
        self.num_modes = num_modes
        self.lift, self.skip, self.project = nn.Conv1d(1, width, 1), nn.Conv1d(width, width, 1), nn.Conv1d(width, 1, 1)
        self.spectral = nn.Parameter(torch.randn(width, width, num_modes, dtype=torch.cfloat) / width)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, wanted = batch
        x = self.lift(x)
        frequencies = torch.fft.rfft(x)
        out = torch.zeros_like(frequencies)
        out[..., : self.num_modes] = torch.einsum("nik,iok->nok", frequencies[..., : self.num_modes], self.spectral)
        x = F.gelu(self.skip(x) + torch.fft.irfft(out, n=GRID))
        x = self.project(x)
        return ((x - wanted).flatten(1).norm(dim=1) / wanted.flatten(1).norm(dim=1)).mean()


@ordinary(batches(molecules), lambda w: 12 * (w + w * w) + 12 * w + 4 * w)
class EquivariantGraph(Trained):
    """Moves points along their differences, by weights that see distances alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.message = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.move, self.energy = nn.Linear(width, 1, bias=False), nn.Linear(width, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch["positions"]
        others = torch.tensor([[j for j in range(4) if j != i] for i in range(4)], device=x.device)
        difference = x[:, :, None] - x[:, others]
        messages = self.message(difference.square().sum(-1, keepdim=True))
        moved = (difference * self.move(messages)).mean(2)
        energy = self.energy(messages.sum(2)).sum((1, 2))
        return F.mse_loss(moved, batch["forces"]) + F.mse_loss(energy, batch["energy"])


@ordinary(
    batches(lambda g: (2 * torch.rand(NUM_SAMPLES, 2, generator=g) - 1, torch.rand(NUM_SAMPLES, 3, generator=g))),
    lambda w: mlp_macs(2, w, 3),
)
class SIREN(Trained):
    """Sines as activations, and a penalty over all parameters."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, width), nn.Linear(width, width)])
        self.out = nn.Linear(width, 3)
        with torch.no_grad():
            for layer in self.layers:
                layer.weight.uniform_(-1 / layer.in_features, 1 / layer.in_features)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, colour = batch
        for layer in self.layers:
            x = torch.sin(30 * layer(x))
        penalty = sum(p.square().sum() for p in self.parameters() if p.requires_grad)
        return F.mse_loss(self.out(x).sigmoid(), colour) + 1e-3 * penalty


@ordinary(
    batches(lambda g: (torch.randn(NUM_SAMPLES, 5, 2, generator=g), torch.randn(NUM_SAMPLES, 5, 2, generator=g))),
    lambda w: 5 * (mlp_macs(2, w, 2) + 2 * 2),
    unweighted=["log_damping", "rotation"],
)
class HybridModel(Trained):
    """Known physics with unknown constants, and a network for what is missing."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.correction = MLP(2, width, 2)
        self.log_damping, self.rotation = nn.Parameter(torch.zeros(())), nn.Parameter(torch.tensor([[0.0, 1], [-1, 0]]))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        state, wanted = batch
        known = state @ self.rotation.T * torch.exp(-self.log_damping.exp())
        return F.mse_loss(known + self.correction(state), wanted)
