"""Decoders around another: with the thoughts apart, cut at a phrase, or without a character that we put in. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from llmsession.types.completion import StopReason, Usage
from llmsession.types.events import Delta, Ended, ReasoningDelta, TextDelta, ToolCallDelta

if TYPE_CHECKING:
    from llmsession.wire.decoder import EventDecoder

THINK, THINK_END = "<think>", "</think>"


class Around:
    """A decoder around another: the same usage, error and end."""

    def __init__(self, inner: EventDecoder) -> None:
        self._inner = inner

    @property
    def usage(self) -> Usage:
        """The usage of the inner decoder."""
        return self._inner.usage

    @property
    def error(self) -> bytes | None:
        """The error of the inner decoder."""
        return self._inner.error

    @property
    def slot(self) -> int | None:
        """The slot of the inner decoder."""
        return self._inner.slot

    def end(self) -> Ended | None:
        """Return the end of the inner decoder."""
        return self._inner.end()


class StripCharacter(Around):
    """Removes a character wherever it appears."""

    def __init__(self, inner: EventDecoder, character: str) -> None:
        super().__init__(inner)
        self._character = character

    def decode(self, payload: bytes) -> list[Delta | Ended]:
        """Decode one event, without the character."""
        return [self._clean(event) for event in self._inner.decode(payload)]

    def _clean(self, event: Delta | Ended) -> Delta | Ended:
        match event:
            case TextDelta() | ReasoningDelta():
                return msgspec.structs.replace(event, text=event.text.replace(self._character, ""))
            case ToolCallDelta():
                name = event.name.replace(self._character, "") if event.name is not None else None
                return msgspec.structs.replace(event, name=name, arguments=event.arguments.replace(self._character, ""))
        return event


class StopAtPhrase(Around):
    """Ends the text before a stop phrase, for a server that stops there but sends the rest of its token."""

    def __init__(self, inner: EventDecoder, phrases: Sequence[str]) -> None:
        super().__init__(inner)
        self._phrases = phrases
        self._kept = ""
        self._found: str | None = None

    def decode(self, payload: bytes) -> list[Delta | Ended]:
        """Decode one event. Text that may be the start of a phrase is held back until the next one."""
        events: list[Delta | Ended] = []
        for event in self._inner.decode(payload):
            match event:
                case TextDelta():
                    events.append(msgspec.structs.replace(event, text=self._cut(event.text)))
                case Ended() if self._found is not None:
                    events.append(
                        msgspec.structs.replace(event, stop_reason=StopReason.STOP_PHRASE, stop_phrase=self._found)
                    )
                case Ended():
                    events += [TextDelta(text=self._kept, completion_tokens=event.usage.completion_tokens), event]
                case _:
                    events.append(event)
        return events

    def _cut(self, text: str) -> str:
        if self._found is not None:
            return ""
        self._kept += text
        places = [(at, phrase) for phrase in self._phrases if (at := self._kept.find(phrase)) >= 0]
        if places:
            at, self._found = min(places, key=lambda place: place[0])
        else:
            at = min(_held_back(self._kept, phrase) for phrase in self._phrases)
        text, self._kept = self._kept[:at], self._kept[at:]
        return text


class SplitReasoning(Around):
    """Turns a leading `<think>…</think>` into reasoning, as the chat endpoint does.

    `begun`: the prompt ends inside the thought. `answers`: it ends inside the answer. `whole`: only a `<think>` that
    arrives at once, as a token, starts a thought.
    """

    def __init__(self, inner: EventDecoder, *, begun: bool, whole: bool, answers: bool = False) -> None:
        super().__init__(inner)
        self._whole = whole
        self._state = "answer" if answers else "thought" if begun else "start"
        self._kept = ""

    def decode(self, payload: bytes) -> list[Delta | Ended]:
        """Decode one event, as text or as reasoning."""
        if self._state == "answer" and not self._kept:
            return self._inner.decode(payload)
        events: list[Delta | Ended] = []
        for event in self._inner.decode(payload):
            if isinstance(event, TextDelta):
                events += self._split(event)
            else:
                if isinstance(event, Ended):
                    events += self._flush()
                events.append(event)
        return events

    def _split(self, event: TextDelta) -> list[Delta]:
        self._kept += event.text
        if self._state == "start":
            begun = self._kept.lstrip()
            if begun.startswith(THINK):
                self._state, self._kept = "thought", begun[len(THINK) :]
            elif not THINK.startswith(begun) or (self._whole and begun):
                self._state = "answer"
        thought = ""
        if self._state == "thought":
            thought, found, rest = self._kept.partition(THINK_END)
            if found:
                self._state, self._kept = "pause", rest
            else:
                at = _held_back(thought, THINK_END)
                thought, self._kept = thought[:at], thought[at:]
        if self._state == "pause":
            self._kept = self._kept.lstrip()
            self._state = "answer" if self._kept else "pause"
        text = ""
        if self._state == "answer":
            text, self._kept = self._kept, ""
        events: list[Delta] = [ReasoningDelta(text=thought)] if thought else []
        return [*events, msgspec.structs.replace(event, text=text)]

    def _flush(self) -> list[Delta]:
        text, self._kept = self._kept, ""
        if not text:
            return []
        return [ReasoningDelta(text=text) if self._state == "thought" else TextDelta(text=text)]


def _held_back(text: str, phrase: str) -> int:
    """Return where the start of a phrase may be at the end of a text."""
    lengths = range(min(len(phrase) - 1, len(text)), 0, -1)
    return len(text) - next((length for length in lengths if text.endswith(phrase[:length])), 0)
