"""From raw footage to a training set: what `scripts/preprocess.py` does, step by step."""
