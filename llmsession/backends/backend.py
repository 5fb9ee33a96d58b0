"""Backend: the protocol of everything that starts an engine and returns its Endpoint."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from llmsession.backends.endpoint import Endpoint
from llmsession.backends.launch import Launch
from llmsession.processes.child import Child


class Backend(Protocol):
    """One kind of engine that can be started."""

    name: str

    def prepare(self, launch: Launch, child_started: Callable[[Child], None]) -> Awaitable[Endpoint]:
        """Start an engine and wait until it is ready. `child_started` gets each child before it is spawned."""
        ...
