"""Timeouts of one reply: in all, to the first token, and between tokens.

The watchdog thread watches them. A token costs one look at the clock.
"""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from llmsession.system import watchdog
from llmsession.system.latch import call_soon, current_loop
from llmsession.types.errors import FirstTokenTimeoutError, IdleTimeoutError, LLMSessionError, TotalTimeoutError

# Seconds until the event loop is asked again whether it has had its turn.
LOOP_LAG = 0.2
# What arrived is read in one turn of the loop, and handled in the next ones.
_TURNS = 4


class _LoopTurns:
    """Counts some turns of an event loop, from any thread."""

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self._left = _TURNS
        self._schedule()

    @property
    def are_over(self) -> bool:
        return self._left <= 0

    def _take(self) -> None:
        self._left -= 1
        if self._left > 0:
            self._schedule()

    def _schedule(self) -> None:
        if not call_soon(self._loop, self._take):
            self._left = 0  # it has ended, and reads nothing any more


class TimeoutSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The limits in seconds. `total` covers the whole call, including the wait for a slot."""

    first_token: float = math.inf
    idle: float = math.inf
    total: float | None = None


class CheckProgress(Protocol):
    """Called when no token has come for long. Returns whether the server is being checked.

    `give_up` is called if it is hopeless.
    """

    def __call__(self, *, has_begun: bool, give_up: Callable[[], None]) -> bool:
        """Never blocks."""
        ...


class Timeouts:
    """The timeouts of one reply. `end` is called with the error. Whoever reads from the server sets `is_reading`."""

    def __init__(
        self,
        settings: TimeoutSettings,
        *,
        check: CheckProgress,
        end: weakref.WeakMethod[Callable[[LLMSessionError], None]],
    ) -> None:
        self.is_reading = False
        self.deadline = math.inf
        self._settings = settings
        self._check = check
        self._end_reply = end
        self._sent_at: float | None = None
        self._first_token_at: float | None = None
        self._awaits_first = True  # since it was sent, or sent again
        self._is_over = False
        self._loop: Any = None
        self._turns: _LoopTurns | None = None
        self._total_deadline = math.inf
        self._first_deadline = math.inf
        self._progress_deadline = math.inf

    @property
    def first_token_seconds(self) -> float | None:
        """Seconds from the request to the first token; None if there was none."""
        if self._first_token_at is None or self._sent_at is None:
            return None
        return self._first_token_at - self._sent_at

    def begin(self) -> None:
        """Start the timeouts of a call, in the running event loop."""
        self._loop = current_loop()
        if self._settings.total is not None:
            self._total_deadline = self.deadline = time.monotonic() + self._settings.total
        watchdog.watch(self)

    def end(self) -> None:
        """Stop watching: the call is over."""
        self._is_over = True
        watchdog.unwatch(self)

    def note_sent(self) -> None:
        """The request is being sent to a ready server, perhaps again after a restart."""
        now = time.monotonic()
        if self._first_token_at is None:
            self._sent_at = now
        self._awaits_first = True
        self._first_deadline = now + self._settings.first_token
        # The first look at the server comes earlier: it may hang.
        self._wait_until(min(self._first_deadline, now + self._settings.idle))
        watchdog.watch(self)  # again: it may be nearer than what the thread waits for

    def note_progress(self) -> None:
        """A token has arrived."""
        now = time.monotonic()
        if self._awaits_first:
            self._awaits_first, self._first_deadline = False, math.inf
            self._first_token_at = self._first_token_at or now
            if not self._is_over:
                watchdog.watch(self)  # again: `idle` may be nearer than what the thread waits for
        self._turns = None
        self._progress_deadline = now + self._settings.idle
        self.deadline = min(self._progress_deadline, self._total_deadline)

    def note_restart(self) -> None:
        """Until the request is sent again, only the whole call has a limit."""
        self._wait_until(math.inf)

    def overrun(self, now: float) -> None:
        """Called by the watchdog thread when `deadline` has passed."""
        if now >= self._total_deadline:
            self.deadline = math.inf
            self._end(TotalTimeoutError(f"the reply was not complete within timeout={self._settings.total:g} s"))
        elif not self.is_reading:  # the reader is the slow one, not the server
            self._wait_until(now + self._settings.idle)
        elif now < self._progress_deadline:
            self._wait_until(self._progress_deadline)
        elif not self._has_loop_run():
            self._wait_until(now + LOOP_LAG)
        elif now < self._first_deadline and self._check(has_begun=not self._awaits_first, give_up=self._give_up):
            self._wait_until(min(now + self._settings.idle, self._first_deadline))
        elif now < self._first_deadline < math.inf:
            self._wait_until(self._first_deadline)
        else:
            self.deadline = self._total_deadline
            self._give_up()

    def _has_loop_run(self) -> bool:
        """Whether the event loop has run since the deadline, so that everything that had arrived was read.

        It may have been busy, or the whole program stopped, while tokens waited in the socket.
        """
        if self._turns is None:
            self._turns = _LoopTurns(self._loop)
        if is_over := self._turns.are_over:
            self._turns = None
        return is_over

    def _give_up(self) -> None:
        if self._awaits_first:
            words = (
                f"no token came within first_token_timeout={self._settings.first_token:g} s: "
                "a long prompt on a slow machine may need more"
            )
            self._end(FirstTokenTimeoutError(words))
        else:
            self._end(IdleTimeoutError(f"no further token came within idle_timeout={self._settings.idle:g} s"))

    def _end(self, error: LLMSessionError) -> None:
        if (end := self._end_reply()) is not None:
            end(error)

    def _wait_until(self, when: float) -> None:
        self._progress_deadline = when
        self.deadline = min(when, self._total_deadline)
