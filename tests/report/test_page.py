"""The page holds all that the leaderboard does, as text, and asks for nothing from anywhere."""

import base64
import hashlib
import json
import re
import sys
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lightning_zico import Leaderboard, Score, ScoreCard, SearchResult
from lightning_zico.errors import InvalidArgumentError
from lightning_zico.report import page as html
from lightning_zico.report.figures import MOST_DOTS
from lightning_zico.report.page import _vega
from tests.report.boards import CARDS, EVIL, card, plain, repeated, searched, with_finals

ODD_BOARDS = {
    "empty": Leaderboard(()),
    "one": plain(card("only", 1.0, 0.0)),
    "all failed": plain(card("bad", None, None, error="no")),
    "no macs": Leaderboard(({"rank": 1, "name": "a", "score": 2.5, "error": None, "seconds": 0.5},)),
    "repeated": repeated(),
    "finals": with_finals(),
}


class Reader(HTMLParser):
    """Collects elements with their attributes, and the texts of those that are asked for."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "input"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts.append((self._open[-1], data))

    def close(self) -> None:
        super().close()
        assert self._open == []

    def of(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag]


def specs_of(page: str) -> list[dict[str, Any]]:
    match = re.search(r'<script type="application/json" id="charts">(.*?)</script>', page, flags=re.DOTALL)
    assert match
    return json.loads(match.group(1))


def data_of(page: str) -> dict[str, Any]:
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, flags=re.DOTALL)
    assert match
    return json.loads(match.group(1))


@pytest.mark.parametrize("board", ODD_BOARDS.values(), ids=ODD_BOARDS)
def test_elements_are_closed_and_every_name_reason_and_note_is_text(board: Leaderboard) -> None:
    reader = Reader(board.to_html())
    reader.close()
    text = "\n".join(text for _, text in reader.texts)
    for part in (*(row["name"] for row in board), *board.errors.values(), *board.notes, *board.columns):
        assert part in text


def test_what_users_name_opens_no_element() -> None:
    evil = EVIL[0]
    board = plain(card(evil, 1.0, 2.0), card(EVIL[1], None, None, error=evil), rank_by=evil, loss_fn=EVIL[1])
    harmless = plain(card("a", 1.0, 2.0), card("b", None, None, error="c"), rank_by="e", loss_fn="d")
    reader = Reader(board.to_html())
    reader.close()
    tags = [tag for tag, _ in reader.elements]
    assert tags == [tag for tag, _ in Reader(harmless.to_html()).elements]
    assert "img" not in tags
    assert specs_of(board.to_html())[0]["data"]["values"][0]["name"] == evil


def test_provenance_is_told() -> None:
    reader = Reader(plain(protocol="two halves").to_html())
    for key, value in [("seed", "3"), ("batches_hash", "c0ffee"), ("protocol", "two halves")]:
        assert reader.of("dd")[reader.of("dt").index(key)] == value, key
    assert "torch 2.14.1" in reader.of("dd")[reader.of("dt").index("versions")]
    assert json.loads("".join(reader.of("pre"))) == plain(protocol="two halves").provenance


def test_the_policy_allows_the_pages_own_scripts_and_nothing_else() -> None:
    page = with_finals().to_html()
    (policy,) = [a["content"] for tag, a in Reader(page).elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe-eval" not in policy
    scripts = re.findall(r'<script type="module">(.*?)</script>', page, flags=re.DOTALL)
    styles = re.findall(r"<style>(.*?)</style>", page, flags=re.DOTALL)
    sources = dict(part.split(" ", 1) for part in policy.split("; "))
    for kind, texts in (("script-src", scripts), ("style-src-elem", styles)):
        digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
        assert sorted(sources[kind].split()) == sorted(f"'sha256-{digest}'" for digest in digests)
    assert len(scripts) == 3


def test_no_element_refers_to_anything_outside() -> None:
    elements = Reader(with_finals().to_html()).elements
    here = {f"#{attributes['id']}" for _, attributes in elements if "id" in attributes}
    for tag, attributes in elements:
        for name in ("src", "href", "action", "srcset", "data", "poster"):
            assert attributes.get(name) in {None, "data:,", *here}, (tag, attributes)


def test_every_section_is_linked_from_the_top() -> None:
    lacking = ScoreCard("a", {"zico": Score("zico", 1.0), "params": Score("params", None, "no")})
    reader = Reader(plain(lacking, *CARDS).to_html())
    sections = [attributes["aria-labelledby"] for tag, attributes in reader.elements if tag == "section"]
    links = [attributes["href"] for tag, attributes in reader.elements if tag == "a"]
    assert sections == [
        *("figures", "candidates", "failed-candidates", "missing-numbers", "what-the-numbers-depend-on")
    ]
    assert links == [f"#{section}" for section in sections]


def test_the_page_has_all_rows_as_data_and_the_first_as_a_table() -> None:
    cards = [card(f"n{idx}", -float(idx), idx / 3) for idx in range(250)]
    board = plain(*cards, *(card(f"bad{idx}", None, None, error=f"no {idx}") for idx in range(30)))
    page = board.to_html()
    data = data_of(page)
    columns = [column["name"] for column in data["columns"]]
    assert columns == board.columns
    assert [dict(zip(columns, row, strict=True)) for row in zip(*data["values"], strict=True)] == list(board)
    assert data["numRanked"] == 250
    reader = Reader(page)
    assert [text for text in reader.of("th") if re.fullmatch(r"n\d+", text)] == [f"n{idx}" for idx in range(100)]
    assert [text for text in reader.of("dt") if text.startswith("bad")] == [f"bad{idx}" for idx in range(20)]


def test_a_column_with_texts_is_one_of_texts_and_the_best_come_first() -> None:
    row = {"rank": 1, "name": "a", "score": 1.0, "error": None, "seconds": 0.0}
    rows = [{**row, "hparams/width": 8, "hparams/optimizer": "adam", "hparams/bias": True, "zico": 1.0, "macs": 2.0}]
    data = data_of(Leaderboard(tuple(rows), {"rank_by": "zico", "higher_is_better": False}).to_html())
    columns = {column["name"]: column for column in data["columns"]}
    texts = {name for name, column in columns.items() if column["isText"]}
    assert texts == {"name", "error", "hparams/optimizer", "hparams/bias"}
    low = {name for name, column in columns.items() if column["lowIsBest"]}
    assert low == texts | {"rank", "score", "zico", "hparams/width", "macs", "seconds"}
    assert not any(column["lowIsBest"] for column in data_of(plain().to_html())["columns"] if column["name"] == "zico")
    by_size = data_of(plain(rank_by="params").to_html())["columns"]
    assert {column["name"] for column in by_size if column["lowIsBest"]} == {"rank", "name", "macs", "error", "seconds"}


def test_details_are_those_of_the_cards() -> None:
    trace = f"Traceback ...\n{EVIL[0]}"
    scores = {
        "zico": Score("zico", 1.5, layers={"fc": 1.0, EVIL[1]: -2.0}, by_repeat=(1.0, 2.0)),
        "zen": Score("zen", 2.0, layers={"fc": 0.5}),
        "params": Score("params", None, EVIL[2]),
    }
    cards = {
        "a": ScoreCard("a", scores, hyperparameters={"width": 8, "bias": True}),
        "b": ScoreCard.failed("b", ["zico"], "no", traceback=trace),
        "c": ScoreCard.failed("c", ["zico"], "no", traceback=trace),
    }
    board = Leaderboard.of(list(cards.values()), rank_by="zico", columns=["zico", "zen", "params"])
    data = data_of(board.to_html(cards=cards))
    assert data["details"] == {
        "0": {
            "hyperparameters": {"width": 8, "bias": "True"},
            "byRepeat": {"zico": "1, 2"},
            "layers": ["fc", EVIL[1]],
            "added": {"zico": [1.0, -2.0], "zen": [0.5, None]},
            "reasons": {"params": EVIL[2]},
        },
        "1": {"traceback": 0},
        "2": {"traceback": 0},
    }
    assert data["tracebacks"] == [trace]
    assert data_of(board.to_html())["details"] == {"0": {"reasons": {"params": EVIL[2]}}}


def test_of_very_many_candidates_the_first_have_details() -> None:
    scored = {str(idx): {"zico": Score("zico", -float(idx), by_repeat=(1.0, 2.0))} for idx in range(150)}
    cards = {name: ScoreCard(name, scores) for name, scores in scored.items()}
    cards |= {f"bad{idx}": ScoreCard.failed(f"bad{idx}", ["zico"], "no", traceback=str(idx)) for idx in range(150)}
    board = Leaderboard.of(list(cards.values()), rank_by="zico", columns=["zico"])
    data = data_of(board.to_html(cards=cards))
    assert [int(idx) for idx in data["details"]] == [*range(100), *range(150, 250)]
    assert len(data["tracebacks"]) == 100
    with pytest.raises(InvalidArgumentError, match="Invalid cards of type list: expected a mapping"):
        board.to_html(cards=list(cards.values()))  # type: ignore[call-overload]


def test_hyperparameters_that_are_no_finite_numbers_are_texts() -> None:
    numbers = {"a": {"clip": float("inf"), "p": float("nan")}, "b": {"clip": 0.5, "p": float("nan")}}
    cards = {
        name: ScoreCard(name, {"zico": Score("zico", 1.0)}, weights=name, hyperparameters=saved)
        for name, saved in numbers.items()
    }
    board = Leaderboard.of(list(cards.values()), rank_by="zico", columns=["zico"])
    assert [row["hparams/clip"] for row in board] == ["inf", 0.5]
    assert Leaderboard.from_json(board.to_json()) == board
    details = data_of(board.to_html(cards=cards))["details"]
    assert details["0"]["hyperparameters"] == {"clip": "inf", "p": "nan"}
    assert details["1"]["hyperparameters"] == {"clip": 0.5, "p": "nan"}


def test_figures_hold_the_numbers() -> None:
    board = with_finals()
    ranks, pareto, finals, agreement, profiles = (spec["data"]["values"] for spec in specs_of(board.to_html()))
    assert [(v["name"], v["rank"], v["low"], v["high"]) for v in ranks][:2] == [("good", 2, 1, 3), ("best", 1, 1, 2)]
    assert {v["name"] for v in pareto if v["front"] != "beaten"} == {"small", "good", "best"}
    assert [(v["name"], v["final"]) for v in finals] == [("good", 0.25), ("best", 0.5), ("dear", None)]
    assert len(agreement) == 9
    assert next(v["tau"] for v in agreement if (v["a"], v["b"]) == ("ranking", "ranking")) == pytest.approx(1)
    assert {v["name"]: v["value"] for v in profiles if v["column"] == "macs"} == {
        row["name"]: row["macs"] for row in board if row["score"] is not None
    }


def test_the_layers_of_a_card_are_a_figure() -> None:
    layers = {"0.weight": 1.5, EVIL[0]: -0.5}
    shown = ScoreCard("a", {"zico": Score("zico", 1.0, layers=layers), "params": Score("params", 1.0)})
    (*_, bars, _, _) = specs_of(plain().to_html(card=shown))
    assert {value["layer"]: value["added"] for value in bars["data"]["values"]} == layers
    with pytest.raises(ValueError, match="it has no parts by layer for 'b'"):
        plain().to_html(card=card("b", 1.0, 1.0))


def test_a_search_shows_how_it_went_and_what_it_costs() -> None:
    result = searched(against=("params", "latency_s"))
    page = result.to_html()
    reader = Reader(page)
    reader.close()
    assert reader.of("h1") == ["Search of plainnet by zico"]
    assert [cell for cell in reader.of("th") if cell in "abcde"] == ["e", "c", "d", "a"]
    assert "b" in reader.of("dt")
    assert reader.of("li") == result.notes
    assert "This ranking adds little to counting weights: it is almost the same as by macs (0.95)." in result.notes
    history, params, latency, macs, agreement, _ = (spec["data"]["values"] for spec in specs_of(page))
    assert [(v["trial"], v["score"]) for v in history if not v["best"]] == [(0, 2.0), (2, 5.0), (3, 4.0), (4, 7.0)]
    assert [(v["trial"], v["name"]) for v in history if v["best"]] == [(0, "a"), (2, "c"), (4, "e"), (4, "e")]
    assert {v["name"] for v in macs if v["front"] != "beaten"} == {"d", "e"}
    assert [v["cost"] for v in params] == [v["cost"] for v in macs]
    assert {v["name"] for v in latency if v["front"] != "beaten"} == {"c", "e"}
    assert {v["a"] for v in agreement} == {"ranking", "latency", "cost_macs", "cost_params"}


@pytest.mark.parametrize("result", [SearchResult(()), SearchResult(searched().history[1:2])])
def test_a_search_that_found_nothing_makes_a_page_too(result: SearchResult) -> None:
    assert specs_of(result.to_html()) == []


def test_of_a_long_search_the_page_shows_a_part_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html, "_MOST_ROWS", 3)
    page = searched(num_more=3 * MOST_DOTS).to_html()
    history, macs, _, _ = specs_of(page)
    assert len([v for v in history["data"]["values"] if not v["best"]]) <= MOST_DOTS
    assert "of 6,004 dots" in history["description"]
    assert len(macs["data"]["values"]) == MOST_DOTS
    assert {v["name"] for v in macs["data"]["values"]} >= set("acde")
    assert f"The figure shows these and the best ones, {MOST_DOTS} in total." in macs["description"]
    assert "The first 3 of 6,004 are shown." in page
    assert data_of(page)["values"][1] == ["e", "c", "d", "b"]  # three with a rank, and the one that failed


def test_the_page_is_written_and_its_place_given_back(tmp_path: Path) -> None:
    path = plain().to_html(str(tmp_path / "board.html"))
    assert path == tmp_path / "board.html"
    assert path.read_text(encoding="utf-8") == plain().to_html()
    assert path.stat().st_size < 1_200_000  # Vega's libraries are 0.9 MB of it
    assert escape("does not build: <b>no</b>") in path.read_text(encoding="utf-8")


def test_without_the_library_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    _vega.cache_clear()
    with pytest.raises(ModuleNotFoundError, match=r"pip install .*\[report\]'"):
        plain().to_html()


def test_why_numbers_are_missing_is_a_section() -> None:
    def lacking(name: str, reason: str | None, value: float = 1.0) -> ScoreCard:
        scores = {"zico": Score("zico", value), "macs": Score("macs", 1.0)}
        return ScoreCard(name, {**scores, "params": Score("params", None if reason else 2.0, reason)})

    board = plain(lacking("a", EVIL[0]), lacking("b", EVIL[0]), lacking("c", None))
    reader = Reader(board.to_html())
    reader.close()
    assert f"{EVIL[0]} (a, b)" in reader.of("dd")
    assert "Missing numbers" in reader.of("h2")
    assert "missing" not in json.loads("".join(reader.of("pre")))
    assert "Missing numbers" not in Reader(plain(lacking("c", None)).to_html()).of("h2")
    many = plain(*(lacking(f"n{idx}", f"reason {idx % 150}") for idx in range(150 * 41)))
    items = Reader(many.to_html()).of("dd")
    assert len([item for item in items if item.startswith("reason ")]) == 100
    assert "50 more reasons." in items
    assert any(item.endswith(" and 1 more)") for item in items)


@pytest.mark.parametrize(("higher_is_better", "word"), [(True, "less"), (False, "more")])
def test_the_front_is_told_in_the_direction_of_the_score(higher_is_better: bool, word: str) -> None:
    _, pareto, *_ = specs_of(plain(higher_is_better=higher_is_better).to_html())
    assert f"costs no more and scores no {word}." in pareto["description"]


def test_a_name_that_utf8_cannot_write_loses_no_page(tmp_path: Path) -> None:
    page = plain(card("caf\udce9", 1.0, 2.0)).to_html(tmp_path / "board.html").read_text(encoding="utf-8")
    assert "caf\\udce9" in Reader(page).of("th")
