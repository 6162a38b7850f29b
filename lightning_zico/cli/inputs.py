"""What a command is given: data, candidates, models of a zoo, names and files."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

from lightning.pytorch import LightningDataModule
from torch import nn

from lightning_zico.candidates import Candidates, check_candidates, iterate_candidates
from lightning_zico.cli.program import is_interrupted
from lightning_zico.cli.specs import import_option
from lightning_zico.datamodules import TORCHVISION_DATASETS, ImageFolderDataModule, TorchvisionDataModule
from lightning_zico.demos import DigitsDataModule
from lightning_zico.proxies import Prior
from lightning_zico.results import Leaderboard, SearchResult
from lightning_zico.scoring import ProcessExecutor, RayExecutor
from lightning_zico.scoring.executors.base import Executor
from lightning_zico.zoo import ZooModel

ExecutorLike: TypeAlias = Literal["serial", "processes", "ray"] | Executor


@dataclass(frozen=True)
class RunOptions:
    """What `rank` and `search` read, where they score, and where they write.

    Args:
        data: A folder with one subfolder of images per class, the class path of a LightningDataModule, or a name:
            digits, cifar10, cifar100, mnist, fashion_mnist, kmnist, svhn or stl10. Its options follow as
            --data.batch_size 64.
        executor: Where candidates are scored: serial, processes, ray, or a class path, whose options follow as
            --executor.num_gpus 1. --n_jobs 2 stands for --executor processes --num_workers 2.
        output: Folder for the results; also -o.
    """

    data: LightningDataModule | str
    executor: ExecutorLike = "serial"
    output: str = "zico-results"


def read_result(path: Path) -> Leaderboard | SearchResult:
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
        import_option(data, "data")  # raises an error that says what is missing
    raise ValueError(no_data(data))


def with_enough_batches(datamodule: LightningDataModule, num_batches: int) -> LightningDataModule:
    """Set the least number of batches that a folder of images must have."""
    if isinstance(datamodule, ImageFolderDataModule):
        datamodule.min_batches = max(datamodule.min_batches, num_batches)
    return datamodule


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


def zoo_spec(names: Sequence[str], offered: Candidates) -> str | None:
    """Write candidates of zoos as one value of `--zoo`; None if there are none."""
    models = {candidate.name: candidate.build for candidate in iterate_candidates(offered)}
    by_zoo: dict[str, list[str]] = {}
    for name in names:
        model = cast(ZooModel, models[name])
        by_zoo.setdefault(model.zoo, []).append(model.name)
    return ",".join(f"{zoo}:{','.join(members)}" for zoo, members in by_zoo.items()) or None


def finals_options(zoo: str, output: str) -> dict[str, str]:
    """Return the options of a run of finals: its results go beside those of the ranking, which stay as they are.

    Example:
        >>> finals_options("timm:resnet18,resnet34", "results/")
        {'--zoo': 'timm:resnet18,resnet34', '--finalists': '2', '--output': 'results-finals'}
    """
    return {"--zoo": zoo, "--finalists": str(len(zoo.split(","))), "--output": f"{Path(output)}-finals"}


def import_candidates(path: str) -> Candidates:
    """Import candidates.

    Raises:
        ValueError: If there is no such object, or it is a single model.
    """
    found = import_option(path)
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


@dataclass(frozen=True)
class ZooOptions:
    """What models of a zoo are built for; None for what the data shows.

    Args:
        num_classes: Number of classes for models of a zoo. None: as many as the data has.
        in_chans: Number of input channels for models of a zoo. None: as many as the images have.
        input_size: Side of the input images for models of a zoo; images are resized to it. None: the size of the
            images, but at least 32.
        vocab_size: Vocabulary size for text models of a zoo. None: the data module's attribute of that name if there is
            one, otherwise each model's own.
        pretrained: Load published weights for models of a zoo, as in --zoo 'timm:resnet50.*' --pretrained.
        exclude: Patterns of models of a zoo to leave out, separated by commas, as in --exclude '*_large,vgg*'.
    """

    num_classes: int | None = None
    in_chans: int | None = None
    input_size: int | None = None
    vocab_size: int | None = None
    pretrained: bool = False
    exclude: str | list[str] | None = None


def refuse_zoo_options(given: Mapping[str, Any]) -> None:
    """Check that no option for models of a zoo is given, when there are none.

    Raises:
        ValueError: If one is given.
    """
    option = next((key for key, value in given.items() if value not in (None, False)), None)
    if option is not None:
        way = ", and set `Candidate(..., pretrained=True)` in your code" if option == "pretrained" else ""
        raise ValueError(
            f"Unexpected --{option}={given[option]}: it is only for models of a zoo, but your code builds these "
            f"models. Leave it out{way}."
        )


def read_prior(
    prior: str | None = None, prior_column: str | None = None, prior_lower_is_better: bool = False
) -> Prior | None:
    """Read known numbers of candidates.

    Args:
        prior: File in CSV format with known numbers of candidates; the first column holds their names.
        prior_column: Column of the file with the numbers; may be omitted if there is only one.
        prior_lower_is_better: Lower values in that column are better.

    Raises:
        ValueError: If there is no file, but an option for it.
    """
    if prior is not None:
        return Prior.from_csv(prior, prior_column, higher_is_better=not prior_lower_is_better)
    if prior_column is not None or prior_lower_is_better:
        raise ValueError("`--prior_column` and `--prior_lower_is_better` need a file: add --prior known.csv.")
    return None


def make_executor(executor: ExecutorLike, limits: Mapping[str, Any]) -> Executor | None:
    """Return the executor to use; None for this process.

    Args:
        executor: The value of `--executor`.
        limits: Keyword arguments of `ProcessExecutor`; None for those that are not given.

    Raises:
        ValueError: If an option is given that the executor does not have.
    """
    given = {name: value for name, value in limits.items() if value is not None}
    if executor == "processes":
        return ProcessExecutor(**given)
    own = next((name for name in given if name != "timeout_s"), None)
    if own is not None:
        raise ValueError(f"`--{own}` needs `--executor processes`.")
    if executor == "ray":
        return RayExecutor(**given)
    if given:
        raise ValueError("`--timeout_s` needs `--executor processes` or `--executor ray`.")
    return None if executor == "serial" else executor
