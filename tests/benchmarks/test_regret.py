"""The benchmark of regret: what choosers lose and spend, on made-up curves and tables, and a small run of it all."""

import json
import sys
from pathlib import Path

import pytest
from lightning.pytorch import Trainer

from lightning_zico import ZeroShotSelector, list_proxies
from lightning_zico.demos import digits_candidates
from lightning_zico.ranking import get_recipe
from lightning_zico.scoring.choice import Choice
from tests.data import data_file

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import regret
from fidelity import Study, sampled
from scores import Cache, Protocol, cache_path
from tables import Row, Table, nas_bench_201

NAMES = ["a", "b", "c", "d"]


def test_on_digits_everyone_spends_the_same_and_what_choosing_takes_is_not_trained() -> None:
    # After epoch 1, b looks best, and c after epoch 2; at the end a has 40 %, b 30 %, c 60 %, d 20 %.
    validation = {"a": (1.0, 1.0), "b": (3.0, 1.0), "c": (2.0, 2.0), "d": (0.0, 0.0)}
    ends = {"a": 40.0, "b": 30.0, "c": 60.0, "d": 20.0}
    curves = [
        {
            name: regret.Curve((*validation[name], *[0.0] * 6), tuple(ends[name] - 7 + epoch for epoch in range(8)))
            for name in NAMES
        }
    ]
    orders = [{"params": NAMES, "zico": NAMES[::-1], "default": NAMES}]
    losses = {own.chooser: own for own in regret.digits_losses(curves, orders, 3, [1, 2])}
    assert {own.epochs for own in losses.values()} == {8}
    assert losses["random"].values == (60 - 37.5,)
    assert (losses["params"].picks, losses["params"].values) == (("a",), (20.0,))
    assert (losses["zico"].picks, losses["zico"].values) == (("d",), (40.0,))
    # Of three finalists, two were trained in vain, and an epoch of b is worth a point.
    assert (losses["default + finals, 1 each"].picks, losses["default + finals, 1 each"].values) == (("b",), (32.0,))
    assert (losses["default + finals, 2 each"].picks, losses["default + finals, 2 each"].values) == (("c",), (4.0,))
    assert (losses["everyone, 1 each"].picks, losses["everyone, 1 each"].values) == (("b",), (33.0,))


def test_a_chooser_that_is_read_from_curves_is_what_finals_do() -> None:
    names, metrics = ["mlp-64", "cnn-bn-16x2"], []

    class Noting(Trainer):
        def fit(self, *args, **kwargs) -> None:
            super().fit(*args, **kwargs)
            metrics.append(float(self.callback_metrics["val_acc"]))

    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Noting(max_epochs=3, accelerator="cpu", enable_checkpointing=False, **quiet)
    candidates = {name: digits_candidates()[name] for name in names}
    selector = ZeroShotSelector(trainer, "params", seed=1, finalists=2, monitor="val_acc", mode="max")
    data = regret.HeldOutDigits()
    leaderboard = selector.fit(candidates, data).leaderboard_
    curves = {name: regret.trained(name, 1, 3) for name in names}
    assert {row["name"]: 100 * row["final"] for row in leaderboard} == {
        name: pytest.approx(curves[name].validation[0]) for name in names
    }
    winner = leaderboard.best
    assert 100 * metrics[-1] == pytest.approx(curves[winner].validation[-1])
    assert regret.accuracy(selector.best_model_, data.test_data) == curves[winner].test[-1]
    assert [len(part) for part in (data.train_data, data.val_data, data.test_data)] == [1077, 360, 360]
    assert data.train_data.dataset is data.test_data.dataset  # all that is not `val_data`
    assert not set(data.train_data.indices) & set(data.test_data.indices)


def test_in_a_table_the_best_on_validation_images_of_the_first_is_chosen() -> None:
    proxies = ["zico", "params", *get_recipe("default").members]
    truths = [(1.0, 90.0), (3.0, 91.0), (2.0, 95.0), (4.0, 94.0)]  # by validation and by test
    rows = tuple(
        Row(name, lambda: None, {"valid_cifar10": valid, "test_cifar10": test})
        for name, (valid, test) in zip(NAMES, truths, strict=True)
    )
    scores = {name: [4.0, 3.0, 2.0, 1.0] for name in proxies} | {"zico": [None, 1.0, 2.0, 3.0]}
    own = Study(Table("made-up", rows, ("test_cifar10",), ""), Protocol(Path()), scores, {}, {})
    choice = Choice.of(["default", "zico"], with_baselines=True)
    scores |= {proxy.name: [0.0] * 4 for proxy in choice.proxies if proxy.name not in scores}
    losses = {
        (loss.chooser, loss.num_entrants): loss for loss in regret.table_losses(own, choice, [range(4)], [1, 3, 4], 0)
    }
    assert losses["params", 1].values == losses["default", 1].values == (95 - 90,)
    assert losses["params", 3].values == losses["default", 3].values == (95 - 91,)
    assert losses["zico", 1].values == losses["zico", 3].values == (95 - 94,)  # who has no score comes last
    assert {losses[name, 4].values for name in ("random", "params", "zico", "everyone")} == {(1.0,)}
    assert losses["params", 3].epochs == 600


def test_pools_are_drawn_without_repeats_and_always_alike() -> None:
    pools = regret.pools_of(10, 4, 5, seed=3)
    assert pools == regret.pools_of(10, 4, 5, seed=3)
    assert all(len(set(pool)) == 4 for pool in pools)
    assert len({tuple(pool) for pool in pools}) == 5


def test_what_leaves_nothing_to_train_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        regret.main(["--benchmark", "digits", "--epochs", "9", "--final-epochs", "3"])
    assert "Invalid --epochs 9: expected more than 9" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        regret.main(["--benchmark", "nas-bench-201", "--data", "nowhere"])
    assert "`--benchmark digits` needs no data" in capsys.readouterr().err


def test_a_small_run_prints_and_keeps_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = data_file("nas_bench_201.csv.gz").parent
    protocol = Protocol(folder / "cifar10_subset.npz")
    drawn = sampled(nas_bench_201(folder), 3, protocol.seed)
    kept = Cache(cache_path(tmp_path, drawn, protocol))  # so that nothing is left to be scored
    for idx, row in enumerate(drawn.rows):
        kept.add(row.name, scores={proxy: float(idx) for proxy in list_proxies()})
    words = ["--benchmark", "nas-bench-201", "--sample", "3", "--pool", "2", "--pools", "3", "--finalists", "2"]
    regret.main([*words, "--data", str(folder), "--cache", str(tmp_path), "--results", str(tmp_path)])
    assert "3 pools of 2 of 3 archs" in capsys.readouterr().out
    losses = json.loads((tmp_path / "regret.json").read_text())["nas-bench-201"]["losses"]
    trained = {(own["chooser"], own["num_entrants"]): own["values"] for own in losses}
    assert trained["random", 2] == trained["default", 2] == trained["everyone", 2]
