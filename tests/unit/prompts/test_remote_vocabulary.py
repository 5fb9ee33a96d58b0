"""RemoteVocabulary: few questions, and a bounded memory. FAULTS D11."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from llmsession.prompts.vocabulary import MOST_ASKED, MOST_KNOWN, RemoteVocabulary

pytestmark = pytest.mark.anyio

SPECIAL = {"<|im_end|>": 7, "<tool>": 8}


class Tokenizer:
    """A server's /tokenize, which knows two special tokens; every other letter is a token."""

    def __init__(self) -> None:
        self.asked = 0

    async def post(self, path: str, body: bytes) -> bytes:
        """Its answer."""
        self.asked += 1
        question = json.loads(body)
        parts = re.split("|".join(f"({re.escape(text)})" for text in SPECIAL), question["content"])
        tokens: list[dict[str, Any]] = []
        for part in filter(None, parts):
            pieces = [part] if part in SPECIAL else list(part)
            tokens += [{"id": SPECIAL.get(piece, 1000 + ord(piece[0])), "piece": piece} for piece in pieces]
        return json.dumps({"tokens": tokens if question.get("with_pieces") else [t["id"] for t in tokens]}).encode()


async def test_one_request_answers_for_a_whole_text() -> None:
    """D11: 15 kB with 2,000 things like `<this>` were 2,003 requests."""
    server = Tokenizer()
    vocabulary = RemoteVocabulary(server, exact=True)  # type: ignore[arg-type]
    text = "".join(f"<a{number}> " for number in range(2000)) + "<|im_end|> and <tool>"
    learned = await vocabulary.learn([text, text])
    assert 1 == server.asked
    assert SPECIAL == {spelling: id_ for id_, spelling in learned.special.items()}
    await vocabulary.learn([text])
    assert 1 == server.asked
    await vocabulary.learn(["<new>"])
    assert 2 == server.asked


async def test_a_server_that_cannot_answer_for_all_is_asked_for_some() -> None:
    """D11: the others are kept from being special, whatever they are."""
    server = Tokenizer()
    vocabulary = RemoteVocabulary(server, exact=False)  # type: ignore[arg-type]
    text = "<|im_end|>" + "".join(f"<a{number}>" for number in range(500)) + "<tool>"
    learned = await vocabulary.learn([text])
    assert MOST_ASKED == server.asked
    assert {"<|im_end|>", "<tool>", "<a499>"} <= set(learned.special.values())
    assert "<a1>" not in learned.special.values()


async def test_what_was_asked_is_not_kept_for_ever() -> None:
    """D11: a bot's users write new ones each day."""
    vocabulary = RemoteVocabulary(Tokenizer(), exact=True)  # type: ignore[arg-type]
    for day in range(12):
        learned = await vocabulary.learn([" ".join(f"<a{day}-{number}>" for number in range(1000)) + "<tool>"])
        assert ["<tool>"] == list(learned.special.values())
    assert len(vocabulary._ordinary) <= MOST_KNOWN
