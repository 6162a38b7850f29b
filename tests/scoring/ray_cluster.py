"""Scores on a Ray cluster of two nodes, one of which is removed in the middle. A script for test_ray.

Usage:
    python ray_cluster.py FOLDER    # every candidate notes there on which node it was started
"""

import json
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster
from torch import nn

from lightning_zico import RayExecutor
from lightning_zico.bridge import Reading
from lightning_zico.candidates import iterate_candidates
from lightning_zico.scoring.cache import SQLiteCache
from lightning_zico.scoring.cached_scorer import with_cache
from lightning_zico.scoring.choice import Choice
from lightning_zico.scoring.executors.base import Job
from lightning_zico.scoring.executors.processes import SerialExecutor
from lightning_zico.scoring.scorer import Scorer
from tests.modules import Classifier, make_batches


def noted(folder: Path, width: int) -> nn.Module:
    node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else "here"
    with open(folder / str(width), "a") as file:
        file.write(f"{node}\n")
    doomed = (folder.parent / "doomed").read_text()
    while node == doomed:  # until it is removed
        time.sleep(600)
    while node != "here" and not any(doomed in path.read_text() for path in folder.iterdir()):
        time.sleep(0.1)  # until that node is busy
    return Classifier(width)


class Noting(SQLiteCache):
    """Notes beside its file which node wrote."""

    def write(self, candidate: str, entries: Mapping[str, str]) -> None:
        super().write(candidate, entries)
        with open(f"{self.path}-nodes", "a") as file:
            file.write(f"{ray.get_runtime_context().get_node_id()}\n")


def main() -> None:
    folder = Path(sys.argv[1])
    (folder / "started").mkdir()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    head, node = cluster.head_node.node_id, cluster.add_node(num_cpus=1)
    (folder / "doomed").write_text(node.node_id)
    scorers = [with_cache(Scorer(Reading.of(make_batches()), Choice.of("zico").proxies), Noting(folder / "scores.db"))]
    candidates = {str(width): partial(noted, folder / "started", width) for width in range(4, 16)}
    found: list[tuple[str, Any]] = []
    removed = None
    for job, card in RayExecutor(address=cluster.address).run(scorers, map(Job, iterate_candidates(candidates))):
        found.append((job.candidate.name, card["zico"].value))
        busy = [path for path in (folder / "started").iterdir() if path.name not in dict(found)]
        if removed is None and any(node.node_id in path.read_text() for path in busy):
            removed = node.node_id
            cluster.remove_node(node, allow_graceful=False)
    ray.shutdown()
    cluster.shutdown()
    started = {path.name: path.read_text().split() for path in (folder / "started").iterdir()}
    expected = SerialExecutor().run(
        [Scorer(scorers[0].reading, scorers[0].proxies)], map(Job, iterate_candidates(candidates))
    )
    scores = {job.candidate.name: card["zico"].value for job, card in expected}
    said = {"found": found, "expected": scores, "removed": removed, "started": started}
    said |= {"head": head, "kept_on": (folder / "scores.db-nodes").read_text().split()}
    print(json.dumps(said))


if __name__ == "__main__":
    main()
