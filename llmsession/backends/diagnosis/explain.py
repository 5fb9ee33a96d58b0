"""What can be known of an engine that has ended, and of the machine, put into the error of its owner."""

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

# The cause stands above the usage of a flag, or a trace of Python's: what an error shows is too short to hold it.
LINES = 300


def explain_failure(
    error: StartFailedError | StartTimeoutError, backend: str, child: Child, launch: Launch
) -> LLMSessionError | None:
    """A better error than the child's own; None if there is none."""
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
    """How the process of an endpoint ended that was ready: a sentence, without its full stop."""
    child = endpoint.child
    assert child is not None  # noqa: S101 - only what is ours can end
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
    """Where it is our own files that could not be made, and not the program that could not be run."""
    if not str(error.filename or "").startswith(str(launch.logs)):
        return None
    return ConfigError(
        f"cannot write the log into {launch.logs} ({error.strerror}): name another folder with cache_dir= or "
        "LLMSESSION_CACHE_DIR"
    )


def _try_writing(folder: Path) -> OSError | None:
    """Whether a log could grow there: a full disk, a quota or a limit of the user's shows only when it is tried."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(LEAST_DISK))
            file.flush()
    except OSError as error:
        return error
    return None
