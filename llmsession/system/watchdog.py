"""One thread that ends what overruns.

A cancel scope around each token would cost more than the token; here a token costs one look at the clock. A deadline
may be moved to a later time without telling the thread, which finds out when it wakes.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from typing import Protocol

from llmsession.system.service_thread import ServiceThread

_log = logging.getLogger("llmsession.threads")

# An unbounded wait would overflow; one wake-up a minute costs nothing.
LONGEST_WAIT = 60.0


class Watched(Protocol):
    """Something with a `deadline`, on the clock of time.monotonic."""

    deadline: float

    def overrun(self, now: float) -> None:
        """Called in the thread once the deadline has passed: moves the deadline, or ends the thing. Never blocks."""
        ...


class Watchdog:
    """The things that are watched, and the thread that watches them."""

    def __init__(self) -> None:
        # Re-entrant: a finalizer may discard a thing while this thread adds another.
        self._condition = threading.Condition(threading.RLock())
        self._watched: dict[int, Watched] = {}
        self._service = ServiceThread("llmsession-watchdog")
        self._is_running = False

    def add(self, thing: Watched) -> None:
        """Watch it from now on; also to report an earlier deadline. Raises BackendError if there is no thread."""
        with self._condition:
            self._watched[id(thing)] = thing
            if not self._is_running:
                self._service.submit(self._run)
                self._is_running = True
            self._condition.notify()

    def discard(self, thing: Watched) -> None:
        """Stop watching it."""
        self._watched.pop(id(thing), None)

    def _run(self) -> None:
        try:
            while True:
                self._end_overdue()
        finally:  # whatever ended it: it goes on for what is still watched, or starts with the next thing
            with self._condition:
                self._is_running = bool(self._watched)
                if self._is_running:
                    self._service.submit(self._run)

    def _end_overdue(self) -> None:
        """Wait for the nearest deadline, or for an earlier one, and end what has passed its own."""
        with self._condition:
            nearest = min((thing.deadline for thing in list(self._watched.values())), default=math.inf)
            now = time.monotonic()
            if nearest > now:
                self._condition.wait(min(nearest - now, LONGEST_WAIT))
                now = time.monotonic()
        for thing in list(self._watched.values()):
            if thing.deadline <= now:
                try:
                    thing.overrun(now)
                except BaseException:  # noqa: BLE001 - the others still count on this thread
                    _log.exception("a deadline could not be handled; %r is not watched any more", thing)
                    self.discard(thing)


_watchdog = Watchdog()


def watch(thing: Watched) -> None:
    """Have `thing.overrun` called when its deadline has passed. Raises BackendError if no thread can be started."""
    _watchdog.add(thing)


def unwatch(thing: Watched) -> None:
    """Stop watching it."""
    _watchdog.discard(thing)


def _after_fork() -> None:
    # What was watched belongs to the original process.
    global _watchdog  # noqa: PLW0603 - one for the process: that is its purpose
    _watchdog = Watchdog()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
