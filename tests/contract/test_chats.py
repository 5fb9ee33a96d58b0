"""Chats on each engine through both APIs: remembered, cached, cut, streamed, and said once for each key."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

import anyio
import pytest

import llmsession.prompts.system_prompt
from llmsession import (
    Chat,
    ClosedError,
    Completion,
    ContextOverflowError,
    Conversation,
    DuplicateKeyError,
    InvalidMessagesError,
    Memory,
    Message,
    Role,
    Sampling,
    Session,
    StopReason,
    StoreError,
    TotalTimeoutError,
    TurnState,
    UsageError,
)
from llmsession.memory.conversation import log_of

pytestmark = pytest.mark.anyio

OK = 'reply with "ok chief"'
COUNT = "count to 100"
GREEDY = Sampling.GREEDY
# Goes on to the end of the context.
ENDLESS = Sampling(temperature=0, ignore_eos=True)
BOUND = 60
# A template puts a few tokens after a reply when more follows, and the last one said was never read.
SLACK = 8


@pytest.fixture
async def conversation() -> AsyncIterator[Conversation]:
    """One that a memory keeps."""
    async with Memory.open() as memory:
        yield await memory.get("42", "general")


def states(conversation: Conversation) -> list[TurnState]:
    """Of the active path."""
    return [turn.state for turn in conversation.path]


async def test_a_chat_remembers(session: Session, conversation: Conversation) -> None:
    """CAPABILITIES D8, API.md 4: each turn is told what was said before."""
    chat = Chat(session, conversation, system_prompt="You reply with short answers.", sampling=GREEDY)
    await chat.send("My name is Rosalind.")
    reply = await chat.send("What is my name?")
    assert "Rosalind" in reply.text
    roles = [message.role for message in conversation.messages]
    assert [Role.SYSTEM, Role.USER, Role.ASSISTANT, Role.USER, Role.ASSISTANT] == roles
    assert reply.text == conversation.messages[-1].content
    assert [TurnState.COMPLETE] * 4 == states(conversation)
    assert reply == conversation.path[-1].completion == chat.last
    assert "You reply with short answers." == chat.system_prompt == conversation.system_prompt


async def test_a_stream_is_read_as_any_reply(session: Session, conversation: Conversation) -> None:
    """API.md 4: `stream(same)`; it is on disk when it has been read, and the text is that of its pieces."""
    chat = Chat(session, conversation, sampling=GREEDY)
    async with chat.stream(OK) as stream:
        assert [TurnState.PENDING] == states(conversation)
        pieces = [piece async for piece in stream]
        completion = await stream.result()
    assert ("ok chief", "ok chief") == ("".join(pieces), completion.text)
    async with chat.stream(OK) as stream:
        kinds = [type(event).__name__ async for event in stream.events()]
    assert {"TextDelta"} == set(kinds[:-1])
    assert "Finished" == kinds[-1]
    with pytest.raises(UsageError, match="inside its block"):
        await chat.stream(OK).result()
    assert 4 == len(conversation.path)


async def test_a_turn_costs_its_new_tokens(session: Session, conversation: Conversation, tmp_path: Path) -> None:
    """DESIGN 6: what was sent is extended and never rendered again; the reply tells what came from the cache."""
    chat = Chat(session, conversation, system_prompt="Now it is {now}.", sampling=GREEDY)
    before = await chat.send(OK)
    for text in ("My name is Rosalind.", "What is my name?"):
        reply = await chat.send(text)
        assert reply.usage.cached_tokens >= before.usage.total_tokens - SLACK
        assert (await chat.inspect()).missed is None
        before = reply
    # One that no other test has sent: the session is shared, and so is what its engine has in its cache.
    await conversation.set_system_prompt(f"Be brief in {tmp_path.name}.")
    await chat.send(OK)
    assert "the system prompt has changed" in ((await chat.inspect()).missed or "")


async def test_the_time_in_the_system_prompt_is_told_once(
    session: Session, conversation: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DESIGN 6: volatile facts are rendered once for each conversation and then kept; CAPABILITIES C2."""
    times = iter([datetime(2026, 11, 20, 19, 19).astimezone(), datetime(2026, 11, 20, 19, 20).astimezone()])

    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return next(times)

    monkeypatch.setattr(llmsession.prompts.system_prompt, "datetime", Clock)
    chat = Chat(session, conversation, system_prompt="It is {now}, you are {model}.", sampling=GREEDY)
    await chat.send(OK)
    assert "It is Friday 2026-11-20 19:19, you are tiny-chat." in await chat.render()
    await chat.send(OK)
    assert "19:19" in await Chat(session, conversation).render()
    assert "It is {now}, you are {model}." == conversation.system_prompt


async def test_a_key_is_answered_once(session: Session, conversation: Conversation) -> None:
    """CAPABILITIES D4: the same key again gives the same reply; with another text it is refused."""
    chat = Chat(session, conversation)
    first = await chat.send(OK, key="event-1")
    assert first == await chat.send(OK, key="event-1")
    async with Chat(session, conversation).stream(OK, key="event-1") as stream:
        assert first.text == "".join([piece async for piece in stream])
        assert first == await stream.result()
    with pytest.raises(DuplicateKeyError, match="'event-1' was given before, with another text") as caught:
        await chat.send("Hello", key="event-1")
    assert "event-1" == caught.value.key
    assert 2 == len(conversation.turns)


async def test_a_running_reply_is_joined(session: Session, conversation: Conversation) -> None:
    """CAPABILITIES D4: one reply for all who ask with its key; each reads it as it comes."""
    replies: list[Completion] = []
    heard = anyio.Event()

    async def join() -> None:
        async with Chat(session, conversation).stream(COUNT, key="e", max_tokens=60) as stream:
            pieces = []
            async for piece in stream:
                pieces.append(piece)
                heard.set()
            replies.append(await stream.result())
            assert "".join(pieces) == replies[-1].text

    with anyio.fail_after(BOUND):
        async with (
            Chat(session, conversation).stream(COUNT, key="e", max_tokens=60) as stream,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(join)
            tasks.start_soon(join)
            await anext(stream)
            await heard.wait()  # it is read as it comes, by those who joined as well
            replies.append(await stream.result())
    assert 3 == len(replies)
    assert replies[0] == replies[1] == replies[2]
    assert 2 == len(conversation.turns)


async def test_who_joined_goes_on_where_the_first_left(session: Session, conversation: Conversation) -> None:
    """DESIGN 4: a reply that several joined is carried by whoever waits: the next goes on from what was delivered."""
    whole = await session.prompt(COUNT, max_tokens=60, temperature=0)
    replies: list[str] = []
    heard = anyio.Event()

    async def join() -> None:
        async with Chat(session, conversation).stream(COUNT, key="e", max_tokens=60, temperature=0) as stream:
            pieces = []
            async for piece in stream:
                pieces.append(piece)
                heard.set()
            replies.append("".join(pieces))
            assert replies[-1] == (await stream.result()).text

    with anyio.fail_after(BOUND):
        async with (
            anyio.create_task_group() as tasks,
            Chat(session, conversation).stream(COUNT, key="e", max_tokens=60, temperature=0) as stream,
        ):
            await anext(stream)
            tasks.start_soon(join)
            for _ in range(3):
                await anext(stream)
            await heard.wait()
    assert [whole.text] == replies
    assert [TurnState.COMPLETE] * 2 == states(conversation)


async def test_a_reply_that_was_left_is_kept_or_finished(session: Session, conversation: Conversation) -> None:
    """CAPABILITIES D4: with a key it is finished by the next call, not repeated; without one it is kept as it is."""
    whole = await session.prompt(COUNT, max_tokens=60, temperature=0)
    chat = Chat(session, conversation, sampling=GREEDY, max_tokens=60)
    async with chat.stream(COUNT) as stream:
        begun = [await anext(stream), await anext(stream)]
    assert [TurnState.COMPLETE, TurnState.INTERRUPTED] == states(conversation)
    assert conversation.messages[-1].content.startswith("".join(begun))
    await conversation.rewind()
    async with chat.stream(COUNT, key="e") as stream:
        begun = [await anext(stream), await anext(stream)]
    assert [TurnState.PENDING] * 2 == states(conversation)
    async with chat.stream(COUNT, key="e") as stream:
        pieces = [piece async for piece in stream]
    assert pieces[0].startswith("".join(begun))  # what is known comes at once
    assert whole.text == "".join(pieces) == conversation.messages[-1].content
    assert [TurnState.COMPLETE] * 2 == states(conversation)


async def test_interrupt_and_retry(session: Session, conversation: Conversation) -> None:
    """CAPABILITIES D5, C7: an interrupted reply is kept; retry answers the turn again, beside it."""
    chat = Chat(session, conversation, sampling=ENDLESS)
    async with chat.stream(COUNT) as stream:
        await anext(stream)
        session.interrupt()
        reply = await stream.result()
    assert (StopReason.INTERRUPTED, TurnState.INTERRUPTED) == (reply.stop_reason, states(conversation)[-1])
    again = await chat.retry(max_tokens=5)
    assert StopReason.LENGTH == again.stop_reason
    first, *replies = conversation.turns
    assert [first.id, first.id] == [turn.parent for turn in replies]
    assert [first.id, replies[1].id] == [turn.id for turn in conversation.path]
    await conversation.branch(replies[0].id)
    assert reply.text == conversation.messages[-1].content
    with pytest.raises(UsageError, match="nothing to answer again"):
        await Chat(session).retry()


async def test_a_turn_that_was_never_answered_is_no_obstacle(session: Session, conversation: Conversation) -> None:
    """The issue: bad input gets one error, and nothing is lost: the turn stays in the tree, and may be tried again."""
    chat = Chat(session, conversation, sampling=GREEDY)
    with pytest.raises(ContextOverflowError, match="this message takes"):
        await chat.send("word " * 3000)
    with pytest.raises(TotalTimeoutError) as caught:
        await chat.send(COUNT, sampling=ENDLESS, timeout=0.000_1)
    assert caught.value.partial is not None
    assert [] == conversation.path
    assert [TurnState.FAILED] * 2 == [turn.state for turn in conversation.turns]
    assert "1" in (await chat.retry()).text
    assert [COUNT] == [message.content for message in conversation.messages[:1]]
    for text in ("", Message.assistant("hi"), Message.system("be good")):
        with pytest.raises(InvalidMessagesError) as wrong:
            await chat.send(text)
        assert 0 == wrong.value.index
    with pytest.raises(UsageError, match="no such keyword"):
        await chat.send(OK, temprature=0)  # type: ignore[call-arg]
    assert 2 == len(conversation.path)


async def test_turns_of_one_conversation_wait_and_others_do_not(session: Session, conversation: Conversation) -> None:
    """CAPABILITIES D8: one conversation answers one turn at a time, in order."""
    answered: list[str] = []

    async def say(text: str) -> None:
        await Chat(session, conversation, sampling=GREEDY, max_tokens=8).send(text)
        answered.append(text)

    with anyio.fail_after(BOUND):
        async with (
            anyio.create_task_group() as tasks,
            Chat(session, conversation, sampling=GREEDY).stream(OK) as stream,
        ):
            for text in ("one", "two", "three"):
                tasks.start_soon(say, text)
                await anyio.wait_all_tasks_blocked()
            await Chat(session).send(OK)
            assert [] == answered
            await stream.result()
    assert ["one", "two", "three"] == answered
    said = [message.content for message in conversation.messages if message.role is Role.USER]
    assert [OK, "one", "two", "three"] == said


async def test_a_conversation_outgrows_its_context(session: Session, conversation: Conversation) -> None:
    """CAPABILITIES C16, D6: cut in whole turns, reported, what is pinned stays; the engine never has to refuse."""
    chat = Chat(session, conversation, system_prompt="You reply with short answers.", sampling=GREEDY, max_tokens=16)
    await chat.send("My name is Rosalind.")
    await conversation.pin(conversation.path[0].id)
    text = f"say yes {'and so on ' * 40}"
    dropped: list[Message] = []
    for _ in range(8):
        reply = await chat.send(text)
        dropped += reply.dropped
        assert reply.usage.prompt_tokens <= session.context_length - 16
    assert dropped
    assert text == dropped[0].content
    assert not any("Rosalind" in message.content for message in dropped)
    rendered = await chat.render()
    assert "Rosalind" in rendered
    assert "You reply with short answers." in rendered
    assert 2 * 9 + 1 == len(conversation.messages)  # it is all there, though not all is sent
    with pytest.raises(ContextOverflowError, match="begin a new one"):
        await Chat(session, conversation, overflow="refuse", max_tokens=1000).send(text * 2)


async def test_a_summary_stands_for_what_was_left_out(session: Session, conversation: Conversation) -> None:
    """CAPABILITIES D6: the model's own words, stored and marked; what was summed up is still there."""
    chat = Chat(session, conversation, sampling=GREEDY, max_tokens=16, overflow="summarize")
    text = f"say yes {'and so on ' * 40}"
    reply = await chat.send(text)
    while not reply.dropped:
        assert len(conversation.path) < 20
        reply = await chat.send(text)
    summary = log_of(conversation).summary
    assert summary is not None
    assert summary.completion is not None
    assert summary.is_summary
    rendered = await chat.render()
    assert summary.message.content in rendered
    assert rendered.count(text) == len([turn for turn in conversation.path if turn.message.content == text]) - (
        len(reply.dropped) // 2
    )
    again = await chat.send("say no")
    assert () == again.dropped
    assert again.usage.cached_tokens >= reply.usage.prompt_tokens - SLACK


async def test_stats_and_inspection(session: Session, conversation: Conversation) -> None:
    """CAPABILITIES D8: the tokens of the context that are used; each piece with its role, control or text, cached."""
    chat = Chat(session, conversation, sampling=GREEDY)
    assert 0 == (await chat.stats()).tokens
    reply = await chat.send(OK)
    stats = await chat.stats()
    assert 0 <= stats.tokens - reply.usage.total_tokens <= SLACK
    assert (2, session.context_length) == (stats.messages, stats.context_length)
    assert f"{stats.tokens} / {session.context_length} tokens" == str(stats).splitlines()[0]
    assert 3 == len(str(stats).splitlines())
    pieces = await chat.inspect()
    assert stats.tokens == sum(piece.tokens for piece in pieces)
    assert [OK, "ok chief"] == [piece.text for piece in pieces if not piece.is_control and piece.text.strip()]
    assert all(piece.is_cached for piece in pieces[:2])
    assert "".join(piece.text for piece in pieces) == await chat.render()
    assert f"user: {OK}" in chat.as_text().lower().replace('"', '"') or OK in chat.as_text()


async def test_the_engine_reads_while_a_user_types(session: Session, conversation: Conversation) -> None:
    """CAPABILITIES D11: what is typed by now is read; the turn then finds it in the cache."""
    chat = Chat(session, conversation, sampling=GREEDY)
    await chat.send(OK)
    text = "My name is Rosalind, and I would like to know"
    assert await chat.ingest(text) > 20
    assert 2 == len(conversation.path)
    reply = await chat.send(f"{text} what my name is.")
    assert reply.usage.prompt_tokens - reply.usage.cached_tokens < 40


async def test_a_memory_that_is_closed_ends_the_reply(session: Session) -> None:
    """The issue: a conversation closed while it answers is one error, with what had come."""
    memory = await Memory.open()
    chat = Chat(session, await memory.get("42"), sampling=ENDLESS)
    pieces: list[str] = []

    async def read() -> None:
        async with chat.stream(COUNT) as stream:
            async for piece in stream:
                pieces.append(piece)
                await memory.aclose()

    with anyio.fail_after(BOUND), pytest.raises(ClosedError) as caught:
        await read()
    assert caught.value.partial is not None
    assert caught.value.partial.text.startswith("".join(pieces))


async def test_what_cannot_be_written_down_is_told_to_who_leaves(session: Session) -> None:
    """The issue: one clear error; leaving a reply early is no reason to lose it in silence."""
    memory = await Memory.open()
    chat = Chat(session, await memory.get("42"), sampling=ENDLESS)

    async def leave() -> None:
        async with chat.stream(COUNT) as stream:
            await anext(stream)
            await memory.aclose()

    with anyio.fail_after(BOUND), pytest.raises(ClosedError):
        await leave()


async def test_who_joins_a_reply_hears_what_was_left_out(session: Session, conversation: Conversation) -> None:
    """CAPABILITIES D4, C16: it is the same reply in all that is known of it."""
    chat = Chat(session, conversation, sampling=GREEDY, max_tokens=16)
    text, number = f"say yes {'and so on ' * 40}", 0
    replies: list[Completion] = []

    async def ask(key: str) -> None:
        replies.append(await chat.send(text, key=key))

    with anyio.fail_after(BOUND):
        while not any(reply.dropped for reply in replies):
            assert number < 10
            number += 1
            replies.clear()
            async with anyio.create_task_group() as tasks:
                for _ in range(2):
                    tasks.start_soon(ask, str(number))
    assert replies[0] == replies[1]


async def test_a_user_who_is_forgotten_while_the_reply_comes(session: Session, tmp_path: Path) -> None:
    """F6: "there is no turn 3", as if the call were wrong. Nothing of the user is left."""
    async with Memory.open(tmp_path / "memory.db") as memory:
        chat = Chat(session, await memory.get(user="ann"))
        async with chat.stream(COUNT, temperature=0) as stream:
            await anext(aiter(stream))
            await memory.forget_user("ann")
            with pytest.raises(StoreError, match="was forgotten while its reply was generated"):
                await stream.result()
        assert {"user": "ann", "conversations": []} == await memory.export("ann")
        assert (await Chat(session, await memory.get(user="ann")).send("hi")).stop_reason
