"""Resuming a reply whose server exited: what was delivered, and decoders for the rest of the stream. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from llmsession.types.completion import Usage
from llmsession.types.errors import LLMSessionError
from llmsession.types.events import Delta, Ended, ReasoningDelta, TextDelta, ToolCallDelta
from llmsession.wire.stream_filters import Around

if TYPE_CHECKING:
    from llmsession.wire.decoder import EventDecoder


class TokenLimitReachedError(LLMSessionError):
    """As many tokens were delivered as were asked for, so the reply is whole."""


class DeliveredCall(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a tool call that has arrived."""

    id: str
    name: str
    arguments: str


class Delivered(msgspec.Struct, frozen=True, kw_only=True):
    """What a reader has of a reply. `usage`: of the last piece; `token_count`: tokens with log-probabilities."""

    text: str = ""
    reasoning: str = ""
    calls: dict[int, DeliveredCall] = {}
    token_count: int = 0
    usage: Usage = Usage()

    @property
    def is_empty(self) -> bool:
        """Whether nothing has arrived."""
        return not (self.text or self.reasoning or self.calls or self.token_count)


class ContinuedDecoder(Around):
    """Decodes a stream that starts where the delivered part ends, and adds up the counts."""

    def __init__(self, inner: EventDecoder, before: Usage) -> None:
        super().__init__(inner)
        self._before = before

    @property
    def usage(self) -> Usage:
        """The usage of the whole reply."""
        return self._add(self._inner.usage)

    def decode(self, payload: bytes) -> list[Delta | Ended]:
        """Decode one event."""
        return [self._count(event) for event in self._inner.decode(payload)]

    def end(self) -> Ended | None:
        """Return the inner decoder's end, with the counts of the whole reply."""
        ended = self._inner.end()
        return msgspec.structs.replace(ended, usage=self._add(ended.usage)) if ended is not None else None

    def _count(self, event: Delta | Ended) -> Delta | Ended:
        if isinstance(event, TextDelta):
            return msgspec.structs.replace(
                event, completion_tokens=event.completion_tokens + self._before.completion_tokens
            )
        return msgspec.structs.replace(event, usage=self._add(event.usage)) if isinstance(event, Ended) else event

    def _add(self, after: Usage) -> Usage:
        """Add up the usage: the new prompt was the old one and the delivered part, with the tags of a thought."""
        before = self._before
        prompt = before.prompt_tokens
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=max(before.completion_tokens, after.prompt_tokens - prompt) + after.completion_tokens,
            cached_tokens=min(prompt, after.cached_tokens),
        )


class ReplayDecoder(Around):
    """Decodes a stream that starts over, and skips what was delivered. Raises `difference` if the two differ."""

    def __init__(self, inner: EventDecoder, delivered: Delivered, difference: LLMSessionError) -> None:
        super().__init__(inner)
        self._difference = difference
        self._text = delivered.text
        self._reasoning = delivered.reasoning
        self._calls = dict(delivered.calls)
        self._arguments = {index: call.arguments for index, call in delivered.calls.items()}
        self._tokens = delivered.token_count

    def decode(self, payload: bytes) -> list[Delta | Ended]:
        """Return what one event adds to the delivered part."""
        return [self._leave_away(event) for event in self._inner.decode(payload)]

    def end(self) -> Ended | None:
        """Return the inner decoder's end, once everything delivered has come again."""
        ended = self._inner.end()
        return self._check_end(ended) if ended is not None else None

    def _leave_away(self, event: Delta | Ended) -> Delta | Ended:
        match event:
            case TextDelta():
                text, self._text = self._compare(event.text, self._text)
                dropped = min(len(event.tokens), self._tokens)
                self._tokens -= dropped
                return msgspec.structs.replace(event, text=text, tokens=event.tokens[dropped:])
            case ReasoningDelta():
                text, self._reasoning = self._compare(event.text, self._reasoning)
                return ReasoningDelta(text=text)
            case ToolCallDelta():
                return self._leave_away_call(event)
        return self._check_end(event)

    def _leave_away_call(self, event: ToolCallDelta) -> ToolCallDelta:
        known = self._calls.get(event.index)
        if known is None:
            return event
        if event.name is not None and event.name != known.name:
            raise self._difference
        rest, self._arguments[event.index] = self._compare(event.arguments, self._arguments[event.index])
        # The number of a call is drawn again each time: the one that was delivered stays.
        return ToolCallDelta(index=event.index, arguments=rest)

    def _compare(self, new: str, old: str) -> tuple[str, str]:
        """Return the new part of `new`, and what is left of `old`."""
        if old.startswith(new):
            return "", old[len(new) :]
        if new.startswith(old):
            return new[len(old) :], ""
        raise self._difference

    def _check_end(self, ended: Ended) -> Ended:
        if self._text or self._reasoning or any(self._arguments.values()):
            raise self._difference
        return ended
