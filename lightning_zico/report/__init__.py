"""Drawings of results; nothing here computes one."""

from lightning_zico.report.table import leaderboard_table

__all__ = ["leaderboard_table"]
