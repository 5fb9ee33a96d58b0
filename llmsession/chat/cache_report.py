"""CacheReport: how much of each prompt of a chat the engine had in its cache, and why it lacked the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmsession.types.completion import Completion
from llmsession.types.messages import Message, Role

if TYPE_CHECKING:
    from llmsession.session.session import Session

# The last generated token was never evaluated, and a template may add a few after a reply once more turns follow.
_SLACK = 8


class CacheReport:
    """Compares what each turn could have found in the cache with what it did find.

    `missed` says why the last prompt was not in the cache; None if it was.
    """

    def __init__(self) -> None:
        self.last: Completion | None = None
        self.missed: str | None = None
        self._messages: list[Message] = []
        self._engine: int | None = None

    def note(self, session: Session, messages: Sequence[Message], completion: Completion) -> None:
        """Record a reply. `messages` are those that were sent for it."""
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
        """Return how many tokens, from the first on, the engine held after its last reply.

        None before the first reply, and if the engine was restarted since.
        """
        if self.last is None or session.pid != self._engine:
            return None
        return self.last.usage.total_tokens
