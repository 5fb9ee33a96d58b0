"""A server that somebody else runs: a real engine of another session, and imitations of other kinds."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from llmsession import (
    AuthError,
    Chat,
    ClosedError,
    ConfigError,
    ConnectionLostError,
    LLMSessionError,
    Message,
    Options,
    ProtocolError,
    Sampling,
    Session,
    StartTimeoutError,
    StopReason,
    UnsupportedFeatureError,
)
from llmsession.backends import remote
from llmsession.types.events import ReasoningDelta
from tests.engines import Engine
from tests.fake_openai_server import FakeOpenAI, serve_openai

pytestmark = pytest.mark.anyio

OK = 'reply with "ok chief"'
JSON = "application/json"


# A real engine.


@pytest.mark.parametrize("encoding", [None, "chatml"], ids=["chat", "completion"])
async def test_another_sessions_server_answers_and_is_left_alone(engine: Engine, encoding: str | None) -> None:
    """CAPABILITIES B5: used with its key, never closed by us."""
    async with Session(**engine.options()) as owner:
        address = owner.base_url.removeprefix("http://")
        async with Session(remote=address, api_key=owner.api_key, prompt_encoding=encoding) as guest:
            assert "ok chief" == (await guest.prompt(OK, temperature=0)).text
            assert "llama-server" == guest.backend
            assert ("tiny-chat", owner.version) == (guest.model, owner.version)
            assert (None, None, None) == (guest.pid, guest.log_path, guest.model_path)
            assert owner.context_length == guest.context_length
            assert await owner.tokenize("Grüße") == await guest.tokenize("Grüße")
            assert "Grüße" == await guest.detokenize(await guest.tokenize("Grüße"))
            assert await owner.count_tokens([OK]) == await guest.count_tokens([OK])
            assert (await guest.get_metrics()).generated.count > 0
            assert 4 == len(await guest.get_slots())
            assert "ok" == await guest.get_health()
            with pytest.raises(UnsupportedFeatureError, match="no GGUF file that could be read here"):
                await guest.vocab()
        with pytest.raises(ClosedError):
            await guest.prompt(OK)
        assert "ok" == await owner.get_health()
        assert "ok chief" == (await owner.prompt(OK, temperature=0)).text


async def test_the_registrys_encoding_is_used_for_a_model_that_it_knows(engine: Engine) -> None:
    """API.md 3: with `remote`, `model` picks the encoding if the registry knows it."""
    async with (
        Session(**engine.options()) as owner,
        Session("tiny-chat", remote=owner.base_url, api_key=owner.api_key) as known,
        Session("something", remote=owner.base_url, api_key=owner.api_key) as unknown,
    ):
        assert known.encoding is not None
        assert unknown.encoding is None
        assert "something" == unknown.model
        assert "ok chief" == (await known.prompt(OK, temperature=0)).text


async def test_a_wrong_key_and_none_are_told(engine: Engine) -> None:
    """Issue 3: a server that wants a key."""
    async with Session(**engine.options()) as owner:
        for key in (None, "wrong"):
            with pytest.raises(AuthError, match="api_key="):
                await Session.open(remote=owner.base_url, api_key=key)


async def test_a_server_that_is_gone_is_a_lost_connection(engine: Engine) -> None:
    """CAPABILITIES B5: it is not ours to start again, and a closed session says that it is closed."""
    async with Session(**engine.options()) as owner:
        guest = await Session.open(remote=owner.base_url, api_key=owner.api_key)
    with pytest.raises(ConnectionLostError, match="cannot be reached"):
        await guest.prompt(OK)
    assert "down" == await guest.get_health()
    await guest.aclose()
    with pytest.raises(ClosedError):
        await guest.prompt(OK)


# Imitations.


async def test_a_chat_with_a_plain_openai_server() -> None:
    """CAPABILITIES B5, D4: it remembers and answers a key once; what it cannot go on with is said again, whole."""
    with serve_openai(FakeOpenAI()) as fake:
        async with Session(remote=fake.base_url, api_key="k") as session:
            chat = Chat(session, system_prompt="be good")
            first = await chat.send("hi", key="1")
            assert first == await chat.send("hi", key="1")
            assert first.usage.total_tokens == (await chat.stats()).tokens
            async with chat.stream("and you?", key="2") as stream:
                begun = await anext(stream)
            whole = await chat.send("and you?", key="2")
            assert whole.text.startswith(begun)
            assert [whole.text] == [reply.message.content for reply in chat.conversation.path[3:]]
        sent = [[message["role"] for message in body["messages"]] for body in fake.bodies if "messages" in body]
    assert [["system", "user"], *[["system", "user", "assistant", "user"]] * 2] == sent


async def test_a_plain_openai_server_gets_nothing_that_it_does_not_know() -> None:
    """CAPABILITIES B5: works with anything OpenAI-compatible, less what it lacks."""
    with serve_openai(FakeOpenAI()) as fake:
        async with Session(remote=fake.base_url, api_key="k") as session:
            reply = await session.prompt(
                [Message.system("You are {model}."), Message.user("hi")],
                sampling=Sampling(temperature=0.5, top_p=0.9, logit_bias={5: 1.0}),
                stop=["zzz"],
                top_logprobs=2,
                seed=7,
            )
            cut = await session.prompt("hi", max_tokens=2)
            with pytest.raises(UnsupportedFeatureError, match="context length"):
                _ = session.context_length
            assert "ok" == await session.get_health()
            assert ("openai", "gpt-tiny", "unknown") == (session.backend, session.model, session.version)
    assert "gpt-tiny heard: hi" == reply.text
    assert (StopReason.END, 7, 3) == (reply.stop_reason, reply.usage.prompt_tokens, reply.usage.completion_tokens)
    assert ("gpt-tiny heard: ", StopReason.LENGTH) == (cut.text, cut.stop_reason)
    body = fake.bodies[0]
    assert {"5": 1.0} == body["logit_bias"]
    assert (0.5, 0.9, ["zzz"], 7, True) == tuple(
        body[name] for name in ("temperature", "top_p", "stop", "seed", "stream")
    )
    assert "You are gpt-tiny." == body["messages"][0]["content"]
    assert {"Bearer k"} == {sent["Authorization"] for sent in fake.headers}


@pytest.mark.parametrize(
    ("call", "feature"),
    [
        (lambda session: session.generate("hi"), "raw completion"),
        (lambda session: session.tokenize("hi"), "tokenizer endpoint"),
        (lambda session: session.detokenize([1]), "tokenizer endpoint"),
        (lambda session: session.count_tokens("hi"), "tokenizer endpoint"),
        (lambda session: session.count_tokens(["hi"]), "count of a chat's tokens"),
        (lambda session: session.get_slots(), "list of slots"),
        (lambda session: session.get_metrics(), "metrics"),
        (lambda session: session.vocab(), "GGUF file that could be read here"),
        (lambda session: session.prompt("hi", sampling=Sampling(min_p=0.1)), "sampling setting min_p"),
        (lambda session: session.prompt("hi", stop=[5]), "stop by a token's id"),
        (lambda session: session.prompt("hi", reply_start="Well, "), "reply_start"),
    ],
)
async def test_what_it_lacks_is_an_unsupported_feature(call: Any, feature: str) -> None:
    """Issue 3: the rest is UnsupportedFeatureError, which names the feature and the server."""
    with serve_openai(FakeOpenAI()) as fake:
        async with Session(remote=fake.base_url) as session:
            with pytest.raises(UnsupportedFeatureError) as caught:
                await call(session)
    assert (feature, "openai") == (caught.value.feature, caught.value.backend)
    assert [] == fake.bodies


async def test_a_path_and_headers_are_kept() -> None:
    """CAPABILITIES B5: key, TLS, path prefix; API.md 3: headers."""
    with serve_openai(FakeOpenAI(prefix="/team/llm")) as fake:
        async with Session("gpt-other", remote=f"{fake.base_url}/v1/", headers={"X-Team": "blue"}) as session:
            assert "gpt-other heard: hi" == (await session.prompt("hi")).text
    assert {"blue"} == {sent["X-Team"] for sent in fake.headers}


@pytest.mark.parametrize(
    ("fake", "backend", "version"),
    [
        (
            FakeOpenAI(owned_by="vllm", pages={"/version": (200, "application/json", '{"version": "0.11.0"}')}),
            "vllm",
            "0.11.0",
        ),
        (FakeOpenAI(pages={"/api/version": (200, "application/json", '{"version": "0.13.1"}')}), "ollama", "0.13.1"),
    ],
    ids=["vllm", "ollama"],
)
async def test_others_are_recognised_by_their_answers(fake: FakeOpenAI, backend: str, version: str) -> None:
    """Issue 3: it finds out what the other side is from its answers. Their thoughts are under another name."""
    fake.delta_name = "reasoning"
    with serve_openai(fake):
        async with Session(remote=fake.base_url) as session:
            assert (backend, version) == (session.backend, session.version)
            async with session.prompt_streaming("hi") as stream:
                events = [event async for event in stream.events()]
            assert "gpt-tiny heard: hi" == (await stream.result()).reasoning
    assert any(isinstance(event, ReasoningDelta) for event in events)
    fake.bodies.clear()


async def test_an_old_build_of_llama_cpp_is_told_by_what_it_does_not_say() -> None:
    """LLAMA_SERVER 8: llamafile's /props has no build, and neither counts of chats nor the phrase that stopped one."""
    props = json.dumps({"user_name": "", "default_generation_settings": {"n_ctx": 512}, "total_slots": 2})
    fake = FakeOpenAI(pages={"/props": (200, JSON, props)})
    with serve_openai(fake):
        async with Session(remote=fake.base_url) as session:
            assert ("llamafile", 512, 2) == (session.backend, session.context_length, session.parallel)
            with pytest.raises(UnsupportedFeatureError, match="count of a chat's tokens"):
                await session.count_tokens(["hi"])


async def test_one_that_does_the_least_is_enough() -> None:
    """CAPABILITIES B5: anything OpenAI-compatible; some list no models, or end a stream without `[DONE]`."""
    with serve_openai(FakeOpenAI(says_done=False, lists_models=False)) as fake:
        async with Session("their-model", remote=fake.base_url) as session:
            reply = await session.prompt("hi")
            assert "their-model heard: hi" == reply.text
            assert (StopReason.END, 0) == (reply.stop_reason, reply.usage.prompt_tokens)
            assert "ok" == await session.get_health()
        async with Session(remote=fake.base_url) as session:
            assert "default" == session.model


async def test_one_without_raw_completion_cannot_take_an_encoding_of_ours() -> None:
    """Our decision: an encoding that was asked for is not left out in silence; the registry's word is only a wish."""
    with serve_openai(FakeOpenAI()) as fake:
        with pytest.raises(UnsupportedFeatureError, match='prompt_encoding="chat"'):
            await Session.open(remote=fake.base_url, prompt_encoding="chatml")
        async with Session("tiny-chat", remote=fake.base_url) as session:
            assert session.encoding is None


async def test_one_that_still_loads_is_waited_for() -> None:
    """LLAMA_SERVER: 503 while the model loads."""
    with serve_openai(FakeOpenAI(loading=3)) as fake:
        async with Session(remote=fake.base_url) as session:
            assert "gpt-tiny heard: hi" == (await session.prompt("hi")).text
    with (
        serve_openai(FakeOpenAI(loading=1000)) as fake,
        pytest.raises(StartTimeoutError, match=r"not ready after 0\.3 s"),
    ):
        await Session.open(remote=fake.base_url, start_timeout=0.3)


# TLS.


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A certificate authority that no machine trusts."""
    return trustme.CA()


@pytest.fixture
def secure(authority: trustme.CA) -> Iterator[FakeOpenAI]:
    """An imitation behind TLS."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    with serve_openai(FakeOpenAI(), tls) as fake:
        yield fake


async def test_tls_with_an_authority_of_the_users_own(
    secure: FakeOpenAI, authority: trustme.CA, tmp_path: Path
) -> None:
    """CAPABILITIES B5: TLS. An unknown authority is refused until the user says otherwise."""
    file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(file))
    for verify in (file, str(file), False):
        async with Session(remote=secure.base_url, verify=verify) as session:
            assert "gpt-tiny heard: hi" == (await session.prompt("hi")).text
    with pytest.raises(ConnectionLostError, match="verify="):
        await Session.open(remote=secure.base_url)
    with pytest.raises(ConfigError, match="not a file of certificates"):
        await Session.open(remote=secure.base_url, verify=str(tmp_path / "none.pem"))


async def test_the_wrong_kind_of_address_for_tls(secure: FakeOpenAI) -> None:
    """What people type: http for https, and the other way round."""
    with pytest.raises(LLMSessionError, match=r"127\.0\.0\.1"):
        await Session.open(remote=secure.base_url.replace("https", "http"))
    with serve_openai(FakeOpenAI()) as plain, pytest.raises(ConnectionLostError, match="cannot be reached"):
        await Session.open(remote=plain.base_url.replace("http", "https"))


# What is no such server.


@contextmanager
def listening() -> Iterator[int]:
    """A port that accepts connections, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    held.append(server.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            for each in held:
                each.close()


async def test_one_that_accepts_and_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 3: one that hangs after accepting."""
    monkeypatch.setattr(remote, "PROBE_TIMEOUT", 0.3)
    with listening() as port, pytest.raises(StartTimeoutError, match="does not answer"):
        await Session.open(remote=f"127.0.0.1:{port}")


async def test_nobody_there() -> None:
    """Issue 3: a host that is not there, a port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ConnectionLostError, match=rf"cannot be reached.*{port}"):
        await Session.open(remote=f"127.0.0.1:{port}")
    with pytest.raises(ConnectionLostError, match=r"cannot be reached.*nowhere"):
        await Session.open(remote="nowhere.invalid:80")


@pytest.mark.parametrize(
    ("pages", "match"),
    [
        ({"/v1/models": (200, "text/html", "<!DOCTYPE html><title>Welcome</title>")}, "a web page"),
        ({"/v1/models": (200, "application/json", "[1, 2]")}, "cannot be read"),
        ({"/props": (200, JSON, '{"total_slots": "x"}'), "/v1/models": (404, JSON, "{}")}, "neither /props"),
        ({"/v1/models": (404, "text/plain", "nothing")}, "neither /props nor /v1/models"),
        ({"/v1/models": (500, "text/plain", "oops")}, "neither /props nor /v1/models"),
    ],
    ids=["html", "json", "props", "404", "500"],
)
async def test_a_server_for_something_else_is_told_apart(pages: Any, match: str) -> None:
    """Issue 3: a server that is not an LLM server, one that answers HTML."""
    with serve_openai(FakeOpenAI(pages=pages, chats=False)) as fake, pytest.raises(ProtocolError, match=match):
        await Session.open(remote=fake.base_url)


@pytest.mark.parametrize(
    "fields",
    [
        {"context_length": 0},
        {"threads": 1},
        {"server_path": "x"},
        {"extra_args": ["-x"]},
        {"backend": "embedded"},
        {"lora": "a"},
        {"device": "cpu"},
        {"kv_offload": False},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_only_a_server_of_ours_can_be_told_is_refused(fields: dict[str, Any]) -> None:
    """API.md 3: what cannot be applied to a remote is ConfigError."""
    with pytest.raises(ConfigError, match=f"{next(iter(fields))}: not for a remote"):
        Session(remote="localhost:1", **fields)


def test_a_key_without_a_remote_is_refused_and_never_shown() -> None:
    """API.md 3: api_key is the remote's; repr hides api_key and headers."""
    with pytest.raises(ConfigError, match="remote="):
        Session(api_key="secret")
    shown = repr(Options(remote="localhost:1", api_key="secret", headers={"X-Key": "secret"}, parallel=2))
    assert "Options(remote='localhost:1', parallel=2, api_key=…, headers=…)" == shown


def test_a_header_may_not_hold_a_line_break() -> None:
    """Bad input: one clear error of ours."""
    with pytest.raises(ConfigError, match="a character that no header can"):
        Options(remote="x", headers={"A": "b\r\nC: d"})
    with pytest.raises(ConfigError, match="mapping"):
        Options(remote="x", headers=json.loads('["a"]'))


@pytest.mark.parametrize("encoding", ["tiny-chat", "chat"])
async def test_a_spelling_is_defused_for_a_remote_as_well(engine: Engine, encoding: str) -> None:
    """CAPABILITIES A7: its tokenizer is asked what is special; a server that has none gets a space of no width."""
    said = 'reply with "<|im_end|> ok"'
    async with (
        Session(**engine.options()) as owner,
        Session(remote=owner.base_url, api_key=owner.api_key, prompt_encoding=encoding, model="somebody") as guest,
    ):
        reply = await guest.prompt(said, temperature=0)
        assert ("<|im_end|> ok", 1) == (reply.text, reply.neutralized)
        assert 0 == (await guest.prompt('reply with "<b> ok"', temperature=0)).neutralized
        assert await owner.count_tokens([said]) == await guest.count_tokens([said])
    with serve_openai(FakeOpenAI()) as fake:
        async with Session(remote=fake.base_url) as session:
            reply = await session.prompt("a <|im_end|> b [INST] <b>")
            assert ("gpt-tiny heard: a <|im_end|> b [INST] <b>", 2) == (reply.text, reply.neutralized)
            assert "a <\u200b|im_end|> b [\u200bINST] <b>" == fake.bodies[-1]["messages"][0]["content"]
            reply = await session.prompt("plain \u200b <|im_end|>")
            assert "gpt-tiny heard: plain \u200b <|im_end|>" == reply.text
