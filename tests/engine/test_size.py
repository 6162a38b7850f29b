import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_zico.engine.size import count_macs, count_params
from lightning_zico.errors import NotApplicableError
from tests.engine.models import Tied, cnn


def mean_step(module, batch, batch_idx):
    out = module(batch)
    return (out[0] if isinstance(out, tuple) else out).mean()


def inference_step(module, batch, batch_idx):
    with torch.inference_mode():
        return mean_step(module, batch, batch_idx)


def macs_of(module, *shape, step=mean_step):
    count = count_macs(module, step, torch.randn(*shape))
    assert count.device == "meta"
    assert count.uncounted == ()
    return count.macs


def test_parameters_count_once_frozen_ones_too():
    module = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    module[0].requires_grad_(False)
    assert count_params(module) == 3 * 2 + 2 + 2 + 2
    assert count_params(Tied()) == 4 * 4 + 4 + 4 + 4 * 3 + 3


def test_parameters_that_are_not_there_yet_are_not_counted_as_none():
    with pytest.raises(NotApplicableError, match=r"'1\.weight' is not initialised"):
        count_params(nn.Sequential(nn.Linear(3, 2), nn.LazyLinear(3)))


@pytest.mark.parametrize(
    ("module", "shape", "macs"),
    [
        (nn.Linear(5, 7), (3, 5), 5 * 7),
        (nn.Linear(5, 7), (3, 11, 5), 11 * 5 * 7),
        (nn.Conv1d(2, 6, 3), (4, 2, 9), 6 * 7 * 2 * 3),
        (nn.Conv2d(2, 6, 3, stride=2, padding=1), (4, 2, 8, 10), 6 * 4 * 5 * 2 * 9),
        (nn.Conv2d(4, 6, 3, groups=2), (4, 4, 5, 5), 6 * 9 * 2 * 9),
        (nn.Conv3d(2, 3, 2), (4, 2, 4, 4, 4), 3 * 27 * 2 * 8),
        # each input is spread over the kernel
        (nn.ConvTranspose2d(2, 6, 3, stride=2), (4, 2, 5, 5), 25 * 2 * 6 * 9),
        (nn.BatchNorm2d(3), (4, 3, 5, 5), 0),
        # projections of queries, keys, values and output; scores and weighted values: heads do not matter
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (3, 5, 8), 5 * 4 * 64 + 2 * 25 * 8 + 5 * 2 * 8 * 16),
        # four gates, from input and hidden state
        (nn.LSTM(4, 6, batch_first=True), (3, 5, 4), 5 * 4 * 6 * (4 + 6)),
        (nn.GRU(4, 6, batch_first=True), (3, 5, 4), 5 * 3 * 6 * (4 + 6)),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_macs_are_those_of_the_closed_form(module, shape, macs, training):
    assert macs_of(module.train(training), *shape) == macs


class Mixed(nn.Module):
    """Convolutions, activations as modules, functions and methods, in place too, norms and attention."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.PReLU(8)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Bilinear(8, 8, 4)

    def forward(self, x):
        x = F.relu(self.act(self.norm(self.stem(x))), inplace=True)
        tokens = F.gelu(self.depthwise(x)).flatten(2).mT
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        masked = F.scaled_dot_product_attention(tokens, tokens, tokens, is_causal=True).sigmoid_()
        return self.head(masked, tokens.tanh()) @ torch.ones(4, 2, device=x.device)


@pytest.mark.parametrize("training", [True, False])
def test_macs_are_half_of_what_torchs_own_counter_says(training):
    module, x = Mixed().train(training), torch.randn(3, 3, 12, 12)
    count = count_macs(module, mean_step, x)
    assert count.device == "meta"
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        copy.deepcopy(module).to("meta")(x.to("meta"))
    bilinear = 9 * 4 * 8 * 8  # tokens of the map; torch has no formula for it
    assert count.macs == counter.get_total_flops() / 2 / len(x) + bilinear
    with torch.inference_mode():
        assert count_macs(module, mean_step, x) == count
    assert count_macs(module, inference_step, x) == count


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("module", "shape"), [(Mixed(), (3, 12, 12)), (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (5, 8))]
)
def test_macs_are_the_same_wherever_they_are_counted(module, shape, training):
    def peeking(module, batch, batch_idx):
        loss = mean_step(module, batch, batch_idx)
        return loss * (2 if loss.item() > 0 else 1)

    x = torch.randn(3, *shape)
    counts = [count_macs(module.train(training), step, x) for step in (mean_step, peeking)]
    assert [count.device for count in counts] == ["meta", "cpu"]
    assert counts[0].macs == counts[1].macs
    assert torch.backends.mha.get_fastpath_enabled()


def test_activations_put_out_tensors_of_their_own():
    class Shaping(nn.Module):
        def forward(self, x):
            a, _ = F.gelu(x).chunk(2, dim=-1)
            wide = F.relu(a).view(len(x), -1) @ torch.ones(6, 2, device=x.device)
            F.relu(x).unsqueeze_(1)
            return wide, x @ torch.ones(4, 5, device=x.device)

    count = count_macs(Shaping(), lambda m, b, i: sum(out.sum() for out in m(b)), torch.randn(2, 3, 4))
    assert (count.macs, count.device) == (6 * 2 + 3 * 4 * 5, "meta")


class Summing(nn.Module):
    """Adds in a way of its own to what goes into a layer."""

    def __init__(self, add):
        super().__init__()
        self.add = add
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(self.add(x))


def repeated(x):
    for _ in range(torch.tensor(1) + torch.tensor(2)):  # numbers on the CPU, wherever the network is
        x = torch.cat([x, x], dim=1)
    return x


def written(x):
    out = torch.empty(0, device=x.device)
    torch.add(x, x, out=out)
    return out


def with_slope(x):
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        energy = (torch.relu(x @ torch.ones(4, 4, device=x.device)) + torch.relu(x)).sum()
        (slope,) = torch.autograd.grad(energy, x)
    return slope


@pytest.mark.parametrize(
    "add",
    [
        lambda x: x + x,
        lambda x: torch.add(x, x, alpha=2),
        lambda x: torch.add(1.0, x),
        lambda x: x + x[0],
        lambda x: (x + x).unsqueeze_(0),
        lambda x: (x.mT + x.mT).mT.view(-1, 4),
        written,
        repeated,
        with_slope,
    ],
)
def test_sums_add_no_macs_and_change_none(add):
    x = torch.randn(3, 2, 4)
    with FlopCounterMode(display=False) as counter:
        Summing(add)(x)
    count = count_macs(Summing(add), mean_step, x)
    assert (count.macs, count.device) == (counter.get_total_flops() / 2 / 3, "meta")


def test_macs_are_per_sample():
    assert len({macs_of(cnn(), num_samples, 2, 5, 5) for num_samples in (1, 2, 7)}) == 1


def test_tied_layers_compute_each_time():
    assert macs_of(Tied(), 3, 4) == 2 * 4 * 4 + 4 * 3


def test_numbers_in_a_batch_are_no_samples():
    batch = {"scale": torch.tensor(2.0), "x": torch.randn(6, 5), "name": "text", "nothing": None}
    count = count_macs(nn.Linear(5, 7), lambda m, b, i: m(b["x"]).mean() * b["scale"], batch)
    assert (count.macs, count.num_samples) == (5 * 7, 6)


class Energies(nn.Module):
    """Differentiates with respect to its input on the way."""

    def __init__(self, derive):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1))
        self.derive = derive

    def forward(self, x):
        return self.derive(self.net, x)


def by_autograd(net, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(net(x).sum(), x, create_graph=True)[0]


def by_grad(net, x):
    return torch.func.vmap(torch.func.grad(lambda row: net(row).sum()))(x)


def by_vmap(net, x):
    return torch.func.vmap(net)(x)


def by_vmap_with_a_sum(net, x):
    position = torch.zeros(7, device=x.device)
    return torch.func.vmap(lambda row: net[2]((position + net[0](row)).relu()))(x)


def by_jvp(net, x):
    def run(rows):
        zeros = torch.zeros(len(rows), 7, device=rows.device)
        return net[2](F.relu(zeros.add_(net[0](rows))))

    return torch.func.jvp(run, (x,), (torch.ones_like(x),))[1]


FORWARD = 5 * 7 + 7 * 1


@pytest.mark.parametrize("looks", [False, True])
@pytest.mark.parametrize(
    ("derive", "macs"),
    [
        # back through both layers to the input
        (by_autograd, 2 * FORWARD),
        (by_grad, 2 * FORWARD),
        (by_vmap, FORWARD),
        (by_vmap_with_a_sum, FORWARD),
    ],
)
def test_what_a_step_differentiates_itself_counts_as_it_runs(derive, macs, looks):
    def step(module, batch, batch_idx):
        loss = mean_step(module, batch, batch_idx)
        return loss * (loss.item() if looks else 1)

    module = Energies(derive)
    count = count_macs(module, step, torch.randn(3, 5))
    assert (count.macs, count.device) == (macs, "cpu" if looks else "meta")
    assert all(parameter.grad is None for parameter in module.parameters())


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # `torch.func.jvp` uses it
def test_what_a_step_differentiates_forward_counts_as_it_runs():
    module, x = Energies(by_jvp), torch.randn(3, 5)
    with FlopCounterMode(display=False) as counter:
        mean_step(module, x, 0)
    assert 2 * count_macs(module, mean_step, x).total == counter.get_total_flops() > 2 * 2 * 3 * FORWARD


def test_what_is_not_counted_is_no_number():
    batch = (torch.randn(7, 5), torch.randn(4, 5))
    count = count_macs(nn.Linear(5, 2), lambda m, b, i: m(torch.cat(b)).sum(), batch)
    assert (count.total, count.num_samples) == (11 * 5 * 2, None)
    with pytest.raises(NotApplicableError, match="Pass `num_samples=`"):
        _ = count.macs
    assert count_macs(nn.Linear(5, 2), lambda m, b, i: m(torch.cat(b)).sum(), batch, stated=11).macs == 5 * 2


def test_a_step_that_looks_at_values_is_counted_on_the_modules_own_device():
    def peeking(module, batch, batch_idx):
        loss = module(batch).mean()
        return loss * (2 if loss.item() > 0 else 1)

    count = count_macs(nn.Linear(5, 7), peeking, torch.randn(3, 5))
    assert (count.macs, count.device) == (5 * 7, "cpu")


def test_the_second_count_starts_from_the_module_as_it_was():
    class Growing(nn.Linear):
        def forward(self, x):
            self.__dict__.setdefault("seen", []).append(1)
            out = sum(super(Growing, self).forward(x) for _ in self.seen)
            return out * out.sum().item()

    module = Growing(5, 5)
    module.seen = []
    assert count_macs(module, mean_step, torch.randn(3, 5)).macs == 5 * 5
    assert module.seen == []


def test_a_module_without_parameters_is_counted_too():
    def peeking(module, batch, batch_idx):
        batch.sum().item()
        return module(batch).mean()

    assert count_macs(nn.ReLU(), peeking, torch.randn(3, 5)).macs == 0
    assert count_macs(nn.ReLU(), mean_step, torch.randn(3, 5)).macs == 0


def test_what_is_muted_is_back_afterwards():
    module = nn.Sequential(nn.Linear(5, 7))
    module.logger = print

    def step(module, batch, batch_idx):
        assert module.logger is None
        return module(batch).mean()

    count_macs(module, step, torch.randn(3, 5), muted=lambda m: setattr(m, "logger", None))
    assert module.logger is print


def test_an_error_of_the_module_is_its_own():
    class Broken(nn.Linear):
        def forward(self, x):
            raise KeyError("the module's own words")

    with pytest.raises(KeyError, match="the module's own words"):
        count_macs(Broken(5, 7), mean_step, torch.randn(3, 5))


@pytest.mark.parametrize("peek", [False, True])
def test_counting_leaves_no_trace(peek):
    def step(module, batch, batch_idx):
        module.calls = batch_idx
        batch.mul_(2)
        loss = F.dropout(module(batch)).mean()
        return loss * (loss.item() if peek else 1)

    module, batch = cnn(), torch.randn(3, 2, 5, 5)
    state, kept, rng = copy.deepcopy(module.state_dict()), batch.clone(), torch.get_rng_state()
    count_macs(module, step, batch)
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())
    assert all(parameter.device.type == "cpu" and parameter.grad is None for parameter in module.parameters())
    assert not hasattr(module, "calls")
    assert torch.equal(batch, kept)
    assert torch.equal(torch.get_rng_state(), rng)
