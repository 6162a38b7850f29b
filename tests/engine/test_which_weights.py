"""Which weights make up the layers of a module: those that it multiplies its input with."""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel

import lightning_zico.engine.anatomy as anatomy_module
from lightning_zico import Budget, Leaderboard, ZiCo, register_layer, score
from lightning_zico.engine.blocks import block_names
from lightning_zico.engine.layers import Layout, channel_dim, known_layers
from lightning_zico.engine.probe import Probe
from lightning_zico.engine.weights import kaiming_weights
from lightning_zico.proxies.size import NumLayers, SumLogNumel
from lightning_zico.scoring.fingerprint import surroundings
from tests.engine.models import batches_of, step
from tests.reference.watch import separated

X = torch.randn(6, 4)


class Apply(nn.Module):
    """Applies a function to itself and to its input."""

    def __init__(self, function: Callable[..., Tensor], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(torch.randn(part)) if isinstance(part, tuple) else part)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class Conv1D(nn.Module):
    """Linear, with the weight that Hugging Face's class of this name has, ``[in, out]``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


class LoRA(nn.Module):
    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(rank, linear.in_features))
        self.b = nn.Parameter(torch.randn(linear.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + x @ self.a.T @ self.b.T


def pruned(layer: nn.Module) -> nn.Module:
    prune.random_unstructured(layer, "weight", 0.5)
    return layer


def last(m: Any, x: Tensor) -> Tensor:
    return m.head(m.cell(x.unflatten(1, (2, 2)))[0][:, -1])


# by kind: a module, the names of its layers, and how often it is run to find them
KINDS: dict[str, tuple[Callable[[], nn.Module], list[str], int]] = {
    "ordinary": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.PReLU(), nn.Linear(4, 3)),
        ["0.weight", "3.weight"],
        0,
    ),
    "pruned": (lambda: pruned(nn.Linear(4, 3)), ["weight_orig"], 0),
    "spectral norm, old": (lambda: torch.nn.utils.spectral_norm(nn.Linear(4, 3)), ["weight_orig"], 0),
    "orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(4, 3)), ["parametrizations.weight.original"], 0),
    "bilinear": (lambda: Apply(lambda m, x: m.b(x, x), b=nn.Bilinear(4, 4, 3)), ["b.weight"], 0),
    "lstm": (
        lambda: recurrent(nn.LSTM(2, 5, batch_first=True), 5),
        ["cell.weight_ih_l0", "cell.weight_hh_l0", "head.weight"],
        0,
    ),
    "projected lstm, both ways": (
        lambda: recurrent(nn.LSTM(2, 5, batch_first=True, bidirectional=True, proj_size=3), 6),
        [f"cell.weight_{kind}_l0{way}" for way in ("", "_reverse") for kind in ("ih", "hh", "hr")] + ["head.weight"],
        0,
    ),
    "cell": (
        lambda: Apply(lambda m, x: m.cell(x, torch.zeros(len(x), 3)), cell=nn.GRUCell(4, 3)),
        ["cell.weight_ih", "cell.weight_hh"],
        0,
    ),
    "attention": (
        lambda: Apply(lambda m, x: m.a(*[x[:, None]] * 3)[0][:, 0], a=nn.MultiheadAttention(4, 2)),
        [f"a.in_proj_weight[{part}]" for part in "qkv"] + ["a.out_proj.weight"],
        0,
    ),
    "attention to something else": (
        lambda: Apply(
            lambda m, x: m.a(x[:, None, :3], x[:, None], x[:, None, :2])[0][:, 0],
            a=nn.MultiheadAttention(3, 1, kdim=4, vdim=2),
        ),
        ["a.q_proj_weight", "a.k_proj_weight", "a.v_proj_weight", "a.out_proj.weight"],
        0,
    ),
    "conv1d": (lambda: nn.Sequential(Conv1D(4, 5), nn.ReLU(), Conv1D(5, 3)), ["0.weight", "2.weight"], 1),
    "low rank": (lambda: nn.Sequential(LoRA(nn.Linear(4, 3), 2)), ["0.a", "0.b"], 1),
    "einsum": (
        lambda: Apply(lambda m, x: torch.einsum("ni,io->no", x + m.table, m.w), table=(1, 4), w=(4, 3)),
        ["w"],
        1,
    ),
    "batched": (lambda: Apply(lambda m, x: (x.view(6, 2, 1, 2) @ m.w).sum((1, 2)), w=(2, 2, 3)), ["w"], 1),
    "chosen by data": (lambda: Apply(lambda m, x: (x[:, None] @ m.w[expert_of(x)])[:, 0], w=(2, 4, 3)), ["w"], 1),
    "selected by data": (
        lambda: Apply(lambda m, x: (x[:, None] @ m.w.index_select(0, expert_of(x)))[:, 0], w=(2, 4, 3)),
        ["w"],
        1,
    ),
    "mixed by a gate": (
        lambda: Apply(
            lambda m, x: (x[:, None] @ (m.base + (m.gate(x)[..., None, None] * m.w).sum(1)))[:, 0],
            base=(4, 3),
            w=(2, 4, 3),
            gate=nn.Linear(4, 2),
        ),
        ["base", "w", "gate.weight"],
        1,
    ),
    "chosen, but added": (
        lambda: Apply(lambda m, x: (x + m.w[expert_of(x)].mean(1)) @ m.v, w=(2, 5, 4), v=(4, 3)),
        ["v"],
        1,
    ),
    "tokens chosen by data": (
        lambda: Apply(
            lambda m, x: (m.w[expert_of(x)] @ m.v).mean(1) + m.b[expert_of(x)], w=(2, 5, 4), b=(2, 3), v=(4, 3)
        ),
        ["v"],
        1,
    ),
    "complex": (lambda: Apply(lambda m, x: (x + 0j).matmul(torch.view_as_complex(m.w)).abs(), w=(4, 3, 2)), ["w"], 1),
    "tied to an embedding": (
        lambda: tied(Apply(lambda m, x: m.head(m.e(x.argmax(1) % 3)), e=nn.Embedding(3, 4), head=nn.Linear(4, 3))),
        ["e.weight"],
        0,
    ),
}  # fmt: skip


def expert_of(x: Tensor) -> Tensor:
    return (x.sum(1) > 0).long()


def tied(module: Any) -> nn.Module:
    module.head.weight = module.e.weight
    return module


def recurrent(cell: nn.Module, width: int) -> nn.Module:
    return Apply(last, cell=cell, head=nn.Linear(width, 3))


# torch's own, of LSTMs with projections on a CPU
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_what_multiplies(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build, expected, num_runs = KINDS[kind]
    runs = []
    trace = anatomy_module.trace_flow
    monkeypatch.setattr(anatomy_module, "trace_flow", lambda *args: runs.append(1) or trace(*args))
    module = build()
    probe = Probe(module, step, batches_of(4))
    assert list(probe.layers) == expected
    measured = ZiCo().measure(probe)
    assert set(measured.layers) <= set(expected)
    assert len(runs) == num_runs
    named = dict(module.named_parameters())
    own = {name.partition("[")[0] for name in expected}
    trainable = sum(p.numel() for p in named.values() if p.requires_grad)
    assert measured.details["covered"] == pytest.approx(sum(named[name].numel() for name in own) / trainable)


@pytest.mark.parametrize("kind", KINDS)
def test_the_published_rule_knows_linear_and_convolutional_weights(kind: str) -> None:
    module = KINDS[kind][0]()
    card = score(module, batches_of(4), ["zico", ZiCo(parameters="published", name="published")], F.cross_entropy)
    layers = {id(part.weight): name for name, part in module.named_modules() if isinstance(part, nn.Linear)}
    if kind in ("ordinary", "tied to an embedding"):
        assert card["published"].value == card["zico"].value
        assert card["published"].layers == card["zico"].layers
    elif card["published"].value is None:
        assert "linear or convolutional" in card["published"].error
    else:
        assert len(card["published"].layers) <= len(layers)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")  # torch's own, of scripting
def test_scripted_layers_are_seen() -> None:
    plain = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    batches = batches_of(4)
    scripted = nn.Sequential(torch.jit.script(plain))  # one within another module
    values = [
        score(m, batches, "zico", F.cross_entropy)["zico"].value for m in (plain, torch.jit.script(plain), scripted)
    ]
    assert values[1:] == pytest.approx([values[0]] * 2, rel=1e-5)


@pytest.mark.parametrize("name", ["zico", "num_layers", "sum_log_numel", "grad_norm", "snip", "synflow", "params_live"])
def test_attention_has_one_score_fused_or_not(name: str) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
    fused = Apply(
        lambda m, x: m.head(m.layer(m.up(x[:, :, None])).mean(1)), up=nn.Linear(1, 8), layer=layer, head=nn.Linear(8, 3)
    )
    batches = batches_of(4)
    values = [score(m, batches, name, F.cross_entropy)[name].value for m in (fused, separated(fused))]
    assert values[1] == pytest.approx(values[0], rel=1e-4)  # float32


def test_a_class_of_ones_own_can_be_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    class Opaque(nn.Module):
        """Multiplies by hand, which no run can tell from a gain."""

        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(3, 4))

        def forward(self, x: Tensor) -> Tensor:
            return (x.unsqueeze(1) * self.kernel).sum(-1)

    monkeypatch.setattr("lightning_zico.engine.layers._DECLARED", {})
    undeclared = surroundings()
    assert list(Probe(Opaque(), step, batches_of(4)).layers) == []
    register_layer(Opaque, "kernel")
    assert list(Probe(Opaque(), step, batches_of(4)).layers) == ["kernel"]
    assert surroundings() != undeclared  # so that a cache does not know its scores
    with pytest.raises(TypeError, match="expected a subclass"):
        register_layer(Opaque(), "kernel")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected the name"):
        register_layer(Opaque, 3)  # type: ignore[arg-type]


def test_fans_and_channels_are_where_the_product_has_them() -> None:
    module = nn.Sequential(Conv1D(400, 5), Conv1D(5, 3))
    probe = Probe(module, step, batches_of(400))
    assert [layer.fan_in for layer in probe.structure.values()] == [400, 5]
    drawn = kaiming_weights(module, torch.Generator().manual_seed(0), probe.structure)
    assert float(drawn["0.weight"].std()) == pytest.approx(math.sqrt(2 / 400), rel=0.1)
    assert Layout.of(module, probe.structure).layers == {id(module[0]): "0.weight", id(module[1]): "1.weight"}
    assert channel_dim(module[0], torch.zeros(2, 7, 5)) == 2
    assert channel_dim(Apply(F.relu, kernel=(8, 3, 5)), torch.zeros(2, 8, 9)) == 1


def body() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))


def taught(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        target = m.teacher(x)
    return m.student(x) * (1 + target.square().mean())


class Pair(NamedTuple):
    student: nn.Module
    teacher: nn.Module


def moved(module: nn.Module) -> nn.Module:
    """Let a moving average lag behind its model."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return module


def copied(how: str) -> nn.Module:
    student = body()
    if how == "in two places":
        parts = nn.ModuleDict({"s": student, "t": copy.deepcopy(student)})
        return Apply(lambda m, x: taught(Pair(m.student, m.parts["t"]), x), student=student, parts=parts)
    teacher: nn.Module = copy.deepcopy(student)
    if how == "frozen":
        teacher.requires_grad_(False)
    elif how == "average":
        teacher = AveragedModel(student)
    elif how == "lagging":
        moved(teacher)
    elif how == "of its own":
        teacher = body()
    return Apply(taught, student=student, teacher=teacher)


@pytest.mark.parametrize("how", ["frozen", "under no_grad", "average", "lagging", "of its own", "in two places"])
def test_untrained_copies_are_neither_layers_nor_blocks(how: str) -> None:
    module = copied(how)
    probe = Probe(module, step, batches_of(4))
    assert list(probe.layers) == ["student.0.weight", "student.2.weight", "student.4.weight"]
    assert probe.blocks == ["student.1", "student.3", "student.4"]


@torch.no_grad()
def by_decorator(m: Any, x: Tensor) -> Tensor:
    return m.teacher(x)


def by_detaching(m: Any, x: Tensor) -> Tensor:
    return m.teacher(x).detach()


def followed(m: Any, x: Tensor) -> Tensor:
    return m.teacher(x)


@pytest.mark.parametrize("target", [by_decorator, by_detaching, followed])
@pytest.mark.parametrize("is_in_step", [False, True])
def test_a_momentum_encoder_with_weights_of_its_own_is_found_wherever_it_stands(target: Any, is_in_step: bool) -> None:
    def loss(m: Any, b: Any, i: int) -> Tensor:
        return F.cross_entropy(m.pair.student(b[0]), b[1]) + F.mse_loss(m.pair.student(b[0]), target(m.pair, b[0]))

    pair = Apply(lambda m, x: m.student(x), student=body(), teacher=body())
    module = Apply(loss if not is_in_step else lambda m, x: x, pair=pair)
    probe = Probe(module, loss, batches_of(4))
    students = [f"pair.student.{number}.weight" for number in (0, 2, 4)]
    teachers = [name.replace("student", "teacher") for name in students]
    assert list(probe.layers) == students + (teachers if target is followed else [])


@pytest.mark.parametrize("how", ["frozen", "under no_grad", "average", "lagging", "of its own"])
@pytest.mark.parametrize("is_first", [False, True])
def test_a_copy_changes_no_draw(how: str, is_first: bool) -> None:
    torch.manual_seed(0)
    module: Any = copied(how)
    student = Apply(lambda m, x: m.student(x), student=copy.deepcopy(module.student))
    if is_first:
        module._modules = dict(reversed(module._modules.items()))
    names, batches = ["az_expressivity", "az_trainability", "zen"], batches_of(4)
    cards = [score(m, batches, names, F.cross_entropy) for m in (module, student)]
    # what the copy puts out goes into the loss only
    assert [cards[0][name].value for name in names[:2]] == [cards[1][name].value for name in names[:2]]
    assert cards[0]["az_expressivity"].value is not None


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x).relu())


def test_whole_twins_are_not_taken_for_blocks() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.Sequential(Block(), Block())

        def forward(self, x: Tensor) -> Tensor:
            return self.blocks(x)

    student = Encoder()
    module = Apply(taught, student=student, teacher=copy.deepcopy(student).requires_grad_(False))
    assert block_names(module) == ["student.blocks.0", "student.blocks.1"]


@pytest.mark.parametrize("is_chosen_by_data", [False, True])
def test_layers_that_take_no_part_are_left_out_where_every_batch_takes_one_path(is_chosen_by_data: bool) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        hidden = x @ m.w
        is_head = not is_chosen_by_data or hidden.abs().sum() >= 0
        return (m.head if is_head else m.idle)(hidden)

    module = Apply(forward, w=(4, 4), head=nn.Linear(4, 3), idle=nn.Linear(4, 3))
    probe = Probe(module, step, batches_of(4))
    assert list(probe.layers) == ["w", "head.weight", *(["idle.weight"] if is_chosen_by_data else [])]
    assert probe.covered() == pytest.approx((28 + 12 * is_chosen_by_data) / 46)


EMBEDDED: dict[str, tuple[Callable[[Any, Tensor], Tensor], int]] = {
    "matmul": (lambda m, h: h @ m.e.weight.T, 1),
    "linear": (lambda m, h: F.linear(h, m.e.weight), 1),
    "by a function": (lambda m, h: by_hand(m, h), 1),
    "looked up alone": (lambda m, h: h.cumsum(-1)[:, :3], 0),
}


def by_hand(m: Any, hidden: Tensor) -> Tensor:
    return torch.einsum("nc,vc->nv", hidden, m.e.weight)


@pytest.mark.parametrize("kind", EMBEDDED)
def test_an_embedding_is_a_layer_where_it_is_the_output_matrix_as_well(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, num_runs = EMBEDDED[kind]
    runs = []
    trace = anatomy_module.trace_flow
    monkeypatch.setattr(anatomy_module, "trace_flow", lambda *args: runs.append(1) or trace(*args))
    module = Apply(
        lambda m, x: m.out(m, m.l(m.e(x.argmax(1) % 3)).relu()), e=nn.Embedding(3, 4), l=nn.Linear(4, 4), out=out
    )
    assert list(Probe(module, step, batches_of(4)).layers) == ["e.weight"] * num_runs + ["l.weight"]
    assert len(runs) == num_runs


@pytest.mark.parametrize("wraps", [lambda step: step, lambda step: partial(step), lambda step: Stepper(step)])
def test_an_embedding_that_the_step_multiplies_with_is_a_layer(wraps: Any) -> None:
    def loss(m: Any, b: Any, i: int) -> Tensor:
        return F.cross_entropy(m.l(m.e(b[1])).relu() @ m.e.weight.T, b[1])

    module = Apply(lambda m, x: x, e=nn.Embedding(3, 4), l=nn.Linear(4, 4))
    card = score(module, batches_of(4), ["zico", "num_layers"], step=wraps(loss))
    assert card["num_layers"].value == 2
    assert list(card["zico"].layers) == ["e.weight", "l.weight"]


class Stepper:
    def __init__(self, step: Callable[..., Tensor]) -> None:
        self.step = step

    def __call__(self, module: nn.Module, batch: Any, batch_idx: int) -> Tensor:
        hidden = module.l(module.e(batch[1])).relu()
        return F.cross_entropy(F.linear(hidden, module.e.weight), batch[1])


def normed(how: str) -> nn.Module:
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    for layer in (module[0], module[2]):
        if how == "weight norm":
            parametrizations.weight_norm(layer)
        elif how == "old weight norm":
            torch.nn.utils.weight_norm(layer)
        elif how == "pruned":
            prune.l1_unstructured(layer, "weight", 0.5)
    return module


@pytest.mark.filterwarnings("ignore:.torch.nn.utils.weight_norm:FutureWarning")
@pytest.mark.parametrize("how", ["plain", "weight norm", "old weight norm", "pruned"])
def test_a_weight_counts_once_whatever_it_is_computed_from(how: str) -> None:
    probe = Probe(normed(how), step, batches_of(4))
    assert NumLayers().measure(probe).value == 2
    assert SumLogNumel().measure(probe).value == pytest.approx(math.log(4 * 8) + math.log(8 * 3))
    assert Budget(depth=2).excess(probe) is None
    assert Budget(depth=1).excess(probe) is not None


@pytest.mark.filterwarnings("ignore:.torch.nn.utils.weight_norm:FutureWarning")
def test_a_recurrent_weight_under_the_old_weight_norm_counts_once() -> None:
    cell = torch.nn.utils.weight_norm(nn.LSTM(3, 4, bidirectional=True), "weight_hh_l0_reverse")
    assert len(known_layers(cell).weights) == 4


def test_attention_that_is_normed_keeps_its_three_layers() -> None:
    attention = parametrizations.weight_norm(nn.MultiheadAttention(4, 2), "in_proj_weight")
    assert len(known_layers(attention)) == 7
    assert len(known_layers(attention).weights) == 4


def test_twins_that_are_both_trained_stay() -> None:
    first = body()
    module = Apply(lambda m, x: m.first(x) + m.second(x), first=first, second=copy.deepcopy(first))
    assert len(Probe(module, step, batches_of(4)).layers) == 6


def test_ordinary_networks_are_known_without_a_run() -> None:
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(4, 2, 8), 2)
    for module in (body(), nn.ModuleDict({"a": body(), "b": body()}), decoder, nn.LSTM(3, 4, 2)):
        assert not known_layers(module).needs_run


def test_a_step_that_cannot_be_followed_leaves_what_the_classes_tell() -> None:
    module = Apply(lambda m, x: m.head(x) + m.w.sum(), head=nn.Linear(4, 3), w=(2, 2))
    calls = []

    def failing(m: nn.Module, b: Any, i: int) -> Tensor:
        calls.append(1)
        if len(calls) <= 2:  # on the meta device, and on the module's own
            raise RuntimeError("not yet")
        return step(m, b, i)

    assert list(Probe(module, failing, batches_of(4)).layers) == ["head.weight"]


def test_a_note_says_whose_weights_were_hardly_looked_at() -> None:
    module = nn.Sequential(nn.Linear(4, 3), Apply(lambda m, x: x * m.gain.sum(), gain=(20, 30)))
    cards = []
    for name in ("a", "b"):
        card = score(module, batches_of(4), ["zico"], F.cross_entropy)
        cards.append(type(card)(name, card.scores))
    share = cards[0]["zico"].details["covered"]
    assert share == pytest.approx(12 / (12 + 3 + 600))
    (note,) = Leaderboard.of(cards[:1], rank_by="zico", columns=["zico"]).notes
    assert note == "zico looked at 2 % of a's trainable weights."
    (note,) = Leaderboard.of(cards, rank_by="zico", columns=["zico"]).notes
    assert note == "zico looked at 2 % of a's trainable weights, and at less than 90 % in 1 other candidate."
    plain = score(module, batches_of(4), ["num_layers"], F.cross_entropy)
    assert Leaderboard.of([plain], rank_by="num_layers", columns=["num_layers"]).provenance["covered"]
    ignored = Leaderboard.of(
        [plain], rank_by="num_layers", columns=["num_layers"], provenance={"kendall_with": {"num_layers": None}}
    )
    assert "covered" not in ignored.provenance


@pytest.mark.parametrize(
    ("build", "is_noted"),
    [
        (body, False),
        (lambda: nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 3)), False),
        (lambda: nn.Sequential(Apply(lambda m, x: x + m.table.mean(0), table=(9, 4)), nn.Linear(4, 3)), True),
    ],
)
def test_biases_and_norms_alone_give_no_note(build: Callable[[], nn.Module], is_noted: bool) -> None:
    card = score(build(), batches_of(4), ["zico"], F.cross_entropy)
    assert card["zico"].details["covered"] < 0.9
    assert bool(Leaderboard.of([card], rank_by="zico", columns=["zico"]).notes) == is_noted
