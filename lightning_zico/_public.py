"""The names that the package offers; `lightning_zico` imports them when the first of them is used."""

from lightning_zico.__about__ import __version__
from lightning_zico.budget import Budget
from lightning_zico.callbacks import ZiCoCallback
from lightning_zico.candidates import Candidate
from lightning_zico.engine.layers import register_layer
from lightning_zico.proxies import Prior, Proxy, ZiCo, list_proxies, register_proxy
from lightning_zico.ranking import list_recipes
from lightning_zico.results import Leaderboard, Score, ScoreCard, SearchResult
from lightning_zico.scoring import ProcessExecutor, RayExecutor, score
from lightning_zico.search import Evolution, ZeroShotSearch
from lightning_zico.selection import ZeroShotSelector, rank

__all__ = [
    "Budget",
    "Candidate",
    "Evolution",
    "Leaderboard",
    "Prior",
    "ProcessExecutor",
    "Proxy",
    "RayExecutor",
    "Score",
    "ScoreCard",
    "SearchResult",
    "ZeroShotSearch",
    "ZeroShotSelector",
    "ZiCo",
    "ZiCoCallback",
    "__version__",
    "list_proxies",
    "list_recipes",
    "rank",
    "register_layer",
    "register_proxy",
    "score",
]
