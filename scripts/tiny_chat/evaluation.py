"""Measures tiny-chat through a Session."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio

from llmsession import Session, StopReason
from tiny_chat.cases import TASKS, Case

SEED = 20261121  # of the cases; the training's own generator starts elsewhere, and draws from other lists
AT_ONCE = 4

# The least that each may get right, of 100: what is asked of a demonstration. Counting is not part of its promise.
BAR = dict.fromkeys(TASKS, 95) | {
    "a name told 1,500 tokens earlier": 90,
    "says of ordinary English that it does not understand": 80,
    "counts to a number up to 100": 80,
}
# The least that end by themselves, of 100.
ENDS = 99


@dataclass(frozen=True)
class Miss:
    """A wrong answer."""

    asked: str
    wanted: str
    answered: str

    def __str__(self) -> str:
        return f"{self.asked!r}: {self.wanted!r} was wanted, {self.answered!r} came"


@dataclass
class Score:
    """Of one task."""

    title: str
    right: int = 0
    ended: int = 0
    cases: int = 0
    misses: list[Miss] = field(default_factory=list)


@dataclass(frozen=True)
class Doors:
    """The two ways to the model: `native` for most, `chat` where tools are offered or a thought is to be told apart."""

    native: Session
    chat: Session


@asynccontextmanager
async def open_doors(model: str, **options: Any) -> AsyncIterator[Doors]:
    """`options` are a Session's."""
    given = {"parallel": AT_ONCE, "context_length": 2048, **options}
    async with (
        Session(model, prompt_encoding="chatml", **given) as native,
        Session(model, prompt_encoding="chat", **given) as chat,
    ):
        yield Doors(native, chat)


async def measure(doors: Doors, title: str, cases: int, seed: int = SEED) -> Score:
    """The score in the task of that title over `cases` cases, at temperature 0."""
    make = TASKS[title]
    rng = random.Random(f"{title} {seed}")
    score = Score(title)
    limiter = anyio.CapacityLimiter(AT_ONCE)
    async with anyio.create_task_group() as group:
        for case in [make(rng) for _ in range(cases)]:
            session = doors.chat if case.tools or case.through_chat else doors.native
            group.start_soon(_try, session, case, score, limiter)
    return score


async def _try(session: Session, case: Case, score: Score, limiter: anyio.CapacityLimiter) -> None:
    async with limiter:
        if case.prompt_ids:
            reply = await session.generate(case.prompt_ids, temperature=0, max_tokens=400)
        else:
            extra = {"tools": case.tools} if case.tools else None
            reply = await session.prompt(case.messages, temperature=0, max_tokens=400, extra=extra)
    score.cases += 1
    score.ended += reply.stop_reason in (StopReason.END, StopReason.TOOL_CALLS)
    if case.is_right(reply):
        score.right += 1
    else:
        answered = reply.text or str([(call.name, call.arguments) for call in reply.tool_calls])
        score.misses.append(Miss(case.messages[-1].content, case.wanted, answered))
