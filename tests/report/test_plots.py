"""Figures show the leaderboard's numbers: what artists hold is compared, not pixels."""

import sys
from collections.abc import Iterator
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot

from lightning_zico import Leaderboard, Score, ScoreCard, SearchResult, score
from lightning_zico.results.views import agreement
from tests.modules import Classifier, make_batches
from tests.report.boards import EVIL, card, plain, repeated, searched, with_finals

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    pyplot.close("all")


def names_on(axis: Any) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


def lines_of(ax: Any, marker: str) -> list[list[tuple[float, float]]]:
    lines = [line for line in ax.get_lines() if line.get_marker() == marker]
    return [list(zip(*map(list, line.get_data()), strict=True)) for line in lines]


def test_ranks_have_their_intervals() -> None:
    _, ax = repeated().plot()
    assert names_on(ax.yaxis) == ["best", "good", "dear", "small", "no macs"]
    assert lines_of(ax, "o") == [[(1, 0), (2, 1), (3, 2), (4, 3), (5, 4)]]
    spans = [[x for x, _ in line] for line in lines_of(ax, "None")]
    assert spans == [[1, 2], [1, 3], [2, 3], [4, 5], [4, 5]]
    assert ax.yaxis_inverted()
    assert "interval" in ax.get_xlabel()


def test_ranks_of_one_repeat_have_none_and_say_so() -> None:
    _, ax = plain().plot("ranks")
    assert lines_of(ax, "None") == []
    assert ax.get_xlabel() == "rank by zico; no interval with one repeat"


def test_of_many_candidates_the_first_are_drawn_and_the_title_says_so() -> None:
    _, ax = plain(*(card(str(idx), float(-idx), 1.0) for idx in range(50))).plot("ranks")
    assert names_on(ax.yaxis) == [str(idx) for idx in range(40)]
    assert ax.get_title() == "Ranks (the first 40 of 50)"


def test_pareto_has_every_candidate_with_a_cost_and_the_front_apart() -> None:
    _, ax = repeated().plot("pareto")
    everyone, front = lines_of(ax, "o")
    assert sorted(everyone) == [(1e3, 1.0), (2e3, 5.0), (8e3, 7.0), (9e3, 4.0)]
    assert front == [(1e3, 1.0), (2e3, 5.0), (8e3, 7.0)]
    assert [text.get_text() for text in ax.texts] == ["small", "good", "best"]
    assert sorted(lines_of(ax, "None"))[0] == [(1e3, 0.5), (1e3, 1.5)]
    _, ax = plain().plot("pareto", cost="params")
    assert len(lines_of(ax, "o")[0]) == 5
    assert ax.get_ylabel() == "zico"
    _, ax = plain(higher_is_better=False).plot("pareto")
    assert ax.get_ylabel() == "zico (lower is better)"


def test_agreement_is_the_matrix_of_taus() -> None:
    board = plain()
    _, ax = board.plot("agreement")
    figure = agreement(board.rows, board.provenance)
    np.testing.assert_array_equal(ax.images[0].get_array(), figure.taus)
    assert names_on(ax.yaxis) == names_on(ax.xaxis) == list(figure.names)
    assert [text.get_text() for text in ax.texts] == [f"{tau:.2f}" for row in figure.taus for tau in row]
    _, ax = plain(card("one", 1.0, 2.0)).plot("agreement")
    assert {text.get_text() for text in ax.texts} == {"-"}


def test_finals_stand_winner_first_with_their_rank_by_score() -> None:
    _, ax = with_finals().plot("finals")
    assert names_on(ax.yaxis) == ["good (by score 2.)", "best (by score 1.)", "dear (by score 3.)"]
    assert lines_of(ax, "o") == [[(0.25, 0), (0.5, 1)]]
    assert [text.get_text() for text in ax.texts] == ["2 epochs", "2 epochs", "failed after 1 epoch"]
    assert ax.get_xlabel() == "val_loss (lower is better)"
    with pytest.raises(ValueError, match="has no finals"):
        plain().plot("finals")


def test_a_search_has_its_history_with_the_best_until_then_its_front_and_its_taus() -> None:
    _, ax = searched().plot()
    assert lines_of(ax, "o") == [[(0, 2.0), (2, 5.0), (3, 4.0), (4, 7.0)]]
    assert lines_of(ax, "None") == [[(0, 2.0), (2, 5.0), (4, 7.0), (4, 7.0)]]
    _, ax = searched().plot("pareto")
    assert lines_of(ax, "o")[1] == [(3e6, 4.0), (8e6, 7.0)]
    _, ax = searched().plot("agreement")
    assert names_on(ax.yaxis) == ["ranking", "latency", "cost_macs", "cost_params"]
    for found in (searched(first=EVIL[2]), SearchResult(())):
        for kind in ("history", "pareto", "agreement", "profiles"):
            figure, _ = found.plot(kind)
            figure.canvas.draw()
    with pytest.raises(ValueError, match="Invalid kind='ranks': expected one of history, pareto, agreement, profiles"):
        searched().plot("ranks")  # type: ignore[arg-type]


def test_layers_are_the_parts_of_the_score() -> None:
    scores = score(Classifier(), make_batches(), proxies=["zico", "macs"])
    _, ax = scores.plot()
    assert [bar.get_width() for bar in ax.patches] == list(scores["zico"].layers.values())
    assert sum(bar.get_width() for bar in ax.patches) == pytest.approx(scores["zico"].value)
    assert names_on(ax.yaxis) == list(scores["zico"].layers)
    with pytest.raises(
        ValueError, match=r"Invalid proxy='macs': it has no parts by layer for 'Classifier'.* with parts: zico\."
    ):
        scores.plot("macs")
    with pytest.raises(ValueError, match="Invalid proxy='snip': it has no parts"):
        scores.plot("snip")


@pytest.mark.parametrize("kind", ["ranks", "pareto", "agreement", "finals"])
def test_axes_that_are_given_are_drawn_in(kind: Any) -> None:
    figure, axes = pyplot.subplots()
    assert with_finals().plot(kind, axes) == (figure, axes)
    assert axes.get_lines() or axes.images
    assert pyplot.get_fignums() == [figure.number]


@pytest.mark.parametrize("kind", ["ranks", "pareto", "agreement", "profiles"])
@pytest.mark.parametrize(
    "board", [Leaderboard(()), plain(card("bad", None, None, error="no")), plain(card("a", 1.0, 0.0))]
)
def test_few_or_no_candidates_are_drawn_too(kind: Any, board: Leaderboard) -> None:
    figure, _ = board.plot(kind)
    figure.canvas.draw()


@pytest.mark.parametrize("kind", ["ranks", "pareto", "agreement", "profiles"])
def test_names_are_text_and_no_formulas(kind: Any) -> None:
    figure, ax = plain(*(card(name, float(idx), 1.0 + idx) for idx, name in enumerate(EVIL)), rank_by=EVIL[2]).plot(
        kind
    )
    figure.canvas.draw()  # a formula that does not parse would raise here
    if kind == "ranks":
        assert names_on(ax.yaxis) == EVIL[::-1]
    figure, _ = ScoreCard("$x$", {"zico": Score("zico", 1.0, layers={EVIL[2]: 1.0})}).plot()
    figure.canvas.draw()


def test_what_is_wrong_or_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ValueError, match="Invalid kind='pie': expected one of ranks, pareto, agreement, profiles, finals"
    ):
        plain().plot("pie")  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install .*\[report\]'"):
        plain().plot()
