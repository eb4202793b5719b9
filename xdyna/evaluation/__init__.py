"""How good generated videos are: measured against the truth, frame by frame, inside regions or as a whole."""
