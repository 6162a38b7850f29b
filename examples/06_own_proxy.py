"""Write your own proxy and use it by name: here, how evenly the layers learn.

Usage:
    python examples/06_own_proxy.py
"""

from lightning_zico import Proxy, ZeroShotSelector, register_proxy
from lightning_zico.demos import DigitsDataModule, digits_candidates
from lightning_zico.engine.learned import FirstGradients
from lightning_zico.engine.probe import Probe


@register_proxy("even_gradients")
class EvenGradients(Proxy):
    """Smallest gradient of a layer over the largest, each relative to the layer's weight; 1 is best."""

    needs = (FirstGradients(),)  # taken in the same pass as what other proxies need

    def measure(self, probe: Probe) -> float:
        """Compare the layers on the first batch."""
        steps = [(g.norm() / probe.layers[name].norm()).item() for name, g in probe.gradients.items()]
        return min(steps) / max(steps)


if __name__ == "__main__":
    selector = ZeroShotSelector(proxies=["even_gradients", "zico"], num_batches=2, seed=0)
    print(selector.rank(digits_candidates(), datamodule=DigitsDataModule()))
