"""What grows: one message with N spellings, N short messages, a conversation of N exchanges, an event of N
log-probabilities. Times of N, 2N and 4N as ratios, and how long the event loop was kept from others meanwhile.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

# So long, in milliseconds, a program's other work may be kept waiting.
MOST_BLOCKED = 100.0
# A size that doubles costs about twice as much; above this it grows faster than that.
MOST_GROWTH = 2.6
TICK = 0.002
SIZE = 2000  # N


class Gaps:
    """The longest time between two turns of the event loop, in milliseconds."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def watch(self) -> None:
        """Until it is cancelled."""
        last = time.perf_counter()
        while True:
            await asyncio.sleep(TICK)
            now = time.perf_counter()
            self.longest, last = max(self.longest, (now - last - TICK) * 1000), now


async def _time(work: Callable[[], Awaitable[Any]], rounds: int) -> tuple[float, float]:
    """Seconds of processor time of the best of some runs, and the longest gap in all of them."""
    gaps = Gaps()
    watching = asyncio.create_task(gaps.watch())
    await asyncio.sleep(2 * TICK)
    seconds = []
    for _ in range(rounds):
        began = time.process_time()  # ours: the engine's own tokenizer does not grow linearly
        await work()
        seconds.append(time.process_time() - began)
        await asyncio.sleep(2 * TICK)
    watching.cancel()
    return min(seconds), gaps.longest


def measure_scale(backend: str, rounds: int) -> None:
    """Print a line for each kind of growth, and what does not grow linearly or holds the loop for long."""
    asyncio.run(_measure(backend, rounds))


async def _measure(backend: str, rounds: int) -> None:
    from llmsession import Chat, Conversation, Message, Session

    async with Session(backend=backend, threads=1, context_length=2048) as session:

        async def count(messages: list[Message]) -> None:
            await session.count_tokens(messages)

        def spellings(number: int) -> Callable[[], Awaitable[None]]:
            return lambda: count([Message.user("<|im_start|>" * number)])

        def short(number: int) -> Callable[[], Awaitable[None]]:
            said = [
                Message.user("hi <|im_end|>") if at % 2 == 0 else Message.assistant("yo") for at in range(number + 1)
            ]
            return lambda: count(said)

        async def exchanges(number: int) -> Callable[[], Awaitable[Any]]:
            conversation = Conversation.in_ram()
            for at in range(number):
                await conversation.add(Message.user(f"hi {at}"))
                await conversation.add(Message.assistant("yo"))
            chat = Chat(session, conversation, history=4)
            return lambda: chat.send("hello", max_tokens=1)

        kinds: dict[str, list[Callable[[], Awaitable[Any]]]] = {
            "a message of N spellings": [spellings(SIZE * factor) for factor in (1, 2, 4)],
            "N short messages": [short(SIZE * factor) for factor in (1, 2, 4)],
            "a turn after N exchanges": [await exchanges(SIZE * factor // 4) for factor in (1, 2, 4)],
            "an event of N log-probabilities": [_event(SIZE * factor * 8) for factor in (1, 2, 4)],
        }
        await session.prompt("hi", max_tokens=1)
        for name, works in kinds.items():
            measured = [await _time(work, rounds) for work in works]
            times, gap = [seconds for seconds, _ in measured], max(gap for _, gap in measured)
            growth = [later / before for before, later in itertools.pairwise(times)]
            grows_well = times[-1] < 0.05 or max(growth) <= MOST_GROWTH  # a few milliseconds are noise
            faults = ["NOT LINEAR"] * (not grows_well) + ["THE LOOP IS BLOCKED"] * (gap > MOST_BLOCKED)
            print(
                f"scale   {name:<32} {times[0] * 1000:8.1f} ms at N, {growth[0]:5.2f} × at 2N, {growth[1]:5.2f} × again"
                f" at 4N; the loop waited {gap:5.0f} ms at most  {', '.join(faults)}"
            )


def _event(number: int) -> Callable[[], Awaitable[Any]]:
    """Decode one frame as it comes from a server, in pieces of 64 kB."""
    from llmsession.types.sampling import Sampling
    from llmsession.wire import openai_api
    from llmsession.wire.request import GenerationRequest
    from llmsession.wire.sse import Decoder

    entries = [{"token": "a", "logprob": -0.5, "top_logprobs": []}] * number
    choice = {"index": 0, "delta": {"content": "a" * number}, "logprobs": {"content": entries}}
    body = b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"
    request = GenerationRequest.make(
        max_tokens=None, seed=1, sampling=Sampling(), stop=(), echo_stop=False, top_logprobs=0, extra=None
    )

    async def work() -> None:
        lines, events = Decoder(), openai_api.EventDecoder(request)
        for at in range(0, len(body), 65_536):
            for payload in lines.feed(body[at : at + 65_536]):
                events.decode(payload)
            await asyncio.sleep(0)

    return work
