"""Sentences about results that you should read before you trust them."""

from collections import Counter
from collections.abc import Sequence

from lightning_zico.ranking import get_recipe
from lightning_zico.ranking.learned import FEWEST_LABELS
from lightning_zico.results.rows import (
    LEAST_AGREEMENT,
    REDUCTION_FACTOR,
    Agreement,
    FinalsHeld,
    HeldOutDifference,
    Lacking,
    Provenance,
    ReadingFacts,
    Row,
    reasons_of,
)
from lightning_zico.results.scores import NOT_APPLICABLE
from lightning_zico.texts import count, plural

# Above this tau, a ranking is reported as almost the same as the baseline's.
_SAME_RANKING = 0.9

# Most names listed in a note; a tie may have thousands of members.
_MOST_NAMES = 10

# Most notes on missing numbers; every column may have reasons of its own.
_MOST_MISSING = 3

# Number of a zoo's candidates to train before one is chosen.
_NUM_FINALISTS = 5

# A note names the layer scores that cover less than this share of a candidate's trainable weights.
LEAST_COVERED = 0.9


def leaderboard_notes(rows: Sequence[Row], provenance: Provenance) -> list[str]:
    """Describe what matters for trusting a ranking; `Leaderboard.notes` lists what that is."""
    num_candidates = provenance.get("head_of", len(rows))
    notes = []
    if len(rows) < num_candidates:
        first = "This is the first" if len(rows) == 1 else f"These are the first {len(rows)}"
        notes.append(f"{first} of {count(num_candidates, 'candidate')}.")
    if provenance.get("broke_off"):
        notes.append(
            f"The ranking was interrupted; it contains only the {count(num_candidates, 'candidate')} scored so far."
        )
    finals = provenance.get("finals")
    if finals:
        notes += _notes_on_finals(rows, finals)
    ranking = "the ranking by score" if finals else "this ranking"
    notes += notes_on_data(provenance)
    notes += _notes_on_repeats(rows, provenance)
    notes += _notes_on_ranking(provenance, ranking) + _notes_on_prior(provenance, ranking)
    notes += [f"{name}: {source}." for name, source in provenance.get("priors", {}).items()]
    if left_out := provenance.get("left_out_callbacks"):
        notes.append(
            "Hooks before the first training step did not run for these callbacks of the trainer: "
            f"{', '.join(left_out)}. They are Lightning's own or derived from its callbacks that watch training."
        )
    notes += _notes_on_saturated(provenance) + _notes_on_covered(provenance)
    notes += _notes_on_missing(rows, provenance) + _notes_on_process(provenance)
    return notes + _notes_on_pretrained(rows, provenance) + _recommend_finals(rows, provenance)


def search_notes(trials: Sequence[Row], provenance: Provenance) -> list[str]:
    """Describe what matters for trusting the result of a search."""
    errors = [row["error"] for row in trials if row["rank"] is None]
    rejected = provenance.get("num_rejected", 0)
    num_archs = provenance.get("head_of", len(trials))
    if len(trials) < num_archs:
        first = "This is the best" if len(trials) == 1 else f"These are the best {len(trials)}"
        notes = [f"{first} of {count(num_archs, 'arch')}."]
    else:
        scored = count(num_archs, "arch")
        notes = [f"{scored} scored, {len(errors)} without a score; {rejected:,} rejected unscored."]
    if provenance.get("broke_off"):
        notes.append("The search was interrupted.")
    if provenance.get("exhausted"):
        notes.append("It ended early: too many proposals in a row were over the budget or already scored.")
    if num_elsewhere := provenance.get("num_elsewhere"):
        notes.append(f"Archs that other processes are scoring: {num_elsewhere}.")
    notes += notes_on_data(provenance)
    for reason, num_times in Counter(errors).most_common(1):
        notes.append(f"Most frequent reason for a missing score ({num_times} of {len(errors)}): {reason}")
    return notes + _notes_on_saturated(provenance) + _notes_on_ranking(provenance, "this ranking")


def first_of_a_zoo(rows: Sequence[Row], provenance: Provenance) -> list[str]:
    """Return the names of the candidates to hold finals among, if some are of a zoo and no finals were held."""
    return _finalists(rows, provenance) if provenance.get("num_of_a_zoo") else []


def _finalists(rows: Sequence[Row], provenance: Provenance) -> list[str]:
    """Return the names of the first candidates, if there are several and no finals were held."""
    first = [row["name"] for row in rows if row["rank"] and row["rank"] <= _NUM_FINALISTS]
    return first if len(first) > 1 and "finals" not in provenance else []


def notes_on_data(provenance: Provenance) -> list[str]:
    """Return the notes on data with fewer batches than requested, or with batches that could not be made smaller."""
    notes = _if_there(note_on_reading(provenance.get("reading")))
    return notes + _if_there(note_on_batch_size(provenance.get("num_larger_batches"), provenance.get("batch_size")))


def note_on_reading(reading: ReadingFacts | None) -> str | None:
    """Describe how the batches were read if the training data had fewer than asked for; None if it had enough."""
    if reading is None:
        return None
    num = reading["num_in_a_pass"]
    had = f"The training data has {count(num, 'batch')}, but {reading['num_batches']} were requested"
    if not reading["are_copies"]:
        return f"{had}: it was read {count(reading['num_passes'], 'time')}, and each pass gave different batches."
    return (
        f"{had}. Every pass gives the same samples, so one batch stands for all: gradients vary only by what the "
        "training step draws itself, such as noise, windows or dropout."
    )


def note_on_batch_size(num_larger: int | None, batch_size: int | None) -> str | None:
    """Return a note if batches have more samples than requested, or an unknown number of them; otherwise None."""
    if not num_larger:
        return None
    are = count(num_larger, "batch was", "batches were")
    return (
        f"{are} scored whole, and not on `batch_size={batch_size}`: the samples could not be counted or cut out. A "
        "smaller batch size of the loader, or `num_samples=`, may make scoring faster."
    )


def _notes_on_repeats(rows: Sequence[Row], provenance: Provenance) -> list[str]:
    notes = []
    tied = [row["name"] for row in rows if row.get("tie") == 1]
    if len(tied) > 1:
        first = f"{'By score, the' if 'finals' in provenance else 'The'} first {len(tied)} are a tie"
        notes.append(f"{first} that these repeats cannot distinguish: {_list_names(tied)}.")
    counts = [row["num_repeats"] for row in rows if row.get("num_repeats")]
    if provenance.get("race") and counts and max(counts) == 1:
        notes.append(
            "With so few candidates and repeats, the race gave each candidate one repeat, so the ranking has no "
            "error bars."
        )
    if counts and min(counts) < max(counts):
        notes.append(
            f"Race: the first {counts.count(max(counts))} have {count(max(counts), 'repeat')}; the others were dropped "
            "with fewer, so their scores are not comparable with those of the first."
        )
    if provenance.get("repeats", 1) > 1 and (num_instances := provenance.get("num_instances")):
        notes.append(
            f"{num_instances} of the candidates were passed as built models and keep their "
            "weights: their repeats differ only in the batches."
        )
    if same := provenance.get("num_with_same_weights"):
        notes.append(
            f"{same} of the factories {plural(same, 'makes', 'make')} the same weights in every repeat, because "
            "of a seed or a file: the repeats differ only in the batches."
        )
    if equal := provenance.get("equal_repeats"):
        notes.append(
            f"The repeats of {_list_names(equal)} are equal: the weights are the same in each, and other batches give "
            f"the same `{provenance['rank_by']}`. They do not show how certain a rank is."
        )
    return notes


def _notes_on_saturated(provenance: Provenance) -> list[str]:
    notes = []
    for group in provenance.get("saturated", ()):
        is_one, more = len(group["proxies"]) == 1, group["more_samples"]
        are, cannot = ("is at its", "it cannot") if is_one else ("are at their", "they cannot")
        notes.append(
            f"{_list_names(group['proxies'])} {are} maximum for {group['count']} of "
            f"{count(group['num_scored'], 'candidate')} with {count(group['num_samples'], 'sample')}, so {cannot} tell "
            f"them apart. {f'Raise `{more}`' if more else 'Choose another proxy'}."
        )
    return notes


def _notes_on_covered(provenance: Provenance) -> list[str]:
    notes = []
    for group in provenance.get("covered", ()):
        note = f"{_list_names(group['proxies'])} looked at {100 * group['share']:.2g} % of "
        note += f"{group['name']}'s trainable weights"
        if rest := group["count"] - 1:
            note += f", and at less than {100 * LEAST_COVERED:.0f} % in {count(rest, 'other candidate')}"
        notes.append(f"{note}.")
    return notes


def _notes_on_missing(rows: Sequence[Row], provenance: Provenance) -> list[str]:
    num_scored = sum(row["score"] is not None for row in rows)
    # These are why a recipe was replaced, which has a note of its own.
    lacking = {
        entry["member"] for recipe in provenance.get("recipes", {}).values() for entry in recipe.get("lacking", ())
    }
    alike: dict[tuple[tuple[str, int], ...], list[str]] = {}
    for proxy, reasons in reasons_of(provenance).items():
        often = Counter({reason: len(names) for reason, names in reasons.items()}).most_common()
        if proxy not in lacking:
            alike.setdefault(tuple(often), []).append(proxy)
    ordered = sorted(alike.items(), key=lambda item: -sum(num for _, num in item[0]))
    notes = []
    for counts, proxies in ordered[:_MOST_MISSING]:
        missing, (reason, num_times) = sum(num for _, num in counts), counts[0]
        have = f"{_list_names(proxies)} {plural(len(proxies), 'has', 'have')}"
        among = f" (the most frequent of {len(counts)} reasons, {count(num_times, 'time')})" if len(counts) > 1 else ""
        notes.append(f"{have} no number for {missing} of {num_scored} scored candidates{among}: {reason}")
    if rest := sum(len(proxies) for _, proxies in ordered[_MOST_MISSING:]):
        notes.append(f"Numbers are missing in {count(rest, 'more column')}; `Leaderboard.missing` says why.")
    return notes


def _notes_on_process(provenance: Provenance) -> list[str]:
    changes = provenance.get("process_changes", {})
    named = [f"{name} ({', '.join(settings[:_MOST_NAMES])})" for name, settings in changes.items()]
    begin = "Settings of the whole process were changed while candidates were built or scored, and put back after each:"
    return [f"{begin} {_list_names(named)}."] if changes else []


def _recommend_finals(rows: Sequence[Row], provenance: Provenance) -> list[str]:
    first = _finalists(rows, provenance)
    if not first or not (provenance.get("num_of_a_zoo") or provenance.get("num_pretrained")):
        return []
    notes = []
    groups = [[row["name"] for row in rows if row["rank"] == rank] for rank in range(1, _NUM_FINALISTS + 1)]
    if "tie" not in rows[0] and (equal := [" = ".join(group) for group in groups if len(group) > 1]):
        notes.append(f"Equal scores: {', '.join(equal)}.")
    why = "These are models of a zoo: across families, the training recipe matters more than any proxy."
    if provenance.get("num_pretrained") == provenance.get("head_of", len(rows)):
        why = "No score of pretrained features knows what fine-tuning will change in them."
    notes.append(
        f"{why} Do not assume that the first is the best; train the first {len(first)} for a while: "
        f"`ZeroShotSelector(trainer=..., finalists={len(first)})` with these candidates: {', '.join(first)}."
    )
    return notes


def _notes_on_ranking(provenance: Provenance, ranking: str) -> list[str]:
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
            placed = _list_names(beside["names"])
            notes.append(
                f"{recipe['used']} does not apply to {placed}; these are placed among the others by {beside['used']} "
                f"({', '.join(beside['members'])}), at the same quantile of the scores{why}"
            )
    taus = {name: tau for name, tau in provenance.get("kendall_with", {}).items() if tau is not None}
    if taus:
        listed = ", ".join(f"{name} {tau:.2f}" for name, tau in taus.items())
        notes.append(f"Kendall's tau of {ranking} with the trivial baselines: {listed}.")
    alike = [f"{name} ({tau:.2f})" for name, tau in taus.items() if tau > _SAME_RANKING]
    if alike:
        notes.append(
            f"{ranking.capitalize()} adds little to counting weights: it is almost the same as by {', '.join(alike)}."
        )
    return notes


def _notes_on_prior(provenance: Provenance, ranking: str) -> list[str]:
    """Describe how close the ranking is to that by known numbers."""
    tau, rank_by = provenance.get("kendall_with_prior"), provenance.get("rank_by", "")
    used = provenance.get("recipes", {}).get(rank_by)
    if rank_by == "prior" or (used and "beside" not in used and used["members"] == ["prior"]):
        own = provenance.get("kendall_of_ridge_probe_with_prior")
        if own is None:
            return []
        return [
            f"{ranking.capitalize()} is the order of the known numbers (prior), which your data does not change. "
            f"Kendall's tau of ridge_probe, which looks at your data, with it: {own:.2f}."
        ]
    if tau is None:
        return []
    notes = [f"Kendall's tau of {ranking} with the known numbers (prior): {tau:.2f}."]
    if tau > _SAME_RANKING and provenance.get("num_pretrained"):
        notes.append(
            f"{ranking.capitalize()} is nearly the published order ({tau:.2f}): the data changed little in it."
        )
    return notes


def _notes_on_pretrained(rows: Sequence[Row], provenance: Provenance) -> list[str]:
    """Describe what matters for candidates that are pretrained, or should be."""
    num_pretrained, num_candidates = provenance.get("num_pretrained", 0), provenance.get("head_of", len(rows))
    if not num_pretrained:
        if not provenance.get("needs_pretrained"):
            return []
        return [
            f"`{provenance['rank_by']}` measures what candidates have learned; for untrained ones, its values are "
            "random. If yours are pretrained, say so with `Candidate(name, build, pretrained=True)`."
        ]
    notes = []
    default = get_recipe("default").name
    if num_pretrained < num_candidates:
        are = "candidate is" if num_pretrained == 1 else "candidates are"
        notes.append(
            f"{num_pretrained:,} {are} pretrained, the other {num_candidates - num_pretrained:,} not. No score "
            'compares both kinds; rank the pretrained ones by themselves, with `proxies="transfer"`.'
        )
    elif provenance.get("rank_by") == default:
        notes.append(
            f"All candidates are pretrained, and `{default}` was measured on untrained ones. Pass them as a list, or "
            '`proxies="transfer"`, to compare what they have learned.'
        )
    if (apart := provenance.get("held_out_difference")) is not None:
        notes.append(_note_on_difference(apart))
    return notes


def _note_on_difference(apart: HeldOutDifference) -> str:
    points, std_error = apart["points"], apart["std_error"]
    better = "better" if points >= 0 else "worse"
    how = f"{abs(points):.1f} ± {std_error:.1f} accuracy points {better} than" if points or std_error else "as good as"
    note = (
        f"By ridge_probe, {apart['first']} is {how} {apart['second']}: linear models on their features, each sample "
        f"predicted from the other {apart['num_samples'] - 1:,}; ± is one standard error."
    )
    is_clear = abs(points) > 2 * std_error
    return note if is_clear else f"{note} These samples cannot tell the two apart."


def _why_lacking(lacking: Sequence[Lacking]) -> str:
    """Return the end of a sentence that lists which members of a recipe have no number, and why: each reason once."""
    members: dict[tuple[str, str], list[str]] = {}
    for entry in lacking:
        others = f" and {entry['count'] - 1} more" if entry["count"] > 1 else ""
        often = f" (the most frequent of {entry['num_reasons']} reasons)" if entry["num_reasons"] > 1 else ""
        members.setdefault((f"{entry['name']}{others}{often}", entry["reason"]), []).append(entry["member"])
    reasons = []
    for (candidates, full_reason), names in members.items():
        is_undefined = full_reason.startswith(NOT_APPLICABLE)
        verb = plural(len(names), "has no number", "have no number") if is_undefined else "failed"
        reason = full_reason.removeprefix(f"{NOT_APPLICABLE}: ").rstrip(".")
        listed = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
        reasons.append(f"{listed} {verb} for {candidates}: {reason}")
    return f": {'; '.join(reasons)}." if reasons else "."


def _notes_on_finals(rows: Sequence[Row], finals: FinalsHeld) -> list[str]:
    num, epochs, learn = finals["finalists"], finals["final_epochs"], finals.get("learn", False)
    first_by = finals.get("first_by", "score") if learn else "score"
    who = f"the first {num} by {first_by}"
    if learn == "rank":
        who = f"{count(num, 'candidate')}, spread over the ranking by {first_by},"
    elif learn and num > FEWEST_LABELS:
        first = f"the first {FEWEST_LABELS} by {first_by}"
        who = f"{count(num, 'candidate')}, {first} and then the most promising by the results so far,"
    if finals.get("broke_off"):
        return [f"Finals of {who} were interrupted; those trained so far come first."]
    trained = f"{who} were trained for {count(epochs, 'epoch')}"
    if patience := finals.get("patience"):
        trained += f", or until {finals['monitor']} had not improved in {count(patience, 'validation')}"
    factor = finals.get("reduction_factor", REDUCTION_FACTOR)
    better = "better half" if factor == 2 else f"best 1 in {factor}"
    halving = f", then the {better} for {epochs} more, and so on" if finals["halving"] else ""
    end = "lowest" if finals["mode"] == "min" else "highest"
    notes = [f"Finals: {trained}{halving}; the {end} {finals['monitor']} won."]
    notes += _if_there(_note_on_time(finals))
    notes += [_note_on_agreement(own, finals) for own in finals.get("agreement", ()) if own["tau"] is not None]
    if len(tie := finals.get("tie", ())) > 1:
        sizes = {row["name"]: row.get("params") for row in rows if row["name"] in tie}
        known = {name: size for name, size in sizes.items() if size}
        is_known = len(known) == len(tie)  # not if fewer rows are shown
        least = f" {min(known, key=known.__getitem__)} has the fewest parameters of these." if is_known else ""
        seeds = count(finals["seeds"], "seed")
        notes.append(
            f"{count(len(tie), 'finalist')} are a tie that {seeds} cannot distinguish: {_list_names(tie)}.{least}"
        )
    if learn == "rank" and any(row.get("learned") is not None for row in rows):
        is_measured = finals.get("seeds", 1) > 1
        noise = "" if is_measured else " How noisy a result is was assumed; `final_seeds=2` measures it."
        notes.append(
            "`learned` is the rank by the first round that a candidate is expected to have among all, and its 95 % "
            f"interval, learned from the results of that round.{noise}"
        )
    elif learn == "rank":
        notes.append(f"Fewer than {FEWEST_LABELS} finalists have a result, so the order of all was not learned.")
    return notes


def _note_on_agreement(own: Agreement, finals: FinalsHeld) -> str:
    def after(num_rounds: int) -> str:
        # With patience, some were trained for fewer epochs.
        return f"round {num_rounds}" if "patience" in finals else count(num_rounds * finals["final_epochs"], "epoch")

    first, second = own["round"], own["round"] + 1
    note = (
        f"Kendall's tau between the order of {count(own['n'], 'finalist')} after {after(first)} and after "
        f"{after(second)} is {own['tau']:.2f} [{own['low']:.2f}, {own['high']:.2f}]"
    )
    tau, (_, num_rounds) = own["tau"] or 0.0, finals.get("rounds", (0, 0))
    least = finals.get("least_agreement", LEAST_AGREEMENT)
    advice = ": longer finals would be safer" if tau < max(least, LEAST_AGREEMENT) else ""
    kept = " No finalist was dropped." if tau < least and second < num_rounds else ""
    return f"{note}{advice}.{kept}"


def _note_on_time(finals: FinalsHeld) -> str | None:
    if "time_budget_s" not in finals:
        return None
    (held, planned), num, most = finals["rounds"], finals["finalists"], finals["most_finalists"]
    rounds = f", and for {held} of {count(planned, 'round')}" if finals.get("lacked_time") else ""
    seconds = finals["time_budget_s"]
    time = f"{seconds:,.0f}" if seconds >= 10 else f"{seconds:g}"
    return f"The time of {time} s was enough for {num} of {count(most, 'finalist')}{rounds}."


def _if_there(note: str | None) -> list[str]:
    return [] if note is None else [note]


def _list_names(names: Sequence[str]) -> str:
    """Return the first names in one line, and how many more there are."""
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return f"{', '.join(names[:_MOST_NAMES])}{more}"
