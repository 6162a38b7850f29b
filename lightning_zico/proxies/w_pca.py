"""W-PCA: the number of parameters times V-PCA."""

from collections.abc import Sequence

from lightning_zico.engine.observers import Observer
from lightning_zico.engine.probe import Probe
from lightning_zico.proxies.base import Measurement, Proxy, register_proxy
from lightning_zico.proxies.v_pca import HiddenStates, hidden_states


@register_proxy("w_pca")
class WPCA(Proxy):
    """Number of parameters times `VPCA` (ICLR 2025, arXiv:2504.15983)."""

    needs_labels = False
    needs: Sequence[Observer] = (HiddenStates(),)

    def measure(self, probe: Probe) -> Measurement:
        """Multiply both."""
        counts = hidden_states(probe).counts
        return Measurement(float(probe.params * sum(counts.values())), details={"components": counts})
