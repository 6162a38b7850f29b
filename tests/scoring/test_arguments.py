"""Wrong use is one clear line, early, and the same wherever an argument is taken."""

import json
import random
from collections import namedtuple
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_zico import (
    Budget,
    Candidate,
    Leaderboard,
    Prior,
    ProcessExecutor,
    ZeroShotSearch,
    ZeroShotSelector,
    ZiCo,
    ZiCoCallback,
    register_proxy,
    score,
)
from lightning_zico.datamodules import ImageFolderDataModule
from lightning_zico.demos import DigitsDataModule
from lightning_zico.errors import InvalidArgumentError, check_count
from lightning_zico.proxies import KNN
from lightning_zico.ranking import regret_at_k
from lightning_zico.scoring.arguments import positive
from lightning_zico.scoring.placement import check_placement, placement_of
from lightning_zico.search import Evolution
from lightning_zico.selection.rounds import FinalsRules
from lightning_zico.spaces import get_space
from lightning_zico.zoo import from_zoo
from lightning_zico.zoo.base import Zoo, check_num_classes, match_names, size_of
from tests.modules import Classifier, make_batches, make_network
from tests.search.spaces import Bits
from tests.search.spaces import batches as bits_batches

LOADER = DataLoader(TensorDataset(torch.randn(12, 2, 5, 5), torch.arange(12) % 3), 4, shuffle=True)
IMAGES, LABELS = make_batches(1)[0]
Pair = namedtuple("Pair", "x y")

ENTRANCES: dict[str, Callable[..., Any]] = {
    "selector": ZeroShotSelector,
    "search": lambda **arguments: ZeroShotSearch(Bits(), **arguments),
    "score": lambda **arguments: score(make_network(), make_batches(), **arguments),
    "callback": ZiCoCallback,
}
EVERYWHERE = tuple(ENTRANCES)


class Data(LightningDataModule):
    def train_dataloader(self) -> Any:
        return LOADER


class NoLoader(LightningDataModule):
    def train_dataloader(self) -> Any:
        return None


def wrong_arguments() -> Any:
    step = lambda module, batch, batch_idx: 0  # noqa: E731
    counts = ("selector", "search", "callback")
    for arguments, said, where in (
        ({"seed": None}, "Invalid seed=None: expected a whole number", EVERYWHERE),
        ({"seed": "x"}, "Invalid seed='x': expected a whole number", EVERYWHERE),
        ({"seed": 1.5}, r"Invalid seed=1\.5", EVERYWHERE),
        ({"num_batches": 2.0}, r"Invalid num_batches=2\.0: expected a whole number of at least", counts),
        ({"num_batches": "2"}, "Invalid num_batches='2': expected a whole number of at least", counts),
        ({"num_batches": True}, "Invalid num_batches=True", counts),
        ({"num_batches": 0}, "Invalid num_batches=0: expected a whole number of at least", counts),
        ({"every_n_epochs": 0.5}, r"Invalid every_n_epochs=0\.5: .*None scores once", ("callback",)),
        ({"loss_fn": "mse"}, r"Invalid loss_fn='mse': expected a function .*such as `loss_fn=nn\.Cross", EVERYWHERE),
        (
            {"loss_fn": nn.MSELoss},
            r"Invalid loss_fn=MSELoss: it is a class. Pass an instance, `MSELoss\(\)`",
            EVERYWHERE,
        ),
        ({"loss_fn": lambda x: x}, r"`<lambda>\(x\)` cannot be called with the 2 arguments \(outputs, t", EVERYWHERE),
        ({"loss_fn": nn.ReLU()}, r"`ReLU\(input.*\)` cannot be called with the 2 arguments", EVERYWHERE),
        ({"step": 3}, "Invalid step=3: expected a function", EVERYWHERE),
        ({"step": lambda x, y: x}, r"cannot be called with the 3 arguments \(module, batch, batch_idx\)", EVERYWHERE),
        ({"step": step, "loss_fn": nn.MSELoss()}, "either `loss_fn=` or `step=`, not both", EVERYWHERE),
        ({"trainer": {"max_epochs": 3}}, r"expected a Trainer. Pass `Trainer\(max_epochs=3\)`", ("selector", "score")),
        ({"trainer": Trainer}, "expected a Trainer or None. Pass an instance", ("selector",)),
        ({"trainer": "gpu"}, "Invalid trainer='gpu'", ("selector", "score")),
        ({"num_samples": 0}, "Invalid num_samples=0: expected a positive int", ("selector", "score", "callback")),
        ({"num_samples": lambda: 3}, "it cannot be called with a batch", ("selector", "score", "callback")),
        ({"seed": 2**64}, "Invalid seed=18446744073709551616: expected a whole number, of at most 63 bits", EVERYWHERE),
        ({"repeats": 3.0}, r"Invalid repeats=3\.0", ("selector",)),
        ({"race": "yes", "repeats": 8}, "Invalid race='yes': expected True or False", ("selector",)),
        ({"enable_progress_bar": 0}, "Invalid enable_progress_bar=0: expected True or False", ("selector",)),
        (
            {"trainer": ["zico"]},
            r"Invalid trainer=\['zico'\].*Pass proxies as `proxies=\.\.\.`",
            ("selector",),
        ),
        ({"prior": 3}, "Invalid prior=3: expected a mapping from names to numbers", ("selector",)),
        ({"prior": {"a": "b"}}, "`prior` of 'a' is 'b': expected a finite number", ("selector",)),
        ({"finalists": 2.0}, r"Invalid finalists=2\.0", ("selector",)),
        ({"num_trials": 1e3}, r"Invalid num_trials=1000\.0", ("search",)),
        ({"budget": {"macs": 3}}, "Invalid budget={'macs': 3}: expected a `Budget`", ("selector", "search")),
        (
            {"precision": 8},
            r'Invalid precision=8: expected None, one of "32-true".* or the short form 64',
            ("selector", "search"),
        ),
        ({"precision": "fp16"}, "Invalid precision='fp16'", ("selector", "search")),
        ({"precision": True}, "Invalid precision=True", ("selector", "search")),
        ({"precision": ["16"]}, "Invalid precision=", ("selector", "search")),
    ):
        for entrance in where:
            yield pytest.param(entrance, arguments, said, id=f"{entrance}-{next(iter(arguments))}-{len(said)}")


@pytest.mark.parametrize(("entrance", "arguments", "said"), list(wrong_arguments()))
def test_a_wrong_argument_is_refused_at_construction(entrance: str, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said) as caught:
        ENTRANCES[entrance](**arguments)
    assert "\n" not in str(caught.value)


def test_whole_numbers_of_numpy_are_numbers() -> None:
    selector = ZeroShotSelector(seed=np.int64(3), num_batches=np.int32(3), proxies="zico")
    assert (type(selector.seed), selector.seed, selector.num_batches) == (int, 3, 3)
    assert selector.rank([Classifier], make_batches(3)).to_json()


def test_a_data_module_without_a_loader_is_refused() -> None:
    for call in (lambda d: ZeroShotSelector().rank([Classifier], d), lambda d: ZeroShotSearch(Bits()).run(d)):
        with pytest.raises(TypeError, match=r"training data is None: expected a DataLoader.*`train_dataloader`"):
            call(NoLoader())


@pytest.mark.parametrize("name", ["train_dataloader", "data", "batches"])
def test_data_by_another_name_is_refused_with_the_right_one(name: str) -> None:
    for call in (
        lambda data: ZeroShotSelector().rank([Classifier], **data),
        lambda data: ZeroShotSelector().fit([Classifier], **data),
        lambda data: ZeroShotSearch(Bits()).run(**data),
    ):
        with pytest.raises(TypeError, match=f"has no argument `{name}`: as for `Trainer.fit`, pass a DataLoader"):
            call({name: LOADER})


def test_results_exist_after_the_call_that_makes_them() -> None:
    for owner, name, said in (
        (ZeroShotSelector(), "leaderboard_", "`rank` and `fit`"),
        (ZeroShotSelector(), "cards_", "`rank` and `fit`"),
        (ZeroShotSelector(), "best_model_", "`rank` and `fit`"),
        (ZeroShotSearch(Bits()), "result_", "`run`"),
    ):
        assert not hasattr(owner, name)
        with pytest.raises(AttributeError, match=f"has no attribute '{name}' yet: it is set by {said}"):
            getattr(owner, name)
        with pytest.raises(AttributeError, match="has no attribute 'leaderbord_'"):
            owner.leaderbord_  # noqa: B018


@pytest.mark.parametrize(
    ("given", "accelerator", "name"),
    [
        (64, None, "64-true"),
        ("64", "cpu", "64-true"),
        (32, None, "32-true"),
        ("32", "cpu", "32-true"),
        ("bf16", None, "bf16-mixed"),
        (16, None, "bf16-mixed"),
        ("16", "cpu", "bf16-mixed"),
        (16, "auto", None if torch.cuda.is_available() else "bf16-mixed"),
        ("bf16-true", None, "bf16-true"),
        (None, None, None),
    ],
)
# lightning: it says that it takes bf16 for 16 on a CPU, and that the short names are discouraged
@pytest.mark.filterwarnings("ignore:You passed `Trainer", "ignore:.*is supported for historical reasons")
def test_short_precisions_are_those_of_a_trainer(given: Any, accelerator: Any, name: Any) -> None:
    if accelerator == "auto" and name is None:
        pytest.skip("a GPU computes in float16")
    check_placement(accelerator, "auto", given, channels_last=False)
    assert placement_of(accelerator, "auto", given, channels_last=False).precision == name
    trainer = Trainer(accelerator="cpu", precision=given, logger=False, enable_checkpointing=False)
    assert trainer.precision == (name or "32-true")
    ranked = ZeroShotSelector(proxies="zico", precision=given, accelerator=accelerator).rank(
        [Classifier], make_batches()
    )
    assert ranked.provenance["precision"] == name
    assert ranked.errors == {}
    searched = ZeroShotSearch(Bits(), num_trials=1, num_classes=3, proxies="params", precision=given).run(
        bits_batches()
    )
    if accelerator is None:
        assert searched.provenance["precision"] == name


def test_short_precisions_on_a_gpu_are_those_of_a_trainer() -> None:
    check_placement("gpu", "auto", 16, channels_last=False)
    with pytest.raises(ValueError, match="only on GPUs"):
        check_placement("cpu", "auto", "16-mixed", channels_last=False)  # in full it means what it says


def test_a_budget_takes_text_in_every_entrance() -> None:
    budget = Budget(params="1k")
    board = ZeroShotSelector(proxies="params", budget=budget).rank(
        [lambda: Classifier(4), lambda: Classifier(99)], LOADER
    )
    assert len(board.errors) == 1
    found = ZeroShotSearch(Bits(), Budget(params="0.2k"), "params", num_trials=5, num_classes=3).run(bits_batches())
    assert all(row["cost_params"] <= 200 for row in found)


def quiet_trainer(**arguments: Any) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "max_epochs": 2}
    return Trainer(accelerator="cpu", enable_model_summary=False, **{**quiet, **arguments})


CANDIDATES = {
    "data": (LOADER, "Invalid candidates: a DataLoader, which is data; .*Pass candidates first, then the data"),
    "data module": (Data(), "Invalid candidates: a Data, which is data;"),
    "batches": (make_batches(), "Invalid candidate: a tuple; .*It looks like a batch: pass candidates first"),
    "class": (Classifier, "Invalid candidates: the class Classifier; .*Put a single one in a list"),
    "module": (make_network(), "Invalid candidates: one Sequential; .*Put a single one in a list"),
    "function": (lambda: [Classifier], "Invalid candidates: the function <lambda>; .*Call it"),
    "nothing": (None, "Invalid candidates: None; expected a mapping of names to candidates"),
    "text": ("resnet18", "Invalid candidates: 'resnet18'; expected"),
    "texts": (["resnet18"], "Invalid candidate: 'resnet18'; expected a module, a class or function"),
    "pairs": ([("a", Classifier)], r"Invalid candidate: a tuple; .*Pass names .* as a mapping: `dict\(pairs\)`"),
    "lists": ([[Classifier]], "Invalid candidate: a list; expected"),
    "one wrong": ([lambda: pytest.fail("built"), 3], "Invalid candidate: 3; expected"),
    "wrong in a mapping": ({"a": lambda: pytest.fail("built"), "b": None}, "Invalid candidate: a NoneType; expected"),
    "one name": ([Candidate("a", Classifier), Candidate("a", Classifier)], "Two candidates are named 'a'"),
    "empty list": ([], "`candidates` is empty: expected at least one candidate.$"),
    "used generator": (iter(()), "`candidates` is empty: .*A generator can be read only once"),
}


@pytest.mark.parametrize("kind", CANDIDATES)
def test_what_are_not_candidates_is_refused_before_any_is_built(kind: str) -> None:
    candidates, said = CANDIDATES[kind]
    for call in (
        lambda: ZeroShotSelector(proxies="zico").rank(candidates, LOADER),
        lambda: ZeroShotSelector(quiet_trainer(), "zico").fit(candidates, LOADER),
    ):
        with pytest.raises(ValueError, match=said) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_candidates_that_are_made_when_their_turn_comes_are_not_looked_at_before() -> None:
    class Lazy(Sequence[Any]):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, idx: int) -> Any:
            if idx >= 2:
                raise IndexError
            built.append(idx)
            return Classifier(3 + idx)

    built: list[int] = []
    assert len(ZeroShotSelector(proxies="params").rank(Lazy(), LOADER)) == 2
    assert built == [0, 1]


@pytest.mark.parametrize(
    ("trainer", "said"),
    [
        ({"max_epochs": 0}, "`trainer` ends after `max_epochs=0`, so it would train nothing"),
        ({"max_steps": 0}, "`trainer` ends after `max_steps=0`, so it would train nothing"),
        ({"limit_train_batches": 0}, "`trainer` has `limit_train_batches=0`, so it would train nothing"),
    ],
)
def test_a_trainer_that_would_train_nothing_is_refused_before_the_ranking(trainer: dict[str, Any], said: str) -> None:
    selector = ZeroShotSelector(quiet_trainer(**trainer), "zico")
    with pytest.raises(ValueError, match=said):
        selector.fit([lambda: pytest.fail("built")], LOADER)


# lightning: what it says of loaders without workers, of few batches, and of how little is logged
@pytest.mark.filterwarnings("ignore:::lightning.pytorch")
def test_a_trainer_that_is_done_is_refused_and_one_that_is_not_trains() -> None:
    trainer = quiet_trainer(max_epochs=1)
    selector = ZeroShotSelector(trainer, "zico").fit([Classifier], LOADER)
    with pytest.raises(ValueError, match="has already trained 1 epochs and ends after `max_epochs=1`"):
        selector.fit([lambda: pytest.fail("built")], LOADER)
    trainer.fit_loop.max_epochs = 2
    selector.fit([Classifier], LOADER)
    assert trainer.current_epoch == 2
    ZeroShotSelector(quiet_trainer(fast_dev_run=True), "zico").fit([Classifier], LOADER)


@pytest.mark.parametrize(
    ("datamodule", "validation", "said"),
    [
        (LOADER, "val", "Invalid val_dataloaders: 'val'; expected"),
        (LOADER, DataLoader, "Invalid val_dataloaders=DataLoader: it is a class"),
        (LOADER, IMAGES, "Invalid val_dataloaders: a single Tensor"),
        (LOADER, [IMAGES, LABELS], "Invalid val_dataloaders: a list of Tensor .* looks like one batch"),
        (LOADER, Data(), "Invalid val_dataloaders: a LightningDataModule"),
        (Data(), LOADER, "Invalid val_dataloaders: the Data has its own `val_dataloader`"),
        (LOADER, [Classifier], "Invalid val_dataloaders: a list that contains a candidate, Classifier"),
    ],
)
def test_wrong_validation_data_is_refused_before_the_ranking(datamodule: Any, validation: Any, said: str) -> None:
    selector = ZeroShotSelector(quiet_trainer(), "zico")
    with pytest.raises(TypeError, match=said):
        selector.fit([lambda: pytest.fail("built")], datamodule, validation)


class Validated(Classifier):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]), batch_size=len(batch[1]))


@pytest.mark.filterwarnings("ignore:::lightning.pytorch")
def test_a_list_of_batches_is_data_to_validate_on() -> None:
    batches = make_batches(3)
    trainers = [quiet_trainer(), quiet_trainer()]
    for trainer, validation in zip(trainers, (batches, DataLoader(batches, None)), strict=True):
        ZeroShotSelector(trainer, "zico").fit({"a": Validated}, batches, validation)
    given, loaded = (trainer.callback_metrics["val_loss"] for trainer in trainers)
    assert given == loaded


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: ProcessExecutor(num_workers=1.5), r"Invalid num_workers=1\.5: expected a whole number"),
        (lambda: ProcessExecutor(num_workers="2"), "Invalid num_workers='2'"),
        (lambda: ProcessExecutor(timeout_s="1m"), "Invalid timeout_s='1m': expected a positive number"),
        (lambda: ProcessExecutor(memory_bytes="4G"), "Invalid memory_bytes='4G': expected a positive number"),
        (lambda: get_space(3), "Invalid name=3: expected the name of a space"),
        (
            lambda: get_space("nas_bench_201").candidates("x"),
            "Invalid n='x': expected a whole number from 0 to the 15,625 archs",
        ),
        (lambda: register_proxy(ZiCo), r"Invalid name=<class .*ZiCo'>: expected a string, as in `@register_proxy\('my"),
        (lambda: from_zoo(3, num_classes=3), "Invalid spec 3: expected a string"),
        (lambda: match_names("model", [["a"]], ["a"]), r"Invalid name \['a'\]: expected names or patterns one by one"),
        (lambda: Zoo((), max_params="1M"), "Invalid max_params='1M': expected a positive number"),
        (lambda: Prior("known.csv"), "Invalid prior='known.csv': expected a mapping .*, or the path"),
        (lambda: DigitsDataModule(0), "Invalid batch_size=0: expected a whole number of at least 1"),
        (lambda: ImageFolderDataModule("a", image_size="big"), "Invalid image_size='big': expected a whole number"),
        (lambda: ImageFolderDataModule("a", num_workers=-1), "Invalid num_workers=-1: expected a whole number of at l"),
        (lambda: Leaderboard(()).log(None), r"Invalid logger=None: .*`Trainer\(logger=False\)` has none"),
    ],
)
def test_every_entrance_refuses_the_wrong_kind(call: Callable[[], Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["build", "params", "macs", "depth", "blocks", "neighbours"])
def test_the_text_of_an_arch_is_refused_where_it_is_not_the_arch(method: str) -> None:
    space = get_space("nas_bench_201")
    arch = space.sample(random.Random(0))
    with pytest.raises(TypeError, match=r"expected an arch, not its string. Pass `space\.parse\(\.\.\.\)` of it"):
        getattr(space, method)(str(arch))
    getattr(space, method)(arch)
    of_texts = Bits()
    getattr(of_texts, method)(of_texts.sample(random.Random(0)))


@pytest.mark.parametrize("number", [np.int64(5), np.float32(2.5), np.float64(2.5)])
def test_numbers_of_numpy_are_taken_where_numbers_are_and_stored_as_numbers_of_python(number: Any) -> None:
    executor = ProcessExecutor(timeout_s=number)
    rules = FinalsRules(finalists=2, time_budget_s=number)
    for stored in (executor.timeout_s, rules.time_budget_s, Budget(params=number).params):
        assert type(stored) in (int, float)
        assert stored == number


def test_integers_of_numpy_are_taken_where_integers_are_and_stored_as_ints() -> None:
    five = np.int64(5)
    evolution = Evolution(population_size=five)
    stored = [
        ZeroShotSelector(num_samples=five, chunk_size=five).num_samples,
        ZiCoCallback(num_samples=five).num_samples,
        Candidate("a", make_network, num_samples=five).num_samples,
        evolution.population_size,
        DigitsDataModule(five).batch_size,
        KNN(five).num_neighbors,
        check_num_classes(five),
        *(size_of((five, five)) or ()),
        *(size_of(five) or ()),
    ]
    assert [(value, type(value)) for value in stored] == [(5, int)] * len(stored)
    assert json.dumps(asdict(evolution))
    assert len(list(get_space("nas_bench_201").candidates(five, num_classes=3))) == 5
    assert regret_at_k([1.0, 2.0, 3.0], [1.0, 3.0, 2.0], k=np.int64(2)) == 0.0


@pytest.mark.parametrize("wrong", [True, np.True_, "5", 0, np.int64(0), np.float64("nan"), torch.tensor(5)])
def test_what_is_no_positive_number_is_refused(wrong: Any) -> None:
    for call in (lambda: positive("timeout_s", wrong), lambda: check_count("batch_size", wrong)):
        with pytest.raises(InvalidArgumentError, match="Invalid"):
            call()
    with pytest.raises(ValueError, match="Invalid chunk_size="):
        ZeroShotSelector(chunk_size=wrong)
