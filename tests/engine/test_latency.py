from types import SimpleNamespace

import pytest
import torch

from lightning_zico.engine import latency
from lightning_zico.engine.latency import measure_latency

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
