"""A chat goes on after its program and its engine were restarted, for its new words; forgotten, it leaves nothing."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from llmsession import Chat, Memory, Sampling, Session
from tests.engines import Engine

pytestmark = pytest.mark.anyio

SYSTEM = "You reply with short answers. Now it is {now}."
TEXTS = [f"say yes {'and so on ' * 20}{number}" for number in range(4)]
# A template puts a few tokens after a reply when more follows, and the last one said was never read.
SLACK = 8


def files_of(cache: Path) -> list[Path]:
    """What engines keep of conversations."""
    return [*(cache / "kv").glob("*.json"), *(cache / "kv").glob("*.kv")]


async def test_a_chat_goes_on_for_its_new_words(engine: Engine, tmp_path: Path, cache_dir: Path) -> None:
    """CAPABILITIES D12: what the engine had read of it, it is given back; by the next program as well."""
    database = tmp_path / "bot.db"
    async with Session(**engine.options()) as session, Memory.open(database) as memory:
        chat = Chat(session, await memory.get("42", system_prompt=SYSTEM), sampling=Sampling.GREEDY, max_tokens=20)
        for text in TEXTS[:-2]:
            await chat.send(text)
        before = await chat.send(TEXTS[-2])
    assert 2 == len(files_of(cache_dir))
    async with Session(**engine.options()) as session, Memory.open(database) as memory:
        chat = Chat(session, await memory.get("42"), sampling=Sampling.GREEDY, max_tokens=20)
        assert 0 < await chat.ingest("say y") < before.usage.total_tokens / 2
        reply = await chat.send(TEXTS[-1])
        assert reply.usage.cached_tokens >= before.usage.total_tokens - SLACK
        messages = chat.conversation.messages
    async with Session(**engine.options(kv_cache_bytes=0)) as session:
        messages = [messages[0], *messages[1:-1]]
        plain = await session.prompt(messages, temperature=0, max_tokens=20)
    assert plain.text == reply.text


async def test_what_engines_keep_of_a_user_goes_with_the_user(engine: Engine, tmp_path: Path, cache_dir: Path) -> None:
    """CAPABILITIES D7: the files hold the tokens of what was said; also by max_age, and where the engine still runs."""
    async with Session(**engine.options()) as session, Memory.open(tmp_path / "bot.db") as memory:
        for user in ("42", "43"):
            chat = Chat(session, await memory.get(user), sampling=Sampling.GREEDY, max_tokens=20)
            for text in TEXTS[:2]:
                await chat.send(text)
        with anyio.fail_after(30):
            while len(files_of(cache_dir)) < 4:  # noqa: ASYNC110 - a thread writes them beside the replies
                await anyio.sleep(0.01)
            await memory.forget_user("42")
            while len(files_of(cache_dir)) != 2:  # noqa: ASYNC110 - a save that was under way removes its own file
                await anyio.sleep(0.01)
    assert 2 == len(files_of(cache_dir))
    async with Memory.open(tmp_path / "bot.db", max_age=0.000_001):
        assert [] == files_of(cache_dir)


async def test_a_chat_in_ram_leaves_nothing_on_disk(engine: Engine, cache_dir: Path) -> None:
    """API.md 4: what is kept in RAM is known to this program alone."""
    async with Session(**engine.options()) as session, Memory.open() as memory:
        for conversation in (None, await memory.get("42")):
            chat = Chat(session, conversation, sampling=Sampling.GREEDY, max_tokens=20)
            for text in TEXTS:
                await chat.send(text)
    assert [] == files_of(cache_dir)
