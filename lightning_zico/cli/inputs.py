"""What a command is given: data, candidates, models of a zoo, names and files."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import LightningDataModule
from torch import nn

from lightning_zico.candidates import Candidates, check_candidates, iterate_candidates
from lightning_zico.cli.program import is_interrupted
from lightning_zico.datamodules import TORCHVISION_DATASETS, ImageFolderDataModule, TorchvisionDataModule
from lightning_zico.demos import DigitsDataModule
from lightning_zico.results import Leaderboard, SearchResult
from lightning_zico.scoring import ProcessExecutor, RayExecutor
from lightning_zico.scoring.work import Executor
from lightning_zico.zoo import ZooModel


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


def check_model(model: str) -> None:
    """Check that a text is a model of a zoo; a class path that can be imported is no longer a text here.

    Raises:
        ValueError: If it has no colon.
    """
    if ":" not in model:
        import_option(model, "model")  # raises an error that says what is missing
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


def refuse_zoo_options(given: Mapping[str, int | None]) -> None:
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


def split_specs(zoo: str | list[str]) -> list[str]:
    """Split the value of `--zoo` into specs: a part with a colon begins a new one.

    Example:
        >>> split_specs("timm:resnet*,lcnet*, torchvision:vgg*")
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


def zoo_spec(names: Sequence[str], offered: Candidates) -> str | None:
    """Write candidates of zoos as one value of `--zoo`; None if there are none."""
    models = {candidate.name: candidate.build for candidate in iterate_candidates(offered)}
    by_zoo: dict[str, list[str]] = {}
    for name in names:
        model = cast(ZooModel, models[name])
        by_zoo.setdefault(model.zoo, []).append(model.name)
    return ",".join(f"{zoo}:{','.join(members)}" for zoo, members in by_zoo.items()) or None


def split_names(names: str | list[str] | None) -> Any:
    """Split names at commas; a single name stays a text, so that "default" and "all" keep their meaning."""
    if isinstance(names, str):
        names = [name.strip() for name in names.split(",")]
    return names[0] if names is not None and len(names) == 1 else names


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


def import_option(path: str, option: str = "candidates") -> Any:
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


def executor_of(name: str, num_workers: int | None, timeout_s: float | None) -> Executor | None:
    """Return the executor of that name; None for this process.

    Raises:
        ValueError: If an option is given that the executor does not have.
    """
    if name == "processes":
        return ProcessExecutor(num_workers, timeout_s)
    if num_workers is not None:
        raise ValueError("`--num_workers` needs `--executor processes`.")
    if name == "ray":
        return RayExecutor(timeout_s=timeout_s)
    if timeout_s is not None:
        raise ValueError("`--timeout_s` needs `--executor processes` or `--executor ray`.")
    return None
