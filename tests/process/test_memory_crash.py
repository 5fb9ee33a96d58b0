"""`kill -9` at any moment: what was acknowledged is there, once. Rows D2, D4; DESIGN 1."""

from __future__ import annotations

import random
from pathlib import Path

import anyio.to_thread
import pytest

from llmsession import Session
from tests.engines import Engine
from tests.process.memory_kills import Killed
from tests.process.memory_program import finish

pytestmark = pytest.mark.anyio

KILLS = 12


@pytest.fixture
def anyio_backend() -> str:
    """The program that is killed draws its own."""
    return "asyncio"


async def test_what_was_acknowledged_survives_kill_9(engine: Engine, tmp_path: Path) -> None:
    """Eight writers and a chat with keys, killed at random moments, one life after another on one file.

    Every acknowledged turn is there, none twice, every key has one reply, which is the unbroken one. `scripts/soak
    memory` does more of them.
    """
    database = tmp_path / "memory.db"
    async with Session(**engine.options()) as session:
        assert session.base_url is not None
        assert session.api_key is not None
        killed = Killed(database, random.Random(1), (session.base_url, session.api_key))
        for _ in range(KILLS):
            assert [] == await anyio.to_thread.run_sync(killed.kill_once)
        assert [] == await finish(database, session)
    kinds = [line.partition(" ")[0] for line in killed.lines]
    assert kinds.count("turn") > 10 * KILLS
    assert kinds.count("reply") >= KILLS // 3
