from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lightning_zico import score
from lightning_zico.engine import latency
from lightning_zico.engine.latency import forward_latency, measure_latency
from lightning_zico.engine.probe import Probe
from lightning_zico.proxies import Latency

CPU = torch.device("cpu")


@pytest.mark.parametrize(("num_warmups", "num_repeats"), [(0, 1), (2, 3), (3, 4)])
def test_the_function_runs_once_a_warmup_and_once_a_repeat(num_warmups, num_repeats):
    calls = []
    seconds = measure_latency(lambda: calls.append(1), CPU, num_warmups=num_warmups, num_repeats=num_repeats)
    assert len(calls) == num_warmups + num_repeats
    assert seconds >= 0


@pytest.mark.parametrize(("taken", "median"), [([5, 1, 9], 5), ([5, 1, 9, 3], 4)])
def test_the_median_of_what_counts_is_given(monkeypatch, taken, median):
    now = [0]
    durations = iter([1000, 1000, *taken])  # the warm-ups are slow
    monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def run():
        now[0] += next(durations)

    assert measure_latency(run, CPU, num_warmups=2, num_repeats=len(taken)) == median


def test_an_error_of_the_function_is_its_own():
    def broken():
        raise KeyError("the function's own words")

    with pytest.raises(KeyError, match="own words"):
        measure_latency(broken, CPU, num_warmups=1, num_repeats=1)


def test_a_step_that_differentiates_is_timed_with_autograd():
    def forces(module, batch, batch_idx):
        assert not module.training
        positions = batch.clone().requires_grad_()
        return torch.autograd.grad(module(positions).square().sum(), positions, create_graph=True)[0].square().mean()

    module = nn.Linear(3, 2)
    card = score(module, [torch.randn(4, 3)], ["latency"], step=forces)
    assert card["latency"].error is None
    assert card["latency"].value > 0
    assert all(parameter.grad is None for parameter in module.parameters())


class Noting(nn.Linear):
    """Notes with how many threads it runs, and may give it up."""

    def __init__(self, is_broken=False):
        super().__init__(3, 2)
        self.is_broken = is_broken

    def forward(self, x):
        SEEN.append(torch.get_num_threads())
        if self.is_broken:
            raise KeyError("the network's own words")
        return super().forward(x)


SEEN = []


@pytest.fixture
def _threads():
    before = torch.get_num_threads()
    SEEN.clear()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("process", [1, 2])
@pytest.mark.parametrize("num_threads", [None, 1, 2])
def test_threads_are_fixed_while_the_clock_runs_and_told_and_put_back(process, num_threads):
    torch.set_num_threads(process)
    loss = nn.functional.cross_entropy
    batches = [(torch.randn(size, 3), torch.zeros(size, dtype=torch.long)) for size in (5, 7)]
    details = score(Noting(), batches, [Latency(num_repeats=3, num_threads=num_threads)], loss_fn=loss)[
        "latency"
    ].details
    used = num_threads or process
    assert SEEN[-5:] == [used] * 5  # two of them to warm up
    assert (details["num_threads"], details["batch_size"], details["batch_shape"]) == (used, 5, [5, 3])
    assert torch.get_num_threads() == process


@pytest.mark.usefixtures("_threads")
def test_threads_are_put_back_when_the_network_fails():
    torch.set_num_threads(1)
    probe = Probe(Noting(is_broken=True), lambda module, batch, _: module(batch).sum(), [torch.randn(5, 3)])
    with pytest.raises(KeyError, match="own words"):
        forward_latency(probe, num_threads=2)
    assert SEEN == [2]
    assert torch.get_num_threads() == 1


def test_no_threads_are_none():
    with pytest.raises(ValueError, match="num_threads=0: expected at least 1"):
        Latency(num_threads=0)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_what_the_device_still_works_on_is_waited_for():
    device = torch.device("cuda")
    left = torch.randn(4096, 4096, device=device)
    done = []

    def run():
        end = torch.cuda.Event()
        _ = left @ left
        end.record()
        done.append(end)

    measure_latency(run, device, num_warmups=0, num_repeats=2)
    assert all(end.query() for end in done)
