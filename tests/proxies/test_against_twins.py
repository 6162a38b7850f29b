"""Every proxy against its slow twin, as a user computes it: float64 models on float64 batches."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_zico import list_proxies, score
from lightning_zico.engine.weights import drawn_like, gaussian_batch, gaussian_weights, kaiming_weights
from lightning_zico.proxies import AZTrainability, Fisher, GradSign, MeCo, Proxy, ZiCoBC, resolve_proxies
from tests.proxies.models import Mixed, Tokens, ViT, cnn, mlp
from tests.reference import forward_proxies as forward
from tests.reference import proxies as derivatives
from tests.reference.watch import calls, layer_weights, separated

SEED = 0
TIGHT = 1e-5

# Of these there are tests of their own, in this folder and of the engine that counts and measures.
TESTED_ELSEWHERE = {"params", "macs", "num_layers", "latency", "zico"} | {
    proxy.name for proxy in resolve_proxies("all") if proxy.needs_features
}


def gaussian(*shape: int) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: torch.randn(*shape, generator=generator, dtype=torch.float64)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[torch.Generator], Tensor], list[str]]] = {
    # builder, inputs, blocks in the order in which they run
    "cnn": (cnn, gaussian(6, 2, 6, 6), ["3", "4", "5"]),
    "mlp": (mlp, gaussian(6, 9), ["1", "3", "4"]),
    "vit": (ViT, gaussian(6, 2, 6, 6), ["blocks.0", "blocks.1"]),
    "tokens": (Tokens, lambda generator: torch.randint(10, (6, 5), generator=generator), ["layers.0", "layers.1"]),
    "mixed": (Mixed, gaussian(6, 2, 6, 6), []),
}

_NO_NUMBERS_TO_CHANGE = ("zen", "linear_regions", "dextr")
_NO_MAPS = ("meco", "meco_opt")
_OF_TRANSFORMERS = ("head_confidence", "v_pca", "w_pca")
_NO_BLOCKS = ("az_expressivity", "az_expressivity_mean", "az_progressivity", "az_trainability")
# Of these, attention has the number of one with a linear layer for each projection.
OF_LAYERS = frozenset(
    {"grad_norm", "l2_norm", "plain", "snip", "grasp", "synflow", "ntk_cond", "gradsign", "knas", "lswag", "zico_bc"}
    | {"vkdnw", "params_live", "macs_live", "sum_log_numel"}
)
NOT_APPLICABLE = {
    *(("tokens", name) for name in _NO_NUMBERS_TO_CHANGE),
    *((kind, name) for kind in ("mlp", "tokens") for name in _NO_MAPS),  # tokens: fewer positions than channels
    ("mlp", "dextr"),
    *(("mixed", name) for name in _NO_BLOCKS),
    *((kind, name) for kind in ("cnn", "mlp", "mixed") for name in _OF_TRANSFORMERS),
    *((kind, "az_trainability") for kind in ("vit", "tokens")),  # unless asked for
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


def head_confidence_of(case: Case) -> float:
    model = separated(case.model)
    if case.name == "tokens":
        parts = ("query", "key", "value")
        seen = calls(model, case.x, lambda name, _module: name.rpartition(".")[2] in parts)
        return forward.head_confidence([call.output for call in seen], num_heads=2)
    seen = calls(model, case.x, lambda name, _module: name.endswith("qkv"))
    return forward.head_confidence([part for call in seen for part in np.split(call.output, 3, axis=-1)], num_heads=1)


def dextr_of(case: Case) -> float:
    generator = torch.Generator().manual_seed(SEED)
    shape = case.x[:1].shape
    drawn = np.stack([drawn_like(case.x[:1], generator).flatten().double().numpy() for _ in range(2)], axis=1)
    point, velocity = (torch.from_numpy(column).view(shape) for column in np.linalg.qr(drawn)[0].T)
    chosen = torch.randperm(3, generator=torch.Generator().manual_seed(SEED)).tolist()
    a = math.log(1 + forward.inverse_conditions(case.model, case.x))
    b = math.log(1 + derivatives.curvature(case.model, point, velocity, chosen))
    return a * b / (a + b)


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
    "intrain": lambda case: derivatives.intrain(*case.first),
    "head_confidence": head_confidence_of,
    "v_pca": lambda case: forward.v_pca(case.model, case.x),
    "w_pca": lambda case: forward.w_pca(case.model, case.x),
    "dextr": dextr_of,
    "sum_log_numel": lambda case: sum(math.log(w.numel()) for w in layer_weights(case.model).values()),
}


def result_of(name: str, model: nn.Module, batches: Any, **options: Any) -> Any:
    return score(model, batches, proxies=[name], loss_fn=F.cross_entropy, seed=SEED, **options)[name]


def case_with(num_samples: int, num_classes: int) -> Case:
    torch.manual_seed(1)
    batch = torch.randn(num_samples, 9, dtype=torch.float64), torch.arange(num_samples) % 4 % 3
    return Case("mlp", mlp(num_classes).double(), [batch], [])


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
        twin = replace(case, model=separated(case.model)) if name in OF_LAYERS else case
        assert result.value == pytest.approx(TWINS[name](twin), rel=TIGHT, abs=1e-12)


@pytest.mark.parametrize("name", [name for name in TWINS if ("cnn", name) not in NOT_APPLICABLE])
def test_in_float32_the_twin_is_met_up_to_its_rounding(name: str) -> None:
    case = case_of("cnn")
    batches = [(x.float(), y) for x, y in case.batches]
    # Twelve operations in a row and more, each 6e-8 off; worst are differences of nearly equal numbers: the change of
    # a feature map by one hundredth of its input (zen), deviations of gradients that nearly agree (lswag, zico_bc).
    value = result_of(name, copy.deepcopy(case.model).float(), batches).value
    assert value == pytest.approx(TWINS[name](case), rel=1e-4)


@pytest.mark.parametrize("num_samples", [21, 63, 130])  # past the table of all patterns, and past one and two words
def test_patterns_of_many_samples_are_counted_as_by_the_twin(num_samples: int) -> None:
    case = case_with(num_samples, num_classes=3)
    assert result_of("swap", case.model, case.batches).value == TWINS["swap"](case)


@pytest.mark.parametrize("num_classes", [100, 101])
def test_many_classes_are_compared_as_by_the_twin(num_classes: int) -> None:
    case = case_with(10, num_classes)
    assert result_of("epe_nas", case.model, case.batches).value == pytest.approx(TWINS["epe_nas"](case), rel=TIGHT)


@pytest.mark.parametrize(
    ("proxy", "twin"),
    [
        (Fisher(fan_in=False), lambda case: derivatives.fisher(*case.first, fan_in=False)),
        (ZiCoBC(beta=2.0), lambda case: derivatives.zico_bc(case.model, case.batches, beta=2.0)),
        (MeCo(num_channels=3), lambda case: forward.meco_opt(case.model, case.x, num_channels=3)),
        (GradSign(total=True), lambda case: derivatives.gradsign(*case.first) * TWINS["params_live"](case)),
    ],
)
def test_variants_equal_their_twins(proxy: Proxy, twin: Callable[[Case], float]) -> None:
    case = case_of("cnn")
    result = score(case.model, case.batches, proxies=proxy, loss_fn=F.cross_entropy, seed=SEED)[proxy.name]
    assert result.value == pytest.approx(twin(case), rel=TIGHT)


@pytest.mark.parametrize("name", ["vit", "tokens"])
def test_trainability_of_tokens_equals_its_twin_where_it_is_asked_for(name: str) -> None:
    case = case_of(name)
    proxy = AZTrainability(tokens=True)
    result = score(case.model, case.batches, proxies=proxy, loss_fn=F.cross_entropy, seed=SEED)[proxy.name]
    assert result.value == pytest.approx(TWINS[proxy.name](case), rel=TIGHT)
