"""ChatStream: the reply to one turn of a conversation, read like a ReplyStream, with every step saved to disk.

The user's turn is saved before the model is prompted, the reply is saved as it arrives, and again at its end. A call
with the key of a turn that is being answered reads that reply too, and takes it over if its reader leaves early; a key
that was answered before gets the stored reply. It holds no task and no cancel scope between two reads.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self

import anyio
import msgspec

from llmsession.chat.broadcast import Broadcast, find_running
from llmsession.chat.turn_record import TurnRecord
from llmsession.memory.conversation import Conversation, log_of
from llmsession.memory.turn import TurnState
from llmsession.types.completion import Completion, StopReason, Usage
from llmsession.types.errors import (
    ContextOverflowError,
    LLMSessionError,
    TotalTimeoutError,
    UnsupportedFeatureError,
    UsageError,
)
from llmsession.types.events import Event, Finished, ReasoningDelta, TextDelta
from llmsession.wire.readable import Readable

if TYPE_CHECKING:
    from llmsession.chat.context_window import Budget
    from llmsession.session.replies import Replies
    from llmsession.session.requests.settings import CallSettings
    from llmsession.types.messages import Message
    from llmsession.wire.reply import ReplyStream

# Seconds between two saves of a reply: a kill loses no more than this. Saving more often would slow down fast models.
CHECKPOINT_EVERY = 0.5

_numbers = itertools.count(1)


class ChatStream(Readable):
    """A reply as it arrives: `async with` it, iterate it for pieces of text or `events()`, then `await result()`.

    If it is left before its end, a turn with a key waits for the next call with that key; one without a key keeps the
    text so far.
    """

    def __init__(
        self,
        replies: Replies,
        conversation: Conversation,
        budget: Budget,
        *,
        message: Message | None,
        key: str | None,
        settings: CallSettings,
        model: str,
        note: Callable[[list[Message], Completion], None],
    ) -> None:
        super().__init__(replies.active)
        self._replies = replies
        self._model = model
        self._conversation = conversation
        self._log = log_of(conversation)
        self._budget = budget
        self._key = key
        self._record = TurnRecord(conversation, message, key)
        self._settings = settings
        self._note = note
        self._id = f"turn-{os.getpid()}-{next(_numbers)}"
        self._deadline = math.inf
        # What is read: the reply of another call, events that are known already, or the model's reply.
        self._heard: Broadcast | None = None
        self._heard_count = 0
        self._heard_text = ""
        self._known: deque[Event] = deque()
        self._inner: ReplyStream | None = None
        self._events: AsyncIterator[Event] | None = None
        self._stored: Completion | None = None  # the reply that the key got before, or through another call with it
        self._begun: Completion | None = None  # the partial reply that this one continues
        self._copy_name: str | None = None  # the name under which the conversation's KV is kept
        self._sent: list[Message] = []
        self._dropped: tuple[Message, ...] = ()
        self._written_at = 0.0
        # Characters that the current source has produced, and that the reader has received.
        self._said = 0
        self._given = 0

    @property
    def id(self) -> str:
        """The name in log lines: the reply's once the model is prompted, before that the turn's."""
        return self._inner.id if self._inner is not None else self._id

    @property
    def queue_position(self) -> int | None:
        """How many requests are in front of this one while it waits for a slot; None otherwise."""
        return self._inner.queue_position if self._inner is not None else None

    async def __aenter__(self) -> Self:
        self._enter()
        if self._settings.timeout is not None:
            self._deadline = time.monotonic() + self._settings.timeout
        try:
            await self._stoppable(self._begin)
        except LLMSessionError as error:
            await self._fail(error)
            await self._leave()
            raise
        except BaseException:
            await self._leave()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        known = self._error
        await self._leave()
        if kind is None and known is None and self._error is not None:
            raise self._error  # the text so far could not be saved

    def _abandon(self) -> None:
        self._left = True
        self._active.discard(self)
        if self._inner is not None:
            self._inner.abandon()

    def _cut(self) -> None:
        if (inner := self._inner) is not None and self._verdict is not None:
            inner.end(self._verdict)

    # Taking the turn.

    async def _begin(self) -> None:
        if self._key is not None and (running := find_running(self._conversation, self._key)) is not None:
            self._record.check_same(running.message)
            self._heard = running
        else:
            await self._take_turn()

    async def _take_turn(self) -> None:
        """Wait for this call's turn, then prompt the model, unless the key has been answered before."""
        self._stored = await self._record.take_turn()
        if self._stored is not None:
            self._remain(self._stored)
        else:
            await self._ask()

    def _remain(self, completion: Completion) -> None:
        """Queue the events of a reply that is known already, so that the model is not prompted."""
        if completion.reasoning:
            self._known.append(ReasoningDelta(text=completion.reasoning))
        self._known.append(TextDelta(text=completion.text, completion_tokens=completion.usage.completion_tokens))
        self._known.append(Finished(completion=completion))

    async def _ask(self) -> None:
        await self._record.begin()
        self._begun = begun = self._record.begun
        most = self._settings.request.max_tokens
        if begun is not None and most is not None and most <= begun.usage.completion_tokens:
            # The reply was complete: only its end was not saved.
            self._begun = None
            self._remain(msgspec.structs.replace(begun, stop_reason=StopReason.LENGTH))
        else:
            await self._open()

    async def _open(self) -> None:
        await self._budget.render_system()
        if (folder := self._replies.kv_folder) is not None:
            self._copy_name = await self._log.cache_key(folder)
        plan = await self._budget.plan(self._record.path)
        while True:
            self._sent, self._dropped = plan.messages, self._dropped + plan.dropped
            inner = self._make_inner(plan.messages)
            with self._lock:
                self._inner = inner
                verdict = self._verdict
            if verdict is not None:
                inner.end(verdict)
            try:
                await inner.__aenter__()
            except ContextOverflowError as error:
                plan = await self._budget.plan_less(self._record.path, error)
                continue
            self._events = inner.events()
            self._written_at = time.monotonic()
            return

    def _make_inner(self, messages: list[Message]) -> ReplyStream:
        """Return a reply that continues the partial one, if the server can do that; otherwise one from the start."""
        settings = self._settings
        if self._deadline < math.inf:
            settings = msgspec.structs.replace(settings, timeout=max(self._deadline - time.monotonic(), 0.001))
        ask = partial(self._replies.reply_to, self._copy_name, messages)
        if (begun := self._begun) is None:
            return ask(settings)
        request = settings.request
        left = request.max_tokens - begun.usage.completion_tokens if request.max_tokens is not None else None
        continued = msgspec.structs.replace(request, reply_start=begun.text, max_tokens=left)
        try:
            return ask(msgspec.structs.replace(settings, request=continued))
        except UnsupportedFeatureError as error:
            if error.feature != "reply_start":
                raise
            self._begun = None
            return ask(settings)

    # Reading.

    async def _next(self) -> Event | None:
        """Return the next event, or None after the last."""
        if self._error is not None:
            raise self._error
        if self._completion is not None:
            return None
        self._check_inside()
        while True:
            try:
                event = await self._read()
                if self._is_due(event):
                    await self._record.checkpoint(self._so_far())
                    self._written_at = time.monotonic()
            except LLMSessionError as error:
                await self._fail(error)
                raise
            match event:
                case Finished():
                    return await self._finish(event.completion)
                case TextDelta() if (new := self._leave_away(event.text)) != event.text:
                    if new:
                        return msgspec.structs.replace(event, text=new)
                case ReasoningDelta() if self._given:
                    pass  # the reader has the reasoning already: this reply continues an earlier one
                case _:
                    return event

    def _leave_away(self, text: str) -> str:
        """Return the part of the text that the reader has not received from an earlier source."""
        start, self._said = self._said, self._said + len(text)
        new = text[max(self._given - start, 0) :]
        self._given = max(self._given, self._said)
        return new

    def _is_due(self, event: Event) -> bool:
        """Whether the text so far should be saved now: not at the end, nor while there is only reasoning."""
        if self._inner is None or isinstance(event, Finished):
            return False
        return time.monotonic() - self._written_at >= CHECKPOINT_EVERY and bool(self._inner.partial.text)

    async def _read(self) -> Event:
        if self._events is not None:
            event = await anext(self._events)
            if self._record.broadcast is not None and not isinstance(event, Finished):
                self._record.broadcast.publish(event)
            return event
        if not self._known:
            await self._stoppable(self._hear)
        if self._known:
            return self._known.popleft()
        return await self._read()

    async def _hear(self) -> None:
        """Take the next event from another call's reply; if that call left before the end, take its turn."""
        heard = self._heard
        assert heard is not None  # noqa: S101 - nothing else is waited for
        event = await heard.next_event(self._heard_count)
        if event is not None:
            self._heard_count += 1
            self._heard_text += event.text if isinstance(event, TextDelta) else ""
            self._known.append(event)
        elif heard.completion is not None:
            self._stored = heard.completion
            self._known.append(Finished(completion=heard.completion))
        else:
            self._heard, self._said = None, 0
            await self._take_turn()

    async def _stoppable(self, wait: Callable[[], Awaitable[None]]) -> None:
        """Await `wait` until it is done, there is a verdict, or the time is up.

        Raises TotalTimeoutError after the deadline, or the verdict if that is an error.
        """
        if await self._until_verdict(wait, self._deadline):
            return
        if self._verdict is None:
            raise TotalTimeoutError(f"the reply was not complete within timeout={self._settings.timeout:g} s")
        if isinstance(self._verdict, LLMSessionError):
            raise self._verdict
        self._known.append(Finished(completion=self._so_far()))

    def _so_far(self) -> Completion:
        """Return the reply as if it were interrupted now."""
        if self._inner is not None:
            return self._count_begun(self._inner.partial)
        if self._stored is not None:
            return self._stored
        return Completion(
            id=self.id, text=self._heard_text, stop_reason=StopReason.INTERRUPTED, seed=0, model=self._model
        )

    def _count_begun(self, completion: Completion) -> Completion:
        """Count the tokens of a continued partial reply as part of the reply, not of the prompt."""
        if self._begun is None:
            return completion
        usage, said = completion.usage, self._begun.usage.completion_tokens
        prompt = max(usage.prompt_tokens - said, 0)
        counted = Usage(
            prompt_tokens=prompt,
            completion_tokens=usage.completion_tokens + said,
            cached_tokens=min(usage.cached_tokens, prompt),
        )
        return msgspec.structs.replace(completion, usage=counted)

    # Ending.

    async def _finish(self, completion: Completion) -> Finished:
        """Save the reply, whole or interrupted, then return its last event."""
        if self._inner is not None:
            # The reply has ended, so it is saved even if the caller is cancelled now. Bounded by Connection.aclose.
            with anyio.CancelScope(shield=True):
                await self._inner.__aexit__(None, None, None)  # frees its slot
        if self._stored is None:
            completion = msgspec.structs.replace(self._count_begun(completion), dropped=self._dropped)
            try:
                await self._record.complete(completion, self._sent)
            except LLMSessionError as error:
                error.partial = completion
                self._error = error
                await self._record.release(None)
                raise
        self._completion = completion
        await self._record.release(completion)
        if self._inner is not None:
            self._note(self._sent, completion)
        return Finished(completion=completion)

    async def _fail(self, error: LLMSessionError) -> None:
        """Save the partial reply after an error. With a key, the next call with that key can continue it."""
        self._error = error
        if error.partial is None:
            error.partial = self._so_far()
        elif self._inner is not None:
            error.partial = self._count_begun(error.partial)
        for_good = isinstance(error, UsageError | ContextOverflowError)
        await self._keep_partial(error.partial, TurnState.FAILED, for_good=for_good)

    async def _keep_partial(self, partial: Completion, state: TurnState, *, for_good: bool = False) -> None:
        """Save the partial reply. If that fails too, the error that ended the reply takes precedence."""
        try:
            await self._record.interrupt(partial, state, for_good=for_good)
        except LLMSessionError as error:
            if self._error is None:
                self._error = error
        finally:
            await self._record.release(None)

    async def _leave(self) -> None:
        """Free the slot, save what is not saved yet, and let the next turn begin."""
        if self._left:
            return
        self._left = True
        self._active.discard(self)
        with anyio.CancelScope(shield=True):  # bounded by Connection.aclose and by TurnRecord's SAVED_WITHIN
            inner = self._inner
            if inner is not None:
                await inner.__aexit__(None, None, None)
            if self._completion is None and self._error is None:
                partial = self._so_far()
                await self._keep_partial(partial, TurnState.INTERRUPTED)
                self._completion = partial
            else:
                await self._record.release(None)
