"""A Chat without a model: it says what it is told to, and notes what it was asked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, Self

import anyio

from llmsession.types.completion import Completion, StopReason, Usage
from llmsession.types.errors import LLMSessionError
from llmsession.types.events import Event, Finished, TextDelta
from llmsession.types.inspection import InspectedPiece, Inspection
from llmsession.types.messages import Message, Role

STARTED = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)


class FakeConversation:
    """A path of turns, with ids that are not their places."""

    def __init__(self, *messages: Message, user: str = "me", system_prompt: str | None = None) -> None:
        self.user = user
        self.channel = ""
        self.system_prompt = system_prompt
        self.last_update = STARTED
        self.path = [SimpleNamespace(id=100 + index, message=message) for index, message in enumerate(messages)]

    @property
    def messages(self) -> list[Message]:
        system = [Message.system(self.system_prompt)] if self.system_prompt else []
        return [*system, *(turn.message for turn in self.path)]

    def add(self, message: Message) -> None:
        self.path.append(SimpleNamespace(id=100 + len(self.path), message=message))

    async def set_system_prompt(self, text: str | None) -> None:
        self.system_prompt = text

    async def rewind(self, count: int) -> None:
        for _ in range(count):
            while self.path.pop().message.role is not Role.USER:
                pass

    async def clear(self) -> None:
        self.path.clear()

    async def edit(self, turn_id: int, text: str) -> None:
        index = next(index for index, turn in enumerate(self.path) if turn.id == turn_id)
        del self.path[index:]
        self.add(Message.user(text))


class FakeStream:
    """`events` may hold an error, or "wait", which lasts until it is cancelled."""

    def __init__(self, chat: FakeChat, events: list[Any]) -> None:
        self._chat = chat
        self._events = events
        self._cancelled = anyio.Event()
        self._text = ""
        self._reason = StopReason.END

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._chat.conversation.add(Message.assistant(self._text))

    async def events(self) -> AsyncIterator[Event]:
        for event in self._events:
            if event == "wait":
                self._chat.is_waiting.set()
                await self._cancelled.wait()
                self._reason = StopReason.INTERRUPTED
                break
            if isinstance(event, LLMSessionError):
                raise event
            piece: Event = TextDelta(text=event) if isinstance(event, str) else event
            if isinstance(piece, TextDelta):
                self._text += piece.text
            yield piece
        yield Finished(completion=self._completion())

    async def result(self) -> Completion:
        self._chat.last = self._completion()
        return self._chat.last

    def cancel(self) -> None:
        self._cancelled.set()

    def _completion(self) -> Completion:
        usage = Usage(prompt_tokens=10, completion_tokens=4, cached_tokens=6)
        return Completion(id="r1", text=self._text, stop_reason=self._reason, seed=1, model="fake", usage=usage)


class FakeChat:
    """`replies`: the events of each, in order; then "ok"."""

    def __init__(
        self,
        session: Any = None,
        conversation: FakeConversation | None = None,
        *,
        replies: list[list[Any]] | None = None,
        system_prompt: str | None = None,
        **settings: Any,
    ) -> None:
        self.session = session or SimpleNamespace(model="fake")
        self.conversation = conversation or FakeConversation(system_prompt=system_prompt)
        self.last: Completion | None = None
        self.made_with = settings
        self.asked: list[tuple[str | None, dict[str, Any]]] = []
        self.is_waiting = anyio.Event()
        self._replies = replies or []

    def stream(self, text: str, **keywords: Any) -> FakeStream:
        self.asked.append((text, keywords))
        self.conversation.add(Message.user(text))
        return self._next()

    def stream_retry(self, **keywords: Any) -> FakeStream:
        self.asked.append((None, keywords))
        if self.conversation.path[-1].message.role is Role.ASSISTANT:
            self.conversation.path.pop()
        return self._next()

    @property
    def system_prompt(self) -> str | None:
        return self.conversation.system_prompt

    async def set_system_prompt(self, text: str | None) -> None:
        self.conversation.system_prompt = text

    def with_conversation(self, conversation: FakeConversation) -> FakeChat:
        return FakeChat(self.session, conversation)

    async def stats(self) -> str:
        return "443 / 8192 tokens\n5 % of context\n7 messages"

    async def inspect(self) -> Inspection:
        piece = InspectedPiece(role=Role.USER, is_control=True, text="<|im_start|>user\n", tokens=2, is_cached=True)
        words = InspectedPiece(role=None, is_control=False, text="hello\x1b[31m", tokens=5, is_cached=None)
        return Inspection([piece, words], missed="the engine was started again")

    def _next(self) -> FakeStream:
        return FakeStream(self, self._replies.pop(0) if self._replies else ["ok"])
