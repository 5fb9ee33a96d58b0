"""RestartPolicy: how soon an engine that ended may be started again, and when that has happened too often. No I/O."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

# More than `restart_limit` ends within it, and starting again is no help.
WINDOW = 300.0

# One that worked for so long before it ended is started again at once; in a row of shorter lives each pause is longer.
SETTLED = 2.0
FIRST_PAUSE = 0.2
LONGEST_PAUSE = 10.0


class RestartPolicy:
    """Of one server. Seconds on a clock that never goes back."""

    def __init__(self, limit: int, *, window: float = WINDOW, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self.window = window
        self._clock = clock
        self._ends: deque[float] = deque()
        self._ready_at = -math.inf
        self._in_a_row = 0

    def note_ready(self) -> None:
        """It was started."""
        self._ready_at = self._clock()

    def note_end(self) -> None:
        """It has ended, or a start after an end has failed."""
        now = self._clock()
        self._in_a_row = 1 if now - self._ready_at >= SETTLED else self._in_a_row + 1
        self._ready_at = now
        self._ends.append(now)

    @property
    def count(self) -> int:
        """Ends within the window."""
        now = self._clock()
        while self._ends and now - self._ends[0] >= self.window:
            self._ends.popleft()
        return len(self._ends)

    @property
    def is_exhausted(self) -> bool:
        """Whether it is not to be started again for now."""
        return self.count > self.limit

    @property
    def pause(self) -> float:
        """What is to pass between its last end and the next start: nothing after the first, then ever more."""
        if self._in_a_row < 2:
            return 0.0
        wanted = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(self._in_a_row - 2, 10))
        return max(0.0, self._ends[-1] + wanted - self._clock())

    @property
    def next_in(self) -> float:
        """When one is allowed again, where they are spent: in so many seconds. Never with a limit of 0."""
        if self.limit == 0:
            return math.inf
        return max(0.0, self._ends[-1 - self.limit] + self.window - self._clock()) if self.is_exhausted else 0.0
