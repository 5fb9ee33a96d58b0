"""Accumulator: collects the deltas of a reply into a Completion. No I/O."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec

from llmsession.types.completion import Completion, StopReason, Timings, Token, Usage
from llmsession.types.events import Delta, Ended, ReasoningDelta, TextDelta
from llmsession.types.messages import ToolCall
from llmsession.wire.resume import Delivered, DeliveredCall


class Accumulator:
    """The deltas of one reply, which can be made into a Completion at any time."""

    def __init__(self, *, id: str, model: str, seed: int) -> None:
        self._id = id
        self._model = model
        self._seed = seed
        self._start = ""
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._tokens: list[Token] = []
        self._calls: dict[int, list[str]] = {}

    def begin(self, start: str) -> None:
        """Start with the reply's given beginning: the completion contains it, but no server sends it."""
        self._start = start

    def take(self, delta: Delta) -> None:
        """Add one delta."""
        if type(delta) is TextDelta:
            self._text.append(delta.text)
            self._tokens.extend(delta.tokens)
        elif isinstance(delta, ReasoningDelta):
            self._reasoning.append(delta.text)
        elif not isinstance(delta, TextDelta):
            call = self._calls.setdefault(delta.index, ["", "", ""])
            call[0] = delta.id or call[0]
            call[1] = delta.name or call[1]
            call[2] += delta.arguments

    def complete(
        self,
        reason: StopReason,
        end: Ended | None,
        *,
        usage: Usage,
        first_token_seconds: float | None,
        neutralized: int = 0,
        restarts: int = 0,
    ) -> Completion:
        """Return what has arrived so far as a Completion. `usage` is used if the server has not reported the `end`."""
        timings = end.timings if end is not None else Timings()
        return Completion(
            id=self._id,
            text=self._start + "".join(self._text),
            stop_reason=reason,
            stop_phrase=end.stop_phrase if end is not None else None,
            context_full=end.context_full if end is not None else False,
            usage=end.usage if end is not None else usage,
            timings=msgspec.structs.replace(timings, first_token_seconds=first_token_seconds),
            tokens=tuple(self._tokens),
            tool_calls=tuple(self._read_calls()),
            reasoning="".join(self._reasoning),
            seed=self._seed,
            model=self._model,
            neutralized=neutralized,
            restarts=restarts,
        )

    def delivered(self, usage: Usage) -> Delivered:
        """Return what has arrived so far, for a reply that has to be resumed."""
        return Delivered(
            text="".join(self._text),
            reasoning="".join(self._reasoning),
            calls={
                index: DeliveredCall(id=id_, name=name, arguments=arguments)
                for index, (id_, name, arguments) in self._calls.items()
            },
            token_count=len(self._tokens),
            usage=usage,
        )

    def _read_calls(self) -> list[ToolCall]:
        """Yield the tool calls that are complete: a call that was cut has no valid arguments."""
        whole = []
        for _, (id_, name, arguments) in sorted(self._calls.items()):
            with contextlib.suppress(msgspec.DecodeError):
                decoded = msgspec.json.decode(arguments or "{}", type=dict[str, Any])
                whole.append(ToolCall(id=id_, name=name, arguments=decoded))
        return whole
