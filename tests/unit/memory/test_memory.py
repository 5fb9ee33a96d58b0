"""A memory finds conversations by user and channel, keeps them on disk, and forgets for good. Rows D1, D2, D4, D7."""

from __future__ import annotations

import contextlib
import gc
import json
import sqlite3
import threading
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest

from llmsession import (
    ClosedError,
    ConfigError,
    Conversation,
    InvalidMessagesError,
    Memory,
    Message,
    StoreError,
    StoreLockedError,
    TurnState,
    UsageError,
)
from llmsession.memory.conversation import log_of
from tests.memories import reply

pytestmark = pytest.mark.anyio


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[datetime]:
    """One that a test can set: its only value is the time."""
    now = [datetime(2026, 11, 20, 12, tzinfo=UTC)]

    for name in ("memory._now", "log.now", "conversation.now"):
        monkeypatch.setattr(f"llmsession.memory.{name}", lambda: now[0])
    return now


def files(database: Path) -> dict[str, bytes]:
    """The database and everything beside it."""
    return {path.name: path.read_bytes() for path in database.parent.iterdir() if path.is_file()}


# Finding.


@pytest.mark.parametrize("in_file", [False, True], ids=["in RAM", "in a file"])
async def test_get_gives_the_old_one_or_a_new_one(in_file: bool, database: Path) -> None:
    """Row D1; the same object while it is held, and the first system prompt stays."""
    async with Memory.open(database if in_file else None) as memory:
        ann = await memory.get("ann", "general", system_prompt="Be kind.")
        assert ("ann", "general", "Be kind.", []) == (ann.user, ann.channel, ann.system_prompt, ann.turns)
        assert ann is await memory.get("ann", "general", system_prompt="Be curt.")
        assert ann.system_prompt == "Be kind."
        others = [await memory.get("ann"), await memory.get("bob", "general"), await memory.get("annc", "general")]
        assert len({ann.id, *(other.id for other in others)}) == 4


@pytest.mark.parametrize("name", ["", "\0", "a\0b", "Ünïcødé 😀", "'", "x" * 10_000])
async def test_names_may_be_any_text(name: str, database: Path) -> None:
    """Row D1: what a platform calls its users is its business."""
    async with Memory.open(database) as memory:
        await (await memory.get(name, name)).add("hello")
    async with Memory.open(database) as memory:
        assert [(name, name)] == [(found.user, found.channel) for found in await memory.conversations(name)]
        assert len((await memory.get(name, name)).turns) == 1


@pytest.mark.parametrize("name", [7, None, b"x", "\ud800"])
async def test_a_name_that_is_no_text_is_refused(name: object) -> None:
    """With what would do."""
    async with Memory.open() as memory:
        for call in (memory.get(name), memory.get("x", name), memory.forget_user(name), memory.export(name)):  # type: ignore[arg-type]
            with pytest.raises(UsageError, match=r"is a str|surrogate"):
                await call
        with pytest.raises(InvalidMessagesError, match="surrogate"):
            await memory.get("x", system_prompt="\ud800")
        assert [] == await memory.conversations()


@pytest.mark.parametrize("in_file", [False, True], ids=["in RAM", "in a file"])
async def test_conversations_are_listed_last_used_first(in_file: bool, database: Path, clock: list[datetime]) -> None:
    """Row D1, as the seed has it."""
    async with Memory.open(database if in_file else None) as memory:
        for user, channel in (("ann", "a"), ("bob", "b"), ("ann", "c")):
            await (await memory.get(user, channel)).add("hello")
            clock[0] += timedelta(seconds=1)
        await (await memory.get("bob", "b")).add(Message.assistant("hi"))
        assert ["b", "c", "a"] == [found.channel for found in await memory.conversations()]
        assert ["c", "a"] == [found.channel for found in await memory.conversations("ann")]
        assert [] == await memory.conversations("eve")


async def test_what_is_old_is_forgotten(database: Path, clock: list[datetime]) -> None:
    """Row D1: by `forget()`, by `get`, and when it is opened; with `max_age=None` nothing is."""
    async with Memory.open(database, max_age=3600) as memory:
        old = await memory.get("ann", system_prompt="x")
        await old.add("hello")
        clock[0] += timedelta(minutes=50)
        kept = await memory.get("bob")
        await kept.add("hello")
        assert await memory.forget() == 0
        clock[0] += timedelta(minutes=20)
        assert await memory.forget() == 1
        assert [kept] == await memory.conversations()
        with pytest.raises(StoreError, match=r"of 'ann' .* was forgotten: .*memory\.get"):
            await old.add(Message.assistant("hi"))
        clock[0] += timedelta(hours=2)
        again = await memory.get("bob")
        assert (kept.id, []) != (again.id, again.turns)
        assert [] == again.turns
        await again.add("hello")
    async with Memory.open(database) as memory:
        clock[0] += timedelta(days=400)
        assert await memory.forget() == 0
    async with Memory.open(database, max_age=timedelta(days=1)) as memory:
        assert [] == await memory.conversations()


@pytest.mark.parametrize("max_age", [0, -1, float("nan"), "a day", timedelta(0)])
def test_an_age_that_is_none_is_refused(max_age: object) -> None:
    """Before anything is opened."""
    with pytest.raises(ConfigError, match="max_age"):
        Memory.open(max_age=max_age)  # type: ignore[arg-type]


async def test_a_listed_conversation_is_read_when_it_is_looked_at(database: Path) -> None:
    """A million of them must not be loaded to be listed."""
    async with Memory.open(database) as memory:
        for user in ("ann", "bob"):
            await (await memory.get(user)).add(f"I am {user}")
        gc.collect()
        found = await memory.conversations()
        assert [None, None] == [log_of(conversation)._tree for conversation in found]
        assert ["I am bob", "I am ann"] == [conversation.messages[0].content for conversation in found]


# Keeping.


async def test_what_was_said_is_there_when_it_is_opened_again(database: Path) -> None:
    """Row D2; open it with `async with`, or await it."""
    completion = reply("hi", reasoning="hm")
    memory = await Memory.open(str(database))
    conversation = await memory.get("ann", system_prompt="It is {now}.")
    await log_of(conversation).keep_rendered("It is noon.", "tiny")
    asked = await log_of(conversation).ask("hello \0 \U0001f600", key="k")
    await log_of(conversation).save_reply(asked.id, completion, TurnState.COMPLETE, tokens=3, asked_tokens=4)
    await log_of(conversation).leave_out([asked.id], "a greeting")
    turns, started, last_update = conversation.turns, conversation.started, conversation.last_update
    await memory.aclose()
    async with Memory.open(database) as memory:
        again = await memory.get("ann")
        assert conversation is not again
        assert turns == again.turns
        assert (started, last_update) == (again.started, again.last_update)
        assert ("It is {now}.", "It is noon.", "tiny") == (
            again.system_prompt,
            log_of(again).rendered_system,
            log_of(again).rendered_for,
        )
        assert completion == again.path[1].completion
        assert turns[0] == log_of(again).find("k")
        assert turns[-1] == log_of(again).summary


async def test_two_memories_on_one_file_see_each_others_turns(database: Path) -> None:
    """Row D2: as two processes would; ids are never the same."""
    async with Memory.open(database) as one, Memory.open(database) as other:
        here, there = await one.get("ann"), await other.get("ann")
        assert here.id == there.id
        await here.add("a")
        await there.add(Message.assistant("b"))
        await here.set_system_prompt("Be kind.")
        await log_of(there).refresh()
        assert ["Be kind.", "a", "b"] == [message.content for message in there.messages]
        with pytest.raises(InvalidMessagesError, match="message 3"):
            await there.add(Message.assistant("c"))
        await here.rewind()
        with pytest.raises(InvalidMessagesError, match="message 1"):
            await there.add(Message.assistant("c"))
        assert 1 == len((await other.get("ann")).messages)


async def test_many_tasks_write_at_once(database: Path) -> None:
    """Row D2, group commit: each acknowledged turn is read by another connection at once."""
    async with Memory.open(database) as memory, Memory.open(database) as other:

        async def write(user: str) -> None:
            conversation = await memory.get(user)
            for number in range(10):
                await conversation.add(f"{user} {number}")
                await conversation.add(Message.assistant("yes"))
                assert (number + 1) * 2 == len((await other.get(user)).turns)

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                for number in range(16):
                    tasks.start_soon(write, f"user {number}")
        turns = [turn.id for conversation in await memory.conversations() for turn in conversation.turns]
        assert 320 == len(set(turns))


async def test_tasks_that_add_to_one_conversation_share_it(database: Path) -> None:
    """One is first, the others are out of order: nothing is lost or twice."""
    async with Memory.open(database) as memory, Memory.open(database) as other:
        refused = list[str]()

        async def write(conversation: Conversation, text: str) -> None:
            try:
                await conversation.add(text)
            except InvalidMessagesError:
                refused.append(text)

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                for number in range(8):
                    tasks.start_soon(write, await (memory, other)[number % 2].get("ann"), str(number))
        conversation = await memory.get("ann")
        await log_of(conversation).refresh()
        assert {str(number) for number in range(8)} == {*refused, conversation.messages[0].content}
        assert (7, 1) == (len(refused), len(conversation.turns))


async def test_a_cancelled_write_leaves_the_object_right(database: Path) -> None:
    """It may have been written or not; what is seen next is what is on the disk."""
    async with Memory.open(database) as memory, Memory.open(database) as other:
        conversation = await memory.get("ann")
        for number in range(20):
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(conversation.add, f"question {number}")
                    for _ in range(number % 4):
                        await anyio.lowlevel.checkpoint()
                    scope.cancel()
            await conversation.clear()
            there = await other.get("ann")
            await log_of(conversation).refresh()
            assert there.turns == conversation.turns
            assert [] == conversation.messages == there.messages


@pytest.mark.parametrize("other", ["asyncio", "trio"])
async def test_several_event_loops_use_one_memory(other: str, database: Path) -> None:
    """A bot closes it from another loop than the one that opened it."""
    memory = await Memory.open(database)

    async def talk(user: str) -> None:
        conversation = await memory.get(user)
        for number in range(10):
            async with log_of(conversation).answering():
                await conversation.add(f"{user} {number}")
                await conversation.add(Message.assistant("yes"))

    async def talk_and_close() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(talk, "bob")
            tasks.start_soon(talk, "both")

    thread = threading.Thread(target=lambda: anyio.run(talk_and_close, backend=other))
    with anyio.fail_after(60):
        thread.start()
        await talk("ann")
        await anyio.to_thread.run_sync(thread.join)
        await talk("both")
        lengths = [len(conversation.turns) for conversation in await memory.conversations()]
        await anyio.to_thread.run_sync(lambda: anyio.run(memory.aclose, backend=other))
    assert [20, 20, 40] == sorted(lengths)


async def test_all_memories_of_a_process_share_one_queue(database: Path) -> None:
    """DESIGN 4: in the order in which they came, also where the first of the two is closed meanwhile."""
    order = list[int]()
    memories = [await Memory.open(database), await Memory.open(database)]

    async def answer(number: int) -> None:
        conversation = await memories[number % 2].get("ann")
        with contextlib.suppress(ClosedError):
            async with log_of(conversation).answering():
                order.append(number)
                await anyio.lowlevel.checkpoint()
                order.append(number)

    first = await memories[0].get("ann")
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks, log_of(first).answering():
            for number in range(6):
                tasks.start_soon(answer, number)
                await anyio.wait_all_tasks_blocked()
            await memories[0].aclose()
        async with log_of(await memories[1].get("ann")).answering():
            pass
        await memories[1].aclose()
    assert [1, 1, 3, 3, 5, 5] == order


async def test_closing_writes_what_waits(database: Path) -> None:
    """`aclose` flushes; then everything says that it is closed, and what was read can still be read."""
    memory = await Memory.open(database)
    conversations = [await memory.get(str(number)) for number in range(10)]
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for conversation in conversations:
                tasks.start_soon(conversation.add, "hello")
            await anyio.wait_all_tasks_blocked()
            await memory.aclose()
    await memory.aclose()
    assert ["hello"] * 10 == [conversation.messages[0].content for conversation in conversations]
    for call in (
        conversations[0].add("x"),
        log_of(conversations[0]).refresh(),
        memory.get("x"),
        memory.conversations(),
    ):
        with pytest.raises(ClosedError, match="was closed"):
            await call
    async with Memory.open(database) as memory:
        assert 10 == sum(len(conversation.turns) for conversation in await memory.conversations())


async def test_one_that_was_not_closed_says_so(database: Path) -> None:
    """And ends its thread all the same."""
    memories = [await Memory.open(database)]
    await (await memories[0].get("ann")).add("hello")
    writers = [thread for thread in threading.enumerate() if thread.name == "llmsession-memory"]
    with pytest.warns(ResourceWarning, match="never closed"):
        memories.clear()
    for thread in writers:
        await anyio.to_thread.run_sync(thread.join, 10)
    assert not any(thread.is_alive() for thread in writers)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        conversation = await (await Memory.open()).get("ann")  # one in RAM has nothing to close
        await conversation.add("hello")
        assert ["hello"] == [message.content for message in conversation.messages]


# What a restarted bot takes up.


@pytest.mark.parametrize("in_file", [False, True], ids=["in RAM", "in a file"])
async def test_unfinished_lists_what_was_not_answered_or_not_delivered(in_file: bool, database: Path) -> None:
    """Row D4: oldest first, with the reply so far."""
    async with Memory.open(database if in_file else None) as memory:
        ann, bob = await memory.get("ann"), await memory.get("bob")
        done = await log_of(ann).ask("done", key="1")
        await log_of(ann).save_reply(done.id, reply("yes"), TurnState.COMPLETE)
        await ann.mark_delivered(done.id)
        answered = await log_of(ann).ask("answered", key="2")
        whole = await log_of(ann).save_reply(answered.id, reply("yes"), TurnState.INTERRUPTED)
        cut = await log_of(bob).ask("cut", key="3")
        part = await log_of(bob).save_reply(cut.id, reply("par"), TurnState.PENDING)
        failed = await log_of(ann).ask("failed", key="4")
        await log_of(ann).fail(failed.id)
        keyless = await log_of(ann).ask("failed without a key")
        await log_of(ann).fail(keyless.id)
        fine = await log_of(ann).ask("answered without a key")
        await log_of(ann).save_reply(fine.id, reply("yes"), TurnState.COMPLETE)
        await log_of(ann).ask("answered by hand")
        await ann.add(Message.assistant("no model was asked"))
        pending = await log_of(ann).ask("pending")
        found = await memory.unfinished()
        assert [(ann, answered.id), (bob, cut.id), (ann, pending.id)] == [
            (one.conversation, one.turn.id) for one in found
        ]
        assert [whole, part, None] == [one.reply for one in found]


# Forgetting for good.


async def test_nothing_of_a_forgotten_user_is_left_in_the_files(database: Path) -> None:
    """Row D7: not in the file, its log or beside them; nor in the copies that SQLite leaves when it moves rows.

    Without the file being rewritten, traces of every twentieth user were left.
    """
    users = 30
    async with Memory.open(database) as memory:

        async def talk(number: int) -> None:
            conversation = await memory.get(f"user-{number:03}", f"place-{number:03}", system_prompt=f"<{number:03}>")
            for event in range(8):
                asked = await log_of(conversation).ask(
                    f"<{number:03}>" * (1 + event + number % 7), key=f"<{number:03}> {event}"
                )
                text = f"<{number:03}>" * 20
                part = await log_of(conversation).save_reply(asked.id, reply(text), TurnState.PENDING)
                for length in (100, 1 + number * 30):
                    text += f"<{number:03}>" * length
                    await log_of(conversation).save_reply(asked.id, reply(text), TurnState.COMPLETE, reply=part.id)

        with anyio.fail_after(120):
            async with anyio.create_task_group() as tasks:
                for number in range(users):
                    tasks.start_soon(talk, number)
            for number in range(0, users, 3):
                held = await memory.get(f"user-{number:03}", f"place-{number:03}")
                assert await memory.forget_user(f"user-{number:03}") == 1
                for name, content in files(database).items():
                    for trace in (b"<%03d>", b"user-%03d", b"place-%03d"):
                        assert trace % number not in content, name
                with pytest.raises(StoreError, match="was forgotten"):
                    await log_of(held).refresh()
        assert users * 2 // 3 == len(await memory.conversations())
        assert 16 == len((await memory.get("user-001", "place-001")).turns)
        assert await memory.forget_user("user-000") == 0


async def test_one_who_reads_for_too_long_is_named(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row D7: the text is in the log until the last reader's transaction is over; the next call makes it good."""
    monkeypatch.setattr("llmsession.memory.erase._READER_TIMEOUT", 0.1)
    async with Memory.open(database) as memory:
        await (await memory.get("ann")).add("my secret")
        with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            assert [(1,)] == reader.execute("SELECT count(*) FROM turn").fetchall()
            with pytest.raises(StoreLockedError, match=r"deleted .* close it .* forget_user again"):
                await memory.forget_user("ann")
            assert [] == await memory.conversations()
            reader.execute("COMMIT")
            assert await memory.forget_user("ann") == 0
            assert [] == [name for name, content in files(database).items() if b"my secret" in content]


async def test_one_who_writes_for_too_long_is_named(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row D2: the file is locked, and the next call works."""
    monkeypatch.setattr("llmsession.memory.database.LOCK_TIMEOUT", 0.1)
    async with Memory.open(database) as memory:
        conversation = await memory.get("ann")
        with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as writer:
            writer.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreLockedError, match=r"memory\.db is held by another program .* close"):
                await conversation.add("hello")
            assert [] == conversation.turns
            writer.execute("ROLLBACK")
        await conversation.add("hello")


async def test_export_gives_everything_about_a_user(database: Path) -> None:
    """Row D7: as JSON would hold it."""
    async with Memory.open(database) as memory:
        ann = await memory.get("ann", "general", system_prompt="Be kind.")
        asked = await log_of(ann).ask("hello", key="k")
        await log_of(ann).save_reply(asked.id, reply("hi"), TurnState.COMPLETE, tokens=2)
        await ann.edit(asked.id, "goodbye")
        await (await memory.get("bob")).add("not ann's")
        exported = json.loads(json.dumps(await memory.export("ann")))
        assert ("ann", 1) == (exported["user"], len(exported["conversations"]))
        told = exported["conversations"][0]
        assert ("general", "Be kind.", 3) == (told["channel"], told["system_prompt"], len(told["turns"]))
        said = [turn["message"]["content"] for turn in told["turns"]]
        assert ["hello", "hi", "goodbye"] == said
        assert ("k", "hi", 2) == (
            told["turns"][0]["key"],
            told["turns"][1]["completion"]["text"],
            told["turns"][1]["tokens"],
        )
        assert datetime.fromisoformat(told["started"]) == ann.started
        assert {"user": "eve", "conversations": []} == await memory.export("eve")


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    """A memory that was closed has no thread."""
    before = set(threading.enumerate())
    yield
    left = [thread for thread in set(threading.enumerate()) - before if thread.name == "llmsession-memory"]
    for thread in left:
        thread.join(5)
    assert [] == [thread.name for thread in left if thread.is_alive()]
