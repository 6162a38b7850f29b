"""Every figure is drawn by both renderers, from plain values and with the same numbers."""

import json
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any, get_args

import matplotlib
import pytest
from matplotlib import pyplot

from lightning_zico.report import Column, Table, as_html, as_text, draw, for_terminal, spec_of
from lightning_zico.report.figures import (
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

matplotlib.use("Agg")

UNSAFE = "<b>\x1b[2J\u202e\udcff"
FIGURES = {
    Ranks: Ranks(UNSAFE, (RankDot(UNSAFE, 1, 2.5, 1, 2, 0.75), RankDot("b", 2, 0.5)), 2),
    TradeOff: TradeOff(UNSAFE, UNSAFE, (TradeOffDot(UNSAFE, 3.0, 2.5, 0.5), TradeOffDot("b", 4.0, 0.5)), (0,), 2),
    Agreement: Agreement(("ranking", UNSAFE), ((1.0, 0.25), (0.25, None))),
    Profiles: Profiles(
        UNSAFE,
        ("ranking", UNSAFE),
        (ProfileLine(UNSAFE, 1, (1.0, 7.0), (1.0, 0.75)), ProfileLine("b", 2, (2.0, None), (0.25, None))),
        3,
    ),
    Finals: Finals(UNSAFE, True, (FinalDot(UNSAFE, 0.5, 2, 2), FinalDot("b", None, 1, 1))),
    Layers: Layers(UNSAFE, UNSAFE, "2.5", {UNSAFE: 3.0, "fc": -0.5}),
    History: History(UNSAFE, (TrialDot(0, 2.5, UNSAFE), TrialDot(3, 0.5, "b")), (TrialDot(0, 2.5, UNSAFE),), 5, 2),
}
# What is drawn of each: the numbers of the marks, as a set.
NUMBERS = {
    Ranks: {1, 2},
    TradeOff: {3.0, 4.0, 2.5, 0.5},
    Agreement: {1.0, 0.25},
    Profiles: {1.0, 0.75, 0.25},
    Finals: {0.5},
    Layers: {3.0, -0.5},
    History: {0, 3, 4, 2.5, 0.5},
}


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    pyplot.close("all")


def test_every_figure_has_an_example_here() -> None:
    assert set(FIGURES) == set(NUMBERS) == set(get_args(Figure))


@pytest.mark.parametrize("kind", FIGURES)
def test_matplotlib_and_vega_show_the_same_numbers(kind: Any) -> None:
    figure, ax = draw(FIGURES[kind])
    figure.canvas.draw()
    drawn = {float(number) for line in ax.get_lines() for axis in line.get_data() for number in axis}
    drawn |= {float(bar.get_width()) for bar in ax.patches}
    drawn |= {float(number) for image in ax.images for row in image.get_array() for number in row if number == number}
    spec = spec_of(FIGURES[kind])
    listed = {value for datum in spec["data"]["values"] for value in datum.values() if isinstance(value, int | float)}
    assert NUMBERS[kind] <= drawn
    assert NUMBERS[kind] <= listed
    assert len(spec["layer"]) >= 1


@pytest.mark.parametrize("kind", FIGURES)
def test_neither_renderer_passes_on_control_characters(kind: Any) -> None:
    spec = json.loads(json.dumps(spec_of(FIGURES[kind])))
    figure, _ = draw(FIGURES[kind])
    drawn = [text.get_text() for text in figure.findobj(matplotlib.text.Text)]

    def texts(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict | list):
            for part in value.values() if isinstance(value, dict) else value:
                yield from texts(part)

    for text in (*texts(spec), *drawn):
        assert text.isprintable(), text
    assert any("\\x1b" in text for text in texts(spec))


@pytest.mark.parametrize("kind", FIGURES)
def test_figures_are_frozen_and_have_words(kind: Any) -> None:
    figure = FIGURES[kind]
    assert figure.title
    assert figure.text
    assert replace(figure) == figure
    with pytest.raises(AttributeError):
        setattr(figure, fields(figure)[0].name, None)


def test_what_is_no_figure_is_refused() -> None:
    for render in (draw, spec_of):
        with pytest.raises(TypeError, match="Invalid figure of type str"):
            render("ranks")  # type: ignore[operator]


def test_a_table_has_the_same_cells_in_all_three_forms() -> None:
    table = Table(UNSAFE, (Column("name", (UNSAFE, "日本"), is_text=True), Column("zico", ("1.50", "-"))), ("b: no",))
    lines = as_text(table).splitlines()
    assert lines[2].endswith("  1.50")
    assert lines[3].split() == ["日本", "-"]
    assert lines[4] == "b: no"
    drawn = for_terminal(table)
    assert drawn.row_count == 2
    for text in (as_text(table), as_html(table), *(str(cell) for column in drawn.columns for cell in column.cells)):
        assert "\x1b" not in text
        assert "\udcff" not in text
    assert "<b>" not in as_html(table)
    assert as_html(table).count("<td>") == 4
