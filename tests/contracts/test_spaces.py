"""What every registered space keeps to."""

import pickle
import random
import re
from functools import cache
from itertools import islice
from typing import Any

import optuna
import pytest
import torch
import torch.nn.functional as F
from torch.nn.modules.conv import _ConvNd

from lightning_zico.engine.size import count_macs, count_params
from lightning_zico.spaces import ArchSyntaxError, SearchSpace, get_space, list_spaces

# In ascending order: networks for small images take the first ones, those for ImageNet the last.
RESOLUTIONS = (8, 16, 32, 64, 224)

NUM_SAMPLES = 50


@cache
def samples_of(name: str) -> list[Any]:
    rng = random.Random(0)
    return [get_space(name).sample(rng) for _ in range(NUM_SAMPLES)]


@cache
def cheapest_of(name: str) -> list[Any]:
    """Pick archs whose networks are built and run in no time."""
    return sorted(samples_of(name)[:20], key=lambda arch: get_space(name).macs(arch, RESOLUTIONS[-1]))[:2]


@pytest.fixture(params=list_spaces())
def space(request: pytest.FixtureRequest) -> SearchSpace[Any]:
    return get_space(request.param)


@pytest.fixture
def archs(space: SearchSpace[Any]) -> list[Any]:
    return samples_of(space.name)


@pytest.fixture
def cheapest(space: SearchSpace[Any]) -> list[Any]:
    return cheapest_of(space.name)


def resolutions_for(space: SearchSpace[Any], arch: Any) -> list[int]:
    """Ask the space which images the network of an arch takes; of any other it must say what it expects."""
    refusals = {}
    for resolution in RESOLUTIONS:
        try:
            space.macs(arch, resolution)
        except ValueError as error:
            refusals[resolution] = str(error)
    for resolution, refusal in refusals.items():
        assert re.search(rf"Invalid resolution={resolution}: expected", refusal)
    assert len(refusals) < len(RESOLUTIONS)
    return [resolution for resolution in RESOLUTIONS if resolution not in refusals]


def inputs_for(space: SearchSpace[Any], num_samples: int, in_channels: int, resolution: int) -> torch.Tensor:
    """Make images, or texts of as many tokens if the networks of the space are for text."""
    if space.vocab_size is not None:
        return torch.randint(space.vocab_size, (num_samples, resolution))
    return torch.randn(num_samples, in_channels, resolution, resolution)


def is_arch(space: SearchSpace[Any], text: str) -> bool:
    try:
        return str(space.parse(text)) == text
    except ArchSyntaxError:
        return False


class TestSpace:
    def test_is_named_as_registered_and_documented(self, space: SearchSpace[Any]) -> None:
        assert space.name in list_spaces()
        assert type(get_space(space.name)) is type(space)
        assert type(space).__doc__

    def test_an_arch_is_its_string(self, space: SearchSpace[Any], archs: list[Any]) -> None:
        for arch in archs:
            again = space.parse(str(arch))
            assert again == arch
            assert str(again) == str(arch)
            assert hash(again) == hash(arch)
            assert pickle.loads(pickle.dumps(arch)) == arch

    def test_an_arch_cannot_be_changed(self, archs: list[Any]) -> None:
        for name in ("other", *getattr(archs[0], "__dict__", ())):
            with pytest.raises(AttributeError):
                setattr(archs[0], name, None)

    def test_a_string_that_is_cut_or_spoiled_is_pointed_at(self, space: SearchSpace[Any], archs: list[Any]) -> None:
        for text in map(str, archs[:5]):
            for position in range(len(text)):
                spoiled = f"{text[:position]}\N{SNOWMAN}{text[position + 1 :]}"
                # without its last part, the string of an arch can be that of a smaller one
                for wrong in (spoiled,) if is_arch(space, text[:position]) else (text[:position], spoiled):
                    with pytest.raises(ArchSyntaxError) as caught:
                        space.parse(wrong)
                    assert caught.value.position == position
                *_, shown, caret = str(caught.value).splitlines()
                assert shown[caret.index("^")] == "\N{SNOWMAN}"

    @pytest.mark.parametrize("form", ["{0}x", " {0}", "{0}\n", "{0}{0}"])
    def test_a_string_is_read_to_its_end_and_nothing_beside_it(
        self, space: SearchSpace[Any], archs: list[Any], form: str
    ) -> None:
        for arch in archs[:5]:
            with pytest.raises(ArchSyntaxError, match="cannot be read at position"):
                space.parse(form.format(arch))

    def test_samples_come_from_the_generator_alone(self, space: SearchSpace[Any], archs: list[Any]) -> None:
        rng = random.Random(0)
        random.seed(99)
        torch.manual_seed(99)
        assert [space.sample(rng) for _ in archs] == archs
        assert 1 < len(set(archs)) <= space.size

    def test_neighbours_are_distinct_and_inside_and_have_the_arch_as_theirs(
        self, space: SearchSpace[Any], archs: list[Any]
    ) -> None:
        for arch in archs[:5]:
            neighbours = list(space.neighbours(arch))
            assert neighbours
            assert len(set(neighbours)) == len(neighbours) < space.size
            assert arch not in neighbours
            for neighbour in random.Random(1).sample(neighbours, min(10, len(neighbours))):
                assert space.parse(str(neighbour)) == neighbour
                assert arch in space.neighbours(neighbour)

    def test_a_mutant_is_another_arch_inside(self, space: SearchSpace[Any], archs: list[Any]) -> None:
        for arch in archs[:5]:
            mutants = [space.mutate(arch, random.Random(seed)) for seed in range(20)]
            assert arch not in mutants
            assert len(set(mutants)) > 1
            assert all(space.parse(str(mutant)) == mutant for mutant in mutants)
            assert mutants == [space.mutate(arch, random.Random(seed)) for seed in range(20)]

    def test_a_mutant_is_a_neighbour_unless_the_space_says_how_it_mutates(
        self, space: SearchSpace[Any], archs: list[Any]
    ) -> None:
        if type(space).mutate is SearchSpace.mutate:
            assert {space.mutate(archs[0], random.Random(seed)) for seed in range(20)} <= {*space.neighbours(archs[0])}
        else:
            assert type(space).mutate.__doc__ not in (None, SearchSpace.mutate.__doc__)

    def test_costs_are_those_of_the_network(self, space: SearchSpace[Any], cheapest: list[Any]) -> None:
        for arch in cheapest:
            resolutions = resolutions_for(space, arch)
            for resolution, num_classes, in_channels in ((resolutions[0], 10, 3), (resolutions[-1], 7, 1)):
                network = space.build(arch, num_classes, in_channels)
                inputs = inputs_for(space, 2, in_channels, resolution)
                counted = count_macs(network, lambda model, batch, _: model(batch).mean(), inputs)
                sizes = {"num_classes": num_classes, "in_channels": in_channels}
                assert counted.uncounted == ()
                assert space.params(arch, **sizes) == count_params(network)
                assert space.macs(arch, resolution, **sizes) == counted.macs

    def test_costs_are_for_ten_classes_and_three_channels_unless_told(
        self, space: SearchSpace[Any], archs: list[Any]
    ) -> None:
        sizes = {"num_classes": 10, "in_channels": 3}
        for arch in archs:
            assert space.params(arch) == space.params(arch, **sizes)
            assert space.macs(arch) == space.macs(arch, **sizes)

    @pytest.mark.parametrize("resolution", [0, -32])
    def test_there_are_no_images_without_pixels(
        self, space: SearchSpace[Any], archs: list[Any], resolution: int
    ) -> None:
        with pytest.raises(ValueError, match=rf"Invalid resolution={resolution}: expected"):
            space.macs(archs[0], resolution)

    @pytest.mark.parametrize(("num_classes", "in_channels"), [(10, 3), (7, 1)])
    def test_the_network_learns_from_its_inputs(
        self, space: SearchSpace[Any], cheapest: list[Any], num_classes: int, in_channels: int
    ) -> None:
        resolution = resolutions_for(space, cheapest[0])[0]
        network = space.build(cheapest[0], num_classes, in_channels)
        assert all(module.training for module in network.modules())
        logits = network(inputs_for(space, 2, in_channels, resolution))
        assert logits.shape == (2, num_classes)
        assert logits.isfinite().all()
        F.cross_entropy(logits, torch.tensor([0, 1])).backward()
        for parameter in network.parameters():
            assert parameter.grad is not None
            assert parameter.grad.isfinite().all()

    def test_the_network_works_on_nothing_in_place(self, space: SearchSpace[Any], cheapest: list[Any]) -> None:
        assert not any(getattr(module, "inplace", False) for module in space.build(cheapest[0]).modules())

    def test_weights_come_from_the_seed(self, space: SearchSpace[Any], cheapest: list[Any]) -> None:
        states = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            states.append(space.build(cheapest[0]).state_dict())
        first, again, other = states
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert not all(torch.equal(first[name], other[name]) for name in first)

    def test_blocks_run_in_the_order_they_are_named_in(self, space: SearchSpace[Any], cheapest: list[Any]) -> None:
        ran: list[str] = []
        for arch in cheapest:
            network, names = space.build(arch), space.blocks(arch)
            for name in names:
                network.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
            resolution = resolutions_for(space, arch)[0]
            with torch.no_grad():
                network(inputs_for(space, 2, 3, resolution))
            assert tuple(ran) == names
            ran.clear()
        assert max(len(space.blocks(arch)) for arch in cheapest) >= 2

    def test_candidates_are_distinct_and_the_fewer_begin_the_more(self, space: SearchSpace[Any]) -> None:
        names = [candidate.name for candidate in space.candidates(20, seed=3)]
        assert len(set(names)) == 20
        assert names[:4] == [candidate.name for candidate in space.candidates(4, seed=3)]
        assert names != [candidate.name for candidate in space.candidates(20, seed=4)]

    def test_candidates_build_their_arch(self, space: SearchSpace[Any]) -> None:
        candidates = pickle.loads(pickle.dumps(list(space.candidates(20, seed=3, num_classes=7, in_channels=1))))
        candidate = min(candidates, key=lambda candidate: space.params(space.parse(candidate.name)))
        arch = space.parse(candidate.name)
        assert candidate.name == str(arch)
        assert candidate.blocks == space.blocks(arch)
        assert count_params(candidate.build()) == space.params(arch, num_classes=7, in_channels=1)

    @pytest.mark.parametrize("too_many", [False, True])
    def test_no_more_candidates_than_archs(self, space: SearchSpace[Any], too_many: bool) -> None:
        n = space.size + 1 if too_many else -1
        with pytest.raises(ValueError, match=f"Invalid n={n}: expected"):
            space.candidates(n)

    def test_candidates_are_drawn_one_at_a_time(self, space: SearchSpace[Any]) -> None:
        assert len(list(islice(space.candidates(space.size), 2))) == 2

    def test_optuna_finds_archs_and_finds_them_again(self, space: SearchSpace[Any]) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        suggested = []
        for _ in range(20):
            trial = study.ask()
            arch = space.suggest(trial)
            study.tell(trial, 0.0)
            assert space.parse(str(arch)) == arch
            assert space.suggest(optuna.trial.FixedTrial(trial.params)) == arch
            suggested.append(arch)
        assert len(set(suggested)) > 10

    def test_depth_is_that_of_the_built_network_unless_the_space_counts_otherwise(
        self, space: SearchSpace[Any], archs: list[Any]
    ) -> None:
        """Counted where no weights are made, since there the largest networks are built too."""
        by_repeats = getattr(space, "num_layers", None)
        for arch in archs[:15]:
            with torch.device("meta"):
                layers = [m for m in space.build(arch).modules() if isinstance(m, _ConvNd | torch.nn.Linear)]
            assert space.depth(arch) == (by_repeats(arch) if by_repeats else len(layers))

    def test_costs_and_depth_build_nothing(
        self, space: SearchSpace[Any], archs: list[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def forbidden(*_: Any) -> None:
            raise AssertionError("a module was built")

        monkeypatch.setattr(torch.nn.Module, "__init__", forbidden)
        for arch in archs:
            assert space.depth(arch) >= 2
            assert space.params(arch) > 0
            assert space.macs(arch, RESOLUTIONS[-1]) > 0
