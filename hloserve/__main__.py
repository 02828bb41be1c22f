"""`python -m hloserve`, which does what the command `hloserve` does."""

import sys

from hloserve.cli import main

if __name__ == "__main__":
    sys.exit(main("python -m hloserve"))
