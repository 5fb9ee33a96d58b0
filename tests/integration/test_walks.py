"""The walks of three calls through the package: how many files each passes. A ceiling, so that detours are noticed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Self

import pytest

import llmsession
from llmsession import Chat, Memory, Session
from tests.engines import EMBEDDED

pytestmark = pytest.mark.anyio

PACKAGE = str(Path(llmsession.__file__).parent)


@pytest.fixture
def anyio_backend() -> str:
    """The walk is that of asyncio: one loop is enough to count files."""
    return "asyncio"


class Walk:
    """Notes each file of the package in which a function is called, in this thread."""

    def __init__(self) -> None:
        self.files: set[str] = set()

    def __enter__(self) -> Self:
        sys.setprofile(self._note)
        return self

    def __exit__(self, *exc: object) -> None:
        sys.setprofile(None)

    def _note(self, frame: FrameType, event: str, argument: Any) -> Callable[..., object] | None:
        del argument
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            self.files.add(frame.f_code.co_filename.removeprefix(PACKAGE))
        return None


async def test_an_open_a_prompt_and_a_send_pass_few_files(tmp_path: Path) -> None:
    """HOUSE: before the rooms were made, an open passed 42 files, a prompt 28 and a send 42.

    Since then threads survive any exception (service_thread.py), a file in use is marked, files are replaced in one
    place (atomic_file.py), what makes replies is apart from the public calls (replies.py), and a thought is split off
    the answer of our own encodings as well (stream_filters.py).
    """
    with Walk() as opened:
        session = await Session.open(**EMBEDDED.options())
    try:
        await session.prompt("hi")  # what is imported late is imported now
        with Walk() as prompted:
            await session.prompt("hi")
        async with Memory.open(tmp_path / "memory.db") as memory:
            chat = Chat(session, await memory.get(user="ann"))
            await chat.send("hi")
            with Walk() as sent:
                await chat.send("hi")
    finally:
        await session.aclose()
    passed = {"open": len(opened.files), "prompt": len(prompted.files), "send": len(sent.files)}
    assert all(passed[name] <= most for name, most in {"open": 46, "prompt": 28, "send": 44}.items()), passed
