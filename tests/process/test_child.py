"""Child: every state, every way to end, with the fake engine. DESIGN 4 is where the claims come from."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import anyio
import anyio.from_thread
import psutil
import pytest

from llmsession.backends.probes import EXIT, ChildModeProbe
from llmsession.processes.child import Child, Command, State
from llmsession.processes.logfile import LogFile
from llmsession.types.errors import ClosedError, StartFailedError, StartTimeoutError
from tests import fake_llama_server

pytestmark = pytest.mark.anyio

MakeChild = Callable[..., Child]
# Seconds for a close: the rungs are those of 1.5 s, the first one shorter.
WITHIN = 0.6


@pytest.fixture
def make_child(tmp_path: Path) -> MakeChild:
    """A child that runs the fake with these flags."""

    def make(flags: str = "", *, watches_stdin: bool = True) -> Child:
        command = Command(
            name="fake",
            argv=[str(fake_llama_server.wrapper(tmp_path, flags))],
            env={"LLAMA_SERVER_ROUTER_PORT": "1", "PATH": os.environ["PATH"]},
            watches_stdin=watches_stdin,
            farewell=EXIT if watches_stdin else None,
        )
        return Child(command, LogFile(tmp_path, "fake"))

    return make


async def start(child: Child, timeout: float = 20.0) -> None:
    """With the probe that sessions use."""
    await child.start(ChildModeProbe(child.log), timeout=timeout)


async def until(condition: Callable[[], bool]) -> None:
    """Bounded, and quick to notice."""
    with anyio.fail_after(20):
        while not condition():
            await anyio.lowlevel.checkpoint()


async def test_it_is_ready_when_it_says_so_and_not_before(make_child: MakeChild) -> None:
    """Issue 1: ready only when the server says so."""
    child = make_child("--ready-after 0.3 --progress-every 0.05")
    assert [State.NEW] == [child.state]
    async with anyio.create_task_group() as group:
        group.start_soon(start, child)
        await until(lambda: b"loading" in child.log.read_out())
        assert [State.STARTING] == [child.state]
    assert State.READY is child.state
    assert b'"ready"' in child.log.read_out()
    await child.aclose()
    assert (State.STOPPED, 0) == (child.state, child.returncode)


async def test_an_early_exit_is_noticed_at_once_with_its_last_words(make_child: MakeChild) -> None:
    """Issue 1: early exit, with the log's tail in the error; the deadline is far away."""
    child = make_child("--die-while-loading 3")
    with anyio.fail_after(20), pytest.raises(StartFailedError, match=r"exit code 3 .*made of cheese") as caught:
        await start(child, timeout=1000)
    assert 3 == caught.value.returncode
    assert "the model is made of cheese" in caught.value.log_tail
    assert State.FAILED is child.state


async def test_a_program_that_does_not_exist_is_an_error_of_ours(tmp_path: Path) -> None:
    """API 5: nothing of another library crosses the line."""
    command = Command(name="none", argv=[str(tmp_path / "none")], env={})
    child = Child(command, LogFile(tmp_path, "none"))
    with pytest.raises(StartFailedError):
        await start(child)
    assert State.FAILED is child.state


async def test_the_deadline_moves_while_loading_progresses(make_child: MakeChild) -> None:
    """DESIGN 2: a deadline that moves with progress: loading takes longer than it, and progresses all the time."""
    child = make_child("--ready-after 1.5 --progress-every 0.05")
    await start(child, timeout=0.7)
    assert State.READY is child.state
    await child.aclose()


@pytest.mark.parametrize("flags", ["--never-ready", "--hang-before-listening"])
async def test_no_progress_for_too_long_ends_it(make_child: MakeChild, flags: str) -> None:
    """DESIGN 2: the deadline; the process is gone when the error arrives."""
    child = make_child(flags)
    with anyio.fail_after(20), pytest.raises(StartTimeoutError, match="start_timeout"):
        await start(child, timeout=0.4)
    assert child.exited.is_set()


@pytest.mark.parametrize("watches_stdin", [True, False])
@pytest.mark.parametrize("flags", ["--ignore-sigterm --ignore-stdin", "--ignore-sigterm", ""])
async def test_whatever_it_ignores_it_is_gone_after_aclose(
    make_child: MakeChild, flags: str, watches_stdin: bool
) -> None:
    """DESIGN 4: the ladder ends with SIGKILL."""
    child = make_child(flags, watches_stdin=watches_stdin)
    await start(child)
    pid = child.pid
    assert pid is not None
    with anyio.fail_after(5):
        await child.aclose(within=WITHIN)
    assert State.STOPPED is child.state
    assert not psutil.pid_exists(pid)
    assert child.pid is None


async def test_a_grandchild_that_holds_the_output_neither_hangs_us_nor_stays(make_child: MakeChild) -> None:
    """DESIGN 4: output goes to a file; the group is ended with its leader."""
    child = make_child("--grandchild")
    await start(child)
    found = re.search(rb"grandchild (\d+)", child.log.read_log())
    assert found is not None
    grandchild = psutil.Process(int(found.group(1)))
    with anyio.fail_after(5):
        await child.aclose()
    await until(lambda: not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE)


async def test_a_grandchild_is_ended_also_when_its_parent_dies_by_itself(make_child: MakeChild) -> None:
    """DESIGN 4: the attending thread ends what is left of the group before it reaps."""
    child = make_child("--grandchild")
    await start(child)
    found = re.search(rb"grandchild (\d+)", child.log.read_log())
    assert found is not None
    grandchild = psutil.Process(int(found.group(1)))
    assert child.pid is not None
    os.kill(child.pid, 9)
    with anyio.fail_after(10):
        await child.exited.wait()
    assert (State.FAILED, -9) == (child.state, child.returncode)
    await until(lambda: not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE)


async def test_closing_a_new_child_means_that_it_never_starts(make_child: MakeChild) -> None:
    """DESIGN 4: aclose may be called from any state."""
    child = make_child()
    await child.aclose()
    await child.aclose()
    assert State.STOPPED is child.state
    with pytest.raises(ClosedError):
        await start(child)


async def test_closing_while_it_starts_ends_the_start(make_child: MakeChild) -> None:
    """DESIGN 4: every waiter of a state is released by every transition."""
    child = make_child("--never-ready")
    errors: list[BaseException] = []

    async def starting() -> None:
        try:
            await start(child)
        except ClosedError as error:
            errors.append(error)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(starting)
            await until(lambda: b"loading" in child.log.read_log())
            await child.aclose()
    assert 1 == len(errors)
    assert State.STOPPED is child.state


async def test_closing_at_once_after_the_start_began_leaves_nothing(make_child: MakeChild) -> None:
    """DESIGN 4: also before the process exists."""
    child = make_child("--never-ready")
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:

            async def starting() -> None:
                with pytest.raises(ClosedError):
                    await start(child)

            group.start_soon(starting)
            await anyio.lowlevel.checkpoint()
            child.request_stop()
    assert child.exited.is_set()


async def test_a_cancelled_start_leaves_nothing(make_child: MakeChild) -> None:
    """Issue 1: cancel during start."""
    child = make_child("--never-ready")
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(start, child)
            await until(lambda: b"loading" in child.log.read_log())
            group.cancel_scope.cancel()
    assert child.exited.is_set()
    assert State.FAILED is child.state


async def test_ten_may_close_it_at_once(make_child: MakeChild) -> None:
    """DESIGN 4: idempotent, from any task."""
    child = make_child("--ignore-sigterm --ignore-stdin")
    await start(child)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(partial(child.aclose, within=WITHIN))
    assert State.STOPPED is child.state


async def test_a_cancelled_close_closes_all_the_same(make_child: MakeChild) -> None:
    """STYLE 1, anyio: a close that is shielded and bounded."""
    child = make_child("--ignore-sigterm --ignore-stdin")
    await start(child)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await child.aclose(within=WITHIN)
    assert child.exited.is_set()


async def test_a_failed_child_can_be_closed_again_and_again(make_child: MakeChild) -> None:
    """DESIGN 4: any state; what failed stays failed."""
    child = make_child("--die-while-loading 1")
    with pytest.raises(StartFailedError):
        await start(child)
    await child.aclose()
    await child.aclose()
    assert State.FAILED is child.state


async def test_a_child_is_started_once(make_child: MakeChild) -> None:
    """One child, one process: a restart is a new child."""
    child = make_child()
    await start(child)
    with pytest.raises(ClosedError):
        await start(child)
    assert State.READY is child.state
    await child.aclose()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
async def test_another_event_loop_in_another_thread_may_close_it(make_child: MakeChild, backend: str) -> None:
    """DESIGN 4: bots close their session from another task or loop than the one that opened it."""
    child = make_child()
    await start(child)
    closer = threading.Thread(target=anyio.run, args=(child.aclose,), kwargs={"backend": backend})
    closer.start()
    with anyio.fail_after(10):
        await child.exited.wait()
    closer.join()
    assert State.STOPPED is child.state


async def test_it_outlives_the_loop_and_thread_that_opened_it(make_child: MakeChild) -> None:
    """Issue 1: opened from a worker thread or blocking portal that then ends; the death signal must not fire."""
    child = make_child()

    def open_in_a_portal() -> None:
        with anyio.from_thread.start_blocking_portal() as portal:
            portal.call(start, child)

    opener = threading.Thread(target=open_in_a_portal)
    opener.start()
    await until(lambda: not opener.is_alive())
    opener.join()
    with anyio.move_on_after(0.3) as scope:
        await child.exited.wait()
    assert scope.cancelled_caught, "it died with the thread that opened it"
    assert State.READY is child.state
    await child.aclose()


async def test_its_output_is_for_its_owner_only(make_child: MakeChild) -> None:
    """Row B15: logs are private to the user."""
    child = make_child()
    await start(child)
    assert [0o600, 0o600] == [path.stat().st_mode & 0o777 for path in (child.log.path, child.log.out_path)]
    await child.aclose()


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is set from outside, which only Linux can")
async def test_it_leaves_no_core_dump(make_child: MakeChild) -> None:
    """DESIGN 4: RLIMIT_CORE 0: a core of an engine is gigabytes, with every conversation in it."""
    child = make_child()
    await start(child)
    assert child.pid is not None
    assert (0, 0) == psutil.Process(child.pid).rlimit(psutil.RLIMIT_CORE)
    await child.aclose()


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such signal")
def test_a_program_that_ignores_sigchld_knows_no_exit_code() -> None:
    """F7: exit code 3 was told as 0. In a process of its own: the signal's handler is the whole program's."""
    program = """
import anyio, os, signal, sys, tempfile
from pathlib import Path
from llmsession.processes.child import Child, Command, describe_exit
from llmsession.processes.logfile import LogFile
from llmsession.processes.readiness import ProbeResult

async def never():
    return ProbeResult()

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
async def main():
    child = Child(Command(name="it", argv=[sys.executable, "-c", "raise SystemExit(3)"], env=dict(os.environ)),
                  LogFile(Path(tempfile.mkdtemp()), "it"))
    try:
        await child.start(never, timeout=20)
    except Exception as error:
        print(type(error).__name__, child.returncode, describe_exit(child.returncode))
anyio.run(main)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert "StartFailedError None ended\n" == done.stdout, done.stderr
