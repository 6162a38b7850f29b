"""Recipes: which proxies to combine, how, and on what evidence."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from lightning_zico._registry import Registry
from lightning_zico.ranking.aggregate import Values, check_finite, log_rank, mean_rank

Aggregate: TypeAlias = Literal["log_rank", "mean_rank"]

_AGGREGATES = {"log_rank": log_rank, "mean_rank": mean_rank}

# Kendall's tau against accuracy after training, measured on CIFAR-10 images in batches of 16 with throw-away code, not
# with this package: 470 networks of NAS-Bench-201, 200 of TransNAS-Bench-101 Micro, the mean of four search spaces, and
# 88 models of timm.
BENCHMARKS = ("NAS-Bench-201", "TransNAS-Bench-101 Micro", "four search spaces", "timm")


@dataclass(frozen=True)
class Evidence:
    """What speaks for a recipe.

    Args:
        taus: Kendall's tau against accuracy after training, by benchmark (of `BENCHMARKS`); empty if not measured.
        remark: How the recipe was come by, and what to make of the numbers.
    """

    taus: Mapping[str, float] = field(default_factory=dict)
    remark: str = "Not measured."


@dataclass(frozen=True)
class Recipe:
    """A rule that makes one ranking of one or more proxies.

    Args:
        name: In lower case.
        members: Names of the proxies, in the direction "higher is better".
        aggregate: Name of the function that combines them; None for a single member, whose score is taken as it is.
        evidence: What speaks for it.
        source: Whose idea it is.
        fallback: Name of the recipe to use where a member does not apply to the candidates; None at the end.

    Raises:
        ValueError: If members are missing or named twice, or the aggregate is unknown or does not fit their number.
    """

    name: str
    members: tuple[str, ...]
    aggregate: Aggregate | None
    evidence: Evidence
    source: str
    fallback: str | None = None

    def __post_init__(self) -> None:
        if not self.members or len(set(self.members)) < len(self.members):
            raise ValueError(
                f"The members of recipe '{self.name}' are {self.members}; needed is at least one proxy, each named "
                "once."
            )
        if self.aggregate not in (None, *_AGGREGATES) or (self.aggregate is None) != (len(self.members) == 1):
            raise ValueError(
                f"The aggregate of recipe '{self.name}' is {self.aggregate!r}; needed is one of "
                f"{', '.join(map(repr, _AGGREGATES))} for several members, and None for one."
            )


RECIPES = Registry[Recipe]("recipe")

# What a recipe has to beat, measured with those.
BASELINE_TAUS: Mapping[str, Mapping[str, float]] = {
    "params": dict(zip(BENCHMARKS, (0.56, 0.35, 0.32, 0.56), strict=True)),
    "macs": dict(zip(BENCHMARKS, (0.56, 0.36, 0.49, 0.53), strict=True)),
    "sum_log_numel": dict(zip(BENCHMARKS, (0.64, 0.39, 0.39, 0.31), strict=True)),
}


def get_recipe(name: str) -> Recipe:
    """Find a recipe.

    Args:
        name: Of the recipe; ``"default"`` is ``"balanced+synflow"``.

    Raises:
        UnknownNameError: If there is none of that name.

    Example:
        >>> get_recipe("default").members
        ('macs', 'naswot', 'az_expressivity_mean', 'az_trainability', 'synflow')
    """
    return RECIPES.get("balanced+synflow" if name == "default" else name)


def list_recipes(pattern: str = "*") -> list[str]:
    """List the names of the recipes that match a shell pattern, in human order.

    Example:
        >>> list_recipes("az*")
        ['az', 'az+naswot', 'az+synflow']
    """
    return RECIPES.names(pattern)


def combine(recipe: Recipe, scores: Mapping[str, Values]) -> list[float | None]:
    """Make one number a candidate from the scores of a recipe's members.

    Args:
        recipe: The rule.
        scores: By proxy, one score a candidate, in the same order for all; higher is better. None where there is none.
            Proxies that are not members are not looked at.

    Returns:
        One a candidate, higher is better, None where a member has none. Of several members the number depends on all
        candidates, as `log_rank` says.

    Raises:
        ValueError: If a member has no scores, members differ in length, or a score is NaN or infinite.

    Example:
        >>> combine(get_recipe("size"), {"params": [10.0, 20.0], "macs": [5.0, 9.0]})
        [-1.3862943611198906, 0.0]
    """
    missing = [name for name in recipe.members if name not in scores]
    if missing:
        instead = f", or fall back to recipe '{recipe.fallback}'" if recipe.fallback else ""
        raise ValueError(
            f"Recipe '{recipe.name}' needs the scores of {', '.join(recipe.members)}; there are none of "
            f"{', '.join(missing)}. Score them too{instead}."
        )
    members = {name: scores[name] for name in recipe.members}
    if recipe.aggregate is not None:
        return _AGGREGATES[recipe.aggregate](members)
    (name,) = recipe.members
    check_finite(name, members[name])
    return list(members[name])


def _measured(remark: str, *taus: float) -> Evidence:
    return Evidence(dict(zip(BENCHMARKS, taus, strict=False)), remark)


_AFTERWARDS = "Found afterwards, on the benchmarks that measured it, so expect less elsewhere."
_AZ_NAS = "Lee & Ham, AZ-NAS, CVPR 2024, arXiv:2403.19232"
_NASWOT = "Mellor et al., NASWOT, ICML 2021, arXiv:2006.04647"
_SYNFLOW = "Tanaka et al., SynFlow, NeurIPS 2020, arXiv:2006.05467"

for _recipe in (
    Recipe(
        "zico",
        ("zico",),
        None,
        _measured("As published; on timm far behind the size.", 0.61, 0.39, 0.39, 0.12),
        "Li et al., ZiCo, ICLR 2023, arXiv:2301.11300",
        fallback="size",
    ),
    Recipe(
        "az",
        ("az_expressivity", "az_progressivity", "az_trainability", "macs"),
        "log_rank",
        _measured("As published.", 0.70, 0.50, 0.58, 0.32),
        _AZ_NAS,
        fallback="without_blocks",
    ),
    Recipe(
        "az+naswot",
        ("az_expressivity", "az_progressivity", "az_trainability", "macs", "naswot"),
        "log_rank",
        _measured("Named before any score was seen.", 0.73, 0.51, 0.62, 0.39),
        f"{_AZ_NAS}; {_NASWOT}; their combination is ours",
        fallback="without_blocks",
    ),
    Recipe(
        "balanced",
        ("macs", "naswot", "az_expressivity_mean", "az_trainability"),
        "log_rank",
        _measured(_AFTERWARDS, 0.73, 0.50, 0.65, 0.51),
        f"{_AZ_NAS}; {_NASWOT}; their combination is ours",
        fallback="without_blocks",
    ),
    Recipe(
        "zoo",
        ("macs", "naswot", "az_expressivity_mean", "az_trainability", "params"),
        "log_rank",
        _measured(
            f"{_AFTERWARDS} On timm its lead over `params` may be chance (interval: -.09 to +.17).",
            *(0.71, 0.48, 0.61, 0.60),
        ),
        f"{_AZ_NAS}; {_NASWOT}; their combination is ours",
        fallback="without_blocks",
    ),
    Recipe(
        "block_free",
        ("meco_opt", "macs_live", "jacob_cov"),
        "log_rank",
        _measured(f"{_AFTERWARDS} Not measured on timm.", 0.76, 0.49, 0.63),
        "Jiang et al., MeCo, NeurIPS 2023; Mellor et al., arXiv:2006.04647v1 (jacob_cov); their combination is ours",
        fallback="without_blocks",
    ),
    Recipe(
        "az+synflow",
        ("az_expressivity", "az_progressivity", "az_trainability", "macs", "synflow"),
        "log_rank",
        Evidence(),
        f"{_AZ_NAS}, whose best combination it is on NAS-Bench-201; {_SYNFLOW}",
        fallback="without_blocks",
    ),
    Recipe(
        "balanced+synflow",
        ("macs", "naswot", "az_expressivity_mean", "az_trainability", "synflow"),
        "log_rank",
        Evidence(),
        f"{_AZ_NAS}; {_NASWOT}; {_SYNFLOW}; their combination is ours",
        fallback="balanced",
    ),
    Recipe("without_blocks", ("macs", "naswot"), "log_rank", Evidence(), f"{_NASWOT}; ours", fallback="size"),
    Recipe("size", ("params", "macs"), "log_rank", Evidence(), "Ours: the trivial baselines"),
):
    RECIPES.register(_recipe.name, _recipe)
