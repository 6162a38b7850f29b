"""Gradients, moments, activations and sizes of a module that is never written to; torch only."""
