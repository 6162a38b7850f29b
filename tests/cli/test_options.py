"""Options: in files and the environment, in short forms, in the help and in the shell."""

import os
import re
import shlex
import shutil
import subprocess
from inspect import signature
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml

from lightning_zico import ProcessExecutor, ZeroShotSearch, ZeroShotSelector
from lightning_zico.cli import commands, main
from lightning_zico.cli.parser import COMMANDS, build_parser
from tests.cli.parts import DIGITS, ROOT, rows_of, run, without_seconds


def test_print_config_is_read_back_as_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["rank", *DIGITS, "--data.batch_size", "16", "--proxies", "params", "--budget.params", "18e3"]
    assert main([*given, "--output", "direct", "--print_config"]) == 0
    printed = capsys.readouterr().out
    Path("examples").symlink_to(ROOT / "examples")
    Path("rank.yaml").write_text(printed, encoding="utf-8")
    assert main(["rank", "--config", "rank.yaml", "--print_config"]) == 0
    assert capsys.readouterr().out == printed
    assert main([*given, "--output", "direct"]) == 0
    assert main(["rank", "--config", "rank.yaml", "--output", "by-config"]) == 0
    assert without_seconds(rows_of("by-config")) == without_seconds(rows_of("direct"))


def test_environment_gives_way_to_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"DATA": "digits", "CANDIDATES": "my_pkg.my_candidates", "PROXIES": "params"}.items():
        monkeypatch.setenv(f"LIGHTNING_ZICO_RANK__{name}", value)
    monkeypatch.setenv("LIGHTNING_ZICO_RANK__BUDGET__PARAMS", "15e2")
    assert main(["rank"]) == 0
    assert [row["name"] for row in rows_of() if row["rank"]] == ["narrow"]
    assert main(["rank", "--budget.params", "15e6"]) == 0
    assert [row["name"] for row in rows_of() if row["rank"]] == ["wide", "narrow"]


@pytest.mark.parametrize("flag", [["--race"], ["--race", "true"], ["--race", "True"], ["--race=True"]])
def test_a_flag_may_have_a_value(flag: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rank", *DIGITS, *flag, "--print_config"]) == 0
    assert "\nrace: true\n" in capsys.readouterr().out
    assert main(["rank", *DIGITS, "--race", "False", "--print_config"]) == 0
    assert "\nrace: false\n" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:::jsonargparse", "ignore:::lightning.pytorch.cli")  # as in the test of `fit`
@pytest.mark.parametrize("data", ["digits", "images"])
@pytest.mark.parametrize("command", ["rank", "fit"])
@pytest.mark.parametrize("source", ["line", "file", "variable", "variable of a file"])
def test_options_follow_short_data_wherever_it_stands(
    data: str,
    command: str,
    source: str,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("data.yaml").write_text(f"data: {data}  # short\n", encoding="utf-8")
    prefix = f"LIGHTNING_ZICO_{command.upper()}__"
    if source.startswith("variable"):
        name, value = ("CONFIG", "data.yaml") if "file" in source else ("DATA", data)
        monkeypatch.setenv(f"{prefix}{name}", value)
    given = {"line": ["--data", data], "file": ["--config", "data.yaml"]}.get(source, [])
    own = ["--model", "my_pkg.Mlp"] if command == "fit" else ["--candidates", "my_pkg.my_candidates"]
    before = dict(os.environ)
    assert main([command, *given, "--data.batch_size", "9", *own, "--print_config"]) == 0, capsys.readouterr().err
    assert os.environ == before
    kind = "demos.DigitsDataModule" if data == "digits" else "datamodules.ImageFolderDataModule"
    printed = capsys.readouterr().out
    assert f"data:\n  class_path: lightning_zico.{kind}\n" in printed
    assert "    batch_size: 9\n" in printed
    assert ("    root: images\n" in printed) == (data == "images")


@pytest.mark.parametrize(
    ("data", "options"),
    [
        ("images", {"root", "image_size", "batch_size", "num_workers", "skip_unreadable", "min_batches"}),
        ("my_pkg.MyDataModule", {"batch_size"}),
    ],
)
def test_help_on_data_lists_its_options(
    data: str, options: set[str], images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for given in (["--data", data], [f"--data={data}"]):
        assert main(["rank", *given, "--data.help"]) == 0
        assert set(re.findall(r"^  --data\.(\w+)", capsys.readouterr().out, re.MULTILINE)) == options


@pytest.mark.parametrize("command", ["", "rank", "score", "proxies", "report"])
def test_help_is_complete(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--help"]) == 0
    printed = capsys.readouterr().out
    assert "usage: lightning-zico" in printed
    options = re.findall(r"ARG: +(-.*?)(?=\n  ARG:|\n\n|\Z)", printed, flags=re.DOTALL)
    assert len(options) >= 3
    assert [option for option in options if not re.search(r"  [A-Z][a-z]* ", option)] == []


@pytest.mark.parametrize(("command", "groups"), [("rank", 6), ("search", 6), ("score", 4)])
def test_help_begins_with_two_examples_that_work_and_has_groups(
    command: str, groups: int, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--help"]) == 0
    top, *sections = re.split(r"^(?=[a-z ]+:$|Limits on cost)", capsys.readouterr().out, flags=re.MULTILINE)
    assert top.startswith(f"usage: lightning-zico {command} ")
    examples, *sections = sections
    lines = examples.strip().splitlines()[1:]
    assert len(lines) == 2
    for line in lines:
        assert main([*shlex.split(line)[1:], "--print_config"]) == 0, capsys.readouterr().err
    titles = [section.partition("\n")[0].rstrip(":") for section in sections]
    assert titles[:2] == ["data and models", "scores"]
    assert len(titles) == groups + 1
    assert titles[-1] == "options"
    assert "--data DATA" in sections[0]
    left = re.findall(r"ARG: +(?:-\w, )?--([\w.]+)", sections[-1])
    assert left == ["help", "config", "print_config"]  # each other option is in a group


@pytest.mark.parametrize("line", ["--n_jobs 3", "--n_jobs=3", "--executor processes --num_workers 3"])
def test_n_jobs_is_short_for_workers(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "--space", "plainnet", "--data", "digits", *line.split(), "--print_config"]) == 0
    printed = capsys.readouterr().out
    assert {"executor: processes", "num_workers: 3"} <= set(printed.splitlines())


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        (["ra"], {"rank"}),
        (["rank", "--mon"], {"--monitor"}),
        (["search", "--budget.m"], {"--budget.macs", "--budget.memory_bytes"}),
        (["rank", "--executor", ""], {"serial", "processes", "ray"}),
    ],
)
def test_bash_completes(line: list[str], offered: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--print_completion", "bash"]) == 0
    words = shlex.join(["lightning-zico", *line])
    script = f"""{capsys.readouterr().out}
        COMP_WORDS=({words}); COMP_CWORD={len(line)}
        call=$(complete -p lightning-zico); call=${{call##*-F }}
        ${{call%% *}} lightning-zico
        echo "${{COMPREPLY[@]}}"
    """
    ran = subprocess.run(["bash"], input=script, capture_output=True, text=True, timeout=60, check=True)
    assert set(ran.stdout.split()) == offered


@pytest.mark.parametrize(
    ("command", "kind", "only_in_python"),
    [
        ("rank", ZeroShotSelector, {"callbacks", "loss_fn", "step"}),
        ("search", ZeroShotSearch, {"callbacks", "loss_fn", "step", "trainer", "wrap"}),
    ],
)
def test_every_argument_of_a_class_is_an_option_unless_no_text_can_give_it(
    command: str, kind: type, only_in_python: set[str]
) -> None:
    offered = {option.removeprefix("--").partition(".")[0] for option in build_parser([command]).options}
    arguments = signature(kind).parameters
    assert set(arguments) - offered == only_in_python
    assert set(signature(ProcessExecutor).parameters) <= offered


@pytest.mark.parametrize(("command", "kind"), [("rank", ZeroShotSelector), ("search", ZeroShotSearch)])
def test_an_option_that_is_not_given_has_the_default_of_the_class(
    command: str, kind: type, capsys: pytest.CaptureFixture[str]
) -> None:
    space = ["--space", "plainnet"] if command == "search" else []
    assert main([command, "--data", "digits", *space, "--print_config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    own = {"proxies", "budget", "executor", "against", "num_classes", "space"}  # which the command writes differently
    defaults = {name: each.default for name, each in signature(kind).parameters.items() if name not in own}
    shared = defaults.keys() & printed.keys()
    assert {name: printed[name] for name in shared} == {name: defaults[name] for name in shared}
    assert {"seed", "num_batches", "precision", "chunk_size"} <= shared


def test_what_a_command_leaves_out_of_a_class_is_there() -> None:
    groups = [
        mark
        for name in COMMANDS
        for hint in get_type_hints(getattr(commands, name), include_extras=True).values()
        for mark in getattr(hint, "__metadata__", ())
    ]
    assert any(group.leave_out for group in groups)
    for group in groups:
        assert group.leave_out <= set(signature(group.source).parameters)


def test_the_help_of_all_commands_begins_as_the_help_of_each() -> None:
    for name, what in COMMANDS.items():
        assert what == (getattr(commands, name).__doc__ or "").split("\n\n")[0]


def test_the_help_of_a_search_is_that_of_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "ZeroShotSelector" not in printed
    assert "`" not in printed


@pytest.mark.filterwarnings("ignore:::jsonargparse", "ignore:::lightning.pytorch.cli")  # as in the test of `fit`
@pytest.mark.parametrize("command", ["rank", "fit"])
def test_classes_of_the_package_can_be_given_by_name(command: str, folder: Path) -> None:
    own = ["--model", "my_pkg.Mlp"] if command == "fit" else ["--candidates", "my_pkg.my_candidates"]
    args = [command, "--data", "DigitsDataModule", *own, "--trainer.callbacks", "ZiCoCallback", "--print_config"]
    printed, errors = run(*args, cwd=folder).communicate()
    assert "class_path: lightning_zico.ZiCoCallback" in printed, errors
    assert "class_path: lightning_zico.demos.DigitsDataModule" in printed
