"""Figures of the HTML page as specifications of Vega-Lite: plain dictionaries that contain all data.

Names of candidates and proxies appear only in the data, in titles and in the domain of an axis, never in an expression
or the name of a field.
"""

from functools import singledispatch
from typing import Any, TypeAlias

from lightning_zico.report.figures import Agreement, Figure, Finals, History, Layers, Profiles, Ranks, TradeOff
from lightning_zico.texts import printable

Spec: TypeAlias = dict[str, Any]

# Readable on white and on black: each has a contrast of 3 to 1 or more with either background of the page.
_ACCENT, _OTHER, _FRONT = "#3b82d0", "#858b95", "#d9730d"
_ROW = 24  # pixels for a name on an axis
_PADDING = {"padding": 12}  # pixels between the outermost dots and the frame
_APART = {"zero": False, **_PADDING}
_ON_FRONT = "on the Pareto front"

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


def spec_of(figure: Figure) -> Spec:
    """Return the specification of a figure for Vega-Lite.

    Args:
        figure: Numbers and words to draw.

    Example:
        >>> spec = spec_of(Layers("mlp", "zico", "12.5", {"fc.weight": 12.5}))
        >>> spec["data"]["values"]
        [{'layer': 'fc.weight', 'added': 12.5}]
    """
    values, height, layers = _parts_of(figure)
    return {
        "config": _CONFIG,
        "description": printable(figure.text),
        "data": {"values": [{key: _show(value) for key, value in datum.items()} for datum in values]},
        "width": "container",
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "layer": layers,
    }


def min_width_of(figure: Figure) -> int:
    """Return the least width of a figure in pixels, or 0 if any will do; a narrower screen can scroll it."""
    if isinstance(figure, Agreement):
        return 170 + 32 * len(figure.names)
    return 60 + 56 * len(figure.columns) if isinstance(figure, Profiles) else 0


_Parts: TypeAlias = tuple[list[dict[str, Any]], int, list[Spec]]  # data, height in pixels, layers of marks


@singledispatch
def _parts_of(figure: Any) -> _Parts:
    raise TypeError(f"Invalid figure of type {type(figure).__name__}: expected one of `report.figures`.")


@_parts_of.register
def _ranks(ranks: Ranks) -> _Parts:
    values = [vars(dot) for dot in ranks.dots]
    tooltip = [
        _tooltip_line("name", "candidate"),
        _tooltip_line("rank", "rank"),
        _tooltip_line("score", ranks.rank_by, ".6"),
    ]
    if ranks.are_repeated:
        tooltip += [_tooltip_line("low", "from"), _tooltip_line("high", "to"), _tooltip_line("p_best", "best", ".0%")]
    y = {"field": "name", "type": "nominal", "sort": None, "title": None}
    x = {"type": "quantitative", "title": printable(ranks.x_label), "scale": _APART, "axis": {"tickMinStep": 1}}
    layers: list[Spec] = [
        {
            "mark": {"type": "rule", "strokeWidth": 6, "opacity": 0.45, "color": _ACCENT, "strokeCap": "round"},
            "encoding": {"x": {"field": "low", **x}, "x2": {"field": "high"}, "y": y, "tooltip": tooltip},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 90, "opacity": 1, "color": _ACCENT},
            "encoding": {"x": {"field": "rank", **x}, "y": y, "tooltip": tooltip},
        },
    ]
    return values, len(values) * _ROW, layers if ranks.are_repeated else layers[1:]


@_parts_of.register
def _trade_off(trade_off: TradeOff) -> _Parts:
    front = set(trade_off.front)
    values = [
        {
            "name": dot.name,
            "cost": dot.cost,
            "score": dot.score,
            "low": None if dot.margin is None else dot.score - dot.margin,
            "high": None if dot.margin is None else dot.score + dot.margin,
            "front": _ON_FRONT if idx in front else "beaten",
        }
        for idx, dot in enumerate(trade_off.dots)
    ]
    cost, by = printable(trade_off.cost), printable(trade_off.y_label)
    scale = {"type": "log", "nice": False, **_PADDING} if trade_off.is_logarithmic else _APART
    axis = {"format": "~s", "tickCount": 5, "labelOverlap": "greedy"}
    x = {"field": "cost", "type": "quantitative", "title": cost, "scale": scale, "axis": axis}
    y = {"field": "score", "type": "quantitative", "title": by, "scale": _APART}
    are_whole = all(float(dot.cost).is_integer() for dot in trade_off.dots)
    tooltip = [
        _tooltip_line("name", "candidate"),
        _tooltip_line("score", trade_off.rank_by, ".6"),
        _tooltip_line("cost", cost, ",.0f" if are_whole else ".3"),
        _tooltip_line("front", " "),
    ]
    line = {
        "transform": [{"filter": {"field": "front", "equal": _ON_FRONT}}],
        "mark": {"type": "line", "interpolate": "step-after", "color": _FRONT, "strokeWidth": 1.5},
        "encoding": {"x": x, "y": y},
    }
    margins = {
        "mark": {"type": "rule", "color": _OTHER, "strokeWidth": 1.5},
        "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}},
    }
    colour = {"domain": [_ON_FRONT, "beaten"], "range": [_FRONT, _OTHER]}
    dots = {
        "mark": {"type": "point", "filled": True, "size": 90, "opacity": 1},
        "encoding": {
            "x": x,
            "y": y,
            "color": {"field": "front", "type": "nominal", "scale": colour, "legend": None},
            "tooltip": tooltip,
        },
    }
    have_margins = any(dot.margin is not None for dot in trade_off.dots)
    return values, 320, [line, *([margins] if have_margins else []), dots]


@_parts_of.register
def _agreement(agreement: Agreement) -> _Parts:
    values = [
        {
            "a": a,
            "b": b,
            "tau": tau,
            "label": label,
            "strength": 0 if tau is None else 0.75 * abs(tau),
            "sign": "opposite" if tau is not None and tau < 0 else "alike",
        }
        for a, taus, labels in zip(agreement.names, agreement.taus, agreement.labels, strict=True)
        for b, tau, label in zip(agreement.names, taus, labels, strict=True)
    ]
    x = {"field": "b", "type": "nominal", "sort": None, "title": None, "axis": {"labelAngle": -45, "labelLimit": 110}}
    y = {"field": "a", "type": "nominal", "sort": None, "title": None}
    colour = {"domain": ["alike", "opposite"], "range": [_ACCENT, _FRONT]}
    tooltip = [_tooltip_line("a", "of"), _tooltip_line("b", "with"), _tooltip_line("label", "Kendall's tau")]
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
    return values, len(agreement.names) * _ROW, layers


@_parts_of.register
def _profiles(profiles: Profiles) -> _Parts:
    accented = set(profiles.accented)
    values = [
        {
            "name": line.name,
            "rank": line.rank,
            "column": column,
            "value": value,
            "height": height,
            "first": line in accented,
        }
        # The first ones are drawn last, above the others.
        for line in reversed(profiles.lines)
        for column, value, height in zip(profiles.columns, line.values, line.heights, strict=True)
    ]
    axis = {"labelAngle": -45, "labelLimit": 110, "grid": True, "gridOpacity": 0.4}
    columns = {"domain": list(map(printable, profiles.columns)), "type": "point", "padding": 0.4}
    x = {"field": "column", "type": "nominal", "sort": None, "title": None, "axis": axis, "scale": columns}
    y = {
        "field": "height",
        "type": "quantitative",
        "title": "lowest to highest",
        "scale": {"domain": [0, 1], **_PADDING},
        "axis": {"labels": False, "ticks": False, "grid": False},
    }
    colour = {"domain": [True, False], "range": [_ACCENT, _OTHER]}
    shown = {
        "x": x,
        "y": y,
        "color": {"field": "first", "type": "nominal", "scale": colour, "legend": None},
        "opacity": {"condition": {"test": "datum.first", "value": 1}, "value": 0.6},
    }
    tooltip = [
        _tooltip_line("name", "candidate"),
        _tooltip_line("rank", "rank"),
        _tooltip_line("column", "column"),
        _tooltip_line("value", "value", ",.6~g"),
    ]
    layers: list[Spec] = [
        {
            "mark": {"type": "line", "strokeWidth": 1.5, "invalid": "break-paths-show-path-domains"},
            "encoding": {**shown, "detail": {"field": "name", "type": "nominal"}},
        },
        {"mark": {"type": "point", "filled": True, "size": 45}, "encoding": {**shown, "tooltip": tooltip}},
    ]
    return values, 320, layers


@_parts_of.register
def _finals(finals: Finals) -> _Parts:
    values = [{"name": dot.name, "final": dot.value, "rank": dot.rank, "epochs": dot.num_epochs} for dot in finals.dots]
    x = {"field": "final", "type": "quantitative", "title": printable(finals.x_label), "scale": _APART}
    # Vega-Lite would leave out the rows of finalists without a number.
    rows = {"domain": [printable(dot.name) for dot in finals.dots]}
    y = {"field": "name", "type": "nominal", "sort": None, "title": None, "scale": rows}
    tooltip = [
        _tooltip_line("name", "candidate"),
        _tooltip_line("final", finals.monitor, ".6"),
        _tooltip_line("epochs", "epochs"),
        _tooltip_line("rank", "rank by score"),
    ]
    mark = {"type": "point", "filled": True, "size": 90, "opacity": 1, "color": _ACCENT}
    return values, len(values) * _ROW, [{"mark": mark, "encoding": {"x": x, "y": y, "tooltip": tooltip}}]


@_parts_of.register
def _layers(layers: Layers) -> _Parts:
    values = [{"layer": layer, "added": added} for layer, added in layers.added.items()]
    x = {"field": "added", "type": "quantitative", "title": printable(layers.x_label)}
    y = {"field": "layer", "type": "nominal", "sort": None, "title": None}
    tooltip = [_tooltip_line("layer", "layer"), _tooltip_line("added", "added", ".6")]
    mark = {"type": "bar", "color": _ACCENT}
    return values, len(values) * _ROW, [{"mark": mark, "encoding": {"x": x, "y": y, "tooltip": tooltip}}]


@_parts_of.register
def _history(history: History) -> _Parts:
    values = [{**vars(dot), "best": False} for dot in history.dots]
    values += [{**vars(dot), "best": True} for dot in history.line]
    by = printable(history.rank_by)
    scale = {**_APART, "nice": False}  # no trials before the first
    x = {"field": "trial", "type": "quantitative", "title": "trial", "scale": scale, "axis": {"tickMinStep": 1}}
    y = {"field": "score", "type": "quantitative", "title": by, "scale": _APART}
    tooltip = [_tooltip_line("name", "arch"), _tooltip_line("score", by, ".6"), _tooltip_line("trial", "trial")]
    line = {"type": "line", "interpolate": "step-after", "color": _FRONT, "strokeWidth": 2}
    layers: list[Spec] = [  # the dots lie above the line, which would hide them from the pointer
        {"transform": [{"filter": "datum.best"}], "mark": line, "encoding": {"x": x, "y": y}},
        {
            "transform": [{"filter": "!datum.best"}],
            "mark": {"type": "point", "filled": True, "size": 40, "opacity": 1, "color": _OTHER},
            "encoding": {"x": x, "y": y, "tooltip": tooltip},
        },
    ]
    return values, 320, layers


def _tooltip_line(field: str, title: str, number_format: str | None = None) -> Spec:
    """Return the specification of a line of the tooltip."""
    line = {"field": field, "title": printable(title)}
    return line if number_format is None else {**line, "type": "quantitative", "format": number_format}


def _show(value: Any) -> Any:
    return printable(value) if isinstance(value, str) else value
