"""The stage `memory` of scripts/soak: a program that talks in a memory is killed at random moments, on one file."""

from __future__ import annotations

import random
from pathlib import Path

from soaking.run import steps
from tests.process.memory_kills import Killed


def soak_memory(folder: Path, rng: random.Random, kills: int, faults: list[str]) -> None:
    """So many lives; after each, all that was ever acknowledged is looked for."""
    database = folder / "memory.db"
    killed = Killed(database, rng)
    for _ in steps(kills, "killing programs that talk"):
        faults += killed.kill_once()
        if faults:
            break
    size = database.stat().st_size / 2**20
    turns = sum(line.startswith("turn ") for line in killed.lines)
    print(
        f"{'':<13} memory   {kills} kills, {turns} acknowledged turns, {size:.1f} MiB, {len(faults)} faults", flush=True
    )
