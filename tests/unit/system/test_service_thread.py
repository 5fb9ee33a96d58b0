"""ServiceThread: jobs run, whatever they raise, in a thread that is there when it is needed (FAULTS A1, A4)."""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
from collections.abc import Callable

import pytest

from llmsession.system.service_thread import ServiceThread
from llmsession.system.watchdog import Watchdog
from llmsession.types.errors import BackendError


def run(service: ServiceThread, job: Callable[[], None]) -> BaseException | None:
    """Run a job to its end; what it raised, if anything."""
    over, raised = threading.Event(), list[BaseException]()

    def note(error: BaseException) -> None:
        raised.append(error)
        over.set()

    def whole() -> None:
        job()
        over.set()

    service.submit(whole, note)
    assert over.wait(5)
    return raised[0] if raised else None


@pytest.mark.parametrize("kind", [ValueError, MemoryError, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_job_may_raise_anything(kind: type[BaseException], caplog: pytest.LogCaptureFixture) -> None:
    """A1: the same thread goes on, the error is logged and given to whoever waits."""
    service, threads = ServiceThread("test"), list[threading.Thread]()

    def fail() -> None:
        threads.append(threading.current_thread())
        raise kind("broken")

    with caplog.at_level(logging.ERROR, "llmsession.threads"):
        raised = run(service, fail)
    assert isinstance(raised, kind)
    assert "a job of the thread test failed" in caplog.text
    assert run(service, lambda: threads.append(threading.current_thread())) is None
    assert threads[0] is threads[1]


def test_what_handles_a_failure_may_fail_as_well() -> None:
    """A1: any thread, callback or job can meet any exception."""
    service = ServiceThread("test")

    def fail(error: BaseException | None = None) -> None:
        raise ValueError("broken")

    service.submit(fail, fail)
    assert run(service, lambda: None) is None


def test_a_thread_that_cannot_be_started_is_an_error_and_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """A1: "can't start new thread" at a container's limit; when there is room again, jobs run."""
    service, ran = ServiceThread("test"), threading.Event()

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(BackendError, match=r"cannot be started .*: raise the limit"):
            service.submit(ran.set)
    assert run(service, lambda: None) is None
    assert not ran.is_set()


def test_a_thread_that_was_stopped_is_started_again() -> None:
    """What was submitted before the stop is done."""
    service, first = ServiceThread("test"), threading.Event()
    service.submit(first.set)
    service.stop()
    assert first.wait(5)
    assert run(service, lambda: None) is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:This process")
def test_a_forked_copy_has_a_thread_of_its_own() -> None:
    """A1: it is there again after a fork, also where the fork came while its lock was held."""
    service = ServiceThread("test")
    assert run(service, lambda: None) is None
    with service._lock:
        copy = os.fork()
    if not copy:
        ran = threading.Event()
        service.submit(ran.set)
        os._exit(0 if ran.wait(5) else 1)
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1])


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_signal_handler_may_submit_while_the_lock_is_held() -> None:
    """A5: a handler runs in the thread that holds it."""
    service, ran = ServiceThread("test"), threading.Event()
    with service._lock:
        service.submit(ran.set)
    assert ran.wait(5)


class Late:
    """A deadline that has passed."""

    def __init__(self, overrun: Callable[[], None]) -> None:
        self.deadline = 0.0
        self._overrun = overrun

    def overrun(self, now: float) -> None:
        """Its end."""
        del now
        self.deadline = math.inf
        self._overrun()


def test_a_deadline_that_fails_does_not_end_the_others(caplog: pytest.LogCaptureFixture) -> None:
    """A4: no time-out and no hang detection in this process any more."""
    watchdog, ended, calls = Watchdog(), threading.Event(), list[int]()

    def fail() -> None:
        calls.append(1)
        broken.deadline = 0.0  # and it stays late
        raise ValueError("broken")

    broken, good = Late(fail), Late(ended.set)
    with caplog.at_level(logging.ERROR, "llmsession.threads"):
        watchdog.add(broken)
        watchdog.add(good)
        assert ended.wait(5)
    again = threading.Event()
    watchdog.add(Late(again.set))
    assert again.wait(5)
    assert [1] == calls  # it is not called again and again
    assert "is not watched any more" in caplog.text


def test_a_watchdog_that_failed_goes_on_with_what_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """A4: whatever ended its loop."""
    watchdog, ended, failed = Watchdog(), threading.Event(), threading.Event()
    wait = watchdog._end_overdue

    def fail_once() -> None:
        monkeypatch.setattr(watchdog, "_end_overdue", wait)
        failed.set()
        raise SystemExit

    monkeypatch.setattr(watchdog, "_end_overdue", fail_once)
    watchdog.add(Late(ended.set))
    assert failed.wait(5)
    assert ended.wait(5)
