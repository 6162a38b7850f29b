"""Hints to install an extra fit how the package was installed."""

from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace
from typing import Any

import pytest

from lightning_zico import _imports


@pytest.mark.parametrize(
    ("recorded", "command"),
    [
        (None, "pip install 'lightning-zico[ray]'"),
        ('{"url": "file:///a/clone", "dir_info": {}}', "pip install '/a/clone[ray]'"),
        ('{"url": "file:///my%20clone", "dir_info": {"editable": true}}', "pip install -e '/my clone[ray]'"),
        ('{"url": "file:///a/b-1-py3-none-any.whl", "archive_info": {}}', "pip install '/a/b-1-py3-none-any.whl[ray]'"),
        (
            '{"url": "https://host/it", "vcs_info": {"vcs": "git", "commit_id": "1"}}',
            "pip install 'lightning-zico[ray] @ git+https://host/it'",
        ),
        (
            '{"url": "https://host/it.whl", "archive_info": {}}',
            "pip install 'lightning-zico[ray] @ https://host/it.whl'",
        ),
    ],
)
def test_an_extra_comes_from_where_the_package_came_from(
    monkeypatch: pytest.MonkeyPatch, recorded: str | None, command: str
) -> None:
    monkeypatch.setattr(_imports, "distribution", lambda _: SimpleNamespace(read_text=lambda _: recorded))
    assert _imports.install_command("ray") == command
    with pytest.raises(ModuleNotFoundError, match=r"^Rays need it: `pip install "):
        _imports.import_optional("no_such_package", "Rays need it", "ray")


def test_a_package_that_is_not_installed_is_looked_for_in_an_index(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(_imports, "distribution", missing)
    assert _imports.install_command("ray") == "pip install 'lightning-zico[ray]'"
