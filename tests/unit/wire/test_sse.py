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
    b'event: x\r\ndata: one\r\ndata: two\r\n\r\ndata:three\r\rerror: {"code":500}\n\ndata: [DONE]\n\n'
)
EVENTS = [
    '{"content":"a\u2028b\x85c"}'.encode(),
    b"null",
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


def test_an_event_that_has_not_ended_is_not_given() -> None:
    """The specification: an event ends with an empty line."""
    assert [] == feed([b"data: half\n"])
