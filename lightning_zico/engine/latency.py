"""Latency: how long one forward pass takes."""

import statistics
import time
from collections.abc import Callable

import torch


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
