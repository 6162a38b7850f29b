"""Public benchmark tables and images, which are not part of the repository."""

import csv
import gzip
import os
from pathlib import Path

import pytest

_DEFAULT = Path(__file__).parents[1] / ".." / "shared" / "data"


def data_file(name: str) -> Path:
    """Find a file of the data folder, or skip the test."""
    folder = Path(os.environ.get("LIGHTNING_ZICO_DATA", _DEFAULT)).resolve()
    if not (folder / name).is_file():
        pytest.skip(f"There is no {name} in {folder}. Set LIGHTNING_ZICO_DATA to the folder that has it.")
    return folder / name


def data_rows(name: str) -> list[dict[str, str]]:
    """Read a gzipped table with a header."""
    with gzip.open(data_file(name), "rt", newline="") as file:
        return list(csv.DictReader(file))
