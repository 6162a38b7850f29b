"""A working folder with a user's package and images."""

import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.parts import MODULE


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
