"""The Backend protocol, the Endpoint that it gives, and what all backends share: environment and start."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from llmsession.backends.endpoint import Endpoint
from llmsession.backends.launch import Launch
from llmsession.processes.child import Child


class Backend(Protocol):
    """One way to have a server."""

    name: str

    def prepare(self, launch: Launch, child_started: Callable[[Child], None]) -> Awaitable[Endpoint]:
        """Start one and wait until it is ready. `child_started` learns of each child before it is spawned."""
        ...
