"""Locks between processes on a file: of all of it, or of one byte. The kernel releases them when their holder dies."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import anyio

# Seconds between two tries: nobody waits for such a lock more often than for a download.
TRY_EVERY = 0.1
_MARK_TRIES = 100

if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> bool:
        return try_lock_byte(descriptor, 0)

    def try_lock_byte(descriptor: int, place: int) -> bool:
        """Lock one byte of the file; False if another process holds it."""
        os.lseek(descriptor, place, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def unlock_byte(descriptor: int, place: int) -> None:
        """Release it."""
        os.lseek(descriptor, place, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

    def mark_used(descriptor: int) -> None:
        """Nothing to do: Windows does not delete a file that somebody has open."""

    def is_used(path: Path) -> bool:
        """Never known beforehand: deleting it fails then."""
        del path
        return False

else:
    import fcntl

    def _try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def try_lock_byte(descriptor: int, place: int) -> bool:
        """Lock one byte of the file; False if another process holds it. Raises OSError if the disk has no locks.

        The kernel releases all such locks of a process on a file as soon as the process closes any descriptor of that
        file (fcntl(2)).
        """
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
        except (BlockingIOError, PermissionError):  # systems differ in which they raise (fcntl(2), EAGAIN and EACCES)
            return False
        return True

    def unlock_byte(descriptor: int, place: int) -> None:
        """Release it."""
        fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, place)

    def mark_used(descriptor: int) -> None:
        """Mark the file as used for as long as this process, or a child that inherits the descriptor, has it open."""
        for _ in range(_MARK_TRIES):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:  # another process holds it for the moment in which it asks `is_used`
                time.sleep(0.002)
                continue
            except OSError:  # a disk without locks
                return
            return

    def is_used(path: Path) -> bool:
        """Whether a living process has marked the file as used."""
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:
            return False
        try:
            return not _try_lock(descriptor)
        except OSError:  # a disk without locks: nothing is known, so nothing is deleted
            return True
        finally:
            os.close(descriptor)


@contextlib.asynccontextmanager
async def held(path: Path, on_wait: Callable[[], object] = lambda: None) -> AsyncIterator[None]:
    """Hold the lock of this file, which is made. `on_wait` is called once if another holds it. May be cancelled."""
    with path.open("ab") as file:
        waited = False
        while not _try_lock(file.fileno()):
            if not waited:
                waited = True
                on_wait()
            await anyio.sleep(TRY_EVERY)
        yield
