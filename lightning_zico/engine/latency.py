"""Latency: how long one forward pass takes."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from lightning_zico.engine.probe import Probe
from lightning_zico.engine.scope import preserved, preserved_rng


def forward_latency(
    probe: Probe, *, num_warmups: int = 2, num_repeats: int = 7, num_threads: int | None = None
) -> float:
    """Time a forward pass of a candidate's first batch, in eval mode and without gradients.

    A step that itself differentiates, such as for forces, cannot run without gradients, so it is timed with autograd.

    Args:
        probe: Probe of the candidate, which is timed on its device.
        num_warmups: Number of passes before the measurement.
        num_repeats: Number of measured passes.
        num_threads: Threads of this process during the measurement. None for the current number
            (``torch.get_num_threads()``). It is the same for all candidates that one executor scores; each of several
            workers has fewer.

    Returns:
        Median, in seconds for the whole batch; `latency_conditions` returns the conditions.
    """
    batch = probe.first_batch

    def timed(*, differentiates: bool) -> float:
        with torch.inference_mode(False), preserved(probe.module), preserved_rng(probe.seed):
            probe.module.eval()
            stateless = probe.stateless
            params, buffers = stateless.copied_params(), stateless.copied_buffers()
            device = next((tensor.device for tensor in (*params.values(), *buffers.values())), torch.device("cpu"))
            with (
                stateless.holding(params) as (_, placed),
                torch.set_grad_enabled(differentiates),
                _threads(num_threads),
            ):
                tensors = {**placed, **buffers}

                def run() -> None:
                    stateless.call(tensors, lambda: probe.step(probe.module, batch, 0))

                return measure_latency(run, device, num_warmups=num_warmups, num_repeats=num_repeats)

    try:
        return timed(differentiates=False)
    except RuntimeError as error:
        if "does not require grad" not in str(error):
            raise
    return timed(differentiates=True)


def latency_conditions(probe: Probe, num_threads: int | None = None) -> dict[str, int]:
    """Return the conditions of a latency, besides the machine.

    Args:
        probe: As for `forward_latency`.
        num_threads: As for `forward_latency`.

    Returns:
        ``batch_size``, the number of samples in one pass, if it is known, and ``num_threads``.
    """
    samples = probe.num_samples
    known = {} if samples is None else {"batch_size": samples}
    return known | {"num_threads": num_threads or torch.get_num_threads()}


def measure_latency(run: Callable[[], object], device: torch.device, *, num_warmups: int, num_repeats: int) -> float:
    """Time a function, after some warm-up calls.

    Args:
        run: Function to time, including its work on the device.
        device: Device of its work.
        num_warmups: Number of calls before the measurement.
        num_repeats: Number of measured calls.

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


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Set the number of threads while the body runs; None leaves it unchanged."""
    before = torch.get_num_threads()
    # The same number is not set again, because that keeps MKL from choosing fewer threads for small matrices, for good.
    if number is not None and number != before:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
