"""Facts that numbers depend on, as plain values that rankings and searches record."""

import platform
from collections.abc import Sequence

import lightning
import torch

from lightning_zico.__about__ import __version__
from lightning_zico._typing import Batch
from lightning_zico.bridge.data import Reading, Reread
from lightning_zico.ranking import Recipe, chain_of
from lightning_zico.results import Beside, Lacking, Provenance, ReadingFacts, ScoreCard, UsedRecipe, notes_on_data
from lightning_zico.scoring.choice import Used, lacking_of, trains


def versions() -> dict[str, str]:
    """Return the versions of this package and of its main dependencies."""
    return {
        "lightning_zico": __version__,
        "lightning": lightning.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def reading_facts(batches: Sequence[Batch]) -> ReadingFacts | None:
    """Return how batches were read if a loader had fewer than asked for; None if it had enough."""
    if not isinstance(batches, Reread):
        return None
    return {
        "num_batches": len(batches),
        "num_in_a_pass": batches.num_in_a_pass,
        "num_passes": batches.num_passes,
        "are_copies": batches.are_copies,
    }


def notes_on_reading(reading: Reading, batch_size: int | None, *, is_number_needed: bool = True) -> list[str]:
    """Return the notes on batches that were read, where no leaderboard shows them.

    Args:
        reading: The batches.
        batch_size: The largest number of samples in a batch that was asked for; None for the loader's own.
        is_number_needed: Whether it matters that there were fewer batches than requested.
    """
    facts = Provenance(num_larger_batches=reading.num_whole, batch_size=batch_size)
    if is_number_needed:
        facts["reading"] = reading_facts(reading.batches)
    return notes_on_data(facts)


def recipe_facts(used: Used, named: Recipe, cards: Sequence[ScoreCard]) -> UsedRecipe:
    """Describe the recipes that were used in place of the one that the user asked for.

    Args:
        used: The recipes that were combined.
        named: The recipe that the user asked for; its members that were not combined are ``dropped``.
        cards: The cards of all candidates. ``lacking`` lists the members of the recipe, or of a fallback that was
            skipped, without a number for some candidates that train, with the most frequent reason.
    """
    known = UsedRecipe(used=used.recipe.name, members=list(used.recipe.members), aggregate=used.recipe.aggregate)
    among = [card for card in cards if trains(card)]
    chain = chain_of(named)
    passed_by = chain[: chain.index(used.recipe) + (used.beside is not None)]
    members = dict.fromkeys(name for link in passed_by for name in link.members)
    lacking = [entry for name in members if (entry := _lacking(name, among)) is not None]
    if used.beside is not None:
        names = [card.name for card in among if not lacking_of(card).isdisjoint(used.recipe.members)]
        known["beside"] = Beside(used=used.beside.name, members=list(used.beside.members), names=names)
    known["dropped"] = [name for name in named.members if name not in used.recipe.members]
    if lacking:
        known["lacking"] = lacking
    return known


def _lacking(member: str, cards: Sequence[ScoreCard]) -> Lacking | None:
    reasons: dict[str, list[str]] = {}
    for card in cards:
        if card[member].value is None:
            reasons.setdefault(card[member].error or "no number", []).append(card.name)
    if not reasons:
        return None
    reason, names = max(reasons.items(), key=lambda item: len(item[1]))  # the first of equally frequent ones
    count = sum(map(len, reasons.values()))
    return {"member": member, "reason": reason, "name": names[0], "count": count, "num_reasons": len(reasons)}
