"""What the documentation makes of other files: the figure of regret and the notebook.

`python -m tests.docs.generated` writes both; a test compares them with the files from which they are made.
"""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
FIGURE, NOTEBOOK = ROOT / "docs" / "regret.svg", ROOT / "docs" / "tutorial.ipynb"

NAMES = {"random": "at random", "params": "most parameters", "zico": "ZiCo", "default": "default recipe"}
_LEFT, _SCALE, _ROW = 230, 95, 24  # pixels: of the names, of a point of accuracy, of a row
_INK, _BAR, _OWN = "#24292f", "#8c959f", "#1f6feb"


class Regret(NamedTuple):
    """A row of the table: how a network is chosen, how many are trained to choose, and points lost."""

    chooser: str
    trained: int
    lost: float
    low: float
    high: float


def regrets() -> list[Regret]:
    """Read the last table of the benchmark of regret, of NAS-Bench-201."""
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    table = text.partition("\nnas-bench-201: 500 pools of 50")[2].partition("```")[0]
    row = re.compile(r"^\| (\w+) +\| +(\d+) \| +\d+ \| +([\d.]+) \[([\d.]+), ([\d.]+)\] \|", re.MULTILINE)
    return [Regret(name, int(trained), *map(float, numbers)) for name, trained, *numbers in row.findall(table)]


def figure() -> str:
    """Draw points lost as bars, for one trained network and for four."""
    lines: list[str] = []
    y = 8
    for trained, title in ((1, "Chosen untrained"), (4, "The first four trained, the best of them chosen")):
        y += 28
        lines.append(f'<text x="12" y="{y}" font-weight="bold">{title}</text>')
        for own in regrets():
            if own.trained != trained:
                continue
            y += _ROW
            colour = _OWN if own.chooser == "default" else _BAR
            said = f"{own.lost:.2f} [{own.low:.2f}, {own.high:.2f}]"
            lines += [
                f'<text x="{_LEFT - 10}" y="{y}" text-anchor="end">{NAMES[own.chooser]}</text>',
                f'<rect x="{_LEFT}" y="{y - 12}" width="{_SCALE * own.lost:.1f}" height="14" fill="{colour}"/>',
                f'<text x="{_LEFT + _SCALE * own.lost + 8:.1f}" y="{y}">{said}</text>',
            ]
    y += 34
    lines.append(f'<text x="12" y="{y}">Accuracy points lost against the best of 50, mean with 95 % interval</text>')
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 920 {y + 16}" font-family="sans-serif" font-size="15" '
        f'fill="{_INK}">'
    )
    return "\n".join([head, f'<rect width="920" height="{y + 16}" fill="#ffffff"/>', *lines, "</svg>", ""])


def notebook() -> str:
    """Turn the tutorial's page into a notebook: text as Markdown, each block as a cell of code."""
    parts = re.split(r"```python\n(.*?)```\n", (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8"), flags=re.S)
    cells = [_cell(idx, "code" if idx % 2 else "markdown", part.strip()) for idx, part in enumerate(parts)]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    content = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _cell(idx: int, kind: str, source: str) -> dict[str, Any]:
    cell = {"cell_type": kind, "id": f"cell-{idx}", "metadata": {}, "source": source.splitlines(keepends=True)}
    return cell | ({"execution_count": None, "outputs": []} if kind == "code" else {})


if __name__ == "__main__":
    FIGURE.write_text(figure(), encoding="utf-8")
    NOTEBOOK.write_text(notebook(), encoding="utf-8")
