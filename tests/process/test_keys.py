"""A key is answered once, by whichever process, and whoever is killed in the middle of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from llmsession import Chat, Memory, Sampling, Session, TurnState
from tests.engines import Engine

pytestmark = pytest.mark.anyio

BOUND = 60
COUNT = "count to 100"
MOST = 120
# Says where it is on stdout: a line when the first piece came, and the whole reply as JSON.
PROGRAM = """
import asyncio, json, sys
from llmsession import Chat, Memory, Sampling, Session

async def main():
    path, key, text, most, fields = json.loads(sys.argv[1])
    async with Session(**fields) as session, Memory.open(path) as memory:
        chat = Chat(session, await memory.get("42"), sampling=Sampling.GREEDY, max_tokens=most)
        print("ready", flush=True)
        sys.stdin.readline()
        async with chat.stream(text, key=key) as stream:
            length = 0
            async for piece in stream:
                length += len(piece)
                print(length, flush=True)
            print((await stream.result()).to_json(), flush=True)

asyncio.run(main())
"""


class Asker:
    """One process that asks with a key."""

    def __init__(self, engine: Engine, path: Path, key: str, text: str = COUNT) -> None:
        given = [str(path), key, text, MOST, engine.options()]
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, json.dumps(given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=dict(os.environ),
        )
        assert "ready" == self.read()

    def read(self) -> str:
        """A line."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self) -> None:
        """Now."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def finish(self) -> dict[str, Any]:
        """The reply."""
        out, err = self.process.communicate(timeout=BOUND)
        assert 0 == self.process.returncode, err
        reply: dict[str, Any] = json.loads(out.splitlines()[-1])
        return reply

    def kill(self) -> None:
        """As the kernel would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate(timeout=BOUND)


@pytest.fixture
def anyio_backend() -> str:
    """The processes are what is tested: one event loop will do."""
    return "asyncio"


async def unbroken(engine: Engine) -> str:
    """What an idle engine says."""
    async with Session(**engine.options()) as session:
        return (await session.prompt(COUNT, temperature=0, max_tokens=MOST)).text


async def test_two_processes_with_one_key_get_one_reply(engine: Engine, tmp_path: Path) -> None:
    """CAPABILITIES D4: in another process it is waited for; no turn is said twice."""
    path = tmp_path / "bot.db"
    askers = [Asker(engine, path, "event-1") for _ in range(2)]
    for asker in askers:
        asker.ask()
    first, second = [asker.finish() for asker in askers]
    assert first == second
    async with Memory.open(path) as memory:
        conversation = await memory.get("42")
        assert [TurnState.COMPLETE] * 2 == [turn.state for turn in conversation.turns]
        assert first["text"] == conversation.messages[-1].content


async def test_a_killed_reply_is_finished_by_who_waits_for_it(engine: Engine, tmp_path: Path) -> None:
    """CAPABILITIES D4, D2: the kernel frees its conversation; what had been checkpointed is continued, not repeated."""
    path, whole = tmp_path / "bot.db", await unbroken(engine)
    first, second = (Asker(engine, path, "event-1") for _ in range(2))
    first.ask()
    first.read()
    second.ask()
    first.read()
    first.kill()
    assert whole == second.finish()["text"]
    async with Memory.open(path) as memory:
        assert [COUNT, whole] == [message.content for message in (await memory.get("42")).messages]


async def test_a_restarted_program_takes_up_what_was_begun(engine: Engine, tmp_path: Path) -> None:
    """CAPABILITIES D4: `unfinished()` lists what a restarted bot should take up; a reply is posted once."""
    path, whole = tmp_path / "bot.db", await unbroken(engine)
    asker = Asker(engine, path, "event-1")
    asker.ask()
    for _ in range(3):
        asker.read()
    asker.kill()
    async with Session(**engine.options()) as session, Memory.open(path) as memory:
        with anyio.fail_after(BOUND):
            (found,) = await memory.unfinished()
            assert ("event-1", COUNT, TurnState.PENDING) == (
                found.turn.key,
                found.turn.message.content,
                found.turn.state,
            )
            chat = Chat(session, found.conversation, sampling=Sampling.GREEDY, max_tokens=MOST)
            assert whole == (await chat.send(found.turn.message, key=found.turn.key)).text
            (posted,) = await memory.unfinished()
            assert posted.reply is not None
            assert whole == posted.reply.message.content
            await found.conversation.mark_delivered(posted.reply.id)
            assert [] == await memory.unfinished()
            assert TurnState.DELIVERED == found.conversation.path[-1].state
