"""Forked copies of the program, as web servers make them: they own nothing of the original's. DESIGN 4."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import psutil
import pytest

from tests.engines import Engine
from tests.process.programs import GONE_WITHIN, is_alive, wait_for

PROGRAM = """
import anyio, gc, json, os, sys, time
from llmsession import Session

options = json.loads(sys.argv[1])
backend = sys.argv[2]

async def forget(session):
    pass

async def close(session):
    with anyio.fail_after(10):
        await session.aclose()
        await session.aclose()

async def another(session):
    async with Session(**options) as other:
        assert other.pid != session.pid
        print("other", await other.get_health(), flush=True)

async def use(session):
    print("used", await session.get_health(), flush=True)

async def hold(session):
    print("copy", os.getpid(), flush=True)
    time.sleep(3600)

# Between two event loops: a copy of a running one shares its epoll with it, which no library can mend.
session = anyio.run(lambda: Session.open(**options), backend=backend)
pid = session.pid
print("engine", pid, flush=True)
if (copy := os.fork()) == 0:
    what = {"forget": forget, "close": close, "another": another, "use": use, "hold": hold}[sys.argv[3]]
    anyio.run(what, session, backend=backend)
    del session
    gc.collect()
    os._exit(0)
_, status = os.waitpid(copy, 0)
print("copy ended", os.waitstatus_to_exitcode(status), flush=True)

async def look():
    with anyio.fail_after(10):
        print("still", session.pid == pid, await session.get_health(), flush=True)
        await session.aclose()

anyio.run(look, backend=backend)
"""


def arguments(engine: Engine, what: str, backend: str = "asyncio") -> list[str]:
    """The program, in whose copy this is done."""
    import json

    options: dict[str, Any] = engine.options()
    return [sys.executable, "-W", "ignore", "-c", PROGRAM, json.dumps(options), backend, what]


@pytest.mark.parametrize("what", ["forget", "close", "use"])
def test_what_a_copy_does_with_its_copy_of_the_session_does_not_end_the_engine(engine: Engine, what: str) -> None:
    """Nothing is killed that we did not start; a worker that ends, or closes, must not take the original's engine."""
    done = subprocess.run(arguments(engine, what), capture_output=True, text=True, check=False, timeout=60)
    assert "" == done.stderr
    assert ["copy ended 0", "still True ok"] == done.stdout.splitlines()[-2:]


def test_a_copy_starts_an_engine_of_its_own_while_the_original_has_one(engine: Engine) -> None:
    """The copy has none of the original's threads: a spawner of its own."""
    done = subprocess.run(arguments(engine, "another", "trio"), capture_output=True, text=True, check=False, timeout=60)
    assert "" == done.stderr
    assert ["other ok", "copy ended 0", "still True ok"] == done.stdout.splitlines()[1:]


def test_the_engine_ends_with_the_original_though_a_copy_holds_its_stdin(engine: Engine) -> None:
    """DESIGN 4, three ways at once: a copy holds the pipe open, so here the kernel's signal is what ends it."""
    with subprocess.Popen(arguments(engine, "hold"), stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        pids = dict(line.split() for line in (program.stdout.readline(), program.stdout.readline()))
        copy = psutil.Process(int(pids["copy"]))
        try:
            program.kill()
            wait_for(lambda: not is_alive(int(pids["engine"])), seconds=GONE_WITHIN)
        finally:
            copy.kill()
            program.wait()


LEAVES = """
import anyio, os, sys
from llmsession import Session

session = anyio.run(lambda: Session.open(backend="embedded", threads=1))
session._server._lock.acquire()  # as another thread may hold it at the moment of the fork
if (copy := os.fork()) == 0:
    if "close" in sys.argv:
        anyio.run(session.aclose)
    sys.exit(0)
session._server._lock.release()
_, status = os.waitpid(copy, 0)
print("copy ended", os.waitstatus_to_exitcode(status), flush=True)

async def look():
    print((await session.prompt('reply with "ok chief"')).text, flush=True)
    await session.aclose()

anyio.run(look)
"""


@pytest.mark.parametrize("what", ["leave", "close"])
def test_a_copy_that_leaves_waits_for_no_lock_and_says_nothing(what: str) -> None:
    """A1: at its exit it waited for a lock that no thread of it held, or warned of a session not its own."""
    command = [sys.executable, "-W", "always", "-c", LEAVES, what]
    done = subprocess.run(command, capture_output=True, timeout=30, check=True)
    assert b"copy ended 0\nok chief\n" == done.stdout
    assert b"never closed" not in done.stderr
