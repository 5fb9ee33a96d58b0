"""Conversations of each kind: kept by nobody, by a memory in RAM, by one in a file."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from llmsession import Conversation, Memory


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Where there is no file yet."""
    return tmp_path / "memory.db"


@pytest.fixture(params=["kept by nobody", "in RAM", "in a file"])
async def conversation(request: pytest.FixtureRequest, database: Path) -> AsyncIterator[Conversation]:
    """A new one."""
    if request.param == "kept by nobody":
        yield Conversation.in_ram()
        return
    async with Memory.open(database if request.param == "in a file" else None) as memory:
        yield await memory.get("ann", "general")
