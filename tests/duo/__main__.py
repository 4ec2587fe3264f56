"""`python tests/duo` serves the simulated tenant; --help lists the options."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from duo import main

sys.exit(main(sys.argv[1:]))
