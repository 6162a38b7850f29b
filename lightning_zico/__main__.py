"""``python -m lightning_zico``: the command line."""

import sys

from lightning_zico.cli import main

if __name__ == "__main__":
    sys.exit(main())
