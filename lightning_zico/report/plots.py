"""Figures by matplotlib: each takes axes or makes them, and returns ``(figure, axes)``, as in torchmetrics."""

from collections.abc import Sequence
from typing import Any

from lightning_zico._imports import imported
from lightning_zico.report.series import (
    MOST_NAMES,
    UNDEFINED,
    agreement,
    costs_of,
    finalists,
    improvements,
    is_up,
    layers_of,
    places,
    ranked_by,
    scored,
    scored_trials,
    shown_of,
    trade_off,
)
from lightning_zico.results import FigureKind, Leaderboard, ScoreCard, SearchFigureKind, SearchResult, margin_of

_ACCENT, _OTHER, _FRONT = "tab:blue", "tab:gray", "tab:orange"
_ROW = 0.28  # inches, for a name on an axis


def plot_ranks(leaderboard: Leaderboard, ax: Any = None) -> tuple[Any, Any]:
    """Draw each candidate's rank by score with its 95 % interval; without repeats there are no intervals.

    Args:
        leaderboard: Leaderboard to draw; at most its first 40 candidates are shown.
        ax: Axes to draw in; new ones if None.

    Returns:
        Figure and axes.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    rows, ranks = scored(leaderboard)[:MOST_NAMES], places(leaderboard)[:MOST_NAMES]
    figure, ax = _axes(ax, len(rows))
    for y, row in enumerate(rows):
        if row.get("rank_low") is not None:
            ax.plot([row["rank_low"], row["rank_high"]], [y, y], color=_ACCENT, alpha=0.5, linewidth=4)
    ax.plot(ranks, range(len(rows)), "o", color=_ACCENT)
    _names_down(ax, [row["name"] for row in rows])
    repeated = any(row.get("rank_low") is not None for row in rows)
    ax.set_xlabel("rank by score" + (", with its 95 % interval" if repeated else "; no interval with one repeat"))
    shown = f" (the first {len(rows)} of {len(leaderboard)})" if len(rows) == MOST_NAMES < len(leaderboard) else ""
    ax.set_title(f"Ranking by {ranked_by(leaderboard)}{shown}", parse_math=False)
    return figure, ax


def plot_pareto(leaderboard: Leaderboard, cost: str = "macs", ax: Any = None) -> tuple[Any, Any]:
    """Draw the score against a cost, with the Pareto front: candidates that no other beats in both.

    Args:
        leaderboard: Leaderboard to draw.
        cost: Name of the column to draw against; lower is better.
        ax: As for `plot_ranks`.

    Returns:
        Figure and axes.

    Raises:
        ValueError: If there is no such column.
        ModuleNotFoundError: If matplotlib is not installed.
    """
    rows, front = trade_off(leaderboard, cost)
    figure, ax = _axes(ax)
    drawn = [rows[idx] for idx in shown_of(rows, front)]
    for row in drawn:
        if row.get("std_error") is not None:
            low, high = row["score"] - row["std_error"], row["score"] + row["std_error"]
            ax.plot([row[cost], row[cost]], [low, high], color=_OTHER, alpha=0.5)
    ax.plot([row[cost] for row in drawn], [row["score"] for row in drawn], "o", color=_OTHER)
    best = [rows[idx] for idx in front]
    xs, ys = [row[cost] for row in best], [row["score"] for row in best]
    ax.plot(xs, ys, "o-", color=_FRONT, drawstyle="steps-post", label="Pareto front")
    for row in best:
        at = {"xytext": (4, 4), "textcoords": "offset points", "fontsize": "small"}
        ax.annotate(row["name"], (row[cost], row["score"]), parse_math=False, **at)
    if rows and min(row[cost] for row in rows) > 0:
        ax.set_xscale("log")
    ax.margins(x=0.15, y=0.1)  # for the names
    ax.set_xlabel(cost, parse_math=False)
    ax.set_ylabel(ranked_by(leaderboard) + ("" if is_up(leaderboard) else " (lower is better)"), parse_math=False)
    ax.set_title(f"Score against {cost}", parse_math=False)
    ax.legend()
    return figure, ax


def plot_agreement(leaderboard: Leaderboard, ax: Any = None) -> tuple[Any, Any]:
    """Draw Kendall's tau of every two columns, the trivial baselines among them (`series.agreement`).

    Args:
        leaderboard: Leaderboard to draw.
        ax: As for `plot_ranks`.

    Returns:
        Figure and axes. A dash marks a tau that is not defined.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    names, taus = agreement(leaderboard)
    size = max(4.0, 0.55 * len(names))
    figure, ax = _axes(ax, size=(size + 1.5, size + 0.5))
    values = [[float("nan") if tau is None else tau for tau in row] for row in taus]
    image = ax.imshow(values, cmap="RdBu", vmin=-1, vmax=1)
    for y, row in enumerate(taus):
        for x, tau in enumerate(row):
            dark = tau is not None and abs(tau) > 0.6
            text = UNDEFINED if tau is None else f"{tau:.2f}"
            ax.text(x, y, text, ha="center", va="center", fontsize="small", color="white" if dark else "black")
    ax.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor", parse_math=False)
    ax.set_yticks(range(len(names)), names, parse_math=False)
    ax.set_title("Kendall's tau")
    if figure is not None:
        figure.colorbar(image, ax=ax, shrink=0.8)
    return figure, ax


def plot_finals(leaderboard: Leaderboard, ax: Any = None) -> tuple[Any, Any]:
    """Draw the results of training the finalists, the winner first, with the rank by score of each of them.

    Args:
        leaderboard: Leaderboard of a selector that held finals.
        ax: As for `plot_ranks`.

    Returns:
        Figure and axes.

    Raises:
        ValueError: If there were no finals.
        ModuleNotFoundError: If matplotlib is not installed.
    """
    held = leaderboard.provenance.get("finals")
    if held is None:
        raise ValueError("This leaderboard has no finals: call `fit` with `finalists=` above 1 first.")
    entries = finalists(leaderboard)
    figure, ax = _axes(ax, len(entries))
    trained = [(y, row) for y, (row, _) in enumerate(entries) if row["final"] is not None]
    ax.plot([row["final"] for _, row in trained], [y for y, _ in trained], "o", color=_ACCENT)
    _names_down(ax, [f"{row['name']} (by score {place}.)" for row, place in entries])
    for y, (row, _) in enumerate(entries):
        epochs = f"{row['final_epochs']} epoch{'s' * (row['final_epochs'] != 1)}"
        text = f"failed after {epochs}" if row["final"] is None else epochs
        ax.text(1.01, y, text, transform=ax.get_yaxis_transform(), va="center", fontsize="small")
    ax.set_xlabel(f"{held['monitor']} ({'lower' if held['mode'] == 'min' else 'higher'} is better)", parse_math=False)
    ax.set_title("Finals")
    return figure, ax


def plot_layers(card: ScoreCard, proxy: str = "zico", ax: Any = None) -> tuple[Any, Any]:
    """Draw what each layer of a candidate added to its score.

    Args:
        card: Score card of the candidate, as returned by `score` or found in a selector's ``cards_``.
        proxy: Proxy of the score; ZiCo and others that are sums over layers have such parts.
        ax: As for `plot_ranks`.

    Returns:
        Figure and axes, the first layer on top.

    Raises:
        ValueError: If the card has no such score, or the score no parts.
        ModuleNotFoundError: If matplotlib is not installed.
    """
    layers = layers_of(card, proxy)
    figure, ax = _axes(ax, len(layers))
    ax.barh(range(len(layers)), list(layers.values()), color=_ACCENT)
    _names_down(ax, list(layers))
    ax.set_xlabel(f"added to {proxy}", parse_math=False)
    score = card[proxy]
    margin = margin_of({"std_error": score.std_error})
    ax.set_title(f"{card.name}: {proxy} {score.value:.6g}{margin}", parse_math=False)
    return figure, ax


def plot_history(result: SearchResult, ax: Any = None) -> tuple[Any, Any]:
    """Draw the score of each trial of a search, and the best so far.

    Args:
        result: Result of the search; if it has more than 2,000 trials, only one of every few is shown.
        ax: As for `plot_ranks`.

    Returns:
        Figure and axes.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    figure, ax = _axes(ax)
    trials, best = scored_trials(result), improvements(result)
    ax.plot([row["trial"] for row in trials], [row["score"] for row in trials], "o", color=_OTHER, markersize=3)
    xs, ys = [row["trial"] for row in best], [row["score"] for row in best]
    if best:  # lasts until the end
        xs, ys = [*xs, len(result) - 1], [*ys, ys[-1]]
    ax.plot(xs, ys, color=_FRONT, drawstyle="steps-post", label="best so far")
    ax.set_xlabel("trial")
    ax.set_ylabel(ranked_by(result), parse_math=False)
    ax.set_title("Search")
    ax.legend()
    return figure, ax


def plot_search(result: SearchResult, kind: SearchFigureKind = "history", ax: Any = None) -> tuple[Any, Any]:
    """Draw one of the figures of a search, by name.

    Raises:
        ValueError: If there is no such figure.
        ModuleNotFoundError: If matplotlib is not installed.
    """
    if kind == "history":
        return plot_history(result, ax)
    if kind == "pareto":
        return plot_pareto(result.to_leaderboard(), next(iter(costs_of(result)), "cost_macs"), ax)
    if kind == "agreement":
        return plot_agreement(result.to_leaderboard(), ax)
    raise ValueError(f"Invalid kind={kind!r}: expected one of history, pareto, agreement.")


def plot(leaderboard: Leaderboard, kind: FigureKind = "ranks", ax: Any = None) -> tuple[Any, Any]:
    """Draw one of the figures of a leaderboard, by name.

    Raises:
        ValueError: If there is no such figure, or the leaderboard lacks what it shows.
        ModuleNotFoundError: If matplotlib is not installed.
    """
    figures = {"ranks": plot_ranks, "pareto": plot_pareto, "agreement": plot_agreement, "finals": plot_finals}
    if kind not in figures:
        raise ValueError(f"Invalid kind={kind!r}: expected one of {', '.join(figures)}.")
    return figures[kind](leaderboard, ax=ax)  # type: ignore[operator]


def _axes(ax: Any, num_names: int = 0, size: tuple[float, float] | None = None) -> tuple[Any, Any]:
    if ax is not None:
        return ax.get_figure(), ax
    pyplot = imported("matplotlib.pyplot", "Figures need matplotlib", "report")
    height = max(3.5, 1.2 + _ROW * num_names)
    return pyplot.subplots(figsize=size or (6.4, height), layout="constrained")


def _names_down(ax: Any, names: Sequence[str]) -> None:
    """Write names beside the y axis, the first on top; a dollar sign in a name starts no formula."""
    ax.set_yticks(range(len(names)), names, parse_math=False)
    ax.set_ylim(max(len(names), 1) - 0.5, -0.5)
