"""Rankings: combined from several proxies, and compared with the results of training. Does not use torch."""

from lightning_zico.ranking.aggregate import log_rank, mean_rank, size_controlled
from lightning_zico.ranking.beside import placed_beside
from lightning_zico.ranking.correlation import (
    Interval,
    bootstrap_interval,
    kendall,
    kendall_interval,
    kendall_where_both,
    ndcg,
    regret_at_k,
    spearman,
)
from lightning_zico.ranking.learned import LearnedRank, choose_next, choose_spread, label_noise, learned_ranks
from lightning_zico.ranking.pareto import crowding_distances, first_front, front_numbers
from lightning_zico.ranking.racing import check_race, race
from lightning_zico.ranking.recipes import (
    BASELINE_TAUS,
    BENCHMARKS,
    LAST_RESORT,
    RECIPES,
    Evidence,
    Recipe,
    chain_of,
    combine,
    get_recipe,
    list_recipes,
)
from lightning_zico.ranking.uncertainty import Uncertainty, tie_groups, uncertainties

__all__ = [
    "BASELINE_TAUS",
    "BENCHMARKS",
    "LAST_RESORT",
    "RECIPES",
    "Evidence",
    "Interval",
    "LearnedRank",
    "Recipe",
    "Uncertainty",
    "bootstrap_interval",
    "chain_of",
    "check_race",
    "choose_next",
    "choose_spread",
    "combine",
    "crowding_distances",
    "first_front",
    "front_numbers",
    "get_recipe",
    "kendall",
    "kendall_interval",
    "kendall_where_both",
    "label_noise",
    "learned_ranks",
    "list_recipes",
    "log_rank",
    "mean_rank",
    "ndcg",
    "placed_beside",
    "race",
    "regret_at_k",
    "size_controlled",
    "spearman",
    "tie_groups",
    "uncertainties",
]
