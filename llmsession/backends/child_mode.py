"""llama-server's protocol between a router and its children, which we use as the parent: states out, orders in.

On stdout it prints a line for each state; on stdin it reads an order to exit, and ends when stdin is closed. Our own
embedded server speaks the same. https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README-dev.md
"""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec

from llmsession.processes.logfile import LogFile
from llmsession.processes.readiness import Reading

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

    async def __call__(self) -> Reading:
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
        return Reading(
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
