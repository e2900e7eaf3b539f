"""See siglip2_dense/cli/plan.py."""

import sys

from siglip2_dense.cli.common import run
from siglip2_dense.cli.plan import main

if __name__ == "__main__":
    sys.exit(run(main))
