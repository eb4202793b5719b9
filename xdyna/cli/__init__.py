"""What the programs in scripts/ do. May import everything; imported by scripts and tests alone."""
