"""On a cluster that loses a node, nothing is lost and nothing doubled."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.slow  # a minute, most of it until Ray takes the node for dead
def test_a_node_that_is_removed_in_the_middle_costs_nothing(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    command = [sys.executable, str(Path(__file__).with_name("ray_cluster.py")), str(tmp_path)]
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    names = [name for name, _ in said["found"]]
    assert sorted(names) == sorted(said["expected"])
    assert dict(said["found"]) == said["expected"]
    # The cache's file is on the machine of the driver, and tasks elsewhere ask there.
    assert set(said["kept_on"]) == {said["head"]}
    assert len(said["kept_on"]) >= len(names)
    # It happened: what the node had begun was begun again elsewhere, and each candidate but its own only once.
    again = [nodes for nodes in said["started"].values() if len(nodes) > 1]
    assert again
    assert all(nodes[0] == said["removed"] != nodes[1] for nodes in again)
