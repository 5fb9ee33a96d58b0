"""Progress of long work."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal, TypeAlias

import msgspec


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """What the callback `on_progress` gets, in bytes.

    `stage`: `engine` for the download of a llama-server, `download` for that of a model, `load` while the engine reads
    the model. `total`: None if it is unknown. `speed`: bytes per second, once a download has started.
    """

    stage: Literal["engine", "download", "load"]
    done: int
    total: int | None = None
    speed: float | None = None

    @property
    def share(self) -> float | None:
        """The share that is done, 0.0 to 1.0."""
        return self.done / self.total if self.total else None


# The speed is that of the last seconds.
SPEED_OVER = 5.0


class Speedometer:
    """Measures bytes per second over the last seconds."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, int]] = []

    def measure(self, done: int) -> float | None:
        """Return the speed; None until some time has passed."""
        now = time.monotonic()
        self._seen = [(at, count) for at, count in self._seen if now - at < SPEED_OVER] + [(now, done)]
        (first, before), (last, after) = self._seen[0], self._seen[-1]
        return (after - before) / (last - first) if last > first else None


ProgressCallback: TypeAlias = Callable[[Progress], None]
