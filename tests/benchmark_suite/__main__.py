"""`python tests/benchmark_suite` measures; --help lists the options."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from benchmark_suite.command import main

if __name__ == "__main__":
    main()
