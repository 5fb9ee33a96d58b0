"""What is known of a machine on which a start has just failed, and the error that it makes of the child's."""

from __future__ import annotations

import contextlib
import errno
import os

from llmsession.backends.backend import Launch
from llmsession.backends.devices import free_memory
from llmsession.backends.diagnosis import Death, explain_start
from llmsession.errors import ConfigError, LLMSessionError, StartFailedError, StartTimeoutError
from llmsession.processes.child import Child

# The cause stands above the usage of a flag, or a trace of Python's: what an error shows is too short to hold it.
LINES = 300
# With less than this the files of a start cannot be written.
LEAST_DISK = 64 * 1024


def explain_failure(
    error: StartFailedError | StartTimeoutError, backend: str, child: Child, launch: Launch
) -> LLMSessionError | None:
    """A better error than the child's own; None where there is none."""
    if isinstance(error.__cause__, OSError) and (better := _explain_writing(error.__cause__, launch)) is not None:
        return better
    if _is_disk_full(launch):
        message = f"the disk of {launch.logs} is full, so that {backend} could not write its log: make room there, or "
        return StartFailedError(
            message + "name another folder with cache_dir=", returncode=child.returncode, log_tail=error.log_tail
        )
    if isinstance(error, StartTimeoutError):
        return None
    death = Death(
        backend=backend,
        returncode=error.returncode,
        words=child.log.tail(LINES),
        free_bytes=free_memory(),
        memory_kills=child.memory_kills,
    )
    better = explain_start(death, launch, log=child.log.path)
    if isinstance(better, StartFailedError):
        better.log_tail = error.log_tail
    return better


def _explain_writing(error: OSError, launch: Launch) -> LLMSessionError | None:
    """Where it is our own files that could not be made, and not the program that could not be run."""
    if not str(error.filename or "").startswith(str(launch.logs)):
        return None
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StartFailedError(
            f"the disk of {launch.logs} is full: make room there, or name another folder with cache_dir=",
            returncode=None,
            log_tail="",
        )
    return ConfigError(
        f"cannot write the log into {launch.logs} ({error.strerror}): name another folder with cache_dir= or "
        "LLMSESSION_CACHE_DIR"
    )


def _is_disk_full(launch: Launch) -> bool:
    if hasattr(os, "statvfs"):
        with contextlib.suppress(OSError):
            room = os.statvfs(launch.logs)
            return room.f_bavail * room.f_frsize < LEAST_DISK
    return False
