"""The commands of the command line, as typed functions: `parser` turns parameters into options, docstrings into help.

A parameter marked with `OptionsOf` stands for the options of a class, of which only what is not written here is taken.

Results go to standard output, messages to standard error.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from rich.console import Console

import lightning_zico.callbacks  # noqa: F401  # so that ZiCoCallback can be given by name
from lightning_zico.budget import Budget
from lightning_zico.candidates import Candidate, Candidates
from lightning_zico.cli.class_options import OptionsOf
from lightning_zico.cli.inputs import (
    RunOptions,
    ZooOptions,
    datamodule_of,
    finals_options,
    import_candidates,
    make_executor,
    read_prior,
    read_result,
    refuse_zoo_options,
    with_enough_batches,
    zoo_spec,
)
from lightning_zico.cli.messages import say
from lightning_zico.cli.output import (
    evidence_of,
    first_sentence,
    make_folder,
    plain_table,
    print_ranking,
    print_result,
    recipe_name,
    write_ranking,
    write_result,
    write_winner,
)
from lightning_zico.cli.program import is_interrupted, is_sigterm
from lightning_zico.cli.specs import ZooSpec, check_model, split_names, split_specs
from lightning_zico.proxies import list_proxies, resolve_proxies
from lightning_zico.ranking import get_recipe, list_recipes
from lightning_zico.results import (
    Leaderboard,
    SearchResult,
    card_table,
    leaderboard_table,
    notes_on_data,
    search_table,
)
from lightning_zico.scoring import ProcessExecutor
from lightning_zico.search import Evolution, ZeroShotSearch
from lightning_zico.selection.selector import ZeroShotSelector
from lightning_zico.texts import count
from lightning_zico.zoo import PRETRAINED_PROXIES, ZOO_PROXIES, Zoo, from_zoo
from lightning_zico.zoo.fitting import list_for_data, look_at

# Parameters that a command writes out itself, or that no text can give.
_NOT_OPTIONS = frozenset({"proxies", "budget", "loss_fn", "step", "trainer", "executor", "timeout_s", "callbacks"})
_NOT_IN_RANK = _NOT_OPTIONS | {"prior"}
_NOT_IN_SCORE = _NOT_IN_RANK | {
    *("rank_by", "controlled_by", "repeats", "race", "cache", "enable_progress_bar"),
    *("finalists", "learn", "final_epochs", "final_seeds", "reduction_factor", "least_agreement"),
    *("patience", "time_budget_s", "monitor", "mode", "finals_executor"),
}
_NOT_IN_SEARCH = _NOT_OPTIONS | {"space", "against", "sampler", "storage", "num_classes", "wrap"}


def rank(
    *,
    run: Annotated[Mapping[str, Any], OptionsOf(RunOptions)],
    zoo: str | list[str] | None = None,
    candidates: str | None = None,
    fitting: Annotated[Mapping[str, Any], OptionsOf(ZooOptions)],
    budget: Budget = Budget(),  # noqa: B008  # frozen
    proxies: str | list[str] | None = None,
    prior: Annotated[Mapping[str, Any], OptionsOf(read_prior)],
    settings: Annotated[Mapping[str, Any], OptionsOf(ZeroShotSelector, _NOT_IN_RANK)],
    limits: Annotated[Mapping[str, Any], OptionsOf(ProcessExecutor)],
    trainer: Trainer | None = None,
) -> Mapping[str, str] | None:
    """Rank candidates on a few batches; with a trainer, also train the winner.

    Prints the table and writes leaderboard.json, leaderboard.csv and leaderboard.html. After Ctrl-C, the candidates
    scored so far are written.

    Args:
        run: Data, executor and folder for the results.
        zoo: Models of a library: timm:resnet18,mobilenetv3* or torchvision:*, separated by commas.
        candidates: Import path of a mapping or an iterable of candidates, or of a function that returns one.
        fitting: What models of a zoo are built for.
        budget: Limits on cost.
        proxies: Names of proxies and recipes, separated by commas. None: the default recipe; for a zoo, the number of
            parameters and the default recipe; with --pretrained, the recipe transfer and ridge_probe.
        prior: Known numbers of candidates.
        settings: Settings of the selector.
        limits: Limits of the executor.
        trainer: Trains the winner; its options follow as --trainer.max_epochs 10.

    Returns:
        The options that differ in a run of finals among the first, if finals are advisable and were not held.
    """
    if (zoo is None) == (candidates is None):
        raise ValueError(
            f"Pass {'either' if zoo is None else 'only one of'} `--zoo`, such as --zoo 'timm:resnet*', or "
            "`--candidates`, such as --candidates my_pkg.my_candidates."
        )
    if settings["finalists"] > 1 and trainer is None:
        raise ValueError("`--finalists` needs a trainer to train them: add --trainer.max_epochs 10.")
    known = read_prior(**prior)
    datamodule = with_enough_batches(datamodule_of(run["data"]), settings["num_batches"])
    if zoo is not None:
        offered: Candidates = _fit_zoo(zoo, datamodule, fitting, settings, max_params=budget.limits.get("params"))
    else:
        refuse_zoo_options(fitting)
        offered = import_candidates(str(candidates))
    selector = ZeroShotSelector(
        trainer,
        split_names(proxies) or (_zoo_proxies(offered) if isinstance(offered, Zoo) else "default"),
        prior=known,
        budget=budget,
        executor=make_executor(run["executor"], limits),
        **settings,
    )
    make_folder(run["output"])
    _rank(selector, offered, datamodule, Path(run["output"]))
    first = zoo_spec(selector.leaderboard_.first_of_a_zoo, offered) if zoo is not None and trainer is None else None
    return None if first is None else finals_options(first, run["output"])


def _rank(selector: ZeroShotSelector, offered: Candidates, datamodule: LightningDataModule, folder: Path) -> None:
    """Rank, train the winner if there is a trainer, and write and print what there is, also after an interruption.

    Raises:
        RuntimeError: If all candidates failed.
    """
    trainer = selector.trainer
    try:
        (selector.rank if trainer is None else selector.fit)(offered, datamodule)
    except BaseException as ended:
        write_ranking(selector, offered, folder)
        # Saving is a joint operation of all processes of a strategy, and the others are gone by then.
        was_told_to_end = is_interrupted(ended) or is_sigterm(ended)
        is_saved = trainer is not None and trainer.world_size == 1 and trainer.global_step and was_told_to_end
        if trainer is not None and is_saved and selector.best_model_ is not None:
            write_winner(trainer, selector.leaderboard_, folder)
        print_ranking(selector)
        raise
    write_ranking(selector, offered, folder)
    if trainer is not None and selector.best_model_ is not None:
        write_winner(trainer, selector.leaderboard_, folder)
    if not (Console().is_terminal and selector.enable_progress_bar):  # then the selector has shown it
        print_ranking(selector)
    if selector.best_model_ is None:
        raise RuntimeError(selector.leaderboard_.describe_failures())


def score(
    *,
    model: ZooSpec | Callable[[], LightningModule] | str,
    run: Annotated[Mapping[str, Any], OptionsOf(RunOptions, frozenset({"executor", "output"}))],
    fitting: Annotated[Mapping[str, Any], OptionsOf(ZooOptions)],
    proxies: str | list[str] = "zico",
    settings: Annotated[Mapping[str, Any], OptionsOf(ZeroShotSelector, _NOT_IN_SCORE)],
    layers: bool = False,
) -> None:
    """Print the score card of one model.

    Args:
        model: The class path of a LightningModule, whose options follow as --model.width 64; or a model of a zoo, such
            as timm:resnet18. --model may be omitted if the model comes first.
        run: The data.
        fitting: What models of a zoo are built for.
        proxies: Names of proxies, separated by commas; a recipe stands for its members. The baselines are always
            computed.
        settings: Settings of the selector.
        layers: Also print what each layer added to a score.
    """
    datamodule = with_enough_batches(datamodule_of(run["data"]), settings["num_batches"])
    if isinstance(model, str):
        check_model(model)
        candidates = list(_fit_zoo(model, datamodule, fitting, settings))
        if len(candidates) != 1:
            raise ValueError(f"Invalid --model={model}: it names {count(len(candidates), 'model')}. Pass exactly one.")
    else:
        refuse_zoo_options(fitting)
        function = getattr(model, "args", [model])[-1]  # jsonargparse passes a partial of its own
        candidates = [Candidate(getattr(function, "__name__", "model"), model)]
    selector = ZeroShotSelector(None, split_names(proxies), enable_progress_bar=False, **settings)
    leaderboard = selector.rank(candidates, datamodule)
    card = selector.cards_[candidates[0].name]
    if card.error is not None:
        raise RuntimeError(f"'{card.name}' cannot be scored: {card.error}")
    print_result(card_table(card))
    for note in notes_on_data(leaderboard.provenance):
        say(note)
    for part in card.scores.values() if layers else ():
        if part.layers:
            rows = [(name, f"{value:.6g}") for name, value in part.layers.items()]
            print_result(plain_table(f"{part.name}, layer by layer", {"layer": "left", "added": "right"}, rows))


def _zoo_proxies(zoo: Zoo) -> tuple[str, ...]:
    return PRETRAINED_PROXIES if zoo.pretrained else ZOO_PROXIES


def _fit_zoo(
    zoo: str | list[str],
    datamodule: LightningDataModule,
    given: Mapping[str, Any],
    settings: Mapping[str, Any],
    max_params: float | None = None,
) -> Zoo:
    """List models of zoos, built for the data, and print what was found there."""
    options = {**given, "exclude": split_names(given["exclude"]) or (), "max_params": max_params}
    reading = {name: settings[name] for name in ("num_batches", "batch_size", "repeats", "seed") if name in settings}
    models, fitting = list_for_data(from_zoo, split_specs(zoo), datamodule, options, **reading, prefix="--")
    if fitting.sentence is not None:
        say(fitting.sentence)
    return models


def search(
    *,
    run: Annotated[Mapping[str, Any], OptionsOf(RunOptions)],
    space: str,
    budget: Budget = Budget(),  # noqa: B008  # frozen
    proxies: str | list[str] = "default",
    against: str | list[str] | None = None,
    sampler: Evolution | Literal["evolution", "random"] = "evolution",
    storage: str | None = None,
    num_classes: int | None = None,
    settings: Annotated[Mapping[str, Any], OptionsOf(ZeroShotSearch, _NOT_IN_SEARCH)],
    limits: Annotated[Mapping[str, Any], OptionsOf(ProcessExecutor)],
) -> None:
    """Search a space of architectures within a budget.

    Prints the best and writes search.json, search.csv and search.html. After Ctrl-C, the trials so far are written;
    with --storage, the same command resumes the search.

    Args:
        run: As for rank.
        space: Name of the space, such as nas_bench_201 or plainnet.
        budget: Limits on cost; an architecture that is known to exceed them is rejected before anything is built.
        proxies: Names of proxies and recipes, separated by commas.
        against: Costs to keep low as well: macs, params, depth or latency_s, separated by commas.
        sampler: What proposes architectures; evolution has settings, such as --sampler.population_size 512.
        storage: File for the trials, or address of a database; several processes may share it.
        num_classes: Number of classes of the networks. None: as many as the data has.
        settings: Settings of the search.
        limits: Limits of the executor.
    """
    datamodule = with_enough_batches(datamodule_of(run["data"]), settings["num_batches"])
    if num_classes is None:
        reading = {name: settings[name] for name in ("num_batches", "batch_size", "seed")}
        classes = look_at(datamodule, "--num_classes", **reading, prefix="--").classes
        num_classes = classes.num
        say(f"Networks have {count(num_classes, 'class')} (as {classes.source}). To change this, pass --num_classes.")
    searching = ZeroShotSearch(
        space,
        budget,
        split_names(proxies),
        against=split_names(against) or (),
        sampler=sampler,
        storage=storage,
        num_classes=num_classes,
        executor=make_executor(run["executor"], limits),
        **settings,
    )
    make_folder(run["output"])
    result: SearchResult | None = None
    try:
        searching.run(datamodule)
    finally:
        result = getattr(searching, "result_", None)
        if result is not None and len(result):
            write_result(result, Path(run["output"], "search"))
            print_result(search_table(result))
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
        print_result(leaderboard_table(read) if isinstance(read, Leaderboard) else search_table(read))
        return
    try:
        (read.to_csv if output.endswith(".csv") else read.to_html)(output)
    except OSError as error:
        raise ValueError(f"Invalid --output={output}: it cannot be written: {error.strerror}.") from error
    say(f"Written: {output}")
