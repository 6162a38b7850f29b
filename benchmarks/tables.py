"""Tables of accuracies after training: benchmarks of architectures, and tables of a user's own."""

import argparse
import csv
import gzip
import math
import os
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from torch import nn

from lightning_zico.ranking import kendall
from lightning_zico.spaces import NASBench101Arch, get_space
from lightning_zico.spaces.bert import HIDDEN_SIZES

FOLDER_VARIABLE = "LIGHTNING_ZICO_DATA"
DEFAULT_FOLDER = Path("../shared/data")
MAX_MILLIONS = 30.0  # parameters of a model of timm: a score of the larger ones takes minutes on a core

_FOREIGN_IMAGES = "The images are CIFAR-10's, since the table has none of the benchmark's own."


@dataclass(frozen=True)
class Row:
    """A candidate and its accuracies after training.

    Args:
        name: The name of the candidate, unique in a table.
        build: Builds the network, with ten classes; it can be sent to another process.
        truths: The accuracy or metric after training, by target; higher is better.
        blocks: Names of the network's blocks; None to find them.
        resolution: Height and width of its images, in pixels; the number of tokens of its texts.
        family: The name of the family, models of the same designers; None if there are no families.
        vocab_size: Number of different token ids, if the network is for texts; None for images.
        references: Facts of the arch to compare with scores, by name.
    """

    name: str
    build: Callable[[], nn.Module]
    truths: Mapping[str, float]
    blocks: tuple[str, ...] | None = None
    resolution: int = 32
    family: str | None = None
    vocab_size: int | None = None
    references: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """The candidates of a benchmark, each once, in the order of its file.

    Args:
        benchmark: The name of the benchmark.
        rows: The candidates.
        targets: The targets to compare scores with.
        remark: A note on the images.
        is_search_space: Whether all candidates come from one space.
    """

    benchmark: str
    rows: tuple[Row, ...]
    targets: tuple[str, ...]
    remark: str
    is_search_space: bool = True

    def asked_for(self, targets: Sequence[str]) -> "Table":
        """Select other targets than the benchmark's defaults; an empty selection keeps the defaults.

        Raises:
            ValueError: If a row has no such truth.
        """
        known = list(self.rows[0].truths)
        for target in targets:
            if target not in known:
                raise ValueError(f"{self.benchmark} has no target '{target}'; it has {', '.join(known)}.")
        return replace(self, targets=tuple(targets) or self.targets)


def add_folders(parser: argparse.ArgumentParser, *, cache: bool = True) -> None:
    """Add the options for the files that a benchmark reads and writes.

    Args:
        parser: The parser of the benchmark.
        cache: Whether the benchmark keeps scores.
    """
    here = Path(__file__).parent
    parser.add_argument("--data", type=Path, default=default_folder(), help="folder of the tables and of the images")
    if cache:
        parser.add_argument("--cache", type=Path, default=here / "cache", help="folder of the scores")
    parser.add_argument("--results", type=Path, default=here / "results", help="folder of the figures")


def figures_folder(arguments: argparse.Namespace) -> Path:
    """Return the folder for the figures. Those of a quick run are meaningless, so they go to a folder of their own."""
    folder: Path = arguments.results
    return folder / "quick" if arguments.quick else folder


def default_folder() -> Path:
    """Find the folder of the tables."""
    return Path(os.environ.get(FOLDER_VARIABLE, DEFAULT_FOLDER))


def found(path: Path, hint: str = "") -> Path:
    """Check that a file exists.

    Raises:
        FileNotFoundError: If it does not exist; the message says what to do.
    """
    if not path.is_file():
        way_out = hint or f"Pass its folder with `--data` or set ${FOLDER_VARIABLE}."
        raise FileNotFoundError(f"There is no {path.resolve()}. {way_out}")
    return path


# --- benchmarks ----------------------------------------------------------------------------------


def nas_bench_201(folder: Path) -> Table:
    """Read the 15,625 cells of NAS-Bench-201."""
    columns = {target: target for target in ("test_cifar10", "test_cifar100", "valid_cifar10")}
    rows = _rows_of_space(found(folder / "nas_bench_201.csv.gz"), "nas_bench_201", columns)
    remark = "One scoring, on CIFAR-10's images and with ten classes, serves all targets, CIFAR-100's too."
    return Table("nas-bench-201", rows, ("test_cifar10", "test_cifar100"), remark)


def nas_bench_101(folder: Path) -> Table:
    """Read 500 cells of NAS-Bench-101; those that are equal without their idle vertices are one candidate."""
    rows = [
        _row_of_space("nas_bench_101", str(cell_of(line["arch"])), {"val_accuracy": float(line["val_accuracy"])})
        for line in _lines(found(folder / "nas_bench_101_500.csv.gz"))
    ]
    remark = "Cells that are equal without their idle vertices are one candidate, with the mean of their accuracies."
    return Table("nas-bench-101", merged(rows), ("val_accuracy",), remark)


def transnas_micro(folder: Path) -> Table:
    """Read the 4,096 cells of TransNAS-Bench-101 and the published metric of each of its seven tasks."""
    path = found(folder / "transnas_bench_101_micro.csv.gz")
    # Of 32 x 32 pixels, the stem, which divides by four, and three halving stages would leave one to the last stage.
    rows = _rows_of_space(path, "transnas_micro", TRANSNAS_COLUMNS, resolution=64)
    remark = f"{_FOREIGN_IMAGES} One scoring, with ten classes, serves all seven tasks."
    return Table("transnas-micro", rows, tuple(TRANSNAS_COLUMNS), remark)


def nats_bench_size(folder: Path) -> Table:
    """Read the networks of NATS-Bench that differ in width, from the file that `convert_nats_bench.py` wrote."""
    path = folder / "nats_bench_size.csv"
    hint = f"Write it from the official files: `python benchmarks/convert_nats_bench.py FILES sss {path}`."
    columns = {target: target for target in ("test_cifar10", "test_cifar100", "test_imagenet16_120")}
    rows = _rows_of_space(found(path, hint), "nats_bench_size", columns)
    remark = "One scoring, on CIFAR-10's images and with ten classes, serves all targets."
    return Table("nats-bench-size", rows, tuple(columns), remark)


def nas_bench_301(folder: Path) -> Table:
    """Read 150 networks of NAS-Bench-301, with accuracies that its surrogate predicts."""
    path = found(folder / "nas_bench_301_150.csv.gz")
    rows = _rows_of_space(path, "nas_bench_301", {"val_accuracy": "val_accuracy"})
    deviation = statistics.stdev(row.truths["val_accuracy"] for row in rows)
    remark = (
        "The accuracies are not of trained networks: they are predictions, with noise, of a surrogate that was fitted "
        "to networks trained once. A tau with them tells how far a score agrees with a regression of the accuracy on "
        f"the arch. Their range is narrow, with a standard deviation of {deviation:.1f} points."
    )
    return Table("nas-bench-301", rows, ("val_accuracy",), remark)


def nas_bench_bert(folder: Path) -> Table:
    """Read the networks of NAS-Bench-BERT as they were trained; those that are equal are one candidate."""
    tasks = ("glue", "cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst", "sts")
    path = found(folder / "nas_bench_bert_250.csv.gz")
    rows = _rows_of_space(path, "nas_bench_bert", {name: name for name in tasks}, 128, column="arch_trained")
    trainings: dict[str, list[float]] = {}
    for line in _lines(path):
        trainings.setdefault(line["arch_trained"], []).append(float(line["glue"]))
    twins = [(first, statistics.fmean(others)) for first, *others in trainings.values() if others]
    tau = kendall([first for first, _ in twins], [others for _, others in twins])
    remark = (
        "The texts are noise: 128 tokens whose frequencies fall as one over their rank, behind the same first token, "
        "with labels of ten classes. One scoring serves all targets. The networks are those that were trained, with "
        "attention alone, not those that the benchmark names; networks that are equal as trained are one candidate, "
        "with the mean of their results. Most were trained once, and some trainings failed, so even a perfect score "
        f"would not reach a tau of 1: for the {len(twins)} that were trained several times, GLUE after the first "
        f"training and the mean after the others agree with a tau of {_in_words(tau)}. `layers` and `layers, width` "
        "are not scores: they order by the number of layers, and then by the width of a token; their many ties raise "
        "their tau."
    )
    return Table("nas-bench-bert", tuple(map(_with_layers, rows)), ("glue",), remark)


def _with_layers(row: Row) -> Row:
    arch = get_space("nas_bench_bert").parse(row.name)
    num, is_wide = len(arch.layers), arch.hidden == max(HIDDEN_SIZES)
    return replace(row, references={"layers": num, "layers, width": 2 * num + is_wide})


def pit(folder: Path) -> Table:
    """Read the PiTs of ViT-Bench, each trained once on three data sets, with and without distillation."""
    columns = {name: name for name in ("cifar100", "flowers", "chaoyang", "cifar100_kd", "flowers_kd", "chaoyang_kd")}
    rows = _rows_of_space(found(folder / "pit_60.csv"), "pit", columns, resolution=224)
    targets = ("cifar100", "flowers", "chaoyang")
    taus = [kendall(*([row.truths[name] for row in rows] for name in (target, f"{target}_kd"))) for target in targets]
    told = list(map(_in_words, taus))
    remark = (
        f"{_FOREIGN_IMAGES} They are enlarged to 224 x 224, as CIFAR-100's were. One scoring, with ten classes, serves "
        "all targets. Each network was trained once. The accuracies with and without distillation (`_kd`) agree with a "
        f"tau of {told[0]} on CIFAR-100, {told[1]} on Flowers and {told[2]} on Chaoyang."
    )
    return Table("pit", rows, targets, remark)


def _in_words(tau: float | None) -> str:
    return "undefined" if tau is None else f"{tau:.2f}"


def timm_models(folder: Path) -> Table:
    """Read the models of timm of at most `MAX_MILLIONS` of parameters, each at the resolution of its checkpoint.

    Raises:
        ModuleNotFoundError: If timm is not installed.
    """
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "This benchmark builds models of timm: `pip install timm`, with the torchvision that fits your torch."
        ) from error
    known = set(timm.list_models())
    rows = tuple(
        Row(
            line["arch"],
            partial(timm.create_model, line["arch"], pretrained=False, num_classes=10),
            {"top1": float(line["top1"])},
            resolution=int(line["img_size"]),
            family=line["family"],
        )
        for line in _lines(found(folder / "timm_imagenet.csv"))
        if float(line["params_millions"]) <= MAX_MILLIONS and line["arch"] in known
    )
    remark = f"{_FOREIGN_IMAGES} Each is resized to the model's own resolution. Models above {MAX_MILLIONS:.0f} million"
    return Table("timm", rows, ("top1",), f"{remark} parameters are left out.", is_search_space=False)


def user_table(path: Path, space: str, targets: Sequence[str], resolution: int) -> Table:
    """Read a table of the user's own: a column ``arch``, and one for each target, higher is better.

    Raises:
        ValueError: If no target is named, or a line has no number for one.
        ArchSyntaxError: If an arch does not belong to the space.
    """
    if not targets:
        raise ValueError(f"Pass `--target` with the column of {path} that has the accuracies after training.")
    columns = {target: target for target in targets}
    rows = _rows_of_space(found(path, "Pass another file with `--table`."), space, columns, resolution=resolution)
    return Table(f"{space}-{path.name.split('.')[0]}", rows, tuple(targets), "The images are CIFAR-10's.")


LOADERS: Mapping[str, Callable[[Path], Table]] = {
    "nas-bench-201": nas_bench_201,
    "nas-bench-101": nas_bench_101,
    "transnas-micro": transnas_micro,
    "nats-bench-size": nats_bench_size,
    "nas-bench-301": nas_bench_301,
    "nas-bench-bert": nas_bench_bert,
    "pit": pit,
    "timm": timm_models,
}

# Those by which the benchmark's authors compare, on the test set, of the epoch that was best in validation.
TRANSNAS_COLUMNS = {
    "class_scene": "class_scene.test_top1.best",
    "class_object": "class_object.test_top1.best",
    "jigsaw": "jigsaw.test_top1.best",
    "room_layout": "room_layout.test_neg_loss.best",
    "segmentsemantic": "segmentsemantic.test_mIoU.best",
    "normal": "normal.test_ssim.best",
    "autoencoder": "autoencoder.test_ssim.best",
}


def merged(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Merge all rows of the same name into one, with the mean of their truths, at the position of the first."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.name, []).append(row)
    return tuple(
        replace(group[0], truths={key: statistics.fmean(row.truths[key] for row in group) for key in group[0].truths})
        for group in groups.values()
    )


def build_arch(space: str, arch: str) -> nn.Module:
    """Build the network of an arch from its string; only the string is sent to another process."""
    own = get_space(space)
    return own.build(own.parse(arch))


def _lines(path: Path) -> Iterator[dict[str, str]]:
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", newline="") as file:
        yield from csv.DictReader(file)


def _rows_of_space(
    path: Path, space: str, columns: Mapping[str, str], resolution: int = 32, column: str = "arch"
) -> tuple[Row, ...]:
    rows = []
    for number, line in enumerate(_lines(path), 2):  # the header is the first
        where = f"{path}, line {number}"
        truths = {target: _number(line, name, where) for target, name in columns.items()}
        rows.append(_row_of_space(space, _cell(line, column, where), truths, resolution))
    if not rows:
        raise ValueError(f"{path} has no line below its header: expected one for each arch.")
    return merged(rows)


def _row_of_space(space: str, text: str, truths: Mapping[str, float], resolution: int = 32) -> Row:
    own = get_space(space)
    arch = own.parse(text)
    build = partial(build_arch, space, str(arch))
    return Row(str(arch), build, truths, own.blocks(arch), resolution, vocab_size=own.vocab_size)


def _cell(line: Mapping[str, str | None], column: str, where: str) -> str:
    text = line.get(column)
    if text is None:
        raise ValueError(f"{where}: there is no '{column}'; the columns are {', '.join(map(str, line))}.")
    return text


def _number(line: Mapping[str, str | None], column: str, where: str) -> float:
    text = _cell(line, column, where)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{where}: '{column}' is {text!r}: expected a number.")
    return number


def cell_of(text: str) -> NASBench101Arch:
    """Read a cell as NASLib writes it: the seven rows of its matrix, then its operations."""
    numbers = [int(number) for number in text.strip("()").split(",")]
    operations = ("input", "output", "maxpool3x3", "conv1x1-bn-relu", "conv3x3-bn-relu")
    matrix = [numbers[start : start + 7] for start in range(0, 49, 7)]
    return NASBench101Arch.from_matrix(matrix, [operations[code] for code in numbers[49:]])
