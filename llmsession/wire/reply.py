"""ReplyStream: the reply to one request. Iterate it, then ask it for the Completion.

    Session.prompt ── ReplyStream ── Attempt (Source)    waits for a slot, has the server ready, builds the request
                          │              └── HttpClient.open_stream ── the body, as bytes
                          ├── sse.Decoder                bytes → payloads
                          ├── EventDecoder               payload → deltas, and the end (one decoder for each API)
                          ├── Accumulator                deltas → Completion
                          └── Timeouts ── watchdog       first token, idle, total

A server that dies in the middle is a pause: the source has it restarted, and the reply continues after what was
delivered.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol, Self

import msgspec

from llmsession.types.completion import Completion, StopReason, Timings, Usage
from llmsession.types.errors import ContextOverflowError, LLMSessionError, TruncatedReplyError, UndecodableError
from llmsession.types.events import Delta, Ended, Event, Finished, TextDelta
from llmsession.wire.accumulator import Accumulator
from llmsession.wire.body import ByteStream
from llmsession.wire.decoder import EventDecoder
from llmsession.wire.http import map_error
from llmsession.wire.lean_httpx import httpx
from llmsession.wire.readable import ActiveReplies, Readable
from llmsession.wire.request import GenerationRequest
from llmsession.wire.resume import Delivered, TokenLimitReachedError
from llmsession.wire.server_errors import decode_error_frame
from llmsession.wire.sse import Decoder
from llmsession.wire.timeouts import Timeouts, TimeoutSettings


class Source(Protocol):
    """Where a reply comes from: the part that the session knows and this room does not."""

    decoder: EventDecoder
    model: str
    neutralized: int
    restarts: int

    async def open(self, mark_sent: Callable[[], None]) -> ByteStream:
        """Wait for a slot and for the server to be ready, call `mark_sent`, and send the request."""
        ...

    async def is_engine_failure(self, error: LLMSessionError) -> bool:
        """Whether the error means that the server has exited and may be restarted for this reply."""
        ...

    async def resume(self, error: LLMSessionError, delivered: Delivered, mark_sent: Callable[[], None]) -> ByteStream:
        """Return the rest of the reply, after the server was restarted."""
        ...

    def check_progress(self, *, has_begun: bool, give_up: Callable[[], None]) -> bool:
        """Called when no token has come for long. Return whether the server is being checked.

        `give_up` is called if it is hopeless.
        """
        ...

    def close(self, completion: Completion | None) -> None:
        """Free the slot at the end of the reply. `completion` is set if the reply is whole."""

    async def diagnose(self, error: LLMSessionError) -> LLMSessionError:
        """Return the cause of a lost connection if a better one is known, else the error itself."""
        ...

    @property
    def queue_position(self) -> int | None:
        """How many requests are in front of this one while it waits for a slot; None otherwise."""
        ...


class ReplyStream(Readable):
    """A reply as it arrives: use it in `async with`, iterate it for text or `events()`, then `await result()`.

    `cancel()` and the session's `interrupt()` end it with the text so far. Leaving the block frees its slot at once.
    """

    def __init__(
        self,
        source: Source,
        request: GenerationRequest,
        *,
        id: str,
        timeouts: TimeoutSettings,
        active: ActiveReplies,
    ) -> None:
        super().__init__(active)
        self._id = id
        self._source = source
        self._request = request
        self._body: ByteStream | None = None
        self._sse = Decoder()
        self._pending: deque[Event] = deque()
        self._accumulator = Accumulator(id=id, model=source.model, seed=request.seed)
        self._delivered = Usage()
        # Weakly: the watchdog must not keep alive a reply that everybody else has forgotten.
        self._timeouts = Timeouts(timeouts, check=source.check_progress, end=weakref.WeakMethod(self.end))

    @property
    def id(self) -> str:
        """The reply's name in log lines."""
        return self._id

    @property
    def queue_position(self) -> int | None:
        """How many requests are in front of this one while it waits for a slot; None otherwise."""
        return self._source.queue_position

    async def __aenter__(self) -> Self:
        self._enter()
        self._timeouts.begin()
        try:
            await self._connect(lambda: self._source.open(self._timeouts.note_sent))
        except BaseException as error:
            self._leave()
            await self._close_body()
            if isinstance(error, LLMSessionError):
                self._fail(await self._source.diagnose(error))
            raise
        if self._request.reply_start and self._completion is None:
            self._accumulator.begin(self._request.reply_start)
            self._pending.append(TextDelta(text=self._request.reply_start))
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._leave()
        await self._close_body()
        if self._completion is None and self._error is None:
            self._completion = self._complete(StopReason.INTERRUPTED)

    def abandon(self) -> None:
        """Free the slot of a reply that nobody reads any more. Never blocks."""
        self._abandon()

    def _abandon(self) -> None:
        self._leave()
        self._cut()

    def _cut(self) -> None:
        if (body := self._body) is not None:
            body.abort()

    @property
    def partial(self) -> Completion:
        """The reply so far, as if it were interrupted now."""
        return self._complete(StopReason.INTERRUPTED)

    async def _connect(self, open_body: Callable[[], Awaitable[ByteStream]]) -> None:
        """Wait for the body until there is a verdict. Raises the verdict if it is an error."""

        async def wait() -> None:
            self._body = await open_body()

        self._timeouts.is_reading = True
        try:
            await self._until_verdict(wait)
        finally:
            self._timeouts.is_reading = False
        if self._verdict is not None:
            self._cut()
            self._conclude()
            if self._error is not None:
                raise self._error

    def _conclude(self) -> None:
        """Turn the verdict into the end of the reply."""
        verdict = self._verdict
        if isinstance(verdict, StopReason):
            self._finish(verdict)
        elif verdict is not None:
            self._fail_quietly(verdict)

    def _leave(self) -> None:
        with self._lock:
            if self._left:
                return
            self._left = True
        self._active.discard(self)
        self._timeouts.end()
        self._source.close(self._completion)

    async def _close_body(self) -> None:
        if self._body is not None:
            await self._body.aclose()

    async def _next(self) -> Event | None:
        """Return the next event, or None after the last."""
        while not self._pending:
            if self._error is not None:
                raise self._error
            if self._completion is not None:
                return None
            if self._left:
                self._check_inside()
            await self._read()
        return self._pending.popleft()

    async def _read(self) -> None:
        """Read one chunk and queue its events, or find the end.

        Called once per token, so there are no layers: a context manager here costs as much as decoding the token.
        """
        assert self._body is not None  # noqa: S101 - set by _open
        try:
            self._timeouts.is_reading = True
            try:
                chunk = await self._body.receive()
            except httpx.HTTPError as error:
                raise map_error(error, "the stream of a reply") from error
            finally:
                self._timeouts.is_reading = False
            if self._verdict is not None:
                self._conclude()
                return
            if chunk:
                self._take_payloads(self._sse.feed(chunk))
                return
            with contextlib.suppress(UndecodableError):  # it may have been cut anywhere
                self._take_payloads(self._sse.finish())
            if self._completion is not None:
                return
            if (ended := self._source.decoder.end()) is not None:
                self._take(ended)
            else:
                foreign = self._sse.foreign_line.decode(errors="replace")
                said = f"; the server sent {foreign!r}" if foreign else ""
                raise TruncatedReplyError(
                    f"the reply broke off: its stream ended without its end{said}. What came so far is in `partial`"
                )
        except LLMSessionError as error:
            if error is self._error:
                raise
            if self._verdict is not None:
                self._conclude()
            elif await self._source.is_engine_failure(error):
                await self._resume(error)
            else:
                self._fail(await self._source.diagnose(error))

    async def _resume(self, error: LLMSessionError) -> None:
        """Continue after the part that was delivered. The reader waits as for any token."""
        delivered = self._accumulator.delivered(self._delivered)
        self._timeouts.note_restart()
        await self._close_body()
        try:
            await self._connect(lambda: self._source.resume(error, delivered, self._timeouts.note_sent))
        except LLMSessionError as failure:
            if failure is self._error:
                raise
            is_full = isinstance(failure, ContextOverflowError) and not delivered.is_empty
            if not is_full and not isinstance(failure, TokenLimitReachedError):
                self._fail(failure)
            reason, usage = StopReason.LENGTH, self._delivered
            self._finish(reason, Ended(stop_reason=reason, context_full=is_full, usage=usage, timings=Timings()))
        self._sse = Decoder()

    def _take_payloads(self, payloads: list[bytes]) -> None:
        decoder = self._source.decoder
        for payload in payloads:
            for event in decoder.decode(payload):
                self._take(event)
            if decoder.error is not None:
                self._fail(decode_error_frame(decoder.error))
            if self._completion is not None:
                return

    def _take(self, event: Delta | Ended) -> None:
        if isinstance(event, Ended):
            self._take_end(event)
            return
        self._timeouts.note_progress()
        if type(event) is TextDelta and not event.text and not event.tokens:
            return  # a token whose text is held back
        self._accumulator.take(event)
        self._delivered = self._source.decoder.usage
        self._pending.append(event)

    def _take_end(self, end: Ended) -> None:
        if end.stop_phrase in self._request.own_stops:  # the encoding's end of a turn, not a phrase of the caller's
            end = msgspec.structs.replace(end, stop_reason=StopReason.END, stop_phrase=None)
        if end.stop_phrase and self._request.echo_stop:
            kept = TextDelta(text=end.stop_phrase, completion_tokens=end.usage.completion_tokens)
            self._accumulator.take(kept)
            self._pending.append(kept)
        self._finish(end.stop_reason, end)

    def _finish(self, reason: StopReason, end: Ended | None = None) -> None:
        with self._lock:
            self._completion = self._complete(reason, end)
        self._pending.append(Finished(completion=self._completion))

    def _fail(self, error: LLMSessionError) -> None:
        self._fail_quietly(error)
        raise error

    def _fail_quietly(self, error: LLMSessionError) -> None:
        if error.partial is None:
            error.partial = self._complete(StopReason.INTERRUPTED)
        self._error = error

    def _complete(self, reason: StopReason, end: Ended | None = None) -> Completion:
        return self._accumulator.complete(
            reason,
            end,
            usage=self._source.decoder.usage,
            first_token_seconds=self._timeouts.first_token_seconds,
            neutralized=self._source.neutralized,
            restarts=self._source.restarts,
        )
