"""Cross-identity faces: another person's face with the same expression, for the second stage of training."""
