"""Repeats are paired, honest about failures, and change nothing where there is one; a race keeps the numbers it had."""

import gc
import json
import math
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_zico import Candidate, Leaderboard, Score, ScoreCard, ZeroShotSelector
from lightning_zico.bridge import TrainingData
from lightning_zico.engine.scope import preserved_rng
from lightning_zico.errors import IdenticalBatchesError, TooFewBatchesError
from lightning_zico.ranking import combine, get_recipe
from lightning_zico.results import leaderboard_table
from lightning_zico.scoring.choice import Choice
from lightning_zico.scoring.executors.base import Job
from lightning_zico.selection.tally import Tally
from tests.modules import Classifier, Fixed, Numbered, assert_same, make_batches, make_network
from tests.selection.played import played
from tests.selection.test_selector import Data, Quadruple, broken

SAID = ["std_error", "rank_low", "rank_high", "p_best", "tie", "num_repeats"]


def test_one_repeat_is_the_same_as_none() -> None:
    candidates = {"small": Classifier, "large": Quadruple, "broken": broken}
    plain, one = ZeroShotSelector(), ZeroShotSelector(repeats=1)
    before, after = plain.rank(candidates, Data()), one.rank(candidates, Data())
    assert before.columns == after.columns
    assert not set(SAID) & set(after.columns)
    assert [{**row, "seconds": 0} for row in before] == [{**row, "seconds": 0} for row in after]
    assert all(s.by_repeat == () and s.std_error is None for card in one.cards_.values() for s in card.scores.values())


def test_each_repeat_is_the_ranking_of_its_own_seed_and_the_score_is_their_mean() -> None:
    candidates = {"a": Classifier, "b": Quadruple, "c": lambda: Classifier(8, dropout=0.5)}
    selector = ZeroShotSelector(proxies=["default", "zico"], repeats=3, seed=4)
    leaderboard = selector.rank(candidates, Data())
    alone = [ZeroShotSelector(proxies=["default", "zico"], seed=4 + r) for r in range(3)]
    for single in alone:
        single.rank(candidates, Data())
    for row in leaderboard:
        card = selector.cards_[row["name"]]
        for name in card:
            expected = [single.cards_[row["name"]][name].value for single in alone]
            assert list(card[name].by_repeat) == expected
            assert card[name].value == row[name] == pytest.approx(np.mean(expected), rel=1e-12)  # another order
            assert card[name].std_error == pytest.approx(np.std(expected, ddof=1) / math.sqrt(3), abs=1e-9)
        layers = [single.cards_[row["name"]]["zico"].layers for single in alone]
        assert card["zico"].layers == {name: pytest.approx(np.mean([x[name] for x in layers])) for name in layers[0]}
        assert (row["std_error"], row["num_repeats"]) == (card["balanced+synflow"].std_error, 3)
    assert leaderboard.provenance["repeats"] == 3
    with preserved_rng(4):
        winner = candidates[leaderboard.best]()
    assert_same(winner.state_dict(), selector.best_model_.state_dict())


def test_a_built_module_keeps_its_weights_and_the_notes_say_so() -> None:
    torch.manual_seed(1)
    selector = ZeroShotSelector(proxies=["zico", "l2_norm"], repeats=3)
    leaderboard = selector.rank({"built": Classifier(), "factory": Classifier}, Data())
    assert len(set(selector.cards_["built"]["l2_norm"].by_repeat)) == 1
    assert len(set(selector.cards_["factory"]["l2_norm"].by_repeat)) == 3
    assert len(set(selector.cards_["built"]["zico"].by_repeat)) == 3
    said = (
        "1 of the candidates were passed as built models and keep their weights: "
        "their repeats differ only in the batches."
    )
    assert said in leaderboard.notes
    assert said not in ZeroShotSelector(proxies="zico").rank([Classifier()], Data()).notes


class Seeded(Classifier):
    """Draws its weights from a seed of its own."""

    def __init__(self, width: int = 4) -> None:
        torch.manual_seed(width)
        super().__init__(width)


def test_factories_that_make_the_same_weights_are_counted_and_a_file_of_scores_knows_it(tmp_path: Path) -> None:
    candidates = {"seeded": Seeded, "fresh": Classifier, "built": Seeded(5)}
    for _ in range(2):  # scored, then found
        selector = ZeroShotSelector(proxies=["zico", "l2_norm", "params"], repeats=3, cache=tmp_path / "scores.db")
        leaderboard = selector.rank(candidates, Data())
        notes = "\n".join(leaderboard.notes)
        assert "1 of the candidates were passed as built models" in notes
        assert "1 of the factories makes the same weights in every repeat" in notes
        assert leaderboard.provenance["equal_repeats"] == []
        for name, card in selector.cards_.items():
            assert len(set(card["zico"].by_repeat)) == 3  # by the batches
            assert card["zico"].std_error > 0
            assert card["params"].std_error == 0  # is as sure as it looks
            assert (card["l2_norm"].std_error is None) == (name != "fresh")


@pytest.mark.parametrize("race", [False, True])
def test_equal_repeats_show_no_certainty(race: bool) -> None:
    candidates = {f"seeded-{width}": partial(Seeded, width) for width in (2, 4, 8)}
    selector = ZeroShotSelector(proxies="l2_norm", repeats=4, race=race)
    leaderboard = selector.rank({**candidates, "fresh": Classifier}, Data())
    several = [row for row in leaderboard if row["num_repeats"] > 1 and row["name"] != "fresh"]
    assert several
    for row in several:
        assert [row[column] for column in ("std_error", "rank_low", "rank_high", "p_best")] == [None] * 4
    names = [row["name"] for row in several]
    assert set(leaderboard.provenance["equal_repeats"]) == set(names)
    (note,) = [note for note in leaderboard.notes if "are equal" in note]
    assert all(name in note for name in names)
    assert "other batches give the same `l2_norm`" in note
    assert "±" not in "".join(line for line in str(leaderboard).splitlines() if "seeded" in line)
    assert leaderboard_table(leaderboard).row_count == 4
    counted = ZeroShotSelector(proxies="params", repeats=3).rank(candidates, Data())
    assert counted.provenance["equal_repeats"] == []
    assert [row["std_error"] for row in counted] == [0.0] * 3


def test_a_recipe_is_combined_within_each_repeat() -> None:
    members = get_recipe("size").members
    drawn = torch.randn(4, len(members), 3, generator=torch.Generator().manual_seed(0)).double().numpy()

    class InRepeat(Fixed):
        def measure(self, probe: Any) -> float:
            return probe.module.numbers[self.name][round(float(probe.batches[0][0].mean()))]

    modules = [Numbered(dict(zip(members, row.tolist(), strict=True))) for row in drawn]
    batches = [(torch.full((4, 2, 5, 5), float(r // 2)), labels) for r, (_, labels) in enumerate(make_batches(6, 4))]
    selector = ZeroShotSelector(
        proxies=["size", *map(InRepeat, members)], repeats=3, loss_fn=nn.functional.cross_entropy
    )
    leaderboard = selector.rank({f"m{idx}": module for idx, module in enumerate(modules)}, batches)
    by_repeat = [
        combine(get_recipe("size"), {name: drawn[:, m, r].tolist() for m, name in enumerate(members)}) for r in range(3)
    ]
    for row in leaderboard:
        expected = [values[int(row["name"][1:])] for values in by_repeat]
        assert list(selector.cards_[row["name"]]["size"].by_repeat) == expected
        assert row["score"] == pytest.approx(np.mean(expected))


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_rows_say_how_sure_the_ranks_are_in_the_scores_direction(higher_is_better: bool) -> None:
    sign = 1 if higher_is_better else -1
    table = sign * np.array([[1.0, 2.0, 1.5, 1.2], [9.0, 8.0, 8.5, 8.0], [8.0, 9.0, 8.0, 8.2]])
    _, leaderboard = played(table.tolist(), higher_is_better=higher_is_better)
    assert leaderboard.columns[:9] == ["rank", "name", "score", *SAID]
    assert [row["name"] for row in leaderboard] == ["c1", "c2", "c0"]
    assert [row["tie"] for row in leaderboard] == [1, 1, 2]
    assert [(row["rank_low"], row["rank_high"]) for row in leaderboard] == [(1, 2), (1, 2), (3, 3)]
    assert sum(row["p_best"] for row in leaderboard) == pytest.approx(1)
    assert leaderboard.rows[0]["p_best"] > leaderboard.rows[1]["p_best"] > leaderboard.rows[2]["p_best"] == 0
    assert leaderboard.notes[0] == "The first 2 are a tie that these repeats cannot distinguish: c1, c2."
    first = str(leaderboard).splitlines()[2].split()
    assert [first[0], first[1], *first[-4:-1]] == ["1", "c1", f"{sign * 8.375:.2f}", "±", "0.24"]
    _, clear = played((sign * np.array([[1.0, 2.0], [8.0, 9.0]])).tolist(), higher_is_better=higher_is_better)
    assert not any("tie" in note for note in clear.notes)


def test_columns_of_repeats_survive_every_form() -> None:
    selector, leaderboard = played([[1.0, 2.0], [8.0, 9.0], [8.5, None]])
    assert Leaderboard.from_json(leaderboard.to_json()) == leaderboard
    assert Leaderboard.from_dict(leaderboard.to_dict()) == leaderboard
    assert leaderboard.to_csv().splitlines()[0].startswith("rank,name,score," + ",".join(SAID))
    frame = leaderboard.to_pandas()
    assert list(frame.columns) == leaderboard.columns
    assert frame["rank_low"].tolist()[:2] == [1, 2]
    assert frame["num_repeats"].isna().tolist() == [False, False, True]
    card = selector.cards_["c0"]
    assert card["played"].by_repeat == (1.0, 2.0)
    assert ScoreCard.from_dict(json.loads(json.dumps(card.to_dict()))) == card


def test_a_card_that_was_written_before_there_were_repeats_is_read() -> None:
    card = ScoreCard("a", {"zico": Score("zico", 1.5)})
    written = card.to_dict()
    del written["scores"]["zico"]["by_repeat"], written["scores"]["zico"]["std_error"]
    assert ScoreCard.from_dict(written) == card
    written["scores"]["zico"]["repeats"] = [1.0, 2.0]  # their first name
    assert ScoreCard.from_dict(written)["zico"].by_repeat == (1.0, 2.0)


def test_what_fails_in_one_repeat_has_failed_and_the_error_names_it() -> None:
    selector, leaderboard = played([[1.0, 2.0, 3.0], [8.0, None, None], [7.0, 6.0, 5.0]])
    assert leaderboard.errors == {"c1": "RuntimeError: no luck (in repeat 1)"}
    assert [row["rank"] for row in leaderboard] == [1, 2, None]
    assert all(leaderboard.rows[-1][column] is None for column in SAID)
    assert selector.cards_["c1"]["played"].by_repeat == ()
    assert selector.cards_["c1"]["params"].value is not None  # which did not fail


def test_a_candidate_that_cannot_be_scored_is_not_tried_again() -> None:
    tries = []

    def sometimes() -> LightningModule:
        tries.append(1)
        if len(tries) == 2:
            raise RuntimeError("out of order")
        return Classifier()

    leaderboard = ZeroShotSelector(proxies="zico", repeats=4).rank([sometimes, Quadruple], Data())
    assert leaderboard.errors == {"sometimes": "does not build: RuntimeError: out of order (in repeat 1)"}
    assert len(tries) == 2
    assert leaderboard.best == "Quadruple"


def test_a_loss_that_is_nan_in_one_repeat_bars_from_the_ranking() -> None:
    class Unlucky(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            return loss * torch.nan if float(batch[0].flatten()[0]) == 5 else loss

    batches = make_batches(6)
    batches[2][0].flatten()[0] = 5  # the first batch of repeat 1
    leaderboard = ZeroShotSelector(repeats=3).rank([Unlucky, Classifier], batches)
    assert "its loss on the first batch is nan" in leaderboard.errors["Unlucky"]
    assert leaderboard.errors["Unlucky"].endswith("(in repeat 1).")


def read_repeats(data: Any, num_batches: int, repeats: int, seed: int = 0) -> list[list[Any]]:
    with TrainingData(data) as training_data:
        return [reading.batches for reading in training_data.read_repeats(num_batches, repeats, seed=seed)]


def test_an_iterable_of_batches_is_read_on_and_must_have_enough() -> None:
    batches = make_batches(6)
    for data in (batches, iter(batches), tuple(batches)):
        by_repeat = read_repeats(data, 2, 3)
        assert_same([list(repeat) for repeat in by_repeat], [batches[:2], batches[2:4], batches[4:]])
    with pytest.raises(TooFewBatchesError, match=r"4 repeats of 2 batches need 8 batches\. .* gave 6 batches"):
        ZeroShotSelector(repeats=4).rank([Classifier], batches)


def test_a_loader_is_read_again_under_each_seed_and_must_shuffle() -> None:
    data = TensorDataset(torch.randn(8, 2, 5, 5), torch.arange(8) % 3)
    shuffled = DataLoader(data, 4, shuffle=True)
    first, second = read_repeats(shuffled, 2, 2, seed=3)
    assert_same(first, read_repeats(shuffled, 2, 1, seed=3)[0])
    assert_same(second, read_repeats(shuffled, 2, 1, seed=4)[0])
    assert not torch.equal(first[0][0], second[0][0])
    for fixed in (DataLoader(data, 4), DataLoader(data, 4, shuffle=True, generator=torch.Generator())):
        with pytest.raises(IdenticalBatchesError, match="All 2 repeats have the same batches"):
            ZeroShotSelector(repeats=2).rank([Classifier], fixed)
    with pytest.raises(IdenticalBatchesError, match="repeats"):
        read_repeats([make_batches(1)[0]] * 4, 2, 2)


def test_cards_may_come_in_any_order() -> None:
    def tallied(order: Callable[[list[Job]], list[Job]]) -> Tally:
        tally = Tally(Choice.of("size"), repeats=3)
        jobs = list(tally.jobs([Candidate(name, make_network) for name in "abc"], range(3)))
        for job in order(jobs):
            value = float(ord(job.candidate.name) * (job.repeat_idx + 1) % 7)
            scores = {name: Score(name, value) for name in ("params", "macs")}
            tally.add(job, ScoreCard(job.candidate.name, scores))
        return tally

    forward, backward = tallied(list), tallied(lambda jobs: jobs[::-1])
    assert [card.name for card in forward.merge()] == ["a", "b", "c"]
    assert forward.merge() == backward.merge()
    assert forward.uncertainty() == backward.uncertainty()


def test_of_a_generator_of_instances_only_those_that_may_win_stay_alive() -> None:
    alive: list[weakref.ref[nn.Module]] = []

    def candidates() -> Iterator[LightningModule]:
        for _ in range(6):
            assert sum(ref() is not None for ref in alive) <= 2  # the first, and the last until this one comes
            module = Classifier()
            alive.append(weakref.ref(module))
            yield module
            del module

    gc.disable()
    try:
        selector = ZeroShotSelector(proxies="params", repeats=3)
        selector.rank(candidates(), Data())
        assert selector.best_model_ is alive[0]()
        assert sum(ref() is not None for ref in alive) == 1
    finally:
        gc.enable()


def test_the_winner_of_a_generator_of_instances_is_the_leaderboards_first() -> None:
    torch.manual_seed(0)
    modules = [Classifier(width) for width in (3, 9, 5, 7, 4)]
    for proxies in ("default", "zico"):
        selector = ZeroShotSelector(proxies=proxies, repeats=3)
        leaderboard = selector.rank((module for module in modules), Data())
        names = {f"Classifier-{idx + 1}" if idx else "Classifier": module for idx, module in enumerate(modules)}
        assert selector.best_model_ is names[leaderboard.best]


def test_wrong_arguments_are_refused_at_once() -> None:
    for wrong in (0, -1, 2.5, "3"):
        with pytest.raises(ValueError, match=r"Invalid repeats=.*: expected a whole number of at least 1"):
            ZeroShotSelector(repeats=wrong)
    for few in (1, 2):
        with pytest.raises(ValueError, match=f"Invalid repeats={few}: expected at least 3 with `race=True`"):
            ZeroShotSelector(repeats=few, race=True)


def drawn(leaderboard: Leaderboard) -> list[list[str]]:
    console = Console(width=160)
    with console.capture() as capture:
        console.print(leaderboard_table(leaderboard))
    return [line.split() for line in capture.get().splitlines()]


def test_the_table_shows_intervals_ties_and_the_error_compactly() -> None:
    _, leaderboard = played([[8.0, 9.0, 8.5], [8.5, 8.0, 8.5], [1.0, 1.0, 1.0], [None, 0.0, 0.0]])
    lines = drawn(leaderboard)
    assert lines[2][:7] == ["rank", "name", "95", "%", "best", "tie", "played"]
    first = next(line for line in lines if line[:2] == ["1", "c0"])
    assert first[2] == "1-2"
    assert first[3].endswith("%")
    assert first[4:8] == ["1", "8.50", "±", "0.29"]
    third = next(line for line in lines if line[:2] == ["3", "c2"])
    assert third[2:7] == ["3-3", "0%", "1", "±", "0"]  # alone, so that no tie is shown
    assert next(line for line in lines if line[:2] == ["-", "c3"])[2:5] == ["-", "-", "-"]
