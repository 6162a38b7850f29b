"""W-PCA: the number of parameters times V-PCA."""

from lightning_zico.engine.probe import Probe
from lightning_zico.proxies.base import Measurement, Proxy, register_proxy
from lightning_zico.proxies.v_pca import component_counts


@register_proxy("w_pca")
class WPCA(Proxy):
    """Number of parameters times `VPCA` (ICLR 2025, arXiv:2504.15983)."""

    needs_labels = False

    def measure(self, probe: Probe) -> Measurement:
        """Multiply both."""
        counts = component_counts(probe)
        return Measurement(float(probe.params * sum(counts.values())), details={"components": counts})
