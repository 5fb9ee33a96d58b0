"""ServiceThread: a long-lived thread that runs jobs one after another, whatever they raise.

It is started by the first job, started again if it is gone, and absent in a forked copy of the process until that
submits a job of its own. Nothing else in the package starts a long-lived thread.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from llmsession.system.latch import Latch
from llmsession.types.errors import BackendError

_log = logging.getLogger("llmsession.threads")

T = TypeVar("T")
Job = Callable[[], None]
OnFailure = Callable[[BaseException], None]


class ServiceThread:
    """One daemon thread with a queue of jobs. `submit` may be called from any thread, also from a signal handler."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._reset()
        _ALL.add(self)

    def _reset(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Job, OnFailure | None] | None] = queue.SimpleQueue()
        # Re-entrant for signal handlers. In the worst case one starts a second thread, which takes jobs from the same
        # queue.
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None

    def submit(self, job: Job, on_failure: OnFailure | None = None) -> None:
        """Run `job` in the thread, after the jobs before it; returns at once.

        What it raises is logged, and given to `on_failure`, which is called in the thread. Raises BackendError if no
        thread can be started; then the job is not run.
        """
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = start_thread(self._run, self.name)
            self._jobs.put((job, on_failure))

    def stop(self) -> None:
        """End the thread after the jobs that were submitted. A later job starts another."""
        with self._lock:
            if self._thread is not None:
                self._thread = None
                self._jobs.put(None)

    def _run(self) -> None:
        jobs = self._jobs
        while (entry := jobs.get()) is not None:
            job, on_failure = entry
            try:
                job()
            except BaseException as error:  # noqa: BLE001 - this is the outermost loop of the thread
                _report(self.name, error, on_failure)
            del entry, job, on_failure  # what a job holds is free before the next one comes


def start_thread(target: Job, name: str) -> threading.Thread:
    """Start a daemon thread. Raises BackendError if the system has no more, or the interpreter is shutting down.

    Starting one during the interpreter's shutdown would wait for ever (Python 3.11).
    """
    thread = threading.Thread(target=target, name=name, daemon=True)
    try:
        if sys.is_finalizing():
            raise RuntimeError("the interpreter is shutting down")
        thread.start()
    except RuntimeError as error:
        raise BackendError(
            f"the thread {name} cannot be started ({error}): raise the limit of processes and threads "
            "(ulimit -u, or pids.max of the container), or end some"
        ) from error
    return thread


async def run_in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Call `function` in a thread of its own, and return what it returns, or raise what it raises.

    When this is cancelled, the call goes on and its result is dropped. Threads of `anyio.to_thread` are not daemons:
    one that is left by a loop that ended early keeps the interpreter from exiting.
    """
    done, results, failures = Latch(), list[T](), list[BaseException]()

    def work() -> None:
        try:
            results.append(function(*arguments))
        except BaseException as error:  # noqa: BLE001 - it is raised again, where it is awaited
            failures.append(error)
        done.set()

    start_thread(work, "llmsession-work")
    await done.wait()
    if failures:
        raise failures[0]
    return results[0]


def later(job: Job) -> None:
    """Run `job` soon in a thread that all share; for finalizers, which may run while any lock is held."""
    if not sys.is_finalizing():
        with contextlib.suppress(BackendError):
            _janitor.submit(job)


def _report(name: str, error: BaseException, on_failure: OnFailure | None) -> None:
    try:
        _log.error("a job of the thread %s failed", name, exc_info=error)
        if on_failure is not None:
            on_failure(error)
    except BaseException as second:  # noqa: BLE001 - the thread goes on all the same
        with contextlib.suppress(BaseException):  # logging itself may be what is broken
            _log.error("what handles the failures of the thread %s failed as well", name, exc_info=second)


_ALL: weakref.WeakSet[ServiceThread] = weakref.WeakSet()
_janitor = ServiceThread("llmsession-janitor")


def _after_fork() -> None:
    # A forked copy of this process has none of its threads, and perhaps locks that nobody holds any more.
    for thread in list(_ALL):
        thread._reset()  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
