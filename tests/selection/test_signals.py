"""SIGTERM and SIGHUP end finals as Ctrl-C does."""

import signal
import tempfile
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_zico.selection import signals
from lightning_zico.selection.finalist import Finalist
from lightning_zico.selection.signals import exit_on_signals
from tests.selection.counted import NUM_EPOCHS, builds_of
from tests.selection.test_finals import Data, selector_of, trainer_of
from tests.selection.test_finals_workers import Elsewhere

ENDING = [signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def _default_handlers() -> Iterator[None]:
    before = {number: signal.signal(number, signal.SIG_DFL) for number in ENDING}  # under `nohup`, one is ignored
    yield
    found = [signal.signal(number, handler) for number, handler in before.items()]
    assert found == [signal.SIG_DFL, signal.SIG_DFL]


@pytest.mark.parametrize("number", ENDING)
def test_the_first_signal_exits_with_the_code_of_a_shell_and_later_ones_do_not_disturb(number: signal.Signals) -> None:
    with exit_on_signals():
        with pytest.raises(SystemExit) as raised:
            signal.raise_signal(number)
        for later in ENDING:
            signal.raise_signal(later)
    assert raised.value.code == {signal.SIGTERM: 143, signal.SIGHUP: 129}[number]


def test_a_signal_that_comes_long_after_a_caught_one_exits_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_QUIET_S", 0.0)
    with exit_on_signals():
        for number in (*ENDING, *ENDING):
            with pytest.raises(SystemExit):
                signal.raise_signal(number)


def test_what_the_user_does_with_signals_stays() -> None:
    calls: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: calls.append(number))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with exit_on_signals():
            for number in ENDING:
                signal.raise_signal(number)
    finally:
        for number in ENDING:
            signal.signal(number, signal.SIG_DFL)
    assert calls == [signal.SIGTERM]


def test_handlers_can_be_restored_early_and_other_threads_leave_them() -> None:
    found: list[Any] = []

    def look() -> None:
        with exit_on_signals():
            found.append(signal.getsignal(signal.SIGTERM))

    with exit_on_signals() as restore:
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        restore()
        look_elsewhere = threading.Thread(target=look)
        look_elsewhere.start()
        look_elsewhere.join()
    assert found == [signal.SIG_DFL]


class Closing(Elsewhere):
    """Notes whether it was closed; garbage would be collected only after the test."""

    is_closed = False

    def call(self, function: Callable[[Any], Any], items: Callable[[int], Iterable[Any]]) -> Generator[Any, None, None]:
        try:
            yield from super().call(function, items)
        finally:
            self.is_closed = True


@pytest.mark.parametrize("is_here", [True, False])
@pytest.mark.parametrize("number", ENDING)
def test_finals_keep_what_is_done_and_leave_no_folder(
    number: signal.Signals, is_here: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "folder"))
    monkeypatch.setenv("COUNTED", str(tmp_path / "counted"))
    if is_here:
        monkeypatch.setenv("WHERE", "1 1 0")
        monkeypatch.setenv("SIGNAL", str(int(number)))
    adopt = Finalist.adopt

    def end(finalist: Finalist, other: Finalist) -> None:
        adopt(finalist, other)
        signal.raise_signal(number)

    monkeypatch.setattr(Finalist, "adopt", end)  # called when one of two is trained in another process
    executor = None if is_here else Closing(2)
    selector = selector_of(trainer_of(NUM_EPOCHS), 2, final_epochs=2, finals_executor=executor)
    with pytest.raises(SystemExit) as raised:
        selector.fit(builds_of(2), Data(True))
    assert raised.value.code == 128 + number
    assert executor is None or executor.is_closed
    assert list((tmp_path / "folder").iterdir()) == []
    rows = {row["name"]: row for row in selector.leaderboard_}
    done, other = "01" if is_here else "10"
    assert rows[done]["final_epochs"] == 2
    assert rows[done]["final"] is not None
    assert (rows[other]["final"], rows[other]["rank"], rows[other]["error"]) == (None, 2, None)
    assert selector.leaderboard_.provenance["finals"]["broke_off"]


def test_while_the_winner_is_trained_lightning_handles_a_sigterm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COUNTED", str(tmp_path / "counted"))
    monkeypatch.setenv("SIGNAL", str(int(signal.SIGTERM)))
    selector = selector_of(trainer_of(NUM_EPOCHS), 2)
    selector.fit(builds_of(2), Data(True))
    monkeypatch.setenv("WHERE", f"{selector.leaderboard_.best} {NUM_EPOCHS - 1} 0")
    selector = selector_of(trainer_of(NUM_EPOCHS), 2)
    with pytest.raises(SIGTERMException):
        selector.fit(builds_of(2), Data(True))
    assert selector.best_model_ is not None
