"""The README's code runs, block by block in one session, as a reader would type it."""

import re
from pathlib import Path

import pytest
from lightning.pytorch import Trainer

from lightning_zico import list_proxies, list_recipes

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("_forked_workers")
@pytest.mark.filterwarnings("ignore:.*tensorboardX.*:UserWarning")  # the README's trainers log where they like
def test_every_python_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) >= 3
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks:
        exec(block, names)
    assert isinstance(names["trainer"], Trainer)
    assert names["card"]["zico"].error is None
    assert names["selector"].best_model_ is not None


def test_linked_files_exist() -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_every_proxy_and_recipe_stands_in_the_documentation() -> None:
    text = (ROOT / "docs" / "proxies.md").read_text(encoding="utf-8")
    assert [name for name in (*list_proxies(), *list_recipes()) if f"`{name}`" not in text] == []
