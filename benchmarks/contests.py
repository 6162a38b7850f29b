"""The contests that set the default recipe: who takes part, and on what. Each was fixed before it was scored."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from lightning_zico.ranking.recipes import RECIPES, Evidence, Recipe

OPPONENTS = ("params", "macs")
INCUMBENT = "balanced"


@dataclass(frozen=True)
class Contest:
    """Contestants, and what they are measured on.

    Args:
        contestants: Recipes and proxies.
        samples: By benchmark, how many candidates are drawn; None for all.
        seed: Of the draw, the weights and whatever a proxy draws.
        batch_sizes: By benchmark, where it is not the usual one.
        unlike: Another contest, none of whose candidates is drawn.
    """

    contestants: tuple[str, ...]
    samples: Mapping[str, int | None]
    seed: int = 777
    batch_sizes: Mapping[str, int] = field(default_factory=dict)
    unlike: "Contest | None" = None


# Contestants that the package does not have. The last four are the best combination that AZ-NAS's authors print, with
# the mean over blocks for their sum, and one, two or three votes of another kind: how samples are told apart.
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
    """Make the contestants known that the package does not have."""
    for name in contest.contestants:
        if name in ONLY_HERE and name not in RECIPES.names():
            RECIPES.register(name, Recipe(name, ONLY_HERE[name], "log_rank", Evidence(), "A contestant"))
