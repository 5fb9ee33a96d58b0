"""Explains why an engine failed or exited, from its process, its log and the state of the machine."""

from __future__ import annotations

import tempfile
from pathlib import Path

from llmsession.backends.diagnosis.causes import Death, describe_death, explain_start
from llmsession.backends.diagnosis.preflight import LEAST_DISK
from llmsession.backends.endpoint import Endpoint
from llmsession.backends.launch import Launch
from llmsession.backends.machine import free_memory
from llmsession.processes.child import Child
from llmsession.types.errors import ConfigError, LLMSessionError, StartFailedError, StartTimeoutError

# Lines of the log to search: the cause comes before a flag's usage or a Python traceback, and the shorter tail that an
# error shows may not contain it.
LINES = 300


def explain_failure(
    error: StartFailedError | StartTimeoutError, backend: str, child: Child, launch: Launch
) -> LLMSessionError | None:
    """Return a better error than that of the child; None if there is none."""
    if isinstance(error.__cause__, OSError) and (better := _explain_writing(error.__cause__, launch)) is not None:
        return better
    if (refused := _try_writing(launch.logs)) is not None:
        return StartFailedError(
            f"{backend} could not write its log into {launch.logs} ({refused.strerror}): make room there, or name "
            "another folder with cache_dir=",
            returncode=child.returncode,
            log_tail=error.log_tail,
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


def describe_end(endpoint: Endpoint) -> str:
    """Describe how the process of a ready endpoint exited: a sentence without its full stop."""
    child = endpoint.child
    assert child is not None  # noqa: S101 - only called for a process of the session
    if child.was_killed:
        return f"{endpoint.backend} {child.last_deed} while it replied"
    return describe_death(
        child.returncode,
        child.log.tail(),
        endpoint.launch,
        backend=endpoint.backend,
        memory_kills=child.memory_kills,
    )


def _explain_writing(error: OSError, launch: Launch) -> LLMSessionError | None:
    """Return the error if it was the log that could not be written, and not the program that could not be run."""
    if not str(error.filename or "").startswith(str(launch.logs)):
        return None
    return ConfigError(
        f"cannot write the log into {launch.logs} ({error.strerror}): name another folder with cache_dir= or "
        "LLMSESSION_CACHE_DIR"
    )


def _try_writing(folder: Path) -> OSError | None:
    """Try to write to the folder; return the error, if any. Only this shows a full disk, a quota or a user's limit."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(LEAST_DISK))
            file.flush()
    except OSError as error:
        return error
    return None
