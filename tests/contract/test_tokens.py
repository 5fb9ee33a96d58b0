"""Tokens: to and from text, and counted exactly. Row C8."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from llmsession import Message, Session, UsageError

pytestmark = pytest.mark.anyio

TEXTS = [
    "hello",
    "a\0b",
    "  two  spaces ",
    "line\nbreaks\r\n\ttabs",
    "grüße 日本語 😀 \U0001f469\u200d\U0001f680",
    "\u2028",
]


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
async def test_a_text_survives_the_way_there_and_back(session: Session, text: str) -> None:
    """LLAMA_SERVER 3.6: /tokenize and /detokenize; the bundled model has a token for each byte."""
    ids = await session.tokenize(text)
    assert list(text.encode()) == ids
    assert text == await session.detokenize(ids)


async def test_nothing_has_no_tokens(session: Session) -> None:
    """The edge."""
    assert [] == await session.tokenize("")
    assert "" == await session.detokenize([])


async def test_the_spelling_of_a_control_token_is_text_unless_asked_otherwise(session: Session) -> None:
    """API 3: special; LLAMA_SERVER F7: parse_special."""
    end = session.special_tokens["eos"]
    assert len("<|im_end|>") == len(await session.tokenize("<|im_end|>"))
    assert [end] == await session.tokenize("<|im_end|>", special=True)
    assert "<|im_end|>" == await session.detokenize([end or 0])


async def test_the_end_token_can_be_put_behind_and_a_missing_one_is_said(session: Session) -> None:
    """API 3: bos, eos."""
    assert [97, session.special_tokens["eos"]] == await session.tokenize("a", eos=True)
    with pytest.raises(UsageError, match="no bos token"):
        await session.tokenize("a", bos=True)


async def test_a_part_of_a_character_is_a_replacement_character(session: Session) -> None:
    """API 3: detokenize."""
    assert "\ufffd" == await session.detokenize([0xF0, 0x9F])


@pytest.mark.parametrize(
    "messages",
    [
        [Message.user("hello")],
        [Message.system("You reply with short answers."), Message.user("My name is Rosalind.")],
        [Message.user("a"), Message.assistant("b"), {"role": "user", "content": "c 😀"}],
    ],
    ids=["one", "system", "turns"],
)
async def test_messages_are_counted_as_they_would_be_sent(session: Session, messages: Any) -> None:
    """API 3: count_tokens is exact: it equals what the reply says of its prompt."""
    reply = await session.prompt(messages, max_tokens=1)
    assert reply.usage.prompt_tokens == await session.count_tokens(messages)


async def test_a_raw_text_is_counted_as_generate_would_send_it(session: Session) -> None:
    """API 3: a str is raw text there."""
    text = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    reply = await session.generate(text, max_tokens=1)
    assert reply.usage.prompt_tokens == await session.count_tokens(text)


async def test_the_vocabulary_is_that_of_the_engine(session: Session) -> None:
    """API 3: vocab(); by id."""
    vocabulary = await session.vocab()
    assert session.max_top_logprobs == len(vocabulary)
    for name, id_ in session.special_tokens.items():
        if id_ is not None:
            assert vocabulary[id_] == await session.detokenize([id_]), name


async def test_a_text_that_is_none_is_refused(session: Session) -> None:
    """UTF-8 has no halves of surrogate pairs."""
    for wrong in ("\ud800", 5, None):
        with pytest.raises(UsageError):
            await session.tokenize(wrong)  # type: ignore[arg-type]


async def test_the_server_wants_the_key_of_this_session(session: Session) -> None:
    """LLAMA_SERVER F9: without a key any web page could use it."""
    async with httpx.AsyncClient(base_url=session.base_url, trust_env=False) as stranger:
        answer = await stranger.post("/tokenize", json={"content": "a"})
        assert 401 == answer.status_code
        answer = await stranger.post(
            "/tokenize", json={"content": "a"}, headers={"Authorization": f"Bearer {session.api_key}"}
        )
        assert {"tokens": [97]} == answer.json()
