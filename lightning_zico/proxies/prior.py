"""prior: a number that is known of the candidate beforehand, such as its published accuracy."""

import csv
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_zico.engine.probe import Probe
from lightning_zico.errors import InvalidArgumentError, NotApplicableError
from lightning_zico.proxies.base import Proxy
from lightning_zico.texts import as_written

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


class Prior(Proxy):
    """What is known of a candidate by its name, such as the accuracy that others published of the same architecture.

    Across families of models that is often the best hint there is, as it knows the recipes of training, which no proxy
    sees.

    Args:
        values: By name. A candidate without a value of its own gets the best of those whose name is its name, a dot and
            a tag, as timm names its checkpoints: ``resnet50`` that of ``resnet50.a1_in1k``. Where neither is known
            of ``timm:resnet50``, as candidates of several zoos are called, it gets what is known of ``resnet50``.
            Without these, "not applicable".
        higher_is_better: Direction.
        name: Of the column.

    Raises:
        ValueError: If there is no value, or one is not finite.

    Example:
        >>> Prior({"resnet50.a1_in1k": 80.2, "resnet50.tv_in1k": 76.1}).of("resnet50")
        80.2
    """

    needs_labels = False
    reads_name = True

    def __init__(self, values: Mapping[str, float], *, higher_is_better: bool = True, name: str = "prior") -> None:
        if not isinstance(values, Mapping):
            raise InvalidArgumentError(
                f"`{name}` is {values!r}; needed are numbers by name, or the path of a file of comma-separated values "
                "(`Prior.from_csv`)."
            )
        if not values:
            raise ValueError(f"`{name}` has no values; needed is a number for each candidate that is known, by name.")
        for key, number in values.items():
            if not _is_finite(number):
                raise InvalidArgumentError(
                    f"`{name}` of '{key}' is {number!r}; needed is a finite number. Leave out what is not known."
                )
        self.values = {key: float(value) for key, value in values.items()}
        self.higher_is_better = higher_is_better  # type: ignore[misc]  # of each object
        self.name = name
        best = max if higher_is_better else min
        self._of_untagged: dict[str, float] = {}
        for key, value in self.values.items():
            untagged = key.split(".")[0]
            self._of_untagged[untagged] = best(value, self._of_untagged.get(untagged, value))

    @classmethod
    def from_csv(
        cls, path: str | Path, column: str | None = None, *, higher_is_better: bool = True, name: str = "prior"
    ) -> "Prior":
        """Read the numbers from a file of comma-separated values with a header.

        Args:
            path: Of the file; its first column has the names, as in timm's ``results-imagenet.csv``.
            column: That has the numbers; None if there are two columns alone.
            higher_is_better: Direction.
            name: Of the column of the leaderboard.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the column is not there, or holds something else than finite numbers.
            InvalidArgumentError: If the file holds no comma-separated values.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"`{name}` is '{path}'; needed is a file of comma-separated values that is there.")
        with Path(path).open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            try:
                names, *columns = map(as_written, next(reader, [""]))
                rows = [(reader.line_num, dict(zip([names, *columns], row, strict=False))) for row in reader if row]
            except csv.Error as error:
                raise InvalidArgumentError(
                    f"'{path}' cannot be read as comma-separated values from line {reader.line_num} on: {error}. "
                    "Needed are a header and one line for each candidate."
                ) from error
        if column is None and len(columns) == 1:
            (column,) = columns
        if column not in columns:
            said = "no column is named" if column is None else f"there is no {column!r}"
            raise ValueError(
                f"'{path}' has the columns {', '.join([names, *columns])}, and {said}. Name one: "
                "`Prior.from_csv(path, column=...)`, or on the command line `--prior_column`."
            )
        values: dict[str, float] = {}
        for line, row in rows:
            text = row.get(column, "")
            if not _is_finite(text):
                raise ValueError(
                    f"'{path}' has in line {line} {text!r} as `{column}` of '{row[names]}', no finite number. Leave "
                    "the line out if it is not known."
                )
            value = float(text)
            best = max if higher_is_better else min
            known = as_written(row[names])  # of a leaderboard's own file, too
            values[known] = best(value, values.get(known, value))  # the same at several resolutions
        return cls(values, higher_is_better=higher_is_better, name=name)

    def of(self, candidate: str) -> float | None:
        """Give what is known of a candidate; None if nothing is."""
        without_zoo = candidate.partition(":")[2]
        known = [of.get(name) for name in (candidate, without_zoo) for of in (self.values, self._of_untagged)]
        return next((value for value in known if value is not None), None)

    def measure(self, probe: Probe) -> float:
        """Look the candidate up."""
        value = self.of(probe.name)
        if value is None:
            raise NotApplicableError(f"nothing is known beforehand of '{probe.name}'.")
        return value


def _is_finite(value: Any) -> bool:
    """Whether a value, or a text as tables have it, is a number: Python also reads ``6_3``, and digits of others."""
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()) is None:
        return False
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def prior_of(given: Prior | Mapping[str, float] | str | Path) -> Prior:
    """Turn what a user gives into a prior: values by name, or the path of a file with two columns."""
    if isinstance(given, Prior):
        return given
    return Prior.from_csv(given) if isinstance(given, str | Path) else Prior(given)
