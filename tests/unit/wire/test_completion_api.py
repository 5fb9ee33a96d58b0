"""The native API without I/O: what is sent, and what recorded frames mean."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmsession.types.completion import StopReason, Usage
from llmsession.types.errors import UndecodableError, UsageError
from llmsession.types.events import Ended, TextDelta
from llmsession.types.sampling import Sampling
from llmsession.wire import completion_api, openai_api
from llmsession.wire.request import LARGEST_SEED, GenerationRequest


def make(**given: Any) -> GenerationRequest:
    """With what a caller gave, the rest not given."""
    nothing: dict[str, Any] = {
        "max_tokens": None, "seed": 5, "sampling": Sampling(), "stop": (), "echo_stop": False, "top_logprobs": None,
        "extra": None,
    }  # fmt: skip
    own_stops = given.pop("own_stops", ())
    return GenerationRequest.make(**{**nothing, **given}).with_own_stops(own_stops)


def encode(**given: Any) -> dict[str, Any]:
    """The body, read again."""
    decoded: dict[str, Any] = json.loads(completion_api.encode_request("hello", make(**given)))
    return decoded


FALSY = Sampling(
    temperature=0.0, top_k=0, top_p=0.0, min_p=0.0, repeat_last_n=0, presence_penalty=0.0, mirostat=0, ignore_eos=False,
    dry_sequence_breakers=(), samplers=(), logit_bias={},
)  # fmt: skip


def test_falsy_values_that_were_given_are_sent_and_none_is_not() -> None:
    """API: temperature 0 is a temperature."""
    body = encode(sampling=FALSY)
    assert {
        "prompt": "hello", "stream": True, "cache_prompt": True, "seed": 5, "temperature": 0.0, "top_k": 0,
        "top_p": 0.0, "min_p": 0.0, "repeat_last_n": 0, "presence_penalty": 0.0, "mirostat": 0, "ignore_eos": False,
        "dry_sequence_breakers": [], "samplers": [], "logit_bias": [],
    } == body  # fmt: skip


def test_both_apis_send_the_same_settings() -> None:
    """DESIGN 3: both are held to the same tests."""
    chat = json.loads(openai_api.encode_request([], make(sampling=FALSY), model="m"))
    native = encode(sampling=FALSY)
    assert {key: native[key] for key in native if key != "prompt"}.items() <= chat.items()


def test_what_was_asked_for_is_in_the_body() -> None:
    """LLAMA_SERVER 3.7: its names."""
    body = encode(
        max_tokens=7, stop=["a", 3], top_logprobs=0, extra={"n_keep": 1}, sampling=Sampling(logit_bias={5: -1.0})
    )
    assert (7, ["a"], 1, 1, [[5, -1.0]]) == tuple(
        body[key] for key in ("n_predict", "stop", "n_probs", "n_keep", "logit_bias")
    )
    assert body["return_tokens"] is True


def test_token_ids_are_a_prompt() -> None:
    """LLAMA_SERVER 3.7: prompt shapes."""
    assert [1, 2] == json.loads(completion_api.encode_request([1, 2], make()))["prompt"]


@pytest.mark.parametrize("seed", [None, 0])
def test_a_seed_that_was_not_given_is_drawn(seed: int | None) -> None:
    """DESIGN 4: a seed is always sent, so that a reply can be replayed."""
    drawn = {make(seed=seed).seed for _ in range(20)}
    assert 20 == len(drawn)
    assert all(1 <= seed <= LARGEST_SEED for seed in drawn)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": 0},
        {"max_tokens": -1},
        {"max_tokens": 1.5},
        {"max_tokens": True},
        {"seed": -1},
        {"seed": 2**32 - 1},
        {"seed": "7"},
        {"top_logprobs": -1},
        {"stop": [""]},
        {"stop": ""},
        {"stop": [1.5]},
        {"stop": [True]},
    ],
)
def test_a_wrong_value_is_a_usage_error_that_names_it(wrong: dict[str, Any]) -> None:
    """Issue 1: bad input gets one clear error."""
    (name,) = wrong
    with pytest.raises(UsageError, match=name if name != "stop" else "stop phrase"):
        make(**wrong)


@pytest.mark.parametrize("extra", [{"prompt": "x"}, {"stream": False}, {"seed": 1}])
def test_extra_may_not_set_what_is_ours(extra: dict[str, Any]) -> None:
    """API 3: a key of ours in it is an error."""
    with pytest.raises(UsageError, match="extra="):
        encode(extra=extra)


@pytest.mark.parametrize("extra", [{"x": object()}, {"x": "\ud800"}])
def test_extra_must_be_json(extra: dict[str, Any]) -> None:
    """API 5: an error of ours."""
    with pytest.raises(UsageError):
        encode(extra=extra)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "0.5"])
def test_a_sampler_takes_finite_numbers(value: Any) -> None:
    """JSON has no NaN: it would be sent as null, which means "not given"."""
    with pytest.raises(UsageError, match="top_p"):
        Sampling(top_p=value)


FIRST = {
    "index": 0, "content": "ok", "tokens": [111], "stop": False, "id_slot": -1, "tokens_predicted": 1,
    "tokens_evaluated": 9, "a_field_of_tomorrow": {"x": [1]},
}  # fmt: skip
LAST = {
    "index": 0, "content": "", "tokens": [], "id_slot": 3, "stop": True, "model": "m", "tokens_predicted": 5,
    "tokens_evaluated": 9, "truncated": False, "stop_type": "eos", "stopping_word": "",
    "timings": {"cache_n": 4, "prompt_n": 5, "prompt_ms": 2.0, "predicted_n": 5, "predicted_ms": 8.0},
}  # fmt: skip


def decode(*frames: dict[str, Any] | None, **given: Any) -> list[Any]:
    """The events of these frames."""
    decoder = completion_api.EventDecoder(make(**given))
    return [event for frame in frames for event in decoder.decode(json.dumps(frame).encode())]


def test_a_piece_and_an_end() -> None:
    """LLAMA_SERVER 3.7, recorded frames; a field that is new is passed over."""
    text, end = decode(FIRST, LAST)
    assert TextDelta(text="ok", completion_tokens=1) == text
    assert isinstance(end, Ended)
    assert Usage(prompt_tokens=9, completion_tokens=5, cached_tokens=4) == end.usage
    assert (StopReason.END, None, False) == (end.stop_reason, end.stop_phrase, end.context_full)
    assert (5, 0.002) == (end.timings.prompt.count, end.timings.prompt.seconds)
    # The first token comes with the prompt's evaluation: four tokens in 8 ms.
    assert 500.0 == end.timings.generated.rate


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"stop_type": "limit"}, (StopReason.LENGTH, None, False)),
        ({"stop_type": "limit", "truncated": True}, (StopReason.LENGTH, None, True)),
        ({"stop_type": "word", "stopping_word": "###"}, (StopReason.STOP_PHRASE, "###", False)),
        ({"stop_type": "none"}, (StopReason.END, None, False)),
        ({"stop_type": "of tomorrow"}, (StopReason.END, None, False)),
    ],
)
def test_each_way_to_end(change: dict[str, Any], expected: tuple[StopReason, str | None, bool]) -> None:
    """LLAMA_SERVER 3.7, stop_type."""
    (end,) = decode({**LAST, **change})
    assert expected == (end.stop_reason, end.stop_phrase, end.context_full)


def test_a_progress_frame_has_no_tokens() -> None:
    """LLAMA_SERVER 3.7: progress frames carry a bogus `"tokens":[0]`; 0 may be a stop id."""
    progress = {**FIRST, "content": "", "tokens": [0], "prompt_progress": {"total": 9, "cache": 0, "processed": 5}}
    assert [] == decode(progress, stop=[0])


def test_a_null_frame_says_nothing() -> None:
    """LLAMA_SERVER 3.7: a stray `data: null`."""
    assert [] == decode(None)


def test_a_token_id_ends_the_reply() -> None:
    """API 3: stop takes token ids; the engine knows only texts."""
    (end,) = decode(FIRST, stop=[111])
    assert (StopReason.STOP_PHRASE, 1) == (end.stop_reason, end.usage.completion_tokens)


def test_log_probabilities() -> None:
    """API 3: 0: each token's own; k: and k alternatives."""
    entry = {"id": 111, "token": "ok", "logprob": -0.5, "bytes": [111, 107]}
    frame = {**FIRST, "completion_probabilities": [{**entry, "top_logprobs": [entry, {**entry, "id": 7}]}]}
    assert () == decode(frame)[0].tokens
    (token,) = decode(frame, top_logprobs=0)[0].tokens
    assert (111, "ok", -0.5, ()) == (token.id, token.text, token.logprob, token.top)
    (token,) = decode(frame, top_logprobs=2)[0].tokens
    assert [111, 7] == [other.id for other in token.top]


def test_an_error_frame_is_kept_for_the_reader() -> None:
    """LLAMA_SERVER F4: an error in the middle of a stream."""
    decoder = completion_api.EventDecoder(make())
    payload = b'{"error":{"code":500,"message":"Context size has been exceeded."}}'
    assert [] == decoder.decode(payload)
    assert payload == decoder.error


@pytest.mark.parametrize("payload", [b"", b"{", b"[1]", b'"x"', b"5", b"<html>"])
def test_what_is_no_frame_is_undecodable(payload: bytes) -> None:
    """API 5: ProtocolError, with the payload."""
    with pytest.raises(UndecodableError) as caught:
        completion_api.EventDecoder(make()).decode(payload)
    assert payload == caught.value.payload


def test_an_error_frame_of_the_chat_endpoint_is_kept_as_well() -> None:
    """The same, on the other door."""
    decoder = openai_api.EventDecoder(make())
    payload = b'{"error":{"code":500,"message":"Context size has been exceeded."}}'
    assert [] == decoder.decode(payload)
    assert payload == decoder.error


@pytest.mark.parametrize("payload", [b"", b"{", b"[1]", b'"x"', b"5", b"<html>"])
def test_what_is_no_chat_frame_is_undecodable(payload: bytes) -> None:
    """API 5: the same for the chat endpoint."""
    with pytest.raises(UndecodableError):
        openai_api.EventDecoder(make()).decode(payload)
