"""`llmsession memory`, as a person meets it: copies, checks, exports."""

from __future__ import annotations

import json
from pathlib import Path

import anyio
import pytest

from llmsession import Memory, Message
from tests.command import run


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    """Of two users."""
    path = tmp_path / "bot.db"

    async def fill() -> None:
        async with Memory.open(path) as memory:
            for user in ("ann", "bob"):
                conversation = await memory.get(user=user)
                await conversation.add(Message.user(f"I am {user}."))
                await conversation.add(Message.assistant("Hello."))

    anyio.run(fill)
    return path


def test_a_backup_is_checked_and_told(memory: Path, tmp_path: Path) -> None:
    """B1: one file, and what is in it."""
    done = run("memory", "backup", str(memory), str(tmp_path / "copy.db"))
    assert (0, "") == (done.returncode, done.stderr)
    assert f"{tmp_path / 'copy.db'}: 4 turns in 2 conversations of 2 users" in done.stdout
    report = json.loads(run("memory", "check", str(tmp_path / "copy.db"), "--json").stdout)
    assert (2, 2, 4, []) == (report["users"], report["conversations"], report["turns"], report["faults"])
    again = run("memory", "backup", str(memory), str(tmp_path / "copy.db"))
    assert (2, "") == (again.returncode, again.stdout)
    assert "exists already" in again.stderr


def test_a_users_data_is_printed(memory: Path) -> None:
    """All that is stored of one, and nothing of another."""
    done = run("memory", "export", str(memory), "ann")
    assert (0, "") == (done.returncode, done.stderr)
    exported = json.loads(done.stdout)
    assert "ann" == exported["user"]
    assert "I am ann." in done.stdout
    assert "bob" not in done.stdout
    nobody = run("memory", "export", str(memory), "eve")
    assert (2, "") == (nobody.returncode, nobody.stdout)


@pytest.mark.parametrize("command", [["check"], ["backup"], ["export"]])
def test_a_file_that_is_no_memory_is_one_sentence(tmp_path: Path, command: list[str]) -> None:
    """API 6: never a traceback, and the file is left as it is."""
    path = tmp_path / "notes.txt"
    path.write_text("my notes" * 1000)
    more = {"backup": [str(tmp_path / "copy")], "export": ["ann"]}.get(command[0], [])
    for file in (path, tmp_path / "missing.db"):
        done = run("memory", *command, str(file), *more)
        assert (1, "") == (done.returncode, done.stdout)
        assert 1 == done.stderr.count("\n")
    assert "my notes" * 1000 == path.read_text()
    assert [path] == list(tmp_path.iterdir())


def test_each_says_what_it_is_for() -> None:
    """`--help`."""
    for command in (["memory"], ["memory", "backup"], ["memory", "check"], ["memory", "export"]):
        done = run(*command, "--help")
        assert 0 == done.returncode
        assert "Usage: llmsession memory" in done.stdout
