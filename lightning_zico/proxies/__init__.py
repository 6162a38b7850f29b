"""Zero-shot proxies, one file each: the formula as a function, then a thin class."""

# Importing a proxy's file registers it.
from lightning_zico.proxies.base import Measurement, Proxy, list_proxies, register_proxy, resolve_proxies
from lightning_zico.proxies.size import BASELINES, Macs, NumLayers, Params, SumLogNumel
from lightning_zico.proxies.zico import ZiCo

__all__ = [
    "BASELINES",
    "Macs",
    "Measurement",
    "NumLayers",
    "Params",
    "Proxy",
    "SumLogNumel",
    "ZiCo",
    "list_proxies",
    "register_proxy",
    "resolve_proxies",
]
