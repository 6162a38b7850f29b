"""``python -m lightning_zico``: the command line."""

import os
import sys

if __name__ == "__main__":
    if sys.path[0] == os.getcwd():
        del sys.path[0]  # a file there would be imported in place of a package, installed or not

    from lightning_zico.cli import main

    sys.exit(main())
