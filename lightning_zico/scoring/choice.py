"""What is computed, and what is ranked by: proxies and recipes as the user names them, told apart."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from lightning_zico.errors import UnknownNameError
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

    def check_name(self, name: str) -> None:
        """Refuse to rank by what is not computed.

        Raises:
            UnknownNameError: If there is no such score.
        """
        if name not in self.columns:
            raise UnknownNameError(
                f"`rank_by` is {name!r}, which is not computed. Add it to `proxies`, or choose one of "
                f"{', '.join(self.columns)}."
            )

    def higher_is_better(self, name: str) -> bool:
        """Tell the direction of a score."""
        return name in self.recipes or next(p.higher_is_better for p in self.proxies if p.name == name)

    def read_by(self, name: str) -> list[str]:
        """Name the proxies that a score is made of, those of a recipe's fallbacks included."""
        if name not in self.recipes:
            return [name]
        return list(dict.fromkeys(member for recipe in _chain(self.recipes[name]) for member in recipe.members))


def chosen(proxies: Proxies, *, with_baselines: bool = False) -> Choice:
    """Tell proxies and recipes apart.

    Args:
        proxies: Names of proxies and recipes, `Proxy` objects, a mixture, or one of them; ``"default"`` for the default
            recipe, ``"all"`` for that and every proxy. A name that both a proxy and a recipe bear is the proxy's.
        with_baselines: Compute the trivial baselines beside them.

    Raises:
        UnknownNameError: If there is neither a proxy nor a recipe of a name.
        DuplicateNameError: If two proxies bear one name.
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
    recipe_names = {"default", *list_recipes()} - set(list_proxies())
    recipes = [get_recipe(name) for name in named if isinstance(name, str) and name in recipe_names]
    alone = [name for name in named if not (isinstance(name, str) and name in recipe_names)]
    resolved = resolve_proxies(alone) if alone or not recipes else []
    wanted = [member for recipe in recipes for link in _chain(recipe) for member in link.members]
    wanted += BASELINES if with_baselines else ()
    names = {proxy.name for proxy in resolved}
    missing = [name for name in dict.fromkeys(wanted) if name not in names]
    first = named[0]
    return Choice(
        (*resolved, *(resolve_proxies(missing) if missing else [])),
        {recipe.name: recipe for recipe in recipes},
        first.name if isinstance(first, Proxy) else (recipes[0].name if first in recipe_names else first),
    )


def combined(cards: Sequence[ScoreCard], recipe: Recipe, choice: Choice) -> tuple[list[ScoreCard], Recipe]:
    """Add the score of a recipe to cards.

    Where a member does not apply to one of the candidates, the recipe's fallback takes its place for all of them, since
    numbers of different recipes cannot be compared.

    Args:
        cards: Of all candidates.
        recipe: What to add; the new score bears its name, whichever recipe took its place.
        choice: What was computed.

    Returns:
        The cards with one score more, and the recipe that gave it.
    """
    inapplicable = {
        name
        for card in cards
        if card.error is None
        for name, score in card.scores.items()
        if score.error is not None and score.error.startswith(NOT_APPLICABLE)
    }
    used = next((link for link in _chain(recipe) if not inapplicable & set(link.members)), _chain(recipe)[-1])
    table = {name: [_directed(card[name], choice) for card in cards] for name in used.members}
    values = combine(used, table)
    added = []
    for card, value in zip(cards, values, strict=True):
        errors = (card[name].error for name in used.members if card[name].error is not None)
        error = card.error or (None if value is not None else next(errors, None))
        score = Score(recipe.name, value if error is None else None, error, details={"recipe": used.name})
        added.append(replace(card, scores={recipe.name: score, **card.scores}))
    return added, used


def _chain(recipe: Recipe) -> list[Recipe]:
    """List a recipe and its fallbacks."""
    links = [recipe]
    while (name := links[-1].fallback) is not None:
        links.append(get_recipe(name))
    return links


def _directed(score: Score, choice: Choice) -> float | None:
    if score.value is None:
        return None
    return score.value if choice.higher_is_better(score.name) else -score.value
