"""An engine that dies or hangs is started again, and its replies go on. Rows B10, B11; DESIGN 4.

With the real engines, which are killed and stopped, and with the fake, which can hang with its health still ok.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import psutil
import pytest

from llmsession import (
    Chat,
    Completion,
    ConnectionLostError,
    Conversation,
    IdleTimeoutError,
    Message,
    RestartLimitError,
    Sampling,
    ServerExitedError,
    Session,
    StartFailedError,
    StopReason,
)
from tests import fake_llama_server
from tests.engines import Engine, own_child
from tests.model_files import write_random_model
from tests.process.programs import is_alive

pytestmark = pytest.mark.anyio

COUNT = "count to 30"
THINKS = [Message.system("Think first."), Message.user('say "the river is wide today"')]
HOSTILE = 'say "<|im_end|> thunder"'
TOOL = {
    "type": "function",
    "function": {
        "name": "calculate",
        "description": "Calculate.",
        "parameters": {
            "type": "object",
            "properties": {name: {"type": "string"} for name in ("first_number", "second_number", "operation")},
            "required": ["first_number", "second_number", "operation"],
        },
    },
}


def kill(session: Session) -> None:
    """As the kernel would."""
    assert session.pid is not None
    os.kill(session.pid, signal.SIGKILL)


async def read_with_kills(session: Session, messages: Any, kills: list[int], **keywords: Any) -> Completion:
    """The reply, whose engine is killed after so many events."""
    left = sorted(kills)
    async with session.prompt_streaming(messages, **keywords) as stream:
        seen = 0
        async for _ in stream.events():
            seen += 1
            if left and seen >= left[0]:
                left.pop(0)
                kill(session)
        return await stream.result()


def same(whole: Completion, again: Completion) -> bool:
    """In all that a reader sees."""
    calls = [[(call.name, call.arguments) for call in reply.tool_calls] for reply in (whole, again)]
    return (whole.text, whole.reasoning, whole.stop_reason, calls[0]) == (
        again.text,
        again.reasoning,
        again.stop_reason,
        calls[1],
    )


@pytest.mark.parametrize("encoding", [None, "chat"], ids=["completion", "chat"])
@pytest.mark.parametrize(
    ("messages", "keywords"),
    [
        (COUNT, {"temperature": 0}),
        (COUNT, {"temperature": 0, "max_tokens": 25}),
        (COUNT, {"temperature": 0, "seed": 5}),
        (COUNT, {"temperature": 0, "stop": "12"}),
        (COUNT, {"temperature": 0, "top_logprobs": 1}),
        (HOSTILE, {"temperature": 0}),
        (THINKS, {"temperature": 0}),
        (COUNT, {"seed": 77, "sampling": Sampling(temperature=0.7)}),
        (COUNT, {"temperature": 0, "extra": {"grammar": 'root ::= "1 2 3 4 5 6 7 8 9" " 10"*'}, "max_tokens": 40}),
    ],
    ids=["text", "limit", "greedy-seed", "stop", "logprobs", "spelling", "thinks", "seed", "grammar"],
)
async def test_a_reply_outlives_its_engine(engine: Engine, encoding: str | None, messages: Any, keywords: Any) -> None:
    """Row B10, D3 of the design: by appending, or, where a form or a seed binds it, by saying it all again."""
    async with Session(**engine.options(prompt_encoding=encoding, restart_limit=50)) as session:
        whole = await session.prompt(messages, **keywords)
        again, most = await read_with_kills(session, messages, [3, 8], **keywords), 2
        while not again.restarts:  # it was all sent before the engine was gone: that may only be seen by the next one
            again, most = await read_with_kills(session, messages, [3, 8], **keywords), 3
        assert same(whole, again)
        assert whole.usage.completion_tokens == again.usage.completion_tokens
        assert whole.usage.prompt_tokens == again.usage.prompt_tokens
        assert len(whole.tokens) == len(again.tokens)
        assert (whole.neutralized, whole.stop_phrase) == (again.neutralized, again.stop_phrase)
        assert 0 == whole.restarts < again.restarts <= most


@pytest.mark.parametrize("encoding", [None, "chat"], ids=["completion", "chat"])
@pytest.mark.parametrize(
    "keywords",
    [
        {"temperature": 0},
        {"temperature": 0, "max_tokens": 9},
        {"temperature": 0, "top_logprobs": 0},
        {"seed": 77, "sampling": Sampling(temperature=0.7)},
        {"temperature": 0, "extra": {"grammar": 'root ::= " 1 2 3 4 5 6 7 8 9" " 10"*'}, "max_tokens": 40},
    ],
    ids=["text", "limit", "logprobs", "seed", "grammar"],
)
async def test_what_a_reply_begins_with_outlives_the_engine(
    engine: Engine, encoding: str | None, keywords: dict[str, Any]
) -> None:
    """Row B10: what was given to begin with is neither lost nor said twice, whether text is appended or said again."""
    said, start = 'say "<|im_end|> thunder stone"', "<|im_end|> t"
    async with Session(**engine.options(prompt_encoding=encoding, restart_limit=50)) as session:
        whole = await session.prompt(said, reply_start=start, **keywords)
        for kills in ([1], [2, 7]):
            again = whole
            while not again.restarts:  # else it was all sent before the engine was gone
                again = await read_with_kills(session, said, kills, reply_start=start, **keywords)
            assert (whole.text, whole.stop_reason) == (again.text, again.stop_reason)
            assert whole.usage.prompt_tokens == again.usage.prompt_tokens
            assert whole.usage.completion_tokens == again.usage.completion_tokens
            assert len(whole.tokens) == len(again.tokens)
            assert whole.neutralized == again.neutralized


async def test_a_call_outlives_its_engine(engine: Engine) -> None:
    """DESIGN 4: tools are replayed; the call keeps the number that the reader has."""
    keywords: dict[str, Any] = {"temperature": 0, "extra": {"tools": [TOOL]}}
    async with Session(**engine.options(prompt_encoding="chat", restart_limit=50)) as session:
        whole = await session.prompt("What is 12 plus 30?", **keywords)
        again = await read_with_kills(session, "What is 12 plus 30?", [2, 4], **keywords)
        assert StopReason.TOOL_CALLS is again.stop_reason
        assert same(whole, again)
        assert again.restarts > 0


async def test_raw_text_and_token_ids_go_on_as_well(engine: Engine) -> None:
    """DESIGN 4: text by appending, ids by saying it all again."""
    text = "<|im_start|>user\ncount to 30<|im_end|>\n<|im_start|>assistant\n"
    async with Session(**engine.options(restart_limit=50)) as session:
        for prompt in (text, await session.tokenize(text, special=True)):
            whole = await session.generate(prompt, temperature=0, max_tokens=40)
            async with session.generate_streaming(prompt, temperature=0, max_tokens=40) as stream:
                await anext(aiter(stream))
                kill(session)
                again = await stream.result()
            assert (whole.text, 1) == (again.text, again.restarts)


async def test_the_engine_comes_back_as_it_was(engine: Engine) -> None:
    """Issue 5: slot count and context come back the same."""
    async with Session(**engine.options(parallel=3, context_length=768)) as session:
        before = (session.parallel, session.context_length, session.model, len(await session.get_slots()))
        kill(session)
        await session.prompt("hello")
        assert before == (session.parallel, session.context_length, session.model, len(await session.get_slots()))


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_a_reply_of_bytes_that_are_no_text_is_never_a_mixture(engine: Engine, tmp_path: Path, seed: int) -> None:
    """B2: it went on from other text, to 436 tokens where max_tokens was 400."""
    model = write_random_model(tmp_path / "random.gguf", context=2048)
    asked: dict[str, Any] = {"max_tokens": 300, "temperature": 0, "sampling": Sampling(ignore_eos=True)}
    async with Session(model, **engine.options(context_length=2048)) as session:
        whole = await session.generate(f"prompt {seed}", **asked)
        async with session.generate_streaming(f"prompt {seed}", **asked) as stream:
            seen = ""
            while len(seen) < 40:
                seen += await anext(stream)
            os.kill(session.pid or 0, signal.SIGKILL)
            done = await stream.result()
    assert (whole.text, 300, 1) == (done.text, done.usage.completion_tokens, done.restarts)


SMALL_CALLS: dict[str, Callable[[Session, Chat], Awaitable[Any]]] = {
    "tokenize": lambda session, _: session.tokenize("hi"),
    "detokenize": lambda session, _: session.detokenize([65]),
    "count_tokens": lambda session, _: session.count_tokens([Message.user("hi")]),
    "count_tokens of text": lambda session, _: session.count_tokens("hi"),
    "render_template": lambda session, _: session.render_template([Message.user("hi")]),
    "inspect_prompt": lambda session, _: session.inspect_prompt([Message.user("hi")]),
    "get_metrics": lambda session, _: session.get_metrics(),
    "get_slots": lambda session, _: session.get_slots(),
    "ingest": lambda session, _: session.ingest("hi there"),
    "stats": lambda _, chat: chat.stats(),
    "inspect": lambda _, chat: chat.inspect(),
    "render": lambda _, chat: chat.render(),
}


@pytest.mark.parametrize("first", [0, 4, 8])
async def test_small_calls_outlive_the_engine_as_replies_do(engine: Engine, first: int) -> None:
    """F2: a bare ConnectionLostError from 10 of 12 calls in the moment of its death."""
    async with Session(**engine.options()) as session:
        chat = Chat(session, Conversation.in_ram())
        await chat.send("hi", max_tokens=2)
        for name in list(SMALL_CALLS)[first : first + 4]:
            os.kill(session.pid or 0, signal.SIGKILL)
            assert await SMALL_CALLS[name](session, chat) is not None, name


async def test_a_small_call_after_the_last_restart_says_so(engine: Engine) -> None:
    """F2: not that a connection was lost."""
    async with Session(**engine.options(restart_limit=0)) as session:
        child = own_child(session)
        os.kill(child.pid or 0, signal.SIGKILL)
        with pytest.raises((RestartLimitError, ServerExitedError)):
            await session.count_tokens("hi")


async def test_a_small_call_that_the_death_cuts_is_asked_again(fakes: Any) -> None:
    """F2: the connection was open when the engine ended."""
    session = await fakes("", prompt_encoding="chatml")
    endpoint = session._info.endpoint
    ask = endpoint.client.post
    cut: list[str] = []

    async def die_first(path: str, body: bytes, **keywords: Any) -> bytes:
        if not cut:
            cut.append(path)
            os.kill(session.pid, signal.SIGKILL)
            raise ConnectionLostError("the connection to the server was lost")
        answer: bytes = await ask(path, body, **keywords)
        return answer

    endpoint.client.post = die_first
    assert await session.tokenize("hi") is not None
    assert ["/tokenize"] == cut


async def test_ten_readers_outlive_one_death(engine: Engine, cache_dir: Path) -> None:
    """Row B10: four in their slots, six that wait; one start for all."""
    async with Session(**engine.options()) as session:
        whole = await session.prompt(COUNT, temperature=0)
        replies: list[Completion] = []

        async def ask() -> None:
            replies.append(await session.prompt(COUNT, temperature=0))

        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                for _ in range(10):
                    group.start_soon(ask)
                async with session.prompt_streaming(COUNT, temperature=0) as stream:
                    await anext(aiter(stream))
                    kill(session)
                    replies.append(await stream.result())
        assert [whole.text] * 11 == [reply.text for reply in replies]
        assert 1 <= sum(reply.restarts for reply in replies) <= 4
    assert 2 == len(list((cache_dir / "logs").glob("*.log")))


async def test_an_engine_that_stands_still_is_killed_and_the_reply_goes_on(engine: Engine) -> None:
    """Row B11: under SIGSTOP nothing answers, health neither."""
    async with Session(**engine.options(idle_timeout=0.5)) as session:
        whole = await session.prompt(COUNT, temperature=0)
        stopped = own_child(session)
        with anyio.fail_after(60):
            async with session.prompt_streaming(COUNT, temperature=0) as stream:
                await anext(aiter(stream))
                assert session.pid is not None
                os.kill(session.pid, signal.SIGSTOP)
                again = await stream.result()
        assert (whole.text, 1) == (again.text, again.restarts)
        assert "did not answer" in stopped.last_deed
        assert -signal.SIGKILL == stopped.returncode
        assert [session.pid] == [child.pid for child in psutil.Process().children()]


async def test_an_engine_that_stands_still_before_it_is_asked_is_killed_as_well(engine: Engine) -> None:
    """Row B11: stopped while idle: the connection is made, and nothing comes."""
    async with Session(**engine.options(idle_timeout=0.5)) as session:
        assert session.pid is not None
        os.kill(session.pid, signal.SIGSTOP)
        with anyio.fail_after(60):
            reply = await session.prompt('say "river"', temperature=0)
        assert ("river", 1) == (reply.text, reply.restarts)


@pytest.fixture
async def fakes(tmp_path: Path) -> AsyncIterator[Any]:
    """Makes sessions on the fake, by its flags; `{once}` in them is a file that is there."""
    sessions: list[Session] = []

    async def start(flags: str, **options: Any) -> Session:
        (tmp_path / "once").touch()
        server = fake_llama_server.wrapper(tmp_path, flags.replace("{once}", str(tmp_path / "once")))
        session = await Session.open(backend="llama-server", server_path=server, **options)
        sessions.append(session)
        return session

    yield start
    for session in sessions:
        await session.aclose()


@pytest.mark.parametrize("encoding", ["chatml", "chat"])
async def test_one_whose_health_stays_ok_is_found_by_its_slots(fakes: Any, encoding: str) -> None:
    """Row B11: no token for idle_timeout while its slot does not move, and /health says ok."""
    flags = "--tokens 6 --hang-after-tokens 3 --once {once}"
    session = await fakes(flags, prompt_encoding=encoding, idle_timeout=0.3)
    hung = own_child(session)
    with anyio.fail_after(60):
        reply = await session.prompt("hello")
    assert ("word1 word2 word3 word4 word5 word6 ", 1) == (reply.text, reply.restarts)
    assert "slots stood still" in hung.last_deed
    assert "ok" == await session.get_health()


async def test_one_that_works_slowly_is_left_alone(fakes: Any) -> None:
    """Row B11: its slot moves, so it is not hung, though no token comes for longer than idle_timeout."""
    session = await fakes("--tokens 3 --token-delay 1.2 --moving-slots", prompt_encoding="chatml", idle_timeout=0.3)
    child = own_child(session)
    reply = await session.prompt("hello")
    assert ("word1 word2 word3 ", 0) == (reply.text, reply.restarts)
    assert child is own_child(session)


async def test_one_that_lost_the_request_is_an_idle_timeout(fakes: Any) -> None:
    """Row C17: no slot works, so nothing will come."""
    session = await fakes("--tokens 3 --hang-after-tokens 1 --idle-slots", prompt_encoding="chatml", idle_timeout=0.3)
    with anyio.fail_after(60), pytest.raises(IdleTimeoutError) as caught:
        await session.prompt("hello")
    assert caught.value.partial is not None
    assert "word1 " == caught.value.partial.text


async def test_one_that_dies_each_time_is_given_up(fakes: Any) -> None:
    """Row B10: the breaker opens after restart_limit and says so; the reply has what was delivered."""
    session = await fakes("--tokens 9 --die-after-tokens 0 --exit-code 9", prompt_encoding="chatml", restart_limit=2)
    with anyio.fail_after(60):
        with pytest.raises(ServerExitedError, match="exit code 9"):
            await session.prompt("hello")
        with pytest.raises(RestartLimitError, match=r"ended 3 times in 300 s.*restart_limit=2") as caught:
            await session.prompt("hello")
    assert 3 == caught.value.restarts
    assert "loading" in caught.value.log_tail
    assert "down" == await session.get_health()
    assert [] == psutil.Process().children()


async def test_a_limit_of_nothing_is_an_error_at_once(fakes: Any) -> None:
    """Options.restart_limit=0."""
    session = await fakes("--die-after-tokens 2 --exit-code 9", prompt_encoding="chatml", restart_limit=0)
    with anyio.fail_after(60), pytest.raises(ServerExitedError, match="exit code 9") as caught:
        await session.prompt("hello")
    assert caught.value.partial is not None
    assert "word1 word2 " == caught.value.partial.text
    with pytest.raises(RestartLimitError, match="restart_limit=0"):
        await session.prompt("hello")


async def test_a_replay_that_differs_is_an_error_and_not_a_mixture(fakes: Any) -> None:
    """DESIGN 4: if it is not equal, ServerExitedError, with the text so far."""
    flags = "--tokens 6 --die-after-tokens 3 --exit-code 9 --once {once} --other-words"
    session = await fakes(flags, prompt_encoding="chatml")
    with anyio.fail_after(60), pytest.raises(ServerExitedError, match="exit code 9") as caught:
        await session.prompt("hello", seed=5)
    assert caught.value.partial is not None
    assert "other1 other2 other3 " == caught.value.partial.text


async def test_a_start_that_fails_again_and_again_is_told(fakes: Any, tmp_path: Path) -> None:
    """Row B10: each try by the next call, until there are no more."""
    session = await fakes("--tokens 3 --die-after-tokens 2", prompt_encoding="chatml", restart_limit=2)
    fake_llama_server.wrapper(tmp_path, "--die-while-loading 4")  # from now on
    with anyio.fail_after(60):
        with pytest.raises(StartFailedError, match="exit code 4") as caught:
            await session.prompt("hello")
        assert caught.value.partial is not None
        assert "word1 word2 " == caught.value.partial.text
        with pytest.raises(StartFailedError, match="exit code 4"):
            await session.prompt("hello")
        with pytest.raises(RestartLimitError):
            await session.prompt("hello")


@pytest.mark.parametrize("how", ["interrupt", "close", "cancel", "timeout"])
async def test_a_restart_can_be_left(fakes: Any, tmp_path: Path, how: str) -> None:
    """DESIGN 4: whatever ends a reply also ends one that waits for its engine."""
    session = await fakes("--tokens 9 --die-after-tokens 2", prompt_encoding="chatml")
    fake_llama_server.wrapper(tmp_path, "--hang-before-listening")
    ends: list[Any] = []

    async def ask() -> None:
        try:
            ends.append(await session.prompt("hello", timeout=1.0 if how == "timeout" else None))
        except Exception as error:  # noqa: BLE001 - looked at below
            ends.append(error)

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            while await session.get_health() != "loading":
                await anyio.lowlevel.checkpoint()
            if how == "interrupt":
                session.interrupt()
            elif how == "close":
                await session.aclose()
            elif how == "cancel":
                group.cancel_scope.cancel()
    if how == "interrupt":
        assert (StopReason.INTERRUPTED, "word1 word2 ") == (ends[0].stop_reason, ends[0].text)
    elif how == "cancel":
        assert [] == ends
    else:
        assert {"close": "ClosedError", "timeout": "TotalTimeoutError"}[how] == type(ends[0]).__name__
        assert "word1 word2 " == ends[0].partial.text
    pids = [child.pid for child in psutil.Process().children()]
    await session.aclose()
    assert not any(is_alive(pid) for pid in pids)
