"""Compare every proxy and recipe with the accuracies of up to eight candidates after training.

Usage:
    python examples/04_compare_proxies.py [candidates]    # number of candidates, by default all eight
"""

import logging
import sys
import warnings
from itertools import islice

from rich.console import Console
from rich.table import Table

from lightning_zico import ZeroShotSelector, list_recipes
from lightning_zico.demos import DigitsDataModule, digits_candidates, trained_accuracy
from lightning_zico.proxies import list_proxies, resolve_proxies
from lightning_zico.ranking import bootstrap_interval, kendall

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning.pytorch")


def main() -> None:
    """Score with everything, train everything, compare."""
    num_candidates = int(sys.argv[1]) if len(sys.argv) > 1 else None
    candidates = dict(islice(digits_candidates().items(), num_candidates))
    recipes = [name for name in list_recipes() if name not in list_proxies()]
    signs = {proxy.name: 1 if proxy.higher_is_better else -1 for proxy in resolve_proxies("all")}
    selector = ZeroShotSelector(proxies=["default", *recipes, *signs], num_batches=2, seed=0)
    selector.rank(candidates, datamodule=DigitsDataModule())
    truth = {name: trained_accuracy(build) for name, build in candidates.items()}
    lines = []
    for score in [*recipes, *signs]:
        values = {name: card[score].value for name, card in selector.cards_.items()}
        scored = {name: signs.get(score, 1) * value for name, value in values.items() if value is not None}
        pair = list(scored.values()), [truth[name] for name in scored]
        interval = bootstrap_interval(kendall, *pair) if len(scored) > 1 else None
        seconds = sum(card[score].seconds for card in selector.cards_.values())
        lines.append((score, kendall(*pair) if scored else None, interval, scored, seconds))
    table = Table("score", "tau with truth", "95 % interval", "its first choice", "scored", "seconds")
    for score, tau, interval, scored, seconds in sorted(lines, key=lambda line: -2 if line[1] is None else -line[1]):
        first = max(scored, key=scored.get) if scored else "-"
        shown = f"{interval.low:.2f} to {interval.high:.2f}" if interval else "-"
        tau_shown = "-" if tau is None else f"{tau:.2f}"
        table.add_row(score, tau_shown, shown, first, f"{len(scored)} of {len(truth)}", f"{seconds:.2f}")
    console = Console(width=110, highlight=False)
    console.print(table)
    console.print(f"With {len(truth)} candidates every interval is wide, so small differences mean nothing.")
    console.print("\n".join(selector.leaderboard_.notes))


if __name__ == "__main__":
    main()
