"""Search NAS-Bench-201 by ZiCo, and look up the accuracy of the result after training.

Usage:
    python examples/05_evolve.py [trials]    # default 100; 1,000 find more and take ten times as long
"""

import csv
import gzip
import os
import sys
from pathlib import Path

from lightning_zico import ZeroShotSearch
from lightning_zico.demos import DigitsDataModule
from lightning_zico.spaces import get_space

TABLE = Path(os.environ.get("LIGHTNING_ZICO_DATA", "../shared/data"), "nas_bench_201.csv.gz")


def main() -> None:
    """Search, then look up."""
    num_trials = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    search = ZeroShotSearch("nas_bench_201", proxies="zico", num_trials=num_trials, seed=0)
    result = search.run(DigitsDataModule(batch_size=32))
    for row in result.ranked[:3]:
        print(f"{row['rank']}. ZiCo {row['score']:.1f}, {row['cost_params']:,} parameters  {row['arch']}")
    print("\n".join(result.notes))
    if not TABLE.is_file():
        print(f"Its accuracy is in NAS-Bench-201's table. Set LIGHTNING_ZICO_DATA to the folder with {TABLE.name}.")
        return
    with gzip.open(TABLE, "rt", newline="") as file:
        accuracy = {line["arch"]: float(line["test_cifar10"]) for line in csv.DictReader(file)}
    space = get_space("nas_bench_201")
    largest = max(accuracy, key=lambda arch: space.params(space.parse(arch)))
    print(f"Trained on CIFAR-10, the arch that was found reaches {accuracy[result.best]:.2f} %.")
    print(f"The arch with the most parameters reaches {accuracy[largest]:.2f} %.")
    print(f"The best of all {len(accuracy):,} archs reaches {max(accuracy.values()):.2f} %.")


if __name__ == "__main__":
    main()
