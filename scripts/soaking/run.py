"""What the stages of scripts/soak share: one engine, its folder, what went wrong, and what this process holds."""

from __future__ import annotations

import gc
import random
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.progress import Progress

from llmsession import Session
from tests.engines import Engine

# What an allocator may keep for itself.
MEMORY_BOUND = 30 * 2**20


@dataclass
class Run:
    """What the stages share. `faults` are what went wrong, in words."""

    engine: Engine
    rng: random.Random
    folder: Path
    slow_model: Path
    faults: list[str]

    def session(self, **fields: Any) -> Session:
        """One with the folder of this run."""
        return Session(**self.engine.options(cache_dir=self.folder / "cache", **fields))

    def say(self, stage: str, text: str) -> None:
        """A line of the result."""
        print(f"{self.engine.backend:<13} {stage:<8} {text}", flush=True)


def steps(count: int, what: str) -> Iterator[int]:
    """With a bar on a terminal."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=count)
        for number in range(count):
            yield number
            progress.advance(task)


def survey(run: Run) -> dict[str, Any]:
    """What this process holds now."""
    gc.collect()
    me = psutil.Process()
    temporary = [path for path in Path(tempfile.gettempdir()).iterdir() if path.name != "cache"]
    running = list((run.folder / "cache" / "running").glob("*"))
    return {
        "processes": len(me.children(recursive=True)),
        "descriptors": me.num_fds() if hasattr(me, "num_fds") else me.num_handles(),  # type: ignore[attr-defined]
        "threads": threading.active_count(),
        "files": len(temporary) + len(running),
        "memory": me.memory_info().rss,
    }


def compare(run: Run, before: dict[str, Any], after: dict[str, Any]) -> str:
    """What is there now and was not before; more of anything is a fault, of memory beyond a bound."""
    more = {name: after[name] - before[name] for name in before}
    run.faults += [f"{more[name]} {name} were left behind" for name in more if name != "memory" and more[name] > 0]
    if more["memory"] > MEMORY_BOUND:
        run.faults.append(f"memory grew by {more['memory'] / 2**20:.0f} MiB")
    counts = ", ".join(f"{more[name]} {name}" for name in more if name != "memory")
    return f"{counts}; memory {more['memory'] / 2**20:+.1f} MiB"
