"""`python tests/simulation` runs the simulation; --help lists the options."""

import pathlib
import sys

sys.path[0] = str(pathlib.Path(__file__).parent.parent)

from simulation import main  # noqa: E402

sys.exit(main())
