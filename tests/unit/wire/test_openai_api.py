"""The OpenAI API without I/O: the same events from other frames."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmsession.types.completion import StopReason, Usage
from llmsession.types.events import Ended, ReasoningDelta, TextDelta, ToolCallDelta
from llmsession.types.messages import Message, Role, ToolCall
from llmsession.types.sampling import Sampling
from llmsession.wire import openai_api
from tests.unit.wire.test_completion_api import make


def chunk(delta: dict[str, Any] | None = None, *, finish: str | None = None, **more: Any) -> dict[str, Any]:
    """As llama-server and OpenAI write it."""
    choices = [{"index": 0, "delta": delta or {}, "finish_reason": finish, **more.pop("choice", {})}]
    return {"object": "chat.completion.chunk", "id": "x", "model": "m", "choices": choices, **more}


COUNTED = {
    "choices": [],
    "usage": {
        "prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14, "prompt_tokens_details": {"cached_tokens": 4},
    },
    "timings": {"cache_n": 4, "prompt_n": 5, "prompt_ms": 2.0, "predicted_n": 5, "predicted_ms": 8.0},
}  # fmt: skip


def decode(*frames: dict[str, Any], done: bool = True, **given: Any) -> list[Any]:
    """The events of these frames and of `[DONE]`."""
    decoder = openai_api.EventDecoder(make(**given))
    payloads = [json.dumps(frame).encode() for frame in frames] + ([b"[DONE]"] if done else [])
    return [event for payload in payloads for event in decoder.decode(payload)]


def test_text_and_an_end_that_is_counted_later() -> None:
    """LLAMA_SERVER 3.8: role frame, deltas, finish, usage, [DONE]."""
    frames = [
        chunk({"role": "assistant", "content": None}),
        chunk({"content": "o"}),
        chunk({"content": "k"}),
        chunk(finish="stop"),
        COUNTED,
    ]
    first, second, end = decode(*frames)
    assert ["o", "k"] == [first.text, second.text]
    assert isinstance(end, Ended)
    assert StopReason.END is end.stop_reason
    assert Usage(prompt_tokens=9, completion_tokens=5, cached_tokens=4) == end.usage
    assert 500.0 == end.timings.generated.rate


def test_done_without_a_finish_is_no_end() -> None:
    """DESIGN 3: never a short answer."""
    assert [] == decode(chunk({"role": "assistant"}))


def test_a_finish_without_done_is_an_end_only_where_the_stream_is_over() -> None:
    """The counts come after it; some servers never send them."""
    decoder = openai_api.EventDecoder(make())
    assert decoder.end() is None
    assert [] == decoder.decode(json.dumps(chunk(finish="stop")).encode())
    ended = decoder.end()
    assert ended is not None
    assert StopReason.END is ended.stop_reason


@pytest.mark.parametrize(
    ("verbose", "finish", "expected"),
    [
        ({"stop_type": "word", "stopping_word": "###"}, "stop", (StopReason.STOP_PHRASE, "###")),
        ({"stop_type": "eos"}, "stop", (StopReason.END, None)),
        (None, "tool_calls", (StopReason.TOOL_CALLS, None)),
    ],
)
def test_each_way_to_end(verbose: dict[str, Any] | None, finish: str, expected: tuple[StopReason, str | None]) -> None:
    """finish_reason says stop for a phrase as well; only the verbose frame tells which."""
    more = {"__verbose": verbose} if verbose else {}
    (end,) = decode(chunk(finish=finish, **more), COUNTED)
    assert expected == (end.stop_reason, end.stop_phrase)


@pytest.mark.parametrize(("max_tokens", "full"), [(5, False), (6, True), (None, True)])
def test_a_length_below_the_limit_is_the_contexts_end(max_tokens: int | None, full: bool) -> None:
    """API 2: context_full."""
    (end,) = decode(chunk(finish="length"), COUNTED, max_tokens=max_tokens)
    assert (StopReason.LENGTH, full) == (end.stop_reason, end.context_full)


@pytest.mark.parametrize(
    ("stopped", "expected"), [("###", (StopReason.STOP_PHRASE, "###")), (7, (StopReason.END, None))]
)
def test_vllm_names_the_phrase_in_a_field_of_its_own(
    stopped: str | int, expected: tuple[StopReason, str | None]
) -> None:
    """Its `stop_reason`: the phrase, or the id of a token that ended the reply."""
    (end,) = decode(chunk(finish="stop", choice={"stop_reason": stopped}), COUNTED)
    assert expected == (end.stop_reason, end.stop_phrase)


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_comes_apart(name: str) -> None:
    """LLAMA_SERVER 3.8: delta.reasoning_content; vLLM and Ollama say reasoning."""
    assert [ReasoningDelta(text="hm"), TextDelta(text="ok", completion_tokens=2)] == decode(
        chunk({name: "hm"}), chunk({"content": "ok"})
    )


def test_tool_calls_come_in_pieces() -> None:
    """LLAMA_SERVER 3.8: id and name first, then pieces of arguments."""
    first = {"index": 0, "id": "a", "type": "function", "function": {"name": "calculate", "arguments": "{"}}
    events = decode(
        chunk({"tool_calls": [first]}), chunk({"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]})
    )
    assert [
        ToolCallDelta(index=0, id="a", name="calculate", arguments="{"),
        ToolCallDelta(index=0, arguments="}"),
    ] == events


def test_log_probabilities_and_token_ids() -> None:
    """API 3, through what llama-server adds to OpenAI's form."""
    entry = {"id": 111, "token": "o", "logprob": -0.5, "top_logprobs": []}
    frame = chunk({"content": "o"}, choice={"logprobs": {"content": [entry]}})
    assert [111] == [token.id for token in decode(frame, top_logprobs=0)[0].tokens]
    (end,) = decode(frame, stop=[111])
    assert StopReason.STOP_PHRASE is end.stop_reason


def test_messages_are_written_in_openais_form() -> None:
    """OpenAI's reference: arguments are a JSON text, content may be null."""
    call = ToolCall(id="a", name="clock", arguments={"x": 1})
    assert [
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "a", "type": "function", "function": {"name": "clock", "arguments": '{"x":1}'}}],
        },
        {"role": "tool", "content": "12:00", "tool_call_id": "a"},
    ] == [
        openai_api.encode_message(message)
        for message in (
            Message.user("hi"),
            Message(Role.ASSISTANT, tool_calls=(call,)),
            Message.tool("12:00", tool_call_id="a"),
        )
    ]


def test_the_body_streams_and_asks_for_the_counts() -> None:
    """DESIGN 3: always stream inside; LLAMA_SERVER F12."""
    body = json.loads(
        openai_api.encode_request([Message.user("hi")], make(max_tokens=3, stop="x", top_logprobs=0), model="m")
    )
    assert (True, True, 3, ["x"], True, True, 1) == (
        body["stream"], body["stream_options"]["include_usage"], body["max_tokens"], body["stop"], body["verbose"],
        body["logprobs"], body["top_logprobs"],
    )  # fmt: skip


def test_a_server_that_knows_openais_api_only_gets_no_more() -> None:
    """OpenAI refuses fields that it does not know."""
    sampling = Sampling(temperature=0.5, top_p=0.9, presence_penalty=0.1, frequency_penalty=0.2, logit_bias={5: 1.0})
    request = make(max_tokens=3, stop="x", top_logprobs=2, sampling=sampling)
    assert openai_api.find_beyond_openai(request) is None
    body = json.loads(openai_api.encode_request([Message.user("hi")], request, model="m", features=()))
    assert {
        "model", "messages", "stream", "stream_options", "seed", "max_tokens", "stop", "temperature", "top_p",
        "presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "top_logprobs",
    } == set(body)  # fmt: skip
    assert {"5": 1.0} == body["logit_bias"]


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"sampling": Sampling(top_k=3)}, "sampling setting top_k"),
        ({"sampling": Sampling(temperature=1.0, ignore_eos=False)}, "sampling setting ignore_eos"),
        ({"stop": [5]}, "stop by a token's id"),
    ],
)
def test_what_only_llama_cpp_understands_is_found(given: dict[str, Any], name: str) -> None:
    """CAPABILITIES B5: less what it lacks."""
    assert name == openai_api.find_beyond_openai(make(**given))
