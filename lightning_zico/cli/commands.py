"""The commands of the command line, as typed functions: `cli` turns parameters into options and docstrings into help.

Results go to standard output, messages to standard error.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Literal

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from rich.console import Console

from lightning_zico.budget import Budget
from lightning_zico.candidates import Candidate, Candidates
from lightning_zico.cli.inputs import (
    ZooSpec,
    check_model,
    datamodule_of,
    executor_of,
    import_candidates,
    read_result,
    refuse_zoo_options,
    split_names,
    split_specs,
    with_enough_batches,
    zoo_spec,
)
from lightning_zico.cli.output import (
    card_table,
    evidence_of,
    first_sentence,
    make_folder,
    plain_table,
    print_ranking,
    print_result,
    recipe_name,
    say,
    write_ranking,
    write_result,
    write_winner,
)
from lightning_zico.cli.program import is_interrupted
from lightning_zico.finals import Mode
from lightning_zico.proxies import Prior, list_proxies, resolve_proxies
from lightning_zico.ranking import get_recipe, list_recipes
from lightning_zico.report import leaderboard_table, write_html
from lightning_zico.results import Leaderboard, SearchResult
from lightning_zico.scoring.placement import AcceleratorName, Devices, PrecisionLike
from lightning_zico.search import Evolution, ZeroShotSearch
from lightning_zico.selector import ZeroShotSelector
from lightning_zico.zoo import ZOO_PROXIES, Zoo, fit_zoo, from_zoo
from lightning_zico.zoo.fitting import look_at

_Axis = Literal["batch", "sample"]


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
    datamodule = with_enough_batches(datamodule_of(data), num_batches)
    offered: Candidates = ()
    if candidates is not None:
        refuse_zoo_options(given)
        offered = import_candidates(candidates)
    if zoo is not None:
        batches = {"num_batches": num_batches, "repeats": repeats, "seed": seed}
        offered = _fit_zoo(zoo, datamodule, given, **batches, max_params=budget.limits.get("params"))
    selector = ZeroShotSelector(
        trainer,
        split_names(proxies) or (ZOO_PROXIES if zoo else "default"),
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
        executor=executor_of(executor, num_workers, timeout_s),
        accelerator=accelerator,
        devices=devices,
        precision=precision,
        finalists=finalists,
        final_epochs=final_epochs,
        monitor=monitor,
        mode=mode,
    )
    make_folder(output)
    try:
        (selector.rank if trainer is None else selector.fit)(offered, datamodule)
    except BaseException as ended:
        write_ranking(selector, offered, Path(output))
        # Saving is a joint operation of all processes of a strategy, and the others are gone by then.
        is_kept = trainer is not None and trainer.world_size == 1 and trainer.global_step and is_interrupted(ended)
        if trainer is not None and is_kept and selector.best_model_ is not None:
            write_winner(trainer, selector.leaderboard_, Path(output))
        print_ranking(selector)
        raise
    write_ranking(selector, offered, Path(output))
    if trainer is not None and selector.best_model_ is not None:
        write_winner(trainer, selector.leaderboard_, Path(output))
    if not Console().is_terminal:  # in a terminal, the selector has shown it
        print_ranking(selector)
    if selector.best_model_ is None:
        name, reason = next(iter(selector.leaderboard_.errors.items()))
        raise RuntimeError(f"All {len(selector.leaderboard_)} candidates failed. '{name}' failed with: {reason}")
    return zoo_spec(selector.leaderboard_.first_of_a_zoo, offered) if zoo is not None and trainer is None else None


def _fit_zoo(
    zoo: str | list[str],
    datamodule: LightningDataModule,
    given: Mapping[str, int | None],
    *,
    num_batches: int,
    repeats: int = 1,
    seed: int,
    max_params: float | None = None,
) -> Zoo:
    """List models of zoos, built for the data, and print what was found there."""
    specs = split_specs(zoo)
    models = from_zoo(*specs, num_classes=2).models  # only to see their kind; none is built
    fitting = fit_zoo(models, datamodule, given, num_batches=num_batches, repeats=repeats, seed=seed, prefix="--")
    if fitting.sentence is not None:
        say(fitting.sentence)
    return from_zoo(*specs, **fitting.options, resize=True, max_params=max_params)


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
    datamodule = with_enough_batches(datamodule_of(data), num_batches)
    if isinstance(model, str):
        check_model(model)
        candidates = list(_fit_zoo(model, datamodule, given, num_batches=num_batches, seed=seed))
        if len(candidates) != 1:
            raise ValueError(f"Invalid --model={model}: it names {len(candidates)} models. Pass exactly one.")
    else:
        refuse_zoo_options(given)
        function = getattr(model, "args", [model])[-1]  # jsonargparse passes a partial of its own
        candidates = [Candidate(getattr(function, "__name__", "model"), model)]
    selector = ZeroShotSelector(
        None,
        split_names(proxies),
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
    print_result(card_table(card))
    for part in card.scores.values() if layers else ():
        if part.layers:
            rows = [(name, f"{value:.6g}") for name, value in part.layers.items()]
            print_result(plain_table(f"{part.name}, layer by layer", {"layer": "left", "added": "right"}, rows))


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
    datamodule = with_enough_batches(datamodule_of(data), num_batches)
    if num_classes is None:
        classes = look_at(datamodule, "--num_classes", num_batches=num_batches, seed=seed, prefix="--").classes
        num_classes = classes.num
        say(f"Networks have {num_classes} classes (as {classes.source}). To change this, pass --num_classes.")
    searching = ZeroShotSearch(
        space,
        budget,
        split_names(proxies),
        rank_by=rank_by,
        against=split_names(against) or (),
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
        executor=executor_of(executor, num_workers, timeout_s),
        accelerator=accelerator,
        devices=devices,
        precision=precision,
    )
    make_folder(output)
    result: SearchResult | None = None
    try:
        searching.run(datamodule)
    finally:
        result = getattr(searching, "result_", None)
        if result is not None and len(result):
            write_result(result, Path(output, "search"))
            print_result(result)
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
            first_sentence(proxy),
        )
        for name, proxy in zip(list_proxies(pattern), described, strict=True)
    ]
    columns = {"proxy": "left", "better": "left", "labels": "left", "what it is": "left"}
    print_result(plain_table("Proxies", columns, rows))
    recipes = [get_recipe(name) for name in list_recipes(pattern)]
    cells = [(recipe_name(recipe), ", ".join(recipe.members), evidence_of(recipe)) for recipe in recipes]
    title = "Recipes, and their Kendall's tau with the accuracy after training"
    print_result(plain_table(title, {"recipe": "left", "members": "left", "evidence": "left"}, cells))


def report(results: str, output: str | None = None) -> None:
    """Write the page or the table of a ranking or a search again, from its JSON; without an output, print it.

    Args:
        results: Path of the JSON, such as zico-results/leaderboard.json or zico-results/search.json.
        output: Path of the file to write, ending in .html or .csv; also -o.
    """
    if output is not None and Path(output).suffix not in (".html", ".csv"):
        raise ValueError(f"Invalid --output={output}: expected a path that ends in .html or .csv.")
    read = read_result(Path(results))
    if output is None:
        print_result(leaderboard_table(read) if isinstance(read, Leaderboard) else read)
        return
    try:
        (read.to_csv if output.endswith(".csv") else partial(write_html, read))(output)
    except OSError as error:
        raise ValueError(f"Invalid --output={output}: it cannot be written: {error.strerror}.") from error
    say(f"Written: {output}")
