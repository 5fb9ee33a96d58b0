"""What can happen in a reply: TextDelta, ReasoningDelta, ToolCallDelta, Finished.

`Ended` is what a server reports at the end; ReplyStream makes a Finished of it.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from llmsession.types.completion import Completion, StopReason, Timings, Token, Usage


class TextDelta(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of the answer. `tokens`: if log-probabilities were requested. `completion_tokens`: the count so far."""

    text: str
    tokens: tuple[Token, ...] = ()
    completion_tokens: int = 0


class ReasoningDelta(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of the model's reasoning before its answer."""

    text: str


class ToolCallDelta(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of a tool call. The first one of an `index` has `id` and `name`; `arguments` are pieces of JSON text."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """The last event of a reply that reached its end."""

    completion: Completion


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a reply as the server reports it."""

    stop_reason: StopReason
    stop_phrase: str | None = None
    context_full: bool = False
    usage: Usage
    timings: Timings


Event: TypeAlias = TextDelta | ReasoningDelta | ToolCallDelta | Finished
Delta: TypeAlias = TextDelta | ReasoningDelta | ToolCallDelta
