"""Wrong use and failures are one line each, with their exit codes."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_zico import __version__
from lightning_zico._imports import install_command
from lightning_zico.cli import main
from lightning_zico.cli.parser import COMMANDS
from tests.cli.parts import DIGITS, KNOWN, QUIET

FILES = {
    "wrong.py": "def f(:",
    "raising.py": "raise RuntimeError('on import')",
    "ending.py": "raise SystemExit(3)",
    "typo.yaml": "data: digits\ncandidate: my_pkg.my_candidates\n",
    "typed.yaml": "data: digits\nzoo: timm:lcnet_035\nnum_batches: two\n",
    "broken.yaml": "data: [digits\n",
    "empty.json": '{"rows": [], "provenance": {}}',
}


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
        (f"rank {' '.join(DIGITS)} --memory_bytes 9", "`--memory_bytes` needs `--executor processes`."),
        (f"rank {' '.join(DIGITS)} --executor ray --memory_bytes 9", "`--memory_bytes` needs `--executor processes`."),
        (
            f"rank {' '.join(DIGITS)} --chunk_size some",
            "Invalid --chunk_size=some: expected a whole number, auto or null.",
        ),
        (f"rank {' '.join(DIGITS)} --chunk_size 0", "Invalid chunk_size=0: expected"),
        (
            f"rank {' '.join(DIGITS)} --executor lightning_zico.ProcessExecutor --executor.num_worker 3",
            "no option --executor.num_worker. Did you mean --executor.num_workers",
        ),
        (
            f"rank {' '.join(DIGITS)} --executor lightning_zico.ProcessExecutor --timeout_s 3",
            "`--timeout_s` needs `--executor processes` or `--executor ray`.",
        ),
        (f"rank {' '.join(DIGITS)} --n_jobs x", "Invalid --num_workers=x: expected a whole number or null."),
        (f"rank {' '.join(DIGITS)} --n_jobs 0", "Invalid num_workers=0: expected a whole number of at least 1"),
        (
            f"rank {' '.join(DIGITS)} --executor process",
            "Invalid --executor=process: expected serial, processes, ray or a class path of Executor (options: --exec",
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
            "No model has at most 1 parameters; the",
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
        ("nix", "There is no command nix. Expected one of rank, score, search, proxies, report, fit."),
        ("serch --space plainnet", "There is no command serch. Did you mean search?"),
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
            "The only candidate failed. 'broken' failed with: does not build",
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


def test_without_jsonargparse_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "jsonargparse", None)
    assert main(["proxies"]) == 2
    assert install_command("cli") in capsys.readouterr().err
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lightning-zico {__version__}\n"


@pytest.mark.parametrize("given", [[], ["--debug"]])
def test_without_a_command_the_short_help_is_printed_and_nothing_is_imported(given: list[str]) -> None:
    code = f"""
import sys
from lightning_zico.cli import main
assert main({given}) == 2
assert not {{"torch", "lightning", "jsonargparse", "rich"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    assert done.stdout == ""
    assert [line.split()[0] for line in lines if line.startswith("  ")] == [*COMMANDS, "fit"]
    assert [line for line in lines if "error" in line] == ["lightning-zico: error: Pass a command: one of those above."]
