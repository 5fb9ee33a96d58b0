"""Several processes on one memory; forks, exits, and a file that may only be read. Rows D2, D4."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from llmsession import Memory, Message
from llmsession.memory.conversation import log_of
from tests.process.programs import wait_for

pytestmark = pytest.mark.anyio

PRELUDE = """
import anyio, gc, json, os, sys, time
from llmsession import LLMSessionError, Memory, Message
from llmsession.memory.conversation import log_of
database, backend = sys.argv[1:3]
def say(*words):
    os.write(1, (json.dumps(words) + "\\n").encode())
"""


@contextmanager
def program(code: str, database: Path, backend: str = "asyncio", *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """It runs, and is dead afterwards."""
    argv = [sys.executable, "-c", PRELUDE + code, str(database), backend, *arguments]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        try:
            yield running
        finally:
            running.kill()


def hear(running: subprocess.Popen[str]) -> list[Any]:
    """Its next line."""
    assert running.stdout is not None
    line = running.stdout.readline()
    assert line, "it ended without a word"
    words: list[Any] = json.loads(line)
    return words


HOLD = """
async def main():
    async with Memory.open(database) as memory:
        conversation = await memory.get("ann")
        async with log_of(conversation).answering():
            say("held")
            await anyio.to_thread.run_sync(sys.stdin.readline)
            await conversation.add("from the other process")
        say("let go")
        await anyio.to_thread.run_sync(sys.stdin.readline)
anyio.run(main, backend=backend)
"""


async def test_one_process_answers_at_a_time(tmp_path: Path, anyio_backend: str) -> None:
    """Row D4: the second waits, and sees what the first has said; another conversation does not wait."""
    with program(HOLD, tmp_path / "memory.db", anyio_backend) as other:
        assert hear(other) == ["held"]
        async with Memory.open(tmp_path / "memory.db") as memory:
            conversation, bob = await memory.get("ann"), await memory.get("bob")
            with anyio.fail_after(20):
                async with log_of(bob).answering():
                    pass
                with anyio.move_on_after(0.2) as scope:
                    async with log_of(conversation).answering():
                        pytest.fail("both hold it")
                assert scope.cancelled_caught
                assert other.stdin is not None
                other.stdin.write("\n")
                other.stdin.flush()
                async with log_of(conversation).answering():
                    assert ["from the other process"] == [message.content for message in conversation.messages]


async def test_a_holder_that_is_killed_lets_go(tmp_path: Path, anyio_backend: str) -> None:
    """The kernel does it, however the process ends."""
    with program(HOLD, tmp_path / "memory.db", anyio_backend) as other:
        assert hear(other) == ["held"]
        async with Memory.open(tmp_path / "memory.db") as memory:
            conversation = await memory.get("ann")
            other.kill()
            with anyio.fail_after(20):
                async with log_of(conversation).answering():
                    assert [] == conversation.turns


async def test_a_second_memory_that_is_closed_keeps_the_lock(tmp_path: Path) -> None:
    """A process that closes a descriptor of a file loses its locks on it: there is one descriptor, and it stays."""
    code = """
async def main():
    async with Memory.open(database) as memory:
        with anyio.move_on_after(0.5):
            async with log_of(await memory.get("ann")).answering():
                say("held")
                return
    say("waited")
anyio.run(main, backend=backend)
"""
    async with Memory.open(tmp_path / "memory.db") as memory:
        conversation = await memory.get("ann")
        async with log_of(conversation).answering():
            async with Memory.open(tmp_path / "memory.db") as second:
                await (await second.get("ann")).add("hello")
            await memory.forget_user("bob")
            with program(code, tmp_path / "memory.db") as other:
                assert await anyio.to_thread.run_sync(hear, other) == ["waited"]
        with program(code, tmp_path / "memory.db") as other:
            assert await anyio.to_thread.run_sync(hear, other) == ["held"]


async def test_processes_write_at_once_and_lose_nothing(tmp_path: Path) -> None:
    """Row D2: two bots and a command on one file, each turn there once."""
    code = """
async def main():
    async with Memory.open(database) as memory:
        async def talk(user):
            conversation = await memory.get(user)
            for number in range(10):
                async with log_of(conversation).answering():
                    await conversation.add(f"{sys.argv[3]} {user} {number}")
                    await conversation.add(Message.assistant("yes"))
        async with anyio.create_task_group() as tasks:
            for user in ("ann", "bob", sys.argv[3]):
                tasks.start_soon(talk, user)
    say("done")
anyio.run(main, backend=backend)
"""
    database = tmp_path / "memory.db"
    with (
        program(code, database, "asyncio", "1") as one,
        program(code, database, "trio", "2") as two,
        program(code, database, "asyncio", "3") as three,
    ):
        for other in (one, two, three):
            assert await anyio.to_thread.run_sync(hear, other) == ["done"]
    async with Memory.open(database) as memory:
        found = {conversation.user: conversation.messages for conversation in await memory.conversations()}
        assert {"ann": 60, "bob": 60, "1": 20, "2": 20, "3": 20} == {user: len(said) for user, said in found.items()}
        assert len({message.content for said in found.values() for message in said}) == 91


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:This process")
def test_a_fork_leaves_the_original_alone(tmp_path: Path, anyio_backend: str) -> None:
    """DESIGN 4: the copy is told to open its own, may do so, and closes nothing of the original's when it ends."""
    code = """
memory = anyio.run(lambda: Memory.open(database).__aenter__(), backend=backend)
async def talk(memory, text):
    conversation = await memory.get("ann")
    async with log_of(conversation).answering():
        await conversation.clear()
        await conversation.add(text)
anyio.run(talk, memory, "before", backend=backend)
if (copy := os.fork()) == 0:
    try:
        anyio.run(talk, memory, "in the copy", backend=backend)
    except LLMSessionError as error:
        say("copy", str(error))
    async def own():
        async with Memory.open(database) as mine:
            await talk(mine, "in the copy's own")
        await memory.aclose()
    anyio.run(own, backend=backend)
    del memory
    gc.collect()
    sys.exit(0)
say("copy ended", os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1]))
async def look():
    await talk(memory, "after")
    say("turns", [turn.message.content for turn in (await memory.get("ann")).turns])
    await memory.aclose()
anyio.run(look, backend=backend)
"""
    with program(code, tmp_path / "memory.db", anyio_backend) as forking:
        told = hear(forking)
        assert told[0] == "copy"
        assert "before the process was forked" in told[1]
        assert hear(forking) == ["copy ended", 0]
        assert hear(forking) == ["turns", ["before", "in the copy's own", "after"]]
        assert forking.wait(20) == 0


def test_a_program_that_ends_without_closing_writes_what_waits(tmp_path: Path, anyio_backend: str) -> None:
    """What was begun is written, and the program's end is not held up by the writer's thread."""
    code = """
async def main():
    memory = await Memory.open(database)
    conversations = [await memory.get(str(number)) for number in range(20)]
    async with anyio.create_task_group() as tasks:
        for conversation in conversations:
            tasks.start_soon(conversation.add, "hello")
    main.memory = memory
    say("done")
anyio.run(main, backend=backend)
"""
    with program(code, tmp_path / "memory.db", anyio_backend) as ending:
        assert hear(ending) == ["done"]
        assert ending.wait(20) == 0

    async def count() -> int:
        async with Memory.open(tmp_path / "memory.db") as memory:
            return sum(len(conversation.turns) for conversation in await memory.conversations())

    assert anyio.run(count) == 20


READ_ONLY = """
import ctypes
if os.geteuid() == 0:  # root may write anywhere, until it gives that up: capset(2), no CAP_DAC_OVERRIDE
    class Header(ctypes.Structure):
        _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capset(ctypes.byref(Header(0x20080522, 0)), (ctypes.c_uint32 * 6)()) == 0
async def main():
    try:
        async with Memory.open(database) as memory:
            say("opened")
    except LLMSessionError as error:
        say(type(error).__name__, str(error))
anyio.run(main, backend=backend)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="root gives up its rights by capset(2)")
@pytest.mark.parametrize("what", ["file", "folder", "new"])
async def test_what_may_only_be_read_is_refused_and_left_alone(tmp_path: Path, what: str) -> None:
    """A file, or the folder around it: with what to allow."""
    folder = tmp_path / "folder"
    folder.mkdir()
    database = folder / "memory.db"
    if what != "new":
        async with Memory.open(database) as memory:
            await (await memory.get("ann")).add("hello")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (database if what == "file" else folder).chmod(0o444 if what == "file" else 0o555)
    try:
        with program(READ_ONLY, database) as reading:
            kind, message = await anyio.to_thread.run_sync(hear, reading)
    finally:
        folder.chmod(0o755)
    assert kind == "StoreError"
    assert str(database) in message
    assert "folder" in message
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


LIMITED = """
import resource
async def main():
    async with Memory.open(database) as memory:
        conversation = await memory.get("ann")
        await conversation.add("kept")
        size = max(os.stat(database + end).st_size for end in ("", "-wal"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 200_000, size + 200_000))
        try:
            await conversation.add(Message.assistant("x" * 1_000_000))
        except LLMSessionError as error:
            say(type(error).__name__, str(error))
        await conversation.add(Message.assistant("small"))
        say("turns", [turn.message.content for turn in conversation.turns])
anyio.run(main, backend=backend)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no limits of resources")
def test_a_file_that_may_not_grow_keeps_what_it_has(tmp_path: Path, anyio_backend: str) -> None:
    """A real write that fails, as on a full disk; the next one that fits is kept."""
    with program(LIMITED, tmp_path / "memory.db", anyio_backend) as limited:
        kind, message = hear(limited)
        assert kind == "StoreError"
        assert "memory.db" in message
        assert hear(limited) == ["turns", ["kept", "small"]]


def test_a_new_file_is_whole_or_new_whenever_its_maker_is_killed(tmp_path: Path) -> None:
    """`kill -9` while it is made or opened: the next one can open it."""
    code = """
say("begins")
anyio.run(lambda: Memory.open(database).__aenter__(), backend=backend)
time.sleep(60)
"""
    rng = random.Random(1)

    async def use(database: Path) -> int:
        async with Memory.open(database) as memory:
            conversation = await memory.get("ann")
            await conversation.add("hello")
            await conversation.add(Message.assistant("hi"))
            return len(conversation.turns)

    for number in range(12):
        database = tmp_path / f"{number}.db"
        with program(code, database) as making:
            assert hear(making) == ["begins"]
            if number % 3:
                wait_for(lambda database=database, number=number: (  # type: ignore[misc]
                    database.exists() if number % 3 == 1 else database.with_name(f"{database.name}-wal").exists()
                ))  # fmt: skip
            anyio.run(anyio.sleep, rng.uniform(0, 0.01))
            making.kill()
            making.wait()
        assert anyio.run(use, database) == 2
