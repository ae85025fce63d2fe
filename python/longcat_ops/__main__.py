"""`python -m longcat_ops`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
