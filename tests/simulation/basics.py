"""What all parts share: the calendar, the log types, and how a process or a life ends."""

from __future__ import annotations

import os
import re
from datetime import datetime, timezone
from pathlib import Path

SCRIPT = Path(__file__).parent.parent.parent / "duo_collector.py"
HOST = "api-simulate.duosecurity.com"
MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0  # s
START = 1_798_761_600  # s since 1970: 2027-01-01
HIDDEN_S = 120  # Duo shows nothing younger
BUSY_DAYS = 40  # of the busy logs Duo keeps no more, so that a first run takes seconds
OTHER_DAYS = 179.5  # of the others half a year
SINCE_KEYS = {
    "authentication": "AUTH_SINCE_TIME",
    "administrator": "ADMIN_SINCE_TIME",
    "telephony": "TELEPHONY_SINCE_TIME",
    "activity": "ACTIVITY_SINCE_TIME",
    "offline_enrollment": "OFFLINE_ENROLLMENT_SINCE_TIME",
    "trust_monitor": "TRUST_MONITOR_SINCE_TIME",
}
LOG_OF_KEY = {key.encode(): name for name, key in SINCE_KEYS.items()}
CHECKPOINT = re.compile(rb'"([A-Z_]+_SINCE_TIME)": ([0-9]+)')
BUSY = ("authentication", "administrator", "telephony")
OTHERS = ("activity", "offline_enrollment", "trust_monitor")  # these have a tenth of the events


class Failure(BaseException):
    """Something does not hold that has to. No Exception: the collector must not catch it."""


class Killed(BaseException):
    """The process is gone, wherever its thread was."""


def kept_days(log_type: str) -> float:
    return BUSY_DAYS if log_type in BUSY else OTHER_DAYS


def stamp(seconds: float) -> str:
    return datetime.fromtimestamp(int(seconds), timezone.utc).isoformat()[:19] + "Z"


def read_file(path: str) -> bytes | None:
    """A file's content, or None; open() would take three times as long."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        return os.read(fd, os.fstat(fd).st_size)
    finally:
        os.close(fd)


def checkpoints_in(data: bytes) -> dict[str, float]:
    """The checkpoints in a checkpoint file, in s."""
    found = {}
    for key, digits in CHECKPOINT.findall(data.partition(b'"state": {')[0]):
        unit = 1000 if len(digits) == 13 else 1
        found[LOG_OF_KEY[key]] = int(digits) / unit
    return found
