"""What every registered space keeps to."""

import pickle
import random
from itertools import islice
from typing import Any

import pytest
import torch
from torch import nn

from lightning_zico.engine.size import count_macs, count_params
from lightning_zico.spaces import ArchSyntaxError, SearchSpace, get_space, list_spaces

SEEDS = range(8)


@pytest.fixture(params=list_spaces())
def space(request: pytest.FixtureRequest) -> SearchSpace[Any]:
    return get_space(request.param)


@pytest.fixture(params=SEEDS)
def arch(request: pytest.FixtureRequest, space: SearchSpace[Any]) -> Any:
    return space.sample(random.Random(request.param))


class TestSpace:
    def test_is_named_as_registered_and_documented(self, space: SearchSpace[Any]) -> None:
        assert space.name in list_spaces()
        assert type(get_space(space.name)) is type(space)
        assert type(space).__doc__

    def test_an_arch_is_its_string(self, space: SearchSpace[Any], arch: Any) -> None:
        again = space.parse(str(arch))
        assert again == arch
        assert hash(again) == hash(arch)
        assert pickle.loads(pickle.dumps(arch)) == arch

    def test_a_wrong_character_is_pointed_at(self, space: SearchSpace[Any], arch: Any) -> None:
        text = str(arch)
        for position in range(len(text)):
            with pytest.raises(ArchSyntaxError) as caught:
                space.parse(f"{text[:position]}\N{SNOWMAN}{text[position + 1 :]}")
            assert caught.value.position == position
            *_, shown, caret = str(caught.value).splitlines()
            assert shown[caret.index("^")] == "\N{SNOWMAN}"

    @pytest.mark.parametrize("change", [lambda t: "", lambda t: t + "x", lambda t: f" {t}", lambda t: f"{t}\n"])
    def test_a_string_is_read_to_its_end_and_nothing_beside_it(
        self, space: SearchSpace[Any], arch: Any, change: Any
    ) -> None:
        with pytest.raises(ValueError, match="cannot be read at position"):
            space.parse(change(str(arch)))

    def test_samples_come_from_the_generator_alone(self, space: SearchSpace[Any]) -> None:
        first, second = random.Random(5), random.Random(5)
        archs = [space.sample(first) for _ in range(20)]
        random.seed(99)
        torch.manual_seed(99)
        assert [space.sample(second) for _ in range(20)] == archs
        assert len(set(archs)) > 1

    def test_neighbours_are_distinct_and_inside(self, space: SearchSpace[Any], arch: Any) -> None:
        neighbours = list(space.neighbours(arch))
        assert neighbours
        assert len(set(neighbours)) == len(neighbours) < space.size
        assert arch not in neighbours
        for neighbour in neighbours:
            assert space.parse(str(neighbour)) == neighbour
            assert arch in space.neighbours(neighbour)

    def test_a_mutant_is_another_arch_inside(self, space: SearchSpace[Any], arch: Any) -> None:
        mutants = [space.mutate(arch, random.Random(seed)) for seed in range(50)]
        assert arch not in mutants
        assert len(set(mutants)) > 1
        assert all(space.parse(str(mutant)) == mutant for mutant in mutants)
        assert mutants == [space.mutate(arch, random.Random(seed)) for seed in range(50)]

    @pytest.mark.parametrize(("num_classes", "in_channels"), [(10, 3), (7, 1)])
    def test_the_network_maps_images_to_logits(
        self, space: SearchSpace[Any], arch: Any, num_classes: int, in_channels: int
    ) -> None:
        network = space.build(arch, num_classes, in_channels)
        logits = network(torch.randn(2, in_channels, 32, 32))
        assert logits.shape == (2, num_classes)
        assert logits.isfinite().all()
        logits.sum().backward()
        assert all(parameter.grad is not None for parameter in network.parameters())

    @pytest.mark.parametrize(("resolution", "num_classes", "in_channels"), [(32, 10, 3), (64, 7, 1)])
    def test_costs_are_those_of_the_network(
        self, space: SearchSpace[Any], arch: Any, resolution: int, num_classes: int, in_channels: int
    ) -> None:
        network = space.build(arch, num_classes, in_channels)
        counted = count_macs(network, lambda m, b, _: m(b).mean(), torch.randn(2, in_channels, resolution, resolution))
        sizes = {"num_classes": num_classes, "in_channels": in_channels}
        assert space.params(arch, **sizes) == count_params(network)
        assert space.macs(arch, resolution, **sizes) == counted.macs
        assert counted.uncounted == ()

    def test_blocks_run_in_the_order_they_are_named_in(self, space: SearchSpace[Any], arch: Any) -> None:
        network, names, ran = space.build(arch), space.blocks(arch), []
        for name in names:
            network.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
        network(torch.randn(2, 3, 32, 32))
        assert tuple(ran) == names
        assert names

    def test_candidates_are_distinct_and_build_their_arch(self, space: SearchSpace[Any]) -> None:
        candidates = list(space.candidates(10, seed=3, num_classes=7))
        names = [candidate.name for candidate in candidates]
        assert len(set(names)) == 10
        assert names[:4] == [candidate.name for candidate in space.candidates(4, seed=3)]
        assert names != [candidate.name for candidate in space.candidates(10, seed=4)]
        for candidate in pickle.loads(pickle.dumps(candidates))[:2]:
            network = candidate.build()
            assert candidate.blocks == space.blocks(space.parse(candidate.name))
            assert isinstance(network, nn.Module)
            assert count_params(network) == space.params(space.parse(candidate.name), num_classes=7)

    @pytest.mark.parametrize("wrong", [-1, None])
    def test_no_more_candidates_than_archs(self, space: SearchSpace[Any], wrong: int | None) -> None:
        n = space.size + 1 if wrong is None else wrong
        with pytest.raises(ValueError, match=f"`n` is {n}"):
            space.candidates(n)

    def test_candidates_are_drawn_one_at_a_time(self, space: SearchSpace[Any]) -> None:
        assert len(list(islice(space.candidates(space.size), 2))) == 2
