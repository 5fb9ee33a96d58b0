"""Latch: an event that any thread may set and any event loop may wait for.

anyio.Event belongs to one loop. A child is opened in one loop, may be closed from another, and ends in a thread.
"""

from __future__ import annotations

import threading
from typing import Any

import anyio
from anyio.lowlevel import current_token


class Latch:
    """Once set, it stays set. `set` never blocks and may be called from any thread, again and again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiters: dict[anyio.Event, Any] = {}
        self._flag = threading.Event()

    def is_set(self) -> bool:
        """Whether it was set."""
        return self._flag.is_set()

    def set(self) -> None:
        """Release everyone who waits now or later."""
        with self._lock:
            self._flag.set()
            waiters, self._waiters = self._waiters, {}
        for event, loop in waiters.items():
            call_soon(loop, event.set)

    async def wait(self) -> None:
        """Until it is set. May be cancelled."""
        event = anyio.Event()
        with self._lock:
            if self._flag.is_set():
                return
            self._waiters[event] = current_loop()
        try:
            await event.wait()
        finally:
            with self._lock:
                self._waiters.pop(event, None)

    def wait_blocking(self, timeout: float | None = None) -> bool:
        """The same for a thread without an event loop; False after `timeout` seconds."""
        return self._flag.wait(timeout)


def current_loop() -> Any:
    """The running event loop (asyncio) or its token (trio), to be given to `call_soon` later."""
    return current_token().native_token


def call_soon(loop: Any, function: Any) -> bool:
    """Have `function()` called in that loop, soon, from any thread. False if the loop has ended."""
    schedule = getattr(loop, "call_soon_threadsafe", None) or loop.run_sync_soon
    try:
        schedule(function)
    except RuntimeError:  # asyncio: the loop is closed; trio: RunFinishedError
        return False
    return True
