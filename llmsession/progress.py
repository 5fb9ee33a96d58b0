"""Progress: how far long work is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import msgspec


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """What a callback `on_progress` is given, in bytes. `stage`: `download` of a file, or `load` by the engine.

    `total` is None where nobody knows it. `speed` is in bytes a second, for a download that has begun.
    """

    stage: Literal["download", "load"]
    done: int
    total: int | None = None
    speed: float | None = None

    @property
    def share(self) -> float | None:
        """0.0 to 1.0."""
        return self.done / self.total if self.total else None


ProgressCallback: TypeAlias = Callable[[Progress], None]
