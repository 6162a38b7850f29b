"""Every benchmark can be imported and is described, so that none is left behind when the package changes."""

import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py"))
COMMANDS = [name for name in SCRIPTS if '__name__ == "__main__"' in (FOLDER / f"{name}.py").read_text()]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_can_be_imported(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    importlib.import_module(name)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_benchmark_is_described(name: str) -> None:
    assert f"## {name}.py" in (FOLDER / "README.md").read_text() or f"`{name}.py`" in (FOLDER / "README.md").read_text()
