"""Readiness of an engine: by its child mode, by the address in its log, or by /health.

In child mode llama-server prints a line for each state on stdout and reads an order to exit on stdin; our embedded
child speaks the same. https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README-dev.md
A port that we chose may be taken by the time it is bound, so a log that names the address is believed before /health.
"""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Callable

import msgspec

from llmsession.processes.logfile import LogFile
from llmsession.processes.readiness import ProbeResult
from llmsession.types.errors import LLMSessionError

STATE = b"cmd_child_to_router:state:"


EXIT = b"cmd_router_to_child:exit\n"


# Printed after loading; the only place that names a port which the kernel chose.
_LISTENING = re.compile(rb"listening on (http://\S+)")


class _Payload(msgspec.Struct):
    value: float | None = None
    current: str | None = None
    url: str | None = None


class _State(msgspec.Struct):
    state: str
    payload: _Payload | None = None


_decode_state = msgspec.json.Decoder(_State).decode


class ChildModeProbe:
    """Reads the states from the child's files. Progress is the share that is loaded, or any word in the log."""

    def __init__(self, log: LogFile, on_progress: Callable[[float], None] | None = None) -> None:
        self.base_url: str | None = None
        self._log = log
        self._on_progress = on_progress
        self._offset = 0
        self._loaded: float | None = None
        self._said_ready = False

    async def __call__(self) -> ProbeResult:
        """One look; a few microseconds of file reading."""
        # The client takes as long to import as a small model to load: do both at once.
        import llmsession.wire.http  # noqa: F401

        data = self._log.read_out(self._offset)
        complete = data.rpartition(b"\n")[0]
        for line in complete.splitlines():
            if line.startswith(STATE):
                self._take(line[len(STATE) :])
        self._offset += len(complete)
        if self._said_ready and self.base_url is None:
            self.base_url = find_address(self._log.read_log())
        return ProbeResult(
            ready=self._said_ready and self.base_url is not None,
            progress=(self._loaded, self._log.size()),
        )

    def _take(self, line: bytes) -> None:
        try:
            state = _decode_state(line)
        except msgspec.DecodeError:
            return  # not for us, or a state of a build to come
        if state.state == "ready":
            self._said_ready = True
            if state.payload is not None and state.payload.url is not None:
                self.base_url = state.payload.url
        elif state.payload is not None and state.payload.value is not None:
            self._loaded = state.payload.value
            if self._on_progress is not None:
                self._on_progress(self._loaded)


def find_address(log: bytes) -> str | None:
    """Where the engine listens, by its log."""
    found = _LISTENING.search(log)
    return found.group(1).decode() if found else None


# llama-server's words, llamafile's and uvicorn's.
_ANNOUNCED = re.compile(rb"(?:listening (?:on|at)|Uvicorn running on) (http://127\.0\.0\.1:[1-9]\d*)")


# One look at a server that has just begun to listen.
LOOK_TIMEOUT = 1.0


class AnnouncedPort:
    """Ready when the log names an address and /health there answers 200, whatever it says. Progress is any word."""

    def __init__(self, log: LogFile) -> None:
        self.base_url: str | None = None
        self.log = log
        self._address: str | None = None

    async def __call__(self) -> ProbeResult:
        """One look; no address yet, refused, 503 and no answer within a second all mean: not yet."""
        progress = self.log.size()
        if self._address is None:
            said = self.log.read_out(0) + self.log.read_log()
            if (found := _ANNOUNCED.search(said)) is not None:
                self._address = found[1].decode()
        if self._address is None:
            return ProbeResult(progress=progress)
        from llmsession.wire.http import HttpClient

        status = 0
        with contextlib.suppress(LLMSessionError):
            status = await HttpClient(self._address).get_status("/health", timeout=LOOK_TIMEOUT)
        if status == 200:
            self.base_url = self._address
        return ProbeResult(ready=self.base_url is not None, progress=progress)


class HealthProbe:
    """For builds without child mode: ready when /health says so. Progress is any word in the log."""

    def __init__(self, log: LogFile, base_url: str) -> None:
        self.base_url: str | None = base_url
        self._address = base_url
        self._log = log

    async def __call__(self) -> ProbeResult:
        """One question; refused, 503 and no answer within a second all mean: not yet."""
        from llmsession.wire.http import HttpClient

        status = 0
        with contextlib.suppress(LLMSessionError):
            status = await HttpClient(self._address).get_status("/health", timeout=1.0)
        return ProbeResult(ready=status == 200, progress=self._log.size())


def find_free_port() -> int:
    """One on loopback that is free now; by the time a server binds it, it may be taken."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
