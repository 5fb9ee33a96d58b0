"""Locks that let one task at a time answer in a conversation: in order within a process, one process at a time.

Between processes it is a lock on one byte of FILE-locks, at the conversation's number. The kernel releases it when its
process dies. It also releases all of a process's locks on a file when the process closes any descriptor of it
(fcntl(2)), so each such file has one descriptor, shared by all open memories.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio

from llmsession.system.file_lock import try_lock_byte, unlock_byte
from llmsession.system.latch import Latch
from llmsession.types.errors import StoreError

# Between two looks at a lock that another process has: short beside the reply that is waited for.
_LOOK_EVERY = 0.05


class Queues:
    """One queue for each conversation with waiters. Tasks of any event loop may wait in it."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._queues: dict[int, deque[Latch]] = {}

    @contextlib.asynccontextmanager
    async def turn(self, conversation: int) -> AsyncIterator[None]:
        """Wait in order of arrival, then hold the conversation. May be cancelled while it waits."""
        ticket = Latch()
        with self._guard:
            queue = self._queues.setdefault(conversation, deque())
            queue.append(ticket)
            queue[0].set()
        try:
            await ticket.wait()
            yield
        finally:
            with self._guard:
                queue.remove(ticket)
                if queue:
                    queue[0].set()
                else:
                    del self._queues[conversation]


class TurnLocks:
    """The queues of this process and the locks between processes, for one database. `open` and `close` it in pairs."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self.users = 0
        self._queues = Queues()
        self._guard = threading.Lock()  # on Windows a place is sought first, then locked

    @classmethod
    def open(cls, database: Path) -> TurnLocks:
        """Return this process's locks for that database."""
        path = database.with_name(f"{database.name}-locks")
        with _TABLE_GUARD:
            locks = _TABLE.get(identity) if (identity := _identify(path)) is not None else None
            if locks is None:
                try:
                    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOINHERIT", 0), 0o600)
                except OSError as error:
                    raise StoreError(
                        f"{path} cannot be made ({error.strerror}): it says who answers in a conversation; allow this "
                        "user to write in its folder"
                    ) from error
                found = os.fstat(descriptor)
                locks = _TABLE.setdefault((found.st_dev, found.st_ino), cls(path, descriptor))
            locks.users += 1
            return locks

    def close(self) -> None:
        """Close the file with the last user."""
        with _TABLE_GUARD:
            self.users -= 1
            if self.users == 0:
                for identity in [identity for identity, locks in _TABLE.items() if locks is self]:
                    del _TABLE[identity]
                os.close(self._descriptor)

    @contextlib.asynccontextmanager
    async def turn(self, conversation: int) -> AsyncIterator[None]:
        """Wait, then hold the conversation against all tasks and processes. May be cancelled while it waits."""
        with self._in_use():
            async with self._queues.turn(conversation):
                while not self._try(conversation):  # noqa: ASYNC110 - another process tells nobody
                    await anyio.sleep(_LOOK_EVERY)
                try:
                    yield
                finally:
                    with self._guard:
                        unlock_byte(self._descriptor, conversation)

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[None]:
        """Keep the file open, even if the memory is closed meanwhile."""
        with _TABLE_GUARD:
            self.users += 1
        try:
            yield
        finally:
            self.close()

    def _try(self, conversation: int) -> bool:
        found = os.fstat(self._descriptor)
        if _identify(self._path) != (found.st_dev, found.st_ino):
            raise StoreError(
                f"{self._path} was deleted or replaced while it was open, so that nobody can say who answers: "
                "close this memory and open it again"
            )
        try:
            with self._guard:
                return try_lock_byte(self._descriptor, conversation)
        except OSError as error:
            raise StoreError(
                f"the memory's file of locks cannot be locked ({error.strerror}): put it on a local disk"
            ) from error


def _identify(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


_TABLE: dict[tuple[int, int], TurnLocks] = {}
_TABLE_GUARD = threading.RLock()  # a memory that is collected as garbage may be closed anywhere


def _after_fork() -> None:
    # The locks are the original's. Its descriptors stay open here: nobody has to close them.
    global _TABLE, _TABLE_GUARD  # noqa: PLW0603
    _TABLE = {}
    _TABLE_GUARD = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
