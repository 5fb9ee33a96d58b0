"""ReplayDecoder and ContinuedDecoder: a stream after a restart, put together with what was delivered before it."""

from __future__ import annotations

import pytest

from llmsession.types.completion import StopReason, Timings, Token, Usage
from llmsession.types.errors import ServerExitedError
from llmsession.types.events import Delta, Ended, ReasoningDelta, TextDelta, ToolCallDelta
from llmsession.wire.accumulator import Accumulator
from llmsession.wire.resume import ContinuedDecoder, Delivered, DeliveredCall, ReplayDecoder

END = Ended(stop_reason=StopReason.END, usage=Usage(prompt_tokens=9, completion_tokens=4), timings=Timings())
GONE = ServerExitedError("gone", returncode=-9, log_tail="")


class Script:
    """An inner decoder that gives these events, one for each payload."""

    error = None
    slot = None

    def __init__(self, *events: Delta | Ended) -> None:
        self.events = list(events)
        self.usage = Usage(prompt_tokens=9, completion_tokens=4, cached_tokens=8)

    def decode(self, payload: bytes) -> list[Delta | Ended]:
        return [self.events.pop(0)]

    def end(self) -> Ended | None:
        return END


def read(decoder: ContinuedDecoder | ReplayDecoder, count: int) -> list[Delta | Ended]:
    """What it makes of so many payloads."""
    return [event for _ in range(count) for event in decoder.decode(b"")]


@pytest.mark.parametrize(
    ("delivered", "pieces"),
    [
        ("one two ", ["one ", "two ", "three"]),
        ("one t", ["one ", "two three"]),
        ("one two ", ["o", "ne two t", "hree"]),
    ],
)
def test_what_was_delivered_is_left_away_however_it_is_cut_this_time(delivered: str, pieces: list[str]) -> None:
    """DESIGN 4: replay."""
    script = Script(*[TextDelta(text=piece) for piece in pieces], END)
    events = read(ReplayDecoder(script, Delivered(text=delivered), GONE), len(pieces) + 1)
    said = "".join(event.text for event in events if isinstance(event, TextDelta))
    assert "one two three" == delivered + said
    assert END == events[-1]


@pytest.mark.parametrize(
    "events",
    [
        (TextDelta(text="one "), TextDelta(text="four ")),
        (TextDelta(text="one "), END),
        (ReasoningDelta(text="um"), TextDelta(text="one two")),
        (ToolCallDelta(index=0, id="x", name="other"),),
        (ToolCallDelta(index=0, id="x", name="sum", arguments='{"b"'),),
    ],
)
def test_what_differs_is_told_and_not_mixed(events: tuple[Delta | Ended, ...]) -> None:
    """DESIGN 4: if it is not equal, ServerExitedError."""
    call = DeliveredCall(id="a", name="sum", arguments='{"a"')
    delivered = Delivered(text="one two ", reasoning="hm", calls={0: call})
    with pytest.raises(ServerExitedError):
        read(ReplayDecoder(Script(*events), delivered, GONE), len(events))


def test_a_call_goes_on_under_the_number_that_was_delivered() -> None:
    """The server draws call ids again; the reader has the first."""
    first = Accumulator(id="r", model="m", seed=1)
    first.take(ToolCallDelta(index=0, id="a1", name="sum", arguments='{"x":'))
    delivered = first.delivered(Usage())
    again = (
        ToolCallDelta(index=0, id="b2", name="sum", arguments="{"),
        ToolCallDelta(index=0, arguments='"x":1}'),
        ToolCallDelta(index=1, id="c3", name="sum", arguments="{}"),
    )
    for event in read(ReplayDecoder(Script(*again), delivered, GONE), 3):
        assert not isinstance(event, Ended)
        first.take(event)
    whole = first.complete(StopReason.TOOL_CALLS, None, usage=Usage(), first_token_seconds=None)
    assert [("a1", {"x": 1}), ("c3", {})] == [(call.id, call.arguments) for call in whole.tool_calls]


def test_tokens_with_probabilities_come_once() -> None:
    """Row C6: as many tokens as the text has."""
    tokens = [Token(id=number, text=str(number), logprob=-0.1) for number in range(3)]
    script = Script(*[TextDelta(text=token.text, tokens=(token,)) for token in tokens])
    events = read(ReplayDecoder(script, Delivered(text="01", token_count=2), GONE), 3)
    assert [(), (), (tokens[2],)] == [event.tokens for event in events if isinstance(event, TextDelta)]


def test_what_goes_on_is_counted_with_what_was_before() -> None:
    """Row C6: the new prompt holds the delivered part, which the caller did not send."""
    before = Usage(prompt_tokens=5, completion_tokens=4)
    decoder = ContinuedDecoder(Script(TextDelta(text="x", completion_tokens=1), END), before)
    first, last = read(decoder, 2)
    assert isinstance(first, TextDelta)
    assert isinstance(last, Ended)
    assert 5 == first.completion_tokens
    assert Usage(prompt_tokens=5, completion_tokens=8, cached_tokens=0) == last.usage == decoder.end().usage  # type: ignore[union-attr]
    assert Usage(prompt_tokens=5, completion_tokens=8, cached_tokens=5) == decoder.usage
