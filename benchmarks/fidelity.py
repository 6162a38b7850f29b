"""How well proxies and recipes predict accuracies after training, on public benchmarks and on a user's own tables.

README.md beside this file tells how.
"""

import argparse
import itertools
import json
import math
import os
import platform
import random
import statistics
import sys
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from contests import CONTESTS, OPPONENTS, Contest, enlist
from figures import Difference, Figures, Values, common, difference, figures_of, same_family_share, taken
from published import SOURCES, published
from rich.console import Console
from scores import NUM_TIMED, Cache, Protocol, Running, batches_for, cache_path, fill_scores, fill_seconds, versions
from speed import print_table
from tables import LOADERS, Table, add_folders, user_table

from lightning_zico import list_proxies
from lightning_zico.errors import ZiCoError
from lightning_zico.proxies import BASELINES
from lightning_zico.ranking import Interval, kendall
from lightning_zico.results import NOT_APPLICABLE
from lightning_zico.scoring.checks import check_batches
from lightning_zico.scoring.choice import Choice, Used, choose_applicable

Record: TypeAlias = dict[str, Any]


# --- one benchmark -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Study:
    """The scores of one benchmark.

    Args:
        table: The candidates that were drawn.
        protocol: How they were scored.
        scores: One score per candidate, by proxy or recipe; higher is better. A candidate that failed has the lowest
            score of a proxy, and so has an untrainable one without a number. None where a proxy does not apply to
            another. Recipes fall back as they do in a leaderboard.
        errors: Number of candidates without a score and the most frequent reason, by proxy, and the fallback that was
            used, by recipe; no entry if there is none.
        seconds: Median seconds of scoring a candidate with only one proxy or recipe, by name; ``""`` is all together.
    """

    table: Table
    protocol: Protocol
    scores: Mapping[str, Values]
    errors: Mapping[str, str]
    seconds: Mapping[str, float]

    def truths(self, target: str) -> list[float]:
        """List the accuracy of each candidate after training."""
        return [row.truths[target] for row in self.table.rows]

    @property
    def families(self) -> list[str | None]:
        """List the family of each candidate."""
        return [row.family for row in self.table.rows]

    def figures(self, name: str, target: str) -> Figures:
        """Compare a score with a target."""
        return figures_of(self.scores[name], self.truths(target), self.families)

    def difference(self, first: str, second: str, targets: Sequence[str] | None = None) -> Difference:
        """Compare any two scores, by the mean over targets (None for all)."""
        truths = [self.truths(target) for target in targets or self.table.targets]
        return difference(self.scores[first], self.scores[second], truths)

    def mean_tau(self, name: str) -> float | None:
        """Average tau over the targets; None if it has no value for one."""
        idxs = common(self.scores[name])
        scores = taken(self.scores[name], idxs)
        taus = [kendall(scores, taken(self.truths(target), idxs)) for target in self.table.targets]
        known = [tau for tau in taus if tau is not None]
        return statistics.fmean(known) if len(known) == len(taus) else None


def entered(table: Table, contest: Contest) -> Table:
    """Draw the candidates of a contest."""
    others = [other for other in contest.unlike if table.benchmark in other.samples]
    seen = {row.name for other in others for row in entered(table, other).rows}
    left = tuple(row for row in table.rows if row.name not in seen) or table.rows
    return sampled(replace(table, rows=left), contest.samples[table.benchmark], contest.seed)


def sampled(table: Table, num_samples: int | None, seed: int) -> Table:
    """Draw candidates; all of them, in the table's order, if there are no more than that."""
    if num_samples is None or num_samples >= len(table.rows):
        return table
    return replace(table, rows=tuple(random.Random(seed).sample(table.rows, num_samples)))


def studied(table: Table, choice: Choice, protocol: Protocol, kept: Cache, sets: Mapping[str, str]) -> Study:
    """Collect the cached scores of a table's candidates."""
    scores: dict[str, Values] = {}
    reasons: dict[str, Counter[str]] = {}
    failed: dict[str, set[int]] = {}
    for proxy in choice.proxies:
        sign = 1 if proxy.higher_is_better else -1
        known = [kept.score(row.name, proxy.name) for row in table.rows]
        scores[proxy.name] = [None if value is None else sign * value for value in known]
        why = {idx: error for idx, row in enumerate(table.rows) if (error := kept.error(row.name, proxy.name))}
        reasons[proxy.name] = Counter(why.values())
        failed[proxy.name] = {idx for idx, error in why.items() if not error.startswith(NOT_APPLICABLE)}
    dead = {idx for idx, row in enumerate(table.rows) if row.name in kept.untrainable}
    alive = [idx for idx in range(len(table.rows)) if idx not in dead]
    lacking = [{name for name, values in scores.items() if values[idx] is None} for idx in alive]
    used = {name: choose_applicable(lacking, recipe) for name, recipe in choice.recipes.items()}
    living = {
        name: [None if idx in dead else value for idx, value in enumerate(values)] for name, values in scores.items()
    }
    by_recipe = {name: with_last(one.values(living), dead) for name, one in used.items()}
    scores = by_recipe | {name: with_last(values, failed[name] | dead) for name, values in scores.items()}
    scores |= {name: [row.references[name] for row in table.rows] for name in table.rows[0].references}
    errors = {
        name: f"{counter.total()} candidates have no score, mostly: {counter.most_common(1)[0][0]}"
        for name, counter in reasons.items()
        if counter
    }
    errors |= {name: note for name, one in used.items() if (note := _fallback_note(name, one)) is not None}
    timed = {
        name: [kept.seconds[row.name][joined] for row in table.rows[:NUM_TIMED] if joined in kept.seconds[row.name]]
        for name, joined in sets.items()
    }
    return Study(table, protocol, scores, errors, {name: statistics.median(s) for name, s in timed.items() if s})


def _fallback_note(name: str, used: Used) -> str | None:
    """Return which recipe ranks in place of another, or places some candidates; None if the recipe ranks alone."""
    if used.recipe.name != name:
        return f"{used.recipe.name} ranks in its place."
    return None if used.beside is None else f"{used.beside.name} places the candidates to which it does not apply."


def with_last(values: Values, failed: Container[int]) -> Values:
    """Place failed candidates last, as a leaderboard does; those to which a score does not apply are left out."""
    lowest = min((value for value in values if value is not None), default=0.0)
    last = math.nextafter(lowest, -math.inf)
    return [last if value is None and idx in failed else value for idx, value in enumerate(values)]


def study(
    table: Table, choice: Choice, protocol: Protocol, running: Running, folder: Path, *, with_times: bool = True
) -> Study:
    """Compute missing scores, and collect all of them.

    Args:
        table: The candidates that were drawn.
        choice: Proxies and recipes.
        protocol: How candidates are scored.
        running: Settings of the worker processes.
        folder: The folder of the caches.
        with_times: Also measure the time of each proxy and recipe by itself.
    """
    kept = Cache(cache_path(folder, table, protocol))
    proxies = [proxy.name for proxy in choice.proxies]
    fill_scores(kept, table, protocol, proxies, running)
    sets = {"": ",".join(proxies)} | {proxy: proxy for proxy in proxies}
    sets |= {name: ",".join(recipe.members) for name, recipe in choice.recipes.items()}
    if with_times:
        fill_seconds(kept, table, protocol, list(dict.fromkeys(sets.values())), running)
    return studied(table, choice, protocol, kept, sets)


# --- what is printed and kept --------------------------------------------------------------------


def signed(value: float | None, interval: Interval | None, sign: str = "") -> str:
    """Write a number and its interval."""
    if value is None:
        return "-"
    ends = f" [{interval.low:{sign}.2f}, {interval.high:{sign}.2f}]" if interval else ""
    return f"{value:{sign}.3f}{ends}"


def number(value: float | None, form: str = ".3g") -> str:
    """Write a number."""
    return "-" if value is None else f"{value:{form}}"


def best_first(taus: Mapping[str, float | None]) -> list[str]:
    """Order names by tau; those without one are the last."""
    known = {name: -math.inf if tau is None else tau for name, tau in taus.items()}
    return sorted(known, key=lambda name: known[name], reverse=True)


def print_target(console: Console, own: Study, target: str, figures: Mapping[str, Figures]) -> None:
    """Print how well each score predicts one target, beside published results."""
    printed = published(own.table.benchmark, target)
    has_families = any(row.family for row in own.table.rows)
    columns = ["score", "n", "Kendall's tau", "Spearman's rho", "nDCG@10 %", "regret@1", "regret@5", "ms alone"]
    rows = []
    for name in best_first({name: f.tau for name, f in figures.items()}):
        f = figures[name]
        cells = [name, str(f.n), signed(f.tau, f.tau_interval), signed(f.rho, f.rho_interval), number(f.ndcg, ".3f")]
        cells += [number(f.regret_1), number(f.regret_5), number(_ms(own.seconds.get(name)), ".0f")]
        cells += [number(f.same_family, ".3f")] if has_families else []
        rows.append([*cells, str(printed.get(name, ""))])
    columns += ["same family"] if has_families else []
    print_table(console, f"{own.table.benchmark}, {target}", [*columns, "published tau / rho"], rows)
    for key in sorted({entry.source for name, entry in printed.items() if name in figures}):
        say(console, f"{key}: {SOURCES[key]}")


def print_differences(console: Console, target: str, differences: Mapping[str, Mapping[str, Difference]]) -> None:
    """Print the difference of the requested scores' tau from that of each trivial baseline."""
    title = f"{target}: tau minus a baseline's, same candidates and resamples (*: the interval excludes zero)"
    rows = [[name, *(told(row[baseline]) for baseline in BASELINES)] for name, row in differences.items()]
    print_table(console, title, ["score", *BASELINES], rows)


def told(gap: Difference) -> str:
    """Write a difference, its interval, and a star if that excludes zero."""
    return signed(gap.value, gap.interval, "+") + (" *" if gap.excludes_zero else "")


def over_spaces(studies: Sequence[Study], name: str) -> tuple[float, float] | None:
    """Compute a score's lowest tau and the mean of its taus on the search spaces; None if one has no value."""
    taus = [own.mean_tau(name) for own in studies if own.table.is_search_space]
    known = [tau for tau in taus if tau is not None]
    return (min(known), statistics.fmean(known)) if taus and len(known) == len(taus) else None


def print_overview(console: Console, studies: Sequence[Study], names: Sequence[str]) -> None:
    """Print the mean tau of each score by benchmark, and the lowest and the mean of the search spaces'."""
    rows, worst = {}, {}
    for name in names:
        taus = [number(own.mean_tau(name), ".3f") for own in studies]
        lowest, mean = over_spaces(studies, name) or (None, None)
        rows[name] = [name, *taus, number(lowest, ".3f"), number(mean, ".3f")]
        worst[name] = lowest
    columns = ["score", *(own.table.benchmark for own in studies), "worst space", "mean of the spaces"]
    print_table(console, "Kendall's tau, mean over the targets", columns, [rows[name] for name in best_first(worst)])


def not_surely_behind(studies: Sequence[Study], names: Sequence[str]) -> list[str]:
    """Order the contestants whose worst case may be as good as the best one by their mean over the search spaces.

    A contestant is left out if the interval of its tau minus that of the contestant with the best worst case lies
    below zero on the space on which it is worst.
    """
    known = {name: over for name in names if (over := over_spaces(studies, name)) is not None}
    leader = max(known, key=lambda name: known[name])
    left = []
    for name, (lowest, _) in known.items():
        own = next(s for s in studies if s.table.is_search_space and s.mean_tau(name) == lowest)
        interval = own.difference(name, leader).interval
        if name == leader or interval is None or interval.high >= 0:
            left.append(name)
    return sorted(left, key=lambda name: known[name][1], reverse=True)


def nowhere_surely_behind(studies: Sequence[Study], contestants: Sequence[str]) -> list[str]:
    """Order the contestants by their mean, without those that a baseline is surely ahead of on any benchmark."""
    means = {}
    for name in contestants:
        gaps = [own.difference(name, opponent).interval for own in studies for opponent in OPPONENTS]
        taus = [own.mean_tau(name) for own in studies]
        if None not in taus and not any(gap is not None and gap.high < 0 for gap in gaps):
            means[name] = statistics.fmean(tau for tau in taus if tau is not None)
    return sorted(means, key=lambda name: means[name], reverse=True)


def with_kinds(own: Study, contest: Contest) -> Study:
    """Add the contestants that depend on whether candidates are transformers."""
    which = int(any(value is not None for value in own.scores.get("head_confidence", [])))
    return replace(
        own, scores={**own.scores, **{name: own.scores[both[which]] for name, both in contest.by_kind.items()}}
    )


def print_contest(console: Console, studies: Sequence[Study], contest: Contest) -> Record:
    """Print a comparison of the contestants, and return the figures."""
    print_overview(console, studies, contest.contestants)
    left = not_surely_behind(studies, contest.contestants)
    say(console, f"Not significantly behind in the worst case, best mean first: {', '.join(left)}.")
    ahead = nowhere_surely_behind(studies, contest.contestants)
    say(console, f"Nowhere significantly behind {' or '.join(OPPONENTS)}, best mean first: {', '.join(ahead)}.")
    rows, kept = [], []
    opponents = dict.fromkeys([*OPPONENTS, contest.incumbent])
    for name, own in itertools.product(contest.contestants, studies):
        gaps = {opponent: own.difference(name, opponent) for opponent in opponents}
        share = same_family_share(own.scores[name], own.truths(own.table.targets[0]), own.families)
        tau, n = own.mean_tau(name), len(common(own.scores[name]))
        cells = [f"{name}, {own.table.benchmark}", str(n), number(tau, ".3f"), *map(told, gaps.values())]
        rows.append([*cells, number(share, ".3f")])
        record = {"contestant": name, "benchmark": own.table.benchmark, "n": n, "tau": tau, "same_family": share}
        kept.append(record | {f"minus_{opponent}": asdict(gap) for opponent, gap in gaps.items()})
    columns = ["contestant", "n", "tau", *(f"minus {opponent}'s" for opponent in opponents), "same family"]
    print_table(
        console, "Mean tau over the targets, and differences on the same candidates (*: excludes zero)", columns, rows
    )
    return {"contest": kept, "not_surely_behind": left, "nowhere_surely_behind": ahead}


def report(console: Console, own: Study, compared: Sequence[str]) -> Record:
    """Print all tables of a benchmark, and compare the names in ``compared`` with the baselines; return the figures."""
    targets = {}
    for target in own.table.targets:
        figures = {name: own.figures(name, target) for name in own.scores}
        print_target(console, own, target, figures)
        gaps = {name: {other: own.difference(name, other, [target]) for other in BASELINES} for name in compared}
        if gaps:
            print_differences(console, target, gaps)
        targets[target] = {
            "scores": {name: asdict(f) | {"ms_alone": _ms(own.seconds.get(name))} for name, f in figures.items()},
            "minus_baselines": {name: {other: asdict(gap) for other, gap in row.items()} for name, row in gaps.items()},
        }
    for name, reason in own.errors.items():
        say(console, f"{name}: {reason}")
    return {"targets": targets, "ms_together": _ms(own.seconds.get(""))}


def introduce(console: Console, own: Study, num_available: int) -> None:
    """Print what was scored, and how."""
    protocol = own.protocol
    drawn = f"{len(own.table.rows)} of {num_available} candidates, seed {protocol.seed}"
    say(console, f"\n{own.table.benchmark}: {drawn}; {protocol.num_batches} batches of {protocol.batch_size}.")
    say(console, own.table.remark)
    say(console, "In brackets: 95 % intervals of 1000 resamples of the candidates. Regrets are in the target's unit.")
    if "" in own.seconds:
        timed = f"median of {min(NUM_TIMED, len(own.table.rows))} candidates, one thread"
        say(console, f"All requested scores together take {own.seconds['']:.2f} s per candidate ({timed}).")


def say(console: Console, line: str) -> None:
    """Print a line unchanged."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def keep(path: Path, studies: Sequence[Study], record: Record) -> None:
    """Write figures to a file, with the settings that they depend on."""
    protocols = {
        own.table.benchmark: asdict(own.protocol)
        | {
            "images": own.protocol.images.name if own.table.rows[0].vocab_size is None else None,
            "num_candidates": len(own.table.rows),
            "versions": versions(own.table),
        }
        for own in studies
    }
    machine = {"num_cpus": os.cpu_count(), "python": platform.python_version()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"protocols": protocols, "machine": machine, **record}, indent=1) + "\n")


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1000 * seconds


# --- the command line ----------------------------------------------------------------------------


def names_of(text: str) -> list[str]:
    """Split names at commas; ``all`` stands for all proxies, and each name is listed once."""
    words = [word.strip() for word in text.split(",")]
    return list(dict.fromkeys(name for word in words for name in (list_proxies() if word == "all" else [word])))


def compared_of(text: str, choice: Choice) -> list[str]:
    """List the recipes, and the proxies that were named explicitly, without the baselines."""
    named = [word.strip() for word in text.split(",")]
    return [name for name in choice.columns if name in choice.recipes or (name in named and name not in BASELINES)]


def positive(text: str) -> int:
    """Read a whole number from 1."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    what = made.add_mutually_exclusive_group()
    what.add_argument("--benchmark", action="append", choices=LOADERS, help="may be repeated; default nas-bench-201")
    what.add_argument("--table", type=Path, help="instead: a table (CSV) of your own, with a column `arch`")
    what.add_argument("--contest", choices=CONTESTS, help="instead: fixed contestants on fixed benchmarks")
    made.add_argument("--space", help="search space of the table's archs, such as plainnet")
    made.add_argument("--resolution", type=positive, default=32, help="size of the table's images, in pixels")
    made.add_argument("--target", action="append", default=[], help="may be repeated; default all of a benchmark")
    made.add_argument("--sample", type=positive, default=300, help="candidates to draw from each table")
    made.add_argument("--seed", type=int, default=777)
    made.add_argument("--proxies", default="default,zico", help="proxies and recipes, joined by commas; default, all")
    made.add_argument("--batch-size", type=positive, default=16)
    made.add_argument("--num-batches", type=positive, default=2)
    made.add_argument("--workers", type=positive, default=1, help="processes, each with one thread")
    made.add_argument("--timeout", type=float, default=600.0, help="time limit for one candidate, in seconds")
    made.add_argument("--retry", action="store_true", help="score failed candidates again")
    add_folders(made)
    return made


def loaded(arguments: argparse.Namespace) -> list[Table]:
    """Read the requested tables.

    Raises:
        ValueError: If a table of the user's own is given without its space, or a target does not exist.
    """
    if arguments.table:
        if not arguments.space:
            raise ValueError("Name the space of the table's archs with `--space`.")
        return [user_table(arguments.table, arguments.space, arguments.target, arguments.resolution)]
    names = list(CONTESTS[arguments.contest].samples) if arguments.contest else arguments.benchmark or ["nas-bench-201"]
    targets = [] if arguments.contest else arguments.target
    return [LOADERS[name](arguments.data).asked_for(targets) for name in dict.fromkeys(names)]


def protocol_of(arguments: argparse.Namespace, table: Table) -> Protocol:
    """Return the protocol by which a table's candidates are scored."""
    images = arguments.data / "cifar10_subset.npz"
    if arguments.contest:
        contest = CONTESTS[arguments.contest]
        return Protocol(images, contest.batch_sizes.get(table.benchmark, Protocol.batch_size), seed=contest.seed)
    return Protocol(images, arguments.batch_size, arguments.num_batches, arguments.seed)


def main(words: Sequence[str] | None = None) -> None:
    """Score, compare, print and save."""
    arguments = (usage := parser()).parse_args(words)
    contest = CONTESTS.get(arguments.contest)
    if contest:
        enlist(contest)
    asked = contest.scored if contest else names_of(arguments.proxies)
    try:
        choice = Choice.of(asked, with_baselines=True)
        tables = loaded(arguments)
        protocols = [protocol_of(arguments, table) for table in tables]
        for table, protocol in zip(tables, protocols, strict=True):
            check_batches(batches_for(table.rows[0], protocol), choice.proxies, "batch")
    except (ZiCoError, OSError, ModuleNotFoundError, ValueError) as error:
        usage.error(str(error))
    console = Console(width=None if Console().is_terminal else 200)  # a file or a pipe has no width: nothing is cut
    running = Running(arguments.workers, arguments.timeout, arguments.retry)
    studies = []
    for table, protocol in zip(tables, protocols, strict=True):
        drawn = entered(table, contest) if contest else sampled(table, arguments.sample, protocol.seed)
        own = study(drawn, choice, protocol, running, arguments.cache, with_times=not contest)
        studies.append(with_kinds(own, contest) if contest else own)
        introduce(console, own, len(table.rows))
        if not contest:
            record = report(console, own, compared_of(arguments.proxies, choice))
            keep(arguments.results / f"{table.benchmark}.json", [own], record)
    if contest:
        keep(arguments.results / f"contest-{arguments.contest}.json", studies, print_contest(console, studies, contest))
    elif len(studies) > 1:
        print_overview(console, studies, list(studies[0].scores))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("Stopped. The same command goes on from here.")
