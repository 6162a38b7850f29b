"""Settings are written once: described where they are taken, checked at construction, recorded as plain data."""

import inspect
import json
import re
from dataclasses import dataclass, fields
from typing import Any

import pytest

from lightning_zico import ZeroShotSearch, ZeroShotSelector, score
from lightning_zico.bridge import TrainingData
from lightning_zico.errors import InvalidArgumentError
from lightning_zico.proxies import resolve_proxies
from lightning_zico.scoring.settings import ScoringSettings, describe_settings
from tests.modules import make_batches

SHARED = [field.name for field in fields(ScoringSettings)]


def described(docstring: str | None) -> list[str]:
    """List the arguments that the section ``Args`` of a docstring describes."""
    section = re.search(r"^Args:\n(.*?)(?=^\w|\Z)", inspect.cleandoc(docstring or ""), re.MULTILINE | re.DOTALL)
    return re.findall(r"^    \*{0,2}(\w+): ", section[1], re.MULTILINE) if section else []


@pytest.mark.parametrize("taken", [ScoringSettings, ZeroShotSelector, ZeroShotSearch])
def test_help_describes_every_argument_once(taken: type) -> None:
    arguments = list(inspect.signature(taken).parameters)
    assert sorted(described(taken.__doc__)) == sorted(arguments)
    assert set(SHARED) <= set(arguments)


def test_help_on_score_describes_its_settings() -> None:
    own = list(inspect.signature(score).parameters)
    names = described(score.__doc__)
    assert names[: len(own)] == own
    assert len(set(names)) == len(names)
    assert {"axis", "step", "precision", "seed"} <= set(names) <= {*own, *SHARED}


def test_a_description_goes_after_the_own_arguments_and_before_the_next_section() -> None:
    text = describe_settings(
        "Do it.\n\nArgs:\n    own: Mine.\n\nReturns:\n    Nothing.", set(SHARED) - {"axis", "seed"}
    )
    assert text is not None
    assert described(text) == ["own", "axis", "seed"]
    assert text.endswith("\n\nReturns:\n    Nothing.")
    for plain in (None, "", "Do it."):
        assert describe_settings(plain) == plain


def test_a_class_without_arguments_of_its_own_keeps_its_docstring() -> None:
    @dataclass(kw_only=True)
    class Plain(ScoringSettings):
        """Nothing is added."""

    assert Plain.__doc__ == "Nothing is added."


@pytest.mark.parametrize(
    "given", [{}, {"seed": 3}, {"axis": "sample", "chunk_size": 4}, {"batch_size": None, "channels_last": True}]
)
def test_a_repr_is_the_call_that_makes_an_equal_object(given: dict[str, Any]) -> None:
    settings = ScoringSettings(**given)
    again = eval(repr(settings), {"ScoringSettings": ScoringSettings})
    assert vars(again) == vars(settings)
    assert all(f"{name}={value!r}" in repr(settings) for name, value in given.items())


def test_a_proxy_that_compares_gradients_needs_as_many_batches() -> None:
    zico, params = resolve_proxies(["zico"]), resolve_proxies(["params"])
    ScoringSettings(num_batches=1).check_enough_batches(params)
    ScoringSettings(num_batches=1, axis="sample").check_enough_batches(zico)
    ScoringSettings(num_batches=2).check_enough_batches(zico)
    with pytest.raises(InvalidArgumentError, match=r"Invalid num_batches=1: .*`zico` needs at least 2"):
        ScoringSettings(num_batches=1).check_enough_batches(zico)


def test_scorers_differ_by_their_batches_and_seeds_only_and_are_recorded_in_plain_values() -> None:
    settings = ScoringSettings(num_batches=2, seed=5, axis="sample", batch_size=None)
    proxies = resolve_proxies(["zico"])
    batches = make_batches(6)
    with TrainingData(batches) as data:
        readings = settings.readings(data, proxies, repeats=3)
        scorers = settings.scorers(readings, proxies, data=data, loss_fn=None, budget=None)
    assert [scorer.seed for scorer in scorers] == [5, 6, 7]
    assert [batch for scorer in scorers for batch in scorer.batches] == batches
    assert {scorer.axis for scorer in scorers} == {"sample"}
    recorded = settings.provenance(scorers[0])
    assert json.loads(json.dumps(recorded)) == recorded
    assert (recorded["seed"], recorded["num_batches"], recorded["batch_shapes"][0][0]) == (5, 2, 6)
