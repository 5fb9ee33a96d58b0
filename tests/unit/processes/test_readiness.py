"""await_ready: a probe, against an exit, against a deadline that moves with progress. DESIGN 2 and 4."""

from __future__ import annotations

from collections.abc import Hashable

import anyio
import pytest

from llmsession.processes.readiness import NotReadyError, Probe, ProbeResult, await_ready
from llmsession.system.latch import Latch

pytestmark = pytest.mark.anyio


def scripted(*readings: ProbeResult) -> Probe:
    """Gives these, then the last one for ever."""
    left = list(readings)

    async def probe() -> ProbeResult:
        await anyio.lowlevel.checkpoint()
        return left.pop(0) if len(left) > 1 else left[0]

    return probe


def progress(*values: Hashable) -> list[ProbeResult]:
    """Not ready, but getting on."""
    return [ProbeResult(progress=value) for value in values]


async def test_it_is_ready_when_the_probe_says_so() -> None:
    """Issue 2: ready only when the server says so."""
    with anyio.fail_after(10):
        assert await await_ready(scripted(*progress(1, 2), ProbeResult(ready=True)), Latch(), timeout=5)


async def test_an_exit_ends_the_wait_at_once() -> None:
    """Issue 2: early exit is noticed at once: by the latch, not by a look at the end of some interval."""
    exited = Latch()
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:

            async def wait() -> None:
                assert not await await_ready(scripted(ProbeResult()), exited, timeout=1000)

            group.start_soon(wait)
            await anyio.lowlevel.checkpoint()
            exited.set()


async def test_without_progress_it_is_given_up() -> None:
    """DESIGN 2: the deadline."""
    with anyio.fail_after(10), pytest.raises(NotReadyError):
        await await_ready(scripted(*progress("same")), Latch(), timeout=0.05)


async def test_any_change_of_progress_moves_the_deadline() -> None:
    """DESIGN 2: many times the deadline in all, and never that long without a change."""
    begun = anyio.current_time()

    async def probe() -> ProbeResult:
        passed = anyio.current_time() - begun
        return ProbeResult(ready=passed > 1.5, progress=int(passed / 0.01))

    with anyio.fail_after(20):
        assert await await_ready(probe, Latch(), timeout=0.4)


async def test_a_probe_that_hangs_is_given_up_as_well() -> None:
    """A server that accepts and never answers."""

    async def probe() -> ProbeResult:
        await anyio.sleep_forever()
        raise AssertionError

    with anyio.fail_after(10), pytest.raises(NotReadyError):
        await await_ready(probe, Latch(), timeout=0.05)


async def test_what_a_probe_raises_is_raised() -> None:
    """An error of a callback of the user's, such as on_progress, is not hidden."""

    async def probe() -> ProbeResult:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await await_ready(probe, Latch(), timeout=5)
