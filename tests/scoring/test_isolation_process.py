"""What belongs to the whole process reaches from no candidate to another, and the user finds it as it was."""

import asyncio
import builtins
import gc
import itertools
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from lightning_zico import Candidate, ProcessExecutor, ScoreCard, ZeroShotSelector, ZiCoCallback, score
from lightning_zico.scoring import turns
from lightning_zico.scoring.patches import list_watched
from lightning_zico.scoring.process_state import OF_NUMBERS, one_ranking, preserved_process_state
from tests.interrupts import interrupted_at
from tests.modules import Classifier, make_batches

HOOKS = nn.modules.module


class Doubled(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Dispatched(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def doubled(module: nn.Module, inputs: Any, output: Any) -> Any:
    return output * 2 if isinstance(output, Tensor) else output


def patched(owner: Any, name: str, value: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
    return lambda: setattr(owner, name, value), lambda: getattr(owner, name)


def entered(mode: Any, kept: Any = []) -> None:  # noqa: B006  # for good, as a module may keep it
    kept.append(mode)
    mode.__enter__()


kernels: list[Any] = []


def registered(operator: str, function: Callable[..., Any]) -> Any:
    """Register a kernel, for as long as somebody holds what is returned."""
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that it replaces one
        library.impl(operator, function, "CPU")
    return library


def no_denormals() -> bool:
    return not (torch.tensor(1e-310, dtype=torch.float64) * 1).item()


# What a candidate does, and what of the process shows it. All of it changes the numbers of others, or ends them.
MEDDLERS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "default dtype": (lambda: torch.set_default_dtype(torch.float64), torch.get_default_dtype),
    "default device": (lambda: torch.set_default_device("meta"), torch.get_default_device),
    "threads": (lambda: torch.set_num_threads(torch.get_num_threads() + 1), torch.get_num_threads),
    "gradient mode": (lambda: torch._C._set_grad_enabled(False), torch.is_grad_enabled),
    "autocast": (lambda: torch.set_autocast_enabled("cpu", True), lambda: torch.is_autocast_enabled("cpu")),
    "autocast entered": (
        lambda: torch.autocast("cpu", torch.float16).__enter__(),
        lambda: (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
    ),
    "deterministic": (lambda: torch.use_deterministic_algorithms(True), torch.are_deterministic_algorithms_enabled),
    "anomaly": (lambda: torch.autograd.set_detect_anomaly(True), torch.is_anomaly_enabled),
    "denormals": (lambda: torch.set_flush_denormal(True), no_denormals),
    "float32 precision": (lambda: torch.set_float32_matmul_precision("medium"), torch.get_float32_matmul_precision),
    "cudnn": patched(torch.backends.cudnn, "benchmark", True),
    "function mode": (lambda: Doubled().__enter__(), torch._C._len_torch_function_stack),
    "dispatch mode": (lambda: Dispatched().__enter__(), torch._C._len_torch_dispatch_stack),
    "forward hook": (lambda: HOOKS.register_module_forward_hook(doubled), lambda: len(HOOKS._global_forward_hooks)),
    "backward hook": (
        lambda: HOOKS.register_module_full_backward_hook(lambda *_: None),
        lambda: len(HOOKS._global_backward_hooks),
    ),
    "function": patched(F, "relu", lambda x, inplace=False: torch.sin(x)),
    "function, mocked": patched(F, "gelu", MagicMock()),
    "method of a base and its copy": (
        lambda: [setattr(kind, "extra_repr", lambda self: "") for kind in (nn.Module, nn.Flatten)],
        lambda: (nn.Module.extra_repr, nn.Flatten.extra_repr),
    ),
    "method of a layer": patched(nn.Conv2d, "forward", lambda self, x: torch.zeros(x.shape[0], 4, 3, 3)),
    "call of modules": patched(nn.Module, "__call__", lambda self, *args: None),
    "method of tensors": patched(Tensor, "backward", lambda self: None),
    "method of a base": (
        lambda: setattr(nn.Conv2d, "__call__", lambda self, *args: None),
        lambda: "__call__" in vars(nn.Conv2d),
    ),
    "method of tensors in C": (
        lambda: setattr(Tensor, "__mul__", lambda self, other: self),
        lambda: (torch.ones(1) * 2).item(),
    ),
    "optimizer": patched(torch.optim.SGD, "step", lambda self: None),
    "private method": patched(nn.Module, "_call_impl", lambda self, *args, **kwargs: None),
    "private method of a layer": patched(
        nn.Conv2d, "_conv_forward", lambda self, x, *_: torch.zeros(x.shape[0], 4, 3, 3)
    ),
    "inference mode": (lambda: entered(torch.inference_mode()), torch.is_inference_mode_enabled),
    "clock": patched(time, "perf_counter", lambda: 0.0),
    "saved tensors, disabled": (
        lambda: torch._C._autograd._saved_tensors_hooks_disable("no"),
        lambda: torch._C._autograd._saved_tensors_hooks_get_disabled_error_message(),
    ),
    "initialisation": patched(nn.init, "kaiming_uniform_", lambda tensor, **_: tensor),
    "code": (
        lambda: setattr(F.relu, "__code__", (lambda x, inplace=False: torch.sin(x)).__code__),
        lambda: F.relu(torch.ones(1)).item(),
    ),
    "defaults": (lambda: setattr(F.relu, "__defaults__", (True,)), lambda: F.relu.__defaults__),
    "defaults of keywords": (
        lambda: (nn.Module.register_forward_hook.__kwdefaults__ or {}).update(prepend=True),
        lambda: dict(nn.Module.register_forward_hook.__kwdefaults__ or {}),
    ),
    "kernel": (
        lambda: kernels.append(registered("relu", lambda x: x * 2)),
        lambda: torch.relu(torch.ones(1)).item(),
    ),
    "module of a module": patched(nn.modules.linear, "F", SimpleNamespace(linear=lambda x, *_: x * 2)),
    "builtin": patched(builtins, "sum", lambda *_: 0),
    "NumPy": patched(np, "sqrt", lambda x: x),
    "NumPy's errors": (lambda: np.seterr(all="raise"), np.geterr),
    "directory": (lambda: os.chdir("/"), os.getcwd),
    "environment": (lambda: os.environ.update(OMP_NUM_THREADS="7", ZICO="1"), lambda: dict(os.environ)),
    "environment, deleted": (lambda: os.environ.pop("PATH"), lambda: dict(os.environ)),
    "sys.path": (lambda: sys.path.insert(0, "/nowhere"), lambda: list(sys.path)),
    "streams": patched(sys, "stdout", None),
    "garbage collector": (gc.disable, gc.isenabled),
    "thresholds": (lambda: gc.set_threshold(1, 1, 1), gc.get_threshold),
    "recursion limit": (lambda: sys.setrecursionlimit(400), sys.getrecursionlimit),
    "logging": (lambda: logging.disable(logging.CRITICAL), lambda: logging.root.manager.disable),
    "warnings": (lambda: warnings.simplefilter("error"), lambda: list(warnings.filters)),
    "handler": (lambda: signal.signal(signal.SIGTERM, lambda *_: None), lambda: signal.getsignal(signal.SIGTERM)),
    "Ctrl-C": (lambda: signal.signal(signal.SIGINT, signal.SIG_IGN), lambda: signal.getsignal(signal.SIGINT)),
    "alarm": (lambda: signal.setitimer(signal.ITIMER_REAL, 1000), lambda: signal.getitimer(signal.ITIMER_REAL)[0] > 0),
}
if hasattr(torch._C._autograd, "_top_saved_tensors_default_hooks"):  # torch 2.5 does not show them
    MEDDLERS["saved tensors"] = (
        lambda: torch.autograd.graph.saved_tensors_hooks(lambda x: x * 2, lambda x: x).__enter__(),
        lambda: torch._C._autograd._top_saved_tensors_default_hooks(False),
    )
if hasattr(torch.compiler, "set_stance"):  # torch 2.5 does not compile a function of its own
    MEDDLERS["function, compiled"] = patched(F, "relu", torch.compile(F.relu, backend="eager"))
IN_STEP = ["default dtype", "threads", "forward hook", "function", "directory", "autocast", "warnings"]


class Meddling(Classifier):
    """Does something to the process in its step."""

    def __init__(self, meddle: Callable[[], Any]) -> None:
        super().__init__()
        self.meddle = meddle

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.meddle()
        return super().training_step(batch, batch_idx)


def meddling(meddle: Callable[[], Any]) -> Classifier:
    meddle()
    return Classifier()


def ranked(candidates: Any, **settings: Any) -> ZeroShotSelector:
    selector = ZeroShotSelector(proxies="zico", enable_progress_bar=False, **settings)
    selector.rank(candidates, make_batches())
    return selector


def values(selector: ZeroShotSelector) -> dict[str, float | None]:
    return {name: card["zico"].value for name, card in selector.cards_.items() if name in GOOD}


GOOD: dict[str, Any] = {"narrow": Classifier, "wide": lambda: Classifier(8)}


@pytest.mark.parametrize(
    ("name", "build"),
    [(name, meddling) for name in MEDDLERS] + [(name, Meddling) for name in IN_STEP],
    ids=[*MEDDLERS, *(f"{name} in the step" for name in IN_STEP)],
)
def test_what_a_candidate_does_to_the_process_touches_no_other_and_is_undone(name: str, build: Any) -> None:
    meddle, look = MEDDLERS[name]
    want, before = values(ranked(GOOD)), look()
    selector = ranked({"meddling": lambda: build(meddle), **GOOD})
    assert look() == before
    assert values(selector) == want
    ranked({"winner": lambda: build(meddle)})  # who is built once more
    assert look() == before


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("default dtype", "torch's default dtype"),
        ("forward hook", "global hooks"),
        ("function", "`torch.nn.functional.relu`"),
        ("method of a layer", "`torch.Conv2d.forward`"),
        ("code", "`torch.nn.functional.relu.__code__`"),
        ("kernel", "kernels of `aten::relu`"),
    ],
)
def test_the_leaderboard_names_who_changed_what_numbers_depend_on(name: str, said: str) -> None:
    selector = ranked({"meddling": lambda: meddling(MEDDLERS[name][0]), **GOOD})
    assert selector.cards_["meddling"].process_changes == (said,)
    note = next(note for note in selector.leaderboard_.notes if "whole process" in note)
    assert note.endswith(f"put back after each: meddling ({said}).")
    assert selector.cards_["narrow"].process_changes == ()
    assert ScoreCard.from_dict(selector.cards_["meddling"].to_dict()) == selector.cards_["meddling"]


def test_score_puts_the_process_back_as_well() -> None:
    card = score(Meddling(MEDDLERS["default dtype"][0]), make_batches())
    assert torch.get_default_dtype() == torch.float32
    assert card.process_changes == ("torch's default dtype",)


def test_workers_put_the_process_back_between_candidates() -> None:
    executor = ProcessExecutor(num_workers=1)
    meddlers = {name: lambda name=name: meddling(MEDDLERS[name][0]) for name in ("default device", "forward hook")}
    selector = ranked({**meddlers, **GOOD}, executor=executor)
    assert values(selector) == values(ranked(GOOD, executor=executor))


@pytest.mark.slow
def test_a_worker_whose_process_cannot_be_put_back_is_replaced(tmp_path: Path) -> None:
    log = tmp_path / "log"

    def logged(breaks: bool = False) -> Classifier:
        with log.open("a") as file:
            print(os.getpid(), file=file)
        if breaks:
            warnings.filters = ()  # type: ignore[assignment]  # to which nothing can be written
        return Classifier()

    candidates = {"first": logged, "breaking": lambda: logged(breaks=True), "next": logged}
    ranked(candidates, executor=ProcessExecutor(num_workers=1))
    first, breaking, after = log.read_text().split()[:3]
    assert first == breaking != after


@pytest.mark.parametrize("name", ["default dtype", "function", "threads"])
def test_a_number_computed_under_changed_settings_is_not_kept(name: str, tmp_path: Path) -> None:
    candidates = {"meddling": lambda: meddling(MEDDLERS[name][0]), "narrow": Classifier}
    calls: list[str] = []

    class Counted(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            calls.append("step")
            return super().training_step(batch, batch_idx)

    def counted() -> Classifier:
        MEDDLERS[name][0]()
        return Counted()

    ranked(candidates | {"counted": counted}, cache=tmp_path / "scores.db")
    assert calls
    calls.clear()
    ranked(candidates | {"counted": counted}, cache=tmp_path / "scores.db")
    assert calls


@pytest.mark.parametrize("name", ["default dtype", "forward hook", "deterministic", "denormals", "threads"])
def test_what_the_user_sets_is_in_the_key_of_a_cached_score(name: str, tmp_path: Path) -> None:
    ranked(GOOD, cache=tmp_path / "scores.db")
    with preserved_process_state():
        MEDDLERS[name][0]()
        want = values(ranked(GOOD))
        assert values(ranked(GOOD, cache=tmp_path / "scores.db")) == want


class Switching:
    """Changes torch's default dtype when it is deleted."""

    def __del__(self) -> None:
        torch.set_default_dtype(torch.float64)


def leave_a_thread() -> None:
    thread = threading.Thread(target=lambda: go.wait(60) and torch.set_default_dtype(torch.float64))
    thread.start()
    left.append(thread)


left: list[Any] = []
go = threading.Event()


@pytest.mark.parametrize(
    ("leave", "later"),
    [
        (leave_a_thread, lambda: (go.set(), left[0].join())),
        (lambda: left.append(Switching()), left.clear),
    ],
    ids=["thread", "object"],
)
def test_what_a_candidate_changes_after_its_end_is_undone_before_the_next(
    leave: Callable[[], Any], later: Callable[[], Any]
) -> None:
    def candidates() -> Any:
        yield "leaving", lambda: meddling(leave)
        later()  # between two candidates
        yield "narrow", Classifier
        yield "wide", lambda: Classifier(8)

    left.clear()
    go.clear()
    want = values(ranked(GOOD))
    with pytest.warns(UserWarning, match=r"^torch's default dtype changed between two candidates"):
        selector = ranked(Candidate(name, build) for name, build in candidates())
    assert torch.get_default_dtype() == torch.float32
    assert values(selector) == want


def test_a_thread_that_the_step_waits_for_cannot_score_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "_POLL_S", 0.01)
    monkeypatch.setattr(turns, "_STUCK_S", 0.1)
    left.clear()

    def score_in_thread() -> None:
        def run() -> None:
            try:
                score(Classifier(), make_batches())
            except RuntimeError as error:
                left.append(error)  # what a closure holds is put back

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()

    card = score(Meddling(score_in_thread), make_batches(), proxies="zico")
    assert card["zico"].value is not None
    assert left
    assert all("Score in the thread of the outer model" in str(error) for error in left)


def test_a_thread_waits_for_no_turn_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "_POLL_S", 0.01)
    monkeypatch.setattr(turns, "_LONGEST_TURN_S", 0.1)
    begun, over = threading.Event(), threading.Event()

    def hang() -> None:
        with preserved_process_state():
            begun.set()
            over.wait(60)

    thread = threading.Thread(target=hang)
    thread.start()
    begun.wait(60)
    try:
        with pytest.raises(RuntimeError, match="Another thread has been scoring"):
            score(Classifier(), make_batches())
    finally:
        over.set()
        thread.join()
    assert score(Classifier(), make_batches(), proxies="zico")["zico"].value is not None


def test_two_threads_that_score_at_once_get_the_right_numbers() -> None:
    models = [Classifier(), Classifier(8)]
    want = [score(model, make_batches(), proxies="default").scores for model in models]
    got: dict[int, Any] = {}

    def run(idx: int) -> None:
        for _ in range(3):
            got[idx] = score(models[idx], make_batches(), proxies="default").scores

    threads = [threading.Thread(target=run, args=(idx,)) for idx in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert torch.get_default_dtype() == torch.float32
    for idx, scores in enumerate(want):
        # Threads sum in orders of their own.
        values_of = {name: one.value for name, one in got[idx].items()}
        assert values_of == pytest.approx({name: one.value for name, one in scores.items()}, rel=1e-9)


def test_a_candidate_may_score_others() -> None:
    selector = ranked({"scoring": lambda: Classifier(4 + (score(Classifier(), make_batches())["zico"].value is None))})
    assert not selector.leaderboard_.errors


class Panic(BaseException):
    """As extensions in other languages raise."""


class SpeechlessError(BaseException):
    def __str__(self) -> str:
        raise Panic


LEAVING = [
    asyncio.CancelledError("x"),
    Panic("rust"),
    GeneratorExit(),
    KeyboardInterrupt(),
    SystemExit(3),
    SpeechlessError(),
]


@pytest.mark.parametrize("raised", LEAVING, ids=lambda raised: type(raised).__name__)
@pytest.mark.parametrize("build", [meddling, Meddling], ids=["build", "step"])
def test_whatever_a_candidate_raises_is_a_row(raised: BaseException, build: Any) -> None:
    def leave() -> None:
        raise raised

    selector = ranked({"leaving": lambda: build(leave), **GOOD})
    assert type(raised).__name__ in selector.leaderboard_.errors["leaving"]
    assert values(selector) == values(ranked(GOOD))


@pytest.mark.parametrize("raised", LEAVING, ids=lambda raised: type(raised).__name__)
def test_nothing_that_the_step_raises_while_it_is_scored_ends_training(raised: BaseException) -> None:
    class Leaving(Classifier):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if self.trainer.global_step == 0 and not trained:
                trained.append(batch_idx)
                raise raised

    trained: list[int] = []
    callback = ZiCoCallback()
    trainer = Trainer(
        max_steps=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback],
        accelerator="cpu",
    )
    with pytest.warns(UserWarning, match=f"has no score for step 0: {type(raised).__name__}"):
        trainer.fit(Leaving(), DataLoader([(x, y) for x, y in zip(*make_batches(1)[0], strict=True)], 3))
    assert trainer.global_step == 2
    assert type(raised).__name__ in callback.history[0]["error"]


@pytest.mark.parametrize("swallowed", [False, True])
@pytest.mark.parametrize("build", [meddling, Meddling], ids=["build", "step"])
def test_the_users_own_ctrl_c_ends_ranking_and_keeps_what_is_done(build: Any, swallowed: bool) -> None:
    def interrupted() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except BaseException:
            if not swallowed:
                raise

    handler = signal.getsignal(signal.SIGINT)
    selector = ZeroShotSelector(proxies="zico", enable_progress_bar=False)
    with pytest.raises(KeyboardInterrupt):
        selector.rank({**GOOD, "interrupted": lambda: build(interrupted), "last": Classifier}, make_batches())
    assert list(selector.cards_) == list(GOOD)
    assert signal.getsignal(signal.SIGINT) is handler


def test_ctrl_c_at_any_step_of_putting_the_process_back_ends_it_when_all_is_put_back() -> None:
    def body() -> None:
        with preserved_process_state():
            torch.set_default_dtype(torch.float64)
            os.chdir("/")
            HOOKS.register_module_forward_hook(doubled)
            F.relu = torch.sin  # type: ignore[assignment]
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    files = ("scoring/process_state.py", "scoring/turns.py", "engine/interrupts.py")
    before, relu, handlers = os.getcwd(), F.relu, [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    for step in itertools.count(1, 7):  # there are thousands
        try:
            was_there = interrupted_at(step, body, files, "end")
            was_interrupted = False
        except KeyboardInterrupt:
            was_there = was_interrupted = True
        assert was_interrupted == was_there, step
        assert (torch.get_default_dtype(), os.getcwd(), F.relu) == (torch.float32, before, relu), step
        assert not HOOKS._global_forward_hooks, step
        assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers, step
        if not was_there:
            break
    assert step > 50
    assert score(Classifier(), make_batches(), proxies="zico")["zico"].value is not None


def test_changes_are_named_until_they_are_put_back() -> None:
    with preserved_process_state() as state:
        assert state.list_changes() == []
        torch.set_default_dtype(torch.float64)
        assert state.list_changes() == ["torch's default dtype"]
        assert state.put_back() == []
        assert torch.get_default_dtype() == torch.float32


def test_functions_of_torch_are_watched() -> None:
    names = {(each.owner, name) for each in list_watched() for name in each.names}
    assert {(torch, "matmul"), (F, "linear"), (nn.Linear, "forward"), (nn.Module, "__call__")} <= names


@pytest.mark.parametrize("num_own", [0, 20_000])
def test_a_long_ranking_keeps_the_collector_from_what_was_there_before(num_own: int) -> None:
    gc.unfreeze()  # Python 3.12 itself freezes some objects when it starts
    own: list[list[int]] = [[] for _ in range(num_own)]
    if own:
        gc.freeze()  # a program that froze its objects itself
    before, counts = gc.get_freeze_count(), list[int]()
    try:
        with one_ranking():
            for _ in range(12):
                with preserved_process_state():
                    counts.append(gc.get_freeze_count())
        after = gc.get_freeze_count()
    finally:
        gc.unfreeze()
    if own:  # a frozen object may still end on its own
        assert counts[-1] <= counts[0] <= before
        assert num_own <= after <= before
    else:
        assert before == counts[0] == after == 0
        assert counts[-1] > len(sys.modules)  # a module is an object


def read_settings(_: int) -> dict[str, Any]:
    return {switch.name: switch.value() for switch in OF_NUMBERS}


@pytest.mark.usefixtures("_forked_workers")
def test_workers_have_all_settings_that_numbers_depend_on() -> None:
    with preserved_process_state():
        torch.set_default_dtype(torch.float64)
        torch.set_float32_matmul_precision("medium")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = not torch.backends.cudnn.allow_tf32
        torch.backends.mkldnn.enabled = False
        torch.backends.cuda.enable_flash_sdp(False)
        expected = read_settings(0)
        with closing(ProcessExecutor(1).call(read_settings, lambda _: [0])) as coming:
            _, outcome = next(coming)
    assert outcome.error is None
    assert outcome.result == expected
