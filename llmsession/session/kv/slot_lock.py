"""SlotLock: many requests may be sent to the engine at once, but a slot is saved or restored alone.

First come, first served, so that neither kind waits forever. Does no I/O, and may be used from any thread.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable


class Hold:
    """A place in the queue, then a hold of the lock. `on_granted` is called once, in the thread that grants it."""

    def __init__(self, on_granted: Callable[[], None], *, alone: bool) -> None:
        self.on_granted = on_granted
        self.alone = alone
        self.is_granted = False


class SlotLock:
    """A first-come, first-served lock, held by many at once or by one `alone`.

    `launches` counts the granted holds that were not `alone`: each such request may have taken any idle slot.
    """

    def __init__(self) -> None:
        self.launches = 0
        self._lock = threading.Lock()
        self._inside: set[Hold] = set()
        self._waiting: deque[Hold] = deque()

    def acquire(self, on_granted: Callable[[], None], *, alone: bool = False) -> Hold:
        """Join the queue. Every hold must be given back with `release`, granted or not."""
        passage = Hold(on_granted, alone=alone)
        with self._lock:
            self._waiting.append(passage)
            granted = self._let_in()
        _notify(granted)
        return passage

    def release(self, passage: Hold) -> None:
        """Give the hold back; one that was never granted leaves the queue."""
        with self._lock:
            self._inside.discard(passage)
            if not passage.is_granted:
                self._waiting.remove(passage)
            granted = self._let_in()
        _notify(granted)

    def _let_in(self) -> list[Hold]:
        granted: list[Hold] = []
        while self._waiting:
            first = self._waiting[0]
            if self._inside and (first.alone or any(other.alone for other in self._inside)):
                break
            first.is_granted = True
            self.launches += not first.alone
            self._inside.add(self._waiting.popleft())
            granted.append(first)
        return granted


def _notify(granted: list[Hold]) -> None:
    for passage in granted:
        passage.on_granted()
