"""Progress reaches callbacks, the log and the terminal, and an exception of a callback loses no score."""

import io
import logging
from typing import Any

import pytest
import rich
import torch
from rich.console import Console

from lightning_zico import Budget, ScoreCard, ZeroShotSearch, ZeroShotSelector, rank
from lightning_zico.errors import InvalidArgumentError
from lightning_zico.scoring import progress
from tests.modules import Classifier, make_batches


def broken() -> Classifier:
    raise RuntimeError("cannot\nbe built")


CANDIDATES: dict[str, Any] = {"small": lambda: Classifier(2), "broken": broken, "large": lambda: Classifier(8)}


class Stream:
    """Collects cards, as an object that sends them elsewhere would."""

    def __init__(self, stops_at: str | None = None) -> None:
        self.cards: list[ScoreCard] = []
        self.stops_at = stops_at

    def on_candidate_scored(self, card: ScoreCard) -> None:
        self.cards.append(card)
        if card.name == self.stops_at:
            raise ConnectionError("no stream")


def test_each_card_is_seen_once_by_objects_and_functions() -> None:
    stream, others = Stream(), list[ScoreCard]()
    selector = ZeroShotSelector(proxies=["params", "zico"], callbacks=[stream, others.append])
    selector.rank(CANDIDATES, make_batches())
    assert [card.name for card in stream.cards] == list(CANDIDATES)
    assert {card.name: card for card in stream.cards} == selector.cards_
    assert others == stream.cards
    assert "cannot be built" in " ".join((stream.cards[1].error or "").split())


@pytest.mark.parametrize("race", [False, True])
def test_with_repeats_cards_hold_the_means_so_far(race: bool) -> None:
    stream = Stream()
    selector = ZeroShotSelector(proxies="zico", repeats=3, race=race, callbacks=stream)
    selector.rank(CANDIDATES, make_batches(6))
    last = {card.name: card for card in stream.cards}
    assert {name: card["zico"].value for name, card in last.items()} == {
        name: card["zico"].value for name, card in selector.cards_.items()
    }
    numbers = [card["zico"].by_repeat for card in stream.cards if card.name == "large"]
    assert [len(each) for each in numbers] == list(range(1, len(numbers) + 1))
    assert all(each == numbers[-1][: len(each)] for each in numbers)
    for card in stream.cards:
        if card.error is None:
            assert card["zico"].value == pytest.approx(sum(card["zico"].by_repeat) / len(card["zico"].by_repeat))


@pytest.mark.parametrize("stops_at", ["small", "broken"])
def test_an_exception_of_a_callback_propagates_and_the_scores_so_far_are_kept(stops_at: str) -> None:
    selector = ZeroShotSelector(proxies="params", callbacks=Stream(stops_at))
    with pytest.raises(ConnectionError, match="no stream"):
        selector.rank(CANDIDATES, make_batches())
    done = list(CANDIDATES)[: list(CANDIDATES).index(stops_at) + 1]
    assert [row["name"] for row in selector.leaderboard_] == done
    assert selector.leaderboard_.provenance["broke_off"]


def test_a_search_streams_its_trials_and_keeps_them_too() -> None:
    stream = Stream()
    result = ZeroShotSearch("nas_bench_201", proxies="params", num_trials=4, callbacks=stream).run(images())
    assert [card.name for card in stream.cards] == [row["arch"] for row in result.history]
    search = ZeroShotSearch(
        "nas_bench_201", proxies="params", num_trials=4, callbacks=Stream(stops_at=stream.cards[1].name)
    )
    with pytest.raises(ConnectionError):
        search.run(images())
    assert [row["arch"] for row in search.result_.history] == [card.name for card in stream.cards[:2]]


def images() -> list[Any]:
    return [(torch.randn(2, 3, 8, 8), torch.tensor([0, 1])) for _ in range(2)]


@pytest.mark.parametrize("wrong", [3, "print", Stream, [print, object()]])
def test_what_is_no_callback_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"Invalid callbacks: .*on_candidate_scored\(card\)"):
        ZeroShotSelector(callbacks=wrong)


def test_without_a_terminal_a_line_is_logged_every_so_often(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lightning_zico")
    settings: dict[str, Any] = {"proxies": "params", "budget": Budget(params=100)}
    monkeypatch.setattr(progress, "_STATE_INTERVAL_S", 0.0)
    monkeypatch.setattr(progress, "_MOST_TIME_FOR_STATE", float("inf"))
    rank(CANDIDATES, make_batches(), **settings)
    assert [record.name for record in caplog.records] == ["lightning_zico.scoring.progress"]  # only the last, so soon
    monkeypatch.setattr(progress, "_LOG_INTERVAL_S", 0.0)
    caplog.clear()
    rank(CANDIDATES, make_batches(), **settings)
    first, second, third, end = caplog.messages
    assert first.startswith("Ranking: 1 of 3 in 0:00:0")
    assert " left, best 'small' (" in first
    assert second.endswith("0 rejected, 1 failed")
    assert third.endswith("1 rejected, 1 failed")
    assert end.startswith("Ranking: 3 of 3 in ")
    assert " left" not in end
    caplog.clear()
    rank(CANDIDATES, make_batches(), enable_progress_bar=False, **settings)
    assert caplog.messages == []
    caplog.set_level(logging.DEBUG, "lightning_zico")
    rank(CANDIDATES, make_batches(), enable_progress_bar=False, **settings)
    assert [message.partition(": ")[0] for message in caplog.messages] == ["'small'", "'broken'", "'large'"]


@pytest.mark.parametrize("proxies", ["params", "default"])
def test_the_bar_shows_count_time_left_the_best_so_far_and_the_rejected(
    monkeypatch: pytest.MonkeyPatch, proxies: str
) -> None:
    out = io.StringIO()
    monkeypatch.setattr(rich, "_console", Console(file=out, force_terminal=True, width=160))
    monkeypatch.setattr(progress, "_STATE_INTERVAL_S", 0.0)
    monkeypatch.setattr(progress, "_MOST_TIME_FOR_STATE", float("inf"))
    rank(CANDIDATES, make_batches(), proxies=proxies, budget=Budget(params=1e6))
    assert "Ranking" in out.getvalue()
    assert "3/3" in out.getvalue()
    assert "best 'large'" in out.getvalue() or "best 'small'" in out.getvalue()
    assert "0 rejected, 1 failed" in out.getvalue()
