"""``python -m siglip2_dense VERB …`` is the console script, in a form that torchrun can start."""

import sys

from siglip2_dense.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
