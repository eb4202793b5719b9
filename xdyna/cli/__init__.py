"""What the programs in scripts/ do. May import everything; imported by scripts and tests alone."""

import os

# Before torch is imported: on a busy machine spinning threads cost many times the work itself.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
