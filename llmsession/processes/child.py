"""Child: one process from spawn to reaping.

    new → starting → ready → stopping → stopped
              └────────┴→ failed

It holds no task and no cancel scope: a thread attends the process, another climbs the signal ladder, so that any task
of any event loop may close it and a loop that dies in the middle changes nothing.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import anyio
import msgspec

from llmsession.processes import lifetime
from llmsession.processes.cgroups import count_memory_kills
from llmsession.processes.logfile import LogFile
from llmsession.processes.readiness import NotReadyError, Probe, await_ready
from llmsession.system.latch import Latch
from llmsession.system.service_thread import start_thread
from llmsession.types.errors import BackendError, ClosedError, ConfigError, StartFailedError, StartTimeoutError

# Closed stdin, or a second SIGTERM, ends it in 20 ms; whoever ignores that as well is killed.
INSIST_GRACE = 0.2
# For the kernel to end a process that was killed. One that it cannot end (it hangs in a driver) goes on without us: the
# attending thread still waits for it.
KILL_GRACE = 0.2
# The rest of it, 1.1 s, is for a server that was asked to end: it does so in 1.0 s at the latest (LLAMA_SERVER F1).
CLOSE_BOUND = 1.5

_log = logging.getLogger("llmsession.processes")


class State(enum.StrEnum):
    """The state of a child. `STOPPED`: it was asked to end. `FAILED`: it was not."""

    NEW = "new"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """What to run. `watches_stdin`: it ends by itself when its stdin is closed.

    `greeting` is written to its stdin first. `farewell` is the line that asks it to end; without one, SIGTERM does.
    """

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    watches_stdin: bool = False
    greeting: bytes = b""
    farewell: bytes | None = None


class Child:
    """One process. It is started once, and closed any number of times, from anywhere and in any state."""

    def __init__(self, command: Command, log: LogFile, *, records: Path | None = None) -> None:
        self.command = command
        self.log = log
        self.exited = Latch()
        self.returncode: int | None = None
        # How many processes the kernel killed for lack of memory while this one ran, where it can be known.
        self.memory_kills = 0
        self._memory_kills_before: int | None = None
        self._records = records
        self._lock = threading.Lock()
        self._state = State.NEW
        self._ends_as = State.STOPPED
        self._process: lifetime.OwnedProcess | None = None
        self._owner_pid = 0
        self._record_lock = threading.Lock()  # apart from the other, which nobody holds while a file is written
        self._record: Path | None = None
        self._note: dict[str, str] = {}
        self._spawn_error: BaseException | None = None
        self._killed_because: str | None = None

    @property
    def state(self) -> State:
        """The current state."""
        return self._state

    @property
    def pid(self) -> int | None:
        """The process id; None if it is not running."""
        return self._process.pid if self._process is not None and not self.exited.is_set() else None

    async def start(self, probe: Probe, *, timeout: float) -> None:
        """Spawn the process and wait until `probe` reports that it is ready.

        It fails after `timeout` seconds without progress. If this raises or is cancelled, the process is gone. Raises
        StartFailedError, StartTimeoutError, and ClosedError if it was closed meanwhile.
        """
        with self._lock:
            if self._state is not State.NEW:
                raise ClosedError(f"{self.command.name} was started or closed before")
            self._state = State.STARTING
            self._owner_pid = os.getpid()
        try:
            lifetime.submit(self._spawn, self._note_failure)
        except BackendError as error:
            self._note_failure(error)
            raise StartFailedError(
                f"{self.command.name} cannot be started: {error}", returncode=None, log_tail=""
            ) from error
        try:
            is_ready = await await_ready(probe, self.exited, timeout=timeout)
            with self._lock:
                if is_ready and self._state is State.STARTING:
                    self._state = State.READY
                    return
        except NotReadyError:
            await self._give_up()
            raise StartTimeoutError(
                f"{self.command.name} showed no progress for {timeout:g} s while starting, and was ended: "
                f"give it more time with start_timeout=, or look into {self.log.path}",
                log_tail=self.log.tail(),
            ) from None
        except BaseException:
            await self._give_up()
            raise
        await self._give_up()
        raise self._start_error()

    def _start_error(self) -> Exception:
        if self._state is State.STOPPED:
            return ClosedError(f"{self.command.name} was closed while it was starting")
        if self._spawn_error is not None:
            return _describe_spawn_error(self.command, self._spawn_error)
        tail = self.log.tail()
        return StartFailedError(
            f"{self.command.name} {describe_exit(self.returncode)} before it was ready: "
            f"{_last_line(tail)} (all it said is in {self.log.path})",
            returncode=self.returncode,
            log_tail=tail,
        )

    async def _give_up(self) -> None:
        """End the process after a failed start: shielded and bounded."""
        self._request_stop(as_state=State.FAILED, within=CLOSE_BOUND)
        await self._wait_for_exit(CLOSE_BOUND)

    def request_stop(self, *, within: float = CLOSE_BOUND) -> None:
        """Have the process ended within so many seconds, without waiting. Thread-safe; never blocks."""
        self._request_stop(as_state=State.STOPPED, within=within)

    async def aclose(self, *, within: float = CLOSE_BOUND) -> None:
        """End the process and wait for its exit: shielded, at most `within` seconds, in any state and event loop."""
        self.request_stop(within=within)
        await self._wait_for_exit(within)

    async def _wait_for_exit(self, seconds: float) -> None:
        with anyio.move_on_after(seconds, shield=True):
            await self.exited.wait()

    def end_at_exit(self) -> None:
        """Kill the process while the interpreter exits, without starting a thread. Waits a moment for its exit."""
        with self._lock:
            process = self._process if self._owner_pid == os.getpid() else None
            self._state = State.STOPPING if process is not None else self._state
        if process is not None and not self.exited.is_set():
            process.kill()
            self.exited.wait_blocking(INSIST_GRACE)

    def kill(self, why: str) -> None:
        """Kill the process at once, as failed. `why`: what it did, for error messages. Thread-safe; never blocks."""
        with self._lock:
            if self._state is not State.READY or self._process is None or self._owner_pid != os.getpid():
                return
            self._state, self._ends_as, process = State.STOPPING, State.FAILED, self._process
            self._killed_because = why
        process.kill()

    @property
    def was_killed(self) -> bool:
        """Whether `kill` ended it."""
        return self._killed_because is not None

    @property
    def last_deed(self) -> str:
        """How the process ended, as the end of a sentence that starts with its name."""
        return self._killed_because or describe_exit(self.returncode)

    def _request_stop(self, *, as_state: State, within: float) -> None:
        with self._lock:
            if self._state in (State.STOPPING, State.STOPPED, State.FAILED):
                return
            was, self._state = self._state, State.STOPPING
            self._ends_as = as_state
            process = self._process
            if was is State.NEW or self._owner_pid != os.getpid():
                # Never started; or we are a forked copy of its owner: the process is not ours to end, and no thread
                # of ours attends it.
                self._state, process = State.STOPPED, None
                self.exited.set()
        if process is not None:
            ask_grace = max(0.0, within - INSIST_GRACE - KILL_GRACE)
            # One that is still starting has nothing to put away.
            self._climb_in_thread(process, ask_grace if was is State.READY else None)

    def _spawn(self) -> None:
        """Spawn the process, in the spawning thread. From here on, the attending thread handles its exit.

        Whatever this raises, `_note_failure` is called with it.
        """
        if self._state is not State.STARTING:  # closed before it began
            self._finish(None)
            return
        self._memory_kills_before = count_memory_kills()
        try:
            stdout, stderr = self.log.open()
            try:
                process = lifetime.OwnedProcess.spawn(
                    self.command.argv,
                    self.command.env,
                    stdout=stdout,
                    stderr=stderr,
                    watches_stdin=self.command.watches_stdin,
                )
            finally:
                os.close(stdout)
                os.close(stderr)
        except OSError as error:
            self._note_failure(error)
            return
        with self._lock:
            self._process = process
            stop_now = self._state is not State.STARTING
        try:
            start_thread(partial(self._attend, process), f"llmsession-attend-{process.pid}")
        except BackendError:
            process.kill()
            process.wait()
            raise
        if stop_now:
            self._climb_in_thread(process, None)

    def _note_failure(self, error: BaseException) -> None:
        """Note that the process was not spawned, or is gone already."""
        self._spawn_error = error
        self._finish(None)

    def annotate(self, note: Mapping[str, str]) -> None:
        """Add to the record what other programs of this user may need, such as the address."""
        with self._record_lock:
            self._note = dict(note)
            if self._record is not None and self._process is not None:
                self._write_record(self._process.pid)

    def _write_record(self, pid: int) -> None:
        """Write the record, holding its lock, so that none is written after the exit."""
        if self._records is not None:
            from llmsession.processes.records import write_record

            written = write_record(self._records, pid, name=self.command.name, log=self.log.path, note=self._note)
            self._record = written or self._record  # what could not be written again is still there to be removed

    def _attend(self, process: lifetime.OwnedProcess) -> None:
        """Wait for the exit of the process, and note it, whatever happens to its record."""
        returncode: int | None = None
        try:
            self._note_start(process)
        finally:
            try:
                returncode = process.wait()
                self._note_end()
            finally:
                self._finish(returncode)

    def _note_start(self, process: lifetime.OwnedProcess) -> None:
        try:
            # Here and not in the spawner: a child that reads nothing would block that for everybody.
            if self.command.greeting:
                process.write_line(self.command.greeting)
            with self._record_lock:
                self._write_record(process.pid)
            if self._records is not None:
                from llmsession.processes.records import clear_leftovers

                clear_leftovers(self._records)
        except Exception:  # noqa: BLE001 - nothing about records may keep the process's end from being noted
            _log.exception("the record of %s, or those of others, could not be handled", self.command.name)

    def _note_end(self) -> None:
        try:
            if (before := self._memory_kills_before) is not None:
                self.memory_kills = (count_memory_kills() or before) - before
            with self._record_lock, contextlib.suppress(OSError):
                record, self._record = self._record, None
                if record is not None:
                    record.unlink()
        except Exception:  # noqa: BLE001 - the same
            _log.exception("the end of %s could not be noted", self.command.name)

    def _finish(self, returncode: int | None) -> None:
        with self._lock:
            self.returncode = returncode
            self._state = self._ends_as if self._state is State.STOPPING else State.FAILED
        self.exited.set()

    def _climb_in_thread(self, process: lifetime.OwnedProcess, ask_grace: float | None) -> None:
        try:
            start_thread(partial(self._climb, process, ask_grace), f"llmsession-stop-{process.pid}")
        except BackendError:
            process.kill()  # there is no thread that could ask it first

    def _climb(self, process: lifetime.OwnedProcess, ask_grace: float | None) -> None:
        """The ladder: ask, insist, kill. Without `ask_grace`, which is in seconds, kill at once."""
        if ask_grace is not None:
            if self.command.farewell is not None:
                # In a thread: one that reads nothing would keep the ladder from going on.
                say = partial(process.write_line, self.command.farewell)
                with contextlib.suppress(BackendError):
                    start_thread(say, f"llmsession-farewell-{process.pid}")
            else:
                process.terminate()
            if self.exited.wait_blocking(ask_grace):
                return
            process.close_stdin()
            process.terminate()
            if self.exited.wait_blocking(INSIST_GRACE):
                return
        process.kill()


def _describe_spawn_error(command: Command, cause: BaseException) -> Exception:
    error: Exception
    if isinstance(cause, ValueError):  # a NUL, half a surrogate pair
        error = ConfigError(f"an argument or variable for {command.name} cannot be passed to a program: {cause}")
    else:
        why = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause) or type(cause).__name__
        error = StartFailedError(f"cannot start {command.argv[0]}: {why}", returncode=None, log_tail="")
    error.__cause__ = cause
    return error


def describe_exit(returncode: int | None) -> str:
    """Describe an exit code in words."""
    if returncode is None:
        return "ended"
    if returncode < 0:
        import signal

        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(-returncode).name}"
    return f"ended with exit code {returncode}"


def _last_line(tail: str) -> str:
    lines = [line.strip() for line in tail.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
