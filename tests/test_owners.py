"""A process is held to be gone only where that is certain."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lightning_zico import owners
from lightning_zico.owners import Owner, Place, begin_run, end_run
from lightning_zico.search.trials import Trials

ROOT = Path(__file__).parents[1]
HERE = Place("worker", "machine", "boot", "pid:[4026531836]")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


def python(code: str, *command: str) -> "subprocess.Popen[str]":
    return subprocess.Popen([*command, sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def owner_in(process: "subprocess.Popen[str]") -> Owner:
    assert process.stdout is not None
    return Owner.from_dict(json.loads(process.stdout.readline()))


OWNER = """
import json, time
from lightning_zico.owners import begin_run
print(json.dumps(begin_run().to_dict()), flush=True)
time.sleep(600)
"""


def test_a_process_lives_until_it_is_killed_though_nobody_has_waited_for_it() -> None:
    with python(OWNER) as process:
        owner = owner_in(process)
        assert owner.pid == process.pid
        assert owner.lives() is True
        process.kill()
        if sys.platform == "linux":
            stat = Path(f"/proc/{process.pid}/stat")
            while ") Z " not in stat.read_text():
                time.sleep(0.01)
            assert owner.lives() is False
    assert owner.lives() is False


def test_a_run_lives_until_it_ends() -> None:
    first, second = begin_run(), begin_run()
    assert first.lives() is True
    assert second.lives() is True
    end_run(first)
    assert first.lives() is False
    assert second.lives() is True
    end_run(second)


@on_linux
def test_who_has_the_pid_of_another_is_not_taken_for_it() -> None:
    with python(OWNER) as process:
        owner = owner_in(process)
        assert owner.begun is not None
        assert owner._replace(begun=owner.begun - 1).lives() is False
        process.kill()
    own = begin_run()
    assert own.begun is not None
    assert own._replace(begun=own.begun - 1).lives() is False
    end_run(own)


@pytest.mark.parametrize(
    ("there", "here", "lives"),
    [
        (HERE._replace(pids="pid:[7]"), HERE, None),
        (HERE, HERE._replace(pids="pid:[7]"), None),
        (HERE._replace(host="other"), HERE, None),
        (HERE._replace(boot="earlier"), HERE, False),
        # Of one image, and on one machine or two.
        (HERE._replace(boot="earlier", pids="pid:[7]"), HERE._replace(pids="pid:[7]"), None),
        (HERE._replace(boot="earlier", machine="other"), HERE, None),
        (HERE._replace(boot="earlier", machine=None), HERE._replace(machine=None), None),
    ],
)
def test_who_is_elsewhere_is_not_judged_unless_this_machine_was_restarted(
    there: Place, here: Place, lives: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owners, "_place", lambda: here)
    most = int(Path("/proc/sys/kernel/pid_max").read_text()) if sys.platform == "linux" else 99_999
    for pid in (os.getpid(), most):  # one that is there, and one that is not
        assert Owner(there, pid, None, "run").lives() is lives


def in_another_container(code: str) -> "subprocess.Popen[str]":
    """Run in a namespace of pids of its own, under the same host name."""
    unshare = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]
    try:
        subprocess.run([*unshare, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no namespace can be made: {error}")
    return python(code, *unshare)


@pytest.mark.slow
def test_a_claim_from_another_container_is_left_alone(tmp_path: Path) -> None:
    code = f"""
from lightning_zico import Score, ScoreCard
from lightning_zico.search.trials import Trials
trials = Trials({str(tmp_path / "trials.db")!r}, "study", {{}}, ["maximize"])
number = trials.claim("a", 0, most=5)
print(trials.owner.lives(), flush=True)
open({str(tmp_path / "go")!r}).read()
trials.finish(number, ScoreCard("a", {{"params": Score("params", 1.0)}}), [1.0])
"""
    os.mkfifo(tmp_path / "go")
    process = in_another_container(code)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "True\n"
        trials = Trials(tmp_path / "trials.db", "study", {}, ["maximize"])
        assert trials.claim("a", 0, most=5) is None
        (tmp_path / "go").write_text("")
        assert process.wait(timeout=60) == 0
        trials.update()
        assert [trial.arch for trial in trials.finished] == ["a"]
        trials.close()
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[" * 200_000, "3", Owner(HERE, 10**30, None, "run").to_json(), '{"place": {}, "pid": 1}'],
    ids=["empty", "nothing", "nested", "number", "huge pid", "no place"],
)
def test_what_is_not_an_owner_is_one_kind_of_error(text: str) -> None:
    with pytest.raises(ValueError, match="Not an owner"):
        Owner.from_json(text)
