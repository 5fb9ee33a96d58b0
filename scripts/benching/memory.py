"""P6: durable turns a second beside one transaction for each turn, and what a million conversations take."""

from __future__ import annotations

import asyncio
import functools
import gc
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
from rich.console import Console
from rich.progress import Progress

from llmsession import Memory, Message, Turn, TurnState
from llmsession.memory.go_format import FormatNote
from llmsession.memory.rows import ConversationRow
from llmsession.memory.store import apply_change, insert_told
from llmsession.memory.tree import Tree

WRITERS = 32
TURNS = 100  # of each writer, each round
TURNS_EACH = 15  # of each writer with a transaction for each
TURNS_ALONE = 500
TEXT = "what a writer says, of usual length, some ten words"
MILLION = 1_000_000
GETS = 20_000
# Of the million, so many were last talked in a year ago.
OLD = 1000
_NOW = datetime.now(UTC)


def measure_memory(backend: str, rounds: int) -> None:
    """Both halves."""
    del backend
    rates: dict[str, list[float]] = {"Memory": [], "a transaction each": [], "one connection alone": []}
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:  # where /tmp is in RAM, nothing there is durable
        for number in range(rounds):
            for place, (values, measure) in enumerate(zip(rates.values(), _CONTENDERS, strict=True)):
                values.append(measure(Path(folder, f"{number}-{place}.db")))
        for name, values in rates.items():
            ratio = statistics.median(one / other for one, other in zip(rates["Memory"], values, strict=True))
            print(f"P6  {name:<24} {statistics.median(values):9.0f} durable turns/s   Memory is {ratio:5.1f} ×")
        print(f"P6  Memory and a transaction each (plain sqlite3, a thread and a connection each): {WRITERS} writers")
        million = Path(folder, "million.db")
        subprocess.run([sys.executable, __file__, str(million)], check=True)  # so that what it takes is not ours
        asyncio.run(_use_a_million(million))


def _write_at_once(database: Path) -> float:
    """Turns a second, of a Memory with many writers."""

    async def write_all() -> float:
        async with Memory.open(database) as memory:
            conversations = [await memory.get(f"user {number}") for number in range(WRITERS)]

            async def write(number: int, turns: int) -> None:
                for turn in range(turns):
                    await conversations[number].add(Message.assistant(TEXT) if turn % 2 else Message.user(TEXT))

            await asyncio.gather(*(write(number, 10) for number in range(WRITERS)))
            begun = time.perf_counter()
            await asyncio.gather(*(write(number, TURNS) for number in range(WRITERS)))
            return WRITERS * TURNS / (time.perf_counter() - begun)

    return asyncio.run(write_all())


def _write_in_threads(database: Path) -> float:
    """The same rows in the same tables, a transaction for each turn, by as many writers with plain sqlite3."""
    numbers = asyncio.run(_make(database))
    begun = time.perf_counter()
    with ThreadPoolExecutor(WRITERS) as threads:
        list(threads.map(lambda number: _write_turns(database, [number], TURNS_EACH), numbers))
    return WRITERS * TURNS_EACH / (time.perf_counter() - begun)


def _write_alone(database: Path) -> float:
    """The same by one connection, in whose way nobody is."""
    numbers = asyncio.run(_make(database))
    begun = time.perf_counter()
    _write_turns(database, numbers, TURNS_ALONE)
    return TURNS_ALONE / (time.perf_counter() - begun)


_CONTENDERS = (_write_at_once, _write_in_threads, _write_alone)


async def _make(database: Path) -> list[int]:
    async with Memory.open(database) as memory:
        return [(await memory.get(f"user {number}")).id for number in range(WRITERS)]


def _write_turns(database: Path, numbers: list[int], turns: int) -> None:
    """So many, in these conversations in turn."""
    with closing(sqlite3.connect(database, isolation_level=None, timeout=60)) as connection:
        for pragma in ("synchronous = FULL", "secure_delete = ON", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}")
        rows = [ConversationRow(id=number, user="", channel="", started=_NOW, last_update=_NOW) for number in numbers]
        trees = [Tree() for _ in rows]
        for turn in range(turns):
            row, tree = rows[turn % len(rows)], trees[turn % len(rows)]
            message = Message.assistant(TEXT) if turn // len(rows) % 2 else Message.user(TEXT)
            change = tree.plan_add(message, datetime.now(UTC))
            connection.execute("BEGIN IMMEDIATE")
            applied = apply_change(connection, row, change, datetime.now(UTC))
            connection.execute("COMMIT")
            assert applied is not None
            tree.take(change, applied.new_id)
            row.version = applied.version


async def _use_a_million(database: Path) -> None:
    """Open it, get from it, forget in it."""
    process = psutil.Process()
    gc.collect()
    before = process.memory_info().rss
    size = database.stat().st_size
    begun = time.perf_counter()
    memory = await Memory.open(database, max_age=timedelta(days=500))
    opened = time.perf_counter() - begun
    rng = random.Random(1)
    seconds = []
    for _ in range(GETS):
        user = f"user {rng.randrange(MILLION)}"
        begun = time.perf_counter()
        await memory.get(user, "general")
        seconds.append(time.perf_counter() - begun)
    used = process.memory_info().rss - before
    read = await _timed(_read(memory, f"user {MILLION // 2}"))
    new = await _timed(memory.get("a new user"))
    await memory.aclose()
    memory = await Memory.open(database)
    memory._max_age = timedelta(days=100)  # noqa: SLF001 - so that opening it has not forgotten already
    forget = await _timed(memory.forget())
    forget_user = await _timed(memory.forget_user(f"user {MILLION - 1}"))
    await memory.aclose()
    centiles = statistics.quantiles(seconds, n=100)
    print(f"P6  {MILLION} conversations of two turns: {size / 2**20:.0f} MiB on disk")
    print(f"P6  open {opened:.3f} s; memory used by it and {GETS} gets {used / 2**20:+.1f} MiB")
    print(f"P6  get: p50 {centiles[49] * 1e3:.3f} ms, p99 {centiles[98] * 1e3:.3f} ms; a new one {new * 1e3:.2f} ms")
    print(f"P6  a get and its messages {read * 1e3:.2f} ms")
    print(f"P6  forget() of {OLD} {forget:.3f} s; forget_user, which writes the file again, {forget_user:.1f} s")


async def _read(memory: Memory, user: str) -> None:
    assert len((await memory.get(user, "general")).messages) == 2


async def _timed(work: Awaitable[object]) -> float:
    begun = time.perf_counter()
    await work
    return time.perf_counter() - begun


async def make_a_million(database: Path) -> None:
    """In a file, with a bar on a terminal."""

    def tell(number: int) -> FormatNote:
        moment = _NOW - timedelta(days=365 if number < OLD else 0, seconds=number / 100)
        said = [Message.user(f"what is {number}?"), Message.assistant("a number, as far as I know")]
        turns = [
            Turn(id=place + 1, parent=place or None, message=message, state=TurnState.COMPLETE, created=moment)
            for place, message in enumerate(said)
        ]
        return FormatNote(
            user=f"user {number}", channel="general", started=moment, last_update=moment, turns=turns, head=len(turns)
        )

    def insert(numbers: range, connection: sqlite3.Connection) -> None:
        for number in numbers:
            insert_told(connection, tell(number))

    console = Console(stderr=True)
    async with Memory.open(database) as memory:
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("making a million conversations", total=MILLION)
            for first in range(0, MILLION, 10_000):
                numbers = range(first, first + 10_000)
                await memory._store.write(functools.partial(insert, numbers))  # noqa: SLF001
                progress.update(task, completed=first + 10_000)


if __name__ == "__main__":
    asyncio.run(make_a_million(Path(sys.argv[1])))
