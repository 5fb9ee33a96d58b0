"""What a chat tells of itself: how full its context is, what exactly is sent, and what of it the cache had."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmsession.types.completion import Completion
from llmsession.types.messages import Message, Role

if TYPE_CHECKING:
    from llmsession.session.session import Session

# The last token that was said was never read, and a template may put a few others after a reply when more follows.
_SLACK = 8


class CacheReport:
    """Compares what each turn could have found in the cache with what it did find."""

    def __init__(self) -> None:
        self.last: Completion | None = None
        self.missed: str | None = None
        self._messages: list[Message] = []
        self._engine: int | None = None

    def note(self, session: Session, messages: Sequence[Message], completion: Completion) -> None:
        """A reply has come. `messages` are what was sent for it."""
        engine = session.pid
        self.missed = self._explain(messages, completion, engine)
        self.last, self._engine = completion, engine
        self._messages = [*messages, Message.assistant(completion.text)]

    def _explain(self, messages: Sequence[Message], completion: Completion, engine: int | None) -> str | None:
        usage, before = completion.usage, self.last
        if usage.cached_tokens + _SLACK >= usage.prompt_tokens:
            return None
        if before is None:
            return "it is the first that this chat has sent since it was made"
        if engine != self._engine or completion.restarts:
            found = "the engine was started again"
        elif (index := self._first_difference(messages)) is not None:
            found = self._describe_difference(index, messages)
        elif usage.cached_tokens >= min(before.usage.total_tokens, usage.prompt_tokens) - _SLACK:
            return None
        elif usage.cached_tokens >= before.usage.prompt_tokens - _SLACK:
            found = "the last reply, written as text, has other tokens than the model had chosen"
        else:
            found = "other conversations have taken its place in the engine's cache"
        return f"{found} ({usage.cached_tokens} of {usage.prompt_tokens} tokens were cached)"

    def _first_difference(self, messages: Sequence[Message]) -> int | None:
        for index, message in enumerate(self._messages):
            if index >= len(messages) or messages[index] != message:
                return index
        return None

    def _describe_difference(self, index: int, messages: Sequence[Message]) -> str:
        roles = {these[0].role for these in (messages, self._messages) if these}
        if index == 0 and Role.SYSTEM in roles:
            return "the system prompt has changed"
        if len(messages) < len(self._messages):
            return "older turns were left out, for the context was full, or taken back"
        return f"message {index} is not what it was: an earlier turn was changed or left out"

    def cached_tokens(self, session: Session) -> int | None:
        """How many of the first tokens the engine had read when it last replied; None before."""
        if self.last is None or session.pid != self._engine:
            return None
        return self.last.usage.total_tokens
