"""The command line as a process: Ctrl-C, closed pipes, encodings, exit codes and files in the working folder."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lightning_zico.cli import main
from tests.cli.parts import DIGITS, QUIET, ROOT, rows_of, run


# Of `python -m`, Python itself begins to import the package with the working folder first.
@pytest.mark.parametrize(
    ("command", "planted"),
    [
        (["bin/lightning-zico"], ["jsonargparse", "matplotlib", "vl_convert"]),
        pytest.param(["-m", "lightning_zico"], ["vl_convert"], marks=pytest.mark.slow),
    ],
)
def test_a_file_in_the_working_folder_is_not_imported_in_place_of_a_package(
    command: list[str], planted: list[str], folder: Path
) -> None:
    assert main(["rank", *DIGITS, "--proxies", "params"]) == 0
    assert sys.path.index(str(folder)) == len(sys.path) - 1  # for class paths
    for package in planted:
        (folder / f"{package}.py").write_text("import pathlib; pathlib.Path('ran').touch()", encoding="utf-8")
    (folder / "bin").mkdir()
    (folder / "bin" / "lightning-zico").write_text("from lightning_zico.cli import main\nmain()\n", encoding="utf-8")
    line = [sys.executable, *command, "report", "zico-results/leaderboard.json", "-o", "page.html"]
    subprocess.run(line, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=folder, check=True, timeout=200)
    assert (folder / "page.html").exists()
    assert not (folder / "ran").exists()


def test_ctrl_c_keeps_what_is_done_and_exits_with_130(folder: Path) -> None:
    process = run("rank", "--data", "digits", "--candidates", "my_pkg.many", "--proxies", "params", cwd=folder)
    while not (folder / "three are done").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "lightning-zico: interrupted" in errors
    written = json.loads((folder / "zico-results" / "leaderboard.json").read_text(encoding="utf-8"))
    assert len(written["rows"]) >= 3
    assert written["provenance"]["broke_off"]
    assert "Mlp-3" in printed


def ended_after_two_epochs(folder: Path, *args: str, number: signal.Signals = signal.SIGINT) -> tuple[int, str, str]:
    """Run a command that trains `Endless`, send a signal in the third epoch, and give exit code and texts."""
    endless = ["--trainer.max_epochs", "1000000", "--trainer.accelerator", "cpu", *QUIET]
    process = run(*args, *endless, cwd=folder)
    while not (folder / "two epochs").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(number)
    printed, errors = process.communicate()
    return process.returncode, printed, errors


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, "lightning-zico: interrupted"),
        pytest.param(signal.SIGTERM, 143, "Written: zico-results/winner.ckpt", marks=pytest.mark.slow),
    ],
)
def test_a_signal_while_the_winner_trains_keeps_it_as_far_as_it_is_trained(
    number: signal.Signals, code: int, said: str, folder: Path
) -> None:
    own = ["--data", "digits", "--candidates", "my_pkg.endless", "--proxies", "params"]
    found, printed, errors = ended_after_two_epochs(folder, "rank", *own, number=number)
    assert found == code
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith(said)
    assert "endless" in printed
    assert [row["rank"] for row in rows_of(str(folder / "zico-results"))] == [1]
    saved = torch.load(folder / "zico-results" / "winner.ckpt", weights_only=True)
    assert saved["epoch"] >= 2
    assert saved["optimizer_states"]


@pytest.mark.slow
def test_ctrl_c_ends_fit_with_130(folder: Path) -> None:
    code, _, errors = ended_after_two_epochs(folder, "fit", "--model", "my_pkg.Endless", "--data", "digits")
    assert code == 130
    assert "Traceback" not in errors
    assert errors.endswith("lightning-zico: interrupted\n")


@pytest.mark.slow
def test_a_closed_terminal_hides_no_exit_code_and_no_results(folder: Path) -> None:
    ours, theirs = pty.openpty()
    code = (
        "import os, sys\n"
        "from lightning_zico.cli import main\n"
        "from lightning_zico.selection import selector\n"
        "rank = selector.ZeroShotSelector.rank\n"
        "def end(self, *args):\n"
        "    rank(self, *args)\n"
        "    os.close(int(sys.argv[1]))\n"  # the last reader of the terminal
        "    raise SystemExit(129)\n"
        "selector.ZeroShotSelector.rank = end\n"
        "sys.exit(main(sys.argv[2:]))\n"
    )
    line = [sys.executable, "-c", code, str(ours), "rank", *DIGITS, "--proxies", "params"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(line, cwd=folder, env=environment, stdout=theirs, stderr=theirs, pass_fds=[ours])
    os.close(ours)
    os.close(theirs)
    assert process.wait() == 129
    assert rows_of(str(folder / "zico-results"))


@pytest.mark.slow
def test_results_are_written_for_any_reader_and_any_name(folder: Path) -> None:
    args = ["rank", "--data", "digits", "--candidates", "my_pkg.named", "--proxies", "params"]
    read, write = os.pipe()
    os.close(read)  # nobody reads
    processes = {"closed": run(*args, "-o", "closed", cwd=folder, stdout=write)}
    os.close(write)
    for encoding in ("ascii", "utf-8"):
        processes[encoding] = run(*args, "-o", encoding, cwd=folder, encoding=encoding)
    ended = {name: (*process.communicate(), process.returncode) for name, process in processes.items()}
    assert {name: code for name, (_, _, code) in ended.items()} == {"closed": 141, "ascii": 0, "utf-8": 0}
    assert all("rror" not in errors for _, errors, _ in ended.values())
    assert "\\U0001f680" in ended["ascii"][0]
    assert "\N{ROCKET}" in ended["utf-8"][0]
    assert "\\udcff" in ended["utf-8"][0]
    for name in ended:
        assert [row["name"] for row in rows_of(str(folder / name))] == ["\udcff", "\N{ROCKET}"]
        for suffix in ("csv", "html"):
            text = (folder / name / f"leaderboard.{suffix}").read_text(encoding="utf-8")
            assert "\N{ROCKET}" in text
            assert "\\udcff" in text


def test_what_is_printed_into_a_closed_pipe_ends_quietly(folder: Path) -> None:
    for args in (["--version"], ["proxies"]):
        read, write = os.pipe()
        os.close(read)
        process = run(*args, cwd=folder, stdout=write)
        os.close(write)
        assert (process.communicate()[1], process.returncode) == ("", 141)


def test_exit_codes_reach_the_shell(folder: Path) -> None:
    process = run("rank", "--data", "nix", "--zoo", "timm:lcnet_035", cwd=folder)
    printed, errors = process.communicate()
    assert (process.returncode, printed) == (2, "")
    assert len(errors.splitlines()) == 1
    assert errors.startswith("lightning-zico: error: Invalid --data=nix: ")


@pytest.mark.parametrize(("line", "code"), [("--version", 0), ("--help", 0), ("nix", 2), ("", 2)])
def test_nothing_that_takes_long_is_imported_before_a_command_is_chosen(line: str, code: int, folder: Path) -> None:
    program = f"""
import sys
from lightning_zico.cli import main
code = main({line.split()!r})
print(code, *sorted({{name.split(".")[0] for name in sys.modules}} - sys.stdlib_module_names), file=sys.stderr)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    ended, *imported = ran.stderr.splitlines()[-1].split()
    assert int(ended) == code
    assert "lightning_zico" in imported
    assert {"torch", "lightning", "torchmetrics", "scipy", "numpy", "rich"}.isdisjoint(imported)
