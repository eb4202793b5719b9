"""Clips for training and for showing: what goes into the models, and where it comes from."""
