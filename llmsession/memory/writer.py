"""Writer: a thread that commits all waiting operations in one transaction, so that many writers share one fsync.

An operation checks first and writes afterwards, so it has written nothing when it refuses. It may be run a second time,
alone, if the shared transaction could not be committed.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import sqlite3
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import anyio

from llmsession.memory.database import LOCK_TIMEOUT, execute_patiently, explain, is_busy
from llmsession.memory.file_guard import FileGuard
from llmsession.system.latch import Latch, call_soon, current_loop
from llmsession.system.service_thread import ServiceThread
from llmsession.types.errors import ClosedError, LLMSessionError, StoreError

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]

# So many at most in one transaction: the first of them should not wait for ever.
_BATCH = 1024
# So long at most are those waited for who were just served, in seconds: less than the fsync that it saves.
_GATHER = 0.002
# Who is cancelled waits so long for the commit that is under way: longer only where another process keeps it out.
_CANCEL_SECONDS = 1.0
# A close waits so long for what is written: another process may keep it out for LOCK_TIMEOUT, for each of two commits.
_CLOSE_SECONDS = 2 * LOCK_TIMEOUT + 5.0
# Seconds without anything to write after which the log is emptied into the file, so that the file alone is a copy; and
# the longest pause before that is tried again, while readers keep it from happening.
_IDLE_SECONDS = 1.0
_LONGEST_PAUSE = 60.0
# A program that ends waits so long for what it has not written yet.
_EXIT_SECONDS = 5.0


class _Operation(Generic[T]):
    """An operation and its result. `alone`: it makes its own transactions, or none."""

    __slots__ = ("alone", "done", "error", "loop", "result", "work")

    def __init__(self, work: Work[T], *, alone: bool) -> None:
        self.work = work
        self.alone = alone
        self.done = anyio.Event()
        self.loop = current_loop()
        self.result: Any = None
        self.error: BaseException | None = None


class Writer:
    """Owns the connection that writes. Any event loop may use it until it is closed."""

    def __init__(self, connection: sqlite3.Connection, file: FileGuard) -> None:
        self._connection = connection
        self._file = file
        self._waiting: deque[_Operation[Any]] = deque()
        self._changed = threading.Condition()
        self._is_closing = False
        self._broken: BaseException | None = None
        self._ended = Latch()
        # How many will wait when those are back who were just served, and until when that is worth waiting for.
        self._expected = 1
        self._gather_until = 0.0
        self._log_is_empty = True
        self._pause = _IDLE_SECONDS
        self._service = ServiceThread("llmsession-memory")
        self._service.submit(self._run, self._give_up)
        _WRITERS.add(self)

    async def do(self, work: Work[T], *, alone: bool = False) -> T:
        """Run `work` in a transaction, and return its result when it is durable.

        If it is cancelled before its turn, nothing is written; later, all of it is, and the call waits for that.
        `alone`: outside any transaction.
        """
        operation = _Operation(work, alone=alone)
        with self._changed:
            if self._broken is not None:
                raise self._explain_broken(self._broken)
            if self._is_closing:
                raise ClosedError("the memory was closed: open it again")
            self._waiting.append(operation)
            if len(self._waiting) in (1, self._expected):
                self._changed.notify()
        try:
            await operation.done.wait()
        except BaseException:
            with self._changed:
                if is_waiting := operation in self._waiting:
                    self._waiting.remove(operation)
            if not is_waiting:  # so that it does not come after what its caller does next
                with anyio.move_on_after(_CANCEL_SECONDS, shield=True):
                    await operation.done.wait()
            raise
        if operation.error is not None:
            raise operation.error
        result: T = operation.result
        return result

    async def aclose(self) -> None:
        """Write what waits, close the connection and end the thread."""
        self.stop()
        with anyio.move_on_after(_CLOSE_SECONDS):
            await self._ended.wait()

    def stop(self) -> None:
        """Start to close, without waiting."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()

    def stop_blocking(self, timeout: float) -> None:
        """Close, waiting in a thread."""
        self.stop()
        self._ended.wait_blocking(timeout)

    def _run(self) -> None:
        batch: list[_Operation[Any]] = []
        try:
            while batch := self._next():
                begun = time.monotonic()
                self._log_is_empty, self._pause = False, _IDLE_SECONDS
                self._write(batch)
                self._release(batch, time.monotonic() - begun)
        except BaseException as error:
            self._give_up(error, batch)
            raise
        finally:
            self._service.stop()
            self._empty_log()
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._ended.set()

    def _give_up(self, error: BaseException, batch: Sequence[_Operation[Any]] = ()) -> None:
        """Fail all waiting operations after the writer has failed."""
        with self._changed:
            self._is_closing, self._broken = True, error
            waiting = [*batch, *self._waiting]
            self._waiting.clear()
        for operation in waiting:
            operation.error = operation.error or self._explain_broken(error)
        self._release(waiting, 0.0)

    def _explain_broken(self, error: BaseException) -> StoreError:
        broken = StoreError(f"the memory was closed after a failure of its writer ({error}): open it again")
        broken.__cause__ = error
        return broken

    def _next(self) -> list[_Operation[Any]]:
        """Return the waiting operations; empty when the writer should close. Empties the log while idle."""
        with self._changed:
            while not self._waiting:
                if self._is_closing:
                    return []
                if self._changed.wait(None if self._log_is_empty else self._pause) or self._waiting or self._is_closing:
                    continue
                self._changed.release()
                try:
                    self._empty_log()
                finally:
                    self._changed.acquire()
            while len(self._waiting) < self._expected and not self._is_closing:
                if (left := self._gather_until - time.monotonic()) <= 0:
                    break
                self._changed.wait(left)
            first_alone = next((at for at, operation in enumerate(self._waiting) if operation.alone), _BATCH)
            count = min(max(1, first_alone), len(self._waiting), _BATCH)
            return [self._waiting.popleft() for _ in range(count)]

    def _empty_log(self) -> None:
        """Move the log into the file unless a reader is in the way. Never waits or raises."""
        if self._log_is_empty:
            return
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        with contextlib.suppress(sqlite3.Error, LLMSessionError):
            self._file.check()
            is_busy, *_ = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            self._log_is_empty = not is_busy

    def _release(self, batch: list[_Operation[Any]], seconds: float) -> None:
        """Wake the waiters, with one call for each event loop."""
        with self._changed:
            self._expected = len(self._waiting) + len(batch)
            self._gather_until = time.monotonic() + min(seconds / 2, _GATHER)
        waiters: dict[Any, list[anyio.Event]] = {}
        for operation in batch:
            waiters.setdefault(operation.loop, []).append(operation.done)
        for loop, events in waiters.items():
            call_soon(loop, functools.partial(_set_all, events))

    def _write(self, batch: list[_Operation[Any]]) -> None:
        """Commit all operations in one transaction; if that fails, each in its own."""
        try:
            if batch[0].alone:
                self._file.check()
                batch[0].result = batch[0].work(self._connection)
            else:
                self._commit(batch)
        except BaseException as error:  # noqa: BLE001 - it is raised again, where it was asked for
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")  # what this raises ends the writer: the connection is of no use
            is_own = not isinstance(error, LLMSessionError) and not (
                isinstance(error, sqlite3.Error) and is_busy(error)
            )
            if len(batch) > 1 and is_own:
                for operation in batch:
                    self._write([operation])
                return
            cause = error
            if isinstance(error, sqlite3.Error):
                error = explain(error, self._file.path)
                error.__cause__ = cause
            for operation in batch:
                operation.error = error

    def _commit(self, batch: list[_Operation[Any]]) -> None:
        connection = self._connection
        self._file.check()
        execute_patiently(connection, "BEGIN IMMEDIATE")
        for operation in batch:
            try:
                operation.result = operation.work(connection)
            except LLMSessionError as error:
                operation.error = error
        connection.execute("COMMIT")
        self._file.check()


def _set_all(events: list[anyio.Event]) -> None:
    for event in events:
        event.set()


_WRITERS: weakref.WeakSet[Writer] = weakref.WeakSet()


@atexit.register
def _finish_all() -> None:
    # Nobody closed them: what waits is written nevertheless.
    for writer in list(_WRITERS):
        writer.stop_blocking(_EXIT_SECONDS)


if hasattr(os, "register_at_fork"):
    # A forked copy of the process has none of these threads, and nothing to write for them.
    os.register_at_fork(after_in_child=_WRITERS.clear)
