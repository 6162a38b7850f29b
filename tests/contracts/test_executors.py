"""Every executor gives the scores of the serial one, keeps few candidates alive, and stops when it is told to."""

import gc
import os
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_zico import Candidate, ProcessExecutor, RayExecutor, ZeroShotSelector, score
from lightning_zico.bridge import Reading
from lightning_zico.candidates import iterate_candidates
from lightning_zico.errors import CacheError
from lightning_zico.scoring.choice import Choice
from lightning_zico.scoring.executors import pool
from lightning_zico.scoring.executors.base import Executor, Job
from lightning_zico.scoring.executors.processes import SerialExecutor, num_cores
from lightning_zico.scoring.scorer import Scorer
from tests.modules import Classifier, Fixed, Numbered, assert_same, make_batches

EXECUTORS: dict[str, Callable[[], Executor]] = {
    "serial": SerialExecutor,
    "processes": lambda: ProcessExecutor(num_workers=2),
    "ray": RayExecutor,
}
SPAWNED = pool._CONTEXT  # as shipped; most tests here have workers that start at once instead
# Besides what runs at once: what is queued or was done last.
FEW = 6

pytestmark = pytest.mark.usefixtures("_forked_workers")


@contextmanager
def ray_executor() -> Iterator[Executor]:
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_AUTH_MODE", "disabled")  # it would leave a token in the home folder
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield RayExecutor()
        ray.shutdown()


# A cluster of Ray takes ten seconds to start, and its workers a few each.
@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow if name == "ray" else ()) for name in EXECUTORS],
)
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    if request.param != "ray":
        yield EXECUTORS[request.param]()
        return
    with ray_executor() as executor:
        yield executor


def scorer_of(proxies: str = "zico", seed: int = 0) -> Scorer:
    return Scorer(Reading.of(make_batches(seed=seed)), Choice.of(proxies).proxies, seed=seed)


def values(cards: Any) -> dict[str, Any]:
    """All of the scores but the times, by candidate."""
    return {
        card.name: {name: (s.value, s.error, dict(s.layers)) for name, s in card.scores.items() if name != "latency"}
        for card in cards
    }


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # Ray leaves files and processes open where it starts
def test_ray_scores_as_the_serial_executor_does() -> None:
    """The one fast test on a cluster."""
    here = SerialExecutor().run([scorer_of()], map(Job, iterate_candidates([Classifier])))
    with ray_executor() as executor:
        there = executor.run([scorer_of()], map(Job, iterate_candidates([Classifier])))
        assert values(card for _, card in there) == values(card for _, card in here)


def test_scores_are_bit_for_bit_those_of_the_serial_executor(
    executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_zico.scoring.executors.pool._CONTEXT", SPAWNED)

    class Local(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return 2 * super().training_step(batch, batch_idx)

    torch.manual_seed(3)
    candidates = {
        "class": Classifier,
        "lambda": lambda: Classifier(8, dropout=0.5),
        "local": Local,
        "instance": Classifier(5),
        "blocks": Candidate("blocks", Classifier, blocks=["network.0", "network.6"]),
        "broken": lambda: 1 / 0,
    }
    scorers = [scorer_of("all"), scorer_of("all", seed=5)]
    jobs = [Job(candidate, idx) for candidate in iterate_candidates(candidates) for idx in (0, 1)]
    found, expected = list(executor.run(scorers, jobs)), list(SerialExecutor().run(scorers, jobs))
    assert sorted((job.candidate.name, job.repeat_idx) for job, _ in found) == sorted(
        (job.candidate.name, job.repeat_idx) for job in jobs
    )
    for idx in (0, 1):
        mine, theirs = (values(card for job, card in done if job.repeat_idx == idx) for done in (found, expected))
        assert mine == theirs
    assert all(card["zico"].value for job, card in expected if job.candidate.name != "broken")
    assert all("ZeroDivisionError" in card.traceback for job, card in found if job.candidate.name == "broken")


def test_settings_of_torch_are_those_of_here(executor: Executor) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        batches = [(images.double(), labels) for images, labels in make_batches()]
        scorer = Scorer(Reading.of(batches), Choice.of("zico").proxies)
        ((_, card),) = executor.run([scorer], map(Job, iterate_candidates([Classifier])))
    finally:
        torch.set_default_dtype(torch.float32)
    assert card["zico"].details["dtype"] == "float64"


def test_autocast_is_that_of_here(executor: Executor) -> None:
    def scored(by: Executor) -> dict[str, Any]:
        return values(card for _, card in by.run([scorer_of()], map(Job, iterate_candidates([Classifier]))))

    plain = scored(executor)
    with torch.autocast("cpu", torch.bfloat16):
        assert scored(executor) == scored(SerialExecutor()) != plain
    assert scored(executor) == plain


def test_a_generator_of_candidates_is_taken_as_they_are_needed(executor: Executor) -> None:
    alive: list[weakref.ref[nn.Module]] = []
    most = 0

    def instances() -> Iterator[nn.Module]:
        nonlocal most
        for _ in range(30):
            most = max(most, sum(ref() is not None for ref in alive))
            module = Classifier()
            alive.append(weakref.ref(module))
            yield module
            del module

    num_done = 0
    gc.disable()
    try:
        for job, _ in executor.run([scorer_of()], map(Job, iterate_candidates(instances()))):
            del job
            num_done += 1
            assert len(alive) <= num_done + 2 + FEW
    finally:
        gc.enable()
    assert num_done == 30
    assert most <= 2 + FEW


def test_what_cannot_be_sent_or_loaded_is_a_row(executor: Executor, tmp_path: Path) -> None:
    if isinstance(executor, SerialExecutor):
        pytest.skip("the serial executor scores in this process, so that nothing is sent to another")
    with open(tmp_path / "open", "w") as file:

        def unpicklable() -> nn.Module:
            return Classifier(len(file.name))

        candidates = {"unpicklable": unpicklable, "unloadable": _Unloadable(), "fine": Classifier}
        selector = ZeroShotSelector(proxies="zico", executor=executor)
        leaderboard = selector.rank(candidates, make_batches())
    assert leaderboard.best == "fine"
    assert leaderboard.errors["unpicklable"].startswith("cannot be sent to a worker process: ")
    assert leaderboard.errors["unloadable"] == "cannot be loaded in a worker process: ValueError: not here"
    assert "in _unloadable" in selector.cards_["unloadable"].traceback
    with pytest.raises(TypeError, match="batches, proxies, loss function, data module"):
        ZeroShotSelector(loss_fn=lambda *_: file, executor=executor).rank([Classifier], make_batches())


def test_a_cache_is_filled_and_asked_wherever_jobs_run(executor: Executor, tmp_path: Path) -> None:
    def rows(by: Executor | None, *names: str) -> dict[str, Any]:
        selector = ZeroShotSelector(proxies="zico", cache=tmp_path / "scores.db", executor=by)
        leaderboard = selector.rank({name: candidates[name] for name in names}, make_batches())
        return {row["name"]: row | {"rank": None} for row in leaderboard if row["rank"]}

    torch.manual_seed(3)
    candidates = {"instance": Classifier(5), "class": Classifier, "broken": lambda: 1 / 0}
    before, there, after = rows(None, "instance"), rows(executor, *candidates), rows(None, *candidates)
    assert there["instance"] == before["instance"]  # seconds included, which no two scorings share
    assert there == after
    assert list(there) == list(after)
    assert len(there) == 2


def test_a_cache_that_fails_in_the_middle_ends_the_ranking(executor: Executor, tmp_path: Path) -> None:
    path = tmp_path / "scores.db"

    def damaging() -> nn.Module:
        with path.open("r+b") as file:
            file.write(bytes(100))
        return Classifier()

    selector = ZeroShotSelector(proxies="zico", cache=path, executor=executor)
    with pytest.raises(CacheError, match=r"scores\.db' is damaged"):
        selector.rank([damaging], make_batches())


def test_proxies_that_workers_cannot_load_are_a_wrong_call(executor: Executor) -> None:
    if isinstance(executor, SerialExecutor):
        pytest.skip("the serial executor scores in this process, which has the proxies loaded")

    class Unloadable:
        def __call__(self, outputs: Any, targets: Any) -> Any:
            return outputs.mean()

        def __reduce__(self) -> Any:
            return int, ("x",)

    selector = ZeroShotSelector(executor=executor, loss_fn=Unloadable())
    with pytest.raises(RuntimeError, match=r"cannot load what it needs.*ValueError: invalid literal") as e:
        selector.rank([Classifier], make_batches())
    assert str(e.value).isprintable()


class _Unloadable:
    def __reduce__(self) -> Any:
        return _unloadable, ()

    def __call__(self) -> nn.Module:
        return Classifier()


def _unloadable() -> None:
    raise ValueError("not here")


def test_rows_and_winner_do_not_depend_on_what_finishes_first(executor: Executor) -> None:
    numbers = {"a": 1.0, "b": 0.0}

    def slow() -> nn.Module:
        time.sleep(1.0)
        return Numbered(numbers)

    candidates = {"slow": slow, "fast": lambda: Numbered(numbers), "last": Numbered(numbers)}
    selector = ZeroShotSelector(
        proxies=[Fixed("a"), Fixed("b")], loss_fn=nn.functional.cross_entropy, executor=executor
    )
    leaderboard = selector.rank(candidates, make_batches())
    assert [(row["rank"], row["name"]) for row in leaderboard] == [(1, "slow"), (1, "fast"), (1, "last")]
    assert list(selector.cards_) == ["slow", "fast", "last"]
    assert selector.best_model_ is not candidates["last"]
    assert isinstance(selector.best_model_, Numbered)


def test_the_best_model_is_the_offered_instance_untouched(executor: Executor) -> None:
    small, large = Classifier(), Classifier(16)
    before = {name: tensor.clone() for name, tensor in large.state_dict().items()}
    selector = ZeroShotSelector(executor=executor)
    selector.rank([small, large], make_batches())
    assert selector.best_model_ is large
    assert_same(before, dict(large.state_dict()))


def test_what_takes_its_process_down_or_hangs_is_a_row_with_ray(executor: Executor, tmp_path: Path) -> None:
    if not isinstance(executor, RayExecutor):
        pytest.skip("of Ray alone; tests/scoring/test_faults.py has more of this for worker processes")

    def noted(name: str, then: Callable[[], Any]) -> nn.Module:
        with open(tmp_path / name, "a") as file:
            file.write("x")
        then()
        return Classifier()

    deeds = {"dies": partial(os._exit, 7), "hangs": partial(time.sleep, 3600), "fine": int}
    candidates = {name: partial(noted, name, deed) for name, deed in deeds.items()}
    leaderboard = ZeroShotSelector(executor=RayExecutor(timeout_s=5)).rank(candidates, make_batches())
    assert leaderboard.errors == {"dies": "the process died, in 3 attempts", "hangs": "took more than 5 s"}
    assert [(tmp_path / name).stat().st_size for name in ("dies", "hangs")] == [3, 1]


class SlowToLoad:
    """A loss function that waits for ever when a worker process loads it."""

    def __reduce__(self) -> Any:
        return time.sleep, (3600,)

    def __call__(self, outputs: Any, targets: Any) -> Any:
        return nn.functional.cross_entropy(outputs, targets)


def test_what_takes_for_ever_to_load_ends_the_ranking_with_ray(
    executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not isinstance(executor, RayExecutor):
        pytest.skip("of Ray alone; tests/scoring/test_isolation_workers.py has it for worker processes")
    monkeypatch.setattr(pool, "LOADING_S", 3)
    selector = ZeroShotSelector(loss_fn=SlowToLoad(), executor=executor)
    with pytest.raises(RuntimeError, match=r"cannot load what it needs .*: it took more than 3 s"):
        selector.rank([Classifier], make_batches())


def test_closing_stops_what_runs_and_takes_no_more(executor: Executor) -> None:
    taken: list[str] = []

    def jobs() -> Iterator[Job]:
        for candidate in iterate_candidates([Classifier, *[_sleeping] * 20]):
            taken.append(candidate.name)
            yield Job(candidate)

    start = time.monotonic()
    if isinstance(executor, SerialExecutor):
        with closing(executor.run([scorer_of()], jobs())) as done:
            next(done)
        assert taken == ["Classifier"]
        return
    with closing(executor.run([scorer_of()], jobs())) as done:
        assert next(done)[0].candidate.name == "Classifier"
    assert len(taken) <= 3 + FEW
    assert time.monotonic() - start < 600  # each of them sleeps for an hour


def _sleeping() -> nn.Module:
    time.sleep(3600)
    return Classifier()


def test_another_number_of_threads_moves_scores_by_rounding_alone() -> None:
    network = nn.Sequential(
        *(layer for _ in range(3) for layer in (nn.LazyConv2d(32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
    )
    batches = [(torch.randn(16, 3, 32, 32), torch.randint(10, (16,))) for _ in range(2)]
    network(batches[0][0])
    # Not ZiCo: it divides by differences of gradients, so that where two almost agree, rounding moves it by a percent.
    proxies = ["snip", "naswot", "synflow", "grad_norm"]
    cards = []
    for num_threads in (1, 2):
        torch.set_num_threads(num_threads)
        cards.append(score(network, batches, proxies, nn.functional.cross_entropy))
    torch.set_num_threads(1)
    one, two = cards
    for name in proxies:
        assert one[name].value == pytest.approx(two[name].value, rel=1e-5)


def test_cores_are_shared_out_and_no_worker_has_more_threads_than_here() -> None:
    def threads_with(num_workers: int) -> float:
        scorer = Scorer(Reading.of(make_batches()), [_Threads()], loss_fn=nn.functional.cross_entropy)
        jobs = map(Job, iterate_candidates([Classifier]))
        ((_, card),) = ProcessExecutor(num_workers).run([scorer], jobs)
        assert card["threads"].value is not None, card["threads"].error
        return card["threads"].value

    torch.set_num_threads(num_cores() + 1)
    try:
        assert threads_with(1) == num_cores()
        assert threads_with(2 * num_cores()) == 1
    finally:
        torch.set_num_threads(1)
    assert threads_with(1) == 1


class _Threads(Fixed):
    def __init__(self) -> None:
        super().__init__("threads")

    def measure(self, probe: Any) -> float:
        return torch.get_num_threads()


def test_without_ray_its_executor_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install .*\[ray\]'"):
        RayExecutor()


@pytest.mark.parametrize("wrong", [{"num_cpus": 0}, {"num_gpus": -1}, {"timeout_s": 0}])
def test_ray_resources_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    pytest.importorskip("ray")
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RayExecutor(**wrong)
