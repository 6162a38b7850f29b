"""Write a table of NATS-Bench from its official files, for `fidelity.py`.

The files are at https://github.com/D-X-Y/NATS-Bench: an archive, unpacked to a folder, or one file of all. They need
`pip install nats_bench`. A table has the column ``arch`` and the accuracies after the longest training, in %, mean over
the training runs.
"""

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Epochs of the longest training, by space.
EPOCHS = {"tss": "200", "sss": "90"}

# The data set of the training and the accuracy to look up, by column.
COLUMNS = {
    "test_cifar10": ("cifar10", "test-accuracy"),
    "test_cifar100": ("cifar100", "test-accuracy"),
    "test_imagenet16_120": ("ImageNet16-120", "test-accuracy"),
    "valid_cifar10": ("cifar10-valid", "valid-accuracy"),
}


def rows_of(api: Any, space: str) -> Iterator[dict[str, str]]:
    """Yield a row for each arch of an opened benchmark.

    Args:
        api: The object that ``nats_bench.create`` returns.
        space: ``"tss"`` (topology, which is NAS-Bench-201) or ``"sss"`` (size).
    """
    for idx in range(len(api)):
        row = {"arch": str(api.arch(idx))}
        for column, (dataset, accuracy) in COLUMNS.items():
            info = api.get_more_info(idx, dataset, hp=EPOCHS[space], is_random=False)
            row[column] = f"{info[accuracy]:.4f}"
        yield row


def write_table(api: Any, space: str, path: Path) -> None:
    """Write the table of an opened benchmark."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["arch", *COLUMNS], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows_of(api, space))


def main() -> None:
    """Open the benchmark and write its table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", type=Path, help="the folder of the archive, or the one file")
    parser.add_argument("space", choices=EPOCHS, help="tss: topology (NAS-Bench-201), sss: size")
    parser.add_argument("table", type=Path, help="file to write, such as nats_bench_size.csv")
    arguments = parser.parse_args()
    try:
        from nats_bench import create
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("The official files need `pip install nats_bench`.") from error
    # In its fast mode the benchmark reads one arch at a time, which only a folder allows.
    api = create(str(arguments.files), arguments.space, fast_mode=arguments.files.is_dir(), verbose=False)
    write_table(api, arguments.space, arguments.table)


if __name__ == "__main__":
    main()
