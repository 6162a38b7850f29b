"""Figures by matplotlib: each takes axes or makes them, and returns ``(figure, axes)``, as in torchmetrics."""

from collections.abc import Sequence
from functools import singledispatch
from typing import Any

from lightning_zico._imports import import_optional
from lightning_zico.report.figures import Agreement, Figure, Finals, History, Layers, Profiles, Ranks, TradeOff
from lightning_zico.texts import printable

_ACCENT, _OTHER, _FRONT = "tab:blue", "tab:gray", "tab:orange"
_ROW = 0.28  # inches, for a name on an axis


def draw(figure: Figure, ax: Any = None) -> tuple[Any, Any]:
    """Draw a figure with matplotlib.

    Args:
        figure: Numbers and words to draw.
        ax: Axes to draw in; new ones if None.

    Returns:
        Figure and axes of matplotlib.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    drawn: tuple[Any, Any] = _draw(figure, ax)
    return drawn


@singledispatch
def _draw(figure: Any, ax: Any) -> tuple[Any, Any]:
    raise TypeError(f"Invalid figure of type {type(figure).__name__}: expected one of `report.figures`.")


@_draw.register
def _ranks(ranks: Ranks, ax: Any) -> tuple[Any, Any]:
    figure, ax = _axes(ax, len(ranks.dots))
    for y, dot in enumerate(ranks.dots):
        if dot.low is not None:
            ax.plot([dot.low, dot.high], [y, y], color=_ACCENT, alpha=0.5, linewidth=4)
    ax.plot([dot.rank for dot in ranks.dots], range(len(ranks.dots)), "o", color=_ACCENT)
    _names_down(ax, [dot.name for dot in ranks.dots])
    ax.set_xlabel(printable(ranks.x_label), parse_math=False)
    ax.set_title(ranks.title)
    return figure, ax


@_draw.register
def _trade_off(trade_off: TradeOff, ax: Any) -> tuple[Any, Any]:
    figure, ax = _axes(ax)
    dots, front = trade_off.dots, trade_off.on_front
    for dot in dots:
        if dot.margin is not None:
            span = [dot.score - dot.margin, dot.score + dot.margin]
            ax.plot([dot.cost, dot.cost], span, color=_OTHER, alpha=0.5)
    ax.plot([dot.cost for dot in dots], [dot.score for dot in dots], "o", color=_OTHER)
    xs, ys = [dot.cost for dot in front], [dot.score for dot in front]
    ax.plot(xs, ys, "o-", color=_FRONT, drawstyle="steps-post", label="Pareto front")
    for dot in front:
        at = {"xytext": (4, 4), "textcoords": "offset points", "fontsize": "small"}
        ax.annotate(printable(dot.name), (dot.cost, dot.score), parse_math=False, **at)
    if trade_off.is_logarithmic:
        ax.set_xscale("log")
    ax.margins(x=0.15, y=0.1)  # for the names
    ax.set_xlabel(printable(trade_off.cost), parse_math=False)
    ax.set_ylabel(printable(trade_off.y_label), parse_math=False)
    ax.set_title(printable(trade_off.title), parse_math=False)
    ax.legend()
    return figure, ax


@_draw.register
def _agreement(agreement: Agreement, ax: Any) -> tuple[Any, Any]:
    names = list(map(printable, agreement.names))
    size = max(4.0, 0.55 * len(names))
    figure, ax = _axes(ax, size=(size + 1.5, size + 0.5))
    values = [[float("nan") if tau is None else tau for tau in row] for row in agreement.taus]
    image = ax.imshow(values, cmap="RdBu", vmin=-1, vmax=1)
    for y, (taus, labels) in enumerate(zip(agreement.taus, agreement.labels, strict=True)):
        for x, (tau, label) in enumerate(zip(taus, labels, strict=True)):
            dark = tau is not None and abs(tau) > 0.6
            ax.text(x, y, label, ha="center", va="center", fontsize="small", color="white" if dark else "black")
    ax.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor", parse_math=False)
    ax.set_yticks(range(len(names)), names, parse_math=False)
    ax.set_title(agreement.title)
    if figure is not None:
        figure.colorbar(image, ax=ax, shrink=0.8)
    return figure, ax


@_draw.register
def _profiles(profiles: Profiles, ax: Any) -> tuple[Any, Any]:
    names = list(map(printable, profiles.columns))
    figure, ax = _axes(ax, size=(max(6.4, 0.7 * len(names)), 4.8))
    accented = set(profiles.accented)
    for line in reversed(profiles.lines):
        heights = [float("nan") if height is None else height for height in line.heights]
        look = {"color": _ACCENT} if line in accented else {"color": _OTHER, "alpha": 0.5}
        ax.plot(range(len(names)), heights, "o-", markersize=3, linewidth=1, **look)
    ax.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor", parse_math=False)
    ax.set_yticks([0, 1], ["lowest", "highest"])
    ax.set_title(profiles.title)
    return figure, ax


@_draw.register
def _finals(finals: Finals, ax: Any) -> tuple[Any, Any]:
    figure, ax = _axes(ax, len(finals.dots))
    trained = [(dot.value, y) for y, dot in enumerate(finals.dots) if dot.value is not None]
    ax.plot([value for value, _ in trained], [y for _, y in trained], "o", color=_ACCENT)
    _names_down(ax, [f"{dot.name} (by score {dot.rank}.)" for dot in finals.dots])
    for y, dot in enumerate(finals.dots):
        text = f"failed after {dot.epochs}" if dot.value is None else dot.epochs
        ax.text(1.01, y, text, transform=ax.get_yaxis_transform(), va="center", fontsize="small")
    ax.set_xlabel(printable(finals.x_label), parse_math=False)
    ax.set_title(finals.title)
    return figure, ax


@_draw.register
def _layers(layers: Layers, ax: Any) -> tuple[Any, Any]:
    figure, ax = _axes(ax, len(layers.added))
    ax.barh(range(len(layers.added)), list(layers.added.values()), color=_ACCENT)
    _names_down(ax, list(layers.added))
    ax.set_xlabel(printable(layers.x_label), parse_math=False)
    ax.set_title(printable(layers.title), parse_math=False)
    return figure, ax


@_draw.register
def _history(history: History, ax: Any) -> tuple[Any, Any]:
    figure, ax = _axes(ax)
    ax.plot([dot.trial for dot in history.dots], [dot.score for dot in history.dots], "o", color=_OTHER, markersize=3)
    xs, ys = [dot.trial for dot in history.line], [dot.score for dot in history.line]
    ax.plot(xs, ys, color=_FRONT, drawstyle="steps-post", label="best so far")
    ax.set_xlabel("trial")
    ax.set_ylabel(printable(history.rank_by), parse_math=False)
    ax.set_title(history.title)
    ax.legend()
    return figure, ax


def _axes(ax: Any, num_names: int = 0, size: tuple[float, float] | None = None) -> tuple[Any, Any]:
    if ax is not None:
        return ax.get_figure(), ax
    pyplot = import_optional("matplotlib.pyplot", "Figures need matplotlib", "report")
    height = max(3.5, 1.2 + _ROW * num_names)
    return pyplot.subplots(figsize=size or (6.4, height), layout="constrained")


def _names_down(ax: Any, names: Sequence[str]) -> None:
    """Write names beside the y axis, the first on top; a dollar sign in a name starts no formula."""
    ax.set_yticks(range(len(names)), list(map(printable, names)), parse_math=False)
    ax.set_ylim(max(len(names), 1) - 0.5, -0.5)
