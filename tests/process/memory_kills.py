"""Kill a program that talks in a memory at a random moment, again and again, and look each time what is left."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from pathlib import Path

from tests.process.memory_program import check_acknowledged

ROOT = Path(__file__).resolve().parents[2]
# From the moment on which it writes; seconds.
LONGEST = 0.4


class Killed:
    """One file through many lives. `lines` is all that was acknowledged, by any of them. With a `server`, its address
    and key, there is a chat as well, whose turns have keys.
    """

    def __init__(self, database: Path, rng: random.Random, server: tuple[str, str] | None = None) -> None:
        self.database = database
        self.server = server or ()
        self.rng = rng
        self.lines: list[str] = []

    def kill_once(self) -> list[str]:
        """A life, its end, and what is wrong afterwards."""
        argv = [
            sys.executable,
            "-m",
            "tests.process.memory_program",
            str(self.database),
            str(self.rng.random()),
            *self.server,
        ]
        program = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        assert program.stdout is not None
        assert program.stderr is not None
        # A pipe that nobody reads would stop it.
        reader = threading.Thread(target=lambda: self.lines.extend(program.stdout or ()))
        before = len(self.lines)
        reader.start()
        while len(self.lines) == before and program.poll() is None:
            time.sleep(0.001)
        time.sleep(self.rng.uniform(0, LONGEST))
        died = program.poll()
        program.kill()
        program.wait()
        reader.join()
        faults = [] if died is None else [f"the program ended by itself with {died}: {program.stderr.read()[-2000:]}"]
        program.stdout.close()
        program.stderr.close()
        lines = [line.removesuffix("\n") for line in self.lines if line.endswith("\n")]
        return faults + check_acknowledged(self.database, lines)
