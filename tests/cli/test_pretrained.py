"""Pretrained models on the command line: patterns with tags, finals, and weights that are not there."""

from pathlib import Path

import pytest

from lightning_zico.cli import main
from tests.cli.parts import rows_of
from tests.zoo.checkpoints import CHECKPOINTS, cache_timm

RANK = ["rank", "--pretrained", "--num_samples_transfer", "16", "--batch_size", "8"]
# Each pattern matches one checkpoint of several.
PATTERNS = "timm:mobilenetv3_small_050.*,lcnet_050.*,tf_mobilenetv3_small_minimal_100.*"


def test_patterns_of_checkpoints_are_ranked_on_a_folder_of_images(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache_timm(tmp_path / "cache", monkeypatch, *CHECKPOINTS)
    budget = ["--budget.params", "30e6"]
    assert main([*RANK, "--zoo", PATTERNS, "--data", str(images), "--data.batch_size", "8", *budget]) == 0
    printed = capsys.readouterr()
    assert {row["name"] for row in rows_of()} == set(CHECKPOINTS)
    assert all(row["score"] == row["transfer"] and row["ridge_probe"] is not None for row in rows_of())
    assert "2 classes (as the data module says) and inputs of 3 x each model's own size" in printed.err
    assert "transfer: the score of prior." in printed.out
    assert "By ridge_probe, " in printed.out
    first = ",".join(row["name"] for row in rows_of())
    assert f"--pretrained --num_samples_transfer 16 --batch_size 8 --data {images}" in printed.err
    assert f"--zoo timm:{first} --finalists 3" in printed.err


def test_weights_that_are_not_there_are_one_line_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache_timm(tmp_path / "cache", monkeypatch, *CHECKPOINTS[:2])
    assert main([*RANK, "--zoo", PATTERNS, "--data", "digits"]) == 0
    ranked = [row["name"] for row in rows_of() if row["rank"]]
    assert sorted(ranked) == sorted(CHECKPOINTS[:2])
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("could neither be loaded from") == 1
    line = (
        f"{CHECKPOINTS[2]}: does not build: WeightsNotLoadedError: The weights of 'timm:{CHECKPOINTS[2]}' could neither"
    )
    assert f"{line} be loaded from {tmp_path / 'cache'} (HF_HOME sets this folder)" in printed


def test_one_model_can_be_scored_with_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache_timm(tmp_path / "cache", monkeypatch, CHECKPOINTS[0])
    options = ["--num_samples_transfer", "16", "--batch_size", "8", "--proxies", "knn"]
    assert main(["score", f"timm:{CHECKPOINTS[0]}", "--pretrained", "--data", "digits", *options]) == 0
    assert "knn" in capsys.readouterr().out


def test_models_can_be_left_out_by_pattern(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache_timm(tmp_path / "cache", monkeypatch, *CHECKPOINTS[:2])
    assert main([*RANK, "--zoo", PATTERNS, "--data", "digits", "--exclude", "tf_*,*_minimal_*"]) == 0
    assert {row["name"] for row in rows_of()} == set(CHECKPOINTS[:2])
    assert "could neither be loaded" not in capsys.readouterr().out


def test_a_checkpoint_of_transformers_that_is_not_there_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache_timm(tmp_path / "cache", monkeypatch, CHECKPOINTS[0])
    zoo = f"timm:{CHECKPOINTS[0]},transformers:deit-tiny"
    assert main([*RANK, "--zoo", zoo, "--data", "digits"]) == 0
    assert [row["name"] for row in rows_of() if row["rank"]] == [f"timm:{CHECKPOINTS[0]}"]
    printed = " ".join(capsys.readouterr().out.split())
    assert "The weights of 'transformers:deit-tiny' could neither be loaded from" in printed


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--pretrained"], "set `Candidate(..., pretrained=True)` in your code"),
        (["--exclude", "vgg*"], "Unexpected --exclude=vgg*: it is only for models of a zoo"),
    ],
)
def test_what_is_for_zoos_alone_is_wrong_use_without_one(
    capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    assert main(["rank", "--candidates", "my_pkg.my_candidates", "--data", "digits", *args]) == 2
    assert message in capsys.readouterr().err
