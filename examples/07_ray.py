"""Rank eight models on a Ray cluster, and check that the scores are the same as in this process.

Usage:
    python examples/07_ray.py [address]    # of a running cluster, such as "auto"; by default a cluster on this machine
"""

import sys

import torch

from lightning_zico import RayExecutor, ZeroShotSelector
from lightning_zico.demos import DigitsDataModule, digits_candidates


def main() -> None:
    """Rank here, then on Ray."""
    torch.set_num_threads(1)  # like a task on Ray; results differ in rounding with another number of threads
    here = ZeroShotSelector(seed=0)
    print(here.rank(digits_candidates(), datamodule=DigitsDataModule()))
    try:
        executor = RayExecutor(address=sys.argv[1] if len(sys.argv) > 1 else None, num_cpus=1)
    except ModuleNotFoundError as error:
        print(f"That was in this process. {error}")
        return
    on_ray = ZeroShotSelector(seed=0, executor=executor)
    on_ray.rank(digits_candidates(), datamodule=DigitsDataModule())
    same = [row["score"] == other["score"] for row, other in zip(here.leaderboard_, on_ray.leaderboard_, strict=True)]
    print(f"On Ray: the same {sum(same)} scores, bit for bit, of {len(same)}.")


if __name__ == "__main__":
    main()
