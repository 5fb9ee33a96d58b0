"""Decoders around another: thoughts apart, and a character that is taken out again."""

from __future__ import annotations

import pytest

from llmsession.types.completion import StopReason, Timings, Usage
from llmsession.types.events import Delta, Ended, ReasoningDelta, TextDelta, ToolCallDelta
from llmsession.wire.stream_filters import SplitReasoning, StripCharacter

END = Ended(stop_reason=StopReason.END, usage=Usage(), timings=Timings())


class Said:
    """An inner decoder: each payload is the text of one delta; `end` ends."""

    usage = Usage(prompt_tokens=3)
    error = None
    slot = None

    def decode(self, payload: bytes) -> list[Delta | Ended]:
        return [END] if payload == b"end" else [TextDelta(text=payload.decode(), completion_tokens=1)]

    def end(self) -> Ended | None:
        return END


def read(decoder: SplitReasoning, pieces: list[str]) -> tuple[str, str]:
    """The reasoning and the answer."""
    events = [event for piece in [*pieces, "end"] for event in decoder.decode(piece.encode())]
    assert END == events[-1]
    thought = "".join(event.text for event in events if isinstance(event, ReasoningDelta))
    return thought, "".join(event.text for event in events if isinstance(event, TextDelta))


@pytest.mark.parametrize(
    ("pieces", "begun", "thought", "answer"),
    [
        (["hello"], False, "", "hello"),
        (["<think>", "\nso", "</think>", "\n\n", "yes"], False, "\nso", "yes"),
        (["<think>so</thi", "nk>\n\nyes"], False, "so", "yes"),
        (["so", "</think>", "yes"], True, "so", "yes"),
        (["<think>", "for ever"], False, "for ever", ""),
        (["<think>", "a </thin"], False, "a </thin", ""),
        (["1 < 2 <think>x</think>"], False, "", "1 < 2 <think>x</think>"),
        (["<", "b>"], False, "", "<b>"),
        (["<"], False, "", "<"),
        ([], False, "", ""),
    ],
)
def test_thoughts_are_told_apart(pieces: list[str], begun: bool, thought: str, answer: str) -> None:
    """As the chat endpoint does it, however the stream is cut."""
    assert (thought, answer) == read(SplitReasoning(Said(), begun=begun, whole=False), pieces)


def test_letters_that_spell_the_mark_are_no_thought() -> None:
    """Where the mark is a token it comes at once: letter by letter it is an answer that was asked for."""
    assert ("", "<think> is a word") == read(
        SplitReasoning(Said(), begun=False, whole=True), ["<", "think", ">", " is a word"]
    )
    assert ("so", "yes") == read(SplitReasoning(Said(), begun=False, whole=True), ["<think>", "so", "</think>", "yes"])


def test_the_rest_is_the_inner_ones() -> None:
    """Usage, error, and an end without a last event."""
    decoder = SplitReasoning(Said(), begun=False, whole=False)
    assert (Said.usage, None, END) == (decoder.usage, decoder.error, decoder.end())


def test_a_character_is_left_away() -> None:
    """In text, thoughts and calls."""

    class Other(Said):
        def decode(self, payload: bytes) -> list[Delta | Ended]:
            return [
                TextDelta(text="<-|x|>", completion_tokens=2),
                ReasoningDelta(text="-a-"),
                ToolCallDelta(index=0, id="-", name="f-n", arguments='{"a": "-"}'),
                ToolCallDelta(index=0),
                END,
            ]

    assert [
        TextDelta(text="<|x|>", completion_tokens=2),
        ReasoningDelta(text="a"),
        ToolCallDelta(index=0, id="-", name="fn", arguments='{"a": ""}'),
        ToolCallDelta(index=0),
        END,
    ] == StripCharacter(Other(), "-").decode(b"")
