"""Pre-screen models of timm for your own images, within a budget, on two batches and without training.

Usage:
    python examples/03_prescreen_timm.py
"""

from rich.console import Console

from lightning_zico import ZeroShotSelector
from lightning_zico.demos import DigitsDataModule
from lightning_zico.results import leaderboard_table
from lightning_zico.zoo import ZOO_PROXIES, from_timm

PATTERNS = (
    "resnet1*",
    "mobilenetv3_small_*",
    "lcnet_0*",
    "regnet?_002",
    "convnext_atto",
    "ghostnet_*",
    "vit_tiny_patch16_224",
)


def main() -> None:
    """List, rank, print."""
    console = Console(width=150, highlight=False)
    data = DigitsDataModule(batch_size=16)  # 8 x 8 pixels, which are resized to 32 x 32
    try:
        candidates = from_timm(*PATTERNS, data=data, max_params=6e6, exclude=["*_r_*", "ghostnet_1*"])
    except ModuleNotFoundError as error:
        console.print(str(error))
        return
    selector = ZeroShotSelector(proxies=ZOO_PROXIES, num_batches=2, seed=0, enable_progress_bar=False)
    leaderboard = selector.rank(candidates, datamodule=data)
    console.print(leaderboard_table(leaderboard))
    console.print(f"{len(leaderboard)} of {len(candidates.names)} models have at most six million parameters.")


if __name__ == "__main__":
    main()
