"""Latency: how long one forward pass takes."""

import statistics
import time
from collections.abc import Callable

import torch

from lightning_zico.engine.probe import Probe
from lightning_zico.engine.scope import preserved, preserved_rng


def forward_latency(probe: Probe, *, num_warmups: int = 2, num_repeats: int = 7) -> float:
    """Time a forward pass of a candidate's first batch, in eval mode and without gradients.

    Args:
        probe: Of the candidate. It is timed on its device, with the threads that this process has
            (``torch.get_num_threads()``).
        num_warmups: Passes that do not count.
        num_repeats: Passes that do.

    Returns:
        Median, in seconds for the whole batch.
    """
    batch = probe.first_batch
    with torch.inference_mode(False), preserved(probe.module), preserved_rng(probe.seed), torch.no_grad():
        probe.module.eval()
        stateless = probe.stateless
        tensors = stateless.copied_params() | stateless.copied_buffers()
        device = next((tensor.device for tensor in tensors.values()), torch.device("cpu"))

        def run() -> None:
            stateless.call(tensors, lambda: probe.step(probe.module, batch, 0))

        return measure_latency(run, device, num_warmups=num_warmups, num_repeats=num_repeats)


def measure_latency(run: Callable[[], object], device: torch.device, *, num_warmups: int, num_repeats: int) -> float:
    """Time a function, after some calls that do not count.

    Args:
        run: What to time; its work on the device is waited for.
        device: Where it works.
        num_warmups: Calls that do not count.
        num_repeats: Calls that do.

    Returns:
        Median, in seconds.
    """
    times = []
    for repeat in range(num_warmups + num_repeats):
        _wait_for(device)
        start = time.perf_counter()
        run()
        _wait_for(device)
        if repeat >= num_warmups:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
