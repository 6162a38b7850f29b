"""The documentation is built without a warning, as the Makefile does it, and its reference has every public name."""

import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
import zlib
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
# Packages and modules that users import from. The others are internal, or are documented by what calls them.
PUBLIC = ["", "callbacks", "datamodules", "demos", "errors", "integrations", "metrics", "proxies", "ranking", "results"]
PUBLIC += ["scoring", "search", "selection", "spaces", "zoo"]


def build(folder: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Run the command of `make docs` in a folder, with the tools of this interpreter."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (line,) = re.findall(r"^\t(.*mkdocs build.*)", makefile, re.MULTILINE)
    variable, program, *options = shlex.split(line.replace("$(BIN)/", ""))
    assert program == "mkdocs"
    command = [sys.executable, "-m", "mkdocs", *options, "--site-dir", str(site)]  # the last one holds
    own = os.environ | dict([variable.split("=")]) | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built documentation."""
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def inventory(site: Path) -> dict[str, str]:
    """Pages of the names in the inventory, by which other projects link to them."""
    entries = zlib.decompress((site / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode().splitlines()
    return {entry.split(" ")[0]: entry.split(" ")[3].partition("#")[0] for entry in entries}


def public_names(module: ModuleType) -> list[str]:
    """List `__all__`, or else the classes that the module defines."""
    if hasattr(module, "__all__"):
        return [name for name in module.__all__ if name != "__version__"]
    own = {name: value for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__}
    return [name for name, value in own.items() if inspect.isclass(value) and not name.startswith("_")]


def resolved(path: str) -> Any:
    """Return the object that has a dotted path, or None if it can only be reached through an instance."""
    parts = path.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found: Any = import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            found = getattr(found, part, None)
        return found
    return None


@pytest.mark.parametrize("package", PUBLIC)
def test_every_public_name_is_in_the_reference(package: str, inventory: dict[str, str]) -> None:
    module = import_module("lightning_zico" + (f".{package}" if package else ""))
    documented = [resolved(path) for path in inventory]
    names = public_names(module)
    missing = [
        name
        for name in names
        if f"{module.__name__}.{name}" not in inventory  # a name may stand there under another path
        and not any(getattr(module, name) is found for found in documented)
    ]
    assert names
    assert missing == []


@pytest.mark.parametrize("package", PUBLIC)
def test_every_public_class_and_function_has_a_docstring(package: str) -> None:
    module = import_module("lightning_zico" + (f".{package}" if package else ""))
    found = {name: getattr(module, name) for name in public_names(module)}
    described = {name: value for name, value in found.items() if inspect.isclass(value) or inspect.isfunction(value)}
    assert [name for name, value in described.items() if not (value.__doc__ or "").strip()] == []


def takes_arguments(found: Any) -> bool:
    """Whether a class is called with arguments; fields of tuples and dictionaries are documented one by one."""
    if not (inspect.isclass(found) and found.__module__.startswith("lightning_zico")):
        return False
    is_other = issubclass(found, tuple | dict | Exception) or getattr(found, "_is_protocol", False)
    return not is_other and bool(inspect.signature(found).parameters)


def test_functions_and_classes_have_signatures_and_examples_are_code(site: Path, inventory: dict[str, str]) -> None:
    pages = {page: (site / page / "index.html").read_text(encoding="utf-8") for page in set(inventory.values())}
    # A heading has the name under which it is documented as its id; the inventory has its other names as well.
    headed = [name for name, page in inventory.items() if f'id="{name}"' in pages[page]]
    functions = [name for name in headed if inspect.isfunction(resolved(name))]
    classes = [name for name in headed if takes_arguments(resolved(name))]
    assert {"lightning_zico.score", "lightning_zico.ranking.kendall"} <= set(functions)
    assert {"lightning_zico.ZeroShotSelector", "lightning_zico.zoo.Zoo"} <= set(classes)
    for name in (*functions, *classes):
        shown = pages[inventory[name]].partition(f'id="{name}"')[2].partition('class="doc doc-contents')[0]
        assert "doc-signature" in shown, name
    assert any("&gt;&gt;&gt; " in page for page in pages.values())
    assert [name for name, page in pages.items() if "<blockquote>" in page] == []


def test_a_dead_link_fails_the_build(tmp_path: Path) -> None:
    for name in ("docs", "benchmarks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("cache", "results", "__pycache__"))
    for name in ("mkdocs.yml", "README.md", "CHANGELOG.md", "SECURITY.md"):
        shutil.copy(ROOT / name, tmp_path)
    planted = {
        "[dead](nowhere.md)": "a link 'nowhere.md'",
        "[dead](index.md#nowhere)": "an anchor '#nowhere'",
        "![dead](nowhere.png)": "a link 'nowhere.png'",
        "[dead][lightning_zico.nowhere]": "target 'lightning_zico.nowhere'",
    }
    page = tmp_path / "docs" / "explanation.md"
    page.write_text("\n\n".join([page.read_text(encoding="utf-8"), *planted]), encoding="utf-8")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    warnings = [line for line in done.stderr.splitlines() if line.startswith("WARNING")]
    assert len(warnings) == len(planted)
    assert [link for link, said in planted.items() if not any(said in warning for warning in warnings)] == []
