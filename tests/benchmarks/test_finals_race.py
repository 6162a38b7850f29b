"""The race of finals on photographs: choosers on made-up curves, recorded trainings, and a small run of it all."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_zico import ZeroShotSelector
from lightning_zico.ranking.learned import choose_next
from tests.data import data_file

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import finals_race as race
from transfer_zoo import Data

N, EPOCHS = 18, 12


def heat(n: int = N, seed: int = 0) -> race.Heat:
    """Candidates whose scores and curves share a part, in the order of their params."""
    rng = np.random.default_rng(seed)
    shared = np.linspace(2, 0, n)
    truths = 40 + 5 * (shared + rng.normal(size=n))
    labels = [[truth - 30 / (epoch + 1) + rng.normal() for epoch in range(EPOCHS)] for truth in truths]
    columns = {name: (shared + rng.normal(size=n)).tolist() for name in race.MEMBERS}
    return race.Heat(labels, {**columns, "params": [float(n - idx) for idx in range(n)]}, truths.tolist(), seed)


def test_those_trained_in_full_are_the_first_of_an_order_or_of_the_first_epoch() -> None:
    own = heat()
    ends = [labels[-1] for labels in own.labels]
    assert own.order("params") == list(range(N))
    assert race.train_first(own, own.order("params"), 1) == race.Choice(0, EPOCHS)
    assert race.train_first(own, own.order("params"), 3) == race.Choice(int(np.argmax(ends[:3])), 3 * EPOCHS)
    assert {choice.pick for choice in race.train_random(own, N)} == {int(np.argmax(ends))}
    first_two = np.argsort([-labels[0] for labels in own.labels])[:2].tolist()
    expected = race.Choice(max(first_two, key=lambda idx: ends[idx]), N + 2 * (EPOCHS - 1))
    assert race.train_all_briefly(own, 2) == expected


@pytest.mark.parametrize(("rungs", "epochs"), [((1, 3), 18 + 6 * 2 + 9), ((1, 3, 9), 18 + 6 * 2 + 2 * 6 + 3)])
def test_halving_keeps_the_best_third_at_each_rung(rungs: tuple[int, ...], epochs: int) -> None:
    own = heat()
    remaining = set(range(N))
    for rung, num in zip(rungs, (6, 2, 1), strict=False):
        values = {idx: own.labels[idx][rung - 1] for idx in remaining}
        remaining = {idx for idx in remaining if sum(other > values[idx] for other in values.values()) < num}
    best = max(remaining, key=lambda idx: own.labels[idx][rungs[-1] - 1])
    assert race.halve(own, rungs) == race.Choice(best, epochs)


class Replay(LightningModule):
    """Logs the labels of a candidate, and has fewer parameters the later it comes."""

    def __init__(self, labels: list[float], idx: int) -> None:
        super().__init__()
        self.labels, self.layer = labels, nn.Linear(2, N + 1 - idx)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.layer(batch[0]).square().mean()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("val_acc", self.labels[self.current_epoch])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.parametrize("seed", [0, 1])
def test_finals_of_recorded_trainings_are_those_of_the_selector(seed: int) -> None:
    own, trainer = heat(seed=seed), race.quiet_trainer(EPOCHS)
    candidates = {str(idx): lambda idx=idx: Replay(own.labels[idx], idx) for idx in range(N)}
    settings = {"finalists": 8, "final_epochs": 2, "monitor": "val_acc", "mode": "max", "enable_progress_bar": False}
    selector = ZeroShotSelector(trainer, "params", **settings)
    loader = DataLoader(TensorDataset(torch.randn(8, 2)), batch_size=4)
    selector.fit(candidates, loader, loader)
    rows = [row for row in selector.leaderboard_.rows if row["final_epochs"] is not None]
    choice = race.hold(own, trainer, 8, 2, "params")
    assert str(choice.pick) == rows[0]["name"]
    assert choice.epochs == sum(row["final_epochs"] for row in rows) + EPOCHS - rows[0]["final_epochs"]


def test_learned_finalists_are_chosen_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    own = heat(seed=3)
    order = own.order("params")
    members = {name: [own.columns[name][idx] for idx in order] for name in race.MEMBERS}
    labels: dict[int, float | None] = {}
    for _ in range(12):
        chosen = choose_next([-float(place) for place in range(N)], members, labels)
        assert chosen is not None
        labels[chosen] = own.labels[order[chosen]][0]
    played = []
    play = race.Recorded.play
    monkeypatch.setattr(race.Recorded, "play", lambda own, conditions: (played.append(own.name), play(own, conditions)))
    race.hold(own, race.quiet_trainer(EPOCHS), 12, 1, "params", learn=True)
    assert played[:12] == [str(order[idx]) for idx in labels]
    assert set(order[:8]) < {order[idx] for idx in labels} != set(order[:12])


def test_no_way_spends_more_than_its_budget_on_pools_of_18() -> None:
    for seed in range(8):
        rng = np.random.default_rng(seed)
        noise = race.Heat(rng.normal(size=(N, EPOCHS)).tolist(), heat().columns, [0.0] * N, seed)  # no rounds agree
        for own in (heat(seed=seed), noise):
            for (budget, name), choices in race.ways_of(own, race.quiet_trainer(EPOCHS)).items():
                several = choices if isinstance(choices, list) else [choices]
                assert max(choice.epochs for choice in several) <= budget, name


def test_labels_and_truths_are_of_different_halves() -> None:
    halves = np.random.default_rng(0).normal(size=(2, 4, EPOCHS, 2))  # [seeds, candidates, epochs, 2]
    columns = [{name: [float(idx + seed) for idx in range(4)] for name in (*race.MEMBERS, "params")} for seed in (0, 1)]
    results = race.Results(tuple("abcd"), columns, halves.tolist())
    own = race.heat_of(results, [3, 1], 1, 0)
    assert own.labels == halves[1, [3, 1], :, 0].tolist()
    np.testing.assert_allclose(own.truths, halves[:, [3, 1], -1, 1].mean(axis=0))
    assert own.columns["params"] == [4.0, 2.0]


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
def test_a_recorded_curve_is_what_finals_see() -> None:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(60, 3, 32, 32, generator=generator), torch.randint(10, (60,), generator=generator)
    settings = race.Settings(num_epochs=3, batch_size=20)
    data = Data(images, labels, images[:30].repeat(2, 1, 1, 1), labels[:30].repeat(2))  # two halves that are equal
    candidates = {name: race.candidates_of(settings)[name] for name in ("plain-12x1", "resnet-12x1")}
    trainer = race.quiet_trainer(settings.num_epochs)
    rules = {"finalists": 2, "final_epochs": 2, "monitor": "val_acc", "mode": "max", "enable_progress_bar": False}
    selector = ZeroShotSelector(trainer, "params", seed=1, **rules)
    # With a generator of its own, validation does not change the order of the training images.
    test = DataLoader(TensorDataset(data.test_images, data.test_labels), batch_size=60, generator=generator)
    selector.fit(candidates, race.loader_of(data, settings), test)
    rows = {row["name"]: row for row in selector.leaderboard_.rows}
    for name, build in candidates.items():
        curve = race.trained(build, 1, data, settings)["halves"]
        assert len(curve) == 3
        assert np.mean(curve[1]) == pytest.approx(100 * rows[name]["final"])


@pytest.mark.slow
def test_a_small_run_resumes_and_prints_and_keeps_its_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("timm")
    folder = data_file("cifar10_subset.npz").parent
    words = ["--quick", "--data", str(folder), "--cache", str(tmp_path), "--results", str(tmp_path)]
    race.main([*words, "--minutes", "0.02"])
    assert "goes on from here" in capsys.readouterr().out
    assert not (tmp_path / "quick" / "finals_race.json").exists()
    race.main(words)
    printed = capsys.readouterr().out
    assert "3 pools of 9 of 12 candidates" in printed
    assert "minus halving of everyone" in printed
    assert (tmp_path / "quick" / "finals_race.json").exists()
