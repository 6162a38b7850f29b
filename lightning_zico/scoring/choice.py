"""What is computed, and what is ranked by: proxies and recipes as the user names them, told apart."""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace

from lightning_zico._registry import unknown_name
from lightning_zico.errors import DuplicateNameError, UnknownNameError
from lightning_zico.proxies import BASELINES, Proxy, list_proxies, resolve_proxies
from lightning_zico.proxies.base import Proxies, ProxyLike
from lightning_zico.ranking import Recipe, combine, get_recipe, list_recipes
from lightning_zico.results import NOT_APPLICABLE, Score, ScoreCard


@dataclass(frozen=True)
class Choice:
    """Proxies to compute and recipes to combine.

    Args:
        proxies: All that is computed, in the order of the columns.
        recipes: Those that were named, by name.
        first: Name of the proxy or recipe that was named first.
    """

    proxies: tuple[Proxy, ...]
    recipes: Mapping[str, Recipe]
    first: str

    @property
    def columns(self) -> list[str]:
        """Names of all scores: recipes, then proxies."""
        return [*self.recipes, *(proxy.name for proxy in self.proxies)]

    def ranked_by(self, name: str | None) -> str:
        """Name the score to rank by.

        Args:
            name: As the user gives it; None for what was named first.

        Raises:
            UnknownNameError: If it is not computed.
        """
        if name is None:
            return self.first
        own = get_recipe(name).name if name == "default" else name
        if own not in self.columns:
            raise UnknownNameError(
                f"`rank_by` is {name!r}, which is not computed. Add it to `proxies`, or choose one of "
                f"{', '.join(self.columns)}."
            )
        return own

    def higher_is_better(self, name: str) -> bool:
        """Tell the direction of a score."""
        return name in self.recipes or next(p.higher_is_better for p in self.proxies if p.name == name)

    def directed(self, card: ScoreCard, name: str) -> float | None:
        """Turn a candidate's score so that higher is better; None where there is none to rank by."""
        value = card[name].value
        if value is None or card.untrainable:
            return None
        return value if self.higher_is_better(name) else -value

    def read_by(self, name: str) -> list[tuple[str, ...]]:
        """Name the proxies that a score is made of; of a recipe, also those of each fallback."""
        return [recipe.members for recipe in _chain(self.recipes[name])] if name in self.recipes else [(name,)]


def chosen(proxies: Proxies, *, beside: Sequence[Proxy] = (), with_baselines: bool = False) -> Choice:
    """Tell proxies and recipes apart.

    Args:
        proxies: Names of proxies and recipes, `Proxy` objects, a mixture, or one of them; ``"default"`` for the default
            recipe, ``"all"`` for that and every proxy. A name that both a proxy and a recipe bear is the proxy's; a
            `Proxy` object with the name of a recipe's member or of a baseline takes its place.
        beside: Compute these besides, behind them.
        with_baselines: Compute the trivial baselines beside them.

    Raises:
        UnknownNameError: If there is neither a proxy nor a recipe of a name.
        DuplicateNameError: If two proxies, or a proxy and a recipe, bear one name: they would share a column.
        TypeError: If one is neither a name nor a `Proxy` object.
        ValueError: If there is none.
    """
    named: Sequence[ProxyLike]
    if proxies == "all":
        named = ["default", *list_proxies()]
    elif isinstance(proxies, str | Proxy) or not isinstance(proxies, Iterable) or isinstance(proxies, type):
        named = [proxies]  # type: ignore[list-item]  # what is none of these is refused below
    else:
        named = list(proxies)
    named = [*named, *beside] if named else named
    known = list_proxies()
    recipe_names = [name for name in ("default", *list_recipes()) if name not in known]
    for name in named:
        if isinstance(name, str) and name not in known + recipe_names:
            raise unknown_name("proxy or recipe", name, known + recipe_names)
    own = [proxy for proxy in named if proxy not in recipe_names]
    recipes = {r.name: r for r in (get_recipe(n) for n in named if isinstance(n, str) and n in recipe_names)}
    resolved = resolve_proxies(own) if own or not recipes else []
    names = [proxy.name for proxy in resolved]
    for name in names:
        if name in recipes:
            raise DuplicateNameError(f"A proxy and a recipe are named '{name}'. Give the proxy another name.")
    members = [member for recipe in recipes.values() for link in _chain(recipe) for member in link.members]
    wanted = dict.fromkeys([*members, *(BASELINES if with_baselines else ())])
    missing = [name for name in wanted if name not in names]
    return Choice(
        (*resolved, *(resolve_proxies(missing) if missing else [])),
        recipes,
        first=next(iter(recipes)) if named[0] in recipe_names else names[0],
    )


def applicable(cards: Sequence[ScoreCard], recipe: Recipe) -> Recipe:
    """Find what takes a recipe's place: the first of it and its fallbacks whose members apply to all candidates.

    Numbers of different recipes cannot be compared, so that one of them ranks all. A candidate that fails otherwise
    changes nothing for the others.

    Args:
        cards: Of all candidates.
        recipe: As the user named it.

    Returns:
        The recipe to combine; the last fallback if none applies.
    """
    return without(frozenset().union(*map(inapplicable_to, cards)), recipe)


def inapplicable_to(card: ScoreCard) -> frozenset[str]:
    """Name the proxies whose formula has no meaning for a candidate; none where it fails otherwise."""
    if card.error is not None or card.untrainable is not None:
        return frozenset()
    errors = {name: score.error for name, score in card.scores.items() if score.error is not None}
    return frozenset(name for name, error in errors.items() if error.startswith(NOT_APPLICABLE))


def without(inapplicable: Set[str], recipe: Recipe) -> Recipe:
    """Find the first of a recipe and its fallbacks that does without some proxies; the last fallback if none does."""
    return next((link for link in _chain(recipe) if not inapplicable & set(link.members)), _chain(recipe)[-1])


def combined(
    cards: Sequence[ScoreCard], recipe: Recipe, choice: Choice, used: Recipe | None = None
) -> tuple[list[ScoreCard], Recipe]:
    """Add the score of a recipe to cards.

    Args:
        cards: Of all candidates.
        recipe: What to add; the new score bears its name, whichever recipe took its place.
        choice: What was computed.
        used: What takes its place; what `applicable` finds if None.

    Returns:
        The cards with one score more, and the recipe that gave it.
    """
    used = used or applicable(cards, recipe)
    values = combine(used, {name: [choice.directed(card, name) for card in cards] for name in used.members})
    added = []
    for card, value in zip(cards, values, strict=True):
        error = card.untrainable or next((card[name].error for name in used.members if card[name].error), None)
        score = Score(recipe.name, value, error, details={"recipe": used.name})
        added.append(replace(card, scores={recipe.name: score, **card.scores}))
    return added, used


def _chain(recipe: Recipe) -> list[Recipe]:
    """List a recipe and its fallbacks."""
    links = [recipe]
    while (name := links[-1].fallback) is not None:
        links.append(get_recipe(name))
    return links
