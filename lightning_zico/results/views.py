"""Rows of results as what `lightning_zico.report` draws: figures, tables and pages of plain values."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from lightning_zico.ranking import first_front, kendall_where_both
from lightning_zico.report.figures import (
    MOST_DOTS,
    MOST_NAMES,
    Agreement,
    Figure,
    FinalDot,
    Finals,
    History,
    Layers,
    ProfileLine,
    Profiles,
    RankDot,
    Ranks,
    TradeOff,
    TradeOffDot,
    TrialDot,
)
from lightning_zico.report.page import Detail, Page
from lightning_zico.report.table import Column, Table, number
from lightning_zico.results.rows import (
    FINAL_COLUMNS,
    HYPERPARAMETER,
    SEED_COLUMNS,
    Provenance,
    Row,
    as_candidates,
    columns_of,
    hyperparameter_columns,
    margin_of,
    proxies_of,
    rank_key,
    ranks_of,
    reasons_of,
)
from lightning_zico.results.scores import ScoreCard
from lightning_zico.texts import shortened

FigureKind: TypeAlias = Literal["ranks", "pareto", "agreement", "profiles", "finals"]
SearchFigureKind: TypeAlias = Literal["history", "pareto", "agreement", "profiles"]

# Names of costs in figures, by column.
_COSTS = {"macs": "MACs", "cost_macs": "MACs", "latency": "latency in seconds"}
# Columns of which the lowest numbers are the best ones, or come first.
_LOWER_FIRST = {
    *("rank", "rank_low", "rank_high", "tie", "final_rank", "learned", "learned_low", "learned_high"),
    *("std_error", "final_std_error", "macs", "params", "latency", "seconds"),
}


def deciding_score(provenance: Provenance) -> str:
    """Return the name of the score that decides."""
    return str(provenance.get("rank_by", "score"))


def with_score(rows: Sequence[Row]) -> list[Row]:
    """List the rows with a score, best first, including candidates that failed in finals."""
    return [row for row in rows if row["score"] is not None]


def ranks_by_score(rows: Sequence[Row], provenance: Provenance) -> list[int]:
    """Rank the rows with a score as the leaderboard did before any finals: 1 is best, equal scores share a rank.

    Returns:
        One rank for each of `with_score`.
    """
    higher_is_better = provenance.get("higher_is_better", True)
    keys = [rank_key(row["score"], row.get("num_repeats"), higher_is_better) for row in with_score(rows)]
    return [rank for rank in ranks_of(keys) if rank is not None]


def ranks(rows: Sequence[Row], provenance: Provenance) -> Ranks:
    """Show the ranks by score of the first candidates, with their intervals."""
    pairs = list(zip(with_score(rows), ranks_by_score(rows, provenance), strict=True))
    dots = tuple(
        RankDot(row["name"], rank, row["score"], row.get("rank_low"), row.get("rank_high"), row.get("p_best"))
        for row, rank in pairs[:MOST_NAMES]
    )
    return Ranks(deciding_score(provenance), dots, len(pairs))


def trade_off(rows: Sequence[Row], provenance: Provenance, cost: str = "macs") -> TradeOff:
    """Show the score against a cost, on the candidates that have both.

    If they are many, only the first ones by score are shown, and all of the front.

    Args:
        rows: Rows of a leaderboard.
        provenance: Its provenance.
        cost: Name of the column with the cost; lower is better.

    Raises:
        ValueError: If there is no such column.
    """
    if rows and cost not in proxies_of(rows):
        columns = ", ".join(proxies_of(rows)) or "none"
        raise ValueError(f"Invalid cost='{cost}': this leaderboard has no such column. Expected one of {columns}.")
    with_cost = [row for row in with_score(rows) if row[cost] is not None]
    higher_is_better = provenance.get("higher_is_better", True)
    sign = 1 if higher_is_better else -1
    front = first_front([(sign * row["score"], -row[cost]) for row in with_cost])
    shown = sorted({*range(min(len(with_cost), MOST_DOTS)), *front})
    position = {idx: drawn_idx for drawn_idx, idx in enumerate(shown)}
    return TradeOff(
        deciding_score(provenance),
        _COSTS.get(cost, cost.removeprefix("cost_")),
        tuple(TradeOffDot(row["name"], row[cost], row["score"], row.get("std_error")) for row in _at(with_cost, shown)),
        tuple(position[idx] for idx in sorted(front, key=lambda idx: with_cost[idx][cost])),
        len(with_cost),
        higher_is_better,
    )


def agreement(rows: Sequence[Row], provenance: Provenance) -> Agreement:
    """Compare every two columns by Kendall's tau-b, on the candidates that have both.

    The ranking (by score, before any finals) comes first, as negative ranks; other columns are used as
    they are, even if lower is better.
    """
    columns: dict[str, list[float | None]] = {"ranking": [-float(rank) for rank in ranks_by_score(rows, provenance)]}
    for name in proxies_of(rows):
        if name != deciding_score(provenance):
            columns[name] = [row[name] for row in with_score(rows)]
    taus = tuple(tuple(kendall_where_both(a, b) for b in columns.values()) for a in columns.values())
    return Agreement(tuple(columns), taus)


def profiles(rows: Sequence[Row], provenance: Provenance) -> Profiles:
    """Show the first candidates by score across all columns, each by its position in the order of the column.

    The ranking (by score, before any finals) comes first, the best on top; in other columns the highest number is on
    top, even if lower is better.
    """
    pairs = zip(with_score(rows), ranks_by_score(rows, provenance), strict=True)
    first = sorted(pairs, key=lambda pair: pair[1])[:MOST_NAMES]
    some, places = [row for row, _ in first], [rank for _, rank in first]
    columns: dict[str, list[float | None]] = {"ranking": [-float(rank) for rank in places]}
    for name in proxies_of(rows):
        if name != deciding_score(provenance):
            columns[name] = [row[name] for row in some]
    heights = [_heights(values) for values in columns.values()]
    shown: dict[str, list[float | None]] = {**columns, "ranking": [float(rank) for rank in places]}
    lines = tuple(
        ProfileLine(row["name"], places[idx], tuple(v[idx] for v in shown.values()), tuple(h[idx] for h in heights))
        for idx, row in enumerate(some)
    )
    return Profiles(deciding_score(provenance), tuple(columns), lines, len(with_score(rows)))


def finals(rows: Sequence[Row], provenance: Provenance) -> Finals:
    """Show the results of training the finalists.

    Raises:
        ValueError: If there were no finals.
    """
    held = provenance.get("finals")
    if held is None:
        raise ValueError("This leaderboard has no finals: call `fit` with `finalists=` above 1 first.")
    dots = tuple(
        FinalDot(row["name"], row["final"], row["final_epochs"], rank)
        for row, rank in zip(with_score(rows), ranks_by_score(rows, provenance), strict=True)
        if row.get("final_epochs") is not None
    )
    return Finals(held["monitor"], held["mode"] == "min", dots)


def history(trials: Sequence[Row], provenance: Provenance) -> History:
    """Show how a search went; if there are very many trials, only one of every few is shown."""
    ranked = [row for row in trials if row["rank"] is not None]
    shown = ranked[:: -(-len(ranked) // MOST_DOTS) or 1]
    better: list[Row] = []
    for row in ranked:
        if not better or row["rank"] < better[-1]["rank"]:
            better.append(row)
    dots, best = (tuple(TrialDot(row["trial"], row["score"], row["arch"]) for row in part) for part in (shown, better))
    return History(deciding_score(provenance), dots, best, len(trials), len(ranked))


def figure_of(kind: FigureKind, rows: Sequence[Row], provenance: Provenance, cost: str = "macs") -> Figure:
    """Return a figure of a leaderboard by its name.

    Raises:
        ValueError: If there is no such figure, or the leaderboard lacks what it shows.
    """
    if kind == "pareto":
        return trade_off(rows, provenance, cost)
    if kind == "ranks":
        return ranks(rows, provenance)
    if kind == "agreement":
        return agreement(rows, provenance)
    if kind == "profiles":
        return profiles(rows, provenance)
    if kind == "finals":
        return finals(rows, provenance)
    raise ValueError(f"Invalid kind={kind!r}: expected one of ranks, pareto, agreement, profiles, finals.")


def search_figure_of(kind: SearchFigureKind, trials: Sequence[Row], provenance: Provenance) -> Figure:
    """Return a figure of a search by its name.

    Raises:
        ValueError: If there is no such figure.
    """
    if kind == "history":
        return history(trials, provenance)
    if kind == "pareto":
        return trade_off(as_candidates(trials), provenance, next(iter(_costs_of(trials, provenance)), "cost_macs"))
    if kind == "agreement":
        return agreement(as_candidates(trials), provenance)
    if kind == "profiles":
        return profiles(as_candidates(trials), provenance)
    raise ValueError(f"Invalid kind={kind!r}: expected one of history, pareto, agreement, profiles.")


def page(
    rows: Sequence[Row],
    provenance: Provenance,
    notes: Sequence[str],
    layers: Layers | None,
    cards: Mapping[str, ScoreCard],
) -> Page:
    """Return the page of a leaderboard with the figures that it has numbers for.

    Args:
        rows: Rows of a leaderboard.
        provenance: Its provenance.
        notes: Its notes.
        layers: Layers of one candidate to draw; None for none.
        cards: Score cards of the candidates for the details, by name.
    """
    some = with_score(rows)
    figures: list[Figure] = [ranks(rows, provenance)] if some else []
    if any(row.get("macs") is not None for row in some):
        figures.append(trade_off(rows, provenance))
    if "finals" in provenance and (held := finals(rows, provenance)).dots:
        figures.append(held)
    if layers is not None:
        figures.append(layers)
    if some:
        figures += _across(rows, provenance)
    return _page(f"Ranking by {deciding_score(provenance)}", notes, rows, figures, provenance, cards)


def search_page(
    trials: Sequence[Row],
    provenance: Provenance,
    notes: Sequence[str],
    layers: Layers | None,
    cards: Mapping[str, ScoreCard],
) -> Page:
    """Return the page of a search: its history, the score against costs, and the agreement; arguments as for `page`."""
    rows = as_candidates(trials)
    figures: list[Figure] = []
    if with_score(rows):
        fronts = [trade_off(rows, provenance, cost) for cost in _costs_of(trials, provenance)]
        figures = [history(trials, provenance), *fronts, *_across(rows, provenance)]
    if layers is not None:
        figures.append(layers)
    space = f"of {provenance['space']} " if "space" in provenance else ""
    return _page(f"Search {space}by {deciding_score(provenance)}", notes, rows, figures, provenance, cards)


def table(
    rows: Sequence[Row], provenance: Provenance, notes: Sequence[str], proxies: Sequence[str], title: str | None = None
) -> Table:
    """Return a leaderboard as a table, best first, with the reasons of the failed candidates and its notes below.

    If candidates were scored in several repeats, the ranked score has its standard error beside it, and the names are
    followed by the 95 % interval of the rank, the probability of being the best, the number of the tie group if it has
    more than one member, and the number of repeats if they differ.

    Args:
        rows: Rows of a leaderboard.
        provenance: Its provenance.
        notes: Its notes.
        proxies: Names of the proxies to show.
        title: Title above the table; None to name the ranked score.
    """
    decisive = deciding_score(provenance)
    columns = [
        Column("rank", tuple(str(row["rank"] or "-") for row in rows), is_needed=True),
        Column("name", tuple(row["name"] for row in rows), is_text=True, is_needed=True),
    ]
    for final in (column for column in columns_of(rows) if column in FINAL_COLUMNS + SEED_COLUMNS):
        cells = tuple("-" if row[final] is None else f"{row[final]:.4g}" for row in rows)
        columns.append(Column(final, cells, is_needed=final == "final"))
    if "learned" in columns_of(rows):
        columns += [Column(name, cells) for name, cells in _finals_columns(rows).items()]
    for name in hyperparameter_columns(rows):
        cells = tuple("-" if row[name] is None else str(row[name]) for row in rows)
        plain = name.removeprefix(HYPERPARAMETER)
        columns.append(Column(name if plain in rows[0] else plain, cells))
    columns += [Column(name, tuple(cells)) for name, cells in _uncertainty(rows).items()]
    # A ranking by something that is no column, as made by hand, shows the score itself.
    for proxy in proxies if decisive in proxies else ("score", *proxies):
        decides = proxy in (decisive, "score")
        cells = tuple(number(row[proxy]) + (margin_of(row) if decides else "") for row in rows)
        columns.append(Column(proxy, cells, is_decisive=decides, is_needed=decides))
    columns.append(Column("seconds", tuple(number(row["seconds"]) for row in rows)))
    reasons = tuple(f"{row['name']}: {row['error']}" for row in rows if row["rank"] is None)
    return Table(title or f"Ranked by {decisive}", tuple(columns), reasons, tuple(notes))


def brief(kind: str, count: str, provenance: Provenance, best: str | None, num_failed: int) -> str:
    """Return the ``repr`` of a result: how many of what, what they are ranked by, the best, and how many failed."""
    failed = f", {num_failed} failed" if num_failed else ""
    return f"<{kind} of {count} by {shortened(deciding_score(provenance))}, best {shortened(best)}{failed}>"


def columns_to_print(rows: Sequence[Row], provenance: Provenance) -> list[str]:
    """Return the names of the proxies and recipes to print: those that the user asked for, and the one that decides.

    Members of recipes and trivial baselines that were only computed beside them are left out. A leaderboard that does
    not say what was asked for shows all.
    """
    if "asked" not in provenance:
        return proxies_of(rows)
    beside = {*provenance.get("proxies", ())} - {*provenance["asked"], deciding_score(provenance)}
    return [name for name in proxies_of(rows) if name not in beside]


def _at(rows: Sequence[Row], idxs: Sequence[int]) -> list[Row]:
    return [rows[idx] for idx in idxs]


def _costs_of(trials: Sequence[Row], provenance: Provenance) -> list[str]:
    """Return the names of the cost columns to draw the score against: those in ``against``, and MACs."""
    columns = trials[0] if trials else {}
    named = dict.fromkeys([*provenance.get("against", []), "macs"])
    found = ["latency" if cost == "latency_s" else f"cost_{cost}" for cost in named]
    return [name for name in found if name in columns]


def _page(
    title: str,
    notes: Sequence[str],
    rows: Sequence[Row],
    figures: Sequence[Figure],
    provenance: Provenance,
    cards: Mapping[str, ScoreCard],
) -> Page:
    plain: Mapping[str, Any] = {**provenance}
    columns, missing = columns_of(rows), provenance.get("missing", ())
    details, lower_first = _details(rows, provenance, cards), _lower_first(columns, provenance)
    return Page(title, notes, columns, rows, figures, missing, plain, lower_first, details, has_cards=bool(cards))


def _across(rows: Sequence[Row], provenance: Provenance) -> list[Figure]:
    """Return the figures that compare columns; profiles need two candidates and two columns."""
    across: list[Figure] = [agreement(rows, provenance)]
    profile = profiles(rows, provenance)
    return [*across, profile] if len(profile.lines) > 1 and len(profile.columns) > 1 else across


def _details(rows: Sequence[Row], provenance: Provenance, cards: Mapping[str, ScoreCard]) -> dict[str, Detail]:
    """Collect what is known of each candidate beyond its row: from its card, else why its numbers are missing."""
    reasons: dict[str, dict[str, str]] = {}
    for column, groups in reasons_of(provenance).items():
        for reason, names in groups.items():
            for name in names:
                reasons.setdefault(name, {})[column] = reason
    details = {}
    for row in rows:
        name = row["name"]
        if card := cards.get(name):
            scores = card.scores.items()
            details[name] = Detail(
                card.hyperparameters,
                {proxy: score.by_repeat for proxy, score in scores if score.by_repeat},
                {proxy: score.layers for proxy, score in scores if score.layers},
                {proxy: score.error for proxy, score in scores if score.error and score.error != card.error},
                card.traceback,
            )
        elif name in reasons:
            details[name] = Detail(reasons=reasons[name])
    return details


def _lower_first(columns: Sequence[str], provenance: Provenance) -> set[str]:
    """Choose the columns whose lowest numbers are the best, or are read first."""
    lower = {name for name in columns if name in _LOWER_FIRST or name.startswith(("cost_", HYPERPARAMETER))}
    deciding = {"score", deciding_score(provenance)}
    lower = lower - deciding if provenance.get("higher_is_better", True) else lower | deciding
    if "finals" in provenance and provenance["finals"]["mode"] == "min":
        lower.add("final")
    return lower


def _heights(values: Sequence[float | None]) -> list[float | None]:
    """Return the position of each number in the order of all, from 0, the lowest, to 1; equal ones share the mean."""
    present = [value for value in values if value is not None]
    last = len(present) - 1
    return [
        None
        if value is None
        else 0.5
        if last == 0
        else (sum(other < value for other in present) + (sum(other == value for other in present) - 1) / 2) / last
        for value in values
    ]


def _finals_columns(rows: Sequence[Row]) -> dict[str, tuple[str, ...]]:
    """Return the cells that show the ranks learned from finals, by column."""
    return {
        "learned": tuple("-" if row["learned"] is None else f"{row['learned']:.1f}" for row in rows),
        "learned 95 %": tuple(
            "-" if row["learned"] is None else f"{row['learned_low']}-{row['learned_high']}" for row in rows
        ),
    }


def _uncertainty(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Return the cells that show how certain the ranks are, by column; empty if nothing was repeated."""
    if "rank_low" not in columns_of(rows):
        return {}
    ties = Counter(row["tie"] for row in rows)
    cells = {
        "95 %": ["-" if row["rank_low"] is None else f"{row['rank_low']}-{row['rank_high']}" for row in rows],
        "best": ["-" if row["p_best"] is None else f"{row['p_best']:.0%}" for row in rows],
        "tie": ["" if row["tie"] is None or ties[row["tie"]] == 1 else str(row["tie"]) for row in rows],
    }
    counts = [row["num_repeats"] for row in rows]
    if len(set(counts) - {None}) > 1:
        cells["repeats"] = [str(count or "-") for count in counts]
    return cells
