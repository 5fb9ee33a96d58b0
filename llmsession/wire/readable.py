"""Readable: a reply that is iterated for its pieces or events, then asked for the whole. Any thread may end it.

It holds no task and no cancel scope between two reads. Ending it sets a verdict and wakes the reader, which finds the
verdict. `ReplyStream` (one request) and `ChatStream` (one turn of a conversation) build on it.
"""

from __future__ import annotations

import abc
import math
import sys
import threading
import time
import warnings
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TextIO

import anyio

from llmsession.system.latch import call_soon, current_loop
from llmsession.system.service_thread import later
from llmsession.types.completion import Completion, StopReason
from llmsession.types.errors import LLMSessionError, UsageError
from llmsession.types.events import Event, TextDelta


class ActiveReplies:
    """The replies of one session that are in progress, held weakly, so that a forgotten one frees its slot.

    A signal handler may call it at any moment, so there is no lock: each step is a single operation on a dict.
    """

    def __init__(self) -> None:
        self._replies: dict[int, weakref.ref[Readable]] = {}

    def add(self, reply: Readable) -> None:
        """Let `end_all` end this reply, until it is discarded."""
        self._replies[id(reply)] = weakref.ref(reply)

    def discard(self, reply: Readable) -> None:
        """Remove the reply. No effect if it is not registered."""
        self._replies.pop(id(reply), None)

    @property
    def count(self) -> int:
        """The number of replies in progress."""
        return len(self._replies)

    def end_all(self, make_verdict: Callable[[], StopReason | LLMSessionError]) -> None:
        """End each reply with a verdict of its own. Thread-safe; never blocks."""
        for reference in list(self._replies.values()):
            if (reply := reference()) is not None:
                reply.end(make_verdict())


class Readable(abc.ABC):
    """Use it in an `async with` block: iterate it for pieces of text, or `events()`, then `await result()`."""

    _entered = False
    _left = False
    _way: str | None = None
    _completion: Completion | None = None
    _error: BaseException | None = None
    _verdict: StopReason | LLMSessionError | None = None

    def __init__(self, active: ActiveReplies) -> None:
        self._active = active
        # A signal handler may end a reply while this very thread holds the lock.
        self._lock = threading.RLock()
        self._waiting: tuple[anyio.CancelScope, Any] | None = None

    @property
    @abc.abstractmethod
    def id(self) -> str:
        """The reply's name in log lines."""

    @abc.abstractmethod
    async def _next(self) -> Event | None:
        """Return the next event, or None after the last. Sets the completion or the error at the end."""

    @abc.abstractmethod
    def _abandon(self) -> None:
        """Free everything that a reply holds which was forgotten inside its block. Never blocks."""

    @abc.abstractmethod
    def _cut(self) -> None:
        """Wake the reader after a verdict was set. Thread-safe; never blocks."""

    def __del__(self) -> None:
        if self._entered and not self._left:
            # In another thread, since a finalizer may run while this one holds any lock; and before the warning, which
            # may be an error.
            later(self._abandon)
            warnings.warn(f"{self.id} was never closed: use `async with`", ResourceWarning, stacklevel=1, source=self)

    # Ending it.

    def cancel(self) -> None:
        """End it now, with the text so far and StopReason.INTERRUPTED. Call it from any task or thread."""
        self.end(StopReason.INTERRUPTED)

    def end(self, verdict: StopReason | LLMSessionError) -> None:
        """End it with a reason or an error; the first verdict counts. Thread-safe, never blocks."""
        with self._lock:
            if self._verdict is not None or self._completion is not None or self._error is not None:
                return
            self._verdict = verdict
            waiting = self._waiting
        self._cut()
        if waiting is not None:
            scope, loop = waiting
            call_soon(loop, scope.cancel)

    async def _until_verdict(self, wait: Callable[[], Awaitable[None]], deadline: float = math.inf) -> bool:
        """Await `wait` until there is a verdict or no time is left. Return whether it finished.

        `deadline` is on the clock of time.monotonic.
        """
        with anyio.CancelScope() as scope:
            if deadline < math.inf:
                scope.deadline = anyio.current_time() + deadline - time.monotonic()
            with self._lock:
                # In this order: a signal handler between the two lines cancels the scope, or its verdict is seen.
                self._waiting = (scope, current_loop())
                if self._verdict is not None:
                    scope.cancel()
            try:
                await wait()
            finally:
                with self._lock:
                    self._waiting = None
            return True
        return False

    # Reading it.

    async def __anext__(self) -> str:
        self._go("text")
        while True:
            event = await self._next()
            if isinstance(event, TextDelta) and event.text:
                return event.text
            if event is None:
                raise StopAsyncIteration

    def __aiter__(self) -> AsyncIterator[str]:
        self._go("text")
        return self

    def events(self) -> AsyncIterator[Event]:
        """Iterate over everything that happens, up to the Finished; either this or plain iteration, not both.

        Raises: UsageError.
        """
        self._go("events")
        return _Events(self._next)

    async def result(self) -> Completion:
        """Read the rest and return the whole reply.

        Raises: the error that ended the reply, with the text so far as its `partial`.
        """
        if self._completion is None and self._error is None:
            self._check_inside()
            while await self._next() is not None:
                pass
        if self._error is not None:
            raise self._error
        assert self._completion is not None  # noqa: S101 - _next ends with one of the two
        return self._completion

    async def print(self, file: TextIO | None = None, *, end: str = "\n", flush: bool = True) -> Completion:
        """Write the pieces to `file` (default: stdout) as they arrive, and return the whole reply.

        Raises: what `result` raises.
        """
        out = file if file is not None else sys.stdout
        async for piece in self:
            out.write(piece)
            if flush:
                out.flush()
        out.write(end)
        if flush:
            out.flush()
        return await self.result()

    def _go(self, way: str) -> None:
        self._check_inside()
        if self._way is not None and self._way != way:
            raise UsageError("iterate a reply for its text or for its events(), not for both")
        self._way = way

    def _enter(self) -> None:
        if self._entered:
            raise UsageError("a reply can be entered once: ask for another")
        self._entered = True
        self._active.add(self)

    def _check_inside(self) -> None:
        if not self._entered:
            raise UsageError("a reply is read inside its block: async with session.prompt_streaming(…) as stream: …")
        if self._left and self._completion is None and self._error is None:
            raise UsageError("the block of this reply was left, and its connection closed: read it inside the block")


class _Events:
    """An asynchronous iterator. It is not a generator: one that is not exhausted causes trouble under trio."""

    def __init__(self, read_next: Callable[[], Awaitable[Event | None]]) -> None:
        self._read_next = read_next

    def __aiter__(self) -> _Events:
        return self

    async def __anext__(self) -> Event:
        event = await self._read_next()
        if event is None:
            raise StopAsyncIteration
        return event
