"""prior: a number known about the candidate beforehand, such as its published accuracy."""

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
    """A number known about a candidate by its name, such as the published accuracy of the same architecture.

    Across families of models, this is often the best available hint, because it reflects the training recipes, which no
    proxy sees.

    Args:
        values: Numbers by name. A candidate without a value of its own gets the best value among the names that consist
            of its name, a dot and a tag, as timm names its checkpoints: ``resnet50`` gets the value of
            ``resnet50.a1_in1k``. If ``timm:resnet50``, as candidates of several zoos are named, has neither, it gets
            the value of ``resnet50``. Without any of these, the prior is "not applicable".
        higher_is_better: Whether higher values are better.
        name: Name of the column.
        source: Where the values come from, and from when, for a note under the leaderboard; None for no note.

    Raises:
        ValueError: If there are no values, or one is not finite.

    Example:
        >>> Prior({"resnet50.a1_in1k": 80.2, "resnet50.tv_in1k": 76.1}).of("resnet50")
        80.2
    """

    needs_labels = False
    reads_name = True

    def __init__(
        self,
        values: Mapping[str, float],
        *,
        higher_is_better: bool = True,
        name: str = "prior",
        source: str | None = None,
    ) -> None:
        if not isinstance(values, Mapping):
            raise InvalidArgumentError(
                f"Invalid {name}={values!r}: expected a mapping from names to numbers, or the path of a CSV file "
                "(`Prior.from_csv`)."
            )
        if not values:
            raise ValueError(f"`{name}` is empty: expected a number for each known candidate, by name.")
        for key, number in values.items():
            if not _is_finite(number):
                raise InvalidArgumentError(
                    f"`{name}` of '{key}' is {number!r}: expected a finite number. Leave out unknown values."
                )
        self.values: dict[str, float] = {key: float(value) for key, value in values.items()}
        self.higher_is_better = higher_is_better  # type: ignore[misc]  # per object
        self.name = name
        self.source = source
        self._of_untagged = best_of_tags(self.values, higher_is_better=higher_is_better)

    @classmethod
    def from_csv(
        cls, path: str | Path, column: str | None = None, *, higher_is_better: bool = True, name: str = "prior"
    ) -> "Prior":
        """Read the numbers from a CSV file with a header.

        Args:
            path: Path of the file. Its first column has the names, as in timm's ``results-imagenet.csv``.
            column: Column with the numbers; None if there are only two columns.
            higher_is_better: Whether higher values are better.
            name: Name of the column of the leaderboard.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the column is missing, or contains anything other than finite numbers.
            InvalidArgumentError: If the file is not a CSV file.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"Invalid {name}={str(path)!r}: expected the path of an existing CSV file.")
        with Path(path).open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            try:
                names, *columns = map(as_written, next(reader, [""]))
                rows = [(reader.line_num, dict(zip([names, *columns], row, strict=False))) for row in reader if row]
            except csv.Error as error:
                raise InvalidArgumentError(
                    f"'{path}' cannot be read as CSV from line {reader.line_num} on: {error}. Expected a header and "
                    "one line for each candidate."
                ) from error
        if column is None and len(columns) == 1:
            (column,) = columns
        if column not in columns:
            said = "`column` is not given" if column is None else f"there is no column {column!r}"
            raise ValueError(
                f"'{path}' has the columns {', '.join([names, *columns])}, and {said}. Choose one with "
                "`Prior.from_csv(path, column=...)`, or with `--prior_column` on the command line."
            )
        values: dict[str, float] = {}
        for line, row in rows:
            text = row.get(column, "")
            if not _is_finite(text):
                raise ValueError(
                    f"'{path}', line {line}: `{column}` of '{row[names]}' is {text!r}: expected a finite number. Leave "
                    "the line out if the value is not known."
                )
            value = float(text)
            best = max if higher_is_better else min
            known = as_written(row[names])  # also for the file of a leaderboard
            values[known] = best(value, values.get(known, value))  # a model can occur at several resolutions
        return cls(values, higher_is_better=higher_is_better, name=name)

    def of(self, candidate: str) -> float | None:
        """Return the value of a candidate; None if there is none."""
        without_zoo = candidate.partition(":")[2]
        names = [candidate, without_zoo] if without_zoo else [candidate]
        known = [of.get(name) for name in names for of in (self.values, self._of_untagged)]
        return next((value for value in known if value is not None), None)

    def measure(self, probe: Probe) -> float:
        """Look the candidate up."""
        value = self.of(probe.name)
        if value is None:
            raise NotApplicableError(f"the prior has no value for '{probe.name}'.")
        return value


def best_of_tags(values: Mapping[str, float], *, higher_is_better: bool = True) -> dict[str, float]:
    """Return the best value of each name without its tag, which is all from the first dot on.

    Example:
        >>> best_of_tags({"resnet50.a1_in1k": 80.2, "resnet50.tv_in1k": 76.1})
        {'resnet50': 80.2}
    """
    best = max if higher_is_better else min
    found: dict[str, float] = {}
    for name, value in values.items():
        untagged = name.partition(".")[0]
        found[untagged] = best(value, found.get(untagged, value))
    return found


class UnknownPrior(Proxy):
    """Stands for the prior in a recipe when nothing is known about any candidate: "not applicable" to all."""

    name = "prior"
    needs_labels = False
    reads_name = True

    def measure(self, probe: Probe) -> float:
        """Raise an error that says how to pass a prior."""
        raise NotApplicableError("no published accuracies are known. Pass them with `prior=`.")


def _is_finite(value: Any) -> bool:
    """Whether a value or a cell of a table is a finite number; unlike `float`, without ``6_3`` and non-ASCII digits."""
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()) is None:
        return False
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def prior_of(given: Prior | Mapping[str, float] | str | Path) -> Prior:
    """Return the prior for values by name, or for the path of a file with two columns."""
    if isinstance(given, Prior):
        return given
    return Prior.from_csv(given) if isinstance(given, str | Path) else Prior(given)
