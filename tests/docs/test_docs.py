"""Every code block of the documentation runs, page by page, as a reader would type it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightning_zico import errors

ROOT = Path(__file__).parents[2]
PAGES = {
    page.relative_to(ROOT / "docs").as_posix(): re.findall(
        r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL
    )
    for page in sorted((ROOT / "docs").rglob("*.md"))
}


@pytest.mark.usefixtures("_own_registries")  # a page registers its own
@pytest.mark.parametrize("page", [page for page, blocks in PAGES.items() if blocks])
def test_every_python_block_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for block in PAGES[page]:
        exec(block, names)


def test_pages_with_code_were_found() -> None:
    assert PAGES["tutorial.md"]
    assert sum(bool(blocks) for page, blocks in PAGES.items() if page.startswith("how_to/")) >= 7


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [page for page in PAGES if f": {page}\n" not in navigation] == []


def said() -> Iterator[str]:
    """Yield the texts of the package, f-strings with an ellipsis for each value."""
    for path in sorted((ROOT / "lightning_zico").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values)


def test_the_reasons_that_are_explained_are_those_of_the_package() -> None:
    page = (ROOT / "docs" / "how_to" / "troubleshooting.md").read_text(encoding="utf-8")
    firsts = re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
    reasons = [reason for first in firsts for reason in re.findall("`(.+?)`", first)]
    texts = list(said())
    assert len(reasons) >= 25
    assert [reason for reason in reasons if not hasattr(errors, reason) and not any(reason in t for t in texts)] == []
