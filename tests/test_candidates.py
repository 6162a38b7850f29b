"""Candidates get a name and a build, one at a time."""

from functools import partial
from typing import Any

import pytest
from lightning.pytorch import LightningModule
from torch import nn

from lightning_zico import Candidate
from lightning_zico.candidates import iterate_candidates
from lightning_zico.errors import DuplicateNameError


def test_names_come_from_keys_classes_and_functions_and_are_unique() -> None:
    module = nn.ReLU()
    offered = [module, nn.ReLU, partial(nn.Linear, 2, 2), Candidate("ReLU", nn.ReLU), Candidate("x", nn.ReLU)]
    assert [c.name for c in iterate_candidates(offered)] == ["ReLU", "ReLU-2", "Linear", "ReLU-3", "x"]
    assert [c.name for c in iterate_candidates({"first": nn.ReLU, "second": module})] == ["first", "second"]


class Net(LightningModule):
    def __init__(self, width: int = 8, depth: int = 2, act: str = "relu", layers: Any = None) -> None:
        super().__init__()
        self.save_hyperparameters()


def test_candidates_of_one_class_are_named_by_the_hyperparameters_in_which_they_differ() -> None:
    def names(*offered: Any) -> list[str]:
        return [candidate.name for candidate in iterate_candidates(offered)]

    assert names(Net(4), Net(8)) == ["Net(width=4)", "Net(width=8)"]
    assert names(Net(32, 3), Net(64, 2)) == ["Net(width=32, depth=3)", "Net(width=64, depth=2)"]
    assert names(partial(Net, width=4), partial(Net, width=4, act="elu"), nn.ReLU) == [
        "Net(act='relu')",
        "Net(act='elu')",
        "ReLU",
    ]
    assert names(Net(4), Net(4)) == ["Net", "Net-2"]
    assert names(Net(layers=[1, 2]), Net(layers=[3])) == ["Net", "Net-2"]  # only plain values fit into a name
    assert names(Net(4), nn.ReLU(), Candidate("mine", Net)) == ["Net", "ReLU", "mine"]


def test_looking_for_hyperparameters_adds_none_to_a_module() -> None:
    module = LightningModule()
    before = set(vars(module))
    list(iterate_candidates([module, LightningModule()]))
    assert set(vars(module)) == before


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
    with pytest.raises(TypeError, match="Invalid candidate: 'resnet18'; expected a module"):
        next(iterate_candidates(["resnet18"]))


def test_names_that_are_given_are_unique() -> None:
    twice = [Candidate("a", nn.ReLU), Candidate("a", nn.ReLU)]
    for offered in (twice, iter(twice), {1: nn.ReLU, "1": nn.ReLU}):
        with pytest.raises(DuplicateNameError, match="Two candidates are named"):
            list(iterate_candidates(offered))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((3, nn.ReLU), r"Candidate\(name=3\): expected a string"),
        ((nn.ReLU, "a"), r"Candidate\(name=<class .*\): expected a string"),
        (("a", nn.ReLU()), r"Invalid build of Candidate\('a'\): a ReLU; expected a function"),
        (("a", "relu"), "'relu'; expected a function without arguments that builds the module"),
        (("a", nn.ReLU, "blocks"), r"Invalid blocks='blocks' of Candidate\('a'\): expected a list of names"),
    ],
)
def test_a_candidate_is_a_name_and_a_function(arguments: tuple, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        Candidate(*arguments)
