"""The command line: what it prints and writes, and its exit codes."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lightning_zico import Budget, SearchResult, ZeroShotSearch, ZeroShotSelector, list_proxies, list_recipes
from lightning_zico.cli import main
from lightning_zico.commands import datamodule_of
from lightning_zico.datamodules import TORCHVISION_DATASETS, ImageFolderDataModule, TorchvisionDataModule
from lightning_zico.demos import DigitsDataModule, digits_candidates
from lightning_zico.zoo import zoo_model

ROOT = Path(__file__).parent.parent
DIGITS = ["--data", "digits", "--candidates", "lightning_zico.demos.digits_candidates"]
QUIET = [f"--trainer.{name}=false" for name in ("logger", "enable_checkpointing", "enable_progress_bar")]
FOUND = {"--num_classes": "the batches have", "--vocab_size": "the data module says"}
KNOWN = "model,top1,count\nlcnet_035,60.5,1\nlcnet_050,63.1,2\n"
MODULE = """
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from lightning_zico.demos import DigitsClassifier, DigitsDataModule, digits_candidates, mlp


class Mlp(DigitsClassifier):
    def __init__(self, width: int = 16, lr: float = 1e-3):
        super().__init__(mlp(width), lr)


class MyDataModule(DigitsDataModule):
    pass


class Texts(LightningDataModule):
    def train_dataloader(self):
        texts = torch.arange(40_000 - 8 * 5, 40_000).view(8, 5)
        labels = torch.arange(8) % 2
        return DataLoader([{"input_ids": text, "labels": label} for text, label in zip(texts, labels)], 4)


class TextsThatSay(Texts):
    def setup(self, stage):
        self.vocab_size = 40_000


class TextsThatCount(Texts):
    vocab_size = True


class Unknown(LightningDataModule):
    def train_dataloader(self):
        return DataLoader([{"input_ids": torch.arange(5), "labels": -100}] * 4, 2)


class Unlabelled(LightningDataModule):
    def train_dataloader(self):
        return DataLoader([{"input_ids": torch.arange(5)}] * 4, 2)


def my_candidates():
    return {"narrow": Mlp, "wide": lambda: Mlp(32)}


def many():
    for idx in range(3000):
        if idx == 3:
            Path("three are done").touch()
        yield Mlp


class Endless(Mlp):
    def on_train_epoch_start(self):
        if self.current_epoch == 2:
            Path("two epochs").touch()


def endless():
    return {"endless": Endless}


def named():
    return {"\\N{ROCKET}": Mlp, "\\udcff": lambda: Mlp(32)}


def broken():
    raise RuntimeError("in the user's own code")


def failing():
    return [broken]


def ending():
    raise SystemExit(4)


def nothing():
    return None


def texts():
    return ["resnet18"]


class Refusing(DigitsDataModule):
    def setup(self, stage):
        raise ValueError("in setup,\\non two lines")


class Untrainable(Mlp):
    def on_train_start(self):
        raise KeyError("in training")
"""

FILES = {
    "wrong.py": "def f(:",
    "raising.py": "raise RuntimeError('on import')",
    "ending.py": "raise SystemExit(3)",
    "typo.yaml": "data: digits\ncandidate: my_pkg.my_candidates\n",
    "typed.yaml": "data: digits\nzoo: timm:lcnet_035\nnum_batches: two\n",
    "broken.yaml": "data: [digits\n",
    "empty.json": '{"rows": [], "provenance": {}}',
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with a user's package, from which nothing stays imported."""
    (tmp_path / "my_pkg.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_pkg", raising=False)
    return tmp_path


@pytest.fixture
def images(folder: Path) -> Path:
    """Twelve images of either of two classes, of different sizes."""
    for label, name in enumerate(("cats", "dogs")):
        (folder / "images" / name).mkdir(parents=True)
        for idx in range(12):
            Image.new("RGB", (40 + idx, 50), (20 * idx, 100 * label, 0)).save(folder / "images" / name / f"{idx}.png")
    return folder / "images"


def rows_of(folder: str = "zico-results") -> list[dict[str, Any]]:
    return json.loads(Path(folder, "leaderboard.json").read_text(encoding="utf-8"))["rows"]


def without_seconds(rows: Any) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_rank_prints_and_writes_what_the_selector_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rank", *DIGITS, "--proxies", "zico,params", "--seed", "1"]) == 0
    selector = ZeroShotSelector(proxies=["zico", "params"], seed=1)
    expected = selector.rank(digits_candidates(), DigitsDataModule())
    assert without_seconds(rows_of()) == without_seconds(expected.rows)
    printed = capsys.readouterr()
    assert re.findall(r"^ +\d+ +(\S+)", printed.out, re.MULTILINE) == [row["name"] for row in expected]
    assert "zico-results/leaderboard.json" in printed.err
    assert Path("zico-results/leaderboard.csv").read_text(encoding="utf-8").startswith("rank,name,score,zico,params")
    assert "vit-32x2" in Path("zico-results/leaderboard.html").read_text(encoding="utf-8")


def test_a_zoo_is_built_for_the_data_and_what_is_too_large_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["rank", "--data", "digits", "--zoo", "timm:lcnet_0*,resnet50", "--budget.params", "4e5"]
    assert main([*args, "--proxies", "params,zico"]) == 0
    printed = capsys.readouterr().err
    assert "10 classes (as the data module says) and inputs of 1 x 32 x 32; the images are 1 x 8 x 8" in printed
    assert "with more than 400,000 parameters were left out" in printed
    rows = rows_of()
    assert "lcnet_035" in [row["name"] for row in rows]
    assert all(row["params"] <= 4e5 and row["zico"] is not None for row in rows)


@pytest.mark.parametrize(
    ("data", "option", "num_tokens"),
    [
        ("Texts", [], None),
        ("Texts", ["--vocab_size", "40000"], 40_000),
        ("TextsThatSay", [], 40_000),
        ("TextsThatSay", ["--num_classes", "2"], 40_000),
        ("Texts", ["--num_classes", "2", "--vocab_size", "40000"], 40_000),
        ("TextsThatSay", ["--vocab_size", "40001"], 40_001),
        ("TextsThatSay", ["--vocab_size", "39999"], None),  # the last token is beyond it
    ],
)
def test_models_for_text_take_all_tokens_if_the_vocabulary_is_known(
    data: str, option: list[str], num_tokens: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    of_data = ["--data", f"my_pkg.{data}", *option, "--proxies", "zico,params"]
    assert main(["rank", "--zoo", "transformers:bert-tiny", *of_data]) == (1 if num_tokens is None else 0)
    errors = capsys.readouterr().err
    assert main(["score", "transformers:bert-tiny", *of_data]) == 0
    printed = capsys.readouterr().out
    (row,) = rows_of()
    if num_tokens is None:
        assert "IndexError" in row["error"]
        assert "IndexError" in printed
        return
    # Of its own, it has 30,522 tokens, each of them a vector of 128 numbers.
    network = zoo_model("transformers:bert-tiny", num_classes=2)
    params = sum(p.numel() for p in network.parameters()) + 128 * (num_tokens - 30_522)
    assert (row["error"], row["params"]) == (None, params)
    assert f"{params:,.6g}" in printed
    if len(option) < 4:  # or else there is nothing to be found
        by, knows = ("you said" if name in option else said for name, said in FOUND.items())
        assert f"for 2 classes (as {by}) and for {num_tokens:,} tokens (as {knows})" in errors


def test_a_model_for_text_is_trained_with_a_vocabulary_by_class_path() -> None:
    network = zoo_model("transformers:bert-tiny", num_classes=2, vocab_size=99).network
    assert network.get_input_embeddings().num_embeddings == 99


def test_the_three_kinds_of_data(images: Path) -> None:
    folder = datamodule_of(str(images))
    assert isinstance(folder, ImageFolderDataModule)
    assert folder.num_classes == 2
    folder.setup("fit")
    assert (len(folder.train_data), len(folder.val_data)) == (22, 2)
    assert isinstance(datamodule_of("digits"), DigitsDataModule)
    assert isinstance(datamodule_of("mnist"), TorchvisionDataModule)


def test_options_follow_data_of_every_kind(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--data.image_size", "40", "--data.batch_size", "4"]
    assert main(["rank", "--data", str(images), *size, "--zoo", "timm:lcnet_035", "--proxies", "params"]) == 0
    assert "2 classes (as the data module says) and inputs of 3 x 40 x 40" in capsys.readouterr().err
    for data in ("digits", "my_pkg.MyDataModule"):
        own = ["--candidates", "my_pkg.my_candidates", "--proxies", "params"]
        assert main(["rank", "--data", data, "--data.batch_size", "9", *own]) == 0
        written = json.loads(Path("zico-results/leaderboard.json").read_text(encoding="utf-8"))
        assert written["provenance"]["batch_shapes"][0][0] == 9


def test_a_folder_with_few_images_is_ranked_and_unreadable_ones_are_named_or_left_out(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--data.image_size", "32", "--zoo", "timm:lcnet_035", "--proxies", "zico"]
    assert main(["rank", "--data", "images", *small, "--num_batches", "3"]) == 0
    written = json.loads(Path("zico-results/leaderboard.json").read_text(encoding="utf-8"))
    assert written["provenance"]["batch_shapes"][0][0] == 22 // 3
    capsys.readouterr()
    for name in ("cats/3", "dogs/11"):
        (images / f"{name}.png").write_bytes(b"no image")
    assert main(["rank", "--data", "images", *small]) == 2
    assert "2 of 24 images in 'images', which cannot be read: 'cats/3.png', 'dogs/11.png'" in capsys.readouterr().err
    assert main(["rank", "--data", "images", "--data.skip_unreadable", *small]) == 0
    assert "Left out 2 of 24 images in 'images'" in capsys.readouterr().err


def test_folders_for_training_and_validation_are_told_apart(images: Path) -> None:
    (images.parent / "split").mkdir()
    for part in ("train", "val"):
        (images.parent / "split" / part).symlink_to(images, target_is_directory=True)
    data = ImageFolderDataModule(str(images.parent / "split"), image_size=32)
    data.setup("fit")
    assert (data.num_classes, len(data.train_data), len(data.val_data)) == (2, 24, 24)


def test_what_cannot_be_downloaded_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    for name in TORCHVISION_DATASETS:
        assert main(["rank", "--data", name, "--zoo", "timm:lcnet_035"]) == 1
        (line,) = capsys.readouterr().err.splitlines()[-1:]
        assert f"'{name}' is not in 'data' and could not be downloaded" in line, line


def test_a_dataset_that_is_there_needs_no_network(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    def write(path: Path, magic: int, shape: tuple[int, ...]) -> None:
        header = b"".join(number.to_bytes(4, "big") for number in (magic, *shape))
        path.write_bytes(header + bytes(torch.Size(shape).numel()))

    raw = folder / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        write(raw / f"{part}-images-idx3-ubyte", 0x803, (6, 28, 28))
        write(raw / f"{part}-labels-idx1-ubyte", 0x801, (6,))
    monkeypatch.setattr("urllib.request.urlopen", lambda *args, **kwargs: pytest.fail("asked the network"))
    data = TorchvisionDataModule("mnist", batch_size=3)
    data.prepare_data()
    data.setup("fit")
    inputs, labels = next(iter(data.train_dataloader()))
    assert inputs.shape == (3, 1, 28, 28)
    assert torch.equal(inputs, -torch.ones_like(inputs))  # black
    assert labels.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("rank", "`lightning-zico rank` needs --data."),
        ("rank --data digits", "Pass either `--zoo`"),
        ("rank --data nix --zoo timm:lcnet_035", "Invalid --data=nix: expected a folder of images"),
        ("rank --data nix --data.batch_size 3 --zoo timm:lcnet_035", "Invalid --data=nix: expected a folder of images"),
        ("fit --model my_pkg.Mlp --data nix", "Invalid --data=nix: expected a folder of images"),
        ("rank --data nix.Nix --zoo timm:lcnet_035", "Invalid --data=nix.Nix: it cannot be imported"),
        ("rank --data my_pkg.Nix --data.batch_size 3 --zoo timm:a", "module 'my_pkg' has no attribute 'Nix'"),
        (
            "rank --data digits --data.batch_size x --zoo timm:a",
            "Invalid --data.batch_size=x: expected a whole number.",
        ),
        ("rank --data digits --zoo timm:resnit18", "Did you mean"),
        ("rank --data digits --zoo timn:resnet18", "no zoo named 'timn'"),
        ("rank --data digits --candidates my_pkg.nix", "Invalid --candidates=my_pkg.nix: it cannot be imported"),
        ("rank --data digits --candidates my_pkg.Mlp", "it is a single model; expected the import path of a"),
        ("rank --data digits --candidates my_pkg.my_candidates --proxies zicoo", "Did you mean 'zico'"),
        ("rank --data digits --candidates my_pkg.my_candidates --finalists 2", "needs a trainer"),
        ("rank --data digits --candidates my_pkg.my_candidates --num_workers 2", "needs `--executor processes`"),
        (
            "rank --data digits --candidates my_pkg.my_candidates --vocab_size 9",
            "Unexpected --vocab_size=9: it is only for models of",
        ),
        ("score my_pkg.Mlp --data digits --num_classes 9", "--num_classes=9: it is only for models of a zoo, but"),
        ("rank --data digits --zoo timm:lcnet_035 --budget.params=-1", "expected a positive, finite number"),
        (f"rank {' '.join(DIGITS)} --budget.macs 40X", "Invalid Budget(macs='40X'): expected a positive"),
        (f"rank {' '.join(DIGITS)} --precision fp8", "Invalid --precision=fp8: expected 32-true, 64-true, bf16-true, "),
        (f"rank {' '.join(DIGITS)} --seed null", "Invalid --seed=null: expected a whole number."),
        (
            f"rank {' '.join(DIGITS)} --budget 40M",
            "Invalid --budget=40M: expected one of its own options, such as `--budget.macs 40M`",
        ),
        (f"rank {' '.join(DIGITS)} --n_jobs x", "Invalid --num_workers=x: expected a whole number or null."),
        (f"rank {' '.join(DIGITS)} --n_jobs 0", "Invalid num_workers=0: expected a whole number of at least 1"),
        (
            f"rank {' '.join(DIGITS)} --executor process",
            "Invalid --executor=process: expected serial, processes or ray.",
        ),
        (
            f"rank {' '.join(DIGITS)} --trainer.max_epoch 2",
            "no option --trainer.max_epoch. Did you mean --trainer.max_epochs",
        ),
        (
            f"rank {' '.join(DIGITS)} --trainer.max_epochs two",
            "Invalid --trainer.max_epochs=two: expected a whole number or null.",
        ),
        (f"rank {' '.join(DIGITS)} --trainer.accelerator nix", "error: You selected an invalid accelerator name"),
        (
            f"rank {' '.join(DIGITS)} --trainer.max_epochs 0 {' '.join(QUIET)}",
            "`trainer` ends after `max_epochs=0`, so it would train nothing",
        ),
        (
            f"rank {' '.join(DIGITS)} --trainer 3",
            "Invalid --trainer=3: expected a class path of Trainer (options: --trainer.NAME) or null.",
        ),
        (f"rank {' '.join(DIGITS)} --accelerator cpu --devices x", "Invalid devices='x' for `cpu`"),
        (f"rank {' '.join(DIGITS)} --candidate x", "There is no option --candidate. Did you mean --candidates?"),
        (f"rank {' '.join(DIGITS)} --budget.flops 3", "There is no option --budget.flops. Did you mean --budget."),
        (f"rank {' '.join(DIGITS)} --zoo timm:lcnet_035", "Pass only one of `--zoo`"),
        (f"rank {' '.join(DIGITS)} --cache folder", "folder' cannot be read"),
        (
            f"rank {' '.join(DIGITS)} --output my_pkg.py",
            "Invalid --output=my_pkg.py: it cannot be written to: File exists",
        ),
        (f"rank {' '.join(DIGITS)} --output my_pkg.py/x", "Invalid --output=my_pkg.py/x: it cannot be written to"),
        (f"rank {' '.join(DIGITS)} --prior nix.csv", "Invalid prior='nix.csv'"),
        (f"rank {' '.join(DIGITS)} --data.batch_size 0", "Invalid batch_size=0: expected a whole number of at least 1"),
        (f"rank {' '.join(DIGITS)} --data.batchsize 3", "no option --data.batchsize. Did you mean --data.batch_size?"),
        ("rank --data '' --zoo timm:lcnet_035", "Invalid --data=: expected a folder of images"),
        (
            "rank --data digits --zoo timm:lcnet_035 --budget.params 1",
            "None of the 1 models has at most 1 parameters; the",
        ),
        ("rank --data digits --zoo timm:lcnet_035 --in_chans 0", "Invalid in_chans=0"),
        ("rank --data digits --candidates nix", "Invalid --candidates=nix: expected an import path"),
        ("rank --data digits --candidates ./my_pkg.py", "--candidates=./my_pkg.py: expected an import path"),
        ("rank --data digits --candidates wrong.a", "wrong.a: it cannot be imported: SyntaxError: "),
        (
            "rank --data digits --candidates raising.a",
            "raising.a: it cannot be imported: RuntimeError: on import.",
        ),
        ("rank --data digits --candidates ending.a", "ending.a: it cannot be imported: SystemExit: 3."),
        ("rank --data wrong.a --zoo timm:lcnet_035", "Invalid --data=wrong.a: it cannot be imported: SyntaxError: "),
        (
            "score raising.a --data digits",
            "Invalid --model=raising.a: it cannot be imported: RuntimeError: on import.",
        ),
        ("rank --data digits --candidates my_pkg.nothing", "Invalid candidates: None; expected a mapping"),
        ("rank --data digits --candidates my_pkg.texts", "Invalid candidate: 'resnet18'; expected a module"),
        ("rank --data digits --candidates my_pkg.MyDataModule", "Invalid candidates: the class MyDataModule; expected"),
        ("rank --config typo.yaml", "There is no option --candidate. Did you mean --candidates?"),
        ("rank --config typed.yaml", "Invalid --num_batches=two: expected a whole number."),
        ("rank --config broken.yaml", "Problems parsing config"),
        ("score my_pkg.Mlp --model.widht 3 --data digits", "no option --model.widht. Did you mean --model.width?"),
        ("score my_pkg.Mlp --model.width x --data digits", "Invalid --model.width=x: expected a whole number."),
        ("score resnet18 --data digits", "Invalid --model=resnet18: expected an import path"),
        (
            "search --data digits --space plainnet --sampler nix",
            "Invalid --sampler=nix: expected a class path of Evolution (options: --sampler.NAME), evolution or random.",
        ),
        ("report folder", "'folder' cannot be read: Is a directory"),
        ("report empty.json -o nix/x.html", "Invalid --output=nix/x.html: it cannot be written: No such file"),
        ("rank --config binary.yaml", "'utf-8' codec can't decode byte"),
        ("score timm:lcnet_035 --model.width 3 --data digits", "--model.width=3: the value of --model has no options"),
        ("score lightning_zico.demos.DigitsClassifier --data digits", "--model also needs --model.network."),
        (
            f"rank {' '.join(DIGITS)} --trainer.callbacks lightning_zico.ZiCoCallback --trainer.callbacks.num_batch 3",
            "no option --trainer.callbacks.num_batch. Did you mean --trainer.callbacks.num_batches",
        ),
        ("--versio", "There is no option --versio. `lightning-zico --help` lists all options."),
        (
            "fit --model my_pkg.Mlp --data digits --model.widht 3",
            "no option --model.widht. Did you mean --model.width?",
        ),
        (
            "fit --model my_pkg.Mlp --data digits --trainer.max_epochs x",
            "Invalid --trainer.max_epochs=x: expected a whole number",
        ),
        (f"rank {' '.join(DIGITS)} --num_batches 2.0", "Invalid --num_batches=2.0: expected a whole number."),
        ("rank --data digits --nix 3", "There is no option --nix. `lightning-zico rank --help` lists all options."),
        ("rank --config nix.yaml", "File does not exist"),
        ("score timm:lcnet_0* --data digits", "Pass exactly one"),
        ("score my_pkg.Nix --data digits", "Invalid --model=my_pkg.Nix:"),
        (
            "rank --data digits --zoo timm:lcnet_035,transformers:bert-tiny --vocab_size 9",
            "'timm:lcnet_035' is an image",
        ),
        ("score transformers:vit-tiny --data my_pkg.TextsThatSay --vocab_size 9", "'transformers:vit-tiny' is an"),
        ("score transformers:bert-tiny --data my_pkg.TextsThatSay --vocab_size 0", "Invalid vocab_size=0"),
        ("score transformers:bert-tiny --data my_pkg.Unlabelled", "expected a mapping with `labels`, or a pair"),
        ("score timm:lcnet_035 --data my_pkg.TextsThatSay", "expected a pair of images [N, C, H, W] and labels"),
        ("rank --zoo transformers:bert-tiny,vit-tiny --data my_pkg.Texts", "'transformers:vit-tiny' is an image model"),
        ("score transformers:bert-tiny --data digits", "or for images, name image models"),
        (
            "score transformers:bert-tiny --data my_pkg.Texts --in_chans 4",
            "Unexpected --in_chans=4: it is only for image",
        ),
        (
            "score transformers:bert-tiny --data my_pkg.TextsThatCount",
            "Invalid `vocab_size=True` of the data module: expected",
        ),
        ("score transformers:bert-tiny --data my_pkg.Unknown", "The highest label of the batches is -100: expected"),
        (
            "fit --model lightning_zico.zoo.zoo_model --model.spec timm:lcnet_035 --model.num_classes 2 "
            "--model.vocab_size 9 --data digits",
            "Invalid vocab_size=9: timm does not take this option",
        ),
        ("report my_pkg.py", "'my_pkg.py' is neither a leaderboard nor a search"),
        ("report nix.json", "nix.json"),
        ("report rows.json", "'rows.json' is neither a leaderboard nor a search"),
        ("report history.json", "'history.json' is neither a leaderboard nor a search"),
        ("rank --data digits --zoo timm:lcnet_035 --prior known.csv", "or with `--prior"),
        ("rank --data digits --zoo timm:lcnet_035 --prior_column top1", "need a file: add --prior"),
        (
            "fit --model lightning_zico.zoo.zoo_model --model.spec timn:a --model.num_classes 2 --data digits",
            "error: There is no zoo named 'timn'",
        ),
        ("search --space nas_bench_201 --data digits --resolution 0", "Invalid resolution=0"),
        ("search --space plainnet --data digits", "Invalid resolution=8: expected at least 32, because the network"),
        ("search --space plainnet --data digits", "pass `resolution` (--resolution on the command line), or resize"),
        ("search --space autoformer_tiny --data digits", "pass `resolution` (--resolution on the command line)"),
        ("score nix.Nix --data digits --print_config", "Invalid --model=nix.Nix: it cannot be imported: No module"),
        ("score my_pkg.Nix --data digits --print_config", "module 'my_pkg' has no attribute 'Nix'"),
        ("score my_pkg --data digits --print_config", "Invalid --model=my_pkg:"),
        ("score --model=nix.Nix --data digits --print_config", "Invalid --model=nix.Nix: it cannot be imported"),
        ("rank --data nix.Nix --zoo timm:a --print_config", "Invalid --data=nix.Nix: it cannot be imported"),
        ("rank --data nix --zoo timm:a --print_config", "Invalid --data=nix: expected a folder of images"),
        ("search --data nix.Nix --space plainnet --print_config", "Invalid --data=nix.Nix: it cannot be imported"),
        ("rank --data digits --candidates sys.exit", "Invalid --candidates=sys.exit: it exits the program"),
        ("report my_pkg.py -o page.pdf", "ends in .html or .csv"),
        ("fit --model nix.Nix", "No module named 'nix'"),
        ("nix", "invalid choice: 'nix'"),
    ],
)
@pytest.mark.filterwarnings("ignore:::jsonargparse", "ignore:::lightning.pytorch.cli")  # as in the test of `fit`
def test_wrong_use_is_one_line_and_exit_code_2(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("rows.json").write_text('{"rows": [{"a": 1}], "provenance": {}}', encoding="utf-8")
    Path("history.json").write_text('{"history": [{"a": 1}], "provenance": {}}', encoding="utf-8")
    Path("known.csv").write_text(KNOWN, encoding="utf-8")
    Path("folder").mkdir()
    Path("binary.yaml").write_bytes(b"\xff")
    for name, text in FILES.items():
        Path(name).write_text(text, encoding="utf-8")
    assert main(shlex.split(line)) == 2
    errors = [text for text in capsys.readouterr().err.splitlines() if text.startswith("lightning-zico: error: ")]
    assert len(errors) == 1
    assert said in errors[0]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("rank --data digits --candidates my_pkg.broken", "error: RuntimeError: in the user's own code"),
        (
            "rank --data digits --candidates my_pkg.failing",
            "All 1 candidates failed. 'broken' failed with: does not build",
        ),
        (f"rank {' '.join(DIGITS)} --budget.params 1", "candidates failed"),
        ("rank --data my_pkg.Refusing --candidates my_pkg.my_candidates", "error: ValueError: in setup, on two lines"),
        (
            f"fit --model my_pkg.Untrainable --data digits --trainer.max_epochs 1 {' '.join(QUIET)}",
            "error: KeyError: 'in training'",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:::jsonargparse", "ignore:::lightning.pytorch.cli")  # as in the test of `fit`
def test_a_failure_is_one_line_and_exit_code_1(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(shlex.split(line)) == 1
    errors = [text for text in capsys.readouterr().err.splitlines() if text.startswith("lightning-zico: error: ")]
    assert len(errors) == 1
    assert said in errors[0]


def test_debug_shows_where() -> None:
    with pytest.raises(RuntimeError, match="in the user's own code"):
        main(["rank", "--data", "digits", "--candidates", "my_pkg.broken", "--debug"])


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


def test_a_trainer_trains_the_winner_of_the_finals() -> None:
    finals = ["--finalists", "2", "--monitor", "val_acc", "--mode", "max"]
    assert main(["rank", *DIGITS, "--proxies", "params", "--trainer.max_epochs", "2", *QUIET, *finals]) == 0
    first, second, *others = rows_of()
    assert first["final"] >= second["final"]
    assert all(row["final"] is None for row in others)
    saved = torch.load("zico-results/winner.ckpt", weights_only=True)
    assert saved["epoch"] == 2
    assert (
        sum(weights.numel() for weights in saved["state_dict"].values() if weights.is_floating_point())
        >= (first["params"])
    )


@pytest.mark.parametrize(
    ("option", "first"),
    [(["--prior_column", "top1"], "lcnet_050"), (["--prior_column=count", "--prior_lower_is_better"], "lcnet_035")],
)
def test_a_column_of_a_file_is_the_prior(option: list[str], first: str) -> None:
    Path("known.csv").write_text(KNOWN, encoding="utf-8")
    args = ["rank", "--data", "digits", "--zoo", "timm:lcnet_035, lcnet_050", "--proxies", "params"]
    assert main([*args, "--prior", "known.csv", "--rank_by", "prior", *option]) == 0
    assert next(row["name"] for row in rows_of()) == first


def test_a_line_for_the_shell_holds_finals_among_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["rank", "--data=digits", "--zoo", "timm:lcnet_0*", "--proxies", "params", "--budget.params", "7e5"]
    assert main(args) == 0
    (line,) = re.findall(
        r"^To hold finals among the first, run: lightning-zico (.*)$", capsys.readouterr().err, re.MULTILINE
    )
    short = ["--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "1", *QUIET]
    assert main([*shlex.split(line), "--trainer.max_epochs", "2", *short]) == 0
    rows = rows_of()
    assert {row["name"] for row in rows} == {"lcnet_035", "lcnet_050"}
    assert all(row["final"] is not None for row in rows)
    assert "To hold finals" not in capsys.readouterr().err


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


def test_score_is_what_the_selector_says_of_that_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "my_pkg.Mlp", "--model.width", "32", "--data", "digits", "--layers"]) == 0
    selector = ZeroShotSelector(proxies="zico")
    selector.rank({"wide": sys.modules["my_pkg"].my_candidates()["wide"]}, DigitsDataModule())
    score = selector.cards_["wide"]["zico"]
    printed = capsys.readouterr().out
    assert f"{score.value:,.6g}" in printed
    for name, added in score.layers.items():
        assert re.search(rf"^{re.escape(name)} +{added:.6g}", printed, re.MULTILINE)


def test_score_takes_a_model_of_a_zoo(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "timm:lcnet_035", "--data", "digits", "--proxies", "params"]) == 0
    params = sum(p.numel() for p in zoo_model("timm:lcnet_035", 10, in_chans=1).parameters())
    assert f"{params:,.6g}" in capsys.readouterr().out


def test_proxies_lists_them_all_with_the_evidence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["proxies"]) == 0
    printed = capsys.readouterr().out
    first = {line.split()[0] for line in printed.splitlines() if line.strip()}
    assert {*list_proxies(), *list_recipes()} <= first
    assert re.search(r"^zico +zico +NAS-Bench-201 0.59, ", printed, re.MULTILINE)


def test_report_writes_the_same_files_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rank", *DIGITS, "--proxies", "params"]) == 0
    table = capsys.readouterr().out
    for suffix in ("html", "csv"):
        assert main(["report", "zico-results/leaderboard.json", "-o", f"again.{suffix}"]) == 0
        assert Path(f"again.{suffix}").read_bytes() == Path(f"zico-results/leaderboard.{suffix}").read_bytes()
    capsys.readouterr()
    assert main(["report", "zico-results/leaderboard.json"]) == 0
    assert capsys.readouterr().out == table


# Of `python -m`, Python itself begins to import the package with the working folder first.
@pytest.mark.parametrize(
    ("command", "planted"),
    [
        (["bin/lightning-zico"], ["jsonargparse", "matplotlib", "vl_convert"]),
        (["-m", "lightning_zico"], ["vl_convert"]),
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


# Lightning calls jsonargparse in ways that later versions of it deprecate.
@pytest.mark.filterwarnings("ignore:::jsonargparse", "ignore:::lightning.pytorch.cli")
def test_fit_is_lightnings_with_the_callback_and_the_zoo_by_class_path(capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--model", "lightning_zico.zoo.zoo_model", "--model.spec", "timm:lcnet_035", "--model.num_classes", "10"]
    callback = ["--trainer.callbacks", "lightning_zico.ZiCoCallback", "--trainer.callbacks.num_batches", "2"]
    steps = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"]
    logger = ["--trainer.logger", "lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir", "logs"]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    args = [*model, "--model.in_chans", "1", "--data", "digits", *callback, *steps, *logger, *quiet]
    assert main(["fit", *args]) == 0, capsys.readouterr().err
    (metrics,) = Path("logs").rglob("metrics.csv")
    assert "zico/score" in metrics.read_text(encoding="utf-8")
    assert main(["fit", "--help"]) == 0
    assert "--trainer.max_epochs" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["", "rank", "score", "proxies", "report"])
def test_help_is_complete(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--help"]) == 0
    printed = capsys.readouterr().out
    assert "usage: lightning-zico" in printed
    options = re.findall(r"ARG: +(-.*?)(?=\n  ARG:|\n\n|\Z)", printed, flags=re.DOTALL)
    assert len(options) >= 3
    assert [option for option in options if not re.search(r"  [A-Z][a-z]* ", option)] == []


def run(*args: str, cwd: Path, stdout: int = subprocess.PIPE, encoding: str = "utf-8") -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding, "PYTHONUNBUFFERED": ""}
    command = [sys.executable, "-m", "lightning_zico", *args]
    return subprocess.Popen(
        command,
        env=environment,
        encoding="utf-8",
        cwd=cwd,
        stdout=stdout,
        stderr=subprocess.PIPE,
    )


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


def interrupted_after_two_epochs(folder: Path, *args: str) -> tuple[int, str, str]:
    """Run a command that trains `Endless`, send SIGINT in the third epoch, and give its exit code and what it said."""
    endless = ["--trainer.max_epochs", "1000000", "--trainer.accelerator", "cpu", *QUIET]
    process = run(*args, *endless, cwd=folder)
    while not (folder / "two epochs").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate()
    return process.returncode, printed, errors


def test_ctrl_c_while_the_winner_trains_keeps_it_as_far_as_it_is_trained(folder: Path) -> None:
    own = ["--data", "digits", "--candidates", "my_pkg.endless", "--proxies", "params"]
    code, printed, errors = interrupted_after_two_epochs(folder, "rank", *own)
    assert code == 130
    assert "Traceback" not in errors
    assert errors.endswith("lightning-zico: interrupted\n")
    assert "endless" in printed
    assert [row["rank"] for row in rows_of(str(folder / "zico-results"))] == [1]
    saved = torch.load(folder / "zico-results" / "winner.ckpt", weights_only=True)
    assert saved["epoch"] >= 2
    assert saved["optimizer_states"]


def test_ctrl_c_ends_fit_with_130(folder: Path) -> None:
    code, _, errors = interrupted_after_two_epochs(folder, "fit", "--model", "my_pkg.Endless", "--data", "digits")
    assert code == 130
    assert "Traceback" not in errors
    assert errors.endswith("lightning-zico: interrupted\n")


def test_results_are_written_whoever_reads_and_whatever_a_name_holds(folder: Path) -> None:
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


def test_without_jsonargparse_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "jsonargparse", None)
    assert main(["proxies"]) == 2
    assert "pip install 'lightning-zico[cli]'" in capsys.readouterr().err


def test_search_prints_and_writes_what_the_search_finds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = tmp_path / "trials.db"
    args = ["search", "--space", "nas_bench_201", "--data", "digits", "--proxies", "params", "--budget.params", "1e6"]
    args += ["--sampler", "random", "--storage", str(storage), "-o", str(tmp_path / "out")]
    assert main([*args, "--num_trials", "3"]) == 0
    out, err = capsys.readouterr()
    assert "3 archs scored" in out
    assert "Networks have 10 classes" in err
    first = SearchResult.from_json(tmp_path / "out" / "search.json")
    assert main([*args, "--num_trials", "5"]) == 0  # goes on where it was
    result = SearchResult.from_json(tmp_path / "out" / "search.json")
    assert [row["arch"] for row in result.history][:3] == [row["arch"] for row in first.history]
    assert len(result) == 5
    search = ZeroShotSearch("nas_bench_201", Budget(params=1e6), "params", sampler="random", num_trials=5)
    assert [row["arch"] for row in search.run(DigitsDataModule()).history] == [row["arch"] for row in result.history]
    assert "Search of nas_bench_201 by params" in (tmp_path / "out" / "search.html").read_text(encoding="utf-8")
    capsys.readouterr()
    assert main(["report", str(tmp_path / "out" / "search.json")]) == 0
    assert capsys.readouterr().out == f"{result}\n"
    assert main(["report", str(tmp_path / "out" / "search.json"), "-o", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == result.to_html()
    capsys.readouterr()
    assert main([*args, "--num_trials", "0"]) == 2
    assert "Invalid num_trials=0: expected" in capsys.readouterr().err


@pytest.mark.parametrize(
    "path", sorted((ROOT / "examples" / "configs").glob("search_*.yaml")), ids=lambda path: path.stem
)
def test_a_published_search_is_run_by_its_file(path: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = "--data.batch_size 2 --data.image_size 32 --data.num_workers 0 --num_trials 2 --num_classes 2"
    storage = ["--storage", str(images / "trials.db"), "--accelerator", "cpu"]
    assert main(["search", "--config", str(path), "--data.root", str(images), *small.split(), *storage]) == 0
    result = SearchResult.from_json(Path("zico-results", "search.json"))
    assert result.provenance["sampler"]["population_size"] == 512
    assert result.provenance["accelerator"] == "cpu"
    assert len(result) == 2


def test_a_search_in_which_nothing_has_a_score_ends_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    args = "search --space nas_bench_201 --data digits --num_classes 2 --num_trials 2 --proxies zico"
    assert main(args.split()) == 1
    assert (
        "No arch has a score. Most frequent reason for a missing score (2 of 2): `loss_fn=` raised IndexError: Target"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("line", ["--n_jobs 3", "--n_jobs=3", "--executor processes --num_workers 3"])
def test_n_jobs_is_short_for_workers(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "--space", "plainnet", "--data", "digits", *line.split(), "--print_config"]) == 0
    printed = capsys.readouterr().out
    assert "\nexecutor: processes\nnum_workers: 3\n" in printed


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
