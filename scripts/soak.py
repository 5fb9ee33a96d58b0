"""A bounded stress with a seed: it opens and closes, kills, cancels, leaves early, and then counts what is left behind.

opens     sessions opened and closed in every way: after a reply, at once, while starting, from another thread, with an
          engine that was killed; then descriptors, threads, processes, temporary files and memory are counted
kills     `kill -9` of programs that start, load, idle, generate, restart or close; then it is timed until all of theirs
          is gone
replies   replies that are read, left early, cancelled, interrupted or read slowly, many at once; then all slots must be
          free and the next reply right
restarts  eight streams while the engine is killed again and again: each reply must be the idle engine's, or leave it
          where two tokens were as good as equal
memory    `kill -9` of a program that talks in a memory and chats with keys, again and again on one file: all that was
          acknowledged must be there, once, and each key must have one reply, the unbroken one
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import anyio.from_thread
import anyio.to_thread
import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from llmsession import LLMSessionError, Session, StopReason  # noqa: E402
from soaking.memory import soak_memory  # noqa: E402
from soaking.restarts import soak_restarts  # noqa: E402
from soaking.run import Run, compare, steps, survey  # noqa: E402
from tests.engines import ENGINES  # noqa: E402
from tests.model_files import write_random_model  # noqa: E402

OK = 'reply with "ok chief"'
# Nothing may be alive so long after its owner was killed.
KILL_BOUND = 0.5


# Opens.


async def open_and_close(run: Run) -> None:
    """At once."""
    async with run.session():
        pass


async def open_ask_close(run: Run) -> None:
    """After a reply."""
    async with run.session() as session:
        reply = await session.prompt(OK, temperature=0)
        if reply.text != "ok chief":
            run.faults.append(f"a fresh session answered {reply.text!r}")


async def cancel_the_start(run: Run) -> None:
    """At a random moment of it."""
    with anyio.move_on_after(run.rng.uniform(0, 0.15)):
        async with run.session():
            await anyio.sleep(1)


async def close_from_a_thread(run: Run) -> None:
    """With a reply in flight, in another event loop."""
    async with run.session() as session, session.prompt_streaming("count to 100") as stream:
        with contextlib.suppress(LLMSessionError):
            await anext(aiter(stream))
            await anyio.to_thread.run_sync(lambda: anyio.run(session.aclose))


async def kill_the_engine(run: Run) -> None:
    """While it replies, or just before it would have been closed."""
    async with run.session() as session:
        pid = session.pid
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(LLMSessionError):
            await session.prompt(OK)


async def leave_without_closing(run: Run) -> None:
    """`open` and `aclose`, with a stream that nobody read."""
    session = await Session.open(**run.engine.options(cache_dir=run.folder / "cache"))
    async with session.prompt_streaming(OK):
        pass
    await session.aclose()
    await session.aclose()


WAYS = [open_and_close, open_ask_close, cancel_the_start, close_from_a_thread, kill_the_engine, leave_without_closing]


def soak_opens(run: Run, count: int) -> None:
    """Each way in turn by chance, in event loops of their own, on asyncio and trio."""
    for way in WAYS:  # whatever is made once is made now
        for backend in ("asyncio", "trio"):
            anyio.run(way, run, backend=backend)
    before = survey(run)
    done: Counter[str] = Counter()
    for _ in steps(count, "opening and closing"):
        way = run.rng.choice(WAYS)
        done[way.__name__] += 1
        anyio.run(way, run, backend=run.rng.choice(["asyncio", "trio"]))
    deadline = time.monotonic() + 2
    while (after := survey(run))["threads"] > before["threads"] and time.monotonic() < deadline:
        time.sleep(0.05)
    run.say("opens", f"{count} ({', '.join(f'{name} {number}' for name, number in sorted(done.items()))})")
    run.say("opens", f"left behind: {compare(run, before, after)}")


# Kills.

PROGRAM = """
import os, sys, anyio
from llmsession import Session
async def main():
    options = eval(sys.argv[1])
    print("begun", flush=True)
    async with Session(**options) as session:
        print("ready", flush=True)
        while sys.argv[2] in ("generate", "restart"):
            if sys.argv[2] == "restart":
                os.kill(session.pid, 9)
            await session.prompt("count to 100", temperature=0)
        if sys.argv[2] == "close":
            async with session.prompt_streaming("count to 100") as stream:
                await anext(aiter(stream))
                await session.aclose()
        await anyio.sleep(60)
anyio.run(main)
"""


def of_this_cache(cache: Path) -> list[psutil.Process]:
    """Every process that has this folder in its environment or command line: engines and what they started."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = [*process.cmdline(), *process.environ().values()]
            if process.pid != os.getpid() and any(str(cache) in word for word in words):
                found.append(process)
    return found


def kill_once(run: Run, moment: str, number: int) -> float:
    """Seconds from `kill -9` until nothing of it was alive."""
    cache = run.folder / f"killed-{number}"
    options = run.engine.options(cache_dir=str(cache))
    if moment == "loading":
        options["model"] = str(run.slow_model)
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, repr(options), moment], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert program.stdout is not None
    program.stdout.readline()
    if moment not in ("starting", "loading"):
        program.stdout.readline()
    longest = {"starting": 0.15, "loading": 1.5, "idle": 0.3, "generate": 0.5, "restart": 1.0, "close": 0.1}[moment]
    time.sleep(run.rng.uniform(0, longest))
    program.kill()
    begun = time.monotonic()
    program.wait()
    program.stdout.close()
    while of_this_cache(cache) and time.monotonic() - begun < 5 * KILL_BOUND:
        time.sleep(0.005)
    seconds = time.monotonic() - begun
    for process in of_this_cache(cache):
        run.faults.append(
            f"{process.pid} ({' '.join(process.cmdline())[:80]}) outlived its owner, killed while {moment}"
        )
        process.kill()
    shutil.rmtree(cache, ignore_errors=True)
    return seconds


def soak_kills(run: Run, count: int) -> None:
    """A quarter of them while a model loads that takes seconds."""
    moments = ["starting", "loading", "idle", "generate", "restart", "loading", "close", "restart"]
    worst: dict[str, float] = {}
    done: Counter[str] = Counter()
    for number in steps(count, "killing programs"):
        moment = moments[number % len(moments)]
        seconds = kill_once(run, moment, number)
        done[moment] += 1
        worst[moment] = max(worst.get(moment, 0.0), seconds)
        if seconds > KILL_BOUND:
            run.faults.append(f"{seconds:.2f} s until all was gone, killed while {moment}")
    run.say("kills", ", ".join(f"{moment} {done[moment]}: at most {worst[moment] * 1000:.0f} ms" for moment in worst))


# Replies.


async def soak_replies(run: Run, count: int) -> None:
    """Sixteen at a time on four slots, each ended in some way."""
    outcomes: Counter[str] = Counter()
    numbers = steps(count, "asking")
    async with run.session(parallel=4, context_length=1024) as session:
        pause = run.rng.uniform(0.3, 0.6)
        over = threading.Event()

        def interrupt_now_and_then() -> None:
            while not over.wait(pause):
                session.interrupt()

        interrupter = threading.Thread(target=interrupt_now_and_then)
        interrupter.start()
        try:
            async with anyio.create_task_group() as tasks:
                for worker in range(16):
                    rng = random.Random(f"{run.rng.random()} {worker}")
                    tasks.start_soon(_ask_many, session, rng, numbers, outcomes, run)
        finally:
            over.set()
            interrupter.join()
        for _ in range(100):
            if not any(slot.is_processing for slot in await session.get_slots()):
                break
            await anyio.sleep(0.02)
        busy = sum(slot.is_processing for slot in await session.get_slots())
        last = await session.prompt(OK, temperature=0)
        pending = (await session.get_metrics()).requests_pending
    run.say("replies", ", ".join(f"{name} {number}" for name, number in sorted(outcomes.items())))
    run.say("replies", f"slots busy afterwards: {busy}, requests waiting: {pending}, the next reply: {last.text!r}")
    if busy or pending or last.text != "ok chief":
        run.faults.append("the server was not free and right after the replies")


async def _ask_many(
    session: Session, rng: random.Random, numbers: Iterator[int], outcomes: Counter[str], run: Run
) -> None:
    for number in numbers:
        way = rng.choice(["read", "read", "leave", "cancel", "slow", "timeout"])
        word = f"word{number}"
        try:
            outcomes[await _ask(session, rng, way, word)] += 1
        except LLMSessionError as error:
            outcomes[type(error).__name__] += 1
            if way != "timeout":
                run.faults.append(f"{way}: {type(error).__name__}: {error}")


async def _ask(session: Session, rng: random.Random, way: str, word: str) -> str:
    if way == "timeout":
        return (await session.prompt("count to 100", timeout=rng.uniform(0.001, 0.1))).stop_reason
    if way == "read":
        reply = await session.prompt(f'reply with "{word}"', temperature=0)
        if reply.stop_reason is StopReason.END and reply.text != word:
            return f"wrong ({reply.text!r})"
        return f"read: {reply.stop_reason}"
    with anyio.move_on_after(rng.uniform(0, 0.2) if way == "cancel" else 60) as scope:
        async with session.prompt_streaming("count to 100", temperature=0) as stream:
            left = rng.randint(0, 40)
            async for _ in stream:
                left -= 1
                if left < 0 and way == "leave":
                    return "left early"
                if way == "slow":
                    await anyio.sleep(0.002)
    return "cancelled" if scope.cancelled_caught else f"{way}: to its end"


# The command.


def main() -> int:
    """Each engine that is here through each stage; 1 where something was left behind or wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages: dict[str, Callable[[Run, argparse.Namespace], None]] = {
        "opens": lambda run, given: soak_opens(run, given.opens),
        "kills": lambda run, given: soak_kills(run, given.kills),
        "replies": lambda run, given: anyio.run(soak_replies, run, given.replies),
        "restarts": lambda run, given: anyio.run(soak_restarts, run, given.minutes),
    }
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"{', '.join(stages)}, memory (all)")
    parser.add_argument("--backend", choices=[engine.backend for engine in ENGINES], help="(each that is here)")
    parser.add_argument("--opens", type=int, default=500, help="sessions to open and close (500)")
    parser.add_argument("--kills", type=int, default=100, help="programs to kill (100)")
    parser.add_argument("--replies", type=int, default=1000, help="replies to ask for (1000)")
    parser.add_argument("--minutes", type=float, default=10, help="of restarts (10)")
    parser.add_argument("--seed", type=int, default=1, help="of what is left to chance (1)")
    given = parser.parse_args()
    if unknown := set(given.stages) - set(stages) - {"memory"}:
        parser.error(f"{', '.join(sorted(unknown))}: no such stage; there are {', '.join(stages)}, memory")
    faults: list[str] = []
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        for part in ("tmp", "cache"):
            (folder / part).mkdir()
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder / "tmp")
        if "memory" in (given.stages or ["memory"]):
            soak_memory(folder, random.Random(given.seed), given.kills, faults)
        chosen = [stage for stage in stages if stage in given.stages] if given.stages else list(stages)
        slow = folder / "slow.gguf"
        if chosen:
            write_random_model(slow, width=32, more_tokens=500_000)
        for engine in ENGINES:
            if given.backend in (None, engine.backend):
                for stage in chosen:
                    run = Run(engine, random.Random(given.seed), folder, slow, faults)
                    stages[stage](run, given)
        tempfile.tempdir = None
    for fault in faults:
        print(f"FAULT: {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
