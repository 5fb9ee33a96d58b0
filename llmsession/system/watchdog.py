"""One thread that ends what overruns.

A cancel scope around each token would cost more than the token; here a token costs one look at the clock. A deadline
may be moved later at any time without telling the thread: it finds out when it wakes.
"""

from __future__ import annotations

import math
import os
import threading
import time
from typing import Protocol


class Watched(Protocol):
    """Something with a `deadline` (on time.monotonic's clock); `overrun` is called, in the thread, once it has passed.

    `overrun` moves the deadline, or ends the thing; it does not block.
    """

    deadline: float

    def overrun(self, now: float) -> None:
        """It is `now`, and the deadline has passed."""
        ...


class Deadlines:
    """The things that are watched, and the thread that watches them while there are any."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._watched: set[Watched] = set()
        self._thread: threading.Thread | None = None

    def add(self, thing: Watched) -> None:
        """Watch it from now on."""
        with self._condition:
            self._watched.add(thing)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="llmsession-deadlines", daemon=True)
                self._thread.start()
            self._condition.notify()

    def discard(self, thing: Watched) -> None:
        """Watch it no more."""
        with self._condition:
            self._watched.discard(thing)

    def _run(self) -> None:
        while True:
            with self._condition:
                nearest = min((thing.deadline for thing in self._watched), default=math.inf)
                now = time.monotonic()
                if nearest > now:
                    # An unbounded wait would overflow; a look each minute is nothing.
                    self._condition.wait(min(nearest - now, 60.0))
                    now = time.monotonic()
                late = [thing for thing in self._watched if thing.deadline <= now]
            for thing in late:
                thing.overrun(now)


_deadlines = Deadlines()


def watch(thing: Watched) -> None:
    """Have `thing.overrun` called when its deadline has passed."""
    _deadlines.add(thing)


def unwatch(thing: Watched) -> None:
    """No longer."""
    _deadlines.discard(thing)


def _after_fork() -> None:
    # A forked copy of this process has none of its threads.
    global _deadlines  # noqa: PLW0603 - one for the process: that is its purpose
    _deadlines = Deadlines()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
