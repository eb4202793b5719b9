"""`python -m xdyna`: the console command."""

import sys

from xdyna.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
