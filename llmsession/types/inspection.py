"""What a chat reports about itself: how full its context is, and each piece of what would be sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from llmsession.types.images import ImageLike
else:  # msgspec reads no union of bytes, texts and paths; what may be given is checked when a Message is made
    ImageLike = Any

from collections.abc import Iterator
from typing import overload

from llmsession.types.messages import Role


class ChatStats(msgspec.Struct, frozen=True, kw_only=True):
    """How much of the context is used. `context_length` and `percent`: None if a remote server does not report it."""

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
    """A piece of what is sent. `is_cached`: whether the last reply left it in the cache; None if there was no reply."""

    role: Role | None
    is_control: bool
    text: str
    tokens: int
    is_cached: bool | None


class Inspection(Sequence[InspectedPiece]):
    """The pieces in order. `missed`: why the last turn's prompt was not in the cache; None if it was."""

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
        """A line for each piece: its role, what it is, its number of tokens, whether it was cached, and the text."""
        lines = [
            f"{piece.role or '':<9} {'control' if piece.is_control else 'text':<7} {piece.tokens:>6} "
            f"{ {True: 'cached', False: 'new', None: ''}[piece.is_cached]:<6} {piece.text!r}"
            for piece in self._pieces
        ]
        if self.missed is not None:
            lines.append(f"the last turn missed the cache: {self.missed}")
        return "\n".join(lines)


class PromptPiece(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a prompt as it is sent: its role, whether its special tokens count, its text and its tokens.

    `role` is None for what comes before the first turn. In a model's own template, the text between two contents
    belongs to the turn that it opens.
    """

    role: Role | None
    is_control: bool
    text: str
    token_ids: tuple[int, ...]
