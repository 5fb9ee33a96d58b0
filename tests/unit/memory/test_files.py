"""What can be wrong with a file: each is one clear sentence, and nothing is overwritten. Row D2."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from llmsession import ConfigError, Memory, Message, StoreError, StoreVersionError
from llmsession.memory.conversation import log_of
from llmsession.memory.database import APPLICATION_ID, VERSION, connect

pytestmark = pytest.mark.anyio


async def say(database: Path, *texts: str, user: str = "ann") -> None:
    """Questions, each with an answer."""
    async with Memory.open(database) as memory:
        conversation = await memory.get(user)
        for text in texts:
            await conversation.add(text)
            await conversation.add(Message.assistant(f"re: {text}"))


@contextlib.contextmanager
def sql(database: Path) -> Iterator[sqlite3.Connection]:
    """As another program would."""
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
        yield connection


def test_every_column_that_is_written_is_there() -> None:
    """The migrations make what the statements name: the newest version is the number of them."""
    connection = connect(None)
    assert (VERSION,) == connection.execute("PRAGMA user_version").fetchone()
    assert (APPLICATION_ID,) == connection.execute("PRAGMA application_id").fetchone()
    connection.close()


async def test_the_file_is_durable_and_private(database: Path) -> None:
    """DESIGN 1: a turn that was acknowledged survives a power cut; and it is nobody else's."""
    async with Memory.open(database) as memory:
        await (await memory.get("ann")).add("hello")
        asked = ("journal_mode", "synchronous", "secure_delete", "foreign_keys")
        values = await memory._store.write(
            lambda connection: [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in asked], alone=True
        )
        assert ["wal", 2, 1, 1] == values
        if os.name == "posix":
            modes = {path.name: path.stat().st_mode & 0o777 for path in database.parent.glob("memory.db*")}
            assert {0o600} == set(modes.values())
            assert {"memory.db", "memory.db-wal", "memory.db-shm", "memory.db-locks"} == set(modes)
    assert {"memory.db", "memory.db-locks"} == {path.name for path in database.parent.glob("memory.db*")}


async def test_a_newer_version_is_refused_and_left_alone(database: Path) -> None:
    """With what to do about it."""
    await say(database, "hello")
    with sql(database) as connection:
        connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    before = database.read_bytes()
    with pytest.raises(StoreVersionError, match=r"newer llmsession .*: upgrade"):
        await Memory.open(database)
    assert before == database.read_bytes()


@pytest.mark.parametrize("statement", ["CREATE TABLE t (a)", "PRAGMA user_version = 7", "PRAGMA application_id = 9"])
async def test_the_database_of_another_program_is_left_alone(database: Path, statement: str) -> None:
    """Whatever marks it as one."""
    with sql(database) as connection:
        connection.execute(statement)
    before = database.read_bytes()
    with pytest.raises(StoreError, match="another program: name another file"):
        await Memory.open(database)
    assert before == database.read_bytes()


@pytest.mark.parametrize("content", [b"hello, I am a diary\n" * 400, b"x", b"SQLite format 3\0" + b"\xff" * 5000])
async def test_a_file_that_is_no_database_is_left_alone(database: Path, content: bytes) -> None:
    """A text, a byte, something that only begins like one."""
    database.write_bytes(content)
    with pytest.raises(StoreError, match=r"not a database of llmsession's|is damaged"):
        await Memory.open(database)
    assert content == database.read_bytes()
    assert [] == list(database.parent.glob("memory.db-*"))


async def test_an_empty_file_becomes_one(database: Path) -> None:
    """As `tempfile` makes them."""
    database.touch()
    await say(database, "hello")
    assert database.stat().st_size > 0


@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
async def test_a_cut_file_is_refused_and_left_alone(database: Path, part: float) -> None:
    """SQLite knows how long it should be."""
    await say(database, *["hello" * 300] * 40)
    whole = database.read_bytes()
    cut = whole[: int(len(whole) * part) // 4096 * 4096]
    database.write_bytes(cut)
    with pytest.raises(StoreError, match=r"memory\.db is damaged .*restore a copy"):
        await Memory.open(database)
    assert cut == database.read_bytes()


async def test_a_damaged_page_is_an_error_and_no_wrong_answer(database: Path) -> None:
    """It is met when it is read, and the rest can still be."""
    await say(database, "bob's " * 100, user="bob")
    await say(database, *["hello" * 300] * 40)
    content = bytearray(database.read_bytes())
    place = content.rindex(b"hello" * 200) // 4096 * 4096
    content[place : place + 4096] = b"\xee" * 4096
    database.write_bytes(content)
    async with Memory.open(database) as memory:
        conversation = await memory.get("ann")
        with pytest.raises(StoreError, match="damaged"):
            await log_of(conversation).refresh()
        assert len((await memory.get("bob")).turns) == 2


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("UPDATE turn SET message = '{' WHERE id = 3", "truncated"),
        ("UPDATE turn SET state = 'odd' WHERE id = 3", "odd"),
        ("UPDATE turn SET completion = '[]' WHERE id = 3", "object"),
        ("DELETE FROM turn WHERE id = 3", "turn 3 of conversation 1 is not there"),
        ("UPDATE turn SET parent = 4 WHERE id = 3", "turn 4 of conversation 1 is not there"),
        ("UPDATE conversation SET head = 77", "turn 77 of conversation 1 is not there"),
    ],
)
async def test_rows_that_make_no_sense_are_damage(database: Path, statement: str, fault: str) -> None:
    """Somebody wrote in it by hand: one sentence, and nothing wrong is told."""
    await say(database, "a", "b")
    with sql(database) as connection:
        connection.execute(statement)
    async with Memory.open(database) as memory:
        conversation = await memory.get("ann")
        with pytest.raises(StoreError, match=f"damaged .*{fault}"):
            _ = conversation.messages
        with pytest.raises(StoreError, match=f"damaged .*{fault}"):
            await conversation.add("c")


async def test_links_lead_to_one_memory(database: Path) -> None:
    """Those who come by a link share the locks beside the file, and notice when it goes."""
    link = database.with_name("link.db")
    link.symlink_to(database)
    async with Memory.open(link) as one, Memory.open(database) as other:
        assert one.path == other.path
        await (await one.get("ann")).add("hello")
        assert len((await other.get("ann")).turns) == 1
    assert not database.with_name("link.db-locks").exists()


async def test_what_is_no_path_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`:memory:` is SQLite's word for RAM, and ours."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="NUL"):
        Memory.open("a\0b")
    async with Memory.open(":memory:") as memory:
        await (await memory.get("ann")).add("hello")
    assert [] == list(tmp_path.glob("*memory*"))


async def test_a_folder_is_no_file(tmp_path: Path) -> None:
    """Nor is a path whose folder is not there."""
    with pytest.raises(StoreError, match="is a folder: name a file in it"):
        await Memory.open(tmp_path)
    with pytest.raises(StoreError, match=r"there is no folder .*nowhere: make it first"):
        await Memory.open(tmp_path / "nowhere" / "memory.db")
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"there is no folder .*file: make it first"):
        await Memory.open(tmp_path / "file" / "memory.db")
    assert ["file"] == [path.name for path in tmp_path.iterdir()]


async def test_a_full_disk_refuses_what_does_not_fit_and_keeps_the_rest(database: Path) -> None:
    """One turn's failure is its own: what shares its transaction is kept."""
    async with Memory.open(database) as memory:
        names = ["ann", "bob", "eve"]
        conversations = [await memory.get(name) for name in names]
        pages = await memory._store.write(
            lambda connection: connection.execute("PRAGMA page_count").fetchone()[0], alone=True
        )
        await memory._store.write(
            lambda connection: connection.execute(f"PRAGMA max_page_count = {pages + 4}").fetchone(), alone=True
        )
        outcomes = dict[str, str]()

        async def add(index: int, text: str) -> None:
            try:
                await conversations[index].add(text)
                outcomes[names[index]] = "kept"
            except StoreError as error:
                outcomes[names[index]] = str(error)

        async with anyio.create_task_group() as tasks:
            for index, text in enumerate(["hello", "x" * 100_000, "hello"]):
                tasks.start_soon(add, index, text)
        assert {"ann": "kept", "eve": "kept"}.items() <= outcomes.items()
        assert "the disk is full" in outcomes["bob"]
        await log_of(conversations[1]).refresh()
        assert [] == conversations[1].turns
    async with Memory.open(database) as memory:
        assert [1, 0, 1] == [len((await memory.get(name)).turns) for name in names]


@pytest.mark.skipif(os.name == "nt", reason="an open file cannot be deleted there")
@pytest.mark.parametrize("name", ["memory.db", "memory.db-wal"])
@pytest.mark.parametrize("replaced", [False, True])
async def test_a_database_deleted_under_our_feet_acknowledges_nothing(
    database: Path, name: str, replaced: bool
) -> None:
    """What is written to a deleted file is lost: the caller must know."""
    async with Memory.open(database) as memory:
        conversation = await memory.get("ann")
        await conversation.add("hello")
        path = database.with_name(name)
        if replaced:
            shutil.copy(path, path.with_suffix(".copy"))
            path.with_suffix(".copy").replace(path)
        else:
            path.unlink()
        for _ in range(2):
            with pytest.raises(StoreError, match=f"{name} was {'replaced' if replaced else 'deleted'} .*open it again"):
                await conversation.add(Message.assistant("hi"))
        with pytest.raises(StoreError, match="open it again"):
            await memory.get("bob")


@pytest.mark.skipif(os.name == "nt", reason="an open file cannot be deleted there")
async def test_locks_deleted_under_our_feet_are_noticed(database: Path) -> None:
    """Two processes would each hold a lock, on two files."""
    async with Memory.open(database) as memory:
        conversation = await memory.get("ann")
        database.with_name("memory.db-locks").unlink()
        with pytest.raises(StoreError, match="who answers"):
            async with log_of(conversation).answering():
                pytest.fail("nobody can hold it")


async def test_a_failing_statement_is_one_caller_s_own(database: Path) -> None:
    """Those who share its transaction do not learn of it."""
    async with Memory.open(database) as memory:
        conversation = await memory.get("ann")
        failures = list[StoreError]()

        async def fail() -> None:
            try:
                await memory._store.write(lambda connection: connection.execute("INSERT INTO nothing VALUES (1)"))
            except StoreError as error:
                failures.append(error)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fail)
            tasks.start_soon(conversation.add, "hello")
            tasks.start_soon(fail)
        assert len(failures) == 2
        assert "hello" == conversation.messages[0].content
        assert isinstance(failures[0].__cause__, sqlite3.Error)
