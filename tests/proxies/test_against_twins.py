"""Every proxy against its slow twin, as a user computes it: float64 models on float64 batches."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_zico import list_proxies, score
from lightning_zico.engine.weights import drawn_like, gaussian_batch, gaussian_weights, kaiming_weights
from tests.reference import forward_proxies as forward
from tests.reference import proxies as derivatives
from tests.reference.watch import layer_weights

SEED = 0
TIGHT = 1e-5

# Of these there are tests of their own, in this folder and of the engine that counts and measures.
TESTED_ELSEWHERE = {"params", "macs", "num_layers", "latency", "zico"}


class Residual(nn.Module):
    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(out_channels)
        self.first_relu = nn.ReLU()
        self.second = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(out_channels)
        self.link = nn.Identity() if stride == 1 else nn.Conv2d(channels, out_channels, 1, stride)
        self.last_relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first_relu(self.first_norm(self.first(x)))
        return self.last_relu(self.second_norm(self.second(hidden)) + self.link(x))


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.out(F.scaled_dot_product_attention(q, k, v))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first_norm, self.attention = nn.LayerNorm(width), Attention(width)
        self.second_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.first_norm(x))
        return x + self.mlp(self.second_norm(x))


class ViT(nn.Module):
    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.patches = nn.Conv2d(2, width, 2, stride=2)
        self.positions = nn.Parameter(0.1 * torch.randn(1, 9, width))
        self.blocks = nn.ModuleList([Block(width), Block(width), Block(width)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(dim=1))


class Tokens(nn.Module):
    """`TransformerEncoderLayer` gets its activation as a module, since that is what the twins see."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 2, 12, dropout=0.0, activation=nn.GELU(), batch_first=True)
            for _ in range(2)
        )
        self.head = nn.Linear(width, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(dim=1))


class Mixed(nn.Module):
    """What is rarer: groups, a transposed convolution, activations in place, a layer that runs twice, a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2)
        self.relu = nn.ReLU(inplace=True)
        self.transposed = nn.ConvTranspose2d(4, 6, 2, stride=2)
        self.leaky = nn.LeakyReLU(0.1, inplace=True)
        self.shared = nn.Conv2d(6, 6, 3, padding=1)
        self.sigmoid = nn.Sigmoid()
        self.frozen = nn.Linear(6, 5).requires_grad_(False)
        self.hidden, self.tanh = nn.Linear(5, 5), nn.Tanh()
        self.tied = nn.Linear(5, 5)
        self.tied.weight = self.hidden.weight
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.leaky(self.transposed(self.relu(self.grouped(x))))
        x = self.shared(self.shared(x)) * self.sigmoid(x)
        return self.head(self.tied(self.tanh(self.hidden(self.frozen(x.mean(dim=(2, 3)))))))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, bias=False),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        Residual(3, 3, stride=1),
        Residual(3, 4, stride=2),
        Residual(4, 4, stride=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


def mlp(num_classes: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(9, 12), nn.ReLU(), nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, num_classes))


def gaussian(*shape: int) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: torch.randn(*shape, generator=generator, dtype=torch.float64)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[torch.Generator], Tensor], list[str]]] = {
    # builder, inputs, blocks in the order in which they run
    "cnn": (cnn, gaussian(6, 2, 6, 6), ["3", "4", "5"]),
    "mlp": (mlp, gaussian(6, 9), ["1", "3", "4"]),
    "vit": (ViT, gaussian(6, 2, 6, 6), ["blocks.0", "blocks.1", "blocks.2"]),
    "tokens": (Tokens, lambda generator: torch.randint(10, (6, 5), generator=generator), ["layers.0", "layers.1"]),
    "mixed": (Mixed, gaussian(6, 2, 6, 6), []),
}

_NO_NUMBERS_TO_CHANGE = ("zen", "jacob_cov", "epe_nas", "linear_regions")
_NO_MAPS = ("meco", "meco_opt")
_NO_BLOCKS = ("az_expressivity", "az_expressivity_mean", "az_progressivity", "az_trainability")
NOT_APPLICABLE = {
    *(("tokens", name) for name in _NO_NUMBERS_TO_CHANGE),
    *(("mlp", name) for name in _NO_MAPS),
    *(("mixed", name) for name in _NO_BLOCKS),
}


@dataclass
class Case:
    """A model, whose twin is made anew for each use, with its batches."""

    name: str
    model: nn.Module
    batches: list[tuple[Tensor, Tensor]]
    blocks: list[str]

    @property
    def x(self) -> Tensor:
        return self.batches[0][0]

    @property
    def first(self) -> tuple[nn.Module, Tensor, Tensor]:
        return (self.model, *self.batches[0])


def case_of(name: str, num_batches: int = 3) -> Case:
    build, inputs, blocks = MODELS[name]
    torch.manual_seed(1)
    generator = torch.Generator().manual_seed(2)
    batches = [(inputs(generator), torch.randint(3, (6,), generator=generator)) for _ in range(num_batches)]
    return Case(name, build().double(), batches, blocks)


@pytest.fixture(scope="module", params=MODELS)
def case(request: pytest.FixtureRequest) -> Case:
    return case_of(request.param)


def loaded(model: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            parameter.copy_(tensors.get(name, parameter))
    return twin


def zen_of(case: Case) -> float:
    generator = torch.Generator().manual_seed(SEED)
    twin = loaded(case.model, gaussian_weights(case.model, generator))
    x0 = gaussian_batch(case.x, generator)
    return forward.zen(twin, x0, drawn_like(x0, generator))


def az_of(twin: Callable[..., float], needs_signs: bool = False) -> Callable[[Case], float]:
    def compute(case: Case) -> float:
        generator = torch.Generator().manual_seed(SEED)
        model = loaded(case.model, kaiming_weights(case.model, generator))
        x0 = gaussian_batch(case.x, generator)
        return twin(model, case.blocks, x0, *([signs_of(model, case.blocks, x0)] if needs_signs else []))

    return compute


def signs_of(model: nn.Module, blocks: list[str], x0: Tensor) -> list[Tensor]:
    shapes = {}
    watched = copy.deepcopy(model)
    for name in blocks:
        watched.get_submodule(name).register_forward_hook(
            lambda _module, _args, output, name=name: shapes.update({name: output.shape})
        )
    watched(x0)
    generator = torch.Generator().manual_seed(SEED)
    return [2.0 * torch.randint(2, shapes[name], generator=generator) - 1 for name in blocks[1:]]


def linear_regions_of(case: Case) -> float:
    generator = torch.Generator().manual_seed(SEED)
    shaped = case.x.new_empty(1000, 2, 3, 3) if case.x.ndim == 4 else case.x
    return forward.linear_regions(case.model, drawn_like(shaped, generator))


TWINS: dict[str, Callable[[Case], float]] = {
    "grad_norm": lambda case: derivatives.grad_norm(*case.first),
    "l2_norm": lambda case: derivatives.l2_norm(case.model),
    "plain": lambda case: derivatives.plain(*case.first),
    "snip": lambda case: derivatives.snip(*case.first),
    "grasp": lambda case: derivatives.grasp(*case.first),
    "fisher": lambda case: derivatives.fisher(*case.first),
    "synflow": lambda case: derivatives.synflow(case.model, case.x[:1]),
    "jacob_cov": lambda case: derivatives.jacob_cov(case.model, case.x),
    "epe_nas": lambda case: derivatives.epe_nas(*case.first),
    "naswot": lambda case: forward.naswot(case.model, case.x),
    "zen": zen_of,
    "ntk_cond": lambda case: derivatives.ntk_cond(case.model, case.x),
    "linear_regions": linear_regions_of,
    "gradsign": lambda case: derivatives.gradsign(*case.first),
    "knas": lambda case: derivatives.knas(*case.first),
    "meco": lambda case: forward.meco(case.model, case.x),
    "meco_opt": lambda case: forward.meco_opt(case.model, case.x),
    "swap": lambda case: forward.swap(case.model, case.x),
    "near": lambda case: forward.near(case.model, case.x),
    "lswag": lambda case: derivatives.lswag(case.model, case.batches),
    "zico_bc": lambda case: derivatives.zico_bc(case.model, case.batches),
    "vkdnw": lambda case: derivatives.vkdnw(case.model, case.x),
    "az_expressivity": az_of(forward.az_expressivity),
    "az_expressivity_mean": az_of(forward.az_expressivity_mean),
    "az_progressivity": az_of(forward.az_progressivity),
    "az_trainability": az_of(derivatives.az_trainability, needs_signs=True),
    "params_live": lambda case: derivatives.params_live(*case.first),
    "macs_live": lambda case: derivatives.macs_live(*case.first),
    "log_neurons": lambda case: forward.log_neurons(case.model, case.x),
    "sum_log_numel": lambda case: sum(math.log(w.numel()) for w in layer_weights(case.model).values()),
}


def result_of(name: str, model: nn.Module, batches: Any, **options: Any) -> Any:
    return score(model, batches, proxies=[name], loss_fn=F.cross_entropy, seed=SEED, **options)[name]


def test_every_proxy_has_a_twin() -> None:
    assert set(TWINS) | TESTED_ELSEWHERE == set(list_proxies())


@pytest.mark.parametrize("name", TWINS)
def test_equals_its_twin(name: str, case: Case) -> None:
    result = result_of(name, case.model, case.batches)
    if (case.name, name) in NOT_APPLICABLE:
        assert result.value is None
        assert result.error.startswith("not applicable: ")
    else:
        assert result.error is None
        assert result.value == pytest.approx(TWINS[name](case), rel=TIGHT, abs=1e-12)
