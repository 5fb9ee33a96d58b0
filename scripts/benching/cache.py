"""P4 and P5: prompt tokens that the engine evaluated, as a multiple of those that were new, over interleaved chats.

Tokens, and no time. Beside it a bare llama-server, as a naive client asks it: the whole history each turn, and the time
of that turn in the system prompt.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import Progress, TaskID

from benching.busy import plain_server

if TYPE_CHECKING:
    from llmsession import Session
    from llmsession.types.completion import Usage

USERS, TURNS, SLOTS = 200, 6, 4
CONTEXT = 2048
WORDS = "river stone ferry quiet lantern harbour winter maple copper valley signal garden".split()
SYSTEM = "You reply with short answers. It is Friday 2026-11-20 {hour:02d}:{minute:02d}."


class Tally:
    """Of one run."""

    def __init__(self) -> None:
        self.evaluated = self.new = 0

    def add(self, usage: Usage, before: int) -> None:
        """A reply, whose conversation had `before` tokens after the last one."""
        self.evaluated += usage.prompt_tokens - usage.cached_tokens
        self.new += usage.prompt_tokens - before

    def __str__(self) -> str:
        return f"{self.evaluated / self.new:5.2f} × the new tokens ({self.evaluated} evaluated, {self.new} new)"


class Chats:
    """The conversations of all users. `naive`: the system prompt has the time of the turn, not of the first."""

    def __init__(self, *, naive: bool) -> None:
        self._naive = naive
        self._said: list[list[tuple[str, str]]] = [[] for _ in range(USERS)]
        self._held = [0] * USERS
        self._rng = random.Random(7)
        self._minutes = 0

    def _system(self, user: int) -> str:
        minutes = self._minutes // 40 if self._naive else user // 4
        return SYSTEM.format(hour=19 + minutes // 60, minute=minutes % 60)

    async def turn(self, session: Session, user: int, tally: Tally) -> None:
        """One question and its answer."""
        from llmsession import Message, Role
        from llmsession.session.session import replies_of

        self._minutes += 1
        question = f"User {user} says: " + " ".join(self._rng.choice(WORDS) for _ in range(8))
        turns = [Message.system(self._system(user))]
        turns += [Message(Role(role), text) for role, text in self._said[user]]
        turns.append(Message.user(question))
        if self._naive:
            reply = await session.prompt(turns, max_tokens=30, temperature=0)
        else:
            replies = replies_of(session)
            settings = replies.check({"max_tokens": 30, "temperature": 0})
            async with replies.reply_to(f"user {user}", turns, settings) as stream:
                reply = await stream.result()
        self._said[user] += [("user", question), ("assistant", reply.text)]
        tally.add(reply.usage, self._held[user])
        self._held[user] = reply.usage.total_tokens

    async def round(self, session: Session, tally: Tally, progress: Progress, bar: TaskID) -> None:
        """A turn of every user, in an order that is drawn, as many at once as there are slots."""
        users = iter(self._rng.sample(range(USERS), USERS))

        async def work(left: Iterator[int]) -> None:
            for user in left:
                await self.turn(session, user, tally)
                progress.advance(bar)

        await asyncio.gather(*[work(users) for _ in range(SLOTS)])


def measure_cache(backend: str, rounds: int) -> None:
    """Once: the counts are the same each time, up to who comes first."""
    from llmsession.backends.find import find_llama_server
    from llmsession.models.bundled import bundled_path
    from llmsession.system.paths import cache_folder

    del rounds
    with Progress() as progress, tempfile.TemporaryDirectory(prefix="llmsession-bench-") as cache:
        first, again, engine = asyncio.run(_measure_ours(backend, Path(cache), progress))
        found = find_llama_server(None, cache_folder())
        naive: Tally | str = "not measured: there is no llama-server"
        if found is not None:
            flags = ("-np", str(SLOTS), "-c", str(SLOTS * CONTEXT), "-t", "1")
            with plain_server(found.path, bundled_path(), *flags) as address:
                naive = asyncio.run(_measure_naive(address, progress))
    print(f"P4  {backend:<22} {first}")
    print(f"P4  bare engine, naive     {naive}")
    print(f"P5  {backend:<22} {again}, after the program and the engine were started again")
    print(f"    the engine's own count of evaluated tokens, both runs: {engine}; by cached_tokens: ", end="")
    print(first.evaluated + again.evaluated)


async def _measure_ours(backend: str, cache: Path, progress: Progress) -> tuple[Tally, Tally, int]:
    from llmsession import Session

    chats, first, again, engine = Chats(naive=False), Tally(), Tally(), 0
    for tally, turns, name in ((first, TURNS, "P4"), (again, 1, "P5")):
        bar = progress.add_task(name, total=USERS * turns)
        async with Session(
            backend=backend, threads=1, parallel=SLOTS, context_length=CONTEXT, cache_dir=cache
        ) as session:
            for _ in range(turns):
                await chats.round(session, tally, progress, bar)
            engine += (await session.get_metrics()).prompt.count
    return first, again, engine


async def _measure_naive(address: str, progress: Progress) -> Tally:
    """Through a session that only counts: what it sends is what any client of the chat endpoint does."""
    from llmsession import Session

    tally, chats = Tally(), Chats(naive=True)
    bar = progress.add_task("naive", total=USERS * TURNS)
    async with Session(remote=address, parallel=SLOTS) as session:
        for _ in range(TURNS):
            await chats.round(session, tally, progress, bar)
    return tally
