"""How a reply ends before its end: interrupt, cancel, leaving, time-outs, a close, a killed engine; and the queue."""

from __future__ import annotations

import os
import signal

import anyio
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint

from llmsession import (
    ClosedError,
    Completion,
    FirstTokenTimeoutError,
    IdleTimeoutError,
    Sampling,
    Session,
    StopReason,
    TotalTimeoutError,
    UsageError,
)
from llmsession.wire.reply import ReplyStream
from tests.engines import Engine

pytestmark = pytest.mark.anyio

OK = 'reply with "ok chief"'
COUNT = "count to 100"
# Goes on to the end of the context, 2048 tokens.
ENDLESS = Sampling(temperature=0, ignore_eos=True)
BOUND = 20


def long_reply(session: Session) -> ReplyStream:
    """One that nobody wants to the end."""
    return session.prompt_streaming(COUNT, sampling=ENDLESS)


async def read_into(pieces: list[str], stream: ReplyStream) -> None:
    """Keeps what came before an error."""
    async for piece in stream:
        pieces.append(piece)  # noqa: PERF401 - a comprehension loses it


async def assert_free(session: Session) -> None:
    """A session with one slot answers, and the engine has not written the long reply to its end."""
    with anyio.fail_after(BOUND):
        assert "ok chief" == (await session.prompt(OK, temperature=0)).text
        assert (await session.get_metrics()).generated.count < 1500
        slots = await session.get_slots()
    assert [False] == [slot.is_processing for slot in slots]


async def test_interrupt_from_a_thread_ends_a_reply_with_its_text(session: Session) -> None:
    """API.md 3: interrupt() from any task or thread; every reply ends with INTERRUPTED and the text so far."""
    pieces = []
    with anyio.fail_after(BOUND):
        async with long_reply(session) as stream:
            async for piece in stream:
                pieces.append(piece)
                if 3 == len(pieces):
                    await anyio.to_thread.run_sync(session.interrupt)
            reply = await stream.result()
    assert StopReason.INTERRUPTED is reply.stop_reason
    assert reply.text.startswith("1 2")
    assert "".join(pieces) == reply.text
    assert reply.usage.completion_tokens < 2000


async def test_interrupt_ends_a_call_of_prompt_and_those_that_wait(engine: Engine, api: str | None) -> None:
    """API.md 3: every reply in progress, and every call that waits, ends with INTERRUPTED."""
    replies: dict[int, Completion] = {}

    async def ask(session: Session, number: int) -> None:
        replies[number] = await session.prompt(COUNT, sampling=ENDLESS)

    async with Session(**engine.options(prompt_encoding=api, parallel=1)) as session:
        with anyio.fail_after(BOUND):
            async with long_reply(session) as first:
                await anext(first)
                async with anyio.create_task_group() as tasks:
                    for number in range(3):
                        tasks.start_soon(ask, session, number)
                    await anyio.wait_all_tasks_blocked()
                    session.interrupt()
            assert StopReason.INTERRUPTED is (await first.result()).stop_reason
        assert [StopReason.INTERRUPTED] * 3 == [replies[number].stop_reason for number in range(3)]
        assert [""] * 3 == [replies[number].text for number in range(3)]
        await assert_free(session)


async def test_interrupt_has_no_effect_when_idle(session: Session) -> None:
    """API.md 3: no effect when idle."""
    session.interrupt()
    assert "ok chief" == (await session.prompt(OK, temperature=0)).text


async def test_cancel_ends_one_reply_and_no_other(session: Session) -> None:
    """API.md 3: ReplyStream.cancel()."""
    with anyio.fail_after(BOUND):
        async with long_reply(session) as one, session.prompt_streaming(OK, temperature=0) as other:
            first = await anext(one)
            one.cancel()
            reply = await one.result()
            assert "ok chief" == (await other.result()).text
    assert StopReason.INTERRUPTED is reply.stop_reason
    assert reply.text.startswith(first)


async def test_leaving_the_block_early_frees_the_slot_at_once(engine: Engine, api: str | None) -> None:
    """API.md 3: leaving the block early frees the slot at once; LLAMA_SERVER F12: a disconnect cancels."""
    async with Session(**engine.options(prompt_encoding=api, parallel=1)) as session:
        with anyio.fail_after(BOUND):
            async with long_reply(session) as stream:
                first = await anext(stream)
        await assert_free(session)
        reply = await stream.result()
        assert StopReason.INTERRUPTED is reply.stop_reason
        assert reply.text.startswith(first)
        rest: list[str] = []
        await read_into(rest, stream)
        assert reply.text == first + "".join(rest)


async def test_an_exception_in_the_block_frees_the_slot(engine: Engine, api: str | None) -> None:
    """API.md 3: the same however the block is left."""
    async with Session(**engine.options(prompt_encoding=api, parallel=1)) as session:

        async def fail() -> None:
            async with long_reply(session) as stream:
                await anext(stream)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()
        await assert_free(session)


async def test_cancelling_the_task_frees_the_slot(engine: Engine, api: str | None) -> None:
    """Our decision: cancellation is the event loop's word, and nothing of ours swallows it."""
    async with Session(**engine.options(prompt_encoding=api, parallel=1)) as session:
        with anyio.fail_after(BOUND):
            with anyio.CancelScope() as scope:
                async with long_reply(session) as stream:
                    async for _ in stream:
                        scope.cancel()
            assert scope.cancelled_caught
        await assert_free(session)


async def test_cancelling_a_call_that_waits_gives_its_place_back(engine: Engine, api: str | None) -> None:
    """Issue 1: the others wait in us; one that stopped waiting is not in anybody's way."""
    async with Session(**engine.options(prompt_encoding=api, parallel=1)) as session:
        with anyio.fail_after(BOUND):
            async with long_reply(session) as holder:
                await anext(holder)
                waiting = session.prompt_streaming(OK)

                async def wait() -> None:
                    async with waiting:
                        raise AssertionError

                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(wait)
                    await anyio.wait_all_tasks_blocked()
                    assert 0 == waiting.queue_position
                    tasks.cancel_scope.cancel()
                assert waiting.queue_position is None
        await assert_free(session)


async def test_more_requests_than_slots_wait_in_us(engine: Engine, api: str | None) -> None:
    """Issue 1: no more requests than slots are in the engine; API.md 3: queue_position."""
    replies: dict[int, str] = {}

    async def ask(number: int, stream: ReplyStream) -> None:
        async with stream:
            replies[number] = (await stream.result()).text

    async with Session(**engine.options(prompt_encoding=api, parallel=1)) as session:
        with anyio.fail_after(BOUND):
            async with anyio.create_task_group() as tasks, long_reply(session) as holder:
                await anext(holder)
                assert holder.queue_position is None
                waiting = [session.prompt_streaming(OK, temperature=0) for _ in range(3)]
                for number, stream in enumerate(waiting):
                    tasks.start_soon(ask, number, stream)
                    await anyio.wait_all_tasks_blocked()
                assert [0, 1, 2] == [stream.queue_position for stream in waiting]
                assert 0 == (await session.get_metrics()).requests_pending
    assert [0, 1, 2] == list(replies)
    assert {"ok chief"} == set(replies.values())


async def test_sixty_prompts_on_four_slots_all_come_right(session: Session) -> None:
    """Issue 1 and LLAMA_SERVER F4: with the engine's default flags concurrent chats kill each other."""
    texts: list[str] = []

    async def ask() -> None:
        texts.append((await session.prompt(OK, temperature=0)).text)

    assert 4 == session.parallel
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            for _ in range(60):
                tasks.start_soon(ask)
    assert ["ok chief"] * 60 == texts


async def test_four_long_replies_at_once_each_have_their_own_context(engine: Engine, api: str | None) -> None:
    """LLAMA_SERVER F4: in a common pool all four would fail with 500."""
    replies: list[Completion] = []

    async def ask(session: Session) -> None:
        replies.append(await session.prompt(COUNT, sampling=ENDLESS))

    async with Session(**engine.options(prompt_encoding=api, context_length=512)) as session:
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                for _ in range(4):
                    tasks.start_soon(ask, session)
    assert [True] * 4 == [reply.context_full for reply in replies]
    assert all(500 <= reply.usage.total_tokens <= 513 for reply in replies)


async def test_timeout_covers_the_whole_reply(engine: Engine, api: str | None) -> None:
    """API.md 3: timeout covers the whole call; API.md 5: the error carries its partial."""
    async with Session(**engine.options(prompt_encoding=api, parallel=1)) as session:
        with anyio.fail_after(BOUND):
            with pytest.raises(TotalTimeoutError, match=r"timeout=0\.2") as caught:
                await session.prompt(COUNT, sampling=ENDLESS, timeout=0.2)
        assert isinstance(caught.value, TimeoutError)
        assert caught.value.partial is not None
        assert caught.value.partial.text.startswith("1 2 3")
        await assert_free(session)


async def test_timeout_covers_waiting_for_a_slot(engine: Engine, api: str | None) -> None:
    """API.md 3: waiting included."""
    async with Session(**engine.options(prompt_encoding=api, parallel=1)) as session:
        with anyio.fail_after(BOUND):
            async with long_reply(session) as holder:
                await anext(holder)
                with pytest.raises(TotalTimeoutError) as caught:
                    await session.prompt(OK, timeout=0.05)
        assert caught.value.partial is not None
        assert "" == caught.value.partial.text
        await assert_free(session)


async def test_an_engine_that_stands_still_is_a_first_token_timeout(engine: Engine, api: str | None) -> None:
    """API.md 5: FirstTokenTimeoutError, and afterwards the session works on. The engine is stopped by SIGSTOP."""
    async with Session(**engine.options(prompt_encoding=api, first_token_timeout=1.0)) as session:
        assert session.pid is not None
        os.kill(session.pid, signal.SIGSTOP)
        try:
            with anyio.fail_after(BOUND):
                with pytest.raises(FirstTokenTimeoutError, match=r"first_token_timeout=1") as caught:
                    await session.prompt(OK)
        finally:
            os.kill(session.pid, signal.SIGCONT)
        assert caught.value.partial is not None
        assert "" == caught.value.partial.text


async def test_an_engine_that_stops_in_mid_reply_is_an_idle_timeout(engine: Engine, api: str | None) -> None:
    """API.md 5: IdleTimeoutError with the text so far, of a server that is not ours to start again."""
    pieces: list[str] = []
    async with (
        Session(**engine.options(prompt_encoding=api)) as owner,
        Session(
            remote=owner.base_url, api_key=owner.api_key, model=owner.model, prompt_encoding=api, idle_timeout=0.3
        ) as session,
    ):
        assert owner.pid is not None
        with anyio.fail_after(BOUND):
            async with long_reply(session) as stream:
                pieces.append(await anext(stream))
                os.kill(owner.pid, signal.SIGSTOP)
                try:
                    with pytest.raises(IdleTimeoutError, match=r"idle_timeout=0\.3") as caught:
                        await read_into(pieces, stream)
                finally:
                    os.kill(owner.pid, signal.SIGCONT)
            assert caught.value.partial is not None
            assert "".join(pieces) == caught.value.partial.text
            assert "ok chief" == (await session.prompt(OK, temperature=0)).text


async def test_ten_streams_on_four_slots_end_with_their_text_when_the_session_is_closed(
    engine: Engine, api: str | None
) -> None:
    """Issue 1: ten streams on four slots, aclose() in the middle: closed within 1.5 s, each reader has its text."""
    texts = [""] * 10
    errors: dict[int, ClosedError] = {}
    four_read = anyio.Event()

    async def read(session: Session, number: int) -> None:
        try:
            async with long_reply(session) as stream:
                async for piece in stream:
                    texts[number] += piece
                    if 4 == sum(bool(text) for text in texts):
                        four_read.set()
        except ClosedError as error:
            errors[number] = error

    session = await Session.open(**engine.options(prompt_encoding=api))
    with anyio.fail_after(BOUND):
        async with anyio.create_task_group() as tasks:
            for number in range(10):
                tasks.start_soon(read, session, number)
            await four_read.wait()
            with anyio.fail_after(1.5):
                await session.aclose()
    assert set(range(10)) == set(errors)
    for number, error in errors.items():
        assert error.partial is not None
        assert texts[number] == error.partial.text
    assert 4 == sum(bool(text) for text in texts)


async def test_a_killed_engine_is_started_once_for_all_who_ask(engine: Engine, api: str | None) -> None:
    """Server: started by the first who needs it; the others wait for that start."""
    texts: list[str] = []

    async def ask(session: Session) -> None:
        texts.append((await session.prompt(OK, temperature=0)).text)

    async with Session(**engine.options(prompt_encoding=api)) as session:
        assert session.pid is not None
        with anyio.fail_after(BOUND):
            os.kill(session.pid, signal.SIGKILL)
            while session.pid is not None:
                await checkpoint()
            assert "down" == await session.get_health()
            async with anyio.create_task_group() as tasks:
                for _ in range(6):
                    tasks.start_soon(ask, session)
            assert "ok" == await session.get_health()
    assert ["ok chief"] * 6 == texts


async def test_a_session_is_closed_from_another_task_while_prompts_run(engine: Engine, api: str | None) -> None:
    """API.md 3 and Session.aclose: in any state, from any task, any number of times."""
    errors: list[ClosedError] = []
    session = await Session.open(**engine.options(prompt_encoding=api, parallel=2))

    async def ask() -> None:
        with pytest.raises(ClosedError) as caught:
            await session.prompt(COUNT, sampling=ENDLESS)
        errors.append(caught.value)

    with anyio.fail_after(BOUND):
        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(session.aclose)
            tasks.start_soon(session.aclose)
        await session.aclose()
    assert 4 == len(errors)
    assert all(error.partial is not None for error in errors)
    assert "down" == await session.get_health()


async def test_a_session_opened_in_one_event_loop_is_closed_in_another(engine: Engine) -> None:
    """Session: it holds no task and no cancel scope between calls."""
    session = await anyio.to_thread.run_sync(lambda: anyio.run(lambda: Session.open(**engine.options())))
    with anyio.fail_after(BOUND):
        assert "ok chief" == (await session.prompt(OK, temperature=0)).text
        await anyio.to_thread.run_sync(lambda: anyio.run(session.aclose))
        with pytest.raises(ClosedError, match="open another"):
            await session.prompt(OK)


async def test_two_sessions_at_once(engine: Engine) -> None:
    """Our decision: a session is a value like any other, and its server is its own."""
    async with Session(**engine.options()) as one, Session(**engine.options(prompt_encoding="chat")) as other:
        assert one.pid != other.pid
        assert one.base_url != other.base_url
        assert one.api_key != other.api_key
        assert "ok chief" == (await one.prompt(OK, temperature=0)).text
        await one.aclose()
        assert "ok chief" == (await other.prompt(OK, temperature=0)).text
        assert "down" == await one.get_health()
        assert "ok" == await other.get_health()


async def test_a_hundred_and_twenty_small_requests_in_a_row(session: Session) -> None:
    """LLAMA_SERVER 3.2: the server closes a connection after 100 requests; nobody may notice."""
    with anyio.fail_after(60):
        for number in range(120):
            assert str(number) == await session.detokenize(await session.tokenize(str(number)))


async def test_a_stream_is_read_inside_its_block(session: Session) -> None:
    """API.md 3: iterating outside the block is a UsageError that says so."""
    stream = session.prompt_streaming(OK)
    with pytest.raises(UsageError, match="inside its block"):
        await anext(stream)
    with pytest.raises(UsageError, match="inside its block"):
        await stream.result()
    async with stream:
        pass
    assert StopReason.INTERRUPTED is (await stream.result()).stop_reason
    with pytest.raises(UsageError, match="entered once"):
        await stream.__aenter__()
