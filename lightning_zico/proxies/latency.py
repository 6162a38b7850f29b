"""latency: the measured time of the candidate for one batch."""

from lightning_zico.engine.batches import tensors_of
from lightning_zico.engine.latency import forward_latency, latency_conditions
from lightning_zico.engine.probe import Probe
from lightning_zico.proxies.base import Measurement, Proxy, register_proxy


@register_proxy("latency")
class Latency(Proxy):
    """Seconds per forward pass of the first batch, in eval mode and without gradients: the median after a warm-up.

    This is the only proxy that measures time. It varies between runs and machines, and depends on what else the machine
    is doing. The details contain the shape of the batch and the number of threads.

    Args:
        num_warmups: Number of passes before the measurement.
        num_repeats: Number of measured passes.
        num_threads: Number of threads during the measurement, so that candidates in worker processes are timed as in
            one process; None for the threads of the process.
        name: Name of the column.

    Raises:
        ValueError: If ``num_threads`` is not positive.
    """

    higher_is_better = False
    needs_labels = False
    is_repeatable = False

    def __init__(
        self, num_warmups: int = 2, num_repeats: int = 7, num_threads: int | None = None, name: str = "latency"
    ) -> None:
        if num_threads is not None and num_threads < 1:
            raise ValueError(
                f"Invalid num_threads={num_threads}: expected at least 1, or None for the threads of the process."
            )
        self.num_warmups = num_warmups
        self.num_repeats = num_repeats
        self.num_threads = num_threads
        self.name = name

    def measure(self, probe: Probe) -> Measurement:
        """Time the step on the first batch."""
        seconds = forward_latency(
            probe, num_warmups=self.num_warmups, num_repeats=self.num_repeats, num_threads=self.num_threads
        )
        shape = next((list(tensor.shape) for tensor in tensors_of(probe.first_batch)), [])
        details = {**latency_conditions(probe, self.num_threads), "batch_shape": shape, "num_repeats": self.num_repeats}
        return Measurement(seconds, details=details)
