"""ChatStream: the reply to one turn of a conversation, read as a ReplyStream is, with every step of it on disk.

The user's turn is there before the model is asked, what it says is written down as it comes, and its end. A call with
the key of a turn that is being answered hears that reply, or takes it up where its reader left; a key that was answered
gets what was said then. It holds no task and no cancel scope between two reads.
"""

from __future__ import annotations

import itertools
import math
import os
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Self, TextIO, TypeVar

import anyio
import msgspec

from llmsession.answering.joining import Broadcast, begin_running, end_running, find_running
from llmsession.completion import Completion, StopReason
from llmsession.errors import (
    ContextOverflowError,
    DuplicateKeyError,
    LLMSessionError,
    TotalTimeoutError,
    UsageError,
)
from llmsession.latch import call_soon, current_loop
from llmsession.memory.turn import Turn, TurnState
from llmsession.messages import Role
from llmsession.wire.events import Event, Finished, ReasoningDelta, TextDelta
from llmsession.wire.reply import Events

if TYPE_CHECKING:
    from llmsession.answering.budget import Budget
    from llmsession.memory.conversation import Conversation
    from llmsession.messages import Message
    from llmsession.session import Session
    from llmsession.wire.reply import ReplyStream

T = TypeVar("T")

# Seconds of a reply that a kill may cost: what came before is on disk. More often would have fast models wait for it.
CHECKPOINT_EVERY = 0.5

_numbers = itertools.count(1)


class ChatStream:
    """A reply as it arrives: `async with` it, iterate it for pieces of text or `events()`, then `await result()`.

    Left before its end, a turn with a key waits for the next call with that key; one without keeps what was said.
    """

    def __init__(
        self,
        session: Session,
        conversation: Conversation,
        budget: Budget,
        *,
        message: Message | None,
        key: str | None,
        keywords: dict[str, Any],
        note: Callable[[list[Message], Completion], None],
    ) -> None:
        self._session = session
        self._conversation = conversation
        self._budget = budget
        self._message = message  # None: the last turn is answered anew
        self._key = key
        self._keywords = keywords
        self._note = note
        self._id = f"turn-{os.getpid()}-{next(_numbers)}"
        self._deadline = math.inf
        self._lock = threading.Lock()
        self._verdict: StopReason | LLMSessionError | None = None
        self._waiting: tuple[anyio.CancelScope, Any] | None = None
        self._entered = False
        self._left = False
        self._way: str | None = None
        # What is read: another call's reply, what is known already, or the model's.
        self._heard: Broadcast | None = None
        self._heard_count = 0
        self._heard_text = ""
        self._known: deque[Event] = deque()
        self._inner: ReplyStream | None = None
        self._events: AsyncIterator[Event] | None = None
        # While it is our turn: the lock on the conversation, the user's turn, what stands on disk of the reply.
        self._turn: AbstractAsyncContextManager[None] | None = None
        self._asked: Turn | None = None
        self._reply: Turn | None = None
        self._broadcast: Broadcast | None = None
        self._sent: list[Message] = []
        self._dropped: tuple[Message, ...] = ()
        self._stored: Completion | None = None  # what was said to the key before
        self._written_at = 0.0
        # Letters that the source has said, and that the reader has.
        self._said = 0
        self._given = 0
        self._completion: Completion | None = None
        self._error: LLMSessionError | None = None

    @property
    def id(self) -> str:
        """As in the log: the reply's, once the model is asked for it."""
        return self._inner.id if self._inner is not None else self._id

    @property
    def queue_position(self) -> int | None:
        """How many requests are in front of this one while it waits for a slot; None otherwise."""
        return self._inner.queue_position if self._inner is not None else None

    async def __aenter__(self) -> Self:
        if self._entered:
            raise UsageError("a reply can be entered once: call stream again for another")
        self._entered = True
        if (timeout := self._keywords.get("timeout")) is not None:
            self._deadline = time.monotonic() + timeout
        self._session.remember(self)
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

    async def __aexit__(self, *exc: object) -> None:
        await self._leave()

    def __del__(self) -> None:
        if self._entered and not self._left:
            warnings.warn(f"{self._id} was never left: use `async with`", ResourceWarning, stacklevel=1, source=self)
            self._session.forget(self)

    async def __anext__(self) -> str:
        self._go("text")
        while True:
            event = await self._next()
            if isinstance(event, TextDelta) and event.text:
                return event.text
            if event is None:
                raise StopAsyncIteration

    def __aiter__(self) -> AsyncIterator[str]:
        self._go("text")
        return self

    def events(self) -> AsyncIterator[Event]:
        """Everything that happens, to the Finished. Either this or plain iteration, not both."""
        self._go("events")
        return Events(self._next)

    async def result(self) -> Completion:
        """Read what is left and give the whole. Raises what ended the reply, with its `partial`."""
        if self._completion is None and self._error is None:
            self._check_inside()
            while await self._next() is not None:
                pass
        if self._error is not None:
            raise self._error
        assert self._completion is not None  # noqa: S101 - _next ends with one of the two
        return self._completion

    async def print(self, file: TextIO | None = None, *, end: str = "\n", flush: bool = True) -> Completion:
        """Write the pieces to `file` (stdout) as they arrive; give the Completion."""
        out = file if file is not None else sys.stdout
        async for piece in self:
            out.write(piece)
            if flush:
                out.flush()
        out.write(end)
        if flush:
            out.flush()
        return await self.result()

    def cancel(self) -> None:
        """End it now, with what has arrived and StopReason.INTERRUPTED. From any task or thread."""
        self.end(StopReason.INTERRUPTED)

    def end(self, verdict: StopReason | LLMSessionError) -> None:
        """End it with a reason or an error; the first verdict counts. Thread-safe, never blocks."""
        with self._lock:
            if self._verdict is not None or self._completion is not None or self._error is not None:
                return
            self._verdict = verdict
            waiting, inner = self._waiting, self._inner
        if inner is not None:
            inner.end(verdict)
        if waiting is not None:
            scope, loop = waiting
            call_soon(loop, scope.cancel)

    # Whose turn it is.

    async def _begin(self) -> None:
        if self._key is not None and (running := find_running(self._conversation, self._key)) is not None:
            self._check_same(running.message)
            self._heard = running
        else:
            await self._take_turn()

    async def _take_turn(self) -> None:
        """Wait until nobody else answers in this conversation, here or in another process; then ask."""
        turn = self._conversation.answering()
        await turn.__aenter__()
        self._turn = turn
        if not self._take_known():
            await self._ask()

    def _take_known(self) -> bool:
        """What was said to this key before, whole. What was said in part is taken up."""
        self._asked = asked = self._conversation.find(self._key) if self._key is not None else None
        if asked is None:
            return False
        self._check_same(asked.message)
        reply = self._conversation.reply_to(asked.id)
        if reply is None or reply.completion is None:
            return False
        if reply.state in (TurnState.PENDING, TurnState.FAILED):
            self._reply = reply
            return False
        self._stored = reply.completion
        self._remain(reply.completion)
        return True

    def _remain(self, completion: Completion) -> None:
        """Nothing has to be asked any more."""
        if completion.reasoning:
            self._known.append(ReasoningDelta(text=completion.reasoning))
        self._known.append(TextDelta(text=completion.text, completion_tokens=completion.usage.completion_tokens))
        self._known.append(Finished(completion=completion))

    def _check_same(self, message: Message) -> None:
        if self._message != message:
            raise DuplicateKeyError(
                f"the key {self._key!r} was given before, with another text: a key is for one event",
                key=self._key or "",
            )

    async def _ask(self) -> None:
        """The user's turn is on disk before the model hears of it."""
        conversation = self._conversation
        if self._asked is not None:
            asked = await conversation.ask_again(self._asked.id)
        elif self._message is None:
            asked = find_retry(conversation)
            if asked.state is TurnState.FAILED:
                asked = await conversation.ask_again(asked.id)
        elif self._message.role is Role.TOOL:
            asked = await conversation.add(self._message)
        else:
            asked = await conversation.ask(self._message, key=self._key)
        self._asked = asked
        if self._key is not None:
            self._broadcast = begin_running(conversation, self._key, asked.message)
        begun = self._reply.completion if self._reply is not None else None
        keywords = self._keywords
        if begun is not None:
            keywords = {**keywords, "reply_start": begun.text}
            if (most := keywords.get("max_tokens")) is not None:
                keywords["max_tokens"] = left = most - begun.usage.completion_tokens
                if left < 1:  # it was whole: only its end was not written down
                    self._remain(msgspec.structs.replace(begun, stop_reason=StopReason.LENGTH))
                    return
        await self._open(asked, keywords)

    async def _open(self, asked: Turn, keywords: dict[str, Any]) -> None:
        path = self._conversation.path_to(asked.id)
        await self._budget.render_system()
        plan = await self._budget.plan(path)
        while True:
            self._sent, self._dropped = plan.messages, self._dropped + plan.dropped
            inner = self._session.prompt_streaming(plan.messages, **self._with_time_left(keywords))
            with self._lock:
                self._inner = inner
                verdict = self._verdict
            if verdict is not None:
                inner.end(verdict)
            try:
                await inner.__aenter__()
            except ContextOverflowError as error:
                plan = await self._budget.plan_less(self._conversation.path_to(asked.id), error)
                continue
            self._events = inner.events()
            self._written_at = time.monotonic()
            return

    def _with_time_left(self, keywords: dict[str, Any]) -> dict[str, Any]:
        if self._deadline == math.inf:
            return keywords
        return {**keywords, "timeout": max(self._deadline - time.monotonic(), 0.001)}

    # What is read.

    async def _next(self) -> Event | None:
        """The next event, or None after the last."""
        if self._error is not None:
            raise self._error
        if self._completion is not None:
            return None
        self._check_inside()
        while True:
            try:
                event = await self._read()
                if self._is_due(event):
                    await self._write_down()
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
                    pass  # taken up after it had been thought
                case _:
                    return event

    def _leave_away(self, text: str) -> str:
        """What the reader has not had from the source before this one."""
        start, self._said = self._said, self._said + len(text)
        new = text[max(self._given - start, 0) :]
        self._given = max(self._given, self._said)
        return new

    async def _read(self) -> Event:
        if self._events is not None:
            event = await anext(self._events)
            if self._broadcast is not None and not isinstance(event, Finished):
                self._broadcast.tell(event)
            return event
        if not self._known:
            await self._stoppable(self._hear)
        if self._known:
            return self._known.popleft()
        return await self._read()

    async def _hear(self) -> None:
        """What another call reads; where that one left before the end, it is our turn."""
        heard = self._heard
        assert heard is not None  # noqa: S101 - nothing else is waited for
        event = await heard.hear(self._heard_count)
        if event is not None:
            self._heard_count += 1
            self._heard_text += event.text if isinstance(event, TextDelta) else ""
            self._known.append(event)
        elif heard.completion is not None:
            self._known.append(Finished(completion=heard.completion))
        else:
            self._heard, self._said = None, 0
            await self._take_turn()

    async def _stoppable(self, wait: Callable[[], Awaitable[None]]) -> None:
        """Until it is done, or there is a verdict, or no time left."""
        with anyio.CancelScope() as scope:
            if self._deadline < math.inf:
                scope.deadline = anyio.current_time() + self._deadline - time.monotonic()
            with self._lock:
                if self._verdict is None:
                    self._waiting = (scope, current_loop())
                else:
                    scope.cancel()
            try:
                await wait()
            finally:
                with self._lock:
                    self._waiting = None
            return
        if self._verdict is None:
            raise TotalTimeoutError(f"the reply was not complete within timeout={self._keywords['timeout']:g} s")
        if isinstance(self._verdict, LLMSessionError):
            raise self._verdict
        self._known.append(Finished(completion=self._so_far()))

    def _so_far(self) -> Completion:
        """Cut here."""
        if self._inner is not None:
            return self._inner.partial
        if self._stored is not None:
            return self._stored
        return Completion(
            id=self.id, text=self._heard_text, stop_reason=StopReason.INTERRUPTED, seed=0, model=self._session.model
        )

    # What is written.

    def _is_due(self, event: Event) -> bool:
        """Whether what was said is to be written down now: not where this is the end, nor while it only thinks."""
        if self._inner is None or isinstance(event, Finished):
            return False
        return time.monotonic() - self._written_at >= CHECKPOINT_EVERY and bool(self._inner.partial.text)

    async def _write_down(self) -> None:
        """What came so far: a kill does not cost it."""
        await self._save(self._so_far(), TurnState.PENDING)
        self._written_at = time.monotonic()

    async def _save(self, completion: Completion, state: TurnState) -> None:
        """Also where the caller is cancelled: what was said is not forgotten for that."""
        assert self._asked is not None  # noqa: S101 - only what was asked is answered
        asked, reply = self._asked.id, self._reply.id if self._reply is not None else None
        with anyio.CancelScope(shield=True):
            self._reply = await self._conversation.save_reply(
                asked,
                completion,
                state,
                reply=reply,
                tokens=completion.usage.completion_tokens or None,
                asked_tokens=self._count_asked(completion),
            )

    def _count_asked(self, completion: Completion) -> int | None:
        """What the user's turn adds to the prompt, by the engine's own count: known where all before it was sent."""
        assert self._asked is not None  # noqa: S101 - as in _save
        path = self._conversation.path_to(self._asked.id)
        before = path[-2].completion if len(path) > 1 else None
        sent = [message for message in self._sent if message.role is not Role.SYSTEM]
        if (
            not completion.usage.prompt_tokens
            or sent != [turn.message for turn in path]
            or (len(path) > 1 and not before)
        ):
            return None
        return max(0, completion.usage.prompt_tokens - (before.usage.total_tokens if before is not None else 0))

    async def _finish(self, completion: Completion) -> Finished:
        """It is whole, or was interrupted: on disk, then said."""
        if self._inner is not None:
            await self._inner.__aexit__(None, None, None)  # its slot is free
        if self._asked is not None and self._stored is None:
            completion = msgspec.structs.replace(completion, dropped=self._dropped)
            interrupted = completion.stop_reason is StopReason.INTERRUPTED
            try:
                if interrupted and not completion.text:
                    await self._abandon()
                else:
                    await self._save(completion, TurnState.INTERRUPTED if interrupted else TurnState.COMPLETE)
            except LLMSessionError as error:
                error.partial = completion
                self._error = error
                await self._give_turn_back(None)
                raise
        self._completion = completion
        await self._give_turn_back(completion)
        if self._inner is not None:
            self._note(self._sent, completion)
        return Finished(completion=completion)

    async def _fail(self, error: LLMSessionError) -> None:
        """The turn is there to be taken up, with its key; else what was said of the reply is kept."""
        self._error = error
        if error.partial is None:
            error.partial = self._so_far()
        await self._cut(error.partial, TurnState.FAILED, for_good=isinstance(error, UsageError | ContextOverflowError))

    async def _cut(self, partial: Completion, state: TurnState, *, for_good: bool) -> None:
        """It ended before its end. A store that fails as well has nothing to add to that."""
        try:
            if self._asked is not None and self._stored is None:
                if partial.text:
                    await self._save(partial, TurnState.PENDING if self._key is not None and not for_good else state)
                elif self._key is None or for_good:
                    await self._abandon()
        except LLMSessionError as error:
            if self._error is None:
                self._error = error
        finally:
            await self._give_turn_back(None)

    async def _abandon(self) -> None:
        """Nothing was said to it. One that is answered anew keeps its answer."""
        if self._asked is None or self._conversation.reply_to(self._asked.id) is not None:
            return
        with anyio.CancelScope(shield=True):
            await self._conversation.fail(self._asked.id)

    async def _give_turn_back(self, completion: Completion | None) -> None:
        turn, self._turn = self._turn, None
        if turn is None:
            return
        if self._broadcast is not None and self._key is not None:
            end_running(self._conversation, self._key, completion)
        with anyio.CancelScope(shield=True):
            await turn.__aexit__(None, None, None)

    async def _leave(self) -> None:
        """The slot is free, and the next turn may be taken."""
        if self._left:
            return
        self._left = True
        self._session.forget(self)
        with anyio.CancelScope(shield=True):
            inner = self._inner
            if inner is not None:
                await inner.__aexit__(None, None, None)
            if self._completion is None and self._error is None:
                partial = self._so_far()
                await self._cut(partial, TurnState.INTERRUPTED, for_good=False)
                self._completion = partial
            else:
                await self._give_turn_back(None)

    def _go(self, way: str) -> None:
        self._check_inside()
        if self._way is not None and self._way != way:
            raise UsageError("iterate a reply for its text or for its events(), not for both")
        self._way = way

    def _check_inside(self) -> None:
        if not self._entered:
            raise UsageError("a reply is read inside its block: async with chat.stream(…) as stream: …")
        if self._left and self._completion is None and self._error is None:
            raise UsageError("the block of this reply was left: read it inside the block")


def find_retry(conversation: Conversation) -> Turn:
    """The user's turn that is answered anew: one that nothing was said to, or the last on the path.

    Raises UsageError where there is none.
    """
    path = conversation.path
    end = path[-1].id if path else None
    failed = [turn for turn in conversation.turns if turn.parent == end and turn.state is TurnState.FAILED]
    if failed and failed[-1].message.role is not Role.ASSISTANT:
        return failed[-1]
    for turn in reversed(path):
        if turn.message.role in (Role.USER, Role.TOOL):
            return turn
    raise UsageError("there is nothing to answer anew: nothing was said yet")
