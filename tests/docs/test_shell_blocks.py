"""Every shell block of README.md and of the documentation runs, page by page, as a reader would type it.

Lines of `lightning-zico` run in this process, since a process each would import torch a dozen times. A test installs
nothing: of `pip install` it is the extras that have to exist, of `make` that it knows what it would do. Whatever else
stands in a block is refused, so that no block is left unrun unnoticed.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from hashlib import md5
from io import StringIO
from itertools import pairwise
from pathlib import Path
from pickle import dumps
from typing import Any, NamedTuple

import numpy as np
import pytest
import timm
import yaml
from torchvision.datasets import CIFAR10

from lightning_zico import Leaderboard, SearchResult
from lightning_zico.cli import main
from tests.test_datamodules import fill
from tests.zoo.checkpoints import CHECKPOINTS, cache_timm

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = {
    page.relative_to(ROOT).as_posix(): re.findall(
        r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL
    )
    for page in PAGES
}
# By a part of the documented line, what stands behind it here, since it would take minutes or more images than are
# there. None of it changes what the line means.
FEW_STEPS = "--trainer.limit_train_batches 1 --trainer.limit_val_batches 1 --trainer.enable_progress_bar false"
SMALLER = {
    "rank --zoo 'timm:resnet*'": "--data.batch_size 4",
    "--data.image_size 64": "--data.batch_size 4",
    "--finalists 3": f"--budget.params 15e6 --data.batch_size 4 --trainer.max_epochs 2 {FEW_STEPS}",
    "--prior results-imagenet.csv": "--data.batch_size 4 --data.image_size 32",
    "--pretrained": "--data.batch_size 4 --num_samples_transfer 16",
    "--space plainnet": "--data.batch_size 4 --data.image_size 32 --num_trials 2",
    # As published: 100,000 networks for 1,000 classes, on a GPU where there is one, with 8 processes that read images.
    "search --config": "--data.batch_size 4 --data.image_size 32 --data.num_workers 0 --num_trials 2 --num_classes 2 "
    "--accelerator cpu",
    "fit --model": FEW_STEPS,
}
SLOW = {"docs/how_to/command_line.md"}  # most of its commands are those of other pages
# Patterns of the pages find these alone: of all ResNets of timm, sizes take 10 s, and some scores half a minute each.
# What is over the budget is left out and never built.
TIMM = ["lcnet_035", "lcnet_050", "mobilenetv3_small_050", "resnet10t", "resnet18", "resnet18d", "resnet50"]
MODULE = """
from lightning_zico.demos import DigitsClassifier, DigitsDataModule, mlp

class Mlp(DigitsClassifier):
    def __init__(self, width: int = 16):
        super().__init__(mlp(width))

class MyDataModule(DigitsDataModule):
    pass

def my_candidates():
    return {"narrow": Mlp, "wide": lambda: Mlp(32)}
"""


class Line(NamedTuple):
    """What a shell makes of a line: its words without quotes, and where they go."""

    text: str
    environment: dict[str, str]
    words: list[str]
    target: str | None


def lines_of(block: str) -> list[str]:
    joined = block.replace("\\\n", " ").splitlines()
    return [line for line in joined if shlex.split(line, comments=True)]


def read(text: str) -> Line:
    """Read a line as a shell would, and refuse what this reader does not know."""
    assert not set("$`") & set(text), text
    for word in shlex.split(text, comments=True, posix=False):
        assert word[0] in "'\"" or not set("*?[") & set(word), f"{word}: a shell looks for files of that name"
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = [os.path.expanduser(word) for word in lexer]
    environment = {}
    while re.match(r"[A-Z_]+=", words[0]):
        name, _, environment[name] = words.pop(0).partition("=")
    target = words[-1] if words[-2:-1] == [">"] else None
    words = words if target is None else words[:-2]
    assert not {word for word in words if set(word) <= set("();<>|&")}, text
    return Line(text, environment, words, target)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder, which is home as well, with all that the pages suppose to be there."""
    (tmp_path / "my_pkg.py").write_text(MODULE, encoding="utf-8")
    (tmp_path / "results-imagenet.csv").write_text(
        "model,top1,param_count\nlcnet_050,63.1,1.88\nlcnet_035,60.0,1.64\n", encoding="utf-8"
    )
    fill(tmp_path / "images", cats=12, dogs=12)
    write_cifar10(tmp_path / "data" / CIFAR10.base_folder, monkeypatch)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_pkg", raising=False)
    monkeypatch.setattr(timm, "list_models", lambda pretrained=False: [*CHECKPOINTS] if pretrained else TIMM)
    return tmp_path


def write_cifar10(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a few black images as the files of CIFAR-10, and have torchvision expect the checksums of these."""
    folder.mkdir(parents=True)

    def written(name: str, content: Any) -> str:
        (folder / name).write_bytes(dumps(content))
        return md5((folder / name).read_bytes()).hexdigest()

    images = {"data": np.zeros((4, 3072), dtype=np.uint8), "labels": [0, 1, 2, 3]}
    for part in ("train_list", "test_list"):
        names = [name for name, _ in getattr(CIFAR10, part)]
        monkeypatch.setattr(CIFAR10, part, [[name, written(name, images)] for name in names])
    meta = {"label_names": [f"class {idx}" for idx in range(10)]}
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": written(CIFAR10.meta["filename"], meta)})


# As in the test of `fit` in tests/cli; trainers log where they like, and what is made small has few steps.
@pytest.mark.filterwarnings("ignore:::jsonargparse", "ignore:::lightning.pytorch.cli", "ignore:.*tensorboardX.*")
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow if page in SLOW else ()) for page, blocks in BLOCKS.items() if blocks],
)
def test_every_shell_block_runs(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if any("--pretrained" in block for block in BLOCKS[page]):
        cache_timm(Path("hub"), monkeypatch, *CHECKPOINTS)
    for block in BLOCKS[page]:
        assert lines_of(block), f"A block of {page} has no command:\n{block}"
        for line in map(read, lines_of(block)):
            with monkeypatch.context() as variables:
                for name, value in line.environment.items():
                    variables.setenv(name, value)
                PROGRAMS[line.words[0]](line)  # KeyError: nothing here knows how to run that program


def make(line: Line) -> None:
    assert line.words[1:]
    subprocess.run(["make", "-n", *line.words[1:]], cwd=ROOT, capture_output=True, check=True)


def pip_install(line: Line) -> None:
    _, command, package = line.words
    named = re.fullmatch(r"\.\[([\w,]+)\]", package)
    assert (command, named is not None) == ("install", True), line.text
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = project.partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    assert set(named[1].split(",")) <= set(re.findall(r"^(\w+) = \[", extras, re.MULTILINE))


def mkdir(line: Line) -> None:
    _, option, path = line.words
    assert option == "-p"
    Path(path).mkdir(parents=True, exist_ok=True)


def lightning_zico(line: Line) -> None:
    """Run it: what it prints and writes is there, and its options are read back as they are printed."""
    smaller = [option for part, options in SMALLER.items() if part in line.text for option in options.split()]
    words = [*line.words[1:], *smaller]
    command = words[0]
    prints_alone = {"--help", "--data.help", "--print_config", "--print_completion"} & set(words)
    if not prints_alone:
        config = printed_by([*words, "--print_config"])
        Path("config.yaml").write_text(config, encoding="utf-8")
        assert printed_by([command, "--config", "config.yaml", "--print_config"]) == config, line.text
    files = [] if prints_alone else files_of(words)
    for file in files:
        file.unlink(missing_ok=True)
    printed = printed_by(words)
    assert printed or command == "fit" or "-o" in words
    assert [file for file in files if not file.is_file()] == []
    if line.target is not None:
        Path(line.target).write_text(printed, encoding="utf-8")
    if "--print_config" in words:
        assert yaml.safe_load(printed)
    elif "--print_completion" in words:
        subprocess.run([words[1], "-n"], input=printed, text=True, check=True)
    elif prints_alone:
        assert "usage: lightning-zico" in printed or "--data." in printed
    elif command == "rank":
        ranked = Leaderboard.from_json(files[0])
        assert ranked.best is not None
        assert ranked.best in printed
    elif command == "search":
        result = SearchResult.from_json(files[0])
        assert result.best is not None
        assert result.best in printed
    elif command == "fit":
        kept = [config.parent for config in Path("lightning_logs").rglob("config.yaml")]
        assert any(list(folder.rglob("*.ckpt")) for folder in kept)


def printed_by(words: list[str]) -> str:
    printed = StringIO()
    with redirect_stdout(printed):
        assert main(words) == 0, words
    assert "Unable to serialize" not in printed.getvalue()
    return printed.getvalue()


def files_of(words: list[str]) -> list[Path]:
    """Name what a command is to leave."""
    name = {"rank": "leaderboard", "search": "search"}.get(words[0])
    files = [Path("zico-results", f"{name}.{suffix}") for suffix in ("json", "csv", "html")] if name else []
    files += [Path("zico-results", "winner.ckpt")] if "--finalists" in words else []
    options = {"-o", "--storage"} if words[0] in ("report", "search") else set()
    return files + [Path(value) for option, value in pairwise(words) if option in options]


PROGRAMS: dict[str, Callable[[Line], None]] = {
    "lightning-zico": lightning_zico,
    "make": make,
    "mkdir": mkdir,
    "pip": pip_install,
}


def test_every_block_is_one_that_a_test_runs() -> None:
    for page in PAGES:
        fences = re.findall(r"^ *(?:```|~~~)(.*)", page.read_text(encoding="utf-8"), re.MULTILINE)
        # A text is the output of a block; a file in TOML is tested where it is read.
        assert set(fences[::2]) <= {"python", "bash", "text", "toml"}, page
    assert sum(len(blocks) for blocks in BLOCKS.values()) >= 11


def test_what_is_made_small_is_one_documented_line_each() -> None:
    lines = {line for blocks in BLOCKS.values() for block in blocks for line in lines_of(block)}
    assert {part: sum(part in line for line in lines) for part in SMALLER} == dict.fromkeys(SMALLER, 1)
