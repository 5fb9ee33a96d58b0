"""Servers of 2024: llama-server b4100 and llamafile, played (see tests/played_servers.py): none of them is run here."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from llmsession import (
    AuthError,
    ConfigError,
    ContextOverflowError,
    Message,
    ServerError,
    Session,
    StopReason,
    UnsupportedFeatureError,
)
from llmsession.backends.flags.capabilities import probe_capabilities
from llmsession.types.events import TextDelta
from tests.engines import Engine, own_child
from tests.fake_llama_server import wrapper
from tests.played_servers import Played, serve_played

pytestmark = pytest.mark.anyio

OLD = ["b4100", "llamafile-0.8", "llamafile-0.9"]
ALL = [*OLD, "llamafile-0.10"]


def told(file: Path, path: str) -> list[dict[str, Any]]:
    """What a played binary was asked on this path."""
    return [body for asked, body in map(json.loads, file.read_text().splitlines()) if asked == path]


# A binary of b4100 that we start.


async def test_an_old_binary_is_started_in_its_own_words(tmp_path: Path) -> None:
    """CAPABILITIES B16: a build of b4000 to the newest works. A flag that it lacks would end the played one."""
    extra = ("--flash-attn", "on", "--load-mode", "none", "--spec-draft-n-max", "5")
    async with Session(
        server_path=wrapper(tmp_path, "--play b4100"), extra_args=extra, parallel=2, threads=1
    ) as session:
        assert ("llama-server", "4100 (74d73dc)", 512) == (session.backend, session.version, session.context_length)
        line = own_child(session).command.argv
        assert "--no-context-shift" in line
        assert {"--flash-attn", "--no-mmap", "--draft-max"} <= set(line)
        assert {"on", "--load-mode", "--jinja", "--cache-ram", "off"}.isdisjoint(line)
        reply = await session.prompt("hi")
        assert ("word1 word2 word3 ", StopReason.END) == (reply.text, reply.stop_reason)
        assert 3 == reply.usage.completion_tokens
        assert reply.usage.prompt_tokens - 4 == reply.usage.cached_tokens
        assert 100.0 / 1.5 == pytest.approx(reply.timings.generated.rate)


async def test_an_old_binary_streams_stops_and_counts(tmp_path: Path) -> None:
    """LLAMA_SERVER 8: `stopped_word`, `stopped_limit`, and counts only at the end."""
    async with Session(server_path=wrapper(tmp_path, "--play b4100")) as session:
        async with session.prompt_streaming("hi") as stream:
            assert ["word1 ", "word2 ", "word3 "] == [piece async for piece in stream]
        stopped = await session.prompt("hi", stop=["word3"])
        assert ("word1 word2 ", StopReason.STOP_PHRASE, "word3") == (
            stopped.text, stopped.stop_reason, stopped.stop_phrase,
        )  # fmt: skip
        cut = await session.prompt("hi", max_tokens=2)
        assert ("word1 word2 ", StopReason.LENGTH) == (cut.text, cut.stop_reason)
        async with session.prompt_streaming("hi") as stream:
            events = [event async for event in stream.events()]
        assert [1, 2, 3] == [event.completion_tokens for event in events if isinstance(event, TextDelta)]
        metrics = await session.get_metrics()
        assert (30, 15.0, 24.0) == (metrics.generated.count, metrics.generated.rate, metrics.prompt.rate)
        assert (0.25, 128, None) == (metrics.kv_cache_usage, metrics.kv_cache_tokens, metrics.cached_prompt_tokens)
        assert [True, False] == [slot.is_processing for slot in await session.get_slots()]
        assert "ok" == await session.get_health()


async def test_what_is_too_long_for_an_old_binary_is_told(tmp_path: Path) -> None:
    """LLAMA_SERVER 8: it would cut the prompt in silence; told not to, it says so in a line `error:`, no numbers."""
    async with Session(server_path=wrapper(tmp_path, "--play b4100")) as session:
        with pytest.raises(ContextOverflowError, match="shorten it") as caught:
            await session.prompt("x" * 600)
    assert (0, 0) == (caught.value.prompt_tokens, caught.value.context_length)


async def test_old_probabilities_are_log_probabilities(tmp_path: Path) -> None:
    """LLAMA_SERVER 8: `[{content, probs: [{tok_str, prob}]}]`."""
    async with Session(server_path=wrapper(tmp_path, "--play b4100")) as session:
        reply = await session.generate("hi", top_logprobs=2)
    first = reply.tokens[0]
    assert ("word1 ", math.log(0.5), -1) == (first.text, first.logprob, first.id)
    assert ["word1 ", "other"] == [token.text for token in first.top]


async def test_texts_stay_texts_for_an_old_binary(tmp_path: Path) -> None:
    """CAPABILITIES A7; LLAMA_SERVER 8: it takes every spelling for its token, but the model's file has the bytes."""
    tell = tmp_path / "asked"
    async with Session(server_path=wrapper(tmp_path, f"--play b4100 --tell {tell}")) as session:
        reply = await session.prompt("say <|im_end|> twice")
        assert 1 == reply.neutralized
        with pytest.raises(UnsupportedFeatureError, match="as text"):
            await session.tokenize("a<|im_end|>")
        assert [97, 257] == await session.tokenize("a<|im_end|>", special=True)
        assert [97] == await session.tokenize("a")
    (asked,) = told(tell, "/completion")
    text = "".join("*" if id_ > 255 else chr(id_) for id_ in asked["prompt"])
    assert "say <|im_end|> twice" in text
    # Those that the encoding writes are tokens as ever, and what it asks for has an end.
    assert text.count("*") == 3
    assert 512 == asked["n_predict"]
    assert asked["cache_prompt"] is True


async def test_a_chat_through_an_old_binary(tmp_path: Path) -> None:
    """LLAMA_SERVER 8: no /apply-template, so a space of no width it is; and no count, phrase or log-probabilities."""
    tell = tmp_path / "asked"
    played = wrapper(tmp_path, f"--play b4100 --tell {tell}")
    async with Session(server_path=played, prompt_encoding="chat") as session:
        reply = await session.prompt("say <|im_end|>", stop=["word2"])
        assert ("word1 ", 1, StopReason.END) == (reply.text, reply.neutralized, reply.stop_reason)
        assert StopReason.LENGTH == (await session.prompt("hi", max_tokens=1)).stop_reason
        for call, feature in (
            (lambda: session.count_tokens(["hi"]), "count of a chat's tokens"),
            (lambda: session.prompt("hi", top_logprobs=1), "log-probabilities of a chat"),
            (lambda: session.prompt("hi", stop=[5]), "stop by a token's id"),
            (lambda: session.render_template("hi"), "template"),
        ):
            with pytest.raises(UnsupportedFeatureError, match=feature):
                await call()
    assert "say <\u200b|im_end|>" == told(tell, "/v1/chat/completions")[0]["messages"][0]["content"]


@pytest.mark.parametrize(
    ("extra", "match"),
    [
        (["--no-context-shft"], "4100 .*did you mean --no-context-shift"),
        (["--reasoning-budget", "0"], "has no --reasoning-budget"),
        (["--no-context-shift", "5"], "takes nothing"),
    ],
)
async def test_what_an_old_binary_cannot_do_is_refused_before_the_start(
    tmp_path: Path, extra: list[str], match: str
) -> None:
    """CAPABILITIES B16: by name, and no process is spawned for it."""
    with pytest.raises(ConfigError, match=match):
        await Session.open(server_path=wrapper(tmp_path, "--play b4100"), extra_args=extra, cache_dir=tmp_path / "c")
    assert [] == list((tmp_path / "c" / "logs").glob("*"))


async def test_todays_engine_understands_the_words_of_then(engine: Engine) -> None:
    """LLAMA_SERVER trap 13: removed flags would stop the start, with nothing but an exit code. A near miss is told."""
    if engine.server_path is None:  # it has no command line
        with pytest.raises(UnsupportedFeatureError, match="--no-mmap"):
            await Session.open(**engine.options(extra_args=("--no-mmap",)))
        return
    extra = ("--no-mmap", "--draft", "5", "-fa", "--no-slots")
    async with Session(**engine.options(extra_args=extra, context_length=256)) as session:
        line = own_child(session).command.argv
        assert ["--load-mode", "none"] == line[-2:]
        assert "ok chief" == (await session.prompt('reply with "ok chief"', temperature=0)).text
        assert (None, None) == (
            (await session.get_metrics()).kv_cache_usage,
            (await session.get_metrics()).kv_cache_tokens,
        )
        with pytest.raises(UnsupportedFeatureError, match="list of slots"):
            await session.get_slots()
    with pytest.raises(ConfigError, match="has no --no-mmmap; did you mean --no-mmproj"):
        await Session.open(**engine.options(extra_args=("--no-mmmap",)))


async def test_a_binary_is_asked_once_for_what_it_can_do(tmp_path: Path) -> None:
    """CAPABILITIES B16: kept by path, size and time of change; what was kept in another form is asked again."""
    played, calls = wrapper(tmp_path, "--play b4100"), tmp_path / "calls"
    played.write_text(played.read_text().replace("FAKE=", f'echo "$@" >> {calls}\nFAKE=', 1))
    first = await probe_capabilities(played, tmp_path)
    assert first == await probe_capabilities(played, tmp_path)
    assert ["--help", "--version"] == calls.read_text().split()
    assert "4100 (74d73dc)" == first.version
    (kept,) = tmp_path.glob("capabilities-*.json")
    kept.write_text('{"flags": ["--help"]}')
    assert first == await probe_capabilities(played, tmp_path)
    assert 4 == len(calls.read_text().split())
    os.utime(played, (1, 1))
    await probe_capabilities(played, tmp_path)
    assert 6 == len(calls.read_text().split())


# Servers of others.


@pytest.mark.parametrize("encoding", ["chat", "chatml"])
@pytest.mark.parametrize("name", ALL)
async def test_a_remote_one_replies(name: str, encoding: str) -> None:
    """CAPABILITIES B16, B5: prompts, streams, stops and ends, whatever its last frame looks like."""
    with serve_played(Played(name)) as played:
        async with Session(remote=played.base_url, prompt_encoding=encoding) as session:
            assert ("llamafile" if name in OLD[1:] else "llama-server") == session.backend
            assert (512, 2) == (session.context_length, session.parallel)
            async with session.prompt_streaming("hi") as stream:
                assert ["word1 ", "word2 ", "word3 "] == [piece async for piece in stream]
            assert (StopReason.END, 3) == (
                (await stream.result()).stop_reason, (await stream.result()).usage.completion_tokens,
            )  # fmt: skip
            cut = await session.prompt("hi", max_tokens=2)
            assert ("word1 word2 ", StopReason.LENGTH) == (cut.text, cut.stop_reason)
            stopped = await session.prompt("hi", stop=["word2"])
            assert "word1 " == stopped.text
            if encoding == "chatml":
                assert (StopReason.STOP_PHRASE, "word2") == (stopped.stop_reason, stopped.stop_phrase)
            assert "ok" == await session.get_health()
    limits = [body.get("n_predict", body.get("max_tokens")) for path, body in played.requests if "complet" in path]
    assert [512, 2, 512] == limits


@pytest.mark.parametrize("name", ALL)
async def test_a_remote_ones_counts(name: str) -> None:
    """CAPABILITIES B17: rates of new, old and llamafile; the KV cache from the metrics, or from the slots."""
    with serve_played(Played(name)) as played:
        async with Session(remote=played.base_url) as session:
            metrics = await session.get_metrics()
            slots = await session.get_slots()
    assert (30, 15.0) == (metrics.generated.count, metrics.generated.rate)
    assert (12, 24.0) == (metrics.prompt.count, metrics.prompt.rate)
    assert (0.25, 1, 0) == (metrics.kv_cache_usage, metrics.requests_processing, metrics.requests_pending)
    assert [True, False] == [slot.is_processing for slot in slots]
    assert [None if name in OLD else 256, None if name in OLD else 0] == [slot.n_prompt_tokens for slot in slots]


@pytest.mark.parametrize("name", OLD)
async def test_what_a_remote_one_does_not_show_is_one_sentence(name: str) -> None:
    """CAPABILITIES B17: without --metrics or --slots; old ones say so only when they are asked."""
    with serve_played(Played(name, has_metrics=False, has_slots=False)) as played:
        async with Session(remote=played.base_url) as session:
            with pytest.raises(UnsupportedFeatureError, match=r"has no metrics$"):
                await session.get_metrics()
            with pytest.raises(UnsupportedFeatureError, match=r"has no list of slots$"):
                await session.get_slots()


@pytest.mark.parametrize("name", ["llamafile-0.8", "llamafile-0.9"])
async def test_one_with_all_its_slots_busy_is_ready(name: str) -> None:
    """LLAMA_SERVER 8: 200 with "no slot available"."""
    with serve_played(Played(name, is_busy=True)) as played:
        async with Session(remote=played.base_url) as session:
            assert "ok" == await session.get_health()


@pytest.mark.parametrize("name", ["llamafile-0.8", "llamafile-0.9"])
@pytest.mark.parametrize("encoding", ["chat", "chatml"])
async def test_an_error_in_the_stream_is_no_text(name: str, encoding: str) -> None:
    """LLAMA_SERVER 8: `error: {"content": …}` looks like a piece of the reply."""
    with serve_played(Played(name, shifts_context=False)) as played:
        async with Session(remote=played.base_url, prompt_encoding=encoding) as session:
            with pytest.raises(ServerError, match="slot unavailable") as caught:
                await session.prompt("x" * 600)
    assert caught.value.partial is not None
    assert "" == caught.value.partial.text


async def test_a_prompt_that_was_cut_is_told_where_that_cannot_be_helped() -> None:
    """LLAMA_SERVER 8: a llamafile forgets the beginning of what is too long; `context_full` says so."""
    with serve_played(Played("llamafile-0.9")) as played:
        async with Session(remote=played.base_url, prompt_encoding="chatml") as session:
            assert (await session.prompt("x" * 600)).context_full
            assert not (await session.prompt("x")).context_full


@pytest.mark.parametrize("encoding", ["chat", "chatml"])
@pytest.mark.parametrize("name", ALL)
async def test_texts_stay_texts_for_a_remote_one(name: str, encoding: str) -> None:
    """CAPABILITIES A7: as tokens where it tells their bytes, else with a space of no width."""
    with serve_played(Played(name)) as played:
        async with Session(remote=played.base_url, prompt_encoding=encoding) as session:
            reply = await session.prompt([Message.user("say <|im_end|>")])
    assert 1 == reply.neutralized
    path, body = next((path, body) for path, body in reversed(played.requests) if "complet" in path)
    if name.startswith("llamafile-0.1") or (name == "b4100" and encoding == "chatml"):
        assert "/completion" == path
        assert "say <|im_end|>" in "".join("*" if id_ > 255 else chr(id_) for id_ in body["prompt"])
    else:
        said = body["prompt"] if path == "/completion" else body["messages"][0]["content"]
        assert "say <\u200b|im_end|>" in said


async def test_llamafiles_words_on_a_wrong_key() -> None:
    """LLAMA_SERVER 8: plain text, and only where a reply is asked for."""
    with serve_played(Played("llamafile-0.8", key="right")) as played:
        async with Session(remote=played.base_url, api_key="wrong") as session:
            with pytest.raises(AuthError, match="api_key="):
                await session.prompt("hi")
