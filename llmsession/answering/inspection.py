"""What a chat tells of itself: how full its context is, what exactly is sent, and what of it the cache had."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, overload

import msgspec

from llmsession.completion import Completion
from llmsession.messages import Message, Role

if TYPE_CHECKING:
    from llmsession.session import Session

# The last token that was said was never read, and a template may put a few others after a reply when more follows.
_SLACK = 8


class ChatStats(msgspec.Struct, frozen=True, kw_only=True):
    """How much of the context is used. `context_length` and `percent` are None where a remote server does not tell."""

    tokens: int
    context_length: int | None
    percent: float | None
    messages: int

    def __str__(self) -> str:
        """Three lines."""
        of = f" / {self.context_length}" if self.context_length is not None else ""
        part = f"{self.percent:.0f} % of context" if self.percent is not None else "context of unknown length"
        return f"{self.tokens}{of} tokens\n{part}\n{self.messages} messages"


class InspectedPiece(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of what is sent. `is_cached`: whether the engine had read it by the last reply; None: there was none."""

    role: Role | None
    is_control: bool
    text: str
    tokens: int
    is_cached: bool | None


class Inspection(Sequence[InspectedPiece]):
    """The pieces in their order. `missed` says why the last turn's prompt was not in the cache; None where it was."""

    def __init__(self, pieces: Sequence[InspectedPiece], *, missed: str | None) -> None:
        self._pieces = tuple(pieces)
        self.missed = missed

    @overload
    def __getitem__(self, index: int) -> InspectedPiece: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[InspectedPiece]: ...
    def __getitem__(self, index: int | slice) -> InspectedPiece | Sequence[InspectedPiece]:
        return self._pieces[index]

    def __len__(self) -> int:
        return len(self._pieces)

    def __iter__(self) -> Iterator[InspectedPiece]:
        return iter(self._pieces)

    def __str__(self) -> str:
        """A line for each piece: its role, what it is, how many tokens, whether it was cached, the text."""
        lines = [
            f"{piece.role or '':<9} {'control' if piece.is_control else 'text':<7} {piece.tokens:>6} "
            f"{ {True: 'cached', False: 'new', None: ''}[piece.is_cached]:<6} {piece.text!r}"
            for piece in self._pieces
        ]
        if self.missed is not None:
            lines.append(f"the last turn missed the cache: {self.missed}")
        return "\n".join(lines)


class CacheWatch:
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
            found = "the engine was started anew"
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
