"""Latch: set in any thread, waited for in any event loop. DESIGN 4."""

from __future__ import annotations

import threading

import anyio
import pytest

from llmsession.system.latch import Latch

pytestmark = pytest.mark.anyio


async def test_a_thread_releases_all_who_wait() -> None:
    """A child's end is seen in a thread; several tasks may wait for it."""
    latch = Latch()
    setter = threading.Thread(target=latch.set)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(latch.wait)
            await anyio.wait_all_tasks_blocked()
            setter.start()
    setter.join()
    assert latch.is_set()


@pytest.mark.parametrize("other", ["asyncio", "trio"])
async def test_two_event_loops_may_wait_for_the_same(other: str) -> None:
    """Opened in one loop, closed from another."""
    latch = Latch()
    waits = threading.Event()

    async def wait() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(latch.wait)
            await anyio.wait_all_tasks_blocked()
            waits.set()

    thread = threading.Thread(target=anyio.run, args=(wait,), kwargs={"backend": other})
    thread.start()
    waits.wait(10)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(latch.wait)
            await anyio.wait_all_tasks_blocked()
            latch.set()
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize("other", ["asyncio", "trio"])
async def test_a_loop_that_ended_while_it_waited_keeps_nobody_from_being_told(other: str) -> None:
    """A loop may be torn down with a waiter in it; the others must still be released."""
    latch = Latch()

    async def give_up() -> None:
        with anyio.move_on_after(0):
            await latch.wait()

    thread = threading.Thread(target=anyio.run, args=(give_up,), kwargs={"backend": other})
    thread.start()
    thread.join(10)
    assert {} == latch._waiters
    latch.set()
    with anyio.fail_after(10):
        await latch.wait()


async def test_what_was_set_stays_set() -> None:
    """Again and again."""
    latch = Latch()
    assert not latch.wait_blocking(0)
    latch.set()
    latch.set()
    assert latch.wait_blocking(0)
    await latch.wait()


async def test_a_cancelled_wait_is_forgotten() -> None:
    """Nothing piles up in a latch that is waited for again and again."""
    latch = Latch()
    async with anyio.create_task_group() as group:
        group.start_soon(latch.wait)
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    assert {} == latch._waiters
