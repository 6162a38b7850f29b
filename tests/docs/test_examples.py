"""Every example runs as its usage says, and its output shows what it promises."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from lightning_zico._imports import install_command

EXAMPLES = Path(__file__).parents[2] / "examples"
PROMISES = {
    "01_callback.py": ["epoch 2: zico/score", "validation accuracy 0.9"],
    "02_select_and_train.py": ["Chosen without training:", "tau with truth", "vit-32x2", "cnn-bn-32x4"],
    "03_prescreen_timm.py": ["Ranked by params", "the training recipe matters more than any proxy", "finalists=5"]
    if find_spec("timm")
    else [install_command("zoo")],
    "04_compare_proxies.py": ["tau with truth", "az_trainability", "zico", "balanced+synflow: log_rank of macs"],
    "05_evolve.py": ["1. ZiCo", "12 archs scored, 0 without a score"],
    "06_own_proxy.py": ["   1  ", "Kendall's tau of this ranking with the trivial baselines"],
    "08_choose_pretrained.py": [
        "Ranked by transfer",
        "Finals: the first 2 by score",
        "By ridge_probe, ",
        "accuracy 0.",
    ],
    "09_optuna.py": ["The best trial, ", "Its proposals:", "   1  depth=", "Ranked by balanced+synflow"],
    "10_ray_tune.py": ["The best of 3 trials reached 0.", "   1  depth=", "Ranked by balanced+synflow"],
    "11_transformers.py": ["The best trial, ", "Its proposals:", "   1  depth=", "Ranked by balanced+synflow"],
    "07_ray.py": ["   1  ", "On Ray: the same 8 scores" if find_spec("ray") else install_command("ray")],
}
# `make demo` runs the second; a cluster takes half a minute to start.
SLOW = {
    "02_select_and_train.py",
    "03_prescreen_timm.py",
    "04_compare_proxies.py",
    "05_evolve.py",
    "07_ray.py",
    "08_choose_pretrained.py",
    "09_optuna.py",
    "10_ray_tune.py",
    "11_transformers.py",
}
ARGUMENTS = {"04_compare_proxies.py": ["3"], "05_evolve.py": ["12"]}  # candidates, of 8; trials, of 100


def test_every_example_is_tested() -> None:
    assert sorted(PROMISES) == sorted(path.name for path in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in sorted(PROMISES)]
)
def test_example_runs(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / name), *ARGUMENTS.get(name, [])]
    own = os.environ | {"OMP_NUM_THREADS": "1"}  # several threads would wait for each other where cores are shared
    done = subprocess.run(command, cwd=tmp_path, env=own, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    for promise in PROMISES[name]:
        assert promise in done.stdout
    assert not list(tmp_path.iterdir()), "an example leaves files behind"
