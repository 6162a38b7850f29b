"""Candidates get a name and a build, one at a time."""

from functools import partial

import pytest
from torch import nn

from lightning_zico import Candidate
from lightning_zico.candidates import iterate_candidates


def test_names_come_from_keys_classes_and_functions_and_are_unique() -> None:
    module = nn.ReLU()
    offered = [module, nn.ReLU, partial(nn.Linear, 2, 2), Candidate("ReLU", nn.ReLU), Candidate("x", nn.ReLU)]
    assert [c.name for c in iterate_candidates(offered)] == ["ReLU", "ReLU-2", "Linear", "ReLU-3", "x"]
    assert [c.name for c in iterate_candidates({"first": nn.ReLU, "second": module})] == ["first", "second"]


def test_an_instance_is_built_as_itself_and_a_factory_anew() -> None:
    module = nn.ReLU()
    instance, factory = iterate_candidates([module, nn.ReLU])
    assert instance.build() is module
    assert factory.build() is not factory.build()


def test_candidates_are_taken_one_at_a_time() -> None:
    taken = []

    def offer():
        for idx in range(3):
            taken.append(idx)
            yield nn.ReLU()

    iterator = iterate_candidates(offer())
    next(iterator)
    assert taken == [0]


@pytest.mark.parametrize("wrong", [nn.ReLU(), Candidate("a", nn.ReLU), 3, nn.Sequential(nn.ReLU())])
def test_a_single_candidate_is_refused(wrong: object) -> None:
    with pytest.raises(TypeError, match="list"):
        next(iterate_candidates(wrong))


def test_what_is_no_candidate_is_refused() -> None:
    with pytest.raises(TypeError, match="str"):
        next(iterate_candidates(["resnet18"]))
