"""ReplyStream over a scripted source: every way to read it, and every way that it can end."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable
from typing import Any

import anyio
import httpx
import pytest

from llmsession.types.completion import Completion, StopReason
from llmsession.types.errors import (
    ClosedError,
    ConnectionLostError,
    ContextOverflowError,
    FirstTokenTimeoutError,
    IdleTimeoutError,
    LLMSessionError,
    ServerError,
    TotalTimeoutError,
    TruncatedReplyError,
    UsageError,
)
from llmsession.types.events import Finished, TextDelta
from llmsession.types.messages import ToolCall
from llmsession.wire import completion_api, openai_api
from llmsession.wire.decoder import EventDecoder
from llmsession.wire.readable import ActiveReplies
from llmsession.wire.reply import ReplyStream
from llmsession.wire.resume import ContinuedDecoder, Delivered, TokenLimitReachedError
from llmsession.wire.timeouts import TimeoutSettings
from tests.unit.wire.test_completion_api import FIRST, LAST, make

pytestmark = pytest.mark.anyio


def frame(content: dict[str, Any]) -> bytes:
    """As it comes over the wire."""
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def word(number: int) -> bytes:
    """A frame with a word."""
    return frame({**FIRST, "content": f"w{number} ", "tokens_predicted": number})


END = frame(LAST)
HANG = None


class Body:
    """Pieces; HANG waits until it is cut; an exception is raised."""

    def __init__(self, pieces: list[Any]) -> None:
        self.pieces = pieces
        self.closed = 0
        self.cut = threading.Event()
        self.hanging = threading.Event()

    async def receive(self) -> bytes:
        if self.cut.is_set() or not self.pieces:
            return b""
        piece = self.pieces.pop(0)
        if piece is HANG:
            self.hanging.set()
            while not self.cut.is_set():
                await anyio.lowlevel.checkpoint()
            return b""
        if isinstance(piece, Exception):
            raise piece
        assert isinstance(piece, bytes)
        return piece

    def abort(self) -> None:
        self.cut.set()

    async def aclose(self) -> None:
        self.closed += 1


class Source:
    """What a session would be."""

    model = "m"
    queue_position = None
    neutralized = 0
    restarts = 0
    rest: list[Any] | None = None  # what comes after a death
    delivered: Delivered | None = None

    def __init__(self, pieces: list[Any], decoder: Any, *, wait: bool = False) -> None:
        self.body = Body(pieces)
        self.decoder: EventDecoder = decoder
        self.wait = wait
        self.waiting = threading.Event()
        self.closed = 0
        self.error: LLMSessionError | None = None

    async def open(self, mark_sent: Callable[[], None]) -> Body:
        self.waiting.set()
        if self.wait:
            await anyio.sleep_forever()
        mark_sent()
        if self.error is not None:
            raise self.error
        return self.body

    async def is_engine_failure(self, error: LLMSessionError) -> bool:
        return isinstance(error, ConnectionLostError) and self.rest is not None

    async def resume(self, error: LLMSessionError, delivered: Delivered, mark_sent: Callable[[], None]) -> Body:
        assert self.rest is not None
        self.delivered, self.restarts = delivered, self.restarts + 1
        rest, self.rest = self.rest, None
        mark_sent()
        if isinstance(rest[0], LLMSessionError):
            raise rest[0]
        self.decoder = ContinuedDecoder(completion_api.EventDecoder(make()), delivered.usage)
        self.body = Body(rest)
        return self.body

    def check_progress(self, *, has_begun: bool, give_up: Callable[[], None]) -> bool:
        return False

    def close(self, completion: Completion | None) -> None:
        self.closed += 1

    async def diagnose(self, error: LLMSessionError) -> LLMSessionError:
        return error


def stream(*pieces: Any, limits: TimeoutSettings | None = None, wait: bool = False, **given: Any) -> ReplyStream:
    """A reply of these pieces."""
    request = make(**given)
    source = Source(list(pieces), completion_api.EventDecoder(request), wait=wait)
    return ReplyStream(source, request, id="reply-1", timeouts=limits or TimeoutSettings(), active=ActiveReplies())


def source_of(reply: ReplyStream) -> Source:
    """Its script."""
    source = reply._source
    assert isinstance(source, Source)
    return source


async def test_pieces_of_text_then_the_whole() -> None:
    """API 3: iterate for str pieces, then await result()."""
    async with stream(word(1), word(2), END) as reply:
        assert ["w1 ", "w2 "] == [piece async for piece in reply]
    whole = await reply.result()
    assert ("w1 w2 ", StopReason.END, 5, "m", "reply-1") == (
        whole.text, whole.stop_reason, whole.seed, whole.model, whole.id,
    )  # fmt: skip
    assert (1, 1) == (source_of(reply).closed, source_of(reply).body.closed)


async def test_events_end_with_finished() -> None:
    """API 3: events()."""
    async with stream(word(1), END) as reply:
        events = [event async for event in reply.events()]
    assert [TextDelta(text="w1 ", completion_tokens=1), Finished(completion=await reply.result())] == events


async def test_several_frames_in_one_chunk() -> None:
    """A fast engine fills a packet with many."""
    async with stream(word(1) + word(2) + b": ping\n\n" + word(3) + END) as reply:
        assert ["w1 ", "w2 ", "w3 "] == [piece async for piece in reply]


async def test_result_reads_what_is_left() -> None:
    """API 3: ask it for the Completion at any time."""
    async with stream(word(1), word(2), END) as reply:
        assert "w1 " == await anext(aiter(reply))
        assert "w1 w2 " == (await reply.result()).text


async def test_print_writes_pieces_and_an_end() -> None:
    """API 3; easy-llama's stream_print."""
    out = io.StringIO()
    async with stream(word(1), word(2), END) as reply:
        whole = await reply.print(out, end="!\n")
    assert ("w1 w2 !\n", "w1 w2 ") == (out.getvalue(), whole.text)


async def test_it_is_read_in_one_way() -> None:
    """API 3: for text or for events(), not both."""
    async with stream(word(1), word(2), END) as reply:
        await anext(aiter(reply))
        with pytest.raises(UsageError, match="not for both"):
            reply.events()


async def test_outside_its_block_it_is_a_usage_error_that_says_so() -> None:
    """API 3; issue 1."""
    reply = stream(word(1), END)
    with pytest.raises(UsageError, match="async with"):
        aiter(reply)
    with pytest.raises(UsageError, match="async with"):
        await reply.result()
    async with reply:
        await anext(aiter(reply))
        with pytest.raises(UsageError, match="once"):
            await reply.__aenter__()


async def test_leaving_early_closes_its_connection_and_frees_its_slot() -> None:
    """API 3: at once; and the text so far can still be had."""
    async with stream(word(1), HANG) as reply:
        async for _ in reply:
            break
    assert (1, 1) == (source_of(reply).closed, source_of(reply).body.closed)
    assert ("w1 ", StopReason.INTERRUPTED) == ((await reply.result()).text, (await reply.result()).stop_reason)


@pytest.mark.parametrize("verdict", [StopReason.INTERRUPTED, ClosedError("closed")])
async def test_another_thread_ends_it_while_it_waits_for_a_token(verdict: Any) -> None:
    """DESIGN 4: aclose ends replies with ClosedError, interrupt with INTERRUPTED; both carry the text so far."""
    reply = stream(word(1), HANG)

    def end() -> None:
        source_of(reply).body.hanging.wait(10)
        reply.end(verdict)

    ender = threading.Thread(target=end)
    ender.start()
    with anyio.fail_after(10):
        async with reply:
            if isinstance(verdict, ClosedError):
                with pytest.raises(ClosedError) as caught:
                    await reply.result()
                assert caught.value.partial is not None
                assert "w1 " == caught.value.partial.text
            else:
                whole = await reply.result()
                assert ("w1 ", StopReason.INTERRUPTED) == (whole.text, whole.stop_reason)
                assert 1 == whole.usage.completion_tokens
    ender.join()


@pytest.mark.parametrize("verdict", [StopReason.INTERRUPTED, ClosedError("closed")])
@pytest.mark.parametrize("before", [True, False])
async def test_it_can_be_ended_before_it_has_begun(verdict: Any, before: bool) -> None:
    """API 3: every call that waits, ends with INTERRUPTED."""
    reply = stream(word(1), END, wait=True)

    def end() -> None:
        source_of(reply).waiting.wait(10)
        reply.end(verdict)

    if before:
        reply.end(verdict)
    ender = threading.Thread(target=end)
    ender.start()
    with anyio.fail_after(10):
        if isinstance(verdict, ClosedError):
            with pytest.raises(ClosedError):
                await reply.__aenter__()
        else:
            async with reply:
                assert ("", StopReason.INTERRUPTED) == (str(await reply.result()), (await reply.result()).stop_reason)
    assert 1 == source_of(reply).closed
    source_of(reply).waiting.set()
    ender.join()


async def test_cancelling_the_task_is_not_swallowed() -> None:
    """STYLE 4: cancellation is never swallowed or wrapped."""
    reply = stream(word(1), HANG)
    with anyio.move_on_after(0.05) as scope:
        async with reply:
            await reply.result()
    assert scope.cancelled_caught
    assert (1, 1) == (source_of(reply).closed, source_of(reply).body.closed)


async def test_the_first_verdict_counts() -> None:
    """An interrupt and a close may come together."""
    async with stream(word(1), HANG) as reply:
        await anext(aiter(reply))
        reply.cancel()
        reply.end(ClosedError("too late"))
        assert StopReason.INTERRUPTED is (await reply.result()).stop_reason


async def test_ending_one_that_is_over_changes_nothing() -> None:
    """API 3: no effect when idle."""
    async with stream(word(1), END) as reply:
        await reply.result()
        reply.cancel()
        assert StopReason.END is (await reply.result()).stop_reason


@pytest.mark.parametrize("pieces", [[], [word(1)], [word(1), b"data: {"], [word(1) + b"data: [DONE]\n\n"]])
async def test_an_end_of_the_stream_without_an_end_of_the_reply_is_an_error(pieces: list[bytes]) -> None:
    """DESIGN 3: an error that carries the partial text, never a short answer."""
    async with stream(*pieces) as reply:
        if pieces and b"DONE" in pieces[-1]:
            reply._source.decoder = openai_api.EventDecoder(make())
        with pytest.raises(TruncatedReplyError) as caught:
            await reply.result()
        assert caught.value.partial is not None
        with pytest.raises(TruncatedReplyError):
            await reply.result()


async def test_a_connection_that_breaks_is_an_error_with_the_text_so_far() -> None:
    """API 5: no error of httpx gets out."""
    async with stream(word(1), httpx.ReadError("broke")) as reply:
        with pytest.raises(ConnectionLostError) as caught:
            await reply.result()
    assert caught.value.partial is not None
    assert "w1 " == caught.value.partial.text


async def test_an_error_frame_in_the_middle() -> None:
    """LLAMA_SERVER F4, recorded; issue 1."""
    error = frame({"error": {"code": 500, "message": "Context size has been exceeded.", "type": "server_error"}})
    async with stream(word(1), error) as reply:
        with pytest.raises(ServerError, match="exceeded") as caught:
            await reply.result()
    assert caught.value.partial is not None
    assert "w1 " == caught.value.partial.text


async def test_an_error_while_opening_comes_where_the_block_begins() -> None:
    """API 5: and it has an (empty) partial like every error that ends a reply."""
    reply = stream(word(1))
    source_of(reply).error = ServerError("no", status=500)
    with pytest.raises(ServerError) as caught:
        async with reply:
            pytest.fail("it did not open")
    assert caught.value.partial is not None
    assert 1 == source_of(reply).closed


@pytest.mark.parametrize(
    ("limits", "pieces", "wait", "expected"),
    [
        (TimeoutSettings(first_token=0.05), [HANG], False, FirstTokenTimeoutError),
        (TimeoutSettings(first_token=0.05), [b": ping\n\n", HANG], False, FirstTokenTimeoutError),
        (TimeoutSettings(idle=0.05), [word(1), HANG], False, IdleTimeoutError),
        (TimeoutSettings(idle=0.05), [word(1), b": ping\n\n", HANG], False, IdleTimeoutError),
        (TimeoutSettings(total=0.05), [word(1), HANG], False, TotalTimeoutError),
        (TimeoutSettings(total=0.05), [word(1)], True, TotalTimeoutError),
    ],
)
async def test_each_limit_has_its_own_error(
    limits: TimeoutSettings, pieces: list[Any], wait: bool, expected: type[LLMSessionError]
) -> None:
    """Row C17: to the first token, between tokens, in all; a ping is not a token (LLAMA_SERVER 3.7)."""
    with anyio.fail_after(10), pytest.raises(expected) as caught:
        async with stream(*pieces, limits=limits, wait=wait) as reply:
            await reply.result()
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.partial is not None
    assert ("w1 " if word(1) in pieces and not wait else "") == caught.value.partial.text


async def test_a_reader_that_takes_its_time_is_not_a_server_that_is_idle() -> None:
    """The time between two reads is the reader's."""
    async with stream(word(1), word(2), END, limits=TimeoutSettings(first_token=0.05, idle=0.05)) as reply:
        await anext(aiter(reply))
        reply._timeouts.overrun(
            reply._timeouts.deadline
        )  # what the deadlines' thread does after the reader was away for long
        assert "w1 w2 " == (await reply.result()).text


async def test_a_stop_phrase_can_be_kept() -> None:
    """Row C3: echo_stop."""
    end = frame({**LAST, "stop_type": "word", "stopping_word": "###"})
    async with stream(word(1), end, stop="###", echo_stop=True) as reply:
        assert ["w1 ", "###"] == [piece async for piece in reply]
    assert ("w1 ###", "###") == ((await reply.result()).text, (await reply.result()).stop_phrase)


async def test_an_encodings_own_stop_is_an_end() -> None:
    """A family without an end token ends its turn with a text; the caller did not ask for that."""
    end = frame({**LAST, "stop_type": "word", "stopping_word": "###"})
    async with stream(word(1), end, own_stops=("###",), echo_stop=True) as reply:
        whole = await reply.result()
    assert ("w1 ", StopReason.END, None) == (whole.text, whole.stop_reason, whole.stop_phrase)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_one_that_was_never_left_is_warned_about_and_cut() -> None:
    """STYLE 1, svcs: ResourceWarning for what was not closed."""
    reply = stream(word(1), HANG)
    await reply.__aenter__()
    source = source_of(reply)
    with pytest.warns(ResourceWarning, match="async with"):
        reply.__del__()
    assert source.body.cut.wait(5)  # in another thread: a finalizer may run while this one holds any lock
    assert 1 == source.closed
    await reply.__aexit__(None, None, None)


async def test_reasoning_and_tool_calls_are_put_together() -> None:
    """API 2: reasoning apart from the answer; a call with its arguments decoded, and one that was cut left out."""
    request = make()
    source = Source([], openai_api.EventDecoder(request))

    def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
        return frame({"choices": [{"delta": delta, "finish_reason": finish}]})

    def call(index: int, arguments: str, name: str | None = None) -> dict[str, Any]:
        return {"tool_calls": [{"index": index, "id": name, "function": {"name": name, "arguments": arguments}}]}

    source.body.pieces = [
        chunk({"reasoning_content": "hm "}),
        chunk({"reasoning_content": "so"}),
        chunk({"content": "I look."}),
        chunk(call(0, '{"zone":', "clock")),
        chunk(call(0, '"UTC"}')),
        chunk(call(1, '{"cut', "calculate")),
        chunk({}, "tool_calls") + b"data: [DONE]\n\n",
    ]
    async with ReplyStream(source, request, id="reply-1", timeouts=TimeoutSettings(), active=ActiveReplies()) as reply:
        whole = await reply.result()
    assert ("I look.", "hm so", StopReason.TOOL_CALLS) == (whole.text, whole.reasoning, whole.stop_reason)
    assert (ToolCall(id="clock", name="clock", arguments={"zone": "UTC"}),) == whole.tool_calls


LOST = httpx.ReadError("gone")


async def test_a_death_in_the_middle_is_a_pause() -> None:
    """Row B10: one unbroken reply, counted as one."""
    reply = stream(word(1), word(2), LOST)
    source = source_of(reply)
    source.rest = [frame({**FIRST, "content": "w3 ", "tokens_predicted": 1}), END]
    async with reply:
        assert ["w1 ", "w2 ", "w3 "] == [piece async for piece in reply]
        whole = await reply.result()
    assert source.delivered is not None
    assert ("w1 w2 ", 2) == (source.delivered.text, source.delivered.usage.completion_tokens)
    assert ("w1 w2 w3 ", 1) == (whole.text, whole.restarts)
    last = json.loads(END.removeprefix(b"data: "))
    assert last["tokens_predicted"] + 2 == whole.usage.completion_tokens
    assert FIRST["tokens_evaluated"] == whole.usage.prompt_tokens


async def test_a_death_after_the_last_token_that_was_asked_for_is_the_end() -> None:
    """DESIGN 4: max_tokens is reduced by what was delivered; at 0 it is LENGTH."""
    reply = stream(word(1), word(2), LOST, max_tokens=2)
    source_of(reply).rest = [TokenLimitReachedError()]
    async with reply:
        whole = await reply.result()
    assert ("w1 w2 ", StopReason.LENGTH, 2) == (whole.text, whole.stop_reason, whole.usage.completion_tokens)


async def test_a_death_with_a_full_context_is_the_end() -> None:
    """What was delivered leaves no room to go on from it."""
    reply = stream(word(1), LOST)
    source_of(reply).rest = [ContextOverflowError("full", prompt_tokens=9, context_length=9, status=400, type="")]
    async with reply:
        whole = await reply.result()
    assert ("w1 ", StopReason.LENGTH, True) == (whole.text, whole.stop_reason, whole.context_full)


async def test_a_restart_that_fails_ends_the_reply_with_the_text_so_far() -> None:
    """API 5: every error that ends a reply carries `partial`; a second look gives the same error."""
    reply = stream(word(1), LOST)
    source_of(reply).rest = [ClosedError("closed")]
    async with reply:
        for _ in range(2):
            with pytest.raises(ClosedError) as caught:
                await reply.result()
            assert caught.value.partial is not None
            assert "w1 " == caught.value.partial.text


async def test_several_deaths_are_counted_together() -> None:
    """Row B10."""
    reply = stream(word(1), LOST)
    source = source_of(reply)
    source.rest = [frame({**FIRST, "content": "w2 ", "tokens_predicted": 1}), LOST]
    async with reply:
        assert "w1 " == await anext(aiter(reply))
        assert "w2 " == await anext(aiter(reply))
        source.rest = [frame({**FIRST, "content": "w3 ", "tokens_predicted": 1}), END]
        whole = await reply.result()
    assert ("w1 w2 w3 ", 2) == (whole.text, whole.restarts)
    assert source.delivered is not None
    usage = source.delivered.usage
    assert (FIRST["tokens_evaluated"], 2) == (usage.prompt_tokens, usage.completion_tokens)
