"""`python -m bench.compare`: the comparison without the rest of bench."""

import sys

from .cli import main

sys.exit(main(sys.argv[1:]))
