"""See siglip2_dense/cli/benchmark.py."""

import sys

from siglip2_dense.cli.benchmark import main
from siglip2_dense.cli.common import run

if __name__ == "__main__":
    sys.exit(run(main))
