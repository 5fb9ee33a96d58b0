"""What a session says of its engine, and what the engine says on the wire that we rely on."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import anyio
import httpx
import msgspec
import psutil
import pytest
from anyio.lowlevel import checkpoint

from llmsession import Message, Progress, PromptEncoding, Sampling, Session
from llmsession.session import server_info
from llmsession.session.server_info import ServerInfo
from llmsession.wire import completion_api, openai_api
from llmsession.wire.metrics import Slot
from llmsession.wire.request import GenerationRequest
from tests.engines import Engine, own_files

pytestmark = pytest.mark.anyio

# Each value is exact in 32 bits and none is the engine's default.
EVERYTHING = Sampling(
    temperature=0.5,
    dynatemp_range=0.25,
    dynatemp_exponent=1.5,
    top_k=7,
    top_p=0.75,
    min_p=0.125,
    top_n_sigma=2.0,
    typical_p=0.875,
    xtc_probability=0.25,
    xtc_threshold=0.375,
    repeat_penalty=1.25,
    repeat_last_n=16,
    presence_penalty=0.5,
    frequency_penalty=0.25,
    dry_multiplier=0.5,
    dry_base=1.5,
    dry_allowed_length=3,
    dry_penalty_last_n=32,
    dry_sequence_breakers=("x", "y"),
    mirostat=2,
    mirostat_tau=4.0,
    mirostat_eta=0.25,
    min_keep=2,
    samplers=("top_k", "temperature"),
    logit_bias={65: -1.5},
    ignore_eos=True,
)
NOTHING = Sampling(
    temperature=0.0,
    top_k=0,
    min_p=0.0,
    repeat_last_n=0,
    dry_multiplier=0.0,
    mirostat=0,
    min_keep=0,
    ignore_eos=False,
)

# What the build of 2026-10 sends. A name that is not here is news: look whether it means something to us.
KNOWN_COMPLETION_FIELDS = {
    "completion_probabilities",
    "content",
    "generation_settings",
    "has_new_line",
    "id_slot",
    "index",
    "model",
    "prompt",
    "stop",
    "stop_type",
    "stopping_word",
    "timings",
    "tokens",
    "tokens_cached",
    "tokens_evaluated",
    "tokens_predicted",
    "truncated",
}
KNOWN_CHAT_FIELDS = {
    "__verbose",
    "choices",
    "created",
    "id",
    "model",
    "object",
    "system_fingerprint",
    "timings",
    "usage",
}


def make_request(sampling: Sampling) -> GenerationRequest:
    """As a session makes it, with everything in it that changes the frames."""
    return GenerationRequest.make(
        max_tokens=5, seed=42, sampling=sampling, stop=("zz",), echo_stop=False, top_logprobs=1, extra=None
    )


async def ask(session: Session, path: str, body: bytes) -> list[dict[str, Any]]:
    """The frames as they come, past all of our code that reads them."""
    async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
        answer = await client.post(
            session.base_url + path, content=body, headers={"Authorization": f"Bearer {session.api_key}"}
        )
    assert 200 == answer.status_code, answer.text
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    return [msgspec.json.decode(line) for line in lines if line != "[DONE]"]


async def test_the_facts_of_a_session(session: Session, engine: Engine, api: str | None) -> None:
    """API.md 3, the last row of the table of calls."""
    assert "tiny-chat" == session.model
    model_path, _ = own_files(session)
    assert model_path.is_file()
    assert "tiny-chat.gguf" == model_path.name
    assert model_path.stat().st_size == session.info.size_bytes
    assert "llama" == session.info.architecture
    assert session.info.vocab_size == session.max_top_logprobs
    if api is None:
        assert isinstance(session.encoding, PromptEncoding)
        assert "<|im_start|>user\n" == session.encoding.user_token_start
    else:
        assert session.encoding is None
    assert session.info.trained_context_length == session.context_length
    assert 4 == session.parallel
    assert engine.backend == session.backend
    assert session.version
    assert session.base_url.startswith("http://127.0.0.1:")
    assert len(session.api_key) >= 24


async def test_special_tokens_have_all_nine_names(session: Session) -> None:
    """API.md 3: `bos eos eot nl prefix middle suffix cls sep` as ids or None."""
    assert {"bos", "eos", "eot", "nl", "prefix", "middle", "suffix", "cls", "sep"} == set(session.special_tokens)
    eos = session.special_tokens["eos"]
    assert eos is not None
    assert "<|im_end|>" == await session.detokenize([eos])


async def test_vocab_has_the_spelling_of_every_token(session: Session) -> None:
    """API.md 3: `await session.vocab()`, read from the file; ids are those of the engine."""
    vocab = await session.vocab()
    assert session.max_top_logprobs == len(vocab)
    (letter,) = await session.tokenize("A")
    assert "A" == vocab[letter]
    (start,) = await session.tokenize("<|im_start|>", special=True)
    assert "<|im_start|>" == vocab[start]


async def test_the_process_is_ours_and_its_log_is_kept(session: Session) -> None:
    """API.md 3: pid, log_path."""
    assert session.pid is not None
    assert os.getpid() == psutil.Process(session.pid).ppid()
    _, log_path = own_files(session)
    assert log_path.is_file()
    assert log_path.stat().st_size > 0


async def test_the_key_is_on_no_command_line_and_in_no_log(session: Session) -> None:
    """LLAMA_SERVER F9: the key not in argv, which everyone can read."""
    assert session.pid is not None
    assert session.api_key not in " ".join(psutil.Process(session.pid).cmdline())
    assert session.api_key not in own_files(session)[1].read_text(errors="replace")


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}], ids=["no key", "wrong key"])
@pytest.mark.parametrize("path", ["/props", "/slots", "/metrics", "/v1/models"])
async def test_the_server_refuses_whoever_has_no_key(session: Session, path: str, headers: dict[str, str]) -> None:
    """LLAMA_SERVER F9 and 3.2: 401 on everything but /health."""
    async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
        assert 401 == (await client.get(session.base_url + path, headers=headers)).status_code
        assert 401 == (await client.post(session.base_url + "/completion", headers=headers, json={})).status_code
        assert 200 == (await client.get(session.base_url + "/health", headers=headers)).status_code


async def test_the_server_listens_on_this_machine_only(session: Session) -> None:
    """Our decision: 127.0.0.1 and no other address."""
    assert session.pid is not None
    listening = [
        connection.laddr.ip
        for connection in psutil.Process(session.pid).net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]
    assert ["127.0.0.1"] == listening


async def test_health_is_ok_then_down_after_a_kill(engine: Engine) -> None:
    """API.md 3: "ok", "loading", "down"; it asks the server and never starts one."""
    session = Session(**engine.options())
    assert "down" == await session.get_health()
    async with session:
        assert "ok" == await session.get_health()
        assert session.pid is not None
        os.kill(session.pid, signal.SIGKILL)
        with anyio.fail_after(10):
            while session.pid is not None:
                await checkpoint()
            assert "down" == await session.get_health()
        assert session.pid is None
    assert "down" == await session.get_health()


async def test_metrics_count_what_was_done(engine: Engine, api: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """API.md 2: Metrics; LLAMA_SERVER F10: the KV cache's figures come from the slots, here at once again."""
    monkeypatch.setattr(server_info, "SLOTS_PAUSE", 0.0)
    async with Session(**engine.options(prompt_encoding=api)) as session:
        before = await session.get_metrics()
        assert 0 == before.prompt.count == before.generated.count == before.kv_cache_tokens
        assert 0.0 == before.kv_cache_usage
        reply = await session.prompt("hello", temperature=0)
        after = await session.get_metrics()
    assert reply.usage.prompt_tokens == after.prompt.count
    assert reply.usage.completion_tokens == pytest.approx(after.generated.count, abs=1)
    assert after.prompt.seconds > 0
    assert 0 == after.requests_processing == after.requests_pending
    assert after.kv_cache_tokens is not None
    assert reply.usage.total_tokens == pytest.approx(after.kv_cache_tokens, abs=1)
    assert after.kv_cache_usage == pytest.approx(after.kv_cache_tokens / (4 * 2048))


async def test_cached_tokens_are_counted_in_the_metrics(engine: Engine) -> None:
    """API.md 2: cached_prompt_tokens."""
    async with Session(**engine.options(parallel=1)) as session:
        await session.prompt("hello", temperature=0)
        again = await session.prompt("hello", temperature=0)
        assert again.usage.cached_tokens == (await session.get_metrics()).cached_prompt_tokens
        assert again.usage.cached_tokens > 0


async def test_the_slots_are_read_rarely_for_the_metrics(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """LLAMA_SERVER trap 3: whoever asks for them more than once a second keeps clients that left from being noticed."""
    asked, read = 0, ServerInfo.get_slots

    async def count(self: ServerInfo) -> list[Slot]:
        nonlocal asked
        asked += 1
        return await read(self)

    monkeypatch.setattr(ServerInfo, "get_slots", count)
    monkeypatch.setattr(server_info, "SLOTS_PAUSE", 3600.0)
    async with Session(**engine.options()) as session:
        for _ in range(5):
            assert 0.0 == (await session.get_metrics()).kv_cache_usage
        assert 1 == asked
        monkeypatch.setattr(server_info, "SLOTS_PAUSE", 0.0)
        await session.get_metrics()
    assert 2 == asked


async def test_slots_tell_what_they_hold_and_do(engine: Engine, api: str | None) -> None:
    """API.md 3: get_slots; each has its own share of the context (LLAMA_SERVER F4)."""
    async with Session(**engine.options(prompt_encoding=api, parallel=3, context_length=512)) as session:
        slots = await session.get_slots()
        assert [0, 1, 2] == [slot.id for slot in slots]
        assert [512] * 3 == [slot.n_ctx for slot in slots]
        assert [False] * 3 == [slot.is_processing for slot in slots]
        assert [0] * 3 == [slot.n_prompt_tokens for slot in slots]
        reply = await session.prompt("hello", temperature=0)
        held = sum(slot.n_prompt_tokens or 0 for slot in await session.get_slots())
    assert reply.usage.total_tokens == pytest.approx(held, abs=1)


async def test_options_reach_the_engine(engine: Engine, tmp_path: Path) -> None:
    """API.md 3: context_length is for one conversation, parallel replies at once; cache_dir holds the logs."""
    progress: list[Progress] = []
    cache = tmp_path / "elsewhere"
    options = engine.options(context_length=768, parallel=2, cache_dir=cache, on_progress=progress.append)
    async with Session(**options) as session:
        assert 768 == session.context_length
        assert 2 == session.parallel
        assert cache in own_files(session)[1].parents
    assert all(0.0 <= (each.share or 0.0) <= 1.0 for each in progress)


async def test_context_length_zero_is_the_trained_one(engine: Engine) -> None:
    """API.md 3: 0 = the trained length (as in the seed)."""
    async with Session(**engine.options(context_length=0, parallel=1)) as session:
        assert session.info.trained_context_length == session.context_length


@pytest.mark.parametrize("sampling", [EVERYTHING, NOTHING], ids=["everything", "falsy values"])
async def test_every_sampling_value_arrives(session: Session, sampling: Sampling) -> None:
    """API.md: a falsy value that was given is sent; `generation_settings` is what the engine understood."""
    frames = await ask(session, completion_api.PATH, completion_api.encode_request("hello", make_request(sampling)))
    settings = frames[-1]["generation_settings"]
    given = {name: value for name in sampling.__struct_fields__ if (value := getattr(sampling, name)) is not None}
    bias = given.pop("logit_bias", None)
    if bias is not None:
        said = {entry["token"]: entry["bias"] for entry in settings["logit_bias"]}
        assert bias.items() <= said.items()
    for name in ("samplers", "dry_sequence_breakers"):
        if name in given:
            given[name] = list(given[name])
    assert given == {name: settings[name] for name in given}
    assert set(Sampling.__struct_fields__) <= set(settings)
    assert 42 == settings["seed"]
    assert 5 == settings["n_predict"]
    assert ["zz"] == settings["stop"]
    assert 1 == settings["n_probs"]


async def test_every_sampling_value_arrives_through_the_chat_endpoint(session: Session) -> None:
    """The same for /v1/chat/completions: the native frame comes along with `verbose`."""
    body = openai_api.encode_request([Message.user("hello")], make_request(EVERYTHING), model=session.model)
    frames = await ask(session, openai_api.PATH, body)
    (verbose,) = [frame["__verbose"] for frame in frames if "__verbose" in frame]
    settings = verbose["generation_settings"]
    given = {name: getattr(EVERYTHING, name) for name in EVERYTHING.__struct_fields__ if name != "logit_bias"}
    given["samplers"], given["dry_sequence_breakers"] = ["top_k", "temperature"], ["x", "y"]
    assert given == {name: settings[name] for name in given}
    assert {"token": 65, "bias": -1.5} in settings["logit_bias"]


async def test_frames_of_completion_have_no_field_that_is_news(session: Session) -> None:
    """STYLE.md 5: a new build of the engine tells us."""
    frames = await ask(session, completion_api.PATH, completion_api.encode_request("hello", make_request(EVERYTHING)))
    assert set() == set().union(*map(set, frames)) - KNOWN_COMPLETION_FIELDS


async def test_frames_of_chat_have_no_field_that_is_news(session: Session) -> None:
    """STYLE.md 5: a new build of the engine tells us."""
    body = openai_api.encode_request([Message.user("hello")], make_request(EVERYTHING), model=session.model)
    frames = await ask(session, openai_api.PATH, body)
    assert set() == set().union(*map(set, frames)) - KNOWN_CHAT_FIELDS


async def test_a_proxy_of_the_users_stays_out_of_it(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 1: loopback with HTTP_PROXY set."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with Session(**engine.options()) as session:
        assert "ok chief" == (await session.prompt('reply with "ok chief"', temperature=0)).text


async def test_settings_of_llama_cpp_in_the_environment_stay_out_of_it(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LLAMA_SERVER trap 7: LLAMA_ARG_* and LLAMA_API_KEY leak into every server that is started."""
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "256")
    monkeypatch.setenv("LLAMA_ARG_N_PARALLEL", "1")
    monkeypatch.setenv("LLAMA_API_KEY", "leaked")
    async with Session(**engine.options()) as session:
        assert 4 == session.parallel
        assert 2048 == session.context_length
        async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
            answer = await client.get(session.base_url + "/props", headers={"Authorization": "Bearer leaked"})
        assert 401 == answer.status_code
