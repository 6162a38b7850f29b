"""The contests that set the default recipe: contestants and benchmarks. Each was fixed before it was scored."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from lightning_zico.ranking.recipes import RECIPES, Evidence, Recipe

OPPONENTS = ("params", "macs")


@dataclass(frozen=True)
class Contest:
    """Contestants, and the benchmarks that they are measured on.

    Args:
        contestants: Recipes and proxies.
        samples: Number of candidates to draw, by benchmark; None for all.
        seed: The seed of the draw, of the weights and of random numbers in proxies.
        batch_sizes: Batch size by benchmark, if it is not the usual one.
        unlike: Other contests; none of their candidates is drawn, unless no other is left.
        incumbent: The default at the time.
        by_kind: Contestants that are one recipe where ``head_confidence`` does not apply to any candidate of a
            benchmark, and another where it does, by name.
    """

    contestants: tuple[str, ...]
    samples: Mapping[str, int | None]
    seed: int = 777
    batch_sizes: Mapping[str, int] = field(default_factory=dict)
    unlike: "tuple[Contest, ...]" = ()
    incumbent: str = "balanced"
    by_kind: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def scored(self) -> list[str]:
        """Recipes and proxies to score, including the one that identifies the kind of candidates."""
        scored = [name for name in self.contestants if name not in self.by_kind]
        return [*scored, "head_confidence"] if self.by_kind else scored


# Contestants that are not in the package. Those of the second contest are the best combination in AZ-NAS's paper, with
# the mean over blocks instead of the sum, plus one, two or three proxies of another kind, which measure how well
# samples are separated. Those of the third are the default with or without one of its members, and with or without two
# proxies. Those of the fourth have the sum over blocks, which rewards depth, in place of the mean.
_AZ_SYNFLOW = ("az_expressivity_mean", "az_progressivity", "az_trainability", "macs", "synflow")
_UNTRAINED = ("macs", "naswot", "az_expressivity_mean", "synflow")
_BALANCED = ("macs", "naswot", "az_expressivity_mean", "az_trainability")
ONLY_HERE = {
    "broad": ("macs", "naswot", "az_expressivity_mean", "az_trainability", "meco_opt", "jacob_cov"),
    "az+synflow+naswot": (*_AZ_SYNFLOW, "naswot"),
    "az+synflow+jacob_cov": (*_AZ_SYNFLOW, "jacob_cov"),
    "az+synflow+two": (*_AZ_SYNFLOW, "naswot", "jacob_cov"),
    "az+synflow+three": (*_AZ_SYNFLOW, "naswot", "jacob_cov", "meco_opt"),
    "without_trainability": _UNTRAINED,
    "without_trainability+two": (*_UNTRAINED, "zico", "intrain"),
    "balanced+zico": (*_BALANCED, "zico"),
    "balanced+synflow+zico": (*_BALANCED, "synflow", "zico"),
    "balanced+synflow+intrain": (*_BALANCED, "synflow", "intrain"),
    "label_free": _UNTRAINED,
    "label_free_sum": ("macs", "naswot", "az_expressivity", "synflow"),
    "without_synflow_sum": ("macs", "naswot", "az_expressivity"),
    "az_sum": ("macs", "az_expressivity"),
}

FIRST = Contest(
    ("balanced", "az+naswot", "zoo", "block_free", "az+synflow", "broad", "macs", "params"),
    {"nas-bench-201": 300, "nas-bench-101": 200, "transnas-micro": 200, "timm": None},
    batch_sizes={"timm": 8},
)
SECOND = Contest(
    (
        "balanced",
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
    unlike=(FIRST,),
)
# The candidates that README.md showed of every recipe before the third contest.
SHOWN = Contest(
    (), {"nas-bench-201": 300, "transnas-micro": 300, "pit": 60, "nas-bench-bert": 100, "nas-bench-301": 60}
)
THIRD = Contest(
    (
        "balanced+synflow",
        "without_trainability",
        "by_kind",
        "balanced+zico",
        "balanced+synflow+zico",
        "balanced+synflow+intrain",
        "without_trainability+two",
        "params",
    ),
    {
        "nas-bench-201": 60,
        "nas-bench-101": 40,
        "transnas-micro": 60,
        "pit": 60,
        "nas-bench-bert": 60,
        "nas-bench-301": 40,
    },
    seed=801,
    batch_sizes={"pit": 4, "nas-bench-bert": 8, "nas-bench-301": 8},
    unlike=(FIRST, SECOND, SHOWN),
    incumbent="balanced+synflow",
    by_kind={"by_kind": ("balanced+synflow", "without_trainability")},
)
FOURTH = Contest(
    (
        "label_free",
        "label_free_sum",
        "without_synflow_sum",
        "az_sum",
        "without_blocks",
        "size",
        "sum_log_numel",
        "params",
    ),
    {"pit": 60, "nas-bench-bert": 90},
    seed=802,
    batch_sizes={"pit": 4, "nas-bench-bert": 8},
    unlike=(THIRD, SHOWN),
    incumbent="label_free",
)
# Compares the two cheap contestants that the third contest left, on the networks of the tables in README.md.
DECIDER = Contest(
    ("balanced+synflow", "without_trainability"),
    {"nas-bench-201": 300, "nas-bench-101": 300, "transnas-micro": 300},
    incumbent="balanced+synflow",
)
CONTESTS = {"first": FIRST, "second": SECOND, "third": THIRD, "fourth": FOURTH, "decider": DECIDER}


def enlist(contest: Contest) -> None:
    """Register the contestants that are not in the package."""
    for name in contest.contestants:
        if name in ONLY_HERE and name not in RECIPES.names():
            RECIPES.register(name, Recipe(name, ONLY_HERE[name], "log_rank", Evidence(), "A contestant"))
