"""Pure functions on tensors, each naming its source: similarity prior, windows, guidance."""
