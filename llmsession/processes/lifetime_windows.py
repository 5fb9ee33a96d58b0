"""An owned process on Windows, in a Job Object that the kernel ends when the last handle to it is closed.

https://learn.microsoft.com/windows/win32/procthread/job-objects. Not run yet: see README.
"""

from __future__ import annotations

import contextlib
import ctypes
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import IO

from llmsession.system.service_thread import ServiceThread

assert sys.platform == "win32"  # noqa: S101 - tells the type checkers where this holds

_KILL_ON_JOB_CLOSE = 0x2000
_EXTENDED_LIMIT_INFORMATION = 9
_CREATE_SUSPENDED = 0x4


class _BasicLimits(ctypes.Structure):
    _fields_ = [
        ("PerProcessUserTimeLimit", ctypes.c_int64),
        ("PerJobUserTimeLimit", ctypes.c_int64),
        ("LimitFlags", ctypes.c_uint32),
        ("MinimumWorkingSetSize", ctypes.c_size_t),
        ("MaximumWorkingSetSize", ctypes.c_size_t),
        ("ActiveProcessLimit", ctypes.c_uint32),
        ("Affinity", ctypes.c_size_t),
        ("PriorityClass", ctypes.c_uint32),
        ("SchedulingClass", ctypes.c_uint32),
    ]


class _ExtendedLimits(ctypes.Structure):
    _fields_ = [
        ("BasicLimitInformation", _BasicLimits),
        ("IoInfo", ctypes.c_uint64 * 6),
        ("ProcessMemoryLimit", ctypes.c_size_t),
        ("JobMemoryLimit", ctypes.c_size_t),
        ("PeakProcessMemoryUsed", ctypes.c_size_t),
        ("PeakJobMemoryUsed", ctypes.c_size_t),
    ]


_kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
_ntdll = ctypes.WinDLL("ntdll")
_kernel32.CreateJobObjectW.restype = ctypes.c_void_p
_kernel32.CreateJobObjectW.argtypes = [ctypes.c_void_p, ctypes.c_wchar_p]
_kernel32.SetInformationJobObject.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_uint32]
_kernel32.AssignProcessToJobObject.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
_kernel32.TerminateJobObject.argtypes = [ctypes.c_void_p, ctypes.c_uint]
_kernel32.CloseHandle.argtypes = [ctypes.c_void_p]
_ntdll.NtResumeProcess.argtypes = [ctypes.c_void_p]


class OwnedProcess:
    """A running child. The attending thread calls `wait` once; the other methods may be called from any thread."""

    def __init__(self, popen: subprocess.Popen[bytes], job: int) -> None:
        self._popen = popen
        self._job: int | None = job
        self._lock = threading.Lock()
        self._stdin_lock = threading.Lock()
        self._stdin: IO[bytes] | None = popen.stdin
        self.pid = popen.pid

    @classmethod
    def spawn(
        cls, argv: Sequence[str], env: Mapping[str, str], *, stdout: int, stderr: int, watches_stdin: bool
    ) -> OwnedProcess:
        """Start the process suspended, and resume it once it is in the job, so that it is never outside.

        Raises OSError.
        """
        del watches_stdin  # the job ends it in any case
        job = _new_job()
        try:
            popen = subprocess.Popen(
                list(argv),
                env=dict(env),
                stdin=subprocess.PIPE,
                stdout=stdout,
                stderr=stderr,
                bufsize=0,
                creationflags=subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW | _CREATE_SUSPENDED,
            )
        except BaseException:
            _kernel32.CloseHandle(job)
            raise
        handle = int(popen._handle)  # type: ignore[attr-defined]  # noqa: SLF001 - Popen offers no other way
        if not _kernel32.AssignProcessToJobObject(job, handle):
            error = ctypes.WinError(ctypes.get_last_error())
            popen.kill()
            _kernel32.CloseHandle(job)
            raise error
        _ntdll.NtResumeProcess(handle)
        return cls(popen, job)

    def wait(self) -> int:
        """Block until it has exited, and end what is left of its job. Return the exit code."""
        returncode = self._popen.wait()
        with self._lock:
            if self._job is not None:
                _kernel32.TerminateJobObject(self._job, 1)
                _kernel32.CloseHandle(self._job)
                self._job = None
        self.close_stdin()
        return returncode

    def write_line(self, line: bytes) -> None:
        """Write to its stdin, if it still reads."""
        with self._stdin_lock, contextlib.suppress(OSError, ValueError):
            if self._stdin is not None:
                self._stdin.write(line)

    def close_stdin(self) -> None:
        """Close its stdin."""
        with self._stdin_lock, contextlib.suppress(OSError):
            if self._stdin is not None:
                self._stdin.close()
            self._stdin = None

    def terminate(self) -> None:
        """Ask it to end (CTRL_BREAK, the closest to SIGTERM)."""
        with contextlib.suppress(OSError):
            self._popen.send_signal(signal.CTRL_BREAK_EVENT)

    def kill(self) -> None:
        """Kill it and everything that it started."""
        with self._lock:
            if self._job is not None:
                _kernel32.TerminateJobObject(self._job, 1)


def kill_stray(pid: int) -> None:
    """Kill what an earlier run left. The caller has made sure that it is that one."""
    subprocess.run(["taskkill", "/F", "/T", "/PID", str(pid)], check=False, capture_output=True)  # noqa: S607


_spawner = ServiceThread("llmsession-spawner")


def submit(job: Callable[[], None], on_failure: Callable[[BaseException], None]) -> None:
    """Run `job` in the thread that starts children. Raises BackendError if that thread cannot be started."""
    _spawner.submit(job, on_failure)


def _new_job() -> int:
    job: int | None = _kernel32.CreateJobObjectW(None, None)
    if not job:
        raise ctypes.WinError(ctypes.get_last_error())
    limits = _ExtendedLimits()
    limits.BasicLimitInformation.LimitFlags = _KILL_ON_JOB_CLOSE
    if not _kernel32.SetInformationJobObject(
        job, _EXTENDED_LIMIT_INFORMATION, ctypes.byref(limits), ctypes.sizeof(limits)
    ):
        error = ctypes.WinError(ctypes.get_last_error())
        _kernel32.CloseHandle(job)
        raise error
    return job
