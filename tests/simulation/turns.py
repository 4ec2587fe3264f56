"""Virtual time, and whose turn it is.

Every thread is a greenlet: one runs at a time, until it sleeps, finds a lock taken or ends. What
comes next is what is due first; of threads that are due at the same instant, the seed picks one.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import random
from collections.abc import Callable
from typing import Any

from greenlet import getcurrent, greenlet

from .basics import Killed


class Thread(greenlet):
    def __init__(self, turns: Turns, function: Callable[[], Any], process: Any = None) -> None:
        super().__init__(parent=turns.hub)
        self.function = function
        self.process = process  # of the collector; None: of the one who runs it
        self.ticket = -1  # of its place in the queue; older ones do not count any more
        self.is_waiting = False  # SIGTERM wakes it
        turns.threads = [thread for thread in turns.threads if not thread.dead] + [self]

    def run(self) -> None:
        self.function()


class Turns:
    def __init__(self, seed: int, start: float) -> None:
        self.time = start  # s since 1970
        self.hub = getcurrent()  # it hands out the turns
        self.threads: list[Thread] = []
        self.queue: list[tuple[float, float, int, Any]] = []  # due (s), order at an instant, ticket
        self.pick = random.Random(f"{seed} turns").random
        self.tickets = itertools.count()

    def at(self, when: float, happens: Callable[[], Any]) -> None:
        """Call this at that time, before any thread has its turn."""
        heapq.heappush(self.queue, (when, 0.0, next(self.tickets), happens))

    def wake(self, thread: Thread, when: float | None = None, is_first: bool = False) -> None:
        """Give a thread its turn at that time, or now, instead of when it was due before."""
        thread.ticket = next(self.tickets)
        order = -1.0 if is_first else self.pick()
        heapq.heappush(self.queue, (when or self.time, order, thread.ticket, thread))

    def sleep(self, seconds: float) -> None:
        """Let the others have their turns for so long."""
        end = self.time + seconds
        if self.queue and self.queue[0][0] <= end:
            self.wake(getcurrent(), end)
            self.hub.switch()
        else:
            self.time = end

    def sleep_until_woken(self) -> None:
        self.hub.switch()

    def suspend(self, seconds: float) -> None:
        """The machine sleeps: its threads do so for longer, and the world goes on."""
        self.time += seconds
        self.queue = [
            (due + seconds if isinstance(what, Thread) else due, order, ticket, what)
            for due, order, ticket, what in self.queue
        ]
        heapq.heapify(self.queue)

    def run(self, function: Callable[[], Any]) -> None:
        """Hand out turns until this function, in a thread of its own, has ended."""
        first = Thread(self, function)
        self.wake(first)
        while not first.dead:
            due, _, ticket, what = heapq.heappop(self.queue)
            self.time = max(self.time, due)
            if not isinstance(what, Thread):
                what()
            elif what.ticket == ticket and not what.dead:
                what.switch()

    def end(self) -> None:
        """Nothing runs any more, wherever it was."""
        for thread in self.threads:
            with contextlib.suppress(BaseException):
                thread.throw(Killed)


class Lock:
    """In place of threading.Lock."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.is_taken = False
        self.waiting: list[Thread] = []

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if self.is_taken and (not blocking or timeout >= 0):
            return False
        while self.is_taken:
            self.waiting.append(getcurrent())
            getcurrent().process.sleep_until_woken()
        self.is_taken = True
        return True

    def release(self) -> None:
        self.is_taken = False
        if self.waiting:
            self.turns.wake(self.waiting.pop(int(self.turns.pick() * len(self.waiting))))

    def locked(self) -> bool:
        return self.is_taken

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: Any) -> None:
        self.release()
