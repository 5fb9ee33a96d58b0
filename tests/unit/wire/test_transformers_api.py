"""What is asked of `transformers serve`, and what its frames say. The facts are those of version 5.23, as observed."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from llmsession import ContextOverflowError, Message, Sampling, StopReason, TextDelta
from llmsession.types.events import Ended
from llmsession.wire import transformers_api
from llmsession.wire.request import GenerationRequest
from llmsession.wire.server_errors import decode_error, decode_error_frame
from llmsession.wire.stream_filters import StopAtPhrase
from llmsession.wire.transformers_api import EventDecoder, encode_request, find_unsupported


def request(**given: Any) -> GenerationRequest:
    """Of these keywords."""
    keywords: dict[str, Any] = {
        "max_tokens": None, "seed": 5, "sampling": Sampling(), "stop": (), "echo_stop": False, "top_logprobs": None,
        "extra": None,
    }  # fmt: skip
    return GenerationRequest.make(**(keywords | given))


def body_of(asked: GenerationRequest, *, context_length: int | None = 100, model: str | None = None) -> dict[str, Any]:
    """As it is sent, with the settings decoded."""
    body = msgspec.json.decode(
        encode_request([Message.user("hi")], asked, model=model, context_length=context_length), type=dict[str, Any]
    )
    return body | {"generation_config": msgspec.json.decode(body["generation_config"])}


def test_only_fields_that_it_knows_are_sent() -> None:
    """It answers 422 to a field that it does not know, and 400 to any name but its own model's."""
    body = body_of(request(stop=["x"], sampling=Sampling(logit_bias={7: 2})))
    assert {"messages", "stream", "seed", "generation_config", "stop", "logit_bias"} == set(body)
    assert {"7": 2.0} == body["logit_bias"]
    assert "a/b" == body_of(request(), model="a/b")["model"]


@pytest.mark.parametrize(
    ("sampling", "settings"),
    [
        (Sampling(), {}),
        (Sampling(temperature=0.0, top_k=5, repeat_penalty=1.1), {"do_sample": False, "repetition_penalty": 1.1}),
        (Sampling(temperature=0.7), {"do_sample": True, "temperature": 0.7}),
        (Sampling(top_k=5, top_p=0.9, min_p=0.1, typical_p=0.5),
         {"do_sample": True, "top_k": 5, "top_p": 0.9, "min_p": 0.1, "typical_p": 0.5}),
        (Sampling(repeat_penalty=1.1), {"repetition_penalty": 1.1}),
    ],
)  # fmt: skip
def test_settings_go_where_they_count(sampling: Sampling, settings: dict[str, Any]) -> None:
    """Outside of generation_config a temperature is kept and not used: nothing says that it shall sample."""
    assert settings | {"max_length": 100} == body_of(request(sampling=sampling))["generation_config"]


@pytest.mark.parametrize(
    ("max_tokens", "context", "limits"),
    [
        (None, 100, {"max_length": 100}),
        (5, 100, {"max_new_tokens": 5}),
        (100, 100, {"max_length": 100}),
        (None, None, {"max_new_tokens": transformers_api.UNKNOWN_CONTEXT}),
        (5, None, {"max_new_tokens": 5}),
    ],
)
def test_there_is_always_a_limit(max_tokens: int | None, context: int | None, limits: dict[str, int]) -> None:
    """Without one it stops after 20 tokens, and calls that the end."""
    assert limits == body_of(request(max_tokens=max_tokens), context_length=context)["generation_config"]
    endless = request(max_tokens=max_tokens, sampling=Sampling(ignore_eos=True))
    assert {*limits, "min_new_tokens"} == set(body_of(endless, context_length=context)["generation_config"])


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({}, None),
        ({"sampling": Sampling(temperature=1.0, ignore_eos=True, logit_bias={1: 1.0}), "extra": {"tools": []}}, None),
        ({"sampling": Sampling(dry_multiplier=1.0)}, "sampling setting dry_multiplier"),
        ({"stop": [3]}, "stop by a token's id"),
        ({"top_logprobs": 2}, "log-probabilities"),
        ({"extra": {"parallel_tool_calls": True}}, "request field parallel_tool_calls"),
    ],
)
def test_what_it_would_ignore_is_found(given: dict[str, Any], named: str | None) -> None:
    """CAPABILITIES B4: refused by name, never dropped in silence."""
    assert named == find_unsupported(request(**given))


def frame(text: str | None = None, **more: Any) -> bytes:
    """One of its frames."""
    choice = {"index": 0, "delta": {} if text is None else {"content": text}, **more.pop("choice", {})}
    return msgspec.json.encode({"id": "x", "choices": [choice], "object": "chat.completion.chunk", **more})


def last_frame(prompt: int, completion: int, reason: str = "stop") -> bytes:
    """The end and the counts in one; no `[DONE]` comes after it."""
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return frame(choice={"finish_reason": reason}, usage=usage)


def test_the_frame_with_the_counts_is_the_end() -> None:
    """As observed: usage comes unasked, and the body just ends."""
    decoder = EventDecoder(request(), context_length=100)
    assert [TextDelta(text="ok", completion_tokens=1)] == decoder.decode(frame("ok"))
    (ended,) = decoder.decode(last_frame(40, 9))
    assert isinstance(ended, Ended)
    assert (StopReason.END, 40, 9, False) == (
        ended.stop_reason, ended.usage.prompt_tokens, ended.usage.completion_tokens, ended.context_full,
    )  # fmt: skip


def test_a_reply_that_fills_the_context_says_so() -> None:
    """It calls that `stop`, like the model's own end."""
    (ended,) = EventDecoder(request(), context_length=100).decode(last_frame(40, 60))
    assert isinstance(ended, Ended)
    assert (StopReason.LENGTH, True) == (ended.stop_reason, ended.context_full)
    (cut,) = EventDecoder(request(max_tokens=5), context_length=100).decode(last_frame(40, 5, "length"))
    assert isinstance(cut, Ended)
    assert (StopReason.LENGTH, False) == (cut.stop_reason, cut.context_full)


def test_a_prompt_beyond_the_context_is_an_error_however_it_comes_out() -> None:
    """It says so where max_length is the limit; with max_new_tokens it just answers."""
    said = b'{"error": "Input length of input_ids is 310, but `max_length` is set to 100. This can lead to"}'
    for payload, asked in ((said, request()), (last_frame(310, 5, "length"), request(max_tokens=5))):
        decoder = EventDecoder(asked, context_length=100)
        assert [] == decoder.decode(payload)
        assert decoder.error is not None
        error = decode_error_frame(decoder.error)
        assert isinstance(error, ContextOverflowError)
        assert (310, 100) == (error.prompt_tokens, error.context_length)


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (b'{"error": "plain"}', "plain"),
        (b'{"error": "the "key" of \'x\'"}', "the \"key\" of 'x'"),
        (b'{"error": "cut at a line', "cut at a line"),
    ],
)
def test_an_error_without_escapes_is_read(payload: bytes, words: str) -> None:
    """It puts the words between quotes and leaves them as they are; a line break ends the event."""
    decoder = EventDecoder(request(), context_length=100)
    assert [] == decoder.decode(payload)
    assert decoder.error is not None
    assert f"the server failed: {words}" == str(decode_error_frame(decoder.error))


def test_the_words_of_a_refusal_are_fastapis() -> None:
    """`detail` instead of an error with a message."""
    assert "the server refuses the request: no such" in str(decode_error(422, b'{"detail":"no such"}'))


@pytest.mark.parametrize(
    ("pieces", "stop", "text", "phrase"),
    [
        (["1 2 ", "3", " 4"], ["3"], "1 2 ", "3"),
        (["1 2", " 3 4"], ["2 3"], "1 ", "2 3"),
        (["a", "b", "a", "b", "c"], ["abc"], "ab", "abc"),
        (["a", "b", "a", "b"], ["abc"], "abab", None),
        (["12345"], ["4", "23"], "1", "23"),
        (["ab"], ["zz", "b and more"], "ab", None),
    ],
)
def test_a_reply_is_cut_before_a_stop_phrase(pieces: list[str], stop: list[str], text: str, phrase: str | None) -> None:
    """It stops there and sends the phrase, with whatever else its last token has."""
    asked = request(stop=stop)
    decoder = StopAtPhrase(EventDecoder(asked, context_length=100), asked.stop)
    events = [event for piece in pieces for event in decoder.decode(frame(piece))] + decoder.decode(last_frame(9, 9))
    *deltas, ended = events
    assert text == "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))
    assert isinstance(ended, Ended)
    assert phrase == ended.stop_phrase
    assert (StopReason.STOP_PHRASE if phrase else StopReason.END) is ended.stop_reason
