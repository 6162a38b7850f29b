"""Scores of one candidate are plain data, and show themselves as a table."""

import json

from lightning_zico import Score, ScoreCard


def test_card_survives_json_with_layers_and_details() -> None:
    before = ScoreCard("a", {"zico": Score("zico", 1.5, None, 0.1, {"fc.weight": 1.5}, {"axis": "batch"})}, None, 0.2)
    assert ScoreCard.from_dict(json.loads(json.dumps(before.to_dict()))) == before


def test_a_card_is_a_table_with_the_reasons_below() -> None:
    scores = {
        "zico": Score("zico", 12.5, std_error=0.5, seconds=0.25),
        "snip": Score("snip", None, "KeyError: 'x'"),
    }
    shown = ScoreCard("a\n<b>", scores, untrainable="its loss is NaN")
    assert str(shown).splitlines() == [
        "Scores of a\\n<b>",
        "proxy       value  seconds",
        "zico   12.5 ± 0.5     0.25",
        "snip            -        0",
        "a",
        "    <b>: its loss is NaN",
        "snip: KeyError: 'x'",
    ]
    assert "<b>" not in shown._repr_html_()
    assert "&lt;b&gt;" in shown._repr_html_()


def test_one_reason_of_all_scores_is_shown_once() -> None:
    assert str(ScoreCard.failed("a", ["zico", "snip"], "does not build")).count("does not build") == 1
