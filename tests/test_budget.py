"""A limit is a positive finite number, however it is written, and what exceeds it is told with the circumstances."""

import json
import sys
from dataclasses import asdict, fields
from pathlib import Path

import pytest
import torch

from lightning_zico import Budget, ZeroShotSearch, ZeroShotSelector
from tests.modules import Classifier, make_batches
from tests.search.spaces import Bits, batches

LIMITS = [limit.name for limit in fields(Budget)]


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize(
    "wrong", [0, -1, -0.5, float("inf"), float("-inf"), float("nan"), 10**400, "five", "", "40X", "-1M", "1.2.3", True]
)
def test_a_limit_that_is_none_is_refused_when_it_is_given(name: str, wrong: object) -> None:
    with pytest.raises(ValueError, match=rf"Budget\({name}=.*expected a positive, finite number, .*, or None"):
        Budget(**{name: wrong})


@pytest.mark.parametrize(
    ("text", "number"),
    [("40M", 40e6), ("1.5e9", 1.5e9), ("2G", 2e9), ("7B", 7e9), ("600k", 6e5), ("0.5 m", 5e5), ("1T", 1e12), ("5", 5)],
)
def test_a_limit_may_be_text_with_a_unit(text: str, number: float) -> None:
    for name in LIMITS:
        budget = Budget(**{name: text})
        assert budget == Budget(**{name: number})
        assert budget.limits == {name: number}
        assert repr(number * 1.0) in repr(budget)


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("limit", [1, 300, sys.float_info.max, sys.float_info.min])
def test_every_limit_that_is_taken_can_be_written_and_read(name: str, limit: float) -> None:
    budget = Budget(**{name: limit})
    assert Budget(**json.loads(json.dumps(asdict(budget), allow_nan=False))) == budget


def test_a_whole_number_and_its_float_are_one_limit_and_one_study(tmp_path: Path) -> None:
    assert repr(Budget(params=300, depth=4)) == repr(Budget(params=300.0, depth=4.0))
    excess = {Budget(params=limit).exceeded_by({"params": lambda: 1500}) for limit in (1000, 1000.0)}
    assert excess == {"over budget: 1,500 params, 1.50 times the limit of 1,000"}
    studies = []
    for limit in (300, 300.0):
        arguments = {"proxies": "params", "num_trials": 3, "num_classes": 3, "storage": tmp_path / "trials.db"}
        result = ZeroShotSearch(Bits(), Budget(params=limit), **arguments).run(batches())
        studies.append((result.provenance["study"], [row["arch"] for row in result], result.provenance["seconds"] > 0))
    (first, archs, did_score), again = studies
    assert did_score
    assert again == (first, archs, False)


def test_a_latency_over_its_limit_is_told_with_batch_size_and_threads() -> None:
    for num_threads in (2, 1):
        torch.set_num_threads(num_threads)
        selector = ZeroShotSelector(budget=Budget(latency_s=1e-9, params=1e9))
        reason = selector.rank([Classifier], make_batches(2, 5)).errors["Classifier"]
        assert reason.startswith("over budget: ")
        assert reason.endswith(f"the limit of 1e-09, measured with batch_size 5, num_threads {num_threads}")
    selector = ZeroShotSelector(budget=Budget(latency_s=1e-9, params=1))
    reason = selector.rank([Classifier], make_batches(2, 5)).errors["Classifier"]
    assert reason.endswith(" times the limit of 1")  # what is counted, not measured, holds anywhere
