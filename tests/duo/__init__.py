"""A stand-in for Duo's Admin API, serving six log endpoints on the loopback interface.

The collector is tested against it, over real sockets, because a test cannot reach Duo. Where Duo's
documentation, or an answer that somebody observed, says how Duo behaves, the simulator behaves so.
Where nobody says, it has a switch, and the collector has to come through both ways: see `Rules`.
Signatures are checked with the functions of Duo's own client.

In a test:

    with Simulator(Rules(short_pages=True)) as duo:
        duo.add("telephony", make_events("telephony", 5000, start_ms, end_ms))
        subprocess.run([...], env={**os.environ, **duo.settings})
        assert [request.status for request in duo.requests] == [...]

By hand: `python tests/duo --help`.
"""

from .command import main
from .endpoints import Endpoints
from .events import iter_events, make_events
from .rules import ACCOUNT_LIST, COMMON_FAULTS, FAULT_KINDS, LOG_TYPES, Answer, LogType, Rules
from .server import Simulator, _Server
from .store import EventStore

__all__ = [
    "ACCOUNT_LIST",
    "COMMON_FAULTS",
    "FAULT_KINDS",
    "LOG_TYPES",
    "Answer",
    "Endpoints",
    "EventStore",
    "LogType",
    "Rules",
    "Simulator",
    "_Server",
    "iter_events",
    "main",
    "make_events",
]
