"""One call scores one model: its settings are those of a ranking, and names that there are not are refused."""

from typing import Any

import pytest
import torch
from torch import nn

from lightning_zico import Candidate, ZeroShotSelector, score
from tests.modules import Classifier, assert_untouched, make_batches


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("batches", "Pass them as `data`"),
        ("train_dataloaders", "Pass the loader as `data`"),
        ("blocks", r"Pass `Candidate\(name, build, blocks=\.\.\.\)` as the model"),
        ("axes", "Did you mean `axis`?"),
        ("seeds", "Did you mean `seed`?"),
        ("num_batch", "Did you mean `num_batches`?"),
        ("cache", "Its settings: accelerator, axis, batch_size"),
        ("timeout_s", "Its settings: "),
        ("executor", "Its settings: "),
    ],
)
def test_a_setting_that_there_is_not_is_refused_with_the_way_out(name: str, hint: str) -> None:
    with pytest.raises(TypeError, match=f"`score` has no argument `{name}`. {hint}") as caught:
        score(Classifier(), make_batches(), **{name: 1})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"axis": "sample", "chunk_size": 2},
        {"seed": 3},
        {"precision": "64-true"},
        {"step": lambda m, b, i: m(b[0]).mean()},
    ],
)
def test_a_candidate_is_scored_as_in_a_ranking(settings: dict[str, Any]) -> None:
    batches = make_batches()
    card = score(Candidate("Classifier", Classifier), batches, **settings)
    selector = ZeroShotSelector(proxies="zico", batch_size=None, **settings)
    selector.rank([Classifier], batches)
    assert card["zico"].value == selector.cards_["Classifier"]["zico"].value is not None


def test_a_model_is_left_bit_identical_and_its_failure_is_in_the_card() -> None:
    model = Classifier()
    with assert_untouched(model):
        assert score(model, make_batches())["zico"].value is not None

    class Broken(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ZeroDivisionError("no")

    card = score(Broken(2, 2), make_batches(), loss_fn=nn.functional.cross_entropy)
    assert "ZeroDivisionError: no" in str(card["zico"].error)


@pytest.mark.parametrize("model", [Classifier, None, "resnet18"])
def test_what_is_no_model_is_refused(model: Any) -> None:
    with pytest.raises(TypeError, match="expected an instance of a module"):
        score(model, make_batches())
