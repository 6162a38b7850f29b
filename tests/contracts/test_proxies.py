"""What every registered proxy keeps to."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_zico import list_proxies, score
from lightning_zico.proxies import Proxy, resolve_proxies
from lightning_zico.results import Score, ScoreCard
from lightning_zico.zoo.layers import last_layer
from tests.modules import BusyClassifier, Classifier, assert_same, assert_untouched, make_batches, make_network, twice
from tests.proxies.models import Tokens, ViT, cnn, mlp

# It compares the gradients of all batches, and counts patterns in the first.
PATTERNS_OF_THE_FIRST_BATCH = {"lswag"}
# They count, and a count changes only if other labels make a whole layer's gradient vanish.
COUNTS_OF_WHAT_LEARNS = {"params_live", "macs_live"}
# They look at what submodules put out, and a function is none.
OUTPUTS_OF_SUBMODULES = {"meco", "meco_opt", "dextr"}
# They look at attention heads, or at feed-forward layers on tokens.
OF_TRANSFORMERS = {"head_confidence", "v_pca", "w_pca"}

# They look at the features of all samples, and have closed forms for their directions in `test_transfer`.
OF_FEATURES = {proxy.name for proxy in resolve_proxies("all") if proxy.needs_features}
# They read the head of a checkpoint, which may have other classes than the data.
OF_SOURCE_HEADS = {"leep", "nce"}


def images(generator: torch.Generator) -> Tensor:
    return torch.randn(6, 2, 6, 6, generator=generator)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[torch.Generator], Tensor]]] = {
    "cnn": (cnn, images),
    "mlp": (mlp, lambda generator: torch.randn(6, 9, generator=generator)),
    "vit": (ViT, images),
    "tokens": (Tokens, lambda generator: torch.randint(10, (6, 5), generator=generator)),
}


def network_and_batches(kind: str) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    build, inputs = NETWORKS[kind]
    torch.manual_seed(1)
    generator = torch.Generator().manual_seed(2)
    return build(), [(inputs(generator), torch.randint(3, (6,), generator=generator)) for _ in range(2)]


class Chain(nn.Module):
    """Two blocks of convolution and activation, and a head with a third and a fourth; `functions` makes no module."""

    class Block(nn.Module):
        def __init__(self, channels: int, out_channels: int, activation: Any) -> None:
            super().__init__()
            self.conv = nn.Conv2d(channels, out_channels, 3, padding=1)
            self.norm = nn.BatchNorm2d(out_channels)
            self.activation = activation

        def forward(self, x: Tensor) -> Tensor:
            return self.activation(self.norm(self.conv(x)))

    def __init__(self, functions: bool) -> None:
        super().__init__()
        self.first = self.Block(2, 4, F.relu if functions else nn.ReLU())
        self.second = self.Block(4, 4, F.gelu if functions else nn.GELU())
        self.pool = nn.AvgPool2d(2)
        self.hidden, self.head = nn.Linear(16, 8), nn.Linear(8, 3)
        self.tanh = torch.tanh if functions else nn.Tanh()
        self.sigmoid = Tensor.sigmoid if functions else nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        x = self.tanh(self.pool(self.second(self.first(x))).flatten(1))
        return self.head(self.sigmoid(self.hidden(x)))


class Wide(nn.Sequential):
    def __init__(self, width: int = 8, depth: int = 2) -> None:
        convs = [nn.Conv2d(2 if idx == 0 else width, width, 3, padding=1) for idx in range(depth)]
        layers = [layer for conv in convs for layer in (conv, nn.ReLU())]
        super().__init__(*layers, nn.Flatten(), nn.Linear(width * 25, 3))


class Scaled(nn.Module):
    """A linear network on inputs, or on inputs that have a large offset in common."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.offset = offset
        self.head = nn.Linear(50, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1) + self.offset)


class Branched(nn.Module):
    """Half of it is always off, or is not."""

    def __init__(self, dead: bool) -> None:
        super().__init__()
        self.hidden, self.branch, self.head = nn.Linear(50, 8), nn.Linear(50, 8), nn.Linear(16, 3)
        if dead:
            nn.init.constant_(self.branch.bias, -100.0)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.head(torch.cat([F.relu(self.hidden(x)), F.relu(self.branch(x))], dim=1))


class Copying(nn.Sequential):
    """Its channels are all alike, or are not."""

    def __init__(self, alike: bool) -> None:
        conv = nn.Conv2d(2, 4, 3, padding=1)
        if alike:
            with torch.no_grad():
                conv.weight.copy_(conv.weight[:1].expand_as(conv.weight))
        super().__init__(conv, nn.Flatten(), nn.Linear(100, 3))


class Blocks(nn.Module):
    """Linear blocks of some widths, whose outputs are scaled."""

    class Block(nn.Module):
        def __init__(self, width: int, out_width: int, scale: float) -> None:
            super().__init__()
            self.linear, self.scale = nn.Linear(width, out_width), scale

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * self.linear(x)

    def __init__(self, *widths: int, scale: float = 1.0) -> None:
        super().__init__()
        self.stem = nn.Linear(50, widths[0])
        self.blocks = nn.Sequential(*(self.Block(width, following, scale) for width, following in pairwise(widths)))
        self.head = nn.Linear(widths[-1], 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x.flatten(1))))


class Attending(nn.Module):
    """Attention of pixels, whose values are scaled, and a feed-forward layer of some width."""

    def __init__(self, scale: float = 1.0, width: int = 4, functions: bool = False) -> None:
        super().__init__()
        self.scale = scale
        self.widen, self.narrow, self.head = nn.Linear(2, width), nn.Linear(width, 2), nn.Linear(2, 3)
        self.tanh = torch.tanh if functions else nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)
        x = F.scaled_dot_product_attention(x, x, self.scale * x)
        return self.head(self.narrow(self.tanh(self.widen(x))).mean(dim=1))


def classifier_for(name: str, build: Callable[..., Classifier] = Classifier, **options: Any) -> Classifier:
    """Build a LightningModule that a proxy applies to."""
    classifier = build(**options)
    if name in OF_TRANSFORMERS:
        classifier.network = Attending()
    return classifier


class Sleeping(Wide):
    def forward(self, x: Tensor) -> Tensor:
        time.sleep(0.01)
        return super().forward(x)


class Pair(NamedTuple):
    """Two networks, one of which is worse by what a proxy is there to see."""

    worse: Callable[[], nn.Module]
    better: Callable[[], nn.Module]


WIDER = Pair(lambda: Wide(width=4), lambda: Wide(width=32))
DEEPER = Pair(lambda: Wide(depth=2), lambda: Wide(depth=4))
ALIVE = Pair(lambda: Branched(dead=True), lambda: Branched(dead=False))
NONLINEAR = Pair(lambda: Scaled(offset=0.0), lambda: Wide(width=8))  # a linear one answers to all inputs alike

DIRECTIONS = {
    **dict.fromkeys(["params", "macs", "sum_log_numel", "log_neurons", "l2_norm", "naswot", "swap", "near"], WIDER),
    **dict.fromkeys(["synflow", "zen", "zico", "zico_bc", "lswag"], WIDER),
    **dict.fromkeys(["num_layers", "vkdnw", "intrain"], DEEPER),
    **dict.fromkeys(["grad_norm", "snip", "fisher", "params_live", "macs_live"], ALIVE),
    **dict.fromkeys(["jacob_cov", "epe_nas"], NONLINEAR),
    # one unit cuts images of three by three, where it has one position, into two pieces
    "linear_regions": Pair(lambda: make_network(width=1), lambda: make_network(width=8)),
    **dict.fromkeys(["meco", "meco_opt", "dextr"], Pair(lambda: Copying(alike=True), lambda: Copying(alike=False))),
    # what all samples have in common is one large eigenvalue of the kernel
    "ntk_cond": Pair(lambda: Scaled(offset=10.0), lambda: Scaled(offset=0.0)),
    # ... and makes their gradients agree, all of them being of one class
    **dict.fromkeys(["gradsign", "knas"], Pair(lambda: Scaled(offset=0.0), lambda: Scaled(offset=10.0))),
    # features of C channels have log C of entropy at most
    **dict.fromkeys(
        ["az_expressivity", "az_expressivity_mean"], Pair(lambda: Blocks(2, 2, 2), lambda: Blocks(4, 4, 4))
    ),
    "az_progressivity": Pair(lambda: Blocks(8, 4, 2, 1), lambda: Blocks(1, 2, 4, 8)),
    "az_trainability": Pair(lambda: Blocks(4, 4, 4, scale=100.0), lambda: Blocks(4, 4, 4)),
    "latency": Pair(Sleeping, Wide),
    "head_confidence": Pair(lambda: Attending(scale=0.5), lambda: Attending(scale=2.0)),
    # hidden states of one unit have one component
    **dict.fromkeys(["v_pca", "w_pca"], Pair(lambda: Attending(width=1), lambda: Attending(width=4))),
}
# Sums of signed products: what a single network is to have, no theory says, and the literature not even of which sign.
UNDIRECTED = {"plain", "grasp"}


@contextmanager
def assert_globals_untouched() -> Iterator[None]:
    before = globals_of_torch()
    yield
    assert_same(before, globals_of_torch())


def globals_of_torch() -> dict[str, Any]:
    hooks = torch.nn.modules.module
    return {
        "default_dtype": str(torch.get_default_dtype()),
        "grad": torch.is_grad_enabled(),
        "fused_attention": torch.backends.mha.get_fastpath_enabled(),
        "attention": [torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()],
        "modes": torch._C._len_torch_function_stack(),
        "hooks": [list(hooks._global_forward_hooks), list(hooks._global_forward_pre_hooks)],
        "threads": torch.get_num_threads(),
    }


@pytest.fixture(params=list_proxies())
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def proxy(name: str) -> Proxy:
    return resolve_proxies(name)[0]


@pytest.fixture(params=[proxy.name for proxy in resolve_proxies("all") if proxy.is_repeatable])
def repeatable(request: pytest.FixtureRequest) -> Proxy:
    """A proxy whose number is a function of the network and the batches; with a clock's there is nothing to compare."""
    return resolve_proxies(request.param)[0]


@pytest.fixture(scope="module", params=NETWORKS)
def among_all(request: pytest.FixtureRequest) -> tuple[str, ScoreCard]:
    network, batches = network_and_batches(request.param)
    return request.param, score(network, batches, proxies="all", loss_fn=F.cross_entropy)


def batches_of(name: str, num_batches: int = 2) -> list[tuple[Tensor, Tensor]]:
    """Make batches with the classes of the networks' heads, or with fewer for proxies that read a pretrained head."""
    most = 1 if name in OF_SOURCE_HEADS else 2
    return [(inputs, labels.clamp(max=most)) for inputs, labels in make_batches(num_batches)]


def with_kept_head(name: str, model: nn.Module) -> nn.Module:
    """Let a model say that its head is that of its checkpoint, for proxies that read one."""
    if name in OF_SOURCE_HEADS:
        model.source_head = partial(last_layer, model)  # type: ignore[assignment]
    return model


def value_of(name: str, model: nn.Module, batches: Any, **options: Any) -> float | None:
    return score(with_kept_head(name, model), batches, proxies=name, **options)[name].value


def assert_is_number_or_reason(result: Score) -> None:
    assert (result.value is None) != (result.error is None)
    assert result.value is None or math.isfinite(result.value)
    # These networks are sound, so that a proxy is either made for them or says that it is not.
    assert result.error is None or result.error.startswith("not applicable: ")


class TestProxy:
    def test_is_named_as_registered_and_documented(self, name: str, proxy: Proxy) -> None:
        assert proxy.name == name
        assert type(proxy).__doc__
        assert type(proxy).measure.__doc__

    @pytest.mark.parametrize("kind", NETWORKS)
    def test_gives_a_finite_number_or_says_that_it_is_not_applicable(self, name: str, kind: str) -> None:
        network, batches = network_and_batches(kind)
        assert_is_number_or_reason(score(network, batches, proxies=name, loss_fn=F.cross_entropy)[name])

    def test_is_the_same_alone_and_among_all(self, repeatable: Proxy, among_all: tuple[str, ScoreCard]) -> None:
        kind, card = among_all
        network, batches = network_and_batches(kind)
        alone = score(network, batches, proxies=repeatable, loss_fn=F.cross_entropy)[repeatable.name]
        assert alone.error == card[repeatable.name].error
        if alone.value is not None:
            assert alone.value == pytest.approx(card[repeatable.name].value, rel=1e-6)

    def test_gives_a_number_for_a_lightning_module(self, name: str) -> None:
        result = score(classifier_for(name), batches_of(name), proxies=name)[name]
        assert_is_number_or_reason(result)

    def test_sees_activations_that_are_functions_as_it_sees_modules(self, repeatable: Proxy) -> None:
        name, batches = repeatable.name, batches_of(repeatable.name)
        build = Attending if name in OF_TRANSFORMERS else Chain
        modules, functions = (twice(lambda f=f: build(functions=f))[0] for f in (False, True))
        values = [value_of(name, chain, batches, loss_fn=F.cross_entropy) for chain in (modules, functions)]
        if name not in OUTPUTS_OF_SUBMODULES:
            assert values[0] is not None
            assert values[1] == values[0]

    def test_gives_the_same_number_twice(self, repeatable: Proxy) -> None:
        module, name = classifier_for(repeatable.name, dropout=0.3), repeatable.name
        first = score(module, batches_of(name), proxies=name)[name]
        torch.manual_seed(99)
        second = score(module, batches_of(name), proxies=name)[name]
        assert first.value == second.value
        assert first.layers == second.layers

    @pytest.mark.parametrize("axis", ["batch", "sample"])
    @pytest.mark.parametrize("fail", [False, True])
    def test_leaves_everything_bit_identical(self, name: str, axis: Any, fail: bool) -> None:
        module = with_kept_head(name, BusyClassifier(fail=fail))
        with assert_untouched(module), assert_globals_untouched():
            result = score(module, batches_of(name), proxies=name, axis=axis)[name]
        if not fail:
            assert_is_number_or_reason(result)

    @pytest.mark.parametrize("kind", NETWORKS)
    def test_leaves_networks_of_every_kind_bit_identical(self, name: str, kind: str) -> None:
        network, batches = network_and_batches(kind)
        kept = [tensor.clone() for batch in batches for tensor in batch]
        with assert_untouched(network), assert_globals_untouched():
            score(network, batches, proxies=name, loss_fn=F.cross_entropy)
        assert all(torch.equal(a, b) for a, b in zip(kept, (t for batch in batches for t in batch), strict=True))

    @pytest.mark.parametrize("chunk_size", [1, 4, "auto"])
    def test_does_not_depend_on_chunk_size(self, repeatable: Proxy, chunk_size: Any) -> None:
        module, name = classifier_for(repeatable.name), repeatable.name
        whole = value_of(name, module, batches_of(name), axis="sample")
        chunked = value_of(name, module, batches_of(name), axis="sample", chunk_size=chunk_size)
        assert chunked == pytest.approx(whole, rel=1e-5)  # float32 sums in another order

    def test_looks_at_the_first_batch_alone_unless_it_compares_gradients(self, repeatable: Proxy) -> None:
        module, name, batches = classifier_for(repeatable.name), repeatable.name, batches_of(repeatable.name, 4)
        if repeatable.min_gradients or name in OF_FEATURES:
            # 16 gradients are not 4, and either way the first batch is among them
            assert value_of(name, module, batches) != value_of(name, module, batches[:2])
        else:
            assert value_of(name, module, batches) == value_of(name, module, batches[:1])
            assert value_of(name, module, batches) == value_of(name, module, batches, axis="sample")

    def test_does_not_depend_on_the_order_of_the_batches(self, repeatable: Proxy) -> None:
        module, name, batches = classifier_for(repeatable.name), repeatable.name, batches_of(repeatable.name, 4)
        first_is_special = not (repeatable.min_gradients or name in OF_FEATURES) or name in PATTERNS_OF_THE_FIRST_BATCH
        others = [batches[0], *batches[:0:-1]] if first_is_special else batches[::-1]
        # float32 moments merged in another order
        assert value_of(name, module, others) == pytest.approx(value_of(name, module, batches), rel=1e-5)

    def test_needs_labels_only_if_it_says_so(self, repeatable: Proxy) -> None:
        module, name = classifier_for(repeatable.name), repeatable.name
        batches = batches_of(name)
        relabelled = [(inputs, torch.tensor([0, 0, 0, 0, 1, 2]).clamp(max=labels.max())) for inputs, labels in batches]
        same = value_of(name, module, batches) == value_of(name, module, relabelled)
        assert same == (not repeatable.needs_labels) or name in COUNTS_OF_WHAT_LEARNS

    def test_does_not_see_the_loss_if_it_needs_no_labels(self, repeatable: Proxy) -> None:
        class OtherLoss(Classifier):
            def training_step(self, batch: Any, batch_idx: int) -> Tensor:
                return 3 * self(batch[0]).square().mean()

        if not repeatable.needs_labels:
            plain, other = (twice(lambda b=b: classifier_for(repeatable.name, b))[0] for b in (Classifier, OtherLoss))
            values = [value_of(repeatable.name, module, batches_of(repeatable.name)) for module in (plain, other)]
            assert values[0] == values[1]

    def test_has_a_direction_that_is_tested_or_none(self, name: str) -> None:
        assert (name in DIRECTIONS) + (name in UNDIRECTED) + (name in OF_FEATURES) == 1

    @pytest.mark.parametrize("name", DIRECTIONS)
    def test_prefers_the_better_network_in_the_documented_direction(self, name: str, proxy: Proxy) -> None:
        pair = DIRECTIONS[name]
        batches = [(inputs, torch.zeros_like(labels)) for inputs, labels in make_batches()]
        worse, better = (
            value_of(name, twice(build)[0], batches, loss_fn=F.cross_entropy) for build in (pair.worse, pair.better)
        )
        assert worse is not None
        assert better is not None
        assert (better > worse) == proxy.higher_is_better
        assert better != worse
