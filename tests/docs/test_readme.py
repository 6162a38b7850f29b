"""README.md is short, its code runs as a reader would type it, and prints what it shows."""

import re
from pathlib import Path
from typing import Any

import pytest

from lightning_zico import list_proxies, list_recipes

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MOST_WORDS = 900


def blocks(kind: str, page: str = README) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", page, flags=re.DOTALL)


def test_it_is_short() -> None:
    assert len(README.split()) <= MOST_WORDS


@pytest.fixture
def of_a_reader() -> dict[str, Any]:
    """What README.md expects a reader to have: here, the module and the data of the tutorial."""
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(blocks("python", (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8"))[0], names)
    data = names["MyDataModule"]()
    data.setup("fit")
    return names | {"train_loader": data.train_dataloader(), "val_loader": data.val_dataloader()}


@pytest.mark.filterwarnings("ignore:.*tensorboardX.*:UserWarning")  # the trainer logs where it likes
def test_every_python_block_runs_and_prints_what_is_shown(
    of_a_reader: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    rank, fit = blocks("python")
    exec(rank, of_a_reader)
    printed = capsys.readouterr().out
    exec(fit, of_a_reader)
    assert of_a_reader["selector"].best_model_ is not None
    (shown,) = blocks("text")
    for mine, theirs in zip(_lines(printed), _lines(shown), strict=True):
        assert [part for part in mine if isinstance(part, str)] == [part for part in theirs if isinstance(part, str)]
        numbers, expected = ([part for part in line if isinstance(part, float)] for line in (mine, theirs))
        assert numbers == pytest.approx(expected, rel=0.01)


def _lines(text: str) -> list[list[str | float]]:
    """Split lines into words and numbers; seconds, the last column of the table, are left out."""
    lines = [line.split() for line in text.strip().splitlines()]
    lines = [words[:-1] if words[0].isdigit() else words for words in lines]
    return [[_read(word) for word in words] for words in lines]


def _read(word: str) -> str | float:
    return float(word.replace(",", "")) if re.fullmatch(r"-?[\d,]*\d(\.\d+)?", word) else word


def test_linked_files_and_sections_exist() -> None:
    links = re.findall(r"\]\((?!https?://)([^)]+)\)", README)
    assert links
    for link in links:
        path, _, section = link.partition("#")
        assert (ROOT / path).exists(), link
        headings = re.findall(r"^#+ (.*)", (ROOT / path).read_text(encoding="utf-8"), re.M) if section else []
        assert not section or section in [re.sub(r"[^\w\- ]", "", h).lower().replace(" ", "-") for h in headings], link


def test_every_proxy_and_recipe_stands_in_the_documentation() -> None:
    text = (ROOT / "docs" / "proxies.md").read_text(encoding="utf-8")
    assert [name for name in (*list_proxies(), *list_recipes()) if f"`{name}`" not in text] == []
