"""Server-sent events from bytes, in pieces of any size."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsession.wire.sse import Decoder

# What an engine can send between the frames of a reply, and what a JSON string may hold as it is.
STREAM = (
    b': ping\n\ndata: {"content":"a\xe2\x80\xa8b\xc2\x85c"}\n\ndata: null\n\n:\n\n'
    b'event: ping\r\ndata: one\r\n\r\nevent: x\ndata: {"a":1}\n\n'
    b'data: one\r\ndata: two\r\n\r\ndata:\n\ndata:three\r\rerror: {"code":500}\n\ndata: [DONE]\n\n'
)
EVENTS = [
    '{"content":"a\u2028b\x85c"}'.encode(),
    b"null",
    b'{"a":1}',
    b"one\ntwo",
    b"three",
    b'{"error":{"code":500}}',
    b"[DONE]",
]


def feed(chunks: list[bytes]) -> list[bytes]:
    """All events of these chunks."""
    decoder = Decoder()
    return [event for chunk in chunks for event in decoder.feed(chunk)]


def test_a_whole_stream_at_once() -> None:
    """The specification: CR, LF and CRLF end lines; comments and unknown fields are passed over."""
    assert EVENTS == feed([STREAM])


@pytest.mark.parametrize("cut", range(len(STREAM) + 1))
def test_a_cut_at_any_byte_changes_nothing(cut: int) -> None:
    """LLAMA_SERVER 3.7: chunks end anywhere, also inside a character or between CR and LF."""
    assert EVENTS == feed([STREAM[:cut], STREAM[cut:]])


def test_byte_by_byte() -> None:
    """The same, for the smallest pieces there are."""
    assert EVENTS == feed([STREAM[at : at + 1] for at in range(len(STREAM))])


@given(
    st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"])), max_size=8),
    st.lists(st.integers(0, 400), max_size=8),
)
def test_any_text_in_any_pieces_comes_out_as_it_went_in(texts: list[str], cuts: list[int]) -> None:
    """STYLE 1, httpx's wart: U+2028 and its kin end no line."""
    stream = b"".join(b"data: " + json.dumps(text, ensure_ascii=False).encode() + b"\n\n" for text in texts)
    edges = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
    chunks = [stream[a:b] for a, b in itertools.pairwise(edges)]
    assert texts == [json.loads(event) for event in feed(chunks)]


def test_an_event_that_has_not_ended_is_given_at_the_end_of_the_stream() -> None:
    """The specification: an event ends with an empty line. D2: some servers hang up without the last one."""
    for rest in (b"data: half", b"data: half\n", b"data: half\r\n"):
        decoder = Decoder()
        assert [] == decoder.feed(rest)
        assert [b"half"] == decoder.finish()
        assert [] == decoder.finish()


@pytest.mark.parametrize("cut", range(6))
def test_a_byte_order_mark_at_the_start_is_no_part_of_the_first_event(cut: int) -> None:
    """B6: the first piece was lost; also split over chunks."""
    stream = b"\xef\xbb\xbfdata: one\n\ndata: \xef\xbb\xbf\n\n"
    assert [b"one", b"\xef\xbb\xbf"] == feed([stream[:cut], stream[cut:]])


@pytest.mark.parametrize(
    ("event", "payload"),
    [
        (b'event: error\ndata: {"message":"no room"}\n\n', b'{"error":{"message":"no room"}}'),
        (b'event: error\ndata: {"error":5}\n\n', b'{"error":5}'),
        (b"event: error\ndata: no room\n\n", b'{"error":"no room"}'),
        (b"event: message\ndata: one\n\n", b"one"),
    ],
)
def test_the_name_of_an_event_tells_an_error(event: bytes, payload: bytes) -> None:
    """D2, D3: whatever a server says in words reaches the user."""
    assert [payload] == feed([event])


def test_a_line_in_many_pieces_is_joined_once() -> None:
    """F5: 4 MB in pieces of 64 kB were copied and searched again with each; here each piece is one byte of many."""
    line = b"data: " + b"x" * 300_000
    decoder = Decoder()
    for at in range(0, len(line), 10):
        assert [] == decoder.feed(line[at : at + 10])
    assert [line[6:]] == decoder.feed(b"\n\n")


def test_an_answer_that_is_no_stream_is_one_event() -> None:
    """D3: JSON, whose lines are no fields; and words, which are kept for the error."""
    decoder = Decoder()
    assert [] == decoder.feed(b'{\n"a":') + decoder.feed(b" 1}\n")
    assert [b'{\n"a": 1}\n'] == decoder.finish()
    decoder = Decoder()
    assert [] == decoder.feed(b"upstream connect error\n") + decoder.finish()
    assert b"upstream connect error" == decoder.foreign_line
