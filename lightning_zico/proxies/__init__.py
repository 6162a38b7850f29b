"""Zero-shot proxies, one file each: the formula as a function, followed by a thin class."""

# Importing a proxy's file registers it.
from lightning_zico.proxies.az import AZExpressivity, AZExpressivityMean, AZProgressivity, AZTrainability
from lightning_zico.proxies.base import (
    Measurement,
    Proxies,
    Proxy,
    list_proxies,
    register_proxy,
    resolve_proxies,
    saturation,
)
from lightning_zico.proxies.dextr import Dextr
from lightning_zico.proxies.epe_nas import EPENAS
from lightning_zico.proxies.fisher import Fisher
from lightning_zico.proxies.grad_norm import GradNorm
from lightning_zico.proxies.gradsign import KNAS, GradSign
from lightning_zico.proxies.grasp import GraSP
from lightning_zico.proxies.head_confidence import HeadConfidence
from lightning_zico.proxies.hscore import HScore
from lightning_zico.proxies.intrain import InTrain
from lightning_zico.proxies.jacob_cov import JacobCov
from lightning_zico.proxies.knn import KNN
from lightning_zico.proxies.l2_norm import L2Norm
from lightning_zico.proxies.latency import Latency
from lightning_zico.proxies.leep import LEEP
from lightning_zico.proxies.linear_regions import LinearRegions
from lightning_zico.proxies.live import MacsLive, ParamsLive
from lightning_zico.proxies.logme import LogME
from lightning_zico.proxies.lswag import LSWAG
from lightning_zico.proxies.meco import MeCo
from lightning_zico.proxies.naswot import NASWOT, LogNeurons
from lightning_zico.proxies.nce import NCE
from lightning_zico.proxies.near import NEAR
from lightning_zico.proxies.nleep import NLEEP
from lightning_zico.proxies.ntk import NTKCond
from lightning_zico.proxies.parc import PARC
from lightning_zico.proxies.prior import Prior, UnknownPrior, prior_of
from lightning_zico.proxies.ridge_probe import RidgeProbe
from lightning_zico.proxies.size import BASELINES, Macs, NumLayers, Params, SumLogNumel
from lightning_zico.proxies.snip import SNIP, Plain
from lightning_zico.proxies.swap import SWAP
from lightning_zico.proxies.synflow import SynFlow
from lightning_zico.proxies.transfer import TransferProxy
from lightning_zico.proxies.transrate import TransRate
from lightning_zico.proxies.v_pca import VPCA
from lightning_zico.proxies.vkdnw import VKDNW
from lightning_zico.proxies.w_pca import WPCA
from lightning_zico.proxies.zen import Zen
from lightning_zico.proxies.zico import ZiCo
from lightning_zico.proxies.zico_bc import ZiCoBC

__all__ = [
    "BASELINES",
    "EPENAS",
    "KNAS",
    "KNN",
    "LEEP",
    "LSWAG",
    "NASWOT",
    "NCE",
    "NEAR",
    "NLEEP",
    "PARC",
    "SNIP",
    "SWAP",
    "VKDNW",
    "VPCA",
    "WPCA",
    "AZExpressivity",
    "AZExpressivityMean",
    "AZProgressivity",
    "AZTrainability",
    "Dextr",
    "Fisher",
    "GraSP",
    "GradNorm",
    "GradSign",
    "HScore",
    "HeadConfidence",
    "InTrain",
    "JacobCov",
    "L2Norm",
    "Latency",
    "LinearRegions",
    "LogME",
    "LogNeurons",
    "Macs",
    "MacsLive",
    "MeCo",
    "Measurement",
    "NTKCond",
    "NumLayers",
    "Params",
    "ParamsLive",
    "Plain",
    "Prior",
    "Proxies",
    "Proxy",
    "RidgeProbe",
    "SumLogNumel",
    "SynFlow",
    "TransRate",
    "TransferProxy",
    "UnknownPrior",
    "Zen",
    "ZiCo",
    "ZiCoBC",
    "list_proxies",
    "prior_of",
    "register_proxy",
    "resolve_proxies",
    "saturation",
]
