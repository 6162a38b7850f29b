"""Proxies to compute and recipes to rank by, from the names that the user gives."""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace

from lightning_zico._registry import unknown_name
from lightning_zico.errors import DuplicateNameError, UnknownNameError
from lightning_zico.proxies import BASELINES, Proxy, UnknownPrior, list_proxies, resolve_proxies
from lightning_zico.proxies.base import Proxies, ProxyLike
from lightning_zico.ranking import Recipe, chain_of, combine, get_recipe, list_recipes, placed_beside
from lightning_zico.ranking.aggregate import Values
from lightning_zico.results import Score, ScoreCard


@dataclass(frozen=True)
class Choice:
    """Proxies to compute, recipes to combine, and the score to rank by.

    Args:
        proxies: All proxies to compute, in the order of the columns.
        recipes: The recipes that the user named, by name.
        rank_by: Name of the proxy or recipe to rank by.
        asked: Names of the recipes and proxies that the user named; the others are members of recipes and baselines.
    """

    proxies: tuple[Proxy, ...]
    recipes: Mapping[str, Recipe]
    rank_by: str
    asked: tuple[str, ...]

    @classmethod
    def of(
        cls,
        proxies: Proxies,
        rank_by: str | None = None,
        *,
        beside: Sequence[Proxy] = (),
        with_baselines: bool = False,
        pretrained: bool = False,
    ) -> "Choice":
        """Resolve names to proxies and recipes.

        Args:
            proxies: Names of proxies and recipes, `Proxy` objects, a mixture, or one of them; ``"default"`` for the
                default recipe, ``"all"`` for that and every proxy. A name shared by a proxy and a recipe means the
                proxy. A `Proxy` object with the name of a recipe's member or of a baseline replaces it.
            rank_by: Name of the proxy or recipe to rank by; None for the one that is named first.
            beside: Further proxies to compute, after these.
            with_baselines: Also compute the trivial baselines.
            pretrained: Whether all candidates are pretrained, which changes the default recipe.

        Raises:
            UnknownNameError: If a name is neither a proxy nor a recipe, or ``rank_by`` is not computed.
            DuplicateNameError: If two proxies, or a proxy and a recipe, have the same name: they would share a column.
            TypeError: If one is neither a name nor a `Proxy` object.
            ValueError: If there are none.
        """
        named = _list_named(proxies, beside)
        known = list_proxies()
        recipe_names = [name for name in ("default", *list_recipes()) if name not in known]
        for name in named:
            if name == UnknownPrior.name:
                raise UnknownNameError(
                    f"'{name}' is a column of known numbers and not a proxy to compute. In a ranking, pass the numbers "
                    f'as `prior=`, or candidates of a zoo, and `rank_by="{name}"`.'
                )
            if isinstance(name, str) and name not in known + recipe_names:
                raise unknown_name("proxy or recipe", name, known + recipe_names)
        own = [proxy for proxy in named if proxy not in recipe_names]
        chosen = [get_recipe(n, pretrained) for n in named if isinstance(n, str) and n in recipe_names]
        recipes = {recipe.name: recipe for recipe in chosen}
        resolved = resolve_proxies(own) if own or not recipes else []
        names = [proxy.name for proxy in resolved]
        for name in names:
            if name in recipes:
                raise DuplicateNameError(f"A proxy and a recipe are named '{name}'. Give the proxy another name.")
        members = [member for recipe in recipes.values() for link in chain_of(recipe) for member in link.members]
        wanted = dict.fromkeys([*members, *(BASELINES if with_baselines else ())])
        missing = [name for name in wanted if name not in names]
        first = next(iter(recipes)) if named[0] in recipe_names else names[0]
        choice = cls((*resolved, *_resolve(missing)), recipes, first, (*recipes, *names))
        if rank_by is None:
            return choice
        return choice.with_rank_by(get_recipe(rank_by, pretrained).name if rank_by == "default" else rank_by)

    @property
    def columns(self) -> list[str]:
        """Names of all scores: recipes, then proxies."""
        return [*self.recipes, *(proxy.name for proxy in self.proxies)]

    def with_rank_by(self, name: str) -> "Choice":
        """Return the same choice with another score to rank by.

        Raises:
            UnknownNameError: If the score is not computed.
        """
        if name not in self.columns:
            raise UnknownNameError(
                f"Invalid rank_by={name!r}: it is not computed. Add it to `proxies`, or choose one of "
                f"{', '.join(self.columns)}."
            )
        return replace(self, rank_by=name)

    @property
    def recipe(self) -> Recipe | None:
        """The recipe to rank by; None if a single proxy decides."""
        return self.recipes.get(self.rank_by)

    @property
    def chains(self) -> list[tuple[str, ...]]:
        """Names of the proxies behind the score to rank by: one tuple, or for a recipe also one per fallback."""
        return [(self.rank_by,)] if self.recipe is None else [link.members for link in chain_of(self.recipe)]

    def higher_is_better(self, name: str | None = None) -> bool:
        """Whether higher values of a score are better; of the score to rank by if ``name`` is None."""
        name = self.rank_by if name is None else name
        return name in self.recipes or next(p.higher_is_better for p in self.proxies if p.name == name)

    def direct_score(self, card: ScoreCard, name: str | None = None) -> float | None:
        """Return a candidate's score, negated if lower is better; None if it cannot be ranked by this score.

        Args:
            card: The candidate's card.
            name: Name of the score; None for the one to rank by.
        """
        name = self.rank_by if name is None else name
        value = card[name].value
        if value is None or card.untrainable:
            return None
        return value if self.higher_is_better(name) else -value

    def recipes_for(self, cards: Sequence[ScoreCard], recipe: Recipe) -> "Used":
        """Choose the recipe to use in place of a named one, as `choose_applicable` does.

        Args:
            cards: The cards of all candidates; those that do not train are ignored.
            recipe: The recipe that the user named.
        """
        return choose_applicable([lacking_of(card) for card in cards if trains(card)], recipe)

    def combine(
        self, cards: Sequence[ScoreCard], recipe: Recipe, used: "Used | None" = None
    ) -> tuple[list[ScoreCard], "Used"]:
        """Add the score of a recipe to cards.

        Args:
            cards: The cards of all candidates.
            recipe: The recipe to add; the new score has its name, whichever recipe is used in its place.
            used: The recipes used in its place; None to choose them from the cards.

        Returns:
            The cards with one more score, and the recipes that were used.
        """
        used = used or self.recipes_for(cards, recipe)
        members = [*used.recipe.members, *(used.beside.members if used.beside else ())]
        values = used.values({name: [self.direct_score(card, name) for card in cards] for name in members})
        added = []
        for card, value in zip(cards, values, strict=True):
            missing = next((card[name].error for name in used.recipe.members if card[name].value is None), None)
            details = {"recipe": used.recipe.name}
            if missing is not None and value is not None and used.beside is not None:
                details["placed_by"] = used.beside.name
            error = None if value is not None else card.untrainable or missing
            score = Score(recipe.name, value, error, details=details)
            added.append(replace(card, scores={recipe.name: score, **card.scores}))
        return added, used


def _list_named(proxies: Proxies, beside: Sequence[Proxy]) -> Sequence[ProxyLike]:
    """List what the user named, followed by further proxies."""
    named: Sequence[ProxyLike]
    if proxies == "all":
        named = ["default", *list_proxies()]
    elif isinstance(proxies, str | Proxy) or not isinstance(proxies, Iterable) or isinstance(proxies, type):
        named = [proxies]  # type: ignore[list-item]  # resolving them raises the error
    else:
        named = list(proxies)
    return [*named, *beside] if named else named


def _resolve(names: Sequence[str]) -> list[Proxy]:
    """Return the members of recipes by name; the prior of a recipe may be unknown."""
    return [UnknownPrior() if name == "prior" else resolve_proxies(name)[0] for name in names]


@dataclass(frozen=True)
class Used:
    """The recipes that rank in place of the recipe that the user asked for; see `choose_applicable`.

    Args:
        recipe: The recipe that is combined.
        beside: The recipe that places candidates for which a member of ``recipe`` has no number; None if there are no
            such candidates.
    """

    recipe: Recipe
    beside: Recipe | None = None

    def values(self, columns: Mapping[str, Values]) -> list[float | None]:
        """Combine the scores of all proxies into one number per candidate; higher is better."""
        values = combine(self.recipe, columns)
        return values if self.beside is None else placed_beside(values, combine(self.beside, columns))


# Largest fraction of candidates to place beside the others; if a recipe does not apply to more of them, all candidates
# fall back. The number is our choice: a tenth moves no candidate's quantile by more than a tenth.
_MOST_BESIDE = 0.1


def choose_applicable(lacking: Sequence[Set[str]], recipe: Recipe) -> Used:
    """Choose the recipe to use if some candidates lack some of the numbers.

    A recipe applies to a candidate if every member has a number for it. Numbers of different recipes cannot be
    compared, so one recipe ranks all candidates: the first of the recipe and its fallbacks that applies to all. An
    earlier one is used if it applies to all but at most a tenth of them. These few are then placed beside the others by
    the recipe that applies to all; see `ranking.placed_beside`.

    Args:
        lacking: For each candidate that trains, the names of the proxies without a number.
        recipe: The recipe that the user named.

    Returns:
        The recipes to combine. If the last fallback, the number of parameters, is not there for all candidates either,
        it is used for those that have it.
    """
    chain = chain_of(recipe)
    without = [sum(not names.isdisjoint(link.members) for names in lacking) for link in chain]
    last = next((idx for idx, count in enumerate(without) if not count), len(chain) - 1)
    most = _MOST_BESIDE * len(lacking)
    first = next((idx for idx, count in enumerate(without[:last]) if count <= most), last)
    return Used(chain[first], chain[last] if first < last else None)


def trains(card: ScoreCard) -> bool:
    """Whether a candidate was scored and, as far as is known, trains; only then can a recipe rank it."""
    return card.error is None and card.untrainable is None


def lacking_of(card: ScoreCard) -> frozenset[str]:
    """Return the names of the proxies that have no number for a candidate, for whatever reason."""
    return frozenset(name for name, score in card.scores.items() if score.value is None)
