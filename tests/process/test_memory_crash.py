"""`kill -9` at any moment: what was acknowledged is there, once. Row D2; DESIGN 1."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.process.memory_kills import Killed

KILLS = 12


@pytest.mark.parametrize("seed", [1])
def test_what_was_acknowledged_survives_kill_9(tmp_path: Path, seed: int) -> None:
    """Eight writers, killed at random moments, one life after another on one file; `scripts/soak memory` does more."""
    killed = Killed(tmp_path / "memory.db", random.Random(seed))
    for _ in range(KILLS):
        assert [] == killed.kill_once()
    assert len(killed.lines) > 2 * KILLS
