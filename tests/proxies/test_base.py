import pytest

from lightning_zico.errors import DuplicateNameError, UnknownNameError
from lightning_zico.proxies import BASELINES, Measurement, Params, Proxy, ZiCo, list_proxies, register_proxy
from lightning_zico.proxies import resolve_proxies as resolve


def test_every_proxy_is_listed_under_its_own_name():
    assert set(list_proxies()) >= {"zico", *BASELINES}
    assert [proxy.name for proxy in resolve("all")] == list_proxies()
    assert list_proxies("num_*") == ["num_layers"]


def test_names_objects_and_mixtures_are_resolved_in_order():
    own = ZiCo(name="own")
    assert [proxy.name for proxy in resolve("zico")] == ["zico"]
    assert resolve(own) == [own]
    resolved = resolve(["params", own, "zico"])
    assert [type(proxy) for proxy in resolved] == [Params, ZiCo, ZiCo]
    assert resolved[1] is own
    with pytest.raises(ValueError, match="empty"):
        resolve([])


def test_each_resolution_makes_new_proxies():
    assert resolve("zico")[0] is not resolve("zico")[0]


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match=r"no proxy named 'ziko'\. Did you mean 'zico'.*\? Known: .*params"):
        resolve(["params", "ziko"])
    with pytest.raises(KeyError):
        resolve("nothing like it")


@pytest.mark.parametrize("proxies", [["zico", "zico"], ["zico", ZiCo("abs")], [ZiCo(name="a"), ZiCo(name="a")]])
def test_two_proxies_of_one_name_are_refused(proxies):
    with pytest.raises(DuplicateNameError, match=r"Two proxies are named .*ZiCo\(name=\.\.\.\)"):
        resolve(proxies)


@pytest.mark.usefixtures("_own_registries")
def test_a_registered_proxy_is_found_by_its_name():
    @register_proxy("constant")
    class Constant(Proxy):
        name = "constant"

        def measure(self, probe):
            return Measurement(1.0)

    assert "constant" in list_proxies()
    assert isinstance(resolve("constant")[0], Constant)
    with pytest.raises(DuplicateNameError, match="proxy named 'constant' already"):
        register_proxy("constant")(Constant)


def test_registration_in_a_test_ends_with_it():
    assert "constant" not in list_proxies()


@pytest.mark.parametrize("name", ["zico", "params"])
def test_a_taken_name_is_refused(name):
    with pytest.raises(DuplicateNameError, match="already"):
        register_proxy(name)(ZiCo)


@pytest.mark.parametrize("name", ["rank", "name", "score", "error", "seconds"])
def test_columns_of_the_leaderboard_are_no_names_of_proxies(name):
    with pytest.raises(DuplicateNameError, match="is reserved for a column of the leaderboard"):
        register_proxy(name)
