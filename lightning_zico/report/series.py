"""What the figures show, as plain numbers for both kinds of drawings; nothing here draws."""

from collections.abc import Mapping, Sequence

from scipy import stats

from lightning_zico.results import FIXED_COLUMNS, Leaderboard, Row, ScoreCard, SearchResult, ranks_of, standing_of

# With more candidates than this, an axis of names is not readable; the table has all of them.
MOST_NAMES = 40
# More dots than this slow down a browser, and overlap.
MOST_DOTS = 2000
# Shown for a tau that is not defined.
UNDEFINED = "-"


def ranked_by(results: Leaderboard | SearchResult) -> str:
    """Return the name of the score that the results are ranked by."""
    return str(results.provenance.get("rank_by", "score"))


def proxies_of(leaderboard: Leaderboard) -> list[str]:
    """Return the names of the columns that hold a proxy's or a recipe's numbers."""
    return [column for column in leaderboard.columns if column not in FIXED_COLUMNS]


def scored(leaderboard: Leaderboard) -> list[Row]:
    """List the rows with a score, best first, including candidates that failed in finals."""
    return [row for row in leaderboard if row["score"] is not None]


def places(leaderboard: Leaderboard) -> list[int]:
    """Rank the rows with a score as the leaderboard did before any finals: 1 is best, equal scores share a rank.

    Returns:
        One rank for each of `scored`.
    """
    up = is_up(leaderboard)
    ranks = ranks_of([standing_of(row, up) for row in scored(leaderboard)])
    return [rank for rank in ranks if rank is not None]


def pareto_front(costs: Sequence[float], gains: Sequence[float]) -> list[int]:
    """Find the Pareto front: candidates for which no other costs no more and gains no less, one of them strictly.

    Args:
        costs: One cost per candidate, lower is better.
        gains: One gain per candidate, higher is better.

    Returns:
        Indices of the front, cheapest first.

    Example:
        >>> pareto_front([1, 2, 3, 3], [5, 4, 6, 7])
        [0, 3]
    """
    front: list[int] = []
    for idx in sorted(range(len(costs)), key=lambda idx: (costs[idx], -gains[idx])):
        last = front[-1] if front else None
        if last is None or gains[idx] > gains[last] or (costs[idx], gains[idx]) == (costs[last], gains[last]):
            front.append(idx)
    return front


def trade_off(leaderboard: Leaderboard, cost: str = "macs") -> tuple[list[Row], list[int]]:
    """Find the candidates that have both a score and a cost, and those among them that no other beats in both.

    Returns:
        Their rows, and the indices of the Pareto front among these, cheapest first.

    Raises:
        ValueError: If there is no such column.
    """
    if leaderboard.rows and cost not in proxies_of(leaderboard):
        columns = ", ".join(proxies_of(leaderboard)) or "none"
        raise ValueError(f"Invalid cost='{cost}': this leaderboard has no such column. Expected one of {columns}.")
    rows = [row for row in scored(leaderboard) if row[cost] is not None]
    sign = 1 if is_up(leaderboard) else -1
    return rows, pareto_front([row[cost] for row in rows], [sign * row["score"] for row in rows])


def shown_of(rows: Sequence[Row], front: Sequence[int]) -> list[int]:
    """Choose the rows of a trade-off to draw: if there are many, the first ones and all of the front."""
    return sorted({*range(min(len(rows), MOST_DOTS)), *front})


def improvements(result: SearchResult) -> list[Row]:
    """List the trials of a search that were better than all before them, in their order.

    Example:
        >>> rows = [{"trial": idx, "rank": rank} for idx, rank in enumerate([4, None, 2, 3, 1])]
        >>> [row["trial"] for row in improvements(SearchResult(tuple(rows)))]
        [0, 2, 4]
    """
    found: list[Row] = []
    for row in result:
        if row["rank"] is not None and (not found or row["rank"] < found[-1]["rank"]):
            found.append(row)
    return found


def scored_trials(result: SearchResult) -> list[Row]:
    """List the trials with a score in their order; if there are very many, only one of every few."""
    rows = [row for row in result if row["rank"] is not None]
    return rows[:: -(-len(rows) // MOST_DOTS) or 1]


def costs_of(result: SearchResult) -> list[str]:
    """Return the names of the cost columns to draw the score against: those that the search kept low, and MACs."""
    columns = result.history[0] if result.history else {}
    named = dict.fromkeys([*result.provenance.get("against", []), "macs"])
    found = ["latency" if cost == "latency_s" else f"cost_{cost}" for cost in named]
    return [name for name in found if name in columns]


def agreement(leaderboard: Leaderboard) -> tuple[list[str], list[list[float | None]]]:
    """Compare every two columns by Kendall's tau-b, on the candidates that have both; the ranking comes first.

    The ranking (by score, before any finals) counts from the last place up; other columns are used as they are, even if
    lower is better.

    Returns:
        The names (``"ranking"``, then the proxies including the baselines), and a row of taus for each. A tau is None
        if it is not defined: fewer than two candidates, or all numbers equal.
    """
    rows = scored(leaderboard)
    columns: dict[str, list[float | None]] = {"ranking": [-float(place) for place in places(leaderboard)]}
    for name in proxies_of(leaderboard):
        if name != ranked_by(leaderboard):
            columns[name] = [row[name] for row in rows]
    return list(columns), [[_tau(a, b) for b in columns.values()] for a in columns.values()]


def layers_of(card: ScoreCard, proxy: str) -> Mapping[str, float]:
    """Return what each layer of a candidate added to a score.

    Raises:
        ValueError: If the card has no such score, or the score has no parts.
    """
    layers = card[proxy].layers if proxy in card.scores else {}
    if not layers:
        able = ", ".join(name for name in card if card[name].layers) or "none"
        raise ValueError(
            f"Invalid proxy='{proxy}': it has no parts by layer for '{card.name}'. "
            f"Scores of this card with parts: {able}."
        )
    return layers


def finalists(leaderboard: Leaderboard) -> list[tuple[Row, int]]:
    """List the rows that were in the finals, best first, failed ones last, each with its rank by score."""
    pairs = zip(scored(leaderboard), places(leaderboard), strict=True)
    return [(row, place) for row, place in pairs if row.get("final_epochs") is not None]


def is_up(leaderboard: Leaderboard) -> bool:
    """Whether a higher score is better."""
    return bool(leaderboard.provenance.get("higher_is_better", True))


def _tau(a: Sequence[float | None], b: Sequence[float | None]) -> float | None:
    both = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    if len({x for x, _ in both}) < 2 or len({y for _, y in both}) < 2:
        return None
    return float(stats.kendalltau(*zip(*both, strict=True)).statistic)
