"""The commands of the command line, as typed functions: `cli` turns parameters into options and docstrings into help.

Results go to standard output, messages to standard error.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
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
from lightning_zico.results import Leaderboard, ScoreCard, SearchResult, leaderboard_table
from lightning_zico.scoring import ProcessExecutor, RayExecutor
from lightning_zico.scoring.placement import AcceleratorName, Devices, PrecisionLike
from lightning_zico.scoring.repeats import read_repeats
from lightning_zico.scoring.work import Executor
from lightning_zico.search import Evolution, ZeroShotSearch
from lightning_zico.selector import ZeroShotSelector
from lightning_zico.texts import printable
from lightning_zico.zoo import ZOO_PROXIES, Zoo, ZooModel, from_zoo
from lightning_zico.zoo.base import ImageModel

# Networks for photographs halve the sides of an image five times; smaller images would shrink to nothing.
_LEAST_SIDE = 32
_WIDEST = 1000  # characters of a line in a file
# Exit code after a broken pipe: 128 + SIGPIPE.
NO_READER = 141
_Axis = Literal["batch", "sample"]


class ZooSpec(str):
    """A model of a zoo, as a text with a colon, which no class path has.

    Raises:
        ValueError: If there is no colon.

    Example:
        >>> ZooSpec("timm:resnet18")
        'timm:resnet18'
    """

    __slots__ = ()

    def __new__(cls, text: str) -> "ZooSpec":
        """Check the text and make a spec of it."""
        if not isinstance(text, str) or ":" not in text:
            raise ValueError(f"{text!r} is not a model of a zoo: expected one such as timm:resnet18.")
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

    Prints the table and writes leaderboard.json, leaderboard.csv and leaderboard.html. After Ctrl-C, the candidates
    scored so far are kept.

    Args:
        data: A folder with one subfolder of images per class, the class path of a LightningDataModule, or a name:
            digits, cifar10, cifar100, mnist, fashion_mnist, kmnist, svhn or stl10. Its options follow as
            --data.batch_size 64.
        zoo: Models of a library: timm:resnet18,mobilenetv3* or torchvision:*, separated by commas.
        candidates: Import path of a mapping or an iterable of candidates, or of a function that returns one.
        budget: Limits on cost.
        proxies: Names of proxies and recipes, separated by commas. None: the default recipe; for a zoo, the number of
            parameters and the default recipe.
        rank_by: Name of the proxy or recipe to rank by. None: the first of the proxies.
        controlled_by: Name of a baseline whose influence is removed from the ranks, in a separate column.
        prior: File in CSV format with known numbers of candidates; the first column holds their names.
        prior_column: Column of the file with the numbers; may be omitted if there is only one.
        prior_lower_is_better: Lower values in that column are better.
        num_batches: Number of batches that every candidate is scored on.
        axis: What varies between two gradients.
        num_samples: Number of samples in a batch. None: read from the batch.
        seed: Seed of the batches, the weights and the training.
        repeats: How often every candidate is scored, to measure how certain its rank is.
        race: Repeat only candidates that can still win.
        cache: File that keeps scores, so that none is computed twice.
        executor: Where candidates are scored.
        num_workers: Number of processes of the executor "processes". None: one per core. --n_jobs 2 sets both.
        timeout_s: Seconds after which the executor "processes" or "ray" stops a candidate.
        accelerator: Accelerator for scoring, as for a Trainer. None: where candidates are built, which is the CPU.
        devices: Devices for scoring, as for a Trainer.
        precision: Precision for scoring, as for a Trainer. None: as candidates are built.
        num_classes: Number of classes for models of a zoo. None: as many as the data has.
        in_chans: Number of input channels for models of a zoo. None: as many as the images have.
        input_size: Side of the input images for models of a zoo; images are resized to it. None: the size of the
            images, but at least 32.
        vocab_size: Vocabulary size for text models of a zoo. None: the data module's attribute of that name if there is
            one, otherwise each model's own.
        trainer: Trains the winner; its options follow as --trainer.max_epochs 10.
        finalists: How many of the first candidates the trainer trains for a while to choose the winner.
        final_epochs: Epochs that a finalist is trained for.
        monitor: Logged metric that decides the finals.
        mode: Whether the lowest or the highest value of the metric wins.
        output: Folder for the results; also -o.

    Returns:
        The value of `--zoo` for finals among the first, if finals are advisable and were not held.
    """
    if (zoo is None) == (candidates is None):
        raise ValueError(
            f"Pass {'either' if zoo is None else 'only one of'} `--zoo`, such as --zoo 'timm:resnet*', or "
            "`--candidates`, such as --candidates my_pkg.my_candidates."
        )
    if prior is None and (prior_column is not None or prior_lower_is_better):
        raise ValueError("`--prior_column` and `--prior_lower_is_better` need a file: add --prior known.csv.")
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
        # Saving is a joint operation of all processes of a strategy, and the others are gone by then.
        is_kept = trainer is not None and trainer.world_size == 1 and trainer.global_step and is_interrupted(ended)
        if trainer is not None and is_kept and selector.best_model_ is not None:
            _write_winner(trainer, selector.leaderboard_, Path(output))
        _print_ranking(selector)
        raise
    _write_ranking(selector, offered, Path(output))
    if trainer is not None and selector.best_model_ is not None:
        _write_winner(trainer, selector.leaderboard_, Path(output))
    if not Console().is_terminal:  # in a terminal, the selector has shown it
        _print_ranking(selector)
    if selector.best_model_ is None:
        name, reason = next(iter(selector.leaderboard_.errors.items()))
        raise RuntimeError(f"All {len(selector.leaderboard_)} candidates failed. '{name}' failed with: {reason}")
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
            as timm:resnet18. --model may be omitted if the model comes first.
        data: As for rank.
        proxies: Names of proxies, separated by commas; a recipe stands for its members. The baselines are always
            computed.
        num_batches: Number of batches that the model is scored on.
        axis: What varies between two gradients.
        num_samples: As for rank.
        seed: Seed of the batches and the weights.
        layers: Also print what each layer added to a score.
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
            raise ValueError(f"Invalid --model={model}: it names {len(candidates)} models. Pass exactly one.")
    else:
        _refuse(given)
        function = getattr(model, "args", [model])[-1]  # jsonargparse passes a partial of its own
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

    Prints the best and writes search.json, search.csv and search.html. After Ctrl-C, the trials so far are kept; with
    --storage, the same command resumes the search.

    Args:
        data: As for rank.
        space: Name of the space, such as nas_bench_201 or plainnet.
        budget: Limits on cost; an architecture that is known to exceed them is rejected before anything is built.
        proxies: Names of proxies and recipes, separated by commas.
        rank_by: Name of the proxy or recipe that decides. None: the first of the proxies.
        against: Costs to keep low as well: macs, params, depth or latency_s, separated by commas.
        num_trials: Total number of architectures to score.
        sampler: What proposes architectures; evolution has settings, such as --sampler.population_size 512.
        storage: File that keeps the trials, or address of a database; several processes may share it.
        name: Name of the study in the storage. None: a name derived from its settings.
        resolution: Side of the images for which MACs are counted. None: that of the images used for scoring.
        num_classes: Number of classes of the networks. None: as many as the data has.
        num_batches: Number of batches that every architecture is scored on.
        axis: What varies between two gradients.
        seed: Seed of the batches, the weights and the architectures.
        cache: File that keeps scores, so that none is computed twice.
        executor: Where architectures are scored.
        num_workers: Number of processes of the executor "processes". None: one per core. --n_jobs 2 sets both.
        timeout_s: Seconds after which the executor "processes" or "ray" stops an architecture.
        accelerator: As for rank.
        devices: As for rank.
        precision: As for rank.
        output: Folder for the results; also -o.
    """
    datamodule = _asked_for(datamodule_of(data), num_batches)
    if num_classes is None:
        _, num_classes, by = _seen(datamodule, "--num_classes", num_batches, seed=seed)
        _say(f"Networks have {num_classes} classes (as {by}). To change this, pass --num_classes.")
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
    """List the proxies and the recipes, with a description and the evidence for each recipe.

    Args:
        pattern: Pattern of the names to list, such as "az*".
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
    title = "Recipes, and their Kendall's tau with the accuracy after training"
    _print(_table(title, {"recipe": "left", "members": "left", "evidence": "left"}, cells))


def report(results: str, output: str | None = None) -> None:
    """Write the page or the table of a ranking or a search again, from its JSON; without an output, print it.

    Args:
        results: Path of the JSON, such as zico-results/leaderboard.json or zico-results/search.json.
        output: Path of the file to write, ending in .html or .csv; also -o.
    """
    if output is not None and Path(output).suffix not in (".html", ".csv"):
        raise ValueError(f"Invalid --output={output}: expected a path that ends in .html or .csv.")
    read = _read(Path(results))
    if output is None:
        _print(leaderboard_table(read) if isinstance(read, Leaderboard) else read)
        return
    try:
        (read.to_csv if output.endswith(".csv") else read.to_html)(output)
    except OSError as error:
        raise ValueError(f"Invalid --output={output}: it cannot be written: {error.strerror}.") from error
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
        raise ValueError(
            f"'{path}' cannot be read: {error.strerror}. Pass a JSON file that `rank` or `search` wrote."
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"'{path}' is neither a leaderboard nor a search. Pass a JSON file that `rank` or `search` wrote."
        ) from error


def datamodule_of(data: LightningDataModule | str) -> LightningDataModule:
    """Make a data module from the value of `--data`.

    Raises:
        ValueError: If it is neither a data module nor a folder nor a known name.
    """
    if isinstance(data, LightningDataModule):
        return data
    short = short_data(data)
    if short is not None:
        kind, options = short
        return kind(**options)
    if "." in data and "/" not in data:
        _imported(data, "data")  # raises an error that says what is missing
    raise ValueError(no_data(data))


def _asked_for(datamodule: LightningDataModule, num_batches: int) -> LightningDataModule:
    """Set the least number of batches that a folder of images must have."""
    if isinstance(datamodule, ImageFolderDataModule):
        datamodule.min_batches = max(datamodule.min_batches, num_batches)
    return datamodule


def check_model(model: str) -> None:
    """Check that a text is a model of a zoo; a class path that can be imported is no longer a text here.

    Raises:
        ValueError: If it has no colon.
    """
    if ":" not in model:
        _imported(model, "model")  # raises an error that says what is missing
        raise ValueError(
            f"Invalid --model={model}: expected the class path of a LightningModule, or a model of a zoo, such as "
            "timm:resnet18."
        )


def no_data(given: str) -> str:
    """Return the error message for an unknown value of `--data`."""
    return (
        f"Invalid --data={given}: expected a folder of images, the class path of a "
        f"LightningDataModule, or one of digits, {', '.join(TORCHVISION_DATASETS)}."
    )


def short_data(data: str) -> tuple[type[LightningDataModule], dict[str, str]] | None:
    """Return the data module that a known name or a folder stands for, and its options; None if it is neither.

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
    """Check that no option for models of a zoo is given, when there are none.

    Raises:
        ValueError: If one is given.
    """
    option = next((key for key, value in given.items() if value is not None), None)
    if option is not None:
        raise ValueError(
            f"Unexpected --{option}={given[option]}: it is only for models of a zoo, but your code builds these "
            "models. Leave it out."
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
    """Complete the options for models of a zoo from the data (see `_seen`), and print what was found there.

    Raises:
        ValueError: If a vocabulary is given, but the models are for images; or if the batches do not suit the models,
            so that options cannot be read from them.
    """
    known = {key: value for key, value in given.items() if value is not None}
    models = from_zoo(*specs, num_classes=2).models  # only to see their kind; none is built
    for_images = next((model for model in models if isinstance(model, ImageModel)), None)
    if for_images is None:
        of_images = [key for key in ("in_chans", "input_size") if key in known]
        if of_images:
            raise ValueError(
                f"Unexpected --{of_images[0]}={known[of_images[0]]}: it is only for image models, but "
                f"'{models[0].zoo}:{models[0].name}' is a text model. Leave it out."
            )
        return _fitted_to_texts(datamodule, known, num_batches, repeats, seed=seed)
    if "vocab_size" in known:
        raise ValueError(
            f"Unexpected --vocab_size={known['vocab_size']}: it is only for text models, but "
            f"'{for_images.zoo}:{for_images.name}' is an image model. Leave it out, or name only text models, such as "
            "transformers:bert-*."
        )
    needed = [key for key in given if key not in known and key != "vocab_size"]
    if not needed:
        return known
    options = ", ".join(f"--{key}" for key in needed)
    hint = f"{options}; or for texts, name only text models: '{for_images.zoo}:{for_images.name}' is an image model"
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
        f"inputs of {fitted['in_chans']} x {fitted['input_size']} x {fitted['input_size']}; the images are {shape}. "
        "To change this, pass --num_classes, --in_chans or --input_size."
    )
    return fitted


def _fitted_to_texts(
    datamodule: LightningDataModule, known: Mapping[str, int], num_batches: int, repeats: int, *, seed: int
) -> dict[str, int]:
    """Complete the options for text models from the data.

    Raises:
        ValueError: If a batch does not hold texts with labels.
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
        f"Models are built for {fitted['num_classes']} classes (as {by}) and for {tokens}. To change this, pass "
        "--num_classes or --vocab_size."
    )
    return fitted


def _vocabulary(told: Any) -> int:
    """Return the vocabulary size that a data module states.

    Raises:
        ValueError: If it is not a whole number of at least 1.
    """
    size = index(told) if hasattr(told, "__index__") and not isinstance(told, bool) else 0
    if size < 1:
        raise ValueError(
            f"Invalid `vocab_size={told!r}` of the data module: expected a whole number of at least 1. Correct it, or "
            "pass --vocab_size."
        )
    return size


def _images_and_labels(batch: Any, needed: str) -> tuple[Tensor, Tensor]:
    """Split a batch into images and labels.

    Raises:
        ValueError: If it does not hold images with labels that are whole numbers.
    """
    images, labels = batch if isinstance(batch, list | tuple) and len(batch) == 2 else (None, None)
    if not isinstance(images, Tensor) or images.ndim != 4 or not isinstance(labels, Tensor):
        raise ValueError(
            f"Invalid batch: expected a pair of images [N, C, H, W] and labels. For other batches, pass {needed}."
        )
    return images, _whole(labels, "image")


def _texts_and_labels(batch: Any, needed: str) -> tuple[Any, Tensor]:
    """Split a batch into texts and labels, as `SequenceClassifier` does.

    Raises:
        ValueError: If it has no labels that are whole numbers.
    """
    is_pair = isinstance(batch, list | tuple) and len(batch) == 2
    labels = batch.get("labels") if isinstance(batch, Mapping) else batch[1] if is_pair else None
    tokens = batch[0] if is_pair else None
    is_text = not is_pair or (isinstance(tokens, Tensor) and tokens.ndim == 2 and not tokens.is_floating_point())
    if not isinstance(labels, Tensor) or not is_text:
        raise ValueError(
            "Invalid batch: expected a mapping with `labels`, or a pair of tokens [N, T] and labels. For other "
            f"batches, pass {needed}; or for images, name image models."
        )
    return batch, _whole(labels, "text")


def _whole(labels: Tensor, each: str) -> Tensor:
    """Return labels after checking them.

    Raises:
        ValueError: If they are not whole numbers ``[N]``.
    """
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        shape = f"{str(labels.dtype).removeprefix('torch.')} of shape {list(labels.shape)}"
        raise ValueError(
            f"Invalid labels in a batch: {shape}; expected one whole number per {each}, [N], its class. Convert the "
            "labels, or pass candidates of your own with `--candidates`."
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
    """Look at the batches to score on: the first one's inputs, the number of classes, and where that number is from.

    The data module's ``num_classes`` counts first, then the ``classes`` of its training dataset; if neither exists, the
    highest label counts.

    Args:
        datamodule: The data module with the batches.
        needed: Options that replace what the batches do not show, for the error message.
        num_batches: Number of batches in a repeat.
        repeats: Number of repeats of the ranking.
        seed: Seed of the batches.
        take: Splits a batch into inputs and labels.

    Raises:
        ValueError: If a batch does not have the expected form.
    """
    told = getattr(datamodule, "num_classes", None)
    # At least one, because the selector has not validated the numbers yet.
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
        raise ValueError(
            f"The highest label of the batches is {highest}: expected classes from 0. Pass --num_classes otherwise."
        )
    return inputs, highest + 1, "the batches have"


def _classes_of(dataset: Any) -> int | None:
    """Count the classes that a dataset lists, as torchvision's do; for a subset, those of the full dataset."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    listed = getattr(dataset, "classes", None) or getattr(dataset, "class_to_idx", None)
    return len(listed) if isinstance(listed, Sized) else None


def _specs(zoo: str | list[str]) -> list[str]:
    """Split the value of `--zoo` into specs: a part with a colon begins a new one.

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
    """Write candidates of zoos as one value of `--zoo`; None if there are none."""
    models = {candidate.name: candidate.build for candidate in iterate_candidates(offered)}
    by_zoo: dict[str, list[str]] = {}
    for name in names:
        model = cast(ZooModel, models[name])
        by_zoo.setdefault(model.zoo, []).append(model.name)
    return ",".join(f"{zoo}:{','.join(members)}" for zoo, members in by_zoo.items()) or None


def _names(names: str | list[str] | None) -> Any:
    """Split names at commas; a single name stays a text, so that "default" and "all" keep their meaning."""
    if isinstance(names, str):
        names = [name.strip() for name in names.split(",")]
    return names[0] if names is not None and len(names) == 1 else names


def _offered(path: str) -> Candidates:
    """Import candidates.

    Raises:
        ValueError: If there is no such object, or it is a single model.
    """
    found = _imported(path)
    if isinstance(found, nn.Module) or (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ValueError(
            f"Invalid --candidates={path}: it is a single model; expected the import path of a mapping or an iterable "
            "of models or factories, or of a function that returns one. To score a single model, run "
            f"`lightning-zico score {path}`."
        )
    if isinstance(found, type) or not callable(found) or isinstance(found, Iterable):
        return check_candidates(found)
    try:
        return check_candidates(found())
    except SystemExit as ended:
        if is_interrupted(ended):
            raise
        raise ValueError(
            f"Invalid --candidates={path}: it exits the program instead of returning candidates; expected the import "
            "path of a mapping or an iterable of models or factories, or of a function that returns one."
        ) from ended


def _imported(path: str, option: str = "candidates") -> Any:
    """Import an object by its path, for an option.

    Raises:
        ValueError: If there is no such object, or its module cannot be imported.
    """
    if not re.fullmatch(r"\w+(\.\w+)*[.:]\w+", path):
        raise ValueError(f"Invalid --{option}={path}: expected an import path, such as my_pkg.my_{option}.")
    try:
        return imported_object(path)
    except (Exception, SystemExit) as error:
        why = error if isinstance(error, ImportError | AttributeError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"Invalid --{option}={path}: it cannot be imported: {why}.") from error


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
    """Whether Ctrl-C was the reason; a trainer turns it into a SystemExit."""
    return isinstance(ended, KeyboardInterrupt) or (
        isinstance(ended, SystemExit) and isinstance(ended.__context__, KeyboardInterrupt)
    )


def _make_folder(output: str) -> None:
    """Make the folder for results before anything is computed.

    Raises:
        ValueError: If it cannot be made or written to.
    """
    try:
        Path(output).mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise ValueError(
            f"Invalid --output={output}: it cannot be written to: {error.strerror}. Pass an existing or a new folder."
        ) from error


def _write_ranking(selector: ZeroShotSelector, offered: Any, folder: Path) -> None:
    """Write a ranking, complete or not, if there is one."""
    leaderboard: Leaderboard | None = getattr(selector, "leaderboard_", None)
    if leaderboard is None:
        return
    if isinstance(offered, Zoo) and not leaderboard.provenance["broke_off"]:
        num_left_out = len(offered.names) - len(leaderboard)
        if num_left_out:
            _say(f"{num_left_out} models with more than {offered.max_params:,.0f} parameters were left out.")
    _write(leaderboard, folder / "leaderboard")


def _print_ranking(selector: ZeroShotSelector) -> None:
    """Print a ranking, complete or not, if there is one."""
    leaderboard: Leaderboard | None = getattr(selector, "leaderboard_", None)
    if leaderboard is not None:
        _print(leaderboard_table(leaderboard))


def _write_winner(trainer: Trainer, leaderboard: Leaderboard, folder: Path) -> None:
    """Save the winner as far as it was trained, and print where."""
    trainer.save_checkpoint(folder / "winner.ckpt")
    _say(f"Written: {folder / 'winner.ckpt'} ({leaderboard.best} after {trainer.current_epoch} epochs).")


def _write(results: Leaderboard | SearchResult, path: Path) -> None:
    """Write results in each format, and print where."""
    results.to_json(path.with_suffix(".json"))
    results.to_csv(path.with_suffix(".csv"))
    try:
        results.to_html(path.with_suffix(".html"))
    except ModuleNotFoundError as error:
        _say(f"Written: {path}.json, .csv. The page could not be written: {error}")
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
    columns = {"proxy": "left", "value": "right", "seconds": "right", "why it is missing": "left"}
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
    """Print a table or a search; in a file or a pipe, a table takes its full width.

    Raises:
        SystemExit: If the reader has closed the pipe.
    """
    console = Console()
    try:
        if isinstance(shown, SearchResult):
            console.out(shown, highlight=False)
            return
        if not console.is_terminal:
            console.width = max(console.width, Console(width=_WIDEST).measure(shown).maximum)
        console.print(shown)
    except (BrokenPipeError, SystemExit):  # rich turns it into a SystemExit, from 13.8 on
        raise SystemExit(NO_READER) from None


def _say(text: str) -> None:
    print(printable(text), file=sys.stderr, flush=True)
