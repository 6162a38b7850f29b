"""Every code block of the documentation runs, page by page, as a reader would type it."""

import re
from pathlib import Path

import pytest

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
