"""RestartPolicy: how soon an engine that exited may be restarted, and when it has exited too often. Does no I/O."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

# Seconds. After more than `restart_limit` exits within this time, restarting does not help.
WINDOW = 300.0

# Seconds. An engine that ran for this long before it exited is restarted at once; after several shorter runs in a row,
# each pause is longer than the one before.
SETTLED = 2.0
FIRST_PAUSE = 0.2
LONGEST_PAUSE = 10.0


class RestartPolicy:
    """The restarts of one server. `window`: seconds; `clock`: a monotonic clock in seconds."""

    def __init__(self, limit: int, *, window: float = WINDOW, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self.window = window
        self._clock = clock
        self._ends: deque[float] = deque()
        self._ready_at = -math.inf
        self._in_a_row = 0

    def note_ready(self) -> None:
        """Record that the engine is ready."""
        self._ready_at = self._clock()

    def note_end(self) -> None:
        """Record that the engine exited, or that a restart failed."""
        now = self._clock()
        self._in_a_row = 1 if now - self._ready_at >= SETTLED else self._in_a_row + 1
        self._ready_at = now
        self._ends.append(now)

    @property
    def count(self) -> int:
        """The number of exits within the window."""
        now = self._clock()
        while self._ends and now - self._ends[0] >= self.window:
            self._ends.popleft()
        return len(self._ends)

    @property
    def is_exhausted(self) -> bool:
        """Whether the engine may not be restarted for now."""
        return self.count > self.limit

    @property
    def pause(self) -> float:
        """Seconds to wait before the next start: 0.0 after a first exit, then more after each short run."""
        if self._in_a_row < 2:
            return 0.0
        wanted = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(self._in_a_row - 2, 10))
        return max(0.0, self._ends[-1] + wanted - self._clock())

    @property
    def next_in(self) -> float:
        """Seconds until a restart is allowed again: 0.0 if it is allowed now, infinite with a limit of 0."""
        if self.limit == 0:
            return math.inf
        return max(0.0, self._ends[-1 - self.limit] + self.window - self._clock()) if self.is_exhausted else 0.0
