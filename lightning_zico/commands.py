"""The commands of the command line, as typed functions: `cli` makes options of their parameters, help of their words.

What is asked for goes to standard output, what is said besides to standard error.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from functools import partial
from importlib import import_module
from operator import index
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal, cast

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from rich import markup
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn
from torch.utils.data import Subset

from lightning_zico.bridge import training_loader
from lightning_zico.budget import Budget
from lightning_zico.candidates import Candidate, Candidates, check_candidates, iterate_candidates
from lightning_zico.datamodules import TORCHVISION_DATASETS, ImageFolderDataModule, TorchvisionDataModule
from lightning_zico.demos import DigitsDataModule
from lightning_zico.finals import Mode
from lightning_zico.proxies import Prior, Proxy, list_proxies, resolve_proxies
from lightning_zico.ranking import Recipe, get_recipe, list_recipes
from lightning_zico.report import leaderboard_table, write_html
from lightning_zico.results import Leaderboard, ScoreCard, SearchResult
from lightning_zico.scoring import ProcessExecutor, RayExecutor
from lightning_zico.scoring.placement import AcceleratorName, Devices, PrecisionLike
from lightning_zico.scoring.repeats import read_repeats
from lightning_zico.scoring.work import Executor
from lightning_zico.search import Evolution, ZeroShotSearch
from lightning_zico.selector import ZeroShotSelector
from lightning_zico.texts import printable
from lightning_zico.zoo import ZOO_PROXIES, Zoo, ZooModel, from_zoo
from lightning_zico.zoo.base import ImageModel

# Networks for photographs halve the sides of an image five times; smaller images would be gone before the end.
_LEAST_SIDE = 32
_WIDEST = 1000  # characters of a line in a file
# What a shell calls the end of who wrote to a reader that had gone: 128 and the number of SIGPIPE.
NO_READER = 141
_Axis = Literal["batch", "sample"]


class ZooSpec(str):
    """A model of a zoo, by its text: with a colon, which no class path has.

    Raises:
        ValueError: If there is no colon.

    Example:
        >>> ZooSpec("timm:resnet18")
        'timm:resnet18'
    """

    __slots__ = ()

    def __new__(cls, text: str) -> "ZooSpec":
        """Check and make one."""
        if not isinstance(text, str) or ":" not in text:
            raise ValueError(f"{text!r} is no model of a zoo; needed is one such as timm:resnet18.")
        return super().__new__(cls, text)


def rank(
    data: LightningDataModule | str,
    zoo: str | list[str] | None = None,
    candidates: str | None = None,
    budget: Budget = Budget(),  # noqa: B008  # frozen
    proxies: str | list[str] | None = None,
    rank_by: str | None = None,
    controlled_by: str | None = None,
    prior: str | None = None,
    prior_column: str | None = None,
    prior_lower_is_better: bool = False,
    num_batches: int = 2,
    axis: _Axis = "batch",
    num_samples: int | None = None,
    seed: int = 0,
    repeats: int = 1,
    race: bool = False,
    cache: str | None = None,
    executor: Literal["serial", "processes", "ray"] = "serial",
    num_workers: int | None = None,
    timeout_s: float | None = None,
    accelerator: AcceleratorName | None = None,
    devices: Devices = "auto",
    precision: PrecisionLike | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    input_size: int | None = None,
    vocab_size: int | None = None,
    trainer: Trainer | None = None,
    finalists: int = 1,
    final_epochs: int = 1,
    monitor: str = "val_loss",
    mode: Mode = "min",
    output: str = "zico-results",
) -> str | None:
    """Rank candidates on a few batches; with a trainer, also train the winner.

    Prints the table and writes leaderboard.json, leaderboard.csv and leaderboard.html. Ctrl-C keeps what is done.

    Args:
        data: A folder with one folder of images a class, the class path of a LightningDataModule, or a name: digits,
            cifar10, cifar100, mnist, fashion_mnist, kmnist, svhn or stl10. Its options follow as --data.batch_size 64.
        zoo: Models that others have written: timm:resnet18,mobilenetv3* or torchvision:*, several with commas.
        candidates: Import path of a mapping or an iterable of candidates, or of a function that makes one.
        budget: Limits on cost.
        proxies: Names of proxies and recipes, with commas. None: the default recipe; for a zoo, the number of
            parameters and the default recipe.
        rank_by: Name of the proxy or recipe to rank by; the first of them if None.
        controlled_by: Name of a baseline to take out of the ranks, in a column of its own.
        prior: File of comma-separated values with what is known of candidates, by their names in its first column.
        prior_column: Which of its columns has the numbers; None if there is one alone.
        prior_lower_is_better: Of these numbers, the lower are the better ones.
        num_batches: Batches that every candidate is scored on.
        axis: What varies between two gradients.
        num_samples: Samples of a batch; None to read them from the batch.
        seed: Of batches, weights and training.
        repeats: How often every candidate is scored, to know how sure its rank is.
        race: Give repeats to those alone who may still win.
        cache: File in which scores are kept, so that none is computed twice.
        executor: Where candidates are scored.
        num_workers: Processes of the executor "processes"; one a core if None. --n_jobs 2 is short for both.
        timeout_s: Seconds after which the executor "processes" or "ray" ends a candidate.
        accelerator: What candidates are scored on, as a trainer takes it; None for where they are built, the CPU.
        devices: As a trainer takes them.
        precision: In which they are scored, as a trainer takes it. None: as they are built.
        num_classes: That models of a zoo are to tell apart. None: as many as the data has.
        in_chans: Channels that models of a zoo are to take. None: as many as the images have.
        input_size: Side of the images that models of a zoo are to take, to which images are resized. None: as they
            are, and at least 32.
        vocab_size: How many tokens models of a zoo for text are to know. None: as many as the data module says with
            an attribute of that name, or else as each model has it.
        trainer: Trains the winner; its options follow as --trainer.max_epochs 10.
        finalists: How many of the first the trainer trains for a while, to choose the winner among them.
        final_epochs: Epochs that a finalist is trained for.
        monitor: Logged metric that decides the finals.
        mode: Which end of the metric is the better one.
        output: Folder for what is written; also -o.

    Returns:
        What `--zoo` has to be for finals among the first, where they should be held and were not.
    """
    if (zoo is None) == (candidates is None):
        raise ValueError(
            "Needed is `--zoo`, such as --zoo 'timm:resnet*', or `--candidates my_pkg.my_candidates`"
            f"{'' if zoo is None else ', and not both'}."
        )
    if prior is None and (prior_column is not None or prior_lower_is_better):
        raise ValueError("`--prior_column` and `--prior_lower_is_better` need the file itself: add --prior known.csv.")
    if finalists > 1 and trainer is None:
        raise ValueError("`--finalists` needs a trainer to train them: add --trainer.max_epochs 10.")
    given = {"num_classes": num_classes, "in_chans": in_chans, "input_size": input_size, "vocab_size": vocab_size}
    datamodule = _asked_for(datamodule_of(data), num_batches)
    offered: Candidates = ()
    if candidates is not None:
        _refuse(given)
        offered = _offered(candidates)
    if zoo is not None:
        options = _fitted(datamodule, _specs(zoo), given, num_batches, repeats, seed=seed)
        offered = from_zoo(*_specs(zoo), **options, resize=True, max_params=budget.limits.get("params"))
    selector = ZeroShotSelector(
        trainer,
        _names(proxies) or (ZOO_PROXIES if zoo else "default"),
        rank_by=rank_by,
        controlled_by=controlled_by,
        prior=prior and Prior.from_csv(prior, prior_column, higher_is_better=not prior_lower_is_better),
        num_batches=num_batches,
        axis=axis,
        num_samples=num_samples,
        budget=budget,
        repeats=repeats,
        race=race,
        seed=seed,
        cache=cache,
        executor=_executor(executor, num_workers, timeout_s),
        accelerator=accelerator,
        devices=devices,
        precision=precision,
        finalists=finalists,
        final_epochs=final_epochs,
        monitor=monitor,
        mode=mode,
    )
    _make_folder(output)
    try:
        (selector.rank if trainer is None else selector.fit)(offered, datamodule)
    except BaseException as ended:
        _write_ranking(selector, offered, Path(output))
        # Other processes of a strategy, with which saving is in step, are gone by then.
        is_kept = trainer is not None and trainer.world_size == 1 and trainer.global_step and is_interrupted(ended)
        if trainer is not None and is_kept and selector.best_model_ is not None:
            _write_winner(trainer, selector.leaderboard_, Path(output))
        _print_ranking(selector)
        raise
    _write_ranking(selector, offered, Path(output))
    if trainer is not None and selector.best_model_ is not None:
        _write_winner(trainer, selector.leaderboard_, Path(output))
    if not Console().is_terminal:  # where the selector has shown it
        _print_ranking(selector)
    if selector.best_model_ is None:
        name, reason = next(iter(selector.leaderboard_.errors.items()))
        raise RuntimeError(f"All {len(selector.leaderboard_)} candidates failed; '{name}' with: {reason}")
    return _spec_of(selector.leaderboard_.first_of_a_zoo, offered) if zoo is not None and trainer is None else None


def score(
    model: ZooSpec | Callable[[], LightningModule] | str,
    data: LightningDataModule | str,
    proxies: str | list[str] = "zico",
    num_batches: int = 2,
    axis: _Axis = "batch",
    num_samples: int | None = None,
    seed: int = 0,
    layers: bool = False,
    num_classes: int | None = None,
    in_chans: int | None = None,
    input_size: int | None = None,
    vocab_size: int | None = None,
) -> None:
    """Print the score card of one model.

    Args:
        model: The class path of a LightningModule, whose options follow as --model.width 64; or a model of a zoo, such
            as timm:resnet18. It may stand first, without --model.
        data: As for rank.
        proxies: Names of proxies, with commas; of a recipe, its members. The baselines are always computed.
        num_batches: Batches that it is scored on.
        axis: What varies between two gradients.
        num_samples: As for rank.
        seed: Of batches and weights.
        layers: Print also what each layer added to a score.
        num_classes: As for rank.
        in_chans: As for rank.
        input_size: As for rank.
        vocab_size: As for rank.
    """
    given = {"num_classes": num_classes, "in_chans": in_chans, "input_size": input_size, "vocab_size": vocab_size}
    datamodule = _asked_for(datamodule_of(data), num_batches)
    if isinstance(model, str):
        check_model(model)
        options = _fitted(datamodule, _specs(model), given, num_batches, seed=seed)
        candidates = list(from_zoo(*_specs(model), **options, resize=True))
        if len(candidates) != 1:
            raise ValueError(f"`--model` is {model!r}, which is {len(candidates)} models; needed is one.")
    else:
        _refuse(given)
        function = getattr(model, "args", [model])[-1]  # jsonargparse hands over a partial of its own
        candidates = [Candidate(getattr(function, "__name__", "model"), model)]
    selector = ZeroShotSelector(
        None,
        _names(proxies),
        num_batches=num_batches,
        axis=axis,
        num_samples=num_samples,
        seed=seed,
        enable_progress_bar=False,
    )
    selector.rank(candidates, datamodule)
    card = selector.cards_[candidates[0].name]
    if card.error is not None:
        raise RuntimeError(f"'{card.name}' cannot be scored: {card.error}")
    _print(_card_table(card))
    for part in card.scores.values() if layers else ():
        if part.layers:
            rows = [(name, f"{value:.6g}") for name, value in part.layers.items()]
            _print(_table(f"{part.name}, layer by layer", {"layer": "left", "added": "right"}, rows))


def search(
    data: LightningDataModule | str,
    space: str,
    budget: Budget = Budget(),  # noqa: B008  # frozen
    proxies: str | list[str] = "default",
    rank_by: str | None = None,
    against: str | list[str] | None = None,
    num_trials: int = 1000,
    sampler: Evolution | Literal["evolution", "random"] = "evolution",
    storage: str | None = None,
    name: str | None = None,
    resolution: int | None = None,
    num_classes: int | None = None,
    num_batches: int = 2,
    axis: _Axis = "batch",
    seed: int = 0,
    cache: str | None = None,
    executor: Literal["serial", "processes", "ray"] = "serial",
    num_workers: int | None = None,
    timeout_s: float | None = None,
    accelerator: AcceleratorName | None = None,
    devices: Devices = "auto",
    precision: PrecisionLike | None = None,
    output: str = "zico-results",
) -> None:
    """Search a space of architectures within a budget.

    Prints the best and writes search.json, search.csv and search.html. Ctrl-C keeps what is done, and with --storage
    the same command goes on there.

    Args:
        data: As for rank.
        space: Name of the space, such as nas_bench_201 or plainnet.
        budget: Limits on cost; what is over them by its own costs is rejected before anything is built.
        proxies: Names of proxies and recipes, with commas.
        rank_by: Name of the proxy or recipe that decides; the first of them if None.
        against: Costs to keep low besides, of macs, params, depth and latency_s, with commas.
        num_trials: Architectures to score in all.
        sampler: What proposes them; evolution has settings, such as --sampler.population_size 512.
        storage: File in which trials are kept, or address of a database; several processes may share it.
        name: Of the study in the storage. None: one that tells by its settings.
        resolution: Side of the images for which MACs are counted. None: of those that architectures are scored on.
        num_classes: That networks are to tell apart. None: as many as the data has.
        num_batches: Batches that every architecture is scored on.
        axis: What varies between two gradients.
        seed: Of batches, weights and architectures.
        cache: File in which scores are kept, so that none is computed twice.
        executor: Where architectures are scored.
        num_workers: Processes of the executor "processes"; one a core if None. --n_jobs 2 is short for both.
        timeout_s: Seconds after which the executor "processes" or "ray" ends one.
        accelerator: As for rank.
        devices: As for rank.
        precision: As for rank.
        output: Folder for what is written; also -o.
    """
    datamodule = _asked_for(datamodule_of(data), num_batches)
    if num_classes is None:
        _, num_classes, by = _seen(datamodule, "--num_classes", num_batches, seed=seed)
        _say(f"Networks tell {num_classes} classes apart, as {by}. Others: --num_classes.")
    searching = ZeroShotSearch(
        space,
        budget,
        _names(proxies),
        rank_by=rank_by,
        against=_names(against) or (),
        num_trials=num_trials,
        sampler=sampler,
        storage=storage,
        name=name,
        resolution=resolution,
        num_classes=num_classes,
        num_batches=num_batches,
        axis=axis,
        seed=seed,
        cache=cache,
        executor=_executor(executor, num_workers, timeout_s),
        accelerator=accelerator,
        devices=devices,
        precision=precision,
    )
    _make_folder(output)
    result: SearchResult | None = None
    try:
        searching.run(datamodule)
    finally:
        result = getattr(searching, "result_", None)
        if result is not None and len(result):
            _write(result, Path(output, "search"))
            _print(result)
    if result is not None and result.best is None:
        raise RuntimeError(f"No arch has a score. {result.notes[-1]}")


def proxies(pattern: str = "*") -> None:
    """List the proxies and the recipes, what they are, and what speaks for them.

    Args:
        pattern: Of the names, such as "az*".
    """
    described = [resolve_proxies(name)[0] for name in list_proxies(pattern)]
    rows = [
        (
            name,
            "higher" if proxy.higher_is_better else "lower",
            "yes" if proxy.needs_labels else "no",
            _first_sentence(proxy),
        )
        for name, proxy in zip(list_proxies(pattern), described, strict=True)
    ]
    columns = {"proxy": "left", "better": "left", "labels": "left", "what it is": "left"}
    _print(_table("Proxies", columns, rows))
    recipes = [get_recipe(name) for name in list_recipes(pattern)]
    cells = [(_marked(recipe), ", ".join(recipe.members), _evidence(recipe)) for recipe in recipes]
    title = "Recipes, and Kendall's tau with the accuracy after training"
    _print(_table(title, {"recipe": "left", "members": "left", "evidence": "left"}, cells))


def report(results: str, output: str | None = None) -> None:
    """Write the page or the table of a ranking or a search again, from its JSON; print it if nothing is to be written.

    Args:
        results: Path of the JSON, such as zico-results/leaderboard.json or zico-results/search.json.
        output: Path of what to write, which ends in .html or .csv; also -o.
    """
    if output is not None and Path(output).suffix not in (".html", ".csv"):
        raise ValueError(f"`--output` is {output!r}; needed is a path that ends in .html or .csv.")
    read = _read(Path(results))
    if output is None:
        _print(leaderboard_table(read) if isinstance(read, Leaderboard) else read)
        return
    try:
        (read.to_csv if output.endswith(".csv") else partial(write_html, read))(output)
    except OSError as error:
        raise ValueError(f"`--output` is {output!r}, which cannot be written: {error.strerror}.") from error
    _say(f"Written: {output}")


def _read(path: Path) -> Leaderboard | SearchResult:
    """Read what `rank` or `search` wrote.

    Raises:
        ValueError: If it is neither.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return SearchResult.from_dict(data) if "history" in data else Leaderboard.from_dict(data)
    except OSError as error:
        raise ValueError(f"'{path}' cannot be read: {error.strerror}. Needed is the JSON that `rank` wrote.") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"'{path}' is neither a leaderboard nor a search; needed is a JSON file as `rank` or `search` writes it."
        ) from error


def datamodule_of(data: LightningDataModule | str) -> LightningDataModule:
    """Make a data module of what the user gives.

    Raises:
        ValueError: If it is none, and neither a folder nor a known name.
    """
    if isinstance(data, LightningDataModule):
        return data
    short = short_data(data)
    if short is not None:
        kind, options = short
        return kind(**options)
    if "." in data and "/" not in data:
        _imported(data, "data")  # says what is missing
    raise ValueError(no_data(data))


def _asked_for(datamodule: LightningDataModule, num_batches: int) -> LightningDataModule:
    """Tell a folder of images how many batches it must have, at the least."""
    if isinstance(datamodule, ImageFolderDataModule):
        datamodule.min_batches = max(datamodule.min_batches, num_batches)
    return datamodule


def check_model(model: str) -> None:
    """Refuse a text that is no model of a zoo; a class path that can be imported is a text no longer.

    Raises:
        ValueError: If it has no colon.
    """
    if ":" not in model:
        _imported(model, "model")  # says what is missing
        raise ValueError(
            f"`--model` is {model!r}; needed is the class path of a LightningModule, or a model of a zoo, such as "
            "timm:resnet18."
        )


def no_data(given: str) -> str:
    """Say what `--data` takes to who gave something else."""
    return (
        f"`--data` is {given!r}; needed is a folder of images, the class path of a LightningDataModule, or one of "
        f"digits, {', '.join(TORCHVISION_DATASETS)}."
    )


def short_data(data: str) -> tuple[type[LightningDataModule], dict[str, str]] | None:
    """Find the data module that a known name or a folder stands for, and its options; None if it is neither.

    Example:
        >>> short_data("mnist")
        (<class 'lightning_zico.datamodules.TorchvisionDataModule'>, {'dataset': 'mnist'})
    """
    if data == "digits":
        return DigitsDataModule, {}
    if data in TORCHVISION_DATASETS:
        return TorchvisionDataModule, {"dataset": data}
    return (ImageFolderDataModule, {"root": data}) if data and Path(data).is_dir() else None


def _refuse(given: Mapping[str, int | None]) -> None:
    """Refuse what models of a zoo have to know, where there are none.

    Raises:
        ValueError: If any of it is given.
    """
    option = next((key for key, value in given.items() if value is not None), None)
    if option is not None:
        raise ValueError(
            f"`--{option}` is {given[option]}, which models of a zoo take; here your code builds them. Leave it out."
        )


def _fitted(
    datamodule: LightningDataModule,
    specs: Sequence[str],
    given: Mapping[str, int | None],
    num_batches: int,
    repeats: int = 1,
    *,
    seed: int,
) -> dict[str, int]:
    """Complete what models of a zoo have to know of the data, by what `_seen` sees, and say what was found there.

    Raises:
        ValueError: If a vocabulary is given, and models are for images; or if batches are not what the models are for,
            so that they do not say.
    """
    known = {key: value for key, value in given.items() if value is not None}
    models = from_zoo(*specs, num_classes=2).models  # of which kind they are; none is built
    for_images = next((model for model in models if isinstance(model, ImageModel)), None)
    if for_images is None:
        of_images = [key for key in ("in_chans", "input_size") if key in known]
        if of_images:
            raise ValueError(
                f"`--{of_images[0]}` is {known[of_images[0]]}, which models for images take; '{models[0].zoo}:"
                f"{models[0].name}' is for text. Leave it out."
            )
        return _fitted_to_texts(datamodule, known, num_batches, repeats, seed=seed)
    if "vocab_size" in known:
        raise ValueError(
            f"`--vocab_size` is {known['vocab_size']}, which models for text take; "
            f"'{for_images.zoo}:{for_images.name}' is for images. Leave it out, or name models for text alone, such as "
            "transformers:bert-*."
        )
    needed = [key for key in given if key not in known and key != "vocab_size"]
    if not needed:
        return known
    options = ", ".join(f"--{key}" for key in needed)
    hint = f"{options}; or if they are texts, models for text alone: '{for_images.zoo}:{for_images.name}' is for images"
    images, classes, by = _seen(datamodule, hint, num_batches, repeats, seed=seed)
    found = {
        "num_classes": classes,
        "in_chans": images.shape[1],
        "input_size": max(*images.shape[2:], _LEAST_SIDE),
    }
    fitted = {**found, **known}
    shape = " x ".join(map(str, images.shape[1:]))
    _say(
        f"Models are built for {fitted['num_classes']} classes (as {'you said' if 'num_classes' in known else by}) and "
        f"for {fitted['in_chans']} x {fitted['input_size']} x {fitted['input_size']}; images are {shape}. Others: "
        "--num_classes, --in_chans, --input_size."
    )
    return fitted


def _fitted_to_texts(
    datamodule: LightningDataModule, known: Mapping[str, int], num_batches: int, repeats: int, *, seed: int
) -> dict[str, int]:
    """Complete what models for text have to know.

    Raises:
        ValueError: If a batch is not texts with labels.
    """
    needed = [key for key in ("num_classes", "vocab_size") if key not in known]
    if not needed:
        return dict(known)
    options = ", ".join(f"--{key}" for key in needed)
    _, classes, by = _seen(datamodule, options, num_batches, repeats, seed=seed, take=_texts_and_labels)
    fitted = {"num_classes": classes, **known}
    if "vocab_size" not in known and (told := getattr(datamodule, "vocab_size", None)) is not None:  # set up by now
        fitted["vocab_size"] = _vocabulary(told)
    by = "you said" if "num_classes" in known else by
    knows = "you said" if "vocab_size" in known else "the data module says"
    tokens = f"{fitted['vocab_size']:,} tokens (as {knows})" if "vocab_size" in fitted else "their own vocabularies"
    _say(
        f"Models are built for {fitted['num_classes']} classes (as {by}) and for {tokens}. Others: --num_classes, "
        "--vocab_size."
    )
    return fitted


def _vocabulary(told: Any) -> int:
    """Take a data module's word for how many tokens there are.

    Raises:
        ValueError: If it is no whole number from 1.
    """
    size = index(told) if hasattr(told, "__index__") and not isinstance(told, bool) else 0
    if size < 1:
        raise ValueError(
            f"`vocab_size` of the data module is {told!r}; needed is a whole number from 1. Mend it, or pass "
            "--vocab_size."
        )
    return size


def _images_and_labels(batch: Any, needed: str) -> tuple[Tensor, Tensor]:
    """Take a batch apart.

    Raises:
        ValueError: If it is not images with labels that are whole numbers.
    """
    images, labels = batch if isinstance(batch, list | tuple) and len(batch) == 2 else (None, None)
    if not isinstance(images, Tensor) or images.ndim != 4 or not isinstance(labels, Tensor):
        raise ValueError(f"A batch of the data is not images [N, C, H, W] with labels, so that needed are {needed}.")
    return images, _whole(labels, "an image")


def _texts_and_labels(batch: Any, needed: str) -> tuple[Any, Tensor]:
    """Take a batch apart as `SequenceClassifier` does.

    Raises:
        ValueError: If it has no labels that are whole numbers.
    """
    is_pair = isinstance(batch, list | tuple) and len(batch) == 2
    labels = batch.get("labels") if isinstance(batch, Mapping) else batch[1] if is_pair else None
    tokens = batch[0] if is_pair else None
    is_text = not is_pair or (isinstance(tokens, Tensor) and tokens.ndim == 2 and not tokens.is_floating_point())
    if not isinstance(labels, Tensor) or not is_text:
        raise ValueError(
            "A batch of the data is neither a mapping with `labels` nor a pair of tokens [N, T] and labels, so that "
            f"needed is {needed}; or if they are images, models for images."
        )
    return batch, _whole(labels, "a text")


def _whole(labels: Tensor, each: str) -> Tensor:
    """Give labels back.

    Raises:
        ValueError: If they are not whole numbers ``[N]``.
    """
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        shape = f"{str(labels.dtype).removeprefix('torch.')} of shape {list(labels.shape)}"
        raise ValueError(
            f"The labels of a batch are {shape}; needed is one whole number {each}, [N], which is its class. Give "
            "labels as such, or candidates of your own with `--candidates`."
        )
    return labels


def _seen(
    datamodule: LightningDataModule,
    needed: str,
    num_batches: int,
    repeats: int = 1,
    *,
    seed: int,
    take: Callable[[Any, str], tuple[Any, Tensor]] = _images_and_labels,
) -> tuple[Any, int, str]:
    """Look at the batches to score on: the first one's inputs, how many classes there are, and who says so.

    The data module is asked for ``num_classes``, then its training dataset for ``classes``; where neither says, the
    highest label counts.

    Args:
        datamodule: That gives the batches.
        needed: Options that would say what batches do not, for the error message.
        num_batches: In a repeat.
        repeats: Of the ranking.
        seed: Of the batches.
        take: Takes a batch apart.

    Raises:
        ValueError: If a batch is not what it is taken for.
    """
    told = getattr(datamodule, "num_classes", None)
    # At least one, since the selector is yet to refuse what is less.
    num_batches, repeats = (1, 1) if isinstance(told, int) else (max(1, num_batches), max(1, repeats))
    batches = [batch for own in read_repeats(datamodule, num_batches, repeats, seed=seed) for batch in own]
    pairs = [take(batch, needed) for batch in batches]
    inputs = pairs[0][0]
    if isinstance(told, int):
        return inputs, told, "the data module says"
    with training_loader(datamodule, seed=seed) as loader:
        listed = _classes_of(getattr(loader, "dataset", None))
    if listed is not None:
        return inputs, listed, "the training dataset says"
    highest = max(int(labels.max()) for _, labels in pairs)
    if highest < 0:
        raise ValueError(f"The highest label of the batches is {highest}; needed are classes from 0, or --num_classes.")
    return inputs, highest + 1, "the batches have"


def _classes_of(dataset: Any) -> int | None:
    """Count the classes that a dataset lists, as torchvision's do; of a subset, those of the whole."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    listed = getattr(dataset, "classes", None) or getattr(dataset, "class_to_idx", None)
    return len(listed) if isinstance(listed, Sized) else None


def _specs(zoo: str | list[str]) -> list[str]:
    """Take specs of zoos apart: a part with a colon begins a new one.

    Example:
        >>> _specs("timm:resnet*,lcnet*, torchvision:vgg*")
        ['timm:resnet*,lcnet*', 'torchvision:vgg*']
    """
    specs: list[str] = []
    for part in (zoo if isinstance(zoo, str) else ",".join(zoo)).split(","):
        part = part.strip()
        if ":" in part or not specs:
            specs.append(part)
        else:
            specs[-1] += f",{part}"
    return specs


def _spec_of(names: Sequence[str], offered: Candidates) -> str | None:
    """Write candidates of zoos as one spec; None if there are none."""
    models = {candidate.name: candidate.build for candidate in iterate_candidates(offered)}
    by_zoo: dict[str, list[str]] = {}
    for name in names:
        model = cast(ZooModel, models[name])
        by_zoo.setdefault(model.zoo, []).append(model.name)
    return ",".join(f"{zoo}:{','.join(members)}" for zoo, members in by_zoo.items()) or None


def _names(names: str | list[str] | None) -> Any:
    """Take names with commas apart; one alone stays one, so that "default" and "all" keep their meaning."""
    if isinstance(names, str):
        names = [name.strip() for name in names.split(",")]
    return names[0] if names is not None and len(names) == 1 else names


def _offered(path: str) -> Candidates:
    """Import candidates.

    Raises:
        ValueError: If there is no such object, or it is one model.
    """
    found = _imported(path)
    if isinstance(found, nn.Module) or (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ValueError(
            f"`--candidates` is {path!r}, which is one model; needed is the import path of a mapping or an iterable of "
            f"models or factories, or of a function that makes one. A model alone: `lightning-zico score {path}`."
        )
    if isinstance(found, type) or not callable(found) or isinstance(found, Iterable):
        return check_candidates(found)
    try:
        return check_candidates(found())
    except SystemExit as ended:
        if is_interrupted(ended):
            raise
        raise ValueError(
            f"`--candidates` is {path!r}, which ends the program instead of giving candidates; needed is the import "
            "path of a mapping or an iterable of models or factories, or of a function that makes one."
        ) from ended


def _imported(path: str, option: str = "candidates") -> Any:
    """Import an object by its path, for an option.

    Raises:
        ValueError: If there is no such object, or its module cannot be imported.
    """
    if not re.fullmatch(r"\w+(\.\w+)*[.:]\w+", path):
        raise ValueError(f"`--{option}` is {path!r}; needed is an import path, such as my_pkg.my_{option}.")
    try:
        return imported_object(path)
    except (Exception, SystemExit) as error:
        why = error if isinstance(error, ImportError | AttributeError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"`--{option}` is {path!r}, which cannot be imported: {why}.") from error


def imported_object(path: str) -> Any:
    """Import an object by its path."""
    module, _, name = path.replace(":", ".").rpartition(".")
    return getattr(import_module(module), name)


def _executor(name: str, num_workers: int | None, timeout_s: float | None) -> Executor | None:
    if name == "processes":
        return ProcessExecutor(num_workers, timeout_s)
    if num_workers is not None:
        raise ValueError("`--num_workers` needs `--executor processes`.")
    if name == "ray":
        return RayExecutor(timeout_s=timeout_s)
    if timeout_s is not None:
        raise ValueError("`--timeout_s` needs `--executor processes` or `--executor ray`.")
    return None


def is_interrupted(ended: BaseException) -> bool:
    """Tell whether Ctrl-C was the reason; a trainer makes a SystemExit of it."""
    return isinstance(ended, KeyboardInterrupt) or (
        isinstance(ended, SystemExit) and isinstance(ended.__context__, KeyboardInterrupt)
    )


def _make_folder(output: str) -> None:
    """Make the folder for results, before anything is computed for it.

    Raises:
        ValueError: If it cannot be made, or not be written to.
    """
    try:
        Path(output).mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise ValueError(
            f"`--output` is {output!r}, which cannot be written to: {error.strerror}. Needed is a folder, there or new."
        ) from error


def _write_ranking(selector: ZeroShotSelector, offered: Any, folder: Path) -> None:
    """Write what there is of a ranking."""
    leaderboard: Leaderboard | None = getattr(selector, "leaderboard_", None)
    if leaderboard is None:
        return
    if isinstance(offered, Zoo) and not leaderboard.provenance["broke_off"]:
        num_left_out = len(offered.names) - len(leaderboard)
        if num_left_out:
            _say(f"{num_left_out} models with more than {offered.max_params:,.0f} parameters were left out.")
    _write(leaderboard, folder / "leaderboard")


def _print_ranking(selector: ZeroShotSelector) -> None:
    """Print what there is of a ranking."""
    leaderboard: Leaderboard | None = getattr(selector, "leaderboard_", None)
    if leaderboard is not None:
        _print(leaderboard_table(leaderboard))


def _write_winner(trainer: Trainer, leaderboard: Leaderboard, folder: Path) -> None:
    """Save the winner as far as it was trained, and say so."""
    trainer.save_checkpoint(folder / "winner.ckpt")
    _say(f"Written: {folder / 'winner.ckpt'}, {leaderboard.best} after {trainer.current_epoch} epochs.")


def _write(results: Leaderboard | SearchResult, path: Path) -> None:
    """Write results in each form, and say so."""
    results.to_json(path.with_suffix(".json"))
    results.to_csv(path.with_suffix(".csv"))
    try:
        write_html(results, path.with_suffix(".html"))
    except ModuleNotFoundError as error:
        _say(f"Written: {path}.json, .csv. There is no page: {error}")
    else:
        _say(f"Written: {path}.json, .csv, .html")


def _card_table(card: ScoreCard) -> Table:
    rows = [
        (
            name,
            "-" if part.value is None else f"{part.value:,.6g}",
            f"{part.seconds:.2f}",
            part.error or "",
        )
        for name, part in card.scores.items()
    ]
    columns = {"proxy": "left", "value": "right", "seconds": "right", "why there is none": "left"}
    return _table(card.name, columns, rows)


def _first_sentence(proxy: Proxy) -> str:
    text = " ".join((type(proxy).__doc__ or "").split("\n\n")[0].split())
    return re.sub(r",? ?:math:`[^`]*`", "", text).replace("`", "")


def _marked(recipe: Recipe) -> str:
    return f"{recipe.name} (default)" if recipe == get_recipe("default") else recipe.name


def _evidence(recipe: Recipe) -> str:
    taus = ", ".join(f"{name} {tau:.2f}" for name, tau in recipe.evidence.taus.items())
    return f"{taus}. {recipe.evidence.remark}" if taus else recipe.evidence.remark


def _table(title: str, columns: Mapping[str, Any], rows: Iterable[tuple[str, ...]]) -> Table:
    shown = markup.escape(printable(title))
    table = Table(title=shown, title_justify="left", box=None, padding=(0, 2, 0, 0), header_style="bold")
    for idx, (name, justify) in enumerate(columns.items()):
        table.add_column(name, justify=justify, no_wrap=idx == 0)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def _print(shown: Table | SearchResult) -> None:
    """Print a table, into a file or a pipe as wide as it is, or a search.

    Raises:
        SystemExit: If who read it has gone.
    """
    console = Console()
    try:
        if isinstance(shown, SearchResult):
            console.out(shown, highlight=False)
            return
        if not console.is_terminal:
            console.width = max(console.width, Console(width=_WIDEST).measure(shown).maximum)
        console.print(shown)
    except (BrokenPipeError, SystemExit):  # rich makes a SystemExit of it, from 13.8 on
        raise SystemExit(NO_READER) from None


def _say(text: str) -> None:
    print(printable(text), file=sys.stderr, flush=True)
