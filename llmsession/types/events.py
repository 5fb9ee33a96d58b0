"""What can happen in a reply: TextDelta, ReasoningDelta, ToolCallDelta, Finished.

`Ended` is what a server says at the end; ReplyStream makes the Finished of it.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from llmsession.types.completion import Completion, StopReason, Timings, Token, Usage


class TextDelta(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of the answer. `tokens`: where log-probabilities were asked for; `completion_tokens`: so far."""

    text: str
    tokens: tuple[Token, ...] = ()
    completion_tokens: int = 0


class ReasoningDelta(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of what the model thinks before it answers."""

    text: str


class ToolCallDelta(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of a tool call. The first of an `index` has `id` and `name`; `arguments` are pieces of JSON text."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """The last event of a reply that came to its end."""

    completion: Completion


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """The server's own words at the end."""

    stop_reason: StopReason
    stop_phrase: str | None = None
    context_full: bool = False
    usage: Usage
    timings: Timings


Event: TypeAlias = TextDelta | ReasoningDelta | ToolCallDelta | Finished
Delta: TypeAlias = TextDelta | ReasoningDelta | ToolCallDelta
