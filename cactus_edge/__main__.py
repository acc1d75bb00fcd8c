"""`python -m cactus_edge` is `cactus-edge`."""

import sys

from cactus_edge.cli import main

if __name__ == "__main__":
    sys.exit(main())
