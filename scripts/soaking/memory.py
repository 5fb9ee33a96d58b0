"""The stage `memory` of scripts/soak: a program that talks and chats in a memory is killed at random moments."""

from __future__ import annotations

import random
from pathlib import Path

import anyio
import anyio.to_thread

from llmsession import Session
from soaking.run import steps
from tests.engines import ENGINES
from tests.process.memory_kills import Killed
from tests.process.memory_program import finish


def soak_memory(folder: Path, rng: random.Random, kills: int, faults: list[str]) -> None:
    """So many lives on one file; after each, all that was ever acknowledged is looked for."""
    database = folder / "memory.db"

    async def live_and_die() -> Killed:
        async with Session(**ENGINES[0].options()) as session:
            killed = Killed(database, rng, (session.base_url or "", session.api_key or ""))
            for _ in steps(kills, "killing programs that talk"):
                faults.extend(await anyio.to_thread.run_sync(killed.kill_once))
                if faults:
                    return killed
            faults.extend(await finish(database, session))
            return killed

    killed = anyio.run(live_and_die)
    size = database.stat().st_size / 2**20
    kinds = [line.partition(" ")[0] for line in killed.lines]
    print(
        f"{'':<13} memory   {kills} kills, {kinds.count('turn')} acknowledged turns, {kinds.count('reply')} replies "
        f"with keys, {size:.1f} MiB, {len(faults)} faults",
        flush=True,
    )
