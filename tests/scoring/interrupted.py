"""Ranks until it is interrupted, then says what was kept. A script for test_faults.

Usage:
    python interrupted.py serial|processes
"""

import json
import sys
import time
from collections.abc import Iterator

from torch import nn

from lightning_zico import ProcessExecutor, ZeroShotSelector
from tests.modules import Classifier, make_batches


def sleeping() -> nn.Module:
    time.sleep(3600)
    return Classifier()


def candidates() -> Iterator[object]:
    yield Classifier
    yield lambda: Classifier(8)
    print("two offered", flush=True)
    while True:
        yield sleeping


def main() -> None:
    executor = ProcessExecutor(num_workers=1) if sys.argv[1] == "processes" else None
    selector = ZeroShotSelector(executor=executor, enable_progress_bar=False)
    try:
        selector.rank(candidates(), make_batches())
    except KeyboardInterrupt:
        board = selector.leaderboard_
        kept = {"rows": board.to_dict()["rows"], "cards": sorted(selector.cards_), "notes": board.notes}
        print(json.dumps({**kept, "best_model_": repr(selector.best_model_)}), flush=True)
        raise


if __name__ == "__main__":
    main()
