"""A study is held to everything that its scores depend on."""

import threading
from pathlib import Path

import optuna
import pytest
from torch import nn

from lightning_zico import (
    Budget,
    ZeroShotSearch,
)
from lightning_zico.search.trials import SettingsError
from tests.search.searching import ByRule, searched
from tests.search.spaces import Bits, batches


def test_other_settings_are_another_study_and_a_name_is_held_to_its_settings(tmp_path: Path) -> None:
    kwargs = {"storage": tmp_path / "trials.db", "num_trials": 3}
    assert searched(**kwargs).provenance["study"] != searched(**kwargs, seed=1).provenance["study"]
    searched(**kwargs, name="mine")
    searched(**kwargs | {"num_trials": 4}, name="mine")
    with pytest.raises(SettingsError, match=r"'mine' was begun with other settings: budget None \(now .*num_classes 3"):
        searched(**kwargs | {"num_classes": 5}, name="mine", budget=Budget(params=1000))


def test_batches_without_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected square images"):
        ZeroShotSearch(Bits(), proxies="params").run([(t.flatten(1), y) for t, y in batches()])


@pytest.mark.parametrize("budget", [None, Budget(params=1e6), Budget(macs=1e9)])
def test_a_resolution_that_networks_cannot_take_is_refused_before_anything_is_scored(
    budget: Budget | None, tmp_path: Path
) -> None:
    executor = ByRule(params=lambda _: 1.0)
    study = {"budget": budget, "executor": executor, "storage": tmp_path / "trials.db", "name": "mine"}
    with pytest.raises(
        ValueError, match=r"Invalid resolution=5: expected at least 32, .*pass `resolution` \(--resolution"
    ):
        searched("plainnet", **study)
    assert executor.asked == []
    assert len(searched("plainnet", **study, resolution=32, num_trials=2)) == 2  # the name is still to be had


def test_other_batches_are_another_search_also_where_a_part_cannot_be_compared(tmp_path: Path) -> None:
    lock = threading.Lock()

    def wrap(network: nn.Module) -> nn.Module:
        with lock:
            return network

    search = ZeroShotSearch(
        Bits(), wrap=wrap, loss_fn=nn.functional.cross_entropy, storage=tmp_path / "t.db", num_trials=3, num_classes=3
    )
    for data in (batches(), [(3 * x + 1, y) for x, y in batches()]):
        with pytest.warns(UserWarning, match="`wrap` holds an object that cannot be compared"):
            search.run(data)
    assert len(optuna.get_all_study_names(f"sqlite:///{tmp_path / 't.db'}")) == 2
