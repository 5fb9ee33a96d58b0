"""Readiness of a server that chooses its port itself and names it in its log: then it is asked, at that address alone.

A free port that we chose may be somebody else's by the time it is bound, and llamafile then quietly takes the next one:
only the log says whose /health it is.
"""

from __future__ import annotations

import contextlib
import re

from llmsession.errors import LLMSessionError
from llmsession.processes.logfile import LogFile
from llmsession.processes.readiness import Reading

# llama-server's words, llamafile's and uvicorn's.
_LISTENING = re.compile(rb"(?:listening (?:on|at)|Uvicorn running on) (http://127\.0\.0\.1:[1-9]\d*)")

# One look at a server that has just begun to listen.
LOOK_TIMEOUT = 1.0


class AnnouncedProbe:
    """Ready when the log names an address and /health there answers 200, whatever it says. Progress is any word."""

    def __init__(self, log: LogFile) -> None:
        self.base_url: str | None = None
        self.log = log
        self._address: str | None = None

    async def __call__(self) -> Reading:
        """One look; no address yet, refused, 503 and no answer within a second all mean: not yet."""
        progress = self.log.size()
        if self._address is None:
            said = self.log.read_out(0) + self.log.read_log()
            if (found := _LISTENING.search(said)) is not None:
                self._address = found[1].decode()
        if self._address is None:
            return Reading(progress=progress)
        from llmsession.wire.http import HttpClient

        status = 0
        with contextlib.suppress(LLMSessionError):
            status = await HttpClient(self._address).get_status("/health", timeout=LOOK_TIMEOUT)
        if status == 200:
            self.base_url = self._address
        return Reading(ready=self.base_url is not None, progress=progress)
