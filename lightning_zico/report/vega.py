"""The figures of the HTML page as specifications of Vega-Lite: plain dictionaries that contain all data.

Names of candidates and proxies appear only in the data, never in an expression or the name of a field.
"""

from typing import Any, NamedTuple, TypeAlias

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
from lightning_zico.results import Leaderboard, ScoreCard, SearchResult

Spec: TypeAlias = dict[str, Any]

# Readable on white and on black: each has a contrast of 3 to 1 or more with either background of the page.
_ACCENT, _OTHER, _FRONT = "#3b82d0", "#858b95", "#d9730d"
_LONGEST = 400  # characters of names in a caption
_ROW = 24  # pixels for a name on an axis
_PADDING = {"padding": 12}  # pixels between the outermost dots and the frame
_APART = {"zero": False, **_PADDING}
_COSTS = {"macs": "MACs", "cost_macs": "MACs", "latency": "latency in seconds"}

# The text's own colour, so that figures follow the page from light to dark.
_CONFIG: Spec = {
    "background": None,
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "domainColor": "currentColor",
        "gridColor": "currentColor",
        "gridOpacity": 0.12,
        "labelColor": "currentColor",
        "labelFontSize": 12,
        "labelLimit": 150,
        "tickColor": "currentColor",
        "titleColor": "currentColor",
        "titleFontSize": 12,
        "titleFontWeight": "normal",
    },
}


class Chart(NamedTuple):
    """A figure of the page.

    Args:
        title: Title above the figure.
        text: Description of what the figure shows, for all readers and for those who cannot see it.
        spec: Specification of Vega-Lite.
        min_width: Least width in pixels of a figure with a row of its own; on a narrower screen it can be scrolled.
    """

    title: str
    text: str
    spec: Spec
    min_width: int = 0


def charts_of(leaderboard: Leaderboard, card: ScoreCard | None) -> list[Chart]:
    """Make the figures that a leaderboard has numbers for, and a figure of the card's layers."""
    charts = []
    if scored(leaderboard):
        charts.append(_ranks(leaderboard))
        if any(row.get("macs") is not None for row in scored(leaderboard)):
            charts.append(_pareto(leaderboard, "macs"))
    if finalists(leaderboard):
        charts.append(_finals(leaderboard))
    if card is not None:
        charts.append(_layers(card, "zico"))
    if scored(leaderboard):
        charts.append(_agreement(leaderboard))
    return charts


def charts_of_search(result: SearchResult, leaderboard: Leaderboard) -> list[Chart]:
    """Make the figures of a search: its history, the score against costs, and the agreement of the scores.

    Args:
        result: Result of the search.
        leaderboard: The result as a leaderboard.
    """
    if not scored(leaderboard):
        return []
    fronts = [_pareto(leaderboard, cost) for cost in costs_of(result)]
    return [_history(result, leaderboard), *fronts, _agreement(leaderboard)]


def _history(result: SearchResult, leaderboard: Leaderboard) -> Chart:
    trials, best = scored_trials(result), improvements(result)
    values = [
        {"trial": row["trial"], "score": row["score"], "name": row["arch"], "best": is_best}
        for rows, is_best in ((trials, False), (best, True))
        for row in rows
    ]
    # The best lasts until the end.
    values.append({**values[-1], "trial": len(result) - 1})
    by = ranked_by(leaderboard)
    scale = {**_APART, "nice": False}  # no trials before the first
    x = {"field": "trial", "type": "quantitative", "title": "trial", "scale": scale, "axis": {"tickMinStep": 1}}
    y = {"field": "score", "type": "quantitative", "title": by, "scale": _APART}
    tooltip = [_said("name", "arch"), _said("score", by, ".6"), _said("trial", "trial")]
    line = {"type": "line", "interpolate": "step-after", "color": _FRONT, "strokeWidth": 2}
    layers: list[Spec] = [  # the dots lie above the line, which would hide them from the pointer
        {"transform": [{"filter": "datum.best"}], "mark": line, "encoding": {"x": x, "y": y}},
        {
            "transform": [{"filter": "!datum.best"}],
            "mark": {"type": "point", "filled": True, "size": 40, "opacity": 1, "color": _OTHER},
            "encoding": {"x": x, "y": y, "tooltip": tooltip},
        },
    ]
    text = "Each dot is a scored arch; the line is the best score so far."
    if len(trials) < len(scored(leaderboard)):
        text += f" The figure shows {len(trials)} of {len(scored(leaderboard))} dots."
    return Chart("Search", text, _spec(values, text, 320, layers))


def _ranks(leaderboard: Leaderboard) -> Chart:
    rows = scored(leaderboard)[:MOST_NAMES]
    values = [
        {
            "name": row["name"],
            "place": place,
            "score": row["score"],
            "low": row.get("rank_low"),
            "high": row.get("rank_high"),
            "p_best": row.get("p_best"),
        }
        for row, place in zip(rows, places(leaderboard), strict=False)
    ]
    repeated = any(value["low"] is not None for value in values)
    tooltip = [_said("name", "candidate"), _said("place", "rank"), _said("score", ranked_by(leaderboard), ".6")]
    if repeated:
        tooltip += [_said("low", "from"), _said("high", "to"), _said("p_best", "best", ".0%")]
    y = {"field": "name", "type": "nominal", "sort": None, "title": None}
    x = {"type": "quantitative", "title": "rank by score", "scale": _APART, "axis": {"tickMinStep": 1}}
    layers = [
        {
            "mark": {"type": "rule", "strokeWidth": 6, "opacity": 0.45, "color": _ACCENT, "strokeCap": "round"},
            "encoding": {"x": {"field": "low", **x}, "x2": {"field": "high"}, "y": y, "tooltip": tooltip},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 90, "opacity": 1, "color": _ACCENT},
            "encoding": {"x": {"field": "place", **x}, "y": y, "tooltip": tooltip},
        },
    ]
    text = "The dot is a candidate's rank by score, " + (
        "the bar the 95 % interval of its rank over the repeats."
        if repeated
        else "which comes from one repeat and so has no interval."
    )
    if len(rows) < len(scored(leaderboard)):
        text += f" The figure shows the first {len(rows)} of {len(scored(leaderboard))}."
    return Chart("Ranks", text, _spec(values, text, len(rows) * _ROW, layers if repeated else layers[1:]))


def _pareto(leaderboard: Leaderboard, cost: str) -> Chart:
    rows, front = trade_off(leaderboard, cost)
    named = _COSTS.get(cost, cost.removeprefix("cost_"))
    values = []
    for idx in shown_of(rows, front):
        row = rows[idx]
        margin = row.get("std_error")
        values.append(
            {
                "name": row["name"],
                "cost": row[cost],
                "score": row["score"],
                "low": None if margin is None else row["score"] - margin,
                "high": None if margin is None else row["score"] + margin,
                "front": "on the Pareto front" if idx in set(front) else "beaten",
            }
        )
    by = ranked_by(leaderboard)
    scale = {"type": "log", "nice": False, **_PADDING} if min(row[cost] for row in rows) > 0 else _APART
    axis = {"format": "~s", "tickCount": 5, "labelOverlap": "greedy"}
    x = {"field": "cost", "type": "quantitative", "title": named, "scale": scale, "axis": axis}
    y = {"field": "score", "type": "quantitative", "title": by, "scale": _APART}
    colour = {"domain": ["on the Pareto front", "beaten"], "range": [_FRONT, _OTHER]}
    cost_format = ".3" if cost == "latency" else ",.0f"
    tooltip = [
        _said("name", "candidate"),
        _said("score", by, ".6"),
        _said("cost", named, cost_format),
        _said("front", " "),
    ]
    on_front = [{"filter": {"field": "front", "equal": "on the Pareto front"}}]
    layers: list[Spec] = [
        {
            "transform": on_front,
            "mark": {"type": "line", "interpolate": "step-after", "color": _FRONT, "strokeWidth": 1.5},
            "encoding": {"x": x, "y": y},
        },
        {
            "mark": {"type": "rule", "color": _OTHER, "strokeWidth": 1.5},
            "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 90, "opacity": 1},
            "encoding": {
                "x": x,
                "y": y,
                "color": {"field": "front", "type": "nominal", "scale": colour, "legend": None},
                "tooltip": tooltip,
            },
        },
    ]
    if all(value["low"] is None for value in values):
        del layers[1]
    text = (
        "Each dot is a candidate. Orange dots are the Pareto front: no other candidate costs no more and scores no "
        f"{'less' if is_up(leaderboard) else 'more'}. The front has {len(front)} of {len(rows)} candidates"
    )
    names = ", ".join(rows[idx]["name"] for idx in front[:MOST_NAMES])
    text += f", from the cheapest: {names}." if len(names) <= _LONGEST else "."
    if len(values) < len(rows):
        text += f" The figure shows these and the best ones, {len(values)} in total."
    return Chart(f"Score against {named}", text, _spec(values, text, 320, layers))


def _agreement(leaderboard: Leaderboard) -> Chart:
    names, taus = agreement(leaderboard)
    values = [
        {
            "a": a,
            "b": b,
            "tau": tau,
            "label": UNDEFINED if tau is None else f"{tau:.2f}",
            "strength": 0 if tau is None else 0.75 * abs(tau),
            "sign": "opposite" if tau is not None and tau < 0 else "alike",
        }
        for a, row in zip(names, taus, strict=True)
        for b, tau in zip(names, row, strict=True)
    ]
    x = {"field": "b", "type": "nominal", "sort": None, "title": None, "axis": {"labelAngle": -45, "labelLimit": 110}}
    y = {"field": "a", "type": "nominal", "sort": None, "title": None}
    colour = {"domain": ["alike", "opposite"], "range": [_ACCENT, _FRONT]}
    tooltip = [_said("a", "of"), _said("b", "with"), _said("label", "Kendall's tau")]
    layers: list[Spec] = [
        {
            "mark": {"type": "rect"},
            "encoding": {
                "x": x,
                "y": y,
                "color": {"field": "sign", "type": "nominal", "scale": colour, "legend": None},
                "fillOpacity": {"field": "strength", "type": "quantitative", "scale": None},
                "tooltip": tooltip,
            },
        },
        {
            "mark": {"type": "text", "color": "currentColor", "fontSize": 11},
            # The text lies above its cell and would hide it from the pointer.
            "encoding": {"x": x, "y": y, "text": {"field": "label", "type": "nominal"}, "tooltip": tooltip},
        },
    ]
    text = (
        "Kendall's tau of every two columns, including the trivial baselines: 1 (blue) means the same order, -1 "
        "(orange) the opposite order, and a dash that tau is not defined."
    )
    spec = _spec(values, text, len(names) * _ROW, layers)
    return Chart("Agreement of the proxies", text, spec, min_width=170 + 32 * len(names))


def _finals(leaderboard: Leaderboard) -> Chart:
    held = leaderboard.provenance["finals"]
    entries = finalists(leaderboard)
    values = [
        {"name": row["name"], "final": row["final"], "place": place, "epochs": row["final_epochs"]}
        for row, place in entries
    ]
    x = {"field": "final", "type": "quantitative", "title": held["monitor"], "scale": _APART}
    y = {"field": "name", "type": "nominal", "sort": None, "title": None}
    tooltip = [
        _said("name", "candidate"),
        _said("final", held["monitor"], ".6"),
        _said("epochs", "epochs"),
        _said("place", "rank by score"),
    ]
    mark = {"type": "point", "filled": True, "size": 90, "opacity": 1, "color": _ACCENT}
    layers: list[Spec] = [{"mark": mark, "encoding": {"x": x, "y": y, "tooltip": tooltip}}]
    better = "lower" if held["mode"] == "min" else "higher"
    text = f"Results of training the finalists, the winner first; {better} is better. A finalist without a dot failed."
    return Chart("Finals", text, _spec(values, text, len(entries) * _ROW, layers))


def _layers(card: ScoreCard, proxy: str) -> Chart:
    values = [{"layer": layer, "added": added} for layer, added in layers_of(card, proxy).items()]
    x = {"field": "added", "type": "quantitative", "title": f"added to {proxy}"}
    y = {"field": "layer", "type": "nominal", "sort": None, "title": None}
    tooltip = [_said("layer", "layer"), _said("added", "added", ".6")]
    layers: list[Spec] = [{"mark": {"type": "bar", "color": _ACCENT}, "encoding": {"x": x, "y": y, "tooltip": tooltip}}]
    text = f"What each layer of {card.name} added to its score by {proxy}, the first layer on top."
    return Chart(f"Layers of {card.name}", text, _spec(values, text, len(values) * _ROW, layers))


def _said(field: str, title: str, number_format: str | None = None) -> Spec:
    """Return the specification of a line of the tooltip."""
    line = {"field": field, "title": title}
    return line if number_format is None else {**line, "type": "quantitative", "format": number_format}


def _spec(values: list[dict[str, Any]], description: str, height: int, layers: list[Spec]) -> Spec:
    return {
        "config": _CONFIG,
        "description": description,
        "data": {"values": values},
        "width": "container",
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "layer": layers,
    }
