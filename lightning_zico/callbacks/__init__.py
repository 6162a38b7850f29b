"""Callbacks for any `Trainer`."""

from lightning_zico.callbacks.zico import ZiCoCallback

__all__ = ["ZiCoCallback"]
