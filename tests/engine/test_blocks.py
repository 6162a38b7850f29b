"""Blocks found from a run, beside those that a reader of the code would list."""

import itertools
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_zico.engine.anatomy import Anatomy
from lightning_zico.engine.blocks import block_names
from lightning_zico.engine.chain import Chain
from lightning_zico.engine.size import count_macs
from lightning_zico.errors import UnsupportedModuleError
from lightning_zico.spaces import get_space


def found(module, inputs):
    return Anatomy(module, lambda net, batch, _: net(batch).float().sum(), [inputs]).blocks


def meta(build):
    with torch.device("meta"):
        return build()


def images(side=32):
    return torch.zeros(2, 3, side, side, device="meta")


# Spaces


class Bottleneck(nn.Module):
    """Of MobileNet: a shortcut only where the shape stays."""

    def __init__(self, narrow, wide, stride, factor, kernel):
        super().__init__()
        hidden = narrow * factor
        self.body = nn.Sequential(
            *(nn.Conv2d(narrow, hidden, 1), nn.BatchNorm2d(hidden), nn.ReLU(inplace=True)),
            *(nn.Conv2d(hidden, hidden, kernel, stride, kernel // 2, groups=hidden), nn.BatchNorm2d(hidden)),
            *(nn.ReLU(inplace=True), nn.Conv2d(hidden, wide, 1), nn.BatchNorm2d(wide)),
        )
        self.has_shortcut = narrow == wide and stride == 1

    def forward(self, x):
        return x + self.body(x) if self.has_shortcut else self.body(x)


class Skip(nn.Module):
    def __init__(self, narrow, wide, stride):
        super().__init__()
        if narrow != wide or stride > 1:
            self.shape = nn.Sequential(nn.Conv2d(narrow, wide, 1, stride), nn.BatchNorm2d(wide))

    def forward(self, x):
        return self.shape(x) if hasattr(self, "shape") else x


class MobileNet(nn.Module):
    """Eight choices between two kinds of blocks and an identity, in three stages, as in NAS-Bench-Macro."""

    def __init__(self, choices, plain=False):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        widths = (4, 8, 8, 16, 16, 16, 32, 32, 32)
        self.features = nn.Sequential(
            *(
                self.block(choice, narrow, wide, 2 if wide > narrow else 1, plain)
                for choice, (narrow, wide) in zip(choices, itertools.pairwise(widths), strict=True)
            )
        )
        self.last = nn.Sequential(nn.Conv2d(32, 40, 1), nn.BatchNorm2d(40), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.head = nn.Linear(40, 10)

    def block(self, choice, narrow, wide, stride, plain):
        if choice:
            return Bottleneck(narrow, wide, stride, 3 * choice, 1 + 2 * choice)
        return nn.Identity() if plain and stride == 1 else Skip(narrow, wide, stride)

    def forward(self, x):
        return self.head(self.last(self.features(self.stem(x))).flatten(1))


EXTREMES = [(0,) * 8, (1,) * 8, (2,) * 8, (1, 0, 1, 0, 0, 1, 0, 0), (0, 0, 0, 0, 2, 0, 0, 0), (2, 0, 0, 0, 0, 0, 0, 0)]


@pytest.mark.parametrize("plain", [False, True])
def test_mobile_blocks_and_identities_are_all_found(plain):
    rng = random.Random(0)
    for choices in (*EXTREMES, *(rng.choices(range(3), k=8) for _ in range(2))):
        network = meta(lambda choices=choices: MobileNet(choices, plain))
        assert found(network, images()) == [f"features.{idx}" for idx in range(8)], choices


SPACES = [
    *("nas_bench_201", "nas_bench_101", "transnas_micro", "transnas_macro", "nats_bench_size", "autoformer_tiny"),
    "darts",
]


def _agree(name, archs, side):
    space = get_space(name)
    for arch in archs(space):
        assert found(meta(lambda arch=arch: space.build(arch)), images(side)) == list(space.blocks(arch)), str(arch)


def _drawn(count):
    def draw(space):
        rng = random.Random(1)
        return [space.sample(rng) for _ in range(count)]

    return draw


@pytest.mark.parametrize("name", SPACES)
def test_what_is_found_is_what_a_space_names(name):
    _agree(name, _drawn(1), 224 if name == "autoformer_tiny" else 64)


@pytest.mark.slow
@pytest.mark.parametrize("name", SPACES)
def test_what_is_found_is_what_a_space_names_in_many_archs(name):
    _agree(name, _drawn(20), 224 if name == "autoformer_tiny" else 64)


@pytest.mark.parametrize("op", ["none", "skip_connect", "nor_conv_1x1"])
def test_cells_count_without_layers_of_their_own(op):
    text = f"|{op}~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|"
    _agree("nas_bench_201", lambda space: [space.parse(text)], 32)


def test_stages_whose_cells_have_no_layers_are_no_blocks():
    _agree("transnas_micro", lambda space: [space.parse("64-41414-0_20_000")], 64)


# Ways to write a network


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.one, self.two = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        return x + self.two(F.relu(self.one(x)))


class Gated(Residual):
    def forward(self, x):
        return x * self.two(F.relu(self.one(x))).sigmoid()


class Stage(nn.Module):
    def __init__(self, *blocks):
        super().__init__()
        self.inner = nn.Sequential(*blocks)

    def forward(self, x):
        return self.inner(x)


class Pair(nn.Module):
    """A block of two parts, of which the second is itself residual."""

    def __init__(self, width):
        super().__init__()
        self.mix, self.mlp = Gated(width), Residual(width)

    def forward(self, x):
        return self.mlp(self.mix(x))


class Tower(nn.Module):
    """A stem, something in the middle, and a head."""

    def __init__(self, *, run=None, **parts):
        super().__init__()
        self.stem = nn.Linear(6, 8)
        for name, part in parts.items():
            setattr(self, name, part)
        self.head = nn.Linear(8, 3)
        self.run = run

    def forward(self, x):
        return self.head(self.run(self, self.stem(x)))


def _through(parts, x):
    for part in parts:
        x = part(x)
    return x


def _body():
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))


WRITTEN = {
    "different classes with one interface": (
        lambda: Tower(blocks=nn.ModuleList([Residual(8), Gated(8)]), run=lambda net, x: _through(net.blocks, x)),
        ["blocks.0", "blocks.1"],
    ),
    "attributes": (
        lambda: Tower(first=Residual(8), second=Residual(8), run=lambda net, x: net.second(net.first(x))),
        ["first", "second"],
    ),
    "the order of the run": (
        lambda: Tower(first=Residual(8), second=Residual(8), run=lambda net, x: net.first(net.second(x))),
        ["second", "first"],
    ),
    "stages in a list": (
        lambda: Tower(
            stages=nn.ModuleList([nn.Sequential(Residual(8)), nn.Sequential(Residual(8), Residual(8))]),
            run=lambda net, x: _through(net.stages, x),
        ),
        ["stages.0.0", "stages.1.0", "stages.1.1"],
    ),
    "sums outside of plain sequences": (
        lambda: Tower(
            blocks=nn.ModuleList([_body(), _body(), _body()]),
            run=lambda net, x: net.blocks[2](h := net.blocks[1](g := net.blocks[0](x) + x) + g) + h,
        ),
        ["blocks.0", "blocks.1", "blocks.2"],
    ),
    "identities": (
        lambda: Tower(blocks=nn.Sequential(nn.Identity(), Residual(8), nn.Identity(), Gated(8)), run=_blocks_of),
        ["blocks.0", "blocks.1", "blocks.2", "blocks.3"],
    ),
    "plain modules in between": (
        lambda: Tower(blocks=nn.Sequential(Residual(8), nn.ReLU(), nn.Dropout(), Gated(8)), run=_blocks_of),
        ["blocks.0", "blocks.3"],
    ),
    "a stage beside blocks": (
        lambda: Tower(blocks=nn.Sequential(Residual(8), Gated(8), Stage(Residual(8), Residual(8))), run=_blocks_of),
        ["blocks.0", "blocks.1", "blocks.2.inner.0", "blocks.2.inner.1"],
    ),
    "stages of different depth": (
        lambda: Tower(
            stages=nn.Sequential(Stage(Residual(8)), Stage(Residual(8), Residual(8)), Stage(Residual(8))),
            run=lambda net, x: net.stages(x),
        ),
        ["stages.0.inner.0", "stages.1.inner.0", "stages.1.inner.1", "stages.2.inner.0"],
    ),
    "named parts of a block": (
        lambda: Tower(blocks=nn.Sequential(Pair(8), Pair(8)), run=_blocks_of),
        ["blocks.0", "blocks.1"],
    ),
    "blocks of one layer": (
        lambda: Tower(blocks=nn.Sequential(*(Stage(nn.Linear(8, 8)) for _ in range(3))), run=_blocks_of),
        ["blocks.0", "blocks.1", "blocks.2"],
    ),
    "one unused": (
        lambda: Tower(
            blocks=nn.ModuleList([Residual(8) for _ in range(3)]), run=lambda net, x: net.blocks[2](net.blocks[0](x))
        ),
        ["blocks.0", "blocks.2"],
    ),
    "a checkpoint": (
        lambda: Tower(
            blocks=nn.ModuleList([Residual(8), Gated(8)]),
            run=lambda net, x: _through(
                [lambda x, b=b: torch.utils.checkpoint.checkpoint(b, x, use_reentrant=False) for b in net.blocks], x
            ),
        ),
        ["blocks.0", "blocks.1"],
    ),
}


def _blocks_of(net, x):
    return net.blocks(x)


@pytest.mark.parametrize("how", WRITTEN)
def test_blocks_are_found_however_they_are_written(how):
    build, names = WRITTEN[how]
    assert found(build(), torch.zeros(4, 6)) == names


def test_a_step_that_looks_at_values_runs_where_the_module_is():
    def run(net, x):
        return net.blocks(x) if x.abs().sum().item() >= 0 else x

    network = Tower(blocks=nn.Sequential(Residual(8), Gated(8)), run=run)
    assert found(network, torch.zeros(4, 6)) == ["blocks.0", "blocks.1"]


def test_a_step_that_differentiates_runs_with_autograd():
    def run(net, x):
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(net.blocks(x).sum(), x)
        return net.blocks[1](net.blocks[0](x)) * 0 + slope

    # the blocks run twice, so only their classes tell
    network = Tower(blocks=nn.Sequential(Residual(8), Residual(8)), run=run)
    assert found(network, torch.zeros(4, 6)) == ["blocks.0", "blocks.1"]


# Narrow points


def calls_of(module, step, inputs):
    chain = Chain(module)
    count_macs(module, step, inputs, chain=chain)
    return chain.calls


def links(module, inputs):
    calls = calls_of(module, lambda net, batch, _: net(batch).sum(), inputs)
    return [inner.name for call in calls for inner in call if inner.is_link]


def _reach(edges, start, removed):
    """List all that can be reached from a node without passing through another one."""
    seen, waiting = set(), [start]
    while waiting:
        node = waiting.pop()
        if node not in seen and node != removed:
            seen.add(node)
            waiting += [b for a, b in edges if a == node]
    return seen


class Wired(nn.Module):
    """A graph of layers, each of which reads the product of what points to it."""

    def __init__(self, edges, size):
        super().__init__()
        self.edges = edges
        self.nodes = nn.ModuleList(nn.Linear(4, 4) for _ in range(size))

    def forward(self, x):
        outputs = [self.nodes[0](x)]
        for idx in range(1, len(self.nodes)):
            read = torch.stack([outputs[a] for a, b in self.edges if b == idx]).prod(0)
            outputs.append(self.nodes[idx](read))
        return outputs[-1]


@pytest.mark.parametrize("seed", range(20))
def test_links_are_the_nodes_without_which_the_end_is_not_reached(seed):
    rng, size = random.Random(seed), 7
    edges = {(a, b) for b in range(1, size) for a in rng.sample(range(b), min(b, rng.choice([1, 1, 2])))}
    narrow = [node for node in range(size) if size - 1 not in _reach(edges, 0, node)]
    assert links(Wired(sorted(edges), size), torch.zeros(2, 4)) == ["", *(f"nodes.{node}" for node in narrow)]


def test_masks_of_the_batch_open_no_way_around():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(5, 8)
            self.blocks = nn.ModuleList(
                nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0) for _ in range(3)
            )
            self.head = nn.Linear(8, 2)

        def forward(self, tokens):
            x, mask = self.table(tokens), tokens == 0
            for block in self.blocks:
                x = block(x, src_key_padding_mask=mask)
            return self.head(x.mean(1))

    assert found(Masked(), torch.ones(2, 4, dtype=torch.long)) == [f"blocks.{idx}" for idx in range(3)]


def test_what_other_data_passes_by_is_no_link():
    network = Tower(
        blocks=nn.ModuleList([Residual(8), Residual(8)]), run=lambda net, x: net.blocks[0](x) * net.blocks[1](x)
    )
    assert links(network, torch.zeros(4, 6)) == ["", "stem", "head"]


def test_a_caught_error_does_not_mix_up_calls():
    class Failing(nn.Module):
        def forward(self, x):
            raise ValueError

    def run(net, x):
        try:
            net.broken(x)
        except ValueError:
            return net.blocks(x)

    network = Tower(broken=nn.Sequential(nn.ReLU(), Failing()), blocks=nn.Sequential(Residual(8), Gated(8)), run=run)
    assert links(network, torch.zeros(4, 6))[:3] == ["", "stem", "blocks"]


def test_a_network_inside_vmap_is_followed():
    network = Tower(blocks=nn.Sequential(Residual(8), Gated(8)), run=_blocks_of)
    calls = calls_of(network, lambda net, batch, _: torch.func.vmap(net)(batch).sum(), torch.zeros(4, 6))
    assert block_names(network, None, calls) == ["blocks.0", "blocks.1"]


class Strange(nn.Module):
    """Returns something that no tensor can be looked for in."""

    def forward(self, x):
        return Unreadable(x)


class Unreadable:
    def __init__(self, x):
        self.x = x

    def __getattr__(self, name):
        raise RuntimeError(name)


class Counting(nn.Module):
    """Counts its runs in its class, which a run on the meta device does not put back."""

    runs = 0

    def __init__(self, run):
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.blocks = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.strange = Strange()
        self.head = nn.Linear(8, 3)
        self.run = run

    def forward(self, x):
        type(self).runs += 1
        return self.head(self.run(self, self.stem(x)))


def _runs(act):
    Counting.runs = 0
    try:
        result = act()
    except ValueError as error:
        result = str(error)
    return Counting.runs, result


def _traced(net, x):
    return torch.fx.symbolic_trace(nn.Sequential(net.blocks))(x)  # calls the blocks with proxies


def _strange(net, x):
    return net.strange(net.blocks(x)).x


def _without_memory(net, x):
    return net.blocks(x) + x.to_mkldnn().to_dense()


def _looking(net, x):
    return net.blocks(x) * (x.sum().item() + 1)


def _failing(net, x):
    raise ValueError("its own words")


@pytest.mark.parametrize("run", [_blocks_of, _strange, _traced, _without_memory, _looking, _failing])
def test_following_takes_no_run_of_its_own_and_changes_no_count(run):
    def step(module, batch, batch_idx):
        return module(batch).sum()

    def count(follow):
        module = Counting(run)
        return _runs(lambda: count_macs(module, step, torch.zeros(4, 6), chain=Chain(module) if follow else None))

    alone, followed = count(follow=False), count(follow=True)
    assert followed == alone
    anatomy = Anatomy(Counting(run), step, [torch.zeros(4, 6)])
    assert _runs(lambda: anatomy.blocks)[0] == alone[0]


def test_what_cannot_be_followed_is_counted_all_the_same():
    module = Tower(blocks=nn.Sequential(nn.Linear(8, 8), Strange()), run=lambda net, x: net.blocks(x).x)
    anatomy = Anatomy(module, lambda net, batch, _: net(batch).sum(), [torch.zeros(4, 6)])
    assert anatomy.macs.macs == 6 * 8 + 8 * 8 + 8 * 3
    assert anatomy.blocks == []


class Inner(nn.Module):
    def forward(self, parts):
        return next(iter(parts.values())) if isinstance(parts, dict) else parts[0]


class Outer(nn.Module):
    """Traces itself, and keeps the graphs in its class, which a run on the meta device does not put back."""

    graphs = ()

    def __init__(self, call):
        super().__init__()
        self.inner, self.call = Inner(), call

    def forward(self, x):
        if not isinstance(x, torch.fx.Proxy):
            Outer.graphs += (str(torch.fx.symbolic_trace(self).graph),)
        return self.call(self.inner, x)


@pytest.mark.parametrize(
    "call",
    [
        lambda inner, x: inner([x]),
        lambda inner, x: inner(parts=[x]),
        lambda inner, x: inner({"own": x}),
        lambda inner, x: inner(parts=x),
    ],
)
def test_following_adds_nothing_to_a_traced_graph(call, monkeypatch):
    monkeypatch.setattr(Outer, "graphs", ())
    network = Tower(outer=Outer(call), run=lambda net, x: net.outer(x))
    network(torch.zeros(4, 6))
    assert calls_of(network, lambda net, batch, _: net(batch).sum(), torch.zeros(4, 6)) == []
    alone, followed = Outer.graphs
    assert followed == alone


@pytest.mark.parametrize("output", [torch.zeros(3), None])
def test_a_step_without_a_loss_says_so(output):
    network = Tower(blocks=nn.Sequential(Residual(8), Gated(8)), run=_blocks_of)
    anatomy = Anatomy(network, lambda net, batch, _: net(batch) if output is not None else None, [torch.zeros(4, 6)])
    with pytest.raises(UnsupportedModuleError, match="expected a single number"):
        _ = anatomy.blocks


def test_a_network_that_is_called_twice_is_no_chain():
    network = Tower(blocks=nn.Sequential(Residual(8), Gated(8)), run=_blocks_of)
    calls = calls_of(network, lambda net, batch, _: (net(batch) - net(batch + 1)).square().sum(), torch.zeros(4, 6))
    assert len(calls) == 2
    assert block_names(network, None, calls) == block_names(network)


def test_the_module_is_as_before():
    network = Tower(
        norm=nn.BatchNorm1d(8), blocks=nn.Sequential(Residual(8), Gated(8)), run=lambda net, x: net.blocks(net.norm(x))
    )
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    inputs, state = torch.randn(4, 6), torch.get_rng_state()
    found(network, inputs)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not nn.modules.module._global_forward_hooks
    assert not nn.modules.module._global_forward_pre_hooks
