"""Who may hand the engine something that takes a slot. Many requests at a time; whoever moves a slot's content, alone.

First come, first served, so that neither kind waits for ever. No I/O, any thread.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable


class Hold:
    """A place in front of the gate, then behind it. `on_granted` is called once, in whichever thread lets it pass."""

    def __init__(self, on_granted: Callable[[], None], *, alone: bool) -> None:
        self.on_granted = on_granted
        self.alone = alone
        self.is_granted = False


class SlotLock:
    """`launches` counts those that did not pass alone: each of them may have taken any slot that was idle."""

    def __init__(self) -> None:
        self.launches = 0
        self._lock = threading.Lock()
        self._inside: set[Hold] = set()
        self._waiting: deque[Hold] = deque()

    def acquire(self, on_granted: Callable[[], None], *, alone: bool = False) -> Hold:
        """Queue up. Every passage must be given back with `release`, granted or not."""
        passage = Hold(on_granted, alone=alone)
        with self._lock:
            self._waiting.append(passage)
            granted = self._let_in()
        _notify(granted)
        return passage

    def release(self, passage: Hold) -> None:
        """It is through, or has given up."""
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
