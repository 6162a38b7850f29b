"""Data by folder, name and class path, and models of a zoo that are built for it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_zico.cli import main
from lightning_zico.cli.inputs import datamodule_of
from lightning_zico.datamodules import TORCHVISION_DATASETS, ImageFolderDataModule, TorchvisionDataModule
from lightning_zico.demos import DigitsDataModule
from lightning_zico.zoo import zoo_model
from tests.cli.parts import rows_of

FOUND = {"--num_classes": "the batches have", "--vocab_size": "the data module says"}


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


def test_a_failed_download_is_a_clear_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
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
