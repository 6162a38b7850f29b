"""One registry: duplicates raise, unknown names get the nearest, lists are in human order."""

import pytest

from lightning_zico._registry import Registry, unknown_name
from lightning_zico.errors import DuplicateNameError, UnknownNameError


@pytest.fixture
def registry() -> Registry[int]:
    registry = Registry[int]("model")
    for number in (10, 2, 1):
        registry.register(f"net{number}", number)
    return registry


def test_names_are_in_human_order_and_filtered(registry: Registry[int]) -> None:
    assert registry.names() == ["net1", "net2", "net10"]
    assert registry.names("*1*") == ["net1", "net10"]


def test_an_entry_is_found_and_a_duplicate_refused(registry: Registry[int]) -> None:
    assert registry.get("net2") == 2
    with pytest.raises(DuplicateNameError, match="model named 'net2'"):
        registry.register("net2", 3)
    assert registry.get("net2") == 2


def test_unknown_name_is_answered_with_the_nearest(registry: Registry[int]) -> None:
    with pytest.raises(UnknownNameError, match=r"no model named 'nte2'. Did you mean 'net2'") as caught:
        registry.get("nte2")
    assert isinstance(caught.value, KeyError)
    assert not str(caught.value).startswith(("'", '"'))
    with pytest.raises(UnknownNameError, match=r"named 'zzz'. Known: net1, net2, net10"):
        registry.get("zzz")


def test_more_names_than_one_reads_are_counted() -> None:
    with pytest.raises(UnknownNameError, match=r"Did you mean 'net10'.* Known: 200 names\.$"):
        raise unknown_name("net", "nett10", [f"net{idx}" for idx in range(200)])
