"""What is shipped is the package alone, and it imports without any extra."""

import os
import pickle
import pkgutil
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import lightning_zico

ROOT = Path(__file__).parent.parent


def test_the_wheels_only_top_level_name_is_lightning_zico(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = wheel.namelist()
        entry_points = wheel.read(f"lightning_zico-{lightning_zico.__version__}.dist-info/entry_points.txt").decode()
        metadata = wheel.read(f"lightning_zico-{lightning_zico.__version__}.dist-info/METADATA").decode()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"lightning_zico", f"lightning_zico-{lightning_zico.__version__}.dist-info"}
    assert "lightning_zico/py.typed" in names
    assets = {f"lightning_zico/report/assets/{path.name}" for path in (ROOT / "lightning_zico/report/assets").iterdir()}
    assert {"lightning_zico/report/assets/page.css", "lightning_zico/report/assets/table.js"} <= assets <= set(names)
    assert {"lightning_zico/zoo/published/timm.csv.gz", "lightning_zico/zoo/published/README.md"} <= set(names)
    assert "lightning-zico = lightning_zico.cli:main" in entry_points
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {"Programming Language :: Python :: 3.10", "Typing :: Typed"} <= set(
        re.findall("Classifier: (.*)", metadata)
    )
    wanted = re.findall(r"^Requires-Dist: (?:pytorch-)?lightning[!<=>].*", metadata, re.MULTILINE)
    assert len(wanted) == 2
    assert all("!=2.6.2" in each and "!=2.6.3" in each for each in wanted)  # which carried malware
    readme = metadata.partition("\n\n")[2]
    links = re.findall(r"\]\(([^)]*)\)", readme)
    assert links  # of which relative ones are dead on a package index
    assert [link for link in links if not link.startswith("https://")] == []
    unlinked = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(readme.split()) > 0.9 * len(unlinked.split())


def test_the_root_imports_nothing_optional() -> None:
    optional = [
        "jsonargparse",
        "matplotlib",
        "optuna",
        "pandas",
        "ray",
        "sklearn",
        "timm",
        "torchvision",
        "transformers",
    ]
    optional += ["typeshed_client", "vl_convert"]
    # None in sys.modules makes an import fail, as if the package were not installed; torchmetrics looks for some first.
    code = f"""
import sys
import lightning.pytorch, torchmetrics
for name in {optional!r}:
    for loaded in [m for m in sys.modules if m.split(".")[0] == name]:
        del sys.modules[loaded]
    sys.modules[name] = None
import lightning_zico
print(lightning_zico.list_proxies())
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "zico" in done.stdout


def test_the_root_brings_no_package_that_lightning_does_not_but_what_it_needs() -> None:
    code = """
import sys
import lightning.pytorch, torchmetrics
before = {name.split(".")[0] for name in sys.modules}
from lightning_zico import *
print(*{name.split(".")[0] for name in sys.modules} - before - sys.stdlib_module_names)
"""
    command = [sys.executable, "-W", "ignore", "-c", code]
    brought = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    # Lightning brings rich and torchmetrics scipy, as far as today's versions go.
    assert {"lightning_zico"} <= set(brought) <= {"lightning_zico", "cloudpickle", "rich", "scipy"}


def test_the_root_imports_its_names_when_they_are_used() -> None:
    code = """
import sys
import lightning_zico
print("torch" in sys.modules, hasattr(lightning_zico, "nix"), hasattr(lightning_zico, "_nix"))
assert {"ZiCo", "score", "__version__"} <= set(dir(lightning_zico))
print(lightning_zico.callbacks.ZiCoCallback is lightning_zico.ZiCoCallback, lightning_zico.zoo.__name__)
namespace = {}
exec("from lightning_zico import *", namespace)
print(set(lightning_zico.__all__) <= set(namespace) & set(dir(lightning_zico)))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["False False False", "True lightning_zico.zoo", "True"]


def test_no_public_name_hides_a_submodule() -> None:
    submodules = {module.name for module in pkgutil.iter_modules(lightning_zico.__path__)}
    assert submodules.isdisjoint(lightning_zico.__all__)
    assert {"callbacks", "selection"} <= submodules


@pytest.mark.parametrize("name", lightning_zico.__all__)
def test_public_names_are_pickled_by_their_own_modules(name: str) -> None:
    public = getattr(lightning_zico, name)
    assert pickle.loads(pickle.dumps(public)) == public


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, so that torch is imported only once")
@pytest.mark.slow
def test_every_module_can_be_imported_first() -> None:
    code = """
import os, pkgutil, sys
import lightning.pytorch, scipy.stats, torchmetrics
from importlib import import_module
import lightning_zico
names = [module.name for module in pkgutil.walk_packages(lightning_zico.__path__, "lightning_zico.", onerror=print)]
assert {"lightning_zico.cli.commands", "lightning_zico.selection.selector"} <= set(names)
for loaded in [name for name in sys.modules if name.startswith("lightning_zico")]:
    del sys.modules[loaded]
for name in names:
    if (child := os.fork()) == 0:
        import_module(name)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        print(name)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "", done.stderr
