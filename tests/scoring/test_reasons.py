"""A reason is one line of readable length; the traceback has the rest."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_zico import ZeroShotSelector, score
from lightning_zico.errors import SurroundingsError, UnsupportedModuleError, ZiCoError, in_words
from lightning_zico.scoring.reasons import LONGEST_REASON, describe, why_unranked
from tests.modules import Classifier, make_batches

OF_OTHERS = [TypeError, RuntimeError, KeyError, ImportError]
OWN = [ZiCoError, UnsupportedModuleError, SurroundingsError]
TEXTS = st.text(st.characters(codec="ascii", exclude_characters="\x00"), min_size=1, max_size=40)


@given(st.sampled_from([*OF_OTHERS, *OWN]), TEXTS, st.integers(1, 300))
def test_a_reason_is_short_and_starts_as_the_message_does(kind: type[Exception], text: str, times: int) -> None:
    error = kind(" ".join([text] * times))
    found, whole = describe(error), " ".join(f"{kind.__name__}: {error}".split()).rstrip(": ")
    assert len(found) <= LONGEST_REASON
    assert "\n" not in found
    assert whole.startswith(found.partition(" ...")[0])
    if len(str(error)) <= 300 and str(error).strip():
        assert found == whole
    if issubclass(kind, ZiCoError) and len(whole) > LONGEST_REASON:
        assert whole.endswith(found.rpartition(" ... ")[2])


@pytest.mark.parametrize("is_own_step", [True, False])
@pytest.mark.parametrize("kind", [*OF_OTHERS, *OWN])
def test_so_is_the_reason_of_a_step_that_fails(kind: type[Exception], is_own_step: bool) -> None:
    found = why_unranked(kind("long\n" * 9999), is_own_step=is_own_step)
    assert len(found) <= LONGEST_REASON + len("untrainable: its training step fails: ")
    assert "\n" not in found


LONG = "Weird(" + "\n".join(f"  ({idx}): Linear(in_features=8)" for idx in range(999)) + ")"


class Shouts(Classifier):
    """Fails where it is told to, with a long text of several lines."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def _fail(self, where: str) -> None:
        if where == self.where:
            raise TypeError(f"unsupported operand: {LONG}")

    def forward(self, images: Tensor) -> Tensor:
        self._fail("forward")
        return super().forward(images)

    def on_train_start(self) -> None:
        self._fail("on_train_start")

    def configure_optimizers(self) -> Any:
        self._fail("configure_optimizers")
        return super().configure_optimizers()


@pytest.mark.parametrize("where", ["forward", "on_train_start", "configure_optimizers"])
def test_a_long_error_of_the_users_code_is_cut_and_the_traceback_has_all_of_it(where: str) -> None:
    card = score(Shouts(where), make_batches(), ["zico", "params", "naswot", "meco", "synflow"])
    reasons = [reason for reason in (card.error, card.untrainable, *(card[name].error for name in card)) if reason]
    assert any("Error" in reason for reason in reasons)
    assert all(len(reason) <= LONGEST_REASON + 60 and "\n" not in reason for reason in reasons)
    if where == "forward":
        assert card.traceback is not None
        assert LONG in card.traceback
        assert all("unsupported operand: Weird( (0): Linear" in reason for reason in reasons)


def test_a_leaderboard_of_such_a_candidate_can_be_read() -> None:
    leaderboard = ZeroShotSelector(proxies="zico").rank({"a": lambda: Shouts("forward")}, make_batches())
    assert re.match(r"untrainable: its training step fails: TypeError: unsupported operand", leaderboard.errors["a"])
    assert len(str(leaderboard)) < 3 * LONGEST_REASON


def test_others_messages_within_those_of_the_package_are_cut_alike() -> None:
    assert len(in_words(TypeError(LONG))) <= 320
