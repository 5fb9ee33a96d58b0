"""The Go package's JSON, in and out. Row D3."""

from __future__ import annotations

import json
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from llmsession import Memory, Message, Role, StoreError, StoreVersionError, ToolCall, TurnState, UsageError

pytestmark = pytest.mark.anyio

# As the Go package writes it: 0 and empty text are left out, times have nine digits and a zone.
GO = (
    '{"v":1,"c":[{"u":"42","c":"general","s":"2024-05-01T10:00:00.123456789-04:00","l":"2024-05-01T15:00:00Z","m":['
    '{"c":"You are a bot."},{"r":1,"c":"h\\u0000i \\u003c😀"},{"r":2,"c":"hello"},{"r":1,"c":"time?"},'
    '{"r":4,"c":"[{\\"name\\": \\"clock\\", \\"arguments\\": {\\"zone\\": \\"UTC\\"}}]"},{"r":5,"c":"noon"},'
    '{"r":2}]},{"u":"7","s":"0001-01-01T00:00:00Z","l":"0001-01-01T00:00:00Z"}]}\n'
)


def write(folder: Path, content: Any) -> Path:
    """A file of it."""
    path = folder / "go.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def of(*messages: tuple[int, str], **fields: object) -> dict[str, Any]:
    """A memory of one conversation."""
    return {"v": 1, "c": [{"u": "ann", "m": [{"r": role, "c": text} for role, text in messages], **fields}]}


async def test_what_go_wrote_is_read(tmp_path: Path, database: Path) -> None:
    """Calls and results become ours; the first system message is the system prompt."""
    async with Memory.open(database) as memory:
        assert await memory.load_json(write(tmp_path, GO)) == 2
        told = await memory.get("42", "general")
        (call,) = told.messages[4].tool_calls
        assert ("clock", {"zone": "UTC"}) == (call.name, call.arguments)
        assert [
            Message.system("You are a bot."),
            Message.user("h\0i <😀"),
            Message.assistant("hello"),
            Message.user("time?"),
            Message(Role.ASSISTANT, tool_calls=(call,)),
            Message.tool("noon", tool_call_id=call.id),
            Message.assistant(""),
        ] == told.messages
        assert datetime(2024, 5, 1, 14, 0, 0, 123457, tzinfo=UTC) == told.started
        assert datetime(2024, 5, 1, 15, tzinfo=UTC) == told.last_update
        assert ["general", ""] == [found.channel for found in await memory.conversations()]
        assert [] == (await memory.get("7")).messages
        await told.add("and now?")


async def test_what_is_written_go_reads(tmp_path: Path, database: Path) -> None:
    """No `sp`, since its strict reader refuses that; 0 and empty text left out; the active path only."""
    path = tmp_path / "out.json"
    async with Memory.open(database) as memory:
        conversation = await memory.get("ann", "", system_prompt="Be kind.")
        await conversation.add("a")
        await conversation.rewind()
        await conversation.add("b")
        call = ToolCall(id="x", name="clock", arguments={"zone": 1})
        await conversation.add(Message(Role.ASSISTANT, "Let me see.", tool_calls=(call,)))
        await conversation.add(Message.tool("", tool_call_id="x"))
        await memory.save_json(path)
        started = conversation.started.isoformat().replace("+00:00", "Z")
        last_update = conversation.last_update.isoformat().replace("+00:00", "Z")
    expected = {
        "v": 1,
        "c": [
            {
                "u": "ann",
                "s": started,
                "l": last_update,
                "m": [
                    {"c": "Be kind."},
                    {"r": 1, "c": "b"},
                    {"r": 2, "c": "Let me see."},
                    {"r": 4, "c": '[{"id":"x","name":"clock","arguments":{"zone":1}}]'},
                    {"r": 5},
                ],
            }
        ],
    }
    assert expected == json.loads(path.read_text(encoding="utf-8"))
    assert {"out.json", "memory.db", "memory.db-locks"} == {
        found.name for found in tmp_path.iterdir() if found.is_file()
    }


async def test_there_and_back_it_is_the_same(tmp_path: Path) -> None:
    """What the format can say."""
    path = tmp_path / "out.json"
    async with Memory.open() as one, Memory.open() as other:
        for user in ("ann", "bob", ""):
            conversation = await one.get(user, "c", system_prompt="Be kind." if user == "ann" else None)
            await conversation.add("a\0")
            call = ToolCall(id="x", name="clock", arguments={})
            await conversation.add(Message(Role.ASSISTANT, "Hm.", tool_calls=(call,)))
            await conversation.add(Message.tool("noon", tool_call_id="x"))
            await conversation.add(Message.assistant("It is noon."))
        await one.save_json(path)
        assert await other.load_json(path) == 3
        for conversation in await one.conversations():
            again = await other.get(conversation.user, conversation.channel)
            assert conversation.messages == again.messages
            assert (conversation.started, conversation.last_update) == (again.started, again.last_update)
        await other.save_json(tmp_path / "again.json")
    assert path.read_bytes() == (tmp_path / "again.json").read_bytes()


async def test_an_empty_memory_is_an_empty_list(tmp_path: Path) -> None:
    """And is read as such."""
    path = tmp_path / "out.json"
    async with Memory.open() as memory:
        await memory.save_json(path)
        assert json.loads(path.read_text()) == {"v": 1, "c": []}
        assert await memory.load_json(path) == 0
        assert await memory.load_json(write(tmp_path, {"v": 1})) == 0


async def test_the_later_field_sp_is_read(tmp_path: Path) -> None:
    """Of newer Go programs."""
    async with Memory.open() as memory:
        await memory.load_json(write(tmp_path, of((1, "hi"), sp="Be kind.")))
        assert [Message.system("Be kind."), Message.user("hi")] == (await memory.get("ann")).messages


async def test_lists_of_tools_are_not_kept_and_that_is_said(tmp_path: Path) -> None:
    """They are given to a Chat."""
    path = write(tmp_path, of((0, "x"), (3, "[…]"), (1, "hi"), (3, "[…]")))
    async with Memory.open() as memory:
        with pytest.warns(UserWarning, match="2 lists of available tools were not kept"):
            await memory.load_json(path)
        assert ["x", "hi"] == [message.content for message in (await memory.get("ann")).messages]


async def test_images_are_not_written_and_that_is_said(tmp_path: Path) -> None:
    """The format has none."""
    async with Memory.open() as memory:
        await (await memory.get("ann")).add(Message.user("look", images=(b"\x89PNG",)))
        with pytest.warns(UserWarning, match="1 images were not written"):
            await memory.save_json(tmp_path / "out.json")


async def test_a_question_that_was_never_answered_is_left_aside(tmp_path: Path) -> None:
    """A bot of the Go package's that failed kept the question, and then the next."""
    async with Memory.open() as memory:
        await memory.load_json(write(tmp_path, of((1, "a"), (1, "b"), (2, "c"), (1, "d"))))
        conversation = await memory.get("ann")
        assert ["b", "c", "d"] == [message.content for message in conversation.messages]
        assert TurnState.FAILED is conversation.turns[0].state


async def test_calls_one_after_another_are_one_message(tmp_path: Path) -> None:
    """As they are here, with their results in order."""
    calls = [(4, f'{{"name":"clock","arguments":{{"n":{number}}}}}') for number in range(2)]
    async with Memory.open() as memory:
        await memory.load_json(write(tmp_path, of((1, "a"), (2, "Hm."), *calls, (5, "x"), (5, "y"), (2, "z"))))
        messages = (await memory.get("ann")).messages
        assert ["a", "Hm.", "x", "y", "z"] == [message.content for message in messages]
        assert [call.id for call in messages[1].tool_calls] == [message.tool_call_id for message in messages[2:4]]
        assert [0, 1] == [call.arguments["n"] for call in messages[1].tool_calls]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", r"not a memory of the Go package's"),
        ("{", r"not a memory of the Go package's"),
        ("[]", r"not a memory of the Go package's"),
        ('{"v":"1"}', r"not a memory .*\$\.v"),
        (GO[:300], r"not a memory of the Go package's"),
        (of((9, "x")), r"conversation 0: message 0 \(of 'ann' in ''\): 9 is not a role"),
        (of((2, "x")), r"conversation 0: message 0 .*answers a user"),
        (of((1, "x"), (0, "y")), r"message 1 .*only be the first"),
        (of((1, "x"), (5, "y")), r"message 1 .*after the assistant message that made the call"),
        (of((1, "x"), (4, "y")), r"message 1 .*'y' is not JSON"),
        (of((1, "x"), (4, "[]")), r"message 1 .*empty list"),
        (of((1, "x"), (4, '["y"]')), r"message 1 .*is not \{"),
        (of((1, "x"), (4, '{"name":"n","arguments":[]}')), r"message 1 .*object"),
        (of(s="yesterday"), r"conversation 0: .*RFC3339"),
        (of(s="2024-05-01T10:00:00"), r"conversation 0: .*timezone"),
        (of(extra=1), r"conversation 0: .*unknown field .extra"),
        (of(m=[{"r": "1"}]), r"conversation 0: .*int.*\$\.m\[0\]\.r"),
    ],
)
async def test_a_bad_file_is_refused_whole_with_its_place(tmp_path: Path, content: object, fault: str) -> None:
    """One clear sentence, and nothing of it is loaded."""
    async with Memory.open() as memory:
        with pytest.raises(StoreError, match=fault):
            await memory.load_json(write(tmp_path, content))
        assert [] == await memory.conversations()
    with pytest.raises(StoreError, match="cannot be read"):
        async with Memory.open() as memory:
            await memory.load_json(tmp_path)


@pytest.mark.parametrize("content", [{"v": 2, "c": [{"new": 1}]}, {"c": []}, {"v": 0}])
async def test_unknown_versions_are_refused(tmp_path: Path, content: object) -> None:
    """Whatever else is in them."""
    async with Memory.open() as memory:
        with pytest.raises(StoreVersionError, match="only version 1 is known"):
            await memory.load_json(write(tmp_path, content))


async def test_what_is_there_is_not_overwritten(tmp_path: Path, database: Path) -> None:
    """All or nothing; an empty conversation is in nobody's way."""
    path = write(tmp_path, {"v": 1, "c": [*of((1, "x"))["c"], {"u": "bob", "m": [{"r": 1, "c": "y"}]}]})
    async with Memory.open(database) as memory:
        bob = await memory.get("bob")
        await bob.add("mine")
        with pytest.raises(UsageError, match=r"conversation of 'bob' .*already: nothing was loaded"):
            await memory.load_json(path)
        assert [bob] == await memory.conversations()
        await memory.forget_user("bob")
        await memory.get("bob")
        assert await memory.load_json(path) == 2
        assert ["y"] == [message.content for message in (await memory.get("bob")).messages]


async def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    """And no half one beside it."""
    folder = tmp_path / "folder"
    folder.mkdir()
    async with Memory.open() as memory:
        for path in (folder, tmp_path / "nowhere" / "out.json"):
            with pytest.raises(StoreError, match="could not be written"):
                await memory.save_json(path)
    assert ["folder"] == [path.name for path in tmp_path.iterdir() if path.name != "cache"]


async def test_nothing_is_warned_of_without_need(tmp_path: Path) -> None:
    """A plain memory goes out and in without a word."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        async with Memory.open() as memory:
            await memory.load_json(write(tmp_path, GO))
            await memory.save_json(tmp_path / "out.json")
