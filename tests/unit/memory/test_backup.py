"""Copies of a memory, its check, and what the file alone holds. FAULTS B1."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import stat
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from llmsession import Conversation, Memory, Message, StoreError, UsageError
from llmsession.memory import database, writer
from llmsession.memory.backup import MemoryReport, back_up, check
from llmsession.memory.conversation import log_of

pytestmark = pytest.mark.anyio


async def say(conversation: Conversation, count: int) -> None:
    """So many acknowledged turns and their replies."""
    for number in range(count):
        await conversation.add(Message.user(f"turn {number}"))
        await conversation.add(Message.assistant("yes"))


async def turns_of(path: Path, user: str = "ann") -> int:
    """How many a memory has of somebody."""
    async with Memory.open(path) as memory:
        return len(log_of(await memory.get(user=user)).turns)


async def until_empty(log: Path) -> None:
    """The writer has been idle for a while."""
    with anyio.fail_after(20):
        while log.stat().st_size:
            await anyio.lowlevel.checkpoint()


async def test_the_file_alone_holds_every_turn_soon_after_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B1: a single-file volume, cp, rsync: 0 of 40 acknowledged turns were in it."""
    monkeypatch.setattr(writer, "_IDLE_SECONDS", 0.05)
    path = tmp_path / "bot.db"
    async with Memory.open(path) as memory:
        await say(await memory.get(user="ann"), 20)
        await until_empty(tmp_path / "bot.db-wal")
        (tmp_path / "copy").mkdir()
        shutil.copy(path, tmp_path / "copy" / "bot.db")
        await say(await memory.get(user="ann"), 1)  # it goes on
    assert 40 == await turns_of(tmp_path / "copy" / "bot.db")
    assert 42 == await turns_of(path)


async def test_after_a_close_the_file_alone_holds_all(tmp_path: Path) -> None:
    """B1: also where another process has it open, so that SQLite itself does not move the log."""
    path = tmp_path / "bot.db"
    async with Memory.open(path):
        async with Memory.open(path) as memory:
            await say(await memory.get(user="ann"), 20)
        shutil.copy(path, tmp_path / "copy.db")
    assert 40 == await turns_of(tmp_path / "copy.db")


async def test_a_reader_that_holds_the_log_delays_that_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """B1: another process that reads for long: it is tried again."""
    monkeypatch.setattr(writer, "_IDLE_SECONDS", 0.02)
    path = tmp_path / "bot.db"
    async with Memory.open(path) as memory:
        conversation = await memory.get(user="ann")
        await say(conversation, 1)
        reader = sqlite3.connect(path, isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM turn").fetchone()
        await say(conversation, 1)
        await anyio.sleep(0.1)
        assert (tmp_path / "bot.db-wal").stat().st_size
        reader.close()
        await until_empty(tmp_path / "bot.db-wal")


async def test_a_copy_is_made_while_programs_write(tmp_path: Path) -> None:
    """`llmsession memory backup`: all that was acknowledged before, in one file, for this user only."""
    path, target = tmp_path / "bot.db", tmp_path / "copy.db"
    async with Memory.open(path) as memory:
        conversation = await memory.get(user="ann")
        await say(conversation, 20)
        reports: list[MemoryReport] = []
        async with anyio.create_task_group() as group:
            group.start_soon(say, conversation, 50)
            reports.append(await anyio.to_thread.run_sync(back_up, path, target))
        assert 140 == len(log_of(conversation).turns)
    (report,) = reports
    assert (str(target), 1, 1, ()) == (report.path, report.users, report.conversations, report.faults)
    assert 40 <= report.turns <= 140
    assert report.turns == await turns_of(target)
    assert 0o600 == stat.S_IMODE(target.stat().st_mode)
    assert not list(tmp_path.glob(".*"))


async def test_a_copy_overwrites_nothing(tmp_path: Path) -> None:
    """Bad input: one error, and what was there is there."""
    path, target = tmp_path / "bot.db", tmp_path / "copy.db"
    async with Memory.open(path) as memory:
        await say(await memory.get(user="ann"), 1)
    target.write_bytes(b"mine")
    with pytest.raises(UsageError, match="exists already"):
        back_up(path, target)
    assert b"mine" == target.read_bytes()
    for wrong in (tmp_path, tmp_path / "missing.db", target):
        with pytest.raises(StoreError):
            check(wrong)
    with pytest.raises(StoreError):
        back_up(path, tmp_path / "missing" / "copy.db")
    assert not list(tmp_path.glob(".*"))


async def test_a_damaged_file_is_told_and_not_copied(tmp_path: Path) -> None:
    """`llmsession memory check`: SQLite's own findings."""
    path = tmp_path / "bot.db"
    async with Memory.open(path) as memory:
        for number in range(60):
            await say(await memory.get(user=f"user {number}"), 2)
    assert () == check(path).faults
    content = bytearray(path.read_bytes())
    content[8192 : 8192 + 3000] = b"\xff" * 3000
    path.write_bytes(content)
    with contextlib.suppress(StoreError):  # it may be so bad that it cannot be counted
        assert check(path).faults
    with pytest.raises(StoreError, match="damaged"):
        back_up(path, tmp_path / "copy.db")
    assert not (tmp_path / "copy.db").exists()


def test_a_file_that_is_mounted_by_itself_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """B1: the log beside it ends with the container. Played by a list of mounts as the kernel writes it."""
    mounts, path = tmp_path / "mountinfo", tmp_path / "my bot.db"
    escaped = str(path).replace(" ", "\\040")
    mounts.write_text(f"1 2 8:1 / / rw - ext4 /dev/sda rw\n3 1 8:1 /x {escaped} rw,relatime - ext4 /dev/sda rw\n")
    assert database._is_mounted(path, mounts)
    assert not database._is_mounted(tmp_path / "other.db", mounts)
    assert not database._is_mounted(path, tmp_path / "missing")
    monkeypatch.setattr(database, "_is_mounted", lambda path: True)
    with pytest.warns(UserWarning, match="mount the folder instead"):
        database.connect(path).close()
