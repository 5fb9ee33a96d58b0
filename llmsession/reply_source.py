"""ReplySource: where a session's reply comes from. It waits for a slot, has the server ready, and asks it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from llmsession.admission import Admission, Ticket
from llmsession.errors import ConnectionLostError, LLMSessionError, ProtocolError, TransportError
from llmsession.latch import Latch

if TYPE_CHECKING:
    from llmsession.backends.backend import Endpoint
    from llmsession.remote_server import RemoteServer
    from llmsession.server import Server
    from llmsession.wire.http import ByteStream
    from llmsession.wire.reply import EventDecoder


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is sent, and what reads the answer. `neutralized`: see Completion."""

    path: str
    body: bytes
    decoder: EventDecoder
    neutralized: int = 0


# Makes the request for a server that is ready: what it looks like depends on the server's tokenizer.
Prepare: TypeAlias = "Callable[[Endpoint], Awaitable[Request]]"


def _nothing() -> None:
    """The default of a hook."""


class ReplySource:
    """For one reply. `on_open` and `on_over` are called when it begins to wait and when its slot is free again."""

    def __init__(
        self, server: Server | RemoteServer, admission: Admission, prepare: Prepare, *, decoder: EventDecoder
    ) -> None:
        self.decoder = decoder
        self.neutralized = 0
        self.model = server.model.name
        self.on_open: Callable[[], None] = _nothing
        self.on_over: Callable[[], None] = _nothing
        self._server = server
        self._admission = admission
        self._prepare = prepare
        self._ticket: Ticket | None = None

    @property
    def queue_position(self) -> int | None:
        """How many are in front, while it waits for a slot."""
        return self._admission.position(self._ticket) if self._ticket is not None else None

    async def open(self, mark_sent: Callable[[], None]) -> ByteStream:
        """Wait for a slot, have the server ready, send the request."""
        self.on_open()
        granted = Latch()
        self._ticket = self._admission.enter(granted.set)
        await granted.wait()
        endpoint = await self._server.ensure_ready()
        mark_sent()
        try:
            return await self._ask(endpoint)
        except ConnectionLostError:
            if not await self._server.has_died(endpoint):
                raise
        # It died before it had answered, perhaps before we asked. Nothing was delivered: the same request again, once.
        endpoint = await self._server.ensure_ready()
        mark_sent()
        return await self._ask(endpoint)

    async def _ask(self, endpoint: Endpoint) -> ByteStream:
        request = await self._prepare(endpoint)
        self.decoder, self.neutralized = request.decoder, request.neutralized
        return await endpoint.client.open_stream(request.path, request.body)

    def close(self) -> None:
        """The reply is over: the slot is free. Called once."""
        ticket, self._ticket = self._ticket, None
        if ticket is not None:
            self._admission.leave(ticket)
        self._server.rotate_log()
        self.on_over()

    async def explain(self, error: LLMSessionError) -> LLMSessionError:
        """What cut the connection, where it was the engine's death."""
        if isinstance(error, TransportError | ProtocolError) and not isinstance(error, TimeoutError):
            return await self._server.explain(error)
        return error
