"""Rank eight untrained models on two batches, train the winner, then train all eight to check the choice.

Usage:
    python examples/02_select_and_train.py [picture.svg]
"""

import logging
import sys
import warnings

from lightning.pytorch import seed_everything
from rich.console import Console
from rich.table import Table

from lightning_zico import ZeroShotSelector
from lightning_zico.demos import DigitsDataModule, digits_candidates, quiet_trainer, trained_accuracy
from lightning_zico.ranking import kendall

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning.pytorch")
SCORES = ("balanced+synflow", "zico", "params", "macs", "num_layers", "sum_log_numel")


def main() -> None:
    """Rank, train the winner, and compare the ranking with the accuracies after training."""
    console = Console(record=True, width=112, highlight=False)
    seed_everything(0, verbose=False)
    selector = ZeroShotSelector(trainer=quiet_trainer(), proxies=["default", "zico"], num_batches=2, seed=0)
    selector.fit(digits_candidates(), datamodule=DigitsDataModule())
    accuracy = 100 * selector.trainer.callback_metrics["val_acc"]
    console.print(f"Chosen without training: {selector.leaderboard_.best}; then trained: {accuracy:.1f} % accuracy.")
    console.print("Training all eight candidates, to see how good the choice was ...")
    truth = {name: trained_accuracy(build) for name, build in digits_candidates().items()}

    rows = selector.leaderboard_.rows
    title = "Ranked without training, beside the truth"
    table = Table("rank", "name", *SCORES, "accuracy %", title=title, title_justify="left")
    for row in rows:
        scores = (f"{row[score]:,.1f}".removesuffix(".0") for score in SCORES)
        table.add_row(str(row["rank"]), row["name"], *scores, f"{truth[row['name']]:.1f}")
    accuracies = [truth[row["name"]] for row in rows]
    taus = (kendall([row[score] for row in rows], accuracies) for score in SCORES)
    table.add_section()
    table.add_row("", "tau with truth", *(f"{tau:.2f}" for tau in taus), "")
    console.print(table)
    console.print("tau: Kendall's rank correlation; 1 is a perfect ranking, 0 is chance.")
    console.print("\n".join(selector.leaderboard_.notes))
    if len(sys.argv) > 1:
        console.save_svg(sys.argv[1], title="make demo")


if __name__ == "__main__":
    main()
