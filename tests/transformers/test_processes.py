"""`kill -9` of the program, and closing at any moment: the process of backend `transformers` is gone. Rows B8, B9."""

from __future__ import annotations

import anyio
import psutil
import pytest

from llmsession import ClosedError, Session
from tests.engines import Engine
from tests.process.test_orphans import engines_of, kill_and_look, let_load, read_until, spawn

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("seconds", [0.0, 0.5, 1.5, 3.0])
def test_killed_while_it_loads(transformers: Engine, seconds: float) -> None:
    """DESIGN 4: at once, while Python imports torch, and while the weights are read."""
    program = spawn(transformers.options(), stay_idle=True)
    read_until(program, b"begin")
    engines = engines_of(program)
    let_load(seconds)
    kill_and_look(program, engines)


@pytest.mark.parametrize("moment", ["idle", "generating"])
def test_killed_when_it_is_ready(transformers: Engine, moment: str) -> None:
    """DESIGN 4: the threads of torch end with their process."""
    program = spawn(transformers.options(), stay_idle=moment == "idle")
    read_until(program, moment.encode())
    kill_and_look(program, engines_of(program))


async def test_closing_with_a_reply_in_flight_is_bounded_and_leaves_nothing(transformers: Engine) -> None:
    """CAPABILITIES B8: also where somebody else's connection is open, for which uvicorn would wait for ever."""
    session = await Session.open(**transformers.options())
    (engine,) = psutil.Process().children(recursive=True)
    address = session.base_url.removeprefix("http://").split(":")
    async with await anyio.connect_tcp(address[0], int(address[1])) as stranger:
        await stranger.send(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 100\r\n\r\n")
        async with session.prompt_streaming("count to 100") as stream:
            await anext(stream)
            with anyio.fail_after(10):
                await session.aclose()
            with pytest.raises(ClosedError):
                await stream.result()
    assert not engine.is_running()
    assert [] == psutil.Process().children(recursive=True)


async def test_cancelling_the_start_leaves_nothing(transformers: Engine) -> None:
    """Issue 1: cancel during start."""
    with anyio.move_on_after(1.0):
        async with Session(**transformers.options()):
            pytest.fail("it takes longer to import torch")
    assert [] == psutil.Process().children(recursive=True)
