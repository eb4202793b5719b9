"""Networks that metrics compare images and videos with, in plain torch, under their published names."""
