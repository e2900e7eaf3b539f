"""See siglip2_dense/cli/predict.py."""

import sys

from siglip2_dense.cli.common import run
from siglip2_dense.cli.predict import main

if __name__ == "__main__":
    sys.exit(run(main))
