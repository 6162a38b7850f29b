"""Published accuracies of pretrained checkpoints; the README beside this file has their source, date and licence."""

import csv
import gzip
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType

from lightning_zico.proxies.prior import best_of_tags

# Source and date of the table, for notes.
TIMM_SOURCE = "top-1 accuracy on ImageNet-1k as timm published it, read in November 2026"


@cache
def timm_accuracies() -> Mapping[str, float]:
    """Return the published top-1 accuracies of timm's checkpoints on ImageNet-1k.

    Returns:
        Accuracy in percent by name, such as ``resnet50.a1_in1k``. A checkpoint that was evaluated at two image sizes
        has the higher accuracy.

    Example:
        >>> timm_accuracies()["resnet50.a1_in1k"]
        81.24
    """
    found: dict[str, float] = {}
    table = gzip.decompress(files(__name__).joinpath("timm.csv.gz").read_bytes()).decode()
    for row in csv.DictReader(table.splitlines()):
        name = f"{row['arch']}.{row['tag']}"
        found[name] = max(float(row["top1"]), found.get(name, 0.0))
    return MappingProxyType(found)


@cache
def timm_architectures() -> Mapping[str, float]:
    """Return the accuracy of the best checkpoint of each architecture, by names without a tag.

    Example:
        >>> timm_architectures()["resnet50"] >= timm_accuracies()["resnet50.a1_in1k"]
        True
    """
    return MappingProxyType(best_of_tags(timm_accuracies()))
