"""The rendered world and everything that only puppets need: source, metrics, networks, benchmark, the demo's actor."""
