"""Slow and obvious twins of what the package computes: loops, NumPy, closed forms."""
