"""Weights: reading checkpoints safely and strictly, name maps of published files, what to download."""
