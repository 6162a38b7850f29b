"""Proxies and spaces of other packages are found by their entry points; a broken package is one warning."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

GOOD = """
from lightning_zico import Proxy, register_proxy
from lightning_zico.spaces import NASBench201, register_space


@register_proxy("largest_weight")
class LargestWeight(Proxy):
    needs_labels = False

    def measure(self, probe):
        return max(weight.abs().max().item() for weight in probe.layers.values())


@register_space("their_space")
class TheirSpace(NASBench201):
    pass
"""
TAKEN = "from lightning_zico import Proxy, register_proxy\n\n@register_proxy('zico')\nclass Other(Proxy): ...\n"
NOT_MADE = """
from lightning_zico import Proxy, register_proxy


@register_proxy("hungry")
class Hungry(Proxy):
    def __init__(self, needed):
        self.needed = needed

    def measure(self, probe):
        return 0.0
"""
UNREGISTERED = "class Plain: ...\n"


def install(folder: Path, package: str, source: str, **groups: str) -> None:
    """Install a package as pip would: its module, and metadata with entry points."""
    module = package.replace("-", "_")
    (folder / f"{module}.py").write_text(source, encoding="utf-8")
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n", encoding="utf-8")
    points = "".join(f"[lightning_zico.{group}]\n{line}\n" for group, line in groups.items())
    (info / "entry_points.txt").write_text(points, encoding="utf-8")


BROKEN = {
    "broken-import": ("import no_such_module", "one = broken_import:One", "No module named 'no_such_module'"),
    "broken-exit": ("raise SystemExit('bye')", "two = broken_exit", "SystemExit: bye"),
    "broken-name": (TAKEN, "zico = broken_name:Other", "DuplicateNameError: There is a proxy named 'zico' already"),
    "broken-class": (NOT_MADE, "hungry = broken_class:Hungry", "TypeError: "),
    "broken-plain": (UNREGISTERED, "three = broken_plain:Plain", "'broken_plain:Plain' is not registered. Decorate it"),
    "broken-attribute": ("", "four = broken_attribute:Four", "AttributeError: "),
}
PROGRAM = """
import json, sys, warnings
import torch
import lightning_zico
from lightning_zico.proxies import resolve_proxies
from lightning_zico.spaces import get_space

resolve_proxies(["zico", "params"]), get_space("nas_bench_201")
found = {"before": "their_package" in sys.modules, "space": get_space("their_space").name}
batches = [torch.randn(4, 3) for _ in range(2)]
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    card = lightning_zico.score(torch.nn.Linear(3, 1), batches, "largest_weight", step=lambda net, x, _: net(x).mean())
    found["error"] = card["largest_weight"].error
    found["names"] = lightning_zico.list_proxies()
    found["all"] = [proxy.name for proxy in resolve_proxies("all")]
found["warnings"] = [str(each.message) for each in caught if "cannot be used" in str(each.message)]
try:
    resolve_proxies("largest_weigth")
except KeyError as error:
    found["unknown"] = str(error)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return what a new process finds in which these packages are installed."""
    folder = tmp_path_factory.mktemp("installed")
    good = "largest_weight = their_package:LargestWeight"
    install(folder, "their-package", GOOD, proxies=good, spaces="everything = their_package")
    for package, (source, line, _) in BROKEN.items():
        install(folder, package, source, proxies=line)
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM]
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_proxies_and_spaces_are_imported_when_they_are_needed(found: Any) -> None:
    assert (found["before"], found["error"], found["space"]) == (False, None, "their_space")
    assert "largest_weight" in found["names"]
    assert "Did you mean 'largest_weight'" in found["unknown"]


def test_a_package_that_is_broken_is_one_warning_and_the_rest_works(found: Any) -> None:
    assert found["names"] == found["all"]
    assert {"one", "two", "hungry", "three", "four"} & set(found["names"]) == set()
    assert "zico" in found["names"]
    assert len(found["warnings"]) == len(BROKEN)
    for package, (_, _, reason) in BROKEN.items():
        (message,) = [each for each in found["warnings"] if f"the package '{package}' cannot be used" in each]
        assert reason in message
        assert message.endswith(". Update or uninstall the package.")
