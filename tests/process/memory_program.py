"""A program that talks in a memory until it is killed, and says on stdout what was acknowledged: a line each.

Run it as `python -m tests.process.memory_program DATABASE SEED [URL KEY]`; with the address and the key of a server it
also chats. Each of its tasks prints only when what it names is on the disk. The checks that come afterwards are in
`check_acknowledged`.
"""

from __future__ import annotations

import os
import random
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterable
from contextlib import AsyncExitStack
from pathlib import Path

import anyio

from llmsession import Chat, Conversation, Memory, Message, Sampling, Session, TurnState
from llmsession.memory.conversation import log_of
from tests.memories import reply

WRITERS = 8
CHATTER = "chatter"


def acknowledge(*words: object) -> None:
    """One write, which is whole or is not there."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


async def write_turns(memory: Memory, rng: random.Random, number: int) -> None:
    """Exchanges of one user, now and then cleared, edited or replied to in parts."""
    conversation = await memory.get(f"writer {number}")
    if conversation.path and conversation.path[-1].message.role == "user":
        await say(conversation, Message.assistant(f"after a crash {rng.random()}"))
    while True:
        asked = await say(conversation, Message.user(f"question {rng.random()} " + "x" * rng.choice([0, 10, 5000])))
        match rng.randrange(4):
            case 0:
                text = f"answer {rng.random()}"
                part = await log_of(conversation).save_reply(asked, reply(text), TurnState.PENDING)
                acknowledge("turn", part.id, text)
                await log_of(conversation).save_reply(asked, reply(text), TurnState.COMPLETE, reply=part.id)
                acknowledge("complete", part.id)
            case 1:
                await say(conversation, Message.assistant(f"answer {rng.random()}"))
                await conversation.clear()
            case _:
                await say(conversation, Message.assistant(f"answer {rng.random()}"))


async def say(conversation: Conversation, message: Message) -> int:
    """Add it, then say so."""
    turn = await conversation.add(message)
    acknowledge("turn", turn.id, message.content)
    return turn.id


async def chat_with_keys(memory: Memory, rng: random.Random, session: Session) -> None:
    """As a bot does: first what the last life left, then one event after another. Each is answered by itself."""
    conversation = await memory.get(CHATTER)
    chat = make_chat(session, conversation)
    for found in await memory.unfinished():
        if found.conversation is conversation:
            await answer(chat, found.turn.message.content, found.turn.key or "")
    while True:
        await conversation.clear()
        text = rng.choice(["count to 20", f'reply with "{rng.randrange(100)} chief"'])
        await answer(chat, text, f"event-{rng.random()}")


def make_chat(session: Session, conversation: Conversation) -> Chat:
    """Replies that are the same each time, and not long."""
    return Chat(session, conversation, sampling=Sampling.GREEDY, max_tokens=60)


async def answer(chat: Chat, text: str, key: str) -> None:
    """Once for each key, then it is posted."""
    reply = await chat.send(text, key=key)
    acknowledge("reply", key, text, "->", reply.text)
    asked = log_of(chat.conversation).find(key)
    assert asked is not None
    await chat.conversation.mark_delivered(asked.id)


async def main(*arguments: str) -> None:
    """All tasks at once; whoever wants to see more of the library killed adds one here."""
    database, seed, *server = arguments
    async with AsyncExitStack() as stack:
        memory = await stack.enter_async_context(Memory.open(database))
        session = None
        if server:
            session = await stack.enter_async_context(Session(remote=server[0], api_key=server[1], model="tiny-chat"))
        tasks = await stack.enter_async_context(anyio.create_task_group())
        for number in range(WRITERS):
            tasks.start_soon(write_turns, memory, random.Random(f"{seed} {number}"), number)
        if session is not None:
            tasks.start_soon(chat_with_keys, memory, random.Random(f"{seed} chat"), session)
        acknowledge("begun")


def check_acknowledged(database: Path, lines: Iterable[str]) -> list[str]:
    """What is wrong with the file after all that was acknowledged: nothing, where all is well. Opens it as a Memory."""
    faults = []
    said: dict[int, str] = {}
    complete = set[int]()
    replies: dict[str, str] = {}
    for line in lines:
        kind, _, rest = line.partition(" ")
        if kind == "turn":
            number, _, text = rest.partition(" ")
            if int(number) in said:
                faults.append(f"turn {number} was acknowledged twice")
            said[int(number)] = text
        elif kind == "complete":
            complete.add(int(rest))
        elif kind == "reply":
            key, _, exchange = rest.partition(" ")
            if replies.setdefault(key, exchange) != exchange:
                faults.append(f"{key} has two replies: {replies[key]!r} and {exchange!r}")
    found = anyio.run(read_all, database)
    faults += anyio.run(check_keys, database, replies)
    faults += [f"turn {number} was acknowledged and is lost" for number in said if number not in found]
    wrong = [number for number, text in said.items() if number in found and found[number][0] != text]
    faults += [f"turn {number} is not what was said" for number in wrong]
    faults += [f"turn {number} is not complete" for number in complete if found.get(number, ("", ""))[1] != "complete"]
    texts = Counter(text for text, _ in found.values())
    faults += [f"{text[:40]!r} is there {count} times" for text, count in texts.items() if count > 1]
    connection = sqlite3.connect(database)
    (verdict,) = connection.execute("PRAGMA integrity_check").fetchone()
    if verdict != "ok":
        faults.append(f"integrity_check: {verdict}")
    connection.close()
    return faults


async def read_all(database: Path) -> dict[int, tuple[str, str]]:
    """Text and state of each turn; each path is whole."""
    found = {}
    async with Memory.open(database) as memory:
        for conversation in await memory.conversations():
            assert conversation.messages is not None
            if conversation.user == CHATTER:
                continue
            for turn in conversation.turns:
                found[turn.id] = (turn.message.content, turn.state.value)
                assert log_of(conversation).path_to(turn.id)[-1] == turn
    return found


async def check_keys(database: Path, replies: dict[str, str]) -> list[str]:
    """Each key stands for one turn with at most one reply, and those that were acknowledged are there."""
    faults: list[str] = []
    async with Memory.open(database) as memory:
        conversation = await memory.get(CHATTER)
        children = Counter(turn.parent for turn in conversation.turns if turn.message.role == "assistant")
        keyed = [turn for turn in conversation.turns if turn.key is not None]
        faults += [f"{turn.key} has {children[turn.id]} replies" for turn in keyed if children[turn.id] > 1]
        for key, exchange in replies.items():
            asked = log_of(conversation).find(key)
            answer = None if asked is None else log_of(conversation).reply_to(asked.id)
            kept = None if asked is None or answer is None else f"{asked.message.content} -> {answer.message.content}"
            if kept != exchange:
                faults.append(f"{key} was answered with {exchange!r}, and there is {kept!r}")
    return faults


async def finish(database: Path, session: Session) -> list[str]:
    """Take up what the last life left; then each turn has the reply that an idle engine gives to it."""
    faults = []
    async with Memory.open(database) as memory:
        conversation = await memory.get(CHATTER)
        chat, expected = make_chat(session, conversation), dict[str, str]()
        for found in await memory.unfinished():
            if found.conversation is conversation:
                await chat.send(found.turn.message, key=found.turn.key)
        for turn in conversation.turns:
            if turn.key is None:
                continue
            text, reply = turn.message.content, log_of(conversation).reply_to(turn.id)
            if text not in expected:
                expected[text] = (await session.prompt(text, temperature=0, max_tokens=60)).text
            if reply is None or reply.message.content != expected[text]:
                faults.append(f"{text!r} was answered with {reply and reply.message.content!r}, not {expected[text]!r}")
    return faults


if __name__ == "__main__":
    anyio.run(main, *sys.argv[1:], backend=random.Random(sys.argv[2]).choice(["asyncio", "trio"]))
