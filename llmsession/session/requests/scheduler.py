"""Scheduler: a first-come, first-served queue for the server's slots. Does no I/O, and may be used from any thread.

Requests wait here and not in the engine, which neither cancels queued requests well nor closes well while it has any.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable


class Ticket:
    """A place in the queue, then a slot. `on_granted` is called once, in the thread that frees the slot."""

    def __init__(self, on_granted: Callable[[], None]) -> None:
        self.on_granted = on_granted
        self.is_granted = False


class Scheduler:
    """Grants at most `limit` tickets at a time."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._granted = 0
        self._waiting: deque[Ticket] = deque()

    @property
    def is_idle(self) -> bool:
        """Whether no ticket is granted."""
        return self._granted == 0

    def acquire(self, on_granted: Callable[[], None]) -> Ticket:
        """Join the queue. Every ticket must be given back with `release`, granted or not."""
        ticket = Ticket(on_granted)
        with self._lock:
            if self._granted >= self._limit:
                self._waiting.append(ticket)
                return ticket
            self._granted += 1
            ticket.is_granted = True
        ticket.on_granted()
        return ticket

    def release(self, ticket: Ticket) -> None:
        """Pass the slot to the next ticket; one that was never granted leaves the queue."""
        with self._lock:
            if not ticket.is_granted:
                self._waiting.remove(ticket)
                return
            following = self._waiting.popleft() if self._waiting else None
            if following is None:
                self._granted -= 1
                return
            following.is_granted = True
        following.on_granted()

    def position(self, ticket: Ticket) -> int | None:
        """Return how many tickets are in front of this one; None once it is granted or released."""
        with self._lock:
            return self._waiting.index(ticket) if ticket in self._waiting else None
