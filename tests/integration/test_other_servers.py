"""Servers of other makers, and what they send instead of a reply. FAULTS, parts B and D, as public reports have it."""

from __future__ import annotations

import gzip
import json
import time
import zlib
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from llmsession import (
    AuthError,
    BadRequestError,
    Chat,
    Completion,
    ConfigError,
    ContextOverflowError,
    Conversation,
    IdleTimeoutError,
    LLMSessionError,
    Message,
    ProtocolError,
    ReasoningDelta,
    ServerError,
    Session,
    StopReason,
    TextDelta,
    TruncatedReplyError,
    UsageError,
)
from tests.fake_openai_server import Answer, FakeOpenAI, serve_openai

pytestmark = pytest.mark.anyio

DONE = b"data: [DONE]\n\n"


@pytest.fixture
def fake() -> Iterator[FakeOpenAI]:
    """A server that sends what a test gives it."""
    with serve_openai(FakeOpenAI()) as server:
        yield server


def frame(delta: Any = None, finish: Any = None, **more: Any) -> bytes:
    """An event with one piece of a reply."""
    choice = {"index": 0, "delta": {} if delta is None else delta, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice], **more}).encode() + b"\n\n"


def text(words: str) -> bytes:
    """An event with a piece of text."""
    return frame({"content": words})


async def reply(fake: FakeOpenAI, *bodies: bytes, **keywords: Any) -> Completion:
    """What a session makes of these."""
    fake.answers = [Answer(body) for body in bodies]
    with anyio.fail_after(20):
        async with Session(remote=fake.base_url) as session:
            return await session.prompt("hi", **keywords)


# How a reply ends.


@pytest.mark.parametrize("word", ["", "null", "None", " ", "none"])
async def test_a_finish_reason_that_says_nothing_is_no_end(fake: FakeOpenAI, word: str) -> None:
    """B3: taken for the end, and the rest was lost where the stream broke."""
    done = await reply(
        fake, frame({"content": "one "}, word) + frame({"content": "two"}, word) + frame(finish="stop") + DONE
    )
    assert ("one two", StopReason.END) == (done.text, done.stop_reason)
    with pytest.raises(TruncatedReplyError) as caught:
        await reply(fake, frame({"content": "one "}, word))
    assert caught.value.partial is not None
    assert "one " == caught.value.partial.text


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("max_tokens", StopReason.LENGTH),
        ("MAX_TOKENS", StopReason.LENGTH),
        ("model_length", StopReason.LENGTH),
        ("abort", StopReason.INTERRUPTED),
        ("cancelled", StopReason.INTERRUPTED),
        ("eos", StopReason.END),
        ("end_turn", StopReason.END),
        ("tool_use", StopReason.TOOL_CALLS),
    ],
)
async def test_the_words_of_other_makers_for_an_end(fake: FakeOpenAI, word: str, reason: StopReason) -> None:
    """B4: what was cut is never a silent END."""
    assert reason is (await reply(fake, text("one") + frame(finish=word) + DONE)).stop_reason


@pytest.mark.parametrize("word", ["error", "content_filter", "SAFETY", "of tomorrow"])
async def test_an_end_that_failed_or_that_nobody_knows_is_an_error(fake: FakeOpenAI, word: str) -> None:
    """B4: with the server's word, and what has come."""
    with pytest.raises(ServerError, match=word) as caught:
        await reply(fake, text("one") + frame(finish=word) + DONE)
    assert caught.value.partial is not None
    assert "one" == caught.value.partial.text


@pytest.mark.parametrize(("end", "full"), [(b"", False), (DONE, False)])
async def test_counts_of_zero_do_not_fill_the_context(fake: FakeOpenAI, end: bytes, full: bool) -> None:
    """D12: context_full for a reply that max_tokens cut."""
    zero = {"usage": {"prompt_tokens": 0, "completion_tokens": 0}}
    body = b"".join(frame({"content": word}, **zero) for word in ("a ", "b ", "c")) + frame(finish="length", **zero)
    done = await reply(fake, body + end, max_tokens=4)
    assert (StopReason.LENGTH, full, 3) == (done.stop_reason, done.context_full, done.usage.completion_tokens)


# What a frame may hold.


@pytest.mark.parametrize(
    "body",
    [
        text("one ") + frame(None, None, usage={"prompt_tokens": 3.0, "completion_tokens": None}) + text("two"),
        text("one ") + b'data: {"choices": null}\n\n' + b'data: {"choices": [{"delta": null}]}\n\n' + text("two"),
        text("one ") + b"data:\n\ndata: \n\n" + text("two"),
        text("one ") + b"event: ping\ndata: still here\n\n: comment\n\n" + text("two"),
        text("one ") + frame({"content": None, "tool_calls": None, "reasoning": None, "role": 5}) + text("two"),
        frame({"content": [{"type": "text", "text": "one "}]}) + text("two"),
        text("one ") + frame({"content": "two"}, created="now", id=7, usage="none", timings=[], error=None),
        b"\xef\xbb\xbf" + text("one ") + text("two"),
        text("one ").replace(b"\n", b"\r\n") + text("two").replace(b"\n", b"\r"),
        text("one ") + b'data: {"choices":[{"index":1,"delta":{"content":"of another choice"}}]}\n\n' + text("two"),
        text("one ") + text("two").replace(b'"index": 0', b'"index": null'),
        text("one ").replace(b'"index"', b'"made": NaN, "index"') + text("two"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "end",
    [
        frame(finish="stop") + DONE,
        frame(finish="stop") + b"data: [DONE] \n\n",
        frame(finish="stop")[:-1],
        frame(finish="stop"),
    ],
)
async def test_what_does_not_matter_throws_nothing_away(fake: FakeOpenAI, body: bytes, end: bytes) -> None:
    """D2, B6, B7: null, other types, empty data, pings, a byte-order mark, blanks, no last line: the text, whole."""
    done = await reply(fake, body + end)
    assert ("one two", StopReason.END) == (done.text, done.stop_reason)


async def test_log_probabilities_that_are_null_or_infinite(fake: FakeOpenAI) -> None:
    """D2: Python's servers write them as NaN and -Infinity, which JSON does not know."""
    entries = b'[{"token":"a","logprob":-Infinity,"top_logprobs":[{"token":"b","logprob":null}]},{"token":"c"}]'
    body = b'data: {"choices":[{"index":0,"delta":{"content":"ac"},"logprobs":{"content":' + entries + b"}}]}\n\n"
    done = await reply(fake, body + frame(finish="stop") + DONE, top_logprobs=1)
    assert "ac" == done.text
    assert ["a", "c"] == [token.text for token in done.tokens]
    assert float("-inf") == done.tokens[0].logprob


async def test_bytes_that_are_not_utf_8(fake: FakeOpenAI) -> None:
    """D6: a character of no text, and not a foreign error."""
    assert "a\ufffdb" == (await reply(fake, text("a?b").replace(b"?", b"\xff") + frame(finish="stop") + DONE)).text


@pytest.mark.parametrize(
    "calls",
    [
        [{"index": 0, "id": "1", "function": {"name": "f", "arguments": "{}"}},
         {"index": 0, "id": "2", "function": {"name": "g", "arguments": '{"a":1}'}}],
        [{"id": "1", "function": {"name": "f", "arguments": {}}},
         {"id": "2", "function": {"name": "g", "arguments": {"a": 1}}}],
        [{"index": None, "function": {"name": "f", "arguments": "{}"}},
         {"index": None, "function": {"name": "g", "arguments": '{"a":'}},
         {"index": None, "function": {"arguments": "1}"}}],
        [{"index": 0, "id": "1", "function": {"name": "f", "arguments": ""}},
         {"index": 0, "id": None, "function": {"name": None, "arguments": "{}"}},
         {"index": 1, "id": "2", "function": {"name": "g", "arguments": '{"a"'}},
         {"index": 1, "id": "", "function": {"name": "", "arguments": ":1}"}}],
        [{"index": 3, "id": "1", "function": {"name": "f", "arguments": "{}"}},
         {"index": 7, "id": "2", "function": {"name": "g", "arguments": '{"a":1}'}}],
    ],
    ids=["all 0", "objects", "no ids", "pieces", "other numbers"],
)  # fmt: skip
@pytest.mark.parametrize("at_once", [True, False])
async def test_parallel_tool_calls_however_they_are_numbered(
    fake: FakeOpenAI, calls: list[dict[str, Any]], at_once: bool
) -> None:
    """B5: with all of them 0, or none, there was no call at all."""
    pieces = [calls] if at_once else [[call] for call in calls]
    body = b"".join(frame({"tool_calls": piece}) for piece in pieces)
    done = await reply(fake, body + frame(finish="tool_calls") + DONE)
    assert [("f", {}), ("g", {"a": 1})] == [(call.name, call.arguments) for call in done.tool_calls]
    assert StopReason.TOOL_CALLS is done.stop_reason


async def test_thoughts_by_either_name(fake: FakeOpenAI) -> None:
    """D2: reasoning_content of llama.cpp and DeepSeek, reasoning of vLLM and Ollama."""
    end = text("yes") + frame(finish="stop") + DONE
    fake.answers = [Answer(frame({name: "hm"}) + end) for name in ("reasoning", "reasoning_content")]
    async with Session(remote=fake.base_url) as session:
        for _ in range(2):
            async with session.prompt_streaming("hi") as stream:
                events = [event async for event in stream.events()]
            assert [ReasoningDelta(text="hm")] == [event for event in events if isinstance(event, ReasoningDelta)]
            assert "yes" == "".join(event.text for event in events if isinstance(event, TextDelta))


async def test_a_thought_that_is_left_in_the_text_is_reasoning(fake: FakeOpenAI) -> None:
    """E3: it was in the text, in the memory and in each later prompt."""
    said = [text("<thi"), text("nk>\nhm"), text("</think>\n\n"), text("yes"), frame(finish="stop"), DONE]
    fake.answers = [Answer(b"".join(said))]
    async with Session(remote=fake.base_url) as session:
        chat = Chat(session, Conversation.in_ram())
        first = await chat.send("hi")
        assert ("yes", "\nhm") == (first.text, first.reasoning)
        await chat.send("and?")
    assert ["hi", "yes", "and?"] == [message["content"] for message in fake.bodies[-1]["messages"]]


async def test_an_assistants_own_thought_is_sent_as_it_was(fake: FakeOpenAI) -> None:
    """E3: with a space of no width inside `<think>`; what a user writes is still kept from being a token."""
    said = "<think>\nhm, <|im_end|>\n</think>\n\nyes"
    messages = [Message.user("<think> hi"), Message.assistant(said), Message.user("and?")]
    async with Session(remote=fake.base_url) as session:
        await session.prompt(messages)
    asked, replied, _ = [message["content"] for message in fake.bodies[-1]["messages"]]
    assert "<think>" not in asked
    assert replied.startswith("<think>\nhm, <")
    assert "</think>\n\nyes" in replied
    assert "<|im_end|>" not in replied


# What comes instead of a stream.

WHOLE = json.dumps(
    {
        "id": "x",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "one two"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2},
    },
    indent=2,
).encode()
JSON, LOGIN = "application/json", "https://login.example.com/"
STREAM = text("one ") + text("two") + frame(finish="stop") + DONE


@pytest.mark.parametrize(
    "answer",
    [
        Answer(WHOLE, kind="application/json"),
        Answer(WHOLE, kind="text/plain"),
        Answer(WHOLE),
        Answer(gzip.compress(STREAM), headers={"Content-Encoding": "gzip"}),
        Answer(gzip.compress(WHOLE), kind="application/json", headers={"Content-Encoding": "gzip"}),
        Answer(zlib.compress(STREAM), headers={"Content-Encoding": "deflate"}),
        Answer(STREAM, kind="application/octet-stream"),
        Answer(STREAM, kind="application/json"),
    ],
)
async def test_an_answer_that_is_no_stream_is_an_answer(fake: FakeOpenAI, answer: Answer) -> None:
    """D3: a whole one, one that is compressed though nobody asked for that, one of another type."""
    fake.answers = [answer]
    async with Session(remote=fake.base_url) as session:
        done = await session.prompt("hi")
    assert ("one two", StopReason.END) == (done.text, done.stop_reason)


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (Answer(b'{"error": {"message": "no such model"}}', kind="application/json"), ServerError, "no such model"),
        (Answer(b'{"error": "no such model"}', kind="application/json"), ServerError, "no such model"),
        (Answer(b'data: {"error": {"message": "no room", "code": "500"}}\n\n'), ServerError, "no room"),
        (Answer(b'event: error\ndata: {"message": "no room"}\n\n'), ServerError, "no room"),
        (Answer(b'{"detail": [{"loc": ["a"], "msg": "field missing"}]}', 422, JSON), BadRequestError, "field missing"),
        (Answer(b"<!DOCTYPE html><html><body>Please log in</body></html>", kind="text/html"), ServerError, "web page"),
        (Answer(b'{"error": {"message": null, "n_ctx": null, "n_prompt_tokens": {}}}', 400, JSON), ServerError, "400"),
        (Answer(b"[" * 100_000, 400, JSON), BadRequestError, "refuses the request"),
        (Answer(b"", 302, headers={"Location": LOGIN}), ProtocolError, f"redirects to {LOGIN}"),
        (Answer(b"upstream connect error\n", kind="text/plain"), TruncatedReplyError, "sent 'upstream connect error'"),
        (Answer(b"", headers={"Content-Encoding": "br"}), ProtocolError, "compressed by 'br'"),
        (Answer(b"no gzip", headers={"Content-Encoding": "gzip"}), ProtocolError, "cannot be read"),
    ],
)  # fmt: skip
async def test_the_servers_own_words_reach_the_user(
    fake: FakeOpenAI, answer: Answer, error: type[LLMSessionError], words: str
) -> None:
    """D3, F3: "broke off", or a foreign error, before."""
    fake.answers = [answer]
    async with Session(remote=fake.base_url) as session:
        with pytest.raises(error, match=words):
            await session.prompt("hi")


async def test_a_redirect_on_the_same_server_is_followed(fake: FakeOpenAI) -> None:
    """D3: with the request and its key."""
    fake.answers = [Answer(b"", 307, headers={"Location": "/v1/chat/completions"}), Answer(STREAM)]
    async with Session(remote=fake.base_url, api_key="k") as session:
        assert "one two" == (await session.prompt("hi")).text
    assert fake.bodies[0] == fake.bodies[1]
    assert "Bearer k" == fake.headers[-1]["Authorization"]
    fake.answers = [Answer(b"", 307, headers={"Location": "/v1/chat/completions"})] * 9
    async with Session(remote=fake.base_url) as session:
        with pytest.raises(ProtocolError, match="again and again"):
            await session.prompt("hi")


# A prompt that is too long.

TOO_LONG = [
    ({"message": "This model's maximum context length is 4096 tokens. However, your messages resulted in 5000 tokens.",
      "code": "context_length_exceeded"}, 5000, 4096),
    ({"object": "error", "message": "This model's maximum context length is 4096 tokens. However, you requested 5600 "
      "tokens (5000 in the messages, 600 in the completion). Please reduce the length of the messages or completion.",
      "type": "BadRequestError", "code": 400}, 5000, 4096),
    ({"message": "The prompt has 5000 tokens, which exceeds the model's context length of 4096"}, 5000, 4096),
    ("Trying to keep the first 5000 tokens when context the overflows. However, the model is loaded with context "  # noqa: ISC004
     "length of only 4096 tokens, which is not enough. Try to load the model with a larger one", 5000, 4096),
    ({"message": "Requested tokens (5000) exceed context window of 4096", "type": "internal_server_error"}, 5000, 4096),
    ({"message": "litellm.ContextWindowExceededError: litellm.BadRequestError: prompt too big"}, 0, 0),
    ({"message": "prompt is too long: 5000 tokens > 4096 maximum", "type": "invalid_request_error"}, 5000, 4096),
    ({"message": "Prompt contains 5000 tokens and 0 draft tokens, too large for model with 4096 maximum context "
      "length"}, 5000, 4096),
    ({"message": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000 `inputs` "
      "tokens and 20 `max_new_tokens`"}, 5000, 4096),
    ({"message": "The input token count (5000) exceeds the maximum number of tokens allowed (4096)."}, 5000, 4096),
    ({"message": "the request exceeds the available context size. try increasing the context size"}, 0, 0),
    ({"code": 400, "message": "request (5000 tokens) exceeds the available context size (4096 tokens)",
      "type": "exceed_context_size_error", "n_prompt_tokens": 5000, "n_ctx": 4096}, 5000, 4096),
]  # fmt: skip


@pytest.mark.parametrize(("error", "prompt", "length"), TOO_LONG)
@pytest.mark.parametrize("status", [400, 500, 200])
async def test_a_prompt_that_is_too_long_in_any_words(
    fake: FakeOpenAI, error: Any, prompt: int, length: int, status: int
) -> None:
    """D1: as a status, and as a frame under 200; with the numbers, if there are any."""
    body = json.dumps({"error": error}).encode()
    if status == 200:
        fake.answers = [Answer(b"data: " + body + b"\n\n")]
    else:
        fake.answers = [Answer(body, status, "application/json")]
    async with Session(remote=fake.base_url) as session:
        with pytest.raises(ContextOverflowError) as caught:
            await session.prompt("hi")
    assert (prompt, length) == (caught.value.prompt_tokens, caught.value.context_length)


@pytest.mark.parametrize(
    "message",
    [
        "max_tokens is too large: 5000. This model supports at most 4096 completion tokens",
        "Unrecognized request argument supplied: context",
        "no model of that name",
        "temperature must be less than 2",
    ],
)
async def test_another_refusal_is_not_taken_for_that(fake: FakeOpenAI, message: str) -> None:
    """D1: else a Chat would leave its turns out for nothing."""
    fake.answers = [Answer(json.dumps({"error": {"message": message}}).encode(), 400, "application/json")]
    async with Session(remote=fake.base_url) as session:
        with pytest.raises(BadRequestError):
            await session.prompt("hi")


async def test_a_chat_leaves_its_oldest_turns_out_whatever_the_words(fake: FakeOpenAI) -> None:
    """D1: it was stuck at this turn for good."""
    refusal = Answer(json.dumps({"error": TOO_LONG[1][0]}).encode(), 400, "application/json")
    async with Session(remote=fake.base_url) as session:
        chat = Chat(session, Conversation.in_ram())
        for words in ("first", "second"):
            await chat.send(words)
        fake.answers = [refusal]
        assert (await chat.send("third")).dropped
    assert len(fake.bodies[-1]["messages"]) < len(fake.bodies[-2]["messages"])


@pytest.mark.parametrize(
    ("summaries", "summary"),
    [
        ([Answer(b'{"error": "no room"}', 500, "application/json")], None),
        ([Answer(frame({"reasoning": "hm"}) + frame(finish="length") + DONE), Answer(STREAM)], "one two"),
        ([Answer(frame({"reasoning": "hm"}) + frame(finish="length") + DONE)] * 2, None),
    ],
    ids=["fails", "thinks first", "only thinks"],
)
async def test_a_summary_that_fails_or_is_thought_away(
    fake: FakeOpenAI, summaries: list[Answer], summary: str | None
) -> None:
    """B9: with the 500 the user's own message failed; with thoughts there was no summary and no word."""
    refusal = Answer(json.dumps({"error": TOO_LONG[1][0]}).encode(), 400, "application/json")
    async with Session(remote=fake.base_url) as session:
        chat = Chat(session, Conversation.in_ram(), overflow="summarize")
        for words in ("first", "second"):
            await chat.send(words)
        fake.answers = [refusal, *summaries]
        done = await chat.send("third")
    assert done.dropped
    assert (summary is not None) == any(summary == message["content"] for message in fake.bodies[-1]["messages"])
    assert "third" == fake.bodies[-1]["messages"][-1]["content"]


# Keys, headers, fields.


async def test_a_key_with_the_end_of_its_line(fake: FakeOpenAI) -> None:
    """D4: `$(cat key)` on Windows, or a file that was read whole."""
    fake.key = "secret"
    for key in ("secret\n", " secret\r\n", "\ufeffsecret"):
        async with Session(remote=fake.base_url, api_key=key) as session:
            assert (await session.prompt("hi")).text
    with pytest.raises(AuthError):
        await Session.open(remote=fake.base_url, api_key="")


@pytest.mark.parametrize(
    "fields",
    [
        {"api_key": "k\r\nX-Evil: 1"}, {"api_key": "schlüssel"}, {"headers": {"X Name": "1"}}, {"headers": {"X": "ü"}},
        {"headers": {"": "1"}}, {"headers": {"X": "1\r\nY: 2"}}, {"headers": {"X:": "1"}}, {"headers": {"X": "\0"}},
    ],
)  # fmt: skip
def test_what_no_header_can_hold(fields: dict[str, Any]) -> None:
    """D4: the head was broken or injected, or a foreign error came out; the key is not shown."""
    with pytest.raises(ConfigError, match="header") as caught:
        Session(remote="127.0.0.1:1", **fields)
    assert "Evil" not in str(caught.value)


async def test_a_server_that_refuses_fields_is_asked_without_them(fake: FakeOpenAI) -> None:
    """D5: stream_options once, and then no more; a seed that nobody gave is not sent."""
    refusal = Answer(b'{"error": {"message": "Unsupported parameter: stream_options"}}', 400, "application/json")
    fake.answers = [refusal, Answer(STREAM), Answer(STREAM), Answer(STREAM)]
    async with Session(remote=fake.base_url) as session:
        assert "one two" == (await session.prompt("hi")).text
        assert "one two" == (await session.prompt("hi")).text
        await session.prompt("hi", seed=7)
    assert [True, False, False, False] == ["stream_options" in body for body in fake.bodies]
    assert [None, None, None, 7] == [body.get("seed") for body in fake.bodies]


async def test_one_call_gives_one_reply(fake: FakeOpenAI) -> None:
    """B7: two were mixed letter by letter."""
    async with Session(remote=fake.base_url) as session:
        with pytest.raises(UsageError, match="n above 1"):
            await session.prompt("hi", extra={"n": 2})


async def test_a_limit_beyond_what_servers_count(fake: FakeOpenAI) -> None:
    """B8: 2**32 was one token, and 2**31 a negative number in an error."""
    async with Session(remote=fake.base_url) as session:
        for limit in (2**31, 2**32, 2**70):
            assert (await session.prompt("hi", max_tokens=limit)).text
    assert {2**31 - 1} == {body["max_tokens"] for body in fake.bodies}


# Time.


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_what_has_arrived_is_read_before_anything_is_given_up(fake: FakeOpenAI) -> None:
    """D7: the loop was busy for longer than idle_timeout, or the program stopped, while tokens waited in the socket."""
    fake.answers = [Answer(text("one "), later=(text("two") + frame(finish="stop") + DONE,))]

    async def be_busy() -> None:
        await started.wait()
        time.sleep(1.0)  # noqa: ASYNC251 - as a program that computes

    started = anyio.Event()
    async with Session(remote=fake.base_url, idle_timeout=0.3) as session, anyio.create_task_group() as group:
        group.start_soon(be_busy)
        async with session.prompt_streaming("hi") as stream:
            assert "one " == await anext(stream)
            started.set()
            done = await stream.result()
            assert ("one two", StopReason.END) == (done.text, done.stop_reason)


async def test_a_server_that_says_nothing_more_is_still_given_up(fake: FakeOpenAI) -> None:
    """D7: the other side of it."""
    fake.answers = [Answer(text("one "), later=(text("two"),), pause=5.0)]
    async with Session(remote=fake.base_url, idle_timeout=0.3) as session:
        with anyio.fail_after(4), pytest.raises(IdleTimeoutError):
            await session.prompt("hi")


# What it says of itself.


@pytest.mark.parametrize(
    "page",
    [
        '{"object": null, "data": [{"id": "m", "owned_by": null, "created": "yesterday", "max_model_len": "4096"}]}',
        '\ufeff{"data": [{"id": "m"}, {"id": null}, 5, null]}',
        '{"data": null, "models": [{"id": "m"}]}',
    ],
)
async def test_a_list_of_models_is_read_as_far_as_it_matters(fake: FakeOpenAI, page: str) -> None:
    """D8: "not a server for language models", also where a model was named."""
    fake.pages["/v1/models"] = (200, "application/json", page)
    async with Session(remote=fake.base_url) as session:
        assert "m" == session.model
    fake.pages["/v1/models"] = (200, "application/json", "nothing of the kind")
    async with Session(remote=fake.base_url, model="mine") as session:
        assert "mine" == session.model
