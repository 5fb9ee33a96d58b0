"""A program that is killed while what its engine has read is being saved leaves a usable cache. Row D12."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from llmsession import Message, Session
from llmsession.session.kv.store import KvStore
from tests.engines import EMBEDDED, kept_stream

pytestmark = pytest.mark.anyio

KILLS = 5
PROGRAM = """
import asyncio, sys
from llmsession import Message, Session
from llmsession.session.session import replies_of

async def main():
    async with Session(backend="embedded", threads=1, context_length=2048, cache_dir=sys.argv[1]) as session:
        for turn in range(1000):
            said = [Message.user(f"{turn} " + "the ferry leaves at noon " * 12)]
            replies = replies_of(session)
            settings = replies.check({"max_tokens": 2, "temperature": 0})
            async with replies.reply_to(f"user {turn % 3}", said, settings) as stream:
                await stream.result()
            print(turn, flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_kill_at_any_moment_leaves_a_usable_cache(tmp_path: Path) -> None:
    """Issue 7: kill -9 in the middle of a save: whatever a note names is whole, and the next program goes on."""
    rng = random.Random(3)
    folder = tmp_path / "kv"
    for _ in range(KILLS):
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)], stdout=subprocess.PIPE, bufsize=0)
        assert process.stdout is not None
        for _ in range(rng.randint(4, 12)):
            assert process.stdout.readline()
        await anyio.sleep(rng.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        for note in folder.glob("*.json"):
            stamp = note.name.partition("-")[0]
            files = KvStore(folder, stamp, 10**9)
            name = next(f"user {number}" for number in range(3) if note == files._note(f"user {number}"))
            found = files.find(name)
            assert found is not None
            assert files.is_whole(name, found)
    async with Session(**EMBEDDED.options(context_length=2048, cache_dir=tmp_path)) as session:
        said = [Message.user("0 " + "the ferry leaves at noon " * 12)]
        async with kept_stream(session, "user 0", said, max_tokens=12, temperature=0) as stream:
            reply = await stream.result()
        assert (await session.prompt(said, max_tokens=12, temperature=0)).text == reply.text
    assert list(folder.glob("*.json"))
