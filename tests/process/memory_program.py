"""A program that talks in a memory until it is killed, and says on stdout what was acknowledged: a line each.

Run it as `python -m tests.process.memory_program DATABASE SEED`. Each of its tasks prints only when what it names is on
the disk. The checks that come afterwards are in `check_acknowledged`.
"""

from __future__ import annotations

import os
import random
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import anyio
import anyio.abc

from llmsession import Conversation, Memory, Message, TurnState
from tests.memories import reply

WRITERS = 8


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
                part = await conversation.save_reply(asked, reply(text), TurnState.PENDING)
                acknowledge("turn", part.id, text)
                await conversation.save_reply(asked, reply(text), TurnState.COMPLETE, reply=part.id)
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


async def main(database: str, seed: str) -> None:
    """All tasks at once; whoever wants to see more of the library killed adds one here."""
    async with Memory.open(database) as memory, anyio.create_task_group() as tasks:
        for number in range(WRITERS):
            tasks.start_soon(write_turns, memory, random.Random(f"{seed} {number}"), number)
        acknowledge("begun")


def check_acknowledged(database: Path, lines: Iterable[str]) -> list[str]:
    """What is wrong with the file after all that was acknowledged: nothing, where all is well. Opens it as a Memory."""
    faults = []
    said: dict[int, str] = {}
    complete = set[int]()
    for line in lines:
        kind, _, rest = line.partition(" ")
        if kind == "turn":
            number, _, text = rest.partition(" ")
            if int(number) in said:
                faults.append(f"turn {number} was acknowledged twice")
            said[int(number)] = text
        elif kind == "complete":
            complete.add(int(rest))
    found = anyio.run(read_all, database)
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
            for turn in conversation.turns:
                found[turn.id] = (turn.message.content, turn.state.value)
                assert conversation.path_to(turn.id)[-1] == turn
            assert conversation.messages is not None
    return found


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2], backend=random.Random(sys.argv[2]).choice(["asyncio", "trio"]))
