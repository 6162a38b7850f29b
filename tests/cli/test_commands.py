"""What each command computes, prints and writes."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

from lightning_zico import Budget, SearchResult, ZeroShotSearch, ZeroShotSelector, list_proxies, list_recipes
from lightning_zico.cli import main
from lightning_zico.demos import DigitsDataModule, digits_candidates
from lightning_zico.zoo import zoo_model
from tests.cli.parts import DIGITS, KNOWN, QUIET, ROOT, rows_of, without_seconds


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


def test_settings_of_the_selector_are_options_too() -> None:
    options = ["--axis", "sample", "--chunk_size", "5", "--channels_last"]
    assert main(["rank", *DIGITS, *options, "--proxies", "zico"]) == 0
    selector = ZeroShotSelector(proxies="zico", axis="sample", chunk_size=5, channels_last=True)
    expected = selector.rank(digits_candidates(), DigitsDataModule())
    assert without_seconds(rows_of()) == without_seconds(expected.rows)


def test_an_executor_by_class_path_scores_as_this_process_does() -> None:
    own = ["--data", "digits", "--candidates", "my_pkg.my_candidates", "--proxies", "zico"]
    assert main(["rank", *own, "-o", "here"]) == 0
    elsewhere = ["--executor", "lightning_zico.ProcessExecutor", "--executor.num_workers", "1"]
    assert main(["rank", *own, *elsewhere, "-o", "elsewhere"]) == 0
    assert without_seconds(rows_of("elsewhere")) == without_seconds(rows_of("here"))


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="memory is measured in /proc")
def test_memory_bytes_ends_what_takes_more(capsys: pytest.CaptureFixture[str]) -> None:
    own = ["--data", "digits", "--candidates", "my_pkg.hungry", "--proxies", "params"]
    assert main(["rank", *own, "--n_jobs", "1", "--memory_bytes", "100000000"]) == 1
    assert "memory" in rows_of()[0]["error"]
    assert "The only candidate failed" in capsys.readouterr().err


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
    rows = rows_of("zico-results-finals")
    assert {row["name"] for row in rows} == {"lcnet_035", "lcnet_050"}
    assert all(row["final"] is not None for row in rows)
    assert all("final" not in row for row in rows_of())  # the ranking itself stays
    assert "To hold finals" not in capsys.readouterr().err


def test_score_equals_the_selectors_numbers_for_that_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "my_pkg.Mlp", "--model.width", "32", "--data", "digits", "--layers"]) == 0
    selector = ZeroShotSelector(proxies="zico")
    selector.rank({"wide": sys.modules["my_pkg"].my_candidates()["wide"]}, DigitsDataModule())
    score = selector.cards_["wide"]["zico"]
    printed = capsys.readouterr().out
    assert f"{score.value:,.6g}" in printed
    for name, added in score.layers.items():
        assert re.search(rf"^{re.escape(name)} +{added:.6g}", printed, re.MULTILINE)


def test_score_says_if_there_were_too_few_batches(capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--data", "digits", "--data.batch_size", "500", "--batch_size", "null", "--num_batches", "3"]
    assert main(["score", "my_pkg.Mlp", *few]) == 0
    assert "The training data has 2 batches, but 3 were requested" in capsys.readouterr().err


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
    assert Path("again.csv").read_bytes() == Path("zico-results/leaderboard.csv").read_bytes()
    pages = [Path(name).read_text(encoding="utf-8") for name in ("again.html", "zico-results/leaderboard.html")]
    of_cards = r'"details":.*?,(?="tracebacks")|"(hasCards|canHaveParts)":(true|false),'
    again, first = (re.sub(of_cards, "", page) for page in pages)
    assert again == first
    assert '"layers":' in pages[1]  # the details come from score cards, which the file does not have
    capsys.readouterr()
    assert main(["report", "zico-results/leaderboard.json"]) == 0
    assert capsys.readouterr().out == table


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
    printed = capsys.readouterr().out
    assert re.search(r"^ rank +name +params +cost_params ", printed, re.MULTILINE)
    assert re.findall(r"^ +\d+ +(\S+)", printed, re.MULTILINE) == [row["arch"] for row in result.ranked]
    assert result.notes[0] in printed
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
