"""Waits until a child is ready: polls a probe until it exits, or until a deadline that progress extends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable

import anyio
import msgspec

from llmsession.system.latch import Latch

# A small model loads in 25 ms, so the first looks come often; after a second nobody notices 10 ms.
FIRST_INTERVAL = 0.001
LATER_INTERVAL = 0.01
OFTEN_FOR = 1.0


class ProbeResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a probe saw. Any change of `progress` extends the deadline."""

    ready: bool = False
    progress: Hashable = None


class NotReadyError(Exception):
    """The deadline passed without readiness or progress."""


Probe = Callable[[], Awaitable[ProbeResult]]


async def await_ready(probe: Probe, exited: Latch, *, timeout: float) -> bool:
    """Return True when the probe reports ready, False if the child exits first. Raises NotReadyError.

    `timeout` is in seconds, counted again from each progress.
    """
    started = anyio.current_time()
    deadline = started + timeout
    progress: Hashable = None
    while not exited.is_set():
        result = ProbeResult()
        with anyio.CancelScope(deadline=deadline) as look:
            result = await probe()
        if result.ready:
            return True
        if look.cancelled_caught:  # what it would have seen is unknown: no sign of progress
            raise NotReadyError
        now = anyio.current_time()
        if result.progress != progress:
            progress, deadline = result.progress, now + timeout
        if now >= deadline:
            raise NotReadyError
        with anyio.move_on_after(FIRST_INTERVAL if now - started < OFTEN_FOR else LATER_INTERVAL):
            await exited.wait()
    return False
