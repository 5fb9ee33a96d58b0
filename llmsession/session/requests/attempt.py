"""Attempt: the source of a session's reply. It waits for a slot, makes sure that the server is ready, and prompts it.

If the server exits in the middle of the reply, it is restarted and asked for the rest.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from llmsession.session.requests.scheduler import Scheduler, Ticket
from llmsession.system.latch import Latch
from llmsession.types.errors import BadRequestError, LLMSessionError, ProtocolError, TransportError
from llmsession.wire.decoder import Unopened

if TYPE_CHECKING:
    from llmsession.backends.endpoint import Endpoint
    from llmsession.session.kv.cache import CachedTurn, KvCache
    from llmsession.session.requests.completion import Request, WireRequest
    from llmsession.session.server.server import Server
    from llmsession.types.completion import Completion
    from llmsession.wire.body import ByteStream
    from llmsession.wire.decoder import EventDecoder
    from llmsession.wire.resume import Delivered


class Attempt:
    """The attempts at one reply, from its place in the queue until its slot is free again."""

    def __init__(
        self,
        server: Server,
        scheduler: Scheduler,
        call: Request,
        *,
        kv: KvCache | None = None,
        turn: CachedTurn | None = None,
    ) -> None:
        self.decoder: EventDecoder = Unopened()
        self._kv = kv
        self._turn = turn
        self.neutralized = 0
        self.restarts = 0
        self.model = server.model.name
        self._server = server
        self._scheduler = scheduler
        self._call = call
        self._ticket: Ticket | None = None
        self._endpoint: Endpoint | None = None

    @property
    def queue_position(self) -> int | None:
        """How many requests are in front of this one while it waits for a slot; None otherwise."""
        return self._scheduler.position(self._ticket) if self._ticket is not None else None

    async def open(self, mark_sent: Callable[[], None]) -> ByteStream:
        """Wait for a slot and for the server to be ready, then send the request."""
        granted = Latch()
        self._ticket = self._scheduler.acquire(granted.set)
        if not self._ticket.is_granted:
            await granted.wait()
        return await self._connect(self._begin, mark_sent)

    async def _begin(self, endpoint: Endpoint) -> WireRequest:
        request = await self._call.build(endpoint)
        self.neutralized = request.neutralized
        return request

    async def _connect(
        self, make: Callable[[Endpoint], Awaitable[WireRequest]], mark_sent: Callable[[], None]
    ) -> ByteStream:
        """Send the request, again each time that the server exits before it answers and may be restarted."""
        while True:
            self._endpoint = endpoint = await self._server.ensure_ready()
            mark_sent()
            try:
                request = await make(endpoint)
                stream = await self._send(endpoint, request)
            except (TransportError, ProtocolError) as error:
                if not await self.is_engine_failure(error):
                    raise
                self.restarts += 1
            else:
                self.decoder = request.decoder
                return stream

    async def _send(self, endpoint: Endpoint, request: WireRequest) -> ByteStream:
        def send() -> Awaitable[ByteStream]:
            return endpoint.client.open_stream(request.path, request.body)

        if request.optional:
            return await _send_what_is_taken(endpoint, request)
        return await (send() if self._kv is None else self._kv.send(endpoint, self._turn, send))

    async def is_engine_failure(self, error: LLMSessionError) -> bool:
        """Whether the error means that the server has exited, and may be restarted for this reply."""
        return (
            isinstance(error, TransportError | ProtocolError)
            and not isinstance(error, TimeoutError)
            and self._endpoint is not None
            and await self._server.has_exited_soon(self._endpoint)
            and self._server.may_start_again(self.restarts)
        )

    async def resume(self, error: LLMSessionError, delivered: Delivered, mark_sent: Callable[[], None]) -> ByteStream:
        """Restart the server and return the rest of the reply that `error` cut off.

        If the server cannot continue the reply, it generates it again, and the delivered part is skipped.
        """
        cause = await self.diagnose(error)
        self.restarts += 1

        async def make(endpoint: Endpoint) -> WireRequest:
            from llmsession.wire.resume import ReplayDecoder

            if delivered.is_empty:
                return await self._begin(endpoint)
            # Bytes that were not UTF-8 are lost: what was said is not the text that arrived.
            is_exact = "\ufffd" not in delivered.text + delivered.reasoning
            if is_exact and (request := await self._call.resume(endpoint, delivered)) is not None:
                return request
            request = await self._call.build(endpoint)
            return replace(request, decoder=ReplayDecoder(request.decoder, delivered, cause))

        return await self._connect(make, mark_sent)

    def check_progress(self, *, has_begun: bool, give_up: Callable[[], None]) -> bool:
        """Called when no token has arrived for a while. Return whether the server is being checked.

        A server that hangs is killed by that check.
        """
        return self._endpoint is not None and self._server.check_progress(
            self._endpoint, has_begun=has_begun, give_up=give_up
        )

    def close(self, completion: Completion | None) -> None:
        """Free the slot at the end of the reply: at once, or after its KV has been saved. Called once."""
        ticket, self._ticket = self._ticket, None
        if ticket is not None:
            release = partial(self._scheduler.release, ticket)
            if self._kv is None:
                release()
            else:
                self._kv.end(self._endpoint, self._turn, self.decoder.slot, completion, release)
        self._server.rotate_log()

    async def diagnose(self, error: LLMSessionError) -> LLMSessionError:
        """Return what cut the connection: the engine's exit, if it has exited, else `error` itself."""
        if isinstance(error, TransportError | ProtocolError) and not isinstance(error, TimeoutError):
            return await self._server.diagnose(error, self._endpoint)
        return error


async def _send_what_is_taken(endpoint: Endpoint, request: WireRequest) -> ByteStream:
    """Send a request without the optional fields that the server refuses, now or earlier."""
    from llmsession.wire.openai_api import omit_fields

    client = endpoint.client
    while True:
        refused = request.optional & client.refused_fields
        body = omit_fields(request.body, refused) if refused else request.body
        try:
            return await client.open_stream(request.path, body)
        except BadRequestError as error:
            named = {name for name in request.optional - refused if name in str(error)}
            if not named:
                raise
            client.refused_fields |= named
