"""What a step does around its network changes no proxy that looks at the network alone."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint

from lightning_zico import ScoreCard, ZeroShotSelector, score
from lightning_zico.engine import weights
from lightning_zico.engine.weights import drawn_like
from lightning_zico.proxies import zen
from tests.modules import assert_untouched

NUM_SAMPLES, NUM_INPUTS, NUM_CLASSES = 8, 12, 3
NETWORK = ["naswot", "swap", "near", "log_neurons", "synflow", "zen", "az_expressivity_mean", "az_trainability"]
GRAPHS = ["jacob_cov", "ntk_cond"]
# Modules that torch compiles, as it does for `cond`, bring warnings of the compiler's own.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def inputs() -> Tensor:
    return torch.randn(NUM_SAMPLES, NUM_INPUTS, generator=torch.Generator().manual_seed(1))


def labels() -> Tensor:
    return torch.arange(NUM_SAMPLES) % NUM_CLASSES


def network(last: int = NUM_CLASSES) -> nn.Sequential:
    torch.manual_seed(3)
    width = 24
    hidden = [layer for _ in range(3) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(nn.Linear(NUM_INPUTS, width), nn.ReLU(), *hidden, nn.Linear(width, last))


class Trained(LightningModule):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


class Plain(Trained):
    """Puts a network's outputs into a loss that bears everything."""

    num_outputs = NUM_CLASSES

    def __init__(self) -> None:
        super().__init__()
        self.network = network(self.num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0]).square().mean()


class CastsInStep(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0].float()), batch[1])


class CastsOnTheWay(Plain):
    def forward(self, x: Tensor) -> Tensor:
        x = self.network[:2](x.to(torch.float32)).type(torch.FloatTensor)
        x = self.network[2:4](x.to(dtype=torch.float32)).type_as(torch.zeros(1, dtype=torch.float32))
        return self.network[4:](x.type("torch.FloatTensor")).float()


class MakesConstants(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.turn = torch.ones(NUM_INPUTS), torch.eye(NUM_INPUTS)

    def forward(self, x: Tensor) -> Tensor:
        x = (x * self.scale) @ self.turn
        zeros = torch.zeros(len(x), NUM_INPUTS, dtype=torch.float32)
        return self.network(torch.cat([x, zeros], dim=1)[:, :NUM_INPUTS] @ torch.eye(NUM_INPUTS, dtype=torch.float32))


class InsistsOnFloat32(Plain):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.network[:2](x)
        assert hidden.dtype == torch.float32
        return self.network[2:](hidden)


class Squeezes(Plain):
    num_outputs = 1

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        predictions = self(batch[0]).squeeze()
        if predictions.shape != batch[1].shape:
            raise ValueError("one prediction a target")
        return F.mse_loss(predictions, batch[1].float())


class PlainColumn(Plain):
    num_outputs = 1


class SqueezesFeatures(PlainColumn):
    """Gives a network of one sample none of its dimensions."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.network[:-1](x).squeeze()
        return self.network[-1](hidden.reshape(-1, hidden.shape[1]))


class ChecksMasks(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        assert batch[2].max() <= 1
        assert batch[2].min() >= 0
        return 1 - (self(batch[0]) * batch[2]).sum() / batch[2].sum()


class ReadsOneHotTargets(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        rows = torch.eye(NUM_CLASSES)[(batch[2] * torch.arange(NUM_CLASSES)).sum(dim=1).long()]
        if not torch.equal(rows, batch[2].to(rows)):
            raise IndexError("no class")
        return F.cross_entropy(self(batch[0]), batch[2])


class NeedsTwoSamples(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        outputs = self(batch[0])
        if len(outputs) < 2:
            raise ValueError("no covariance of one sample")
        return torch.linalg.slogdet(outputs.T.float() @ outputs.float() + torch.eye(NUM_CLASSES))[1]


class HasAMomentumBranch(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        query = self(batch[0])
        with torch.no_grad():
            key = self(batch[0].flip(0))
        return -F.cosine_similarity(query, key).mean()


class InVmap(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return vmap(self.network)(x)


class InGrad(Plain):
    """Differentiates its network by `torch.func`, as those do that solve equations."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        outputs = self(batch[0])
        penalty = grad(lambda scale: (outputs.detach() * scale).sum())(torch.ones(()))
        return outputs.square().mean() + 0 * penalty


class Differentiates(Plain):
    """Has forces: derivatives of what it puts out by its inputs."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0].clone().requires_grad_()
        energies = self(x)
        (forces,) = torch.autograd.grad(energies.sum(), x, create_graph=True)
        return energies.square().mean() + forces.square().mean()


class HasATeacher(Plain):
    """Looks at itself in inference mode first."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        with torch.inference_mode():
            target = self(batch[0]).softmax(-1)
        return F.cross_entropy(self(batch[0]), target.clone())


class Freezes(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.network[-1].weight.requires_grad = False
        return self(batch[0]).square().mean()


class Chooses(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        outputs = self(batch[0])
        return torch.cond(outputs.sum() > 0, lambda t: t * 2, lambda t: t.clone(), (outputs,)).square().mean()


class FailsOnWhatIsNoData(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        outputs = self(batch[0])
        assert torch.allclose(batch[0].float(), inputs()[: len(batch[0])])
        return outputs.square().mean()


AROUND: dict[str, tuple[type[Plain], type[Plain], list[str]]] = {
    **{
        kind.__name__: (kind, Plain, NETWORK + GRAPHS)
        for kind in (CastsInStep, CastsOnTheWay, MakesConstants, InsistsOnFloat32, ChecksMasks, ReadsOneHotTargets)
    },
    **{
        kind.__name__: (kind, Plain, NETWORK + GRAPHS)
        for kind in (NeedsTwoSamples, HasAMomentumBranch, InVmap, InGrad, Differentiates, FailsOnWhatIsNoData)
    },
    "Chooses": (Chooses, Plain, ["naswot", "synflow", "az_expressivity_mean"]),  # seconds of compiling each
    **{kind.__name__: (kind, PlainColumn, NETWORK + GRAPHS) for kind in (Squeezes, SqueezesFeatures)},
}


class Halves(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.network(part) for part in x.chunk(2)])


class EachSample(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.network(sample[None]) for sample in x])


class TwoViews(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(torch.cat([batch[0], batch[0] + 1])).square().mean()


class InWindows(Plain):
    """Puts the samples into the second dimension."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(torch.stack([batch[0], batch[0] + 1])).square().mean()


def batches() -> list[Any]:
    one_hot = F.one_hot(labels(), NUM_CLASSES).float()
    return [(inputs(), labels(), one_hot), (inputs() + 1, labels(), one_hot)]


@pytest.mark.parametrize("kind", AROUND)
def test_what_a_step_does_around_its_network_changes_no_number(kind: str) -> None:
    build, plain, names = AROUND[kind]
    # Of a momentum branch, the keys' activations are seen as well.
    names = [name for name in names if kind != "HasAMomentumBranch" or name in ("synflow", *GRAPHS)]
    module = build()
    with assert_untouched(module):
        card = score(module, batches(), names)
    expected = score(plain(), batches(), names)
    assert card.untrainable is None
    assert {name: card[name].error for name in names} == dict.fromkeys(names)
    for name in names:
        # 1e-5: in float32 instead of float64, or with another kernel inside `vmap`
        assert card[name].value == pytest.approx(expected[name].value, rel=1e-5), name


class Compiles(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.network = torch.compile(self.network, backend="eager")


class CompilesInPlace(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.network.compile(backend="eager")


@pytest.mark.parametrize("kind", [Compiles, CompilesInPlace])
@pytest.mark.skipif(not hasattr(torch.compiler, "set_stance"), reason="torch 2.5 cannot run compiled code as it was")
@pytest.mark.filterwarnings("ignore:Using `torch.compile")  # torch's own, of hooks on all modules
def test_a_submodule_that_has_run_compiled_has_the_scores_of_what_was_compiled(kind: type[Plain]) -> None:
    names = ["zico", "macs", "naswot", "az_expressivity_mean", "az_trainability", "synflow"]
    module = kind()
    module(inputs())
    card, expected = score(module, batches(), names), score(Plain(), batches(), names)
    assert {name: card[name].value for name in names} == {
        name: pytest.approx(expected[name].value, rel=1e-5) for name in names
    }
    assert card.process_changes == ()  # the compiler's own are none of the candidate's


COMPARING = ["naswot", "log_neurons", "swap", "near", "linear_regions", "az_expressivity_mean", "az_trainability"]


@pytest.mark.parametrize(("kind", "seen"), [(Halves, NUM_SAMPLES // 2), (EachSample, 1)])
def test_a_network_that_sees_a_part_of_the_batch_at_a_time_is_not_compared(kind: type[Plain], seen: int) -> None:
    card = score(kind(), batches(), COMPARING)
    for name in COMPARING:
        what = "blocks" if name.startswith("az") else "activation functions"
        reason = f"not applicable: its {what} see at most {seen} of the {NUM_SAMPLES} samples at a time"
        assert str(card[name].error).startswith(reason), card[name].error


@pytest.mark.parametrize("kind", [TwoViews, InWindows])
def test_more_rows_than_samples_are_those_of_views_or_tokens(kind: type[Plain]) -> None:
    card = score(kind(), batches(), ["log_neurons", "swap", "az_expressivity_mean"])
    assert {name: card[name].error for name in card} == dict.fromkeys(card)


class Steps(Trained):
    """Recurrent layers, attention, and layers between them, on ``[N, T, C]`` or ``[T, N, C]``."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.inside = nn.Linear(5, 8)
        self.lstm = nn.LSTM(8, 8, batch_first=batch_first)
        how = {"dropout": 0.0, "batch_first": batch_first}
        self.attention = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 8, **how), 2, enable_nested_tensor=False
        )
        self.head = nn.Linear(8, 3)
        self.steps = int(batch_first)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(self.lstm(F.relu(self.inside(x)))[0]))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]).mean(self.steps), batch[1])


@pytest.mark.parametrize("num_steps", [4, 12])
def test_steps_before_samples_change_no_number(num_steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [torch.randn(NUM_SAMPLES, num_steps, 5, generator=torch.manual_seed(seed)) for seed in (1, 2)]
    names = [
        "macs",
        "macs_live",
        "naswot",
        "log_neurons",
        "swap",
        "near",
        "linear_regions",
        "jacob_cov",
        "epe_nas",
        "ntk_cond",
    ]
    names += ["meco_opt", "zen", "synflow", "gradsign", "knas", "zico", "lswag", "fisher"]

    def drawn_alike(tensor: Tensor, generator: torch.Generator) -> Tensor:
        is_second = tensor.shape == (num_steps, NUM_SAMPLES, 5)
        drawn = drawn_like(tensor.transpose(0, 1) if is_second else tensor, generator)
        return drawn.transpose(0, 1) if is_second else drawn

    def cards(batch_first: bool) -> list[ScoreCard]:
        batches = [(x if batch_first else x.transpose(0, 1), labels()) for x in samples]
        return [score(Steps(batch_first), batches, names), score(Steps(batch_first), batches, "zico", axis="sample")]

    for module in (weights, zen):
        monkeypatch.setattr(module, "drawn_like", drawn_alike)
    for expected, found in zip(cards(batch_first=True), cards(batch_first=False), strict=True):
        assert {name for name in found if found[name].error} == {name for name in expected if expected[name].error}
        for name in found:
            # 1e-3: sums of float32 in another order, of which ZiCo divides by small deviations
            other = expected[name].value
            assert found[name].value == (None if other is None else pytest.approx(other, rel=1e-3)), name


class FromList(Plain):
    """Takes its samples as a list of sequences, which it averages."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(torch.stack([steps.mean(0) for steps in batch[0]])), batch[1])


@pytest.mark.parametrize("lengths", [[NUM_SAMPLES] * NUM_SAMPLES, range(NUM_SAMPLES, 2 * NUM_SAMPLES)])
def test_a_sample_of_a_list_is_not_taken_for_a_batch(lengths: Any) -> None:
    """It may have as many rows as there are samples."""
    batches = [([torch.randn(n, NUM_INPUTS) for n in lengths], labels()) for _ in range(2)]
    card = score(FromList(), batches, ["jacob_cov", "epe_nas"])
    for name in card:
        assert card[name].error == "not applicable: the samples of the input are a list, not the rows of one tensor."


def test_the_flow_does_not_depend_on_the_order_of_samples_of_different_sizes() -> None:
    samples = [torch.randn(n, NUM_INPUTS) for n in range(3, 3 + NUM_SAMPLES)]
    whole, other = (samples, labels()), (samples[::-1], labels())

    class Summed(FromList):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self(torch.stack([steps.sum(0) for steps in batch[0]])).square().mean()

    values = [score(Summed(), [batch], "synflow")["synflow"].value for batch in (whole, other)]
    assert None is not values[0] == pytest.approx(values[1])


class Hidden(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, net: nn.Module, x: Tensor, *params: Tensor) -> Tensor:
        with torch.no_grad():
            return net(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        raise AssertionError("not needed")


class InCheckpoint(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.network, x.clone().requires_grad_(), use_reentrant=True)


class InFunction(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return Hidden.apply(self.network, x, *self.network.parameters())


@pytest.mark.parametrize("kind", [InCheckpoint, InFunction])
def test_blocks_that_autograd_does_not_follow_are_named(kind: type[Plain]) -> None:
    error = score(kind(), batches(), ["az_trainability"])["az_trainability"].error
    assert str(error).startswith("not applicable: autograd does not follow "), error


def test_blocks_that_are_checkpoints_are_named() -> None:
    class Block(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(super().forward, x, use_reentrant=True)

    module = Plain()
    module.network = nn.Sequential(nn.Linear(NUM_INPUTS, 8), *(Block(nn.Linear(8, 8), nn.ReLU()) for _ in range(3)))
    error = score(module, batches(), ["az_trainability"])["az_trainability"].error
    assert str(error).startswith("not applicable: a checkpoint with `use_reentrant=True`"), error


def test_an_internal_message_of_torch_is_no_reason() -> None:
    class Overwrites(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            hidden = self.network[0](batch[0]).exp()
            loss = self.network[2:](hidden).square().mean()
            hidden.add_(1)
            return loss

    error = score(Overwrites(), batches(), ["zico"])["zico"].error
    assert str(error).startswith("RuntimeError: an operation in place overwrites what the backward pass needs."), error


def test_a_pass_in_inference_mode_is_seen_as_any_other() -> None:
    names = ["naswot", "swap", "lswag", "log_neurons", "near", *GRAPHS]
    card, expected = score(HasATeacher(), batches(), names), score(Plain(), batches(), names)
    assert {name: card[name].error for name in names} == dict.fromkeys(names)
    for name in ("swap", *GRAPHS):  # the others count both passes
        assert card[name].value == pytest.approx(expected[name].value, rel=1e-5), name


@pytest.mark.parametrize("name", ["synflow", "grasp", "ntk_cond"])
def test_weights_that_a_step_freezes_are_constants(name: str) -> None:
    frozen = Plain()
    frozen.network[-1].weight.requires_grad_(False)
    module = Freezes()
    module.network.load_state_dict(frozen.network.state_dict())
    with assert_untouched(module):
        card = score(module, batches(), [name])
    assert card[name].value == pytest.approx(score(frozen, batches(), [name])[name].value, rel=1e-9)


class Halved(Plain):
    """Has weights and features in half precision."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype_of_weights = dtype
        self.network.to(dtype)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0].to(self.dtype_of_weights)).float(), batch[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_another_precision_have_the_numbers_of_those_weights(dtype: torch.dtype) -> None:
    names = [*NETWORK, *GRAPHS, "zico", "snip"]
    module, wide = Halved(dtype), Plain()
    wide.network.load_state_dict(module.network.state_dict())
    card = score(module, batches(), names)
    assert {name: card[name].error for name in names} == dict.fromkeys(names)
    assert card["synflow"].value == pytest.approx(score(wide, batches(), "synflow")["synflow"].value, rel=1e-6)


class Autocast(Plain):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.network(x)


def test_autocast_within_a_network_changes_no_flow() -> None:
    found, expected = (score(build(), batches(), [*NETWORK, *GRAPHS]) for build in (Autocast, Plain))
    assert {name: found[name].error for name in found} == dict.fromkeys(found)
    assert found["synflow"].value == expected["synflow"].value


class Complex(Trained):
    """A network of complex layers, whose imaginary parts are zero or are not."""

    def __init__(self, dtype: torch.dtype, is_real: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        sizes = [NUM_INPUTS, 24, 24, NUM_CLASSES]
        self.layers = nn.ModuleList(nn.Linear(i, o, dtype=dtype) for i, o in pairwise(sizes))
        if is_real:
            torch.manual_seed(4)
            for parameter in self.parameters():
                parameter.data.copy_(torch.randn(parameter.shape))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0].to(self.layers[0].weight.dtype)
        for layer in self.layers[:-1]:
            x = layer(x)
            x = torch.complex(x.real.relu(), x.imag.relu()) if x.is_complex() else x.relu()
        x = self.layers[-1](x)
        return x.abs().square().mean() if x.is_complex() else x.square().mean()


def test_complex_weights_have_numbers_and_without_imaginary_parts_those_of_real_ones() -> None:
    names = [
        "naswot",
        "swap",
        "synflow",
        "zico",
        "snip",
        "grad_norm",
        "l2_norm",
        "gradsign",
        "grasp",
        "jacob_cov",
        "zen",
    ]
    found = score(Complex(torch.complex64), batches(), names)
    assert {name: found[name].error for name in names} == dict.fromkeys(names)
    pair = [score(Complex(dtype, is_real=True), batches(), names) for dtype in (torch.complex64, torch.float32)]
    for name in ("synflow", "l2_norm"):
        assert pair[0][name].value == pytest.approx(pair[1][name].value, rel=1e-5), name


@dataclass
class Graph:
    """Three graphs, as a batch of nodes and edges."""

    nodes: Tensor
    edges: Tensor
    graph_of: Tensor
    targets: Tensor


class Messages(Trained):
    """Passes messages along edges, and adds up the nodes of a graph."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.stem, self.message, self.head = nn.Linear(4, 16), nn.Linear(16, 16), nn.Linear(16, 2)

    def training_step(self, batch: Graph, batch_idx: int) -> Tensor:
        nodes = self.stem(batch.nodes).relu()
        sent = self.message(nodes)[batch.edges[0]]
        nodes = (nodes + torch.zeros(len(nodes), 16).index_add(0, batch.edges[1], sent)).relu()
        pooled = torch.zeros(len(batch.targets), 16).index_add(0, batch.graph_of, nodes)
        return F.cross_entropy(self.head(pooled), batch.targets)


def graph(seed: int) -> Graph:
    generator = torch.Generator().manual_seed(0)
    edges = torch.randint(9, (2, 20), generator=generator)
    graph_of = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2])
    nodes = torch.randn(9, 4, generator=torch.Generator().manual_seed(seed))
    return Graph(nodes, edges, graph_of, torch.tensor([0, 1, 0]))


class Images(Trained):
    """Detects: takes a list of images of several sizes, and a list of dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 5, 1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, targets = batch
        stacked = torch.stack([F.pad(image, (0, 9 - image.shape[2], 0, 9 - image.shape[1])) for image in images])
        maps = self.network(stacked).mean(dim=(2, 3))
        for target in targets:
            assert (target["boxes"][:, 2:] >= target["boxes"][:, :2]).all()
        return torch.stack([F.cross_entropy(m, t["labels"][0]) for m, t in zip(maps, targets, strict=True)]).mean()


def detection(seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    images = [torch.randn(3, *size, generator=generator) for size in ((9, 7), (6, 9), (8, 8))]
    boxes = [torch.rand(count, 4, generator=generator).sort(dim=1)[0] for count in (1, 3, 2)]
    return images, [{"boxes": box, "labels": torch.arange(len(box))} for box in boxes]


@pytest.mark.parametrize(("build", "batch"), [(Messages, graph), (Images, detection)])
def test_the_flow_of_a_batch_that_no_sample_can_be_cut_out_of_knows_no_data(
    build: Callable[[], nn.Module], batch: Callable[[int], Any]
) -> None:
    found, again = (score(build(), [batch(seed), batch(seed + 7)], "synflow")["synflow"] for seed in (1, 2))
    assert found.error is None
    assert found.value == again.value


class Frozen(Plain):
    """Trains nothing: it looks at the batch and returns a loss that no parameter is in."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        with torch.no_grad():
            self(batch[0])
        return torch.zeros((), requires_grad=True)


class ZeroHead(Plain):
    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.network[-1].weight)


def test_what_trains_is_ranked_and_what_has_nothing_to_train_is_not() -> None:
    candidates = {"frozen": Frozen, "plain": Plain, "zero head": ZeroHead, "two samples": NeedsTwoSamples}
    board = ZeroShotSelector().rank(candidates, batches())
    assert {row["name"] for row in board if row["rank"]} == {"plain", "zero head", "two samples"}
    assert board.errors["frozen"].startswith("untrainable: its loss depends on none of its parameters")
    assert board.provenance["recipes"]["balanced+synflow"]["used"] == "balanced"
    assert "synflow has no number for zero head: nothing flows from the input to the output" in board.notes[0]


class Classifies(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])


class CutOff(Classifies):
    """Gives its last layer zeros, as an arch of NAS-Bench-201 without a path from input to output does."""

    def forward(self, x: Tensor) -> Tensor:
        return self.network[-1](self.network[:-1](x) * 0)


class AlwaysOff(Classifies):
    def forward(self, x: Tensor) -> Tensor:
        return self.network[-1]((-self.network[:-1](x).abs()).relu())


class BeginsAtZero(Classifies):
    """Passes features on as soon as its scale has moved from zero."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x) * self.scale


class TrainsBiases(ZeroHead, Classifies):
    def __init__(self) -> None:
        super().__init__()
        for name, parameter in self.named_parameters():
            parameter.requires_grad_("bias" in name)


@pytest.mark.parametrize("proxies", ["default", "az", ["synflow", "macs"], "zico"])
@pytest.mark.parametrize("kind", [CutOff, AlwaysOff])
def test_what_nothing_flows_through_is_no_candidate(kind: type[Plain], proxies: str | list[str]) -> None:
    board = ZeroShotSelector(proxies=proxies).rank({"dead": kind, "alive": Classifies}, batches())
    assert board.errors == {
        "dead": "untrainable: the gradients of all its weights are zero, so nothing flows from its inputs to its loss."
    }
    assert board.best == "alive"


class WarmsUp(Classifies):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * min(1, self.global_step / 100)


class IsSatisfied(Classifies):
    """Has a hinge loss, which is flat where the margin is wide enough."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.relu(self(batch[0]) - 1e6).mean()


class HasTableOfBiases(Classifies):
    def __init__(self) -> None:
        super().__init__()
        self.user_bias = nn.Parameter(torch.zeros(NUM_SAMPLES, NUM_CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.network[-1](self.network[:-1](x) * 0) + self.user_bias[: len(x)]


@pytest.mark.parametrize("kind", [ZeroHead, BeginsAtZero, TrainsBiases, WarmsUp, IsSatisfied, HasTableOfBiases])
def test_what_learns_although_nothing_flows_yet_is_ranked(kind: type[Plain]) -> None:
    board = ZeroShotSelector(proxies=["default", "zico"]).rank({"zero": kind, "alive": Classifies}, batches())
    assert {row["name"] for row in board if row["rank"]} == {"zero", "alive"}
    assert not board.errors


@pytest.mark.parametrize("name", ["gradsign", "knas", "fisher", "grasp", "zico", "snip", "plain", "grad_norm"])
def test_nothing_is_made_of_gradients_that_all_vanish(name: str) -> None:
    class Dead(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.cross_entropy(0 * self(batch[0]), batch[1])

    result = score(Dead(), batches(), name)[name]
    assert result.value is None
    assert "zero" in str(result.error)


class Bare(Plain):
    """Fails without a word on anything but the numbers it is given."""

    def forward(self, x: Tensor) -> Tensor:
        if not any(len(x) == NUM_SAMPLES and torch.equal(x, inputs() + shift) for shift in (0, 1)):
            raise AssertionError
        return super().forward(x)


def test_a_step_that_fails_on_what_a_proxy_feeds_it_says_what_that_was_and_where() -> None:
    card = score(Bare(), batches(), ["synflow", "zen", "az_expressivity", "gradsign", "naswot", "zico"])
    assert card.untrainable is None
    assert card["naswot"].value is not None
    assert card["zico"].value is not None
    fed = {
        "synflow": "one or two samples of ones, in float64 and in float32",
        "zen": "Gaussian inputs and weights",
        "az_expressivity": "Gaussian inputs and Kaiming weights",
        "gradsign": "one sample at a time",
    }
    for name, what in fed.items():
        error = str(card[name].error)
        assert error.startswith(f"not applicable: the step fails on {what}: AssertionError: `raise "), error
        assert "(test_kinds.py, line " in error


def test_a_step_that_fails_in_training_keeps_its_own_reason() -> None:
    class Broken(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            raise KeyError("no such column")

    card = score(Broken(), batches(), ["synflow", "zen", "naswot"])
    assert card.untrainable == "untrainable: its training step fails: KeyError: 'no such column'"
    assert {card[name].error for name in card} == {"KeyError: 'no such column'"}


def test_a_network_that_has_not_run_to_its_end_has_no_output() -> None:
    class Halfway(Plain):
        """Fails between two layers, outside of any module, on anything but its own precision."""

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            hidden = self.network[:4](batch[0])
            assert abs(float(batch[0].sum()) % 1) > 1e-3  # ones, or twice as many
            assert hidden.shape[0] == NUM_SAMPLES
            return self.network[4:](hidden).square().mean()

    card = score(Halfway(), batches(), ["synflow"])
    assert str(card["synflow"].error).startswith("not applicable: the step fails on one or two samples of ones")


def test_functional_calls_with_updated_weights_are_seen() -> None:
    class Adapts(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            params = dict(self.network.named_parameters())
            loss = F.cross_entropy(self(batch[0]), batch[1])
            steps = torch.autograd.grad(loss, list(params.values()), create_graph=True)
            fast = {name: value - 0.1 * step for (name, value), step in zip(params.items(), steps, strict=True)}
            return F.cross_entropy(functional_call(self.network, fast, (batch[0],)), batch[1])

    card = score(Adapts(), batches(), ["naswot", "swap", "near"])
    assert card.untrainable is None
    assert {name: card[name].error for name in card} == dict.fromkeys(card)


def values_of(card: ScoreCard) -> dict[str, float | None]:
    return {name: card[name].value for name in card}


def test_numbers_are_the_same_alone_and_among_others_where_a_step_differentiates() -> None:
    names = ["naswot", "near", "zico", "jacob_cov", "synflow"]
    together = values_of(score(Differentiates(), batches(), names))
    assert {name: score(Differentiates(), batches(), name)[name].value for name in names} == together


def test_graph_batches_are_left_as_they_are() -> None:
    batch = graph(1)
    kept = replace(batch, nodes=batch.nodes.clone())
    score(Messages(), [batch, graph(2)], ["synflow", "naswot"])
    assert torch.equal(batch.nodes, kept.nodes)
