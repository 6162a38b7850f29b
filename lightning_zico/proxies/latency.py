"""latency: how long the candidate takes for a batch, measured."""

from lightning_zico.engine.batches import tensors_of
from lightning_zico.engine.latency import forward_latency, latency_conditions
from lightning_zico.engine.probe import Probe
from lightning_zico.proxies.base import Measurement, Proxy, register_proxy


@register_proxy("latency")
class Latency(Proxy):
    """Seconds of a forward pass of the first batch, in eval mode and without gradients: median after a warm-up.

    The only proxy that is measured with a clock: it differs from run to run and from machine to machine, and what else
    the machine does enters. The details tell batch size and threads.

    Args:
        num_warmups: Passes that do not count.
        num_repeats: Passes that do.
        num_threads: Threads while the clock runs, so that candidates in worker processes are timed as in one process;
            None for those that the process has.
        name: Of the column.

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
            raise ValueError(f"`num_threads` is {num_threads}; needed is at least 1, or None for what the process has.")
        self.num_warmups = num_warmups
        self.num_repeats = num_repeats
        self.num_threads = num_threads
        self.name = name

    def measure(self, probe: Probe) -> Measurement:
        """Run the step on the first batch, again and again."""
        seconds = forward_latency(
            probe, num_warmups=self.num_warmups, num_repeats=self.num_repeats, num_threads=self.num_threads
        )
        shape = next((list(tensor.shape) for tensor in tensors_of(probe.first_batch)), [])
        details = {**latency_conditions(probe, self.num_threads), "batch_shape": shape, "num_repeats": self.num_repeats}
        return Measurement(seconds, details=details)
