"""The collector's whole life in virtual time: a year in minutes, in a world that goes wrong.

The real main() runs in this process. Only its edges are others: the clocks, waiting, locks, threads
and the HTTP session, which asks the simulated Duo without a socket, are passed in; and the system
calls that open for writing, write, sync and rename go through a simulated disk, so that a kill, a
power failure or a full disk can come between any two of them. All that happens is drawn from a
seed, each disturbance from a generator of its own, so that a failure can be replayed, and a
disturbance left out without changing the others.
"""

# It reads in this order: what Duo publishes (publication), what has to become of it (ledger), whose
# turn it is (turns), a run of main() (process), the machine, the network, what goes wrong
# (disturbances), who runs the collector (operators), what else has to hold (checks), all of it
# together (world), the command line.

from . import command_line
from .basics import Failure
from .command_line import simulate
from .disturbances import DISTURBANCES, INVENTED
from .world import Life, World

__all__ = ["DISTURBANCES", "INVENTED", "Failure", "Life", "World", "main", "simulate"]


def main() -> int:
    return command_line.main(__doc__)
