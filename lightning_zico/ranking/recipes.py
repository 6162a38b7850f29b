"""Recipes: which proxies to combine, how, and based on what evidence."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from lightning_zico._registry import Registry
from lightning_zico.ranking.aggregate import Values, check_finite, log_rank, mean_rank

Aggregate: TypeAlias = Literal["log_rank", "mean_rank"]

_AGGREGATES = {"log_rank": log_rank, "mean_rank": mean_rank}

# Measured by benchmarks/fidelity.py, with results in benchmarks/results/: Kendall's tau with the accuracy after
# training, averaged over the targets of a benchmark. Seed 777, two batches of CIFAR-10 images; 300 networks of each
# search space in batches of 16, and the 165 models of timm with at most 30 million parameters in batches of 8. Some of
# these output tokens, so recipes with `az_trainability` fall back to `macs+expressivity` on timm.
BENCHMARKS = ("NAS-Bench-201", "NAS-Bench-101", "TransNAS-Bench-101 Micro", "timm")


@dataclass(frozen=True)
class Evidence:
    """The evidence for a recipe.

    Args:
        taus: Kendall's tau with the accuracy after training, by benchmark, for all of `BENCHMARKS`; empty if not
            measured.
        remark: How the recipe was found, and how to read the numbers.
    """

    taus: Mapping[str, float] = field(default_factory=dict)
    remark: str = "Not measured."


@dataclass(frozen=True, repr=False)
class Recipe:
    """A rule that combines one or more proxies into one ranking.

    Args:
        name: Name in lower case.
        members: Names of the proxies, each in the direction "higher is better".
        aggregate: Name of the function that combines them; None for a single member, whose score is used unchanged.
        evidence: Evidence for the recipe.
        source: Origin of the idea.
        fallback: Name of the recipe to use if a member has no score for the candidates; None for `LAST_RESORT`.

    Raises:
        ValueError: If members are missing or named twice, or the aggregate is unknown or does not match their number.
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
                f"The members of recipe '{self.name}' are {self.members}: expected at least one proxy, each named once."
            )
        if self.aggregate not in (None, *_AGGREGATES) or (self.aggregate is None) != (len(self.members) == 1):
            raise ValueError(
                f"The aggregate of recipe '{self.name}' is {self.aggregate!r}: expected one of "
                f"{', '.join(map(repr, _AGGREGATES))} for several members, and None for one."
            )

    def __repr__(self) -> str:
        how = f"{self.aggregate} of " if self.aggregate else ""
        return f"<Recipe '{self.name}': {how}{', '.join(self.members)}>"


RECIPES = Registry[Recipe]("recipe")

# The baselines that a recipe has to beat, measured in the same way.
BASELINE_TAUS: Mapping[str, Mapping[str, float]] = {
    "params": dict(zip(BENCHMARKS, (0.547, 0.460, 0.313, 0.572), strict=True)),
    "macs": dict(zip(BENCHMARKS, (0.547, 0.455, 0.319, 0.541), strict=True)),
    "num_layers": dict(zip(BENCHMARKS, (0.558, 0.370, 0.288, 0.166), strict=True)),
    "sum_log_numel": dict(zip(BENCHMARKS, (0.564, 0.398, 0.300, 0.291), strict=True)),
}


# Every trainable candidate has this number, so none is left out because a proxy is not applicable. It is not in the
# list of recipes, because a proxy has the same name.
LAST_RESORT = Recipe("params", ("params",), None, Evidence(BASELINE_TAUS["params"]), "Ours: a trivial baseline")


# The recipe that "default" stands for: of candidates that are all pretrained, and of all others.
_DEFAULTS = {True: "transfer", False: "balanced+synflow"}


def get_recipe(name: str, pretrained: bool = False) -> Recipe:
    """Return the recipe with a given name.

    Args:
        name: Name of the recipe; ``"default"`` is ``"balanced+synflow"``, or ``"transfer"`` for pretrained candidates.
        pretrained: Whether the recipe is for candidates that are all pretrained.

    Raises:
        UnknownNameError: If there is no recipe with that name.

    Example:
        >>> get_recipe("default").members
        ('macs', 'naswot', 'az_expressivity_mean', 'az_trainability', 'synflow')
    """
    return RECIPES.get(_DEFAULTS[pretrained] if name == "default" else name)


def chain_of(recipe: Recipe) -> list[Recipe]:
    """List a recipe and its fallbacks, ending with `LAST_RESORT`.

    Example:
        >>> [link.name for link in chain_of(get_recipe("balanced"))]
        ['balanced', 'macs+expressivity', 'without_blocks', 'size', 'params']
    """
    links = [recipe]
    while (name := links[-1].fallback) is not None:
        links.append(get_recipe(name))
    return links if links[-1].members == LAST_RESORT.members else [*links, LAST_RESORT]


def list_recipes(pattern: str = "*") -> list[str]:
    """List the names of the recipes that match a shell pattern, in natural order.

    Example:
        >>> list_recipes("az*")
        ['az', 'az+naswot', 'az+synflow']
    """
    return RECIPES.names(pattern)


def combine(recipe: Recipe, scores: Mapping[str, Values]) -> list[float | None]:
    """Combine the scores of a recipe's members into one number per candidate.

    Args:
        recipe: The recipe.
        scores: One score per candidate for each proxy, in the same order for all; higher is better. None if missing.
            Proxies that are not members are ignored.

    Returns:
        One number per candidate, higher is better; None if a member has no score. With several members, each number
        depends on all candidates; see `log_rank`.

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
            f"Recipe '{recipe.name}' needs the scores of {', '.join(recipe.members)}; those of "
            f"{', '.join(missing)} are missing. Score them too{instead}."
        )
    members = {name: scores[name] for name in recipe.members}
    if recipe.aggregate is not None:
        return _AGGREGATES[recipe.aggregate](members)
    (name,) = recipe.members
    check_finite(name, members[name])
    return list(members[name])


def _measured(remark: str, *taus: float) -> Evidence:
    return Evidence(dict(zip(BENCHMARKS, taus, strict=True)), remark)


_TRANSFER_EVIDENCE = Evidence(
    remark="Not measured on these benchmarks. By the contest in benchmarks/README.md, no score of features adds "
    "significantly to the published accuracy, and where that is unknown, `ridge_probe` ranks best."
)

_AFTERWARDS = "Found afterwards, on tables of these benchmarks with throw-away code, so expect less elsewhere."
_AZ_NAS = "Lee & Ham, AZ-NAS, CVPR 2024, arXiv:2403.19232"
_NASWOT = "Mellor et al., NASWOT, ICML 2021, arXiv:2006.04647"
_SYNFLOW = "Tanaka et al., SynFlow, NeurIPS 2020, arXiv:2006.05467"

for _recipe in (
    Recipe(
        "zico",
        ("zico",),
        None,
        _measured("As published; on timm far behind the size.", 0.586, 0.393, 0.383, 0.133),
        "Li et al., ZiCo, ICLR 2023, arXiv:2301.11300",
        fallback="size",
    ),
    Recipe(
        "az",
        ("az_expressivity", "az_progressivity", "az_trainability", "macs"),
        "log_rank",
        _measured("As published.", 0.666, 0.570, 0.480, 0.483),
        _AZ_NAS,
        fallback="macs+expressivity",
    ),
    Recipe(
        "az+naswot",
        ("az_expressivity", "az_progressivity", "az_trainability", "macs", "naswot"),
        "log_rank",
        _measured("Named before any score was seen.", 0.708, 0.543, 0.483, 0.483),
        f"{_AZ_NAS}; {_NASWOT}; their combination is ours",
        fallback="macs+expressivity",
    ),
    Recipe(
        "balanced",
        ("macs", "naswot", "az_expressivity_mean", "az_trainability"),
        "log_rank",
        _measured(_AFTERWARDS, 0.713, 0.478, 0.503, 0.483),
        f"{_AZ_NAS}; {_NASWOT}; their combination is ours",
        fallback="macs+expressivity",
    ),
    Recipe(
        "zoo",
        ("macs", "naswot", "az_expressivity_mean", "az_trainability", "params"),
        "log_rank",
        _measured(f"{_AFTERWARDS} On timm its fallback ranks.", 0.714, 0.493, 0.482, 0.483),
        f"{_AZ_NAS}; {_NASWOT}; their combination is ours",
        fallback="macs+expressivity",
    ),
    Recipe(
        "block_free",
        ("meco_opt", "macs_live", "jacob_cov"),
        "log_rank",
        _measured(f"{_AFTERWARDS} On timm it says next to nothing.", 0.753, 0.360, 0.489, 0.042),
        "Jiang et al., MeCo, NeurIPS 2023; Mellor et al., arXiv:2006.04647v1 (jacob_cov); their combination is ours",
        fallback="without_blocks",
    ),
    Recipe(
        "az+synflow",
        ("az_expressivity", "az_progressivity", "az_trainability", "macs", "synflow"),
        "log_rank",
        _measured("Argued for from principle, before this package had scored it.", 0.741, 0.614, 0.485, 0.483),
        f"{_AZ_NAS}, whose best combination it is on NAS-Bench-201; {_SYNFLOW}",
        fallback="macs+expressivity",
    ),
    Recipe(
        "balanced+synflow",
        ("macs", "naswot", "az_expressivity_mean", "az_trainability", "synflow"),
        "log_rank",
        _measured(
            "Chosen by the second contest in benchmarks/README.md, on networks outside of the first.",
            *(0.746, 0.521, 0.502, 0.483),
        ),
        f"{_AZ_NAS}; {_NASWOT}; {_SYNFLOW}; their combination is ours",
        fallback="balanced",
    ),
    Recipe(
        "macs+expressivity",
        ("macs", "az_expressivity"),
        "log_rank",
        Evidence(remark="Chosen by the fourth contest in benchmarks/README.md, for networks of tokens."),
        f"{_AZ_NAS}, without the members that fail on tokens; ours",
        fallback="without_blocks",
    ),
    Recipe("without_blocks", ("macs", "naswot"), "log_rank", Evidence(), f"{_NASWOT}; ours", fallback="size"),
    Recipe(
        "transfer",
        ("prior",),
        None,
        _TRANSFER_EVIDENCE,
        "Renggli et al., Which Model to Transfer?, CVPR 2022, arXiv:2010.06402 (task-agnostic search); ours",
        fallback="linear_probe",
    ),
    Recipe(
        "linear_probe",
        ("ridge_probe",),
        None,
        _TRANSFER_EVIDENCE,
        "Renggli et al., Which Model to Transfer?, CVPR 2022, arXiv:2010.06402 (linear search); ours",
        fallback="size",
    ),
    Recipe("size", ("params", "macs"), "log_rank", Evidence(), "Ours: the trivial baselines"),
):
    RECIPES.register(_recipe.name, _recipe)
