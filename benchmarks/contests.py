"""The contests that set the default recipe: contestants and benchmarks. Each was fixed before it was scored."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from lightning_zico.ranking.recipes import RECIPES, Evidence, Recipe

OPPONENTS = ("params", "macs")
INCUMBENT = "balanced"


@dataclass(frozen=True)
class Contest:
    """Contestants, and the benchmarks that they are measured on.

    Args:
        contestants: Recipes and proxies.
        samples: Number of candidates to draw, by benchmark; None for all.
        seed: The seed of the draw, of the weights and of random numbers in proxies.
        batch_sizes: Batch size by benchmark, if it is not the usual one.
        unlike: Another contest; none of its candidates is drawn.
    """

    contestants: tuple[str, ...]
    samples: Mapping[str, int | None]
    seed: int = 777
    batch_sizes: Mapping[str, int] = field(default_factory=dict)
    unlike: "Contest | None" = None


# Contestants that are not in the package. The last four are the best combination in AZ-NAS's paper, with the mean over
# blocks instead of the sum, plus one, two or three proxies of another kind: those of how samples are told apart.
_AZ_SYNFLOW = ("az_expressivity_mean", "az_progressivity", "az_trainability", "macs", "synflow")
ONLY_HERE = {
    "broad": ("macs", "naswot", "az_expressivity_mean", "az_trainability", "meco_opt", "jacob_cov"),
    "az+synflow+naswot": (*_AZ_SYNFLOW, "naswot"),
    "az+synflow+jacob_cov": (*_AZ_SYNFLOW, "jacob_cov"),
    "az+synflow+two": (*_AZ_SYNFLOW, "naswot", "jacob_cov"),
    "az+synflow+three": (*_AZ_SYNFLOW, "naswot", "jacob_cov", "meco_opt"),
}

FIRST = Contest(
    ("balanced", "az+naswot", "zoo", "block_free", "az+synflow", "broad", "macs", "params"),
    {"nas-bench-201": 300, "nas-bench-101": 200, "transnas-micro": 200, "timm": None},
    batch_sizes={"timm": 8},
)
SECOND = Contest(
    (
        INCUMBENT,
        "az+synflow",
        "balanced+synflow",
        "az+synflow+naswot",
        "az+synflow+jacob_cov",
        "az+synflow+two",
        "az+synflow+three",
        "macs",
        "params",
    ),
    {"nas-bench-201": 300, "nas-bench-101": None, "transnas-micro": 300},
    seed=778,
    unlike=FIRST,
)
CONTESTS = {"first": FIRST, "second": SECOND}


def enlist(contest: Contest) -> None:
    """Register the contestants that are not in the package."""
    for name in contest.contestants:
        if name in ONLY_HERE and name not in RECIPES.names():
            RECIPES.register(name, Recipe(name, ONLY_HERE[name], "log_rank", Evidence(), "A contestant"))
