"""The figure and the notebook are those of the files that they are made of, and the notebook runs."""

import re

import nbformat
import pytest
from nbclient import NotebookClient

from tests.docs.generated import FIGURE, NAMES, NOTEBOOK, ROOT, figure, notebook, regrets

WRITE = "run `python -m tests.docs.generated`"


def test_the_figure_and_the_notebook_are_up_to_date() -> None:
    assert FIGURE.read_text(encoding="utf-8") == figure(), WRITE
    assert NOTEBOOK.read_text(encoding="utf-8") == notebook(), WRITE


def test_the_figure_shows_the_numbers_of_the_table() -> None:
    assert [(own.chooser, own.trained) for own in regrets()][:8] == [(name, n) for n in (1, 4) for name in NAMES]
    printed = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    drawn = re.findall(r">([\d.]+ \[[\d.]+, [\d.]+\])<", FIGURE.read_text(encoding="utf-8"))
    assert len(drawn) == 8
    assert [numbers for numbers in drawn if numbers not in printed] == []


# A kernel of Jupyter: its sockets and its event loop warn of what is no matter of ours.
@pytest.mark.filterwarnings("default")
@pytest.mark.slow
def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    tutorial = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(tutorial)
    done = NotebookClient(tutorial, timeout=300).execute()
    printed = [output["text"] for cell in done.cells for output in cell.get("outputs", ()) if output.get("text")]
    assert any("Ranked by" in text for text in printed)
    assert any("Finals: the first 2 by score were trained" in text for text in printed)
