"""The contract suite runs over each real engine and both APIs; one session serves all tests that leave it as it was."""

from __future__ import annotations

from collections.abc import Iterator

import anyio
import pytest

from llmsession import Session
from tests.engines import ALL_ENGINES, Engine


@pytest.fixture(scope="module", params=ALL_ENGINES, ids=lambda engine: engine.backend)
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each real engine that is here, for sessions that outlive a test."""
    found: Engine = request.param
    return found


@pytest.fixture(scope="module", params=[None, "chat"], ids=["completion", "chat"])
def api(request: pytest.FixtureRequest) -> str | None:
    """What prompt_encoding= makes of it: /completion with our own encoding, or the chat endpoint."""
    return None if request.param is None else str(request.param)


@pytest.fixture(scope="module")
def session(engine: Engine, api: str | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """Opened and closed in event loops of their own, used in those of the tests: a session is bound to none."""
    cache = tmp_path_factory.mktemp("cache")
    session = Session(**engine.options(prompt_encoding=api, cache_dir=cache))

    async def open_it() -> None:
        await session.__aenter__()

    anyio.run(open_it)
    yield session
    anyio.run(session.aclose)
