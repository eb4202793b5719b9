"""Training: state, checkpoints, guards, logs, stages, objective and the loop."""
