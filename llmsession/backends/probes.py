"""Probes for the readiness of an engine: by its child mode, by the address in its log, or by /health.

In child mode, llama-server prints a line for each state on stdout and reads an order to exit on stdin; embedded_child
uses the same protocol. https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README-dev.md
A port chosen beforehand may be taken by the time it is bound, so an address in the log is preferred to asking /health.
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


# Printed after loading; the only place that shows a port chosen by the kernel.
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
    """Reads the states from the child's output. A change of the loaded share, or any log output, counts as progress."""

    def __init__(self, log: LogFile, on_progress: Callable[[float], None] | None = None) -> None:
        self.base_url: str | None = None
        self._log = log
        self._on_progress = on_progress
        self._offset = 0
        self._loaded: float | None = None
        self._said_ready = False

    async def __call__(self) -> ProbeResult:
        """Check once, which takes a few microseconds of reading files."""
        # The HTTP client takes as long to import as a small model to load: do both at once.
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
            return  # not a state, or one of a future build
        if state.state == "ready":
            self._said_ready = True
            if state.payload is not None and state.payload.url is not None:
                self.base_url = state.payload.url
        elif state.payload is not None and state.payload.value is not None:
            self._loaded = state.payload.value
            if self._on_progress is not None:
                self._on_progress(self._loaded)


def find_address(log: bytes) -> str | None:
    """Return the URL at which the engine listens, from its log; None if it is not there."""
    found = _LISTENING.search(log)
    return found.group(1).decode() if found else None


# The line of llama-server, of llamafile, and of uvicorn.
_ANNOUNCED = re.compile(rb"(?:listening (?:on|at)|Uvicorn running on) (http://127\.0\.0\.1:[1-9]\d*)")


# Seconds for one request to a server that has just started to listen.
LOOK_TIMEOUT = 1.0


class AnnouncedPort:
    """Ready when the log names an address whose /health answers 200. Any log output counts as progress."""

    def __init__(self, log: LogFile) -> None:
        self.base_url: str | None = None
        self.log = log
        self._address: str | None = None

    async def __call__(self) -> ProbeResult:
        """Check once. No address, a refused connection, 503, and no answer within a second all mean: not ready yet."""
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
    """For builds without child mode: ready when /health answers 200. Any log output counts as progress."""

    def __init__(self, log: LogFile, base_url: str) -> None:
        self.base_url: str | None = base_url
        self._address = base_url
        self._log = log

    async def __call__(self) -> ProbeResult:
        """Check once. A refused connection, 503, and no answer within a second all mean: not ready yet."""
        from llmsession.wire.http import HttpClient

        status = 0
        with contextlib.suppress(LLMSessionError):
            status = await HttpClient(self._address).get_status("/health", timeout=1.0)
        return ProbeResult(ready=status == 200, progress=self._log.size())


def find_free_port() -> int:
    """Return a port on loopback that is free now. It may be taken by the time a server binds it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
