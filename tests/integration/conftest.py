"""One session on each engine, for tests that leave it as it was."""

from __future__ import annotations

from collections.abc import Iterator

import anyio
import pytest

from llmsession import Session
from tests.engines import ENGINES


@pytest.fixture(scope="module", params=ENGINES, ids=lambda engine: engine.backend)
def engine_session(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """Opened and closed in loops of their own: a session is bound to none."""
    session = Session(cache_dir=tmp_path_factory.mktemp("cache"), **request.param.options())

    async def open_it() -> None:
        await session.__aenter__()

    anyio.run(open_it)
    yield session
    anyio.run(session.aclose)
