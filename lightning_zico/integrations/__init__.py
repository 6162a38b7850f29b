"""For loops of your own: screen the candidates of an Optuna study before each trial trains one."""

from lightning_zico.integrations.screening import ScreeningSampler

__all__ = ["ScreeningSampler"]
