"""Networks that metrics compare pictures and videos with, in plain torch, under their published names."""
