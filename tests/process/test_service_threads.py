"""Threads that cannot die, and ends that cannot hang: FAULTS A1 to A8 and A10, with the real engine."""

from __future__ import annotations

import gc
import os
import queue
import signal
import sqlite3
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from llmsession import (
    BackendError,
    Chat,
    Completion,
    ConfigError,
    Conversation,
    Memory,
    Session,
    StartFailedError,
    StopReason,
    StoreError,
)
from llmsession.processes import logfile
from llmsession.processes.child import CLOSE_BOUND, Child, Command
from llmsession.processes.logfile import LogFile
from llmsession.processes.readiness import ProbeResult
from llmsession.session.kv.cache import KvCache, _Job
from llmsession.system import service_thread
from tests.engines import EMBEDDED, own_child

pytestmark = pytest.mark.anyio

OK = 'reply with "ok chief"'
LONG = "count to 100"


@pytest.fixture
def anyio_backend() -> str:
    """The threads are the same under both loops."""
    return "asyncio"


@pytest.mark.parametrize("argument", ["a\0b", "a\ud800b"], ids=["NUL", "half a surrogate"])
async def test_an_argument_that_no_program_can_take_is_an_error_that_nobody_else_notices(argument: str) -> None:
    """A1: the spawning thread died, and with it every engine of the process; every later open hung."""
    with anyio.fail_after(20):
        async with Session(**EMBEDDED.options()) as session:
            with pytest.raises(ConfigError, match="cannot be passed to a program"):
                await Session.open(**EMBEDDED.options(extra_args=("--numa", argument)))
            assert "ok chief" == (await session.prompt(OK)).text
        async with Session(**EMBEDDED.options()) as later:
            assert "ok chief" == (await later.prompt(OK)).text


async def test_a_spawn_that_fails_in_any_way_is_a_failed_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A1: not only an OSError."""

    def fail(*args: Any, **keywords: Any) -> None:
        raise RuntimeError("can't start new thread")

    with anyio.fail_after(20):
        async with Session(**EMBEDDED.options()) as session:
            with monkeypatch.context() as patched:
                patched.setattr("llmsession.processes.lifetime_posix.subprocess.Popen", fail)
                with pytest.raises(StartFailedError, match="can't start new thread"):
                    await Session.open(**EMBEDDED.options())
            with monkeypatch.context() as patched:
                patched.setattr(threading.Thread, "start", fail)
                with pytest.raises(BackendError, match="raise the limit"):
                    await Session.open(**EMBEDDED.options())
            assert "ok chief" == (await session.prompt(OK)).text


async def test_records_that_cannot_be_read_are_skipped(cache_dir: Path) -> None:
    """A2: one byte that is not UTF-8 in the folder, and every aclose of every program with that cache hung."""
    running = cache_dir / "running"
    running.mkdir(parents=True)
    (running / "1.json").write_bytes(b'{"pid":1,"name":"\xff"}')
    (running / "2.json").write_bytes(b"\xff\xfe")
    Path(os.fsdecode(os.fsencode(running) + b"/\xff.json")).write_bytes(b"{}")
    Path(os.fsdecode(os.fsencode(running) + b"/.\xff.\xff.0123.new")).write_bytes(b"{}")
    with anyio.fail_after(20):
        async with Session(**EMBEDDED.options()) as session:
            assert "ok chief" == (await session.prompt(OK)).text


async def test_a_cache_folder_whose_name_is_not_utf_8(tmp_path: Path) -> None:
    """A2: the record of a child names its log."""
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    with anyio.fail_after(20):
        async with Session(**EMBEDDED.options(cache_dir=folder)) as session:
            assert "ok chief" == (await session.prompt(OK)).text


@pytest.mark.parametrize("failure", ["not JSON", "an exception of nobody's"])
async def test_a_save_that_fails_in_any_way_holds_nothing_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, failure: str
) -> None:
    """A3: an answer that does not decode ended the saver, which held the slots: every later reply waited for ever."""
    from llmsession.session.kv import cache as kv

    monkeypatch.setattr(kv, "LEAST_TOKENS", 1)
    monkeypatch.setattr(kv.KvCache, "_is_worth", lambda *given: True)
    tried = threading.Event()

    async def act(self: kv.KvCache, endpoint: Any, slot: int, action: str, file: str) -> Any:
        tried.set()
        if failure == "not JSON":
            from llmsession import UndecodableError

            raise UndecodableError("the answer cannot be read", payload=b"<html>")
        raise ZeroDivisionError("nobody has foreseen this")

    monkeypatch.setattr(kv.KvCache, "_act", act)
    with anyio.fail_after(30):
        async with Session(**EMBEDDED.options(parallel=1)) as session, Memory.open(tmp_path / "memory.db") as memory:
            for user in ("ann", "bob", "ann"):
                chat = Chat(session, await memory.get(user=user))
                assert (await chat.send(OK, temperature=0)).text
            assert await anyio.to_thread.run_sync(tried.wait, 10)
            assert (await session.prompt(OK)).text


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
async def test_interrupt_is_safe_in_a_signal_handler() -> None:
    """A5: many signals while replies come and go; a plain lock would be taken by the thread that holds it."""
    before = signal.getsignal(signal.SIGUSR1)
    async with Session(**EMBEDDED.options()) as session:
        signal.signal(signal.SIGUSR1, lambda *_: session.interrupt())
        ended: list[Completion] = []

        async def talk() -> None:
            ended.extend([await session.prompt(LONG, max_tokens=60) for _ in range(12)])

        over = threading.Event()

        def fire() -> None:
            while not over.wait(0.002):
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

        thread = threading.Thread(target=fire)
        try:
            with anyio.fail_after(60):
                thread.start()
                async with anyio.create_task_group() as tasks:
                    for _ in range(4):
                        tasks.start_soon(talk)
        finally:
            over.set()
            thread.join()
            signal.signal(signal.SIGUSR1, before)
    assert 48 == len(ended)
    assert StopReason.INTERRUPTED in {reply.stop_reason for reply in ended}


@pytest.mark.filterwarnings("ignore:.*was never closed:ResourceWarning", "ignore:unclosed:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # asyncio's, of the connection
@pytest.mark.parametrize("kind", ["reply", "chat"])
async def test_streams_that_are_forgotten_free_their_slots(kind: str) -> None:
    """A6: the session held them; the fifth prompt waited for ever."""
    with anyio.fail_after(60):
        async with Session(**EMBEDDED.options(parallel=2)) as session:
            for _ in range(3):
                chat = Chat(session, Conversation.in_ram())
                stream: Any = session.prompt_streaming(LONG) if kind == "reply" else chat.stream(LONG)
                await stream.__aenter__()
                await anext(stream)
                del stream, chat
                gc.collect()
            assert "ok chief" == (await session.prompt(OK)).text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # asyncio's, of the connection
@pytest.mark.parametrize("what", ["session", "stream"])
async def test_what_is_forgotten_ends_before_its_warning_is_an_error(what: str) -> None:
    """A7: under -W error the warning came first, and nothing was ended."""
    with warnings.catch_warnings(), anyio.fail_after(30):
        warnings.simplefilter("error")
        session = await Session.open(**EMBEDDED.options(parallel=1))
        child = own_child(session)
        if what == "stream":
            stream: Any = session.prompt_streaming(LONG)
            await stream.__aenter__()
            with pytest.raises(ResourceWarning):
                stream.__del__()
            assert "ok chief" == (await session.prompt(OK)).text
            await session.aclose()
        else:
            with pytest.raises(ResourceWarning):
                session.__del__()
            await child.exited.wait()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # asyncio's, of the connection
async def test_a_session_may_be_forgotten_while_this_thread_holds_its_locks() -> None:
    """A5: the garbage collector runs anywhere, also within `Latch.set` and `Child.request_stop`: no lock is taken."""
    session = await Session.open(**EMBEDDED.options(parallel=1))
    server: Any = session._server
    child = own_child(session)
    with anyio.fail_after(30):
        with server._lock, child._lock, child.exited._lock, pytest.warns(ResourceWarning, match="never closed"):
            session.__del__()
        await child.exited.wait()
        await session.aclose()


async def test_what_a_save_takes_of_a_close_its_engine_has_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """A3: all of aclose ends in 1.5 s, whatever the cache does meanwhile."""
    given: list[float] = []
    close = Child.aclose

    async def slow(self: KvCache) -> None:
        await anyio.sleep(0.3)

    async def note(self: Child, *, within: float) -> None:
        given.append(within)
        await close(self, within=within)

    monkeypatch.setattr(KvCache, "aclose", slow)
    monkeypatch.setattr(Child, "aclose", note)
    session = await Session.open(**EMBEDDED.options())
    session._replies._kv = KvCache(2**20, is_idle=lambda: True)
    await session.aclose()
    assert len(given) == 1
    assert 0 < given[0] <= CLOSE_BOUND - 0.3


ENDS = {
    "nothing": "",
    "an exception": "raise ValueError('broken')",
    "sys.exit": "sys.exit(3)",
}
PROGRAM = """
import asyncio, sys
from llmsession import Session
kept = []
async def main():
    session = await Session.open(backend="embedded", threads=1)
    kept.append(session)
    print(session.pid, flush=True)
    print(await session.prompt('reply with "ok chief"'), flush=True)
    END
if len(sys.argv) > 1:
    loop = asyncio.new_event_loop()
    kept.append(loop)
    loop.run_until_complete(main())
else:
    asyncio.run(main())
"""


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("loop", ["closed", "left open"])
def test_a_program_that_closes_nothing_ends_and_so_does_its_engine(end: str, loop: str, cache_dir: Path) -> None:
    """A7, and the library's first sentence: on Python 3.11 such a program hung at its end, its engine beside it."""
    program = PROGRAM.replace("END", ENDS[end] or "pass")
    argv = [sys.executable, "-c", program, *(["x"] if loop == "left open" else [])]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    pid, reply = done.stdout.split("\n")[:2]
    assert ("ok chief", {"nothing": 0, "an exception": 1, "sys.exit": 3}[end]) == (reply, done.returncode)
    assert "Exception ignored" not in done.stderr
    gone = not psutil.pid_exists(int(pid)) or psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE
    assert gone


async def test_a_rollback_that_fails_closes_the_memory_and_nobody_waits(tmp_path: Path) -> None:
    """A8: the writer was stuck, and whoever waited for it waited for ever."""
    with anyio.fail_after(20):
        memory = await Memory.open(tmp_path / "memory.db")
        conversation = await memory.get("ann")
        writer = memory._store._writer
        assert writer is not None
        real = writer._connection

        class Broken:
            """A connection that can begin, and then nothing."""

            in_transaction = True

            def execute(self, sql: str, *given: Any) -> Any:
                if sql in ("ROLLBACK", "COMMIT"):
                    raise sqlite3.OperationalError("disk I/O error")
                return real.execute(sql, *given)

            def close(self) -> None:
                real.close()

        writer._connection = Broken()  # type: ignore[assignment]
        with pytest.raises(StoreError):
            await conversation.add("hello")
        with pytest.raises(StoreError, match="after a failure of its writer"):
            await conversation.add("again")
        await memory.aclose()


async def test_a_child_that_does_not_read_does_not_hold_up_the_others(tmp_path: Path) -> None:
    """A8: 64 KB for its stdin blocked the one thread that starts children."""
    command = Command(
        name="deaf",
        argv=[sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"],
        env={},
        greeting=b"x" * 1_000_000,
    )
    deaf = Child(command, LogFile(tmp_path, "deaf"))

    async def never() -> ProbeResult:
        return ProbeResult()

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_start_until_closed, deaf, never)
            async with Session(**EMBEDDED.options()) as session:
                assert "ok chief" == (await session.prompt(OK)).text
            await deaf.aclose()
    assert deaf.exited.is_set()


async def _start_until_closed(child: Child, probe: Any) -> None:
    from llmsession import ClosedError

    with pytest.raises(ClosedError):
        await child.start(probe, timeout=60)


@pytest.fixture
def sleepers(tmp_path: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that hold a log each."""
    running: list[subprocess.Popen[bytes]] = []
    yield running
    for process in running:
        process.kill()
        process.wait()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows deletes no open file")
def test_the_log_of_a_process_that_lives_is_kept(
    tmp_path: Path, sleepers: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A10: 25 engines in one cache, and 50 MB of live logs: the oldest lost theirs, one that loaded was never ready."""
    monkeypatch.setattr(logfile, "KEPT_BYTES", 1000)
    logs = [LogFile(tmp_path, "engine") for _ in range(25)]
    for log in logs:
        out, err = log.open()
        sleepers.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], stdout=out, stderr=err))
        os.close(out)
        os.write(err, b"x" * 200)
        os.close(err)
    assert all(log.path.exists() and log.out_path.exists() for log in logs)
    for process in sleepers[:5]:
        process.kill()
        process.wait()
    logfile.prune(tmp_path)
    assert [False] * 5 + [True] * 20 == [log.path.exists() for log in logs]


def test_nothing_else_starts_a_long_lived_thread() -> None:
    """STYLE 4: threads of the package come from system/service_thread.py."""
    package = Path(service_thread.__file__).parents[1]
    alone = {"backends/embedded_child.py", "backends/transformers_child.py", "models/hub/worker.py"}
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if "threading.Thread(" in path.read_text(encoding="utf-8")
    }
    # The vocabulary is read once, while the engine loads; a hung engine is asked once.
    assert {"system/service_thread.py", *alone} >= found - {"prompts/vocabulary.py", "session/server/hang_detector.py"}


async def test_a_child_that_reads_neither_greeting_nor_farewell_is_ended(tmp_path: Path) -> None:
    """A8: the ladder waited for a farewell that nobody read; `aclose` returned, and the process lived on."""
    argv = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"]
    command = Command(name="deaf", argv=argv, env={}, greeting=b"x" * 1_000_000, farewell=b"exit\n")
    child = Child(command, LogFile(tmp_path, "deaf"))

    async def probe() -> ProbeResult:
        return ProbeResult(ready=child.pid is not None, progress=1)

    with anyio.fail_after(20):
        await child.start(probe, timeout=10)
        await child.aclose()
    assert child.exited.is_set()


async def test_a_save_that_is_put_while_the_saver_fails_holds_no_reply_back() -> None:
    """A3: a job that came between the emptying of the queue and the note that nobody works was never done."""
    kv = KvCache(10**9, is_idle=lambda: True)
    released, passed = threading.Event(), threading.Event()
    job = _Job(
        endpoint=None,  # type: ignore[arg-type]  # the saver cannot save it, and must leave it
        slot=0,
        conversation="a",
        saved=None,  # type: ignore[arg-type]
        launches=0,
        hold=None,
        granted=threading.Event(),
        release=released.set,
    )
    job.hold = kv.slot_lock.acquire(job.granted.set, alone=True)
    putting = threading.Thread(target=kv._put, args=(job,))

    class Raced(queue.Queue[_Job | None]):
        """At its end, another thread's reply ends as well."""

        def get_nowait(self) -> _Job | None:
            if self.empty() and putting.ident is None:
                putting.start()
                putting.join(0.2)  # it is done by then, or waits for the lock
                raise queue.Empty
            return super().get_nowait()

    kv._jobs, kv._is_working = Raced(), True
    kv._give_up(OSError("the disk is gone"))
    kv.slot_lock.acquire(passed.set)
    assert await anyio.to_thread.run_sync(released.wait, 10)
    assert await anyio.to_thread.run_sync(passed.wait, 10)
    putting.join()
    await kv.aclose()
