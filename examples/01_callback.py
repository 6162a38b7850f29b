"""Log the ZiCo score of a model while it trains; training is bit-identical to training without the callback.

Usage:
    python examples/01_callback.py
"""

import logging

from lightning.pytorch import Trainer, seed_everything
from rich.console import Console

from lightning_zico import ZiCoCallback
from lightning_zico.demos import DigitsDataModule, digits_candidates

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def main() -> None:
    """Train one small network and print the scores that the callback recorded."""
    console = Console()
    seed_everything(0, verbose=False)
    model = digits_candidates()["cnn-bn-32x4"]()
    callback = ZiCoCallback(num_batches=4, every_n_epochs=1)
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, datamodule=DigitsDataModule())
    for record in callback.history:
        console.print(f"epoch {record['epoch']}: zico/score {record['score']:.2f} in {record['seconds']:.2f} s")
    console.print(f"validation accuracy {trainer.callback_metrics['val_acc']:.3f}")


if __name__ == "__main__":
    main()
