"""The stage `restarts` of scripts/soak: eight streams, and an engine that is killed at random every few seconds."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import time
from collections import Counter

import anyio

from llmsession import Completion, LLMSessionError, Message, Session
from llmsession.models import bundled
from soaking.run import Run, compare, survey

STREAMS = 8
PAUSE = (1.0, 4.0)  # seconds between two kills
# Below that, in natural log-probability, the two best tokens are a tie: batches of another shape decide it.
TIE = 0.3
# Of all replies, so many may differ for another reason.
ALLOWED = 0.01

_WORDS = "river stone cloud candle window garden winter market silver horse letter mountain bread island".split()


def make_prompts(rng: random.Random, count: int) -> list[list[Message]]:
    """What tiny-chat can answer, at some length."""
    prompts = []
    for number in range(count):
        # Each word once: a small model that repeats "letter letter" is torn between two readings.
        words = " ".join(rng.sample(_WORDS, k=rng.randint(3, 8)))
        ask = [f"count to {rng.randint(10, 90)}", f'reply with "{words}"', f'say "{words}"', "Tell me about yourself."]
        thinks = [Message.system("Think first.")] if number % 5 == 0 else []
        prompts.append([*thinks, Message.user(ask[number % 4])])
    return prompts


class Killer:
    """Ends the engine until it is told to stop."""

    def __init__(self, session: Session, rng: random.Random) -> None:
        self.session = session
        self.rng = rng
        self.kills = 0
        self.over = anyio.Event()

    async def run(self) -> None:
        """Now and then."""
        while not self.over.is_set():
            with anyio.move_on_after(self.rng.uniform(*PAUSE)):
                await self.over.wait()
            if not self.over.is_set() and self.session.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.session.pid, signal.SIGKILL)
                    self.kills += 1


async def is_tie(session: Session, prompt: list[Message], reference: Completion, reply: Completion) -> bool:
    """Whether the two leave each other where the engine, now idle, finds the two best tokens as good as equal."""
    texts = [f"<think>{whole.reasoning}</think>\n\n{whole.text}" if whole.reasoning else whole.text
             for whole in (reference, reply)]  # fmt: skip
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*texts, strict=False))
    common = "".join(letter for letter, _ in same)
    raw = "".join(piece.text for piece in bundled.ENCODING.encode(prompt)) + common
    (token,) = (await session.generate(raw, temperature=0, max_tokens=1, top_logprobs=2)).tokens[:1]
    best = [other.logprob for other in token.top[:2]]
    return len(best) == 2 and best[0] - best[1] <= TIE


class Readers:
    """Eight of them, and what they got."""

    def __init__(self, run: Run, session: Session, prompts: list[list[Message]], seconds: float) -> None:
        self.run = run
        self.session = session
        self.prompts = prompts
        self.end = time.monotonic() + seconds
        self.outcomes: Counter[str] = Counter()
        self.restarts = 0
        self.odd: list[tuple[int, Completion]] = []

    async def read(self, rng: random.Random, references: list[Completion]) -> None:
        """One prompt after the other."""
        while time.monotonic() < self.end:
            number = rng.randrange(len(self.prompts))
            try:
                reply = await self.session.prompt(self.prompts[number], temperature=0)
            except LLMSessionError as error:
                self.outcomes["error"] += 1
                self.run.faults.append(f"{type(error).__name__}: {error}")
                continue
            self.restarts += reply.restarts
            reference = references[number]
            if (reply.text, reply.reasoning) == (reference.text, reference.reasoning):
                self.outcomes[f"equal{', restarted' if reply.restarts else ''}"] += 1
            else:
                self.odd.append((number, reply))

    async def judge(self, references: list[Completion]) -> None:
        """Those that are not the idle engine's."""
        for number, reply in self.odd:
            how = "tie" if await is_tie(self.session, self.prompts[number], references[number], reply) else "different"
            self.outcomes[f"{how}{', restarted' if reply.restarts else ''}"] += 1
            if how == "different":
                self.run.say("restarts", f"{reply.text[:90]!r} instead of {references[number].text[:90]!r}")


async def soak_restarts(run: Run, minutes: float) -> None:
    """By both APIs, one after the other; the references come from the engine while it is idle."""
    outcomes: Counter[str] = Counter()
    prompts = make_prompts(run.rng, 40)
    for encoding in (None, "chat"):
        async with run.session(
            parallel=4, context_length=1024, restart_limit=10**9, prompt_encoding=encoding
        ) as session:
            references = [await session.prompt(prompt, temperature=0) for prompt in prompts]
            before = survey(run)
            killer, readers = Killer(session, run.rng), Readers(run, session, prompts, minutes * 30)
            async with anyio.create_task_group() as killing:
                killing.start_soon(killer.run)
                async with anyio.create_task_group() as reading:
                    for _ in range(STREAMS):
                        reading.start_soon(readers.read, random.Random(run.rng.random()), references)
                killer.over.set()
            await readers.judge(references)
            outcomes += readers.outcomes
            api, counted = encoding or "encoding", dict(sorted(readers.outcomes.items()))
            run.say("restarts", f"{api}: {killer.kills} kills, {readers.restarts} replies begun again: {counted}")
            run.say("restarts", f"{api}: more than before: {compare(run, before, survey(run))}")
    wrong = sum(number for how, number in outcomes.items() if how.startswith("different"))
    if wrong > ALLOWED * outcomes.total():
        run.faults.append(f"{wrong} of {outcomes.total()} replies differ from the idle engine's")
