"""Random walks through the life of a session: opened, asked, closed, cancelled, killed, stopped, in every order.

A property test, with the fake engine: whatever was done, no process is left, nobody waits for ever, and no two engines
of a session run at once. DESIGN 4, rows B8 to B11.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmsession import LLMSessionError, Session
from llmsession.processes.child import Child, State
from llmsession.session.server.owned import OwnedServer
from tests import fake_llama_server


@dataclass
class Walk:
    """One session after the other."""

    server: Path
    cache: Path
    session: Session | None = None

    def make(self) -> Session:
        """The one that there is, or a new one."""
        if self.session is None:
            self.session = Session(
                backend="llama-server",
                server_path=self.server,
                cache_dir=self.cache,
                prompt_encoding="chatml",
                idle_timeout=0.2,
                restart_limit=3,
            )
        return self.session

    def forget(self) -> Session:
        """The one that there is, for the last time."""
        session, self.session = self.make(), None
        return session

    def signal(self, number: signal.Signals) -> None:
        """To the engine that runs, if one does."""
        child = own_server(self.make())._child
        if child is not None and child.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, number)


def own_server(session: Session) -> OwnedServer:
    """Of a session that is not for a remote."""
    assert isinstance(session._server, OwnedServer)
    return session._server


async def close_in_a_thread(walk: Walk) -> None:
    """In another event loop."""
    session = walk.forget()
    await anyio.to_thread.run_sync(lambda: anyio.run(session.aclose))


async def cancel_open(walk: Walk) -> None:
    """At some moment of the start."""
    with anyio.move_on_after(0.03):
        await walk.make().__aenter__()


async def prompt(walk: Walk) -> None:
    """To its end."""
    assert (await walk.make().prompt("hello")).text in ("word1 word2 word3 ", "word1 word2 ", "word1 ", "")


async def cancel_prompt(walk: Walk) -> None:
    """At some moment."""
    with anyio.move_on_after(0.02):
        await walk.make().prompt("hello")


async def leave_stream(walk: Walk) -> None:
    """After its first word."""
    async with walk.make().prompt_streaming("hello") as stream:
        await anext(aiter(stream), "")


async def interrupt(walk: Walk) -> None:
    """Everything that is asked."""
    walk.make().interrupt()


async def kill(walk: Walk) -> None:
    """The engine."""
    walk.signal(signal.SIGKILL)


async def stop(walk: Walk) -> None:
    """The engine, which then hangs."""
    walk.signal(signal.SIGSTOP)


DEEDS: dict[str, Callable[[Walk], Awaitable[object]]] = {
    "open": lambda walk: walk.make().__aenter__(),
    "cancel an open": cancel_open,
    "prompt": prompt,
    "cancel a prompt": cancel_prompt,
    "leave a stream": leave_stream,
    "tokenize": lambda walk: walk.make().tokenize("hi"),
    "interrupt": interrupt,
    "kill": kill,
    "stop": stop,
    "wait": lambda _: anyio.sleep(0.02),
    "close": lambda walk: walk.forget().aclose(),
    "close in a thread": close_in_a_thread,
}


async def walk_on(walk: Walk, groups: list[list[str]]) -> None:
    """Each group of deeds at once, one group after the other; then the end."""

    async def attempt(deed: str) -> None:
        with contextlib.suppress(LLMSessionError):
            await DEEDS[deed](walk)

    for group in groups:
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                for deed in group:
                    tasks.start_soon(attempt, deed)
    session = walk.make()
    child = own_server(session)._child
    with anyio.fail_after(10):
        await session.aclose()
        await session.aclose()
    assert not session._replies.active.count
    assert not session._server.is_starting
    if child is not None:
        assert child.state in (State.STOPPED, State.FAILED)
        assert child.exited.is_set()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_every_order_of_things_ends_with_nothing_left(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 5: no process left, no waiter forgotten, no double start."""
    keep = OwnedServer._keep_child
    doubled: list[str] = []

    def keep_only_one(self: OwnedServer, child: Child) -> None:
        if self._child is not None and not self._child.exited.is_set():
            doubled.append(f"{self._child.state} and another")
        keep(self, child)

    monkeypatch.setattr(OwnedServer, "_keep_child", keep_only_one)
    server = fake_llama_server.wrapper(tmp_path, "--tokens 3 --ready-after 0.02")

    @settings(
        max_examples=int(os.environ.get("LLMSESSION_TEST_WALKS", "40")),
        deadline=None,
        database=None,
        derandomize="LLMSESSION_TEST_WALKS" not in os.environ,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(st.lists(st.lists(st.sampled_from(sorted(DEEDS)), min_size=1, max_size=5), min_size=1, max_size=6))
    def check(groups: list[list[str]]) -> None:
        walk = Walk(server, tmp_path / "cache")
        anyio.run(walk_on, walk, groups, backend=backend)
        assert [] == psutil.Process().children()
        assert [] == list((tmp_path / "cache").glob("running/*"))
        assert [] == doubled

    check()
