"""``python -m mechfeat``: the command line."""

import sys

from mechfeat.cli import main

if __name__ == "__main__":
    sys.exit(main())
