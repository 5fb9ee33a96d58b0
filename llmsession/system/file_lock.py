"""A lock between processes, on a file: the kernel lets go of it when its holder dies, however that comes."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import anyio

# Nobody waits for a lock more often than for a download: a look now and then costs nothing.
LOOK_EVERY = 0.1

if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


@contextlib.asynccontextmanager
async def held(path: Path, on_wait: Callable[[], object] = lambda: None) -> AsyncIterator[None]:
    """Hold the lock of this file, which is made. `on_wait` is called once where another holds it. May be cancelled."""
    with path.open("ab") as file:
        waited = False
        while not _try_lock(file.fileno()):
            if not waited:
                waited = True
                on_wait()
            await anyio.sleep(LOOK_EVERY)
        yield
