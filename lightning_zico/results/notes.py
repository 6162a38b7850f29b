"""Sentences about results that you should read before you trust them."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_zico.results.scores import NOT_APPLICABLE

# Above this tau, a ranking is reported as almost the same as the baseline's.
_SAME_RANKING = 0.9

# Most names listed in a note; a tie may have thousands of members.
MOST_NAMES = 10


def if_there(note: str | None) -> list[str]:
    """Return the note as a list, which is empty without a note."""
    return [] if note is None else [note]


def note_on_reading(reading: Mapping[str, Any] | None) -> str | None:
    """Describe how the batches were read if the training data had fewer than asked for; None if it had enough."""
    if reading is None:
        return None
    num = reading["num_in_a_pass"]
    had = f"The training data has {num} batch{'es' if num > 1 else ''}, but {reading['num_batches']} were requested"
    if not reading["are_copies"]:
        return f"{had}: it was read {reading['num_passes']} times, and each pass gave different batches."
    return (
        f"{had}. Every pass gives the same samples, so one batch stands for all: gradients vary only by what the "
        "training step draws itself, such as noise, windows or dropout."
    )


def notes_on_ranking(provenance: Mapping[str, Any], ranking: str) -> list[str]:
    """Describe what the recipes combine, and how close the ranking is to that of a trivial baseline."""
    notes = []
    for name, recipe in provenance.get("recipes", {}).items():
        members = f"{recipe['aggregate'] or 'the score'} of {', '.join(recipe['members'])}"
        why = _why_lacking(recipe.get("lacking", ()))
        if recipe["used"] != name:
            end = "." if "beside" in recipe else why
            notes.append(f"{name} fell back to {recipe['used']} ({members}) for all of these candidates{end}")
        elif name == provenance.get("rank_by"):
            notes.append(f"{name}: {members}.")
        if beside := recipe.get("beside"):
            more = f" and {len(beside['names']) - MOST_NAMES} more" if len(beside["names"]) > MOST_NAMES else ""
            placed = f"{', '.join(beside['names'][:MOST_NAMES])}{more}"
            notes.append(
                f"{recipe['used']} does not hold for {placed}; these are placed among the others by {beside['used']} "
                f"({', '.join(beside['members'])}), at the same quantile of the scores{why}"
            )
    taus = {name: tau for name, tau in provenance.get("kendall_with", {}).items() if tau is not None}
    if taus:
        said = ", ".join(f"{name} {tau:.2f}" for name, tau in taus.items())
        notes.append(f"Kendall's tau of {ranking} with the trivial baselines: {said}.")
    alike = [f"{name} ({tau:.2f})" for name, tau in taus.items() if tau > _SAME_RANKING]
    if alike:
        notes.append(
            f"{ranking.capitalize()} adds little to counting weights: it is almost the same as by {', '.join(alike)}."
        )
    return notes


def _why_lacking(lacking: Sequence[Mapping[str, Any]]) -> str:
    """Return the end of a sentence that lists which members of a recipe have no number, and why: each reason once."""
    members: dict[tuple[str, str], list[str]] = {}
    for said in lacking:
        others = f" and {said['count'] - 1} more" if said["count"] > 1 else ""
        often = f" (the most frequent of {said['num_reasons']} reasons)" if said["num_reasons"] > 1 else ""
        members.setdefault((f"{said['name']}{others}{often}", said["reason"]), []).append(said["member"])
    reasons = []
    for (whom, said_reason), names in members.items():
        is_undefined = said_reason.startswith(NOT_APPLICABLE)
        verb = ("does not hold" if len(names) == 1 else "do not hold") if is_undefined else "failed"
        reason = said_reason.removeprefix(f"{NOT_APPLICABLE}: ").rstrip(".")
        listed = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
        reasons.append(f"{listed} {verb} for {whom}: {reason}")
    return f": {'; '.join(reasons)}." if reasons else "."


def note_on_finals(finals: Mapping[str, Any]) -> str:
    """Describe how finals were held."""
    if finals.get("broke_off"):
        return f"Finals of the first {finals['finalists']} by score were interrupted; those trained so far come first."
    epochs = finals["final_epochs"]
    trained = f"the first {finals['finalists']} by score were trained for {epochs} epoch{'s' * (epochs > 1)}"
    halving = f", then the better half for {epochs} more, and so on" if finals["halving"] else ""
    end = "lowest" if finals["mode"] == "min" else "highest"
    return f"Finals: {trained}{halving}; the {end} {finals['monitor']} won."
