"""The contract suite runs over each real engine and both APIs; one session serves all tests that leave it as it was."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import anyio
import psutil
import pytest

from llmsession import Session
from tests.engines import ENGINES, Engine


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """As everywhere, but the shared session's child and the thread that attends it were there before."""
    if "session" in request.fixturenames:
        request.getfixturevalue("session")
    children = set(psutil.Process().children(recursive=True))
    threads = set(threading.enumerate())
    yield
    gc.collect()
    left = [child for child in psutil.Process().children(recursive=True) if child not in children]
    _, alive = psutil.wait_procs(left, timeout=2)
    names = [" ".join(child.cmdline()) for child in alive if child.is_running()]
    for child in alive:
        child.kill()
    assert [] == names
    for thread in threading.enumerate():
        if thread not in threads and thread.name.startswith("llmsession-attend"):
            thread.join(timeout=2)
            assert not thread.is_alive(), thread.name


@pytest.fixture(scope="session", params=ENGINES, ids=lambda engine: engine.backend)
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each real engine that is here, for sessions that outlive a test."""
    found: Engine = request.param
    return found


@pytest.fixture(scope="session", params=[None, "chat"], ids=["completion", "chat"])
def api(request: pytest.FixtureRequest) -> str | None:
    """What prompt_encoding= makes of it: /completion with our own encoding, or the chat endpoint."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def session(engine: Engine, api: str | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """Opened and closed in event loops of their own, used in those of the tests: a session is bound to none."""
    cache = tmp_path_factory.mktemp("cache")
    session = Session(**engine.options(prompt_encoding=api, cache_dir=cache))

    async def open_it() -> None:
        await session.__aenter__()

    anyio.run(open_it)
    yield session
    anyio.run(session.aclose)
