"""An owned process on Linux and macOS. It has its own group, dies with us, and is killed only while it is surely ours.

On Linux the kernel kills it when the thread that started it ends (PR_SET_PDEATHSIG, prctl(2)), so one thread that never
ends starts them all.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO

from llmsession.system.service_thread import ServiceThread

# Asks the kernel to kill it with its parent, looks whether that parent is still there, and becomes the command.
_GUARD = (
    "import ctypes,os,sys\n"
    "ctypes.CDLL(None).prctl(1,9)\n"
    "os.getppid()==int(sys.argv[1]) or sys.exit(1)\n"
    "os.execv(sys.argv[2],sys.argv[2:])"
)


# A line is written in microseconds; a child that reads nothing for so long will not read the next one either.
STDIN_TURN = 0.1


class OwnedProcess:
    """A running child. The attending thread calls `wait` once; the other methods may be called from any thread."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        self._lock = threading.Lock()
        self._reaped = False
        self._stdin_lock = threading.Lock()
        assert popen.stdin is not None  # noqa: S101 - spawn asked for a pipe
        self._stdin: IO[bytes] | None = popen.stdin
        self.pid = popen.pid

    @classmethod
    def spawn(
        cls, argv: Sequence[str], env: Mapping[str, str], *, stdout: int, stderr: int, watches_stdin: bool
    ) -> OwnedProcess:
        """Start the process. `watches_stdin`: it ends by itself when its stdin is closed. Raises OSError."""
        popen = subprocess.Popen(
            [*_guard(watches_stdin=watches_stdin), *argv],
            env=dict(env),
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=stderr,
            process_group=0,
            bufsize=0,
            # Python ignores SIGXFSZ and SIGPIPE: so does then the child, which a log that reaches a limit must not end.
            restore_signals=False,
        )
        _forbid_core_dump(popen.pid)
        return cls(popen)

    def wait(self) -> int | None:
        """Block until it has exited, kill what is left of its group, and reap it.

        Return the exit code, −N for a signal.

        None if the program ignores SIGCHLD: then the kernel reports no exit codes.
        """
        is_there = _wait_without_reaping(self.pid)
        with self._lock:
            if is_there:  # the dead leader still holds its number, so the group is ours and nobody else's
                _kill_group(self.pid, signal.SIGKILL)
            returncode = self._popen.wait()
            self._reaped = True
        self.close_stdin()
        return returncode if is_there else None

    def write_line(self, line: bytes) -> None:
        """Write to its stdin, if it still reads. Blocks while the pipe is full."""
        with self._stdin_in_turn(), contextlib.suppress(OSError, ValueError):
            rest = memoryview(line)
            # Another thread may close it at any moment: see _stdin_in_turn.
            while rest and (stdin := self._stdin) is not None:
                rest = rest[stdin.write(rest) or 0 :]

    def close_stdin(self) -> None:
        """Close its stdin."""
        with self._stdin_in_turn(), contextlib.suppress(OSError):
            if self._stdin is not None:
                self._stdin.close()
            self._stdin = None

    @contextlib.contextmanager
    def _stdin_in_turn(self) -> Iterator[None]:
        """One writer at a time. If another one is stuck on a child that reads nothing, it is not waited for."""
        if self._stdin_lock.acquire(timeout=STDIN_TURN):
            try:
                yield
            finally:
                self._stdin_lock.release()
        else:
            yield

    def terminate(self) -> None:
        """Ask it to end (SIGTERM)."""
        with self._lock:
            if not self._reaped:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Kill it and its whole group at once."""
        with self._lock:
            if not self._reaped:
                _kill_group(self.pid, signal.SIGKILL)


def kill_stray(pid: int) -> None:
    """Kill a group that an earlier run left. The caller has made sure that it is that one."""
    _kill_group(pid, signal.SIGKILL)


def _kill_group(pid: int, number: signal.Signals) -> None:
    # Its group has its own number (process_group=0): never ask getpgid, which may name another's by then.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _guard(*, watches_stdin: bool) -> list[str]:
    """Return what to put before a command so that it dies with this process."""
    if sys.platform != "linux":
        return []  # no such signal there: its own watch over stdin is what ends it
    # setpriv takes 0.7 ms, but does not look whether the parent died before it asked; a watch over stdin covers that.
    if watches_stdin and (setpriv := shutil.which("setpriv")):
        return [setpriv, "--pdeathsig", "KILL", "--"]
    return [sys.executable, "-I", "-S", "-c", _GUARD, str(os.getpid())]


def _forbid_core_dump(pid: int) -> None:
    if sys.platform == "linux":
        import resource

        with contextlib.suppress(OSError):
            resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))


def _wait_without_reaping(pid: int) -> bool:
    """Return when the process has exited, with its number still taken, so that no other process can be killed.

    False if it was reaped already: by the kernel, if the program ignores SIGCHLD.
    """
    if sys.platform == "darwin":  # os.waitid came to macOS with Python 3.13
        queue_ = select.kqueue()
        try:
            event = select.kevent(pid, filter=select.KQ_FILTER_PROC, flags=select.KQ_EV_ADD, fflags=select.KQ_NOTE_EXIT)
            with contextlib.suppress(ProcessLookupError):
                queue_.control([event], 1)
        finally:
            queue_.close()
    else:
        try:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            return False
    return True


# The kernel kills the children of a thread that ends (their death signal hangs on it), so this one never does.
_spawner = ServiceThread("llmsession-spawner")


def submit(job: Callable[[], None], on_failure: Callable[[BaseException], None]) -> None:
    """Run `job` in the thread that starts children. Raises BackendError if that thread cannot be started."""
    _spawner.submit(job, on_failure)
