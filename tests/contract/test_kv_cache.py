"""What an engine has read of a conversation outlives it. Row D12; DESIGN 6; LLAMA_SERVER trap 1 and F5."""

from __future__ import annotations

import os
import random
import signal
import zlib
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from llmsession import Completion, ConfigError, Message, Session
from llmsession.session.kv.store import LEFT_AFTER
from llmsession.session.session import replies_of
from llmsession.system.named_files import forget_copies
from llmsession.types.message_input import as_messages
from tests.engines import Engine, kept_stream
from tests.model_files import write_random_model

pytestmark = pytest.mark.anyio

WORDS = ("river", "stone", "ferry", "quiet", "lantern", "harbour", "winter", "maple", "copper", "valley", "signal")
SYSTEM = Message.system("You reply with short answers. It is Friday 2026-11-20 19:19.")


def long_chat(number: int, turns: int = 4) -> list[Message]:
    """A conversation of some hundred tokens, of its own."""
    rng = random.Random(number)
    said = [SYSTEM]
    for _ in range(turns):
        said.append(Message.user(" ".join(rng.choice(WORDS) for _ in range(14))))
        said.append(Message.assistant(" ".join(rng.choice(WORDS) for _ in range(5))))
    return [*said, Message.user(f"I am number {number}. reply with {rng.choice(WORDS)}")]


async def ask(session: Session, name: str, said: list[Message], **keywords: Any) -> Completion:
    """One more reply of it."""
    keywords = {"temperature": 0, "max_tokens": 24, **keywords}
    async with kept_stream(session, name, said, **keywords) as stream:
        return await stream.result()


def notes(cache: Path) -> list[Path]:
    """Of what was saved."""
    return sorted((cache / "kv").glob("*.json"))


async def saved(cache: Path, count: int) -> None:
    """Until so many are: they are written beside the replies."""
    with anyio.fail_after(20):
        while len(notes(cache)) < count:  # noqa: ASYNC110 - a thread writes them
            await anyio.sleep(0.01)


def evaluated(reply: Completion) -> int:
    """Of its prompt."""
    return reply.usage.prompt_tokens - reply.usage.cached_tokens


def after(said: list[Message], reply: Completion, text: str) -> list[Message]:
    """The next turn."""
    return [*said, Message.assistant(reply.text), Message.user(text)]


@pytest.mark.parametrize("encoding", [None, "chat"], ids=["completion", "chat"])
async def test_a_restarted_program_goes_on_for_the_new_tokens(
    engine: Engine, encoding: str | None, cache_dir: Path
) -> None:
    """P5: session, engine and all began again; and the replies are those of an engine that had read it all."""
    names = [f"user {number}" for number in range(6)]
    chats = {name: long_chat(number) for number, name in enumerate(names)}
    held: dict[str, int] = {}
    async with Session(**engine.options(prompt_encoding=encoding, context_length=2048)) as session:
        for name in names:
            reply = await ask(session, name, chats[name])
            held[name] = reply.usage.total_tokens
            chats[name] = after(chats[name], reply, "count to 20")
    assert 6 == len(notes(cache_dir))
    async with Session(**engine.options(prompt_encoding=encoding, context_length=2048)) as session:
        replies = {name: await ask(session, name, chats[name]) for name in names}
        for name, reply in replies.items():
            assert evaluated(reply) <= reply.usage.prompt_tokens - held[name] + 1, name
    async with Session(**engine.options(prompt_encoding=encoding, context_length=2048, kv_cache_bytes=0)) as session:
        for name in names:
            plain = await session.prompt(chats[name], temperature=0, max_tokens=24)
            assert plain.text == replies[name].text
            assert plain.usage.completion_tokens == replies[name].usage.completion_tokens


async def test_an_engine_that_is_started_again_gets_it_back(engine: Engine, cache_dir: Path) -> None:
    """Row D12: of the engine alone; `kill -9`."""
    said = long_chat(1)
    async with Session(**engine.options(context_length=2048)) as session:
        first = await ask(session, "a", said)
        await saved(cache_dir, 1)
        assert session.pid is not None
        os.kill(session.pid, signal.SIGKILL)
        then = after(said, first, "and now?")
        second = await ask(session, "a", then)
        assert evaluated(second) <= second.usage.prompt_tokens - first.usage.total_tokens + 1
        assert second.restarts <= 1


async def test_more_conversations_than_slots_cost_their_new_tokens(engine: Engine) -> None:
    """P4, with two slots, four readers at once, and the engine's own cache of prompts, which loses some (F5)."""
    chats = {f"user {number}": long_chat(number, 2) for number in range(12)}
    held = dict.fromkeys(chats, 0)
    cost = new = 0

    async def turn(session: Session, name: str) -> None:
        nonlocal cost, new
        reply = await ask(session, name, chats[name], max_tokens=12)
        cost += evaluated(reply)
        new += reply.usage.prompt_tokens - held[name]
        held[name] = reply.usage.total_tokens
        chats[name] = after(chats[name], reply, "say more of the ferry")

    async with Session(**engine.options(context_length=2048, parallel=2)) as session:
        for _ in range(4):
            async with anyio.create_task_group() as group:
                for name in chats:
                    group.start_soon(turn, session, name)
        metrics = await session.get_metrics()
    assert cost <= 1.15 * new
    assert cost == metrics.prompt.count


async def test_concurrent_replies_are_those_of_an_idle_engine(engine: Engine) -> None:
    """Trap 1: saving and restoring beside running replies harms none of them. Noise of batching apart, of which a
    reply of a few tokens has none worth the name.
    """
    names = [f"user {number}" for number in range(10)]
    chats = {name: long_chat(number, 3) for number, name in enumerate(names)}
    texts: dict[str, list[str]] = {name: [] for name in names}

    async def turns(session: Session, name: str, count: int) -> None:
        for _ in range(count):
            reply = await ask(session, name, chats[name], max_tokens=10)
            texts[name].append(reply.text)
            chats[name] = after(chats[name], reply, "reply with ferry")

    async with (
        Session(**engine.options(context_length=2048, parallel=3)) as session,
        anyio.create_task_group() as group,
    ):
        for name in names:
            group.start_soon(turns, session, name, 4)
    wrong = total = 0
    async with Session(**engine.options(context_length=2048, parallel=1, kv_cache_bytes=0)) as alone:
        for number, name in enumerate(names):
            said = long_chat(number, 3)
            for text in texts[name]:
                plain = await alone.prompt(said, temperature=0, max_tokens=10)
                wrong, total = wrong + (plain.text != text), total + 1
                said = [*said, Message.assistant(text), Message.user("reply with ferry")]
    assert 40 == total
    assert wrong <= 2


def cut(path: Path) -> None:
    """Half of it is there."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    """One bit of it is another."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def nonsense(path: Path) -> None:
    """The note is none."""
    path.with_suffix("").with_name("-".join(path.name.split("-")[:2]) + ".json").write_text("{")


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink, nonsense])
async def test_what_is_damaged_is_removed_and_read_again(engine: Engine, cache_dir: Path, damage: Any) -> None:
    """Issue 7: a damaged file brings no wrong word, and does not stay."""
    said = long_chat(2)
    async with Session(**engine.options(context_length=2048)) as session:
        first = await ask(session, "a", said)
    (data,) = (cache_dir / "kv").glob("*.kv")
    damage(data)
    then = after(said, first, "count to 10")
    async with Session(**engine.options(context_length=2048)) as session:
        whole = await session.prompt(then, temperature=0, max_tokens=24)
    async with Session(**engine.options(context_length=2048)) as session:
        reply = await ask(session, "a", then)
        assert (whole.text, whole.usage.prompt_tokens) == (reply.text, evaluated(reply))
    assert data.name not in {path.name for path in (cache_dir / "kv").iterdir()}
    assert 1 == len(notes(cache_dir))


async def test_a_file_of_another_engine_is_refused_by_it(engine: Engine, cache_dir: Path, tmp_path: Path) -> None:
    """One that passes for ours, and the engine cannot read: it is read again, and said nowhere."""
    said = long_chat(3)
    async with Session(**engine.options(context_length=2048)) as session:
        first = await ask(session, "a", said)
    (note,) = notes(cache_dir)
    (data,) = (cache_dir / "kv").glob("*.kv")
    data.write_bytes(b"x" * 5000)
    fields = msgspec.json.decode(note.read_bytes()) | {"size": 5000, "checksum": zlib.crc32(b"x" * 5000)}
    note.write_bytes(msgspec.json.encode(fields))
    async with Session(**engine.options(context_length=2048)) as session:
        reply = await ask(session, "a", after(said, first, "hello"))
        assert evaluated(reply) == reply.usage.prompt_tokens
    assert not data.exists()


async def test_another_model_of_the_same_shape_gets_nothing(engine: Engine, cache_dir: Path, tmp_path: Path) -> None:
    """Keyed by the model's bytes: shapes that fit would be read by the engine without a word."""
    path = write_random_model(tmp_path / "m.gguf", context=2048)
    said = long_chat(4)
    async with Session(path, **engine.options(prompt_encoding="chatml")) as session:
        await ask(session, "a", said)
    assert 1 == len(notes(cache_dir))
    content = bytearray(path.read_bytes())
    content[-100_000:-99_000] = content[-99_000:-98_000]
    path.write_bytes(content)
    async with Session(path, **engine.options(prompt_encoding="chatml")) as session:
        reply = await ask(session, "a", said)
        assert evaluated(reply) == reply.usage.prompt_tokens
    assert 2 == len(notes(cache_dir))


@pytest.mark.parametrize("fields", [{"cache_type_k": "f32"}, {"parallel": 2}, {"flash_attention": False}])
async def test_other_flags_get_nothing(engine: Engine, fields: dict[str, Any]) -> None:
    """LLAMA_SERVER 3.4: an engine reads only what its like has written."""
    said = long_chat(5)
    async with Session(**engine.options(context_length=2048)) as session:
        await ask(session, "a", said)
    async with Session(**engine.options(context_length=2048, **fields)) as session:
        reply = await ask(session, "a", said)
        assert evaluated(reply) == reply.usage.prompt_tokens


async def test_the_budget_holds_and_the_oldest_goes(engine: Engine, cache_dir: Path) -> None:
    """Issue 7: within a disk budget, least recently used first."""
    budget = 7_000_000
    async with Session(**engine.options(context_length=2048, kv_cache_bytes=budget)) as session:
        for number in range(8):
            await ask(session, f"user {number}", long_chat(number))
    files = list((cache_dir / "kv").glob("*.kv"))
    assert 1 <= len(files) == len(notes(cache_dir)) < 8
    assert sum(path.stat().st_size for path in files) <= budget


async def test_tiny_prompts_and_prompts_of_nobody_are_not_saved(engine: Engine, cache_dir: Path) -> None:
    """Only what a Chat keeps, and only where it is worth its while."""
    async with Session(**engine.options(context_length=2048)) as session:
        await session.prompt(long_chat(6), temperature=0, max_tokens=5)
        await ask(session, "a", [Message.user("hello")], max_tokens=5)
    assert [] == list((cache_dir / "kv").iterdir())


async def test_none_of_it_is_wanted(engine: Engine, cache_dir: Path) -> None:
    """kv_cache_bytes=0: the engine is not even told where."""
    async with Session(**engine.options(kv_cache_bytes=0)) as session:
        await ask(session, "a", long_chat(7))
    assert not (cache_dir / "kv").exists()


async def test_what_is_forgotten_is_gone(engine: Engine, cache_dir: Path) -> None:
    """Row D7: the files hold the tokens of what was said."""
    async with Session(**engine.options(context_length=2048)) as session:
        await ask(session, "a", long_chat(8))
        await ask(session, "b", long_chat(9))
        await saved(cache_dir, 2)
        forget_copies(cache_dir / "kv", "a")
        assert 1 == len(notes(cache_dir)) == len(list((cache_dir / "kv").glob("*.kv")))
        await ask(session, "a", long_chat(8, 5))  # by one who has not heard of it
    assert 1 == len(notes(cache_dir)) == len(list((cache_dir / "kv").glob("*.kv")))


async def test_what_killed_programs_left_is_swept(engine: Engine, cache_dir: Path) -> None:
    """Files without a note, once they are old; young ones may be another program's that writes now."""
    folder = cache_dir / "kv"
    folder.mkdir(parents=True)
    old, young = folder / f"{'0' * 24}-{'1' * 32}-aa.kv", folder / f"{'0' * 24}-{'2' * 32}-bb.kv"
    for path in (old, young):
        path.write_bytes(b"x")
    os.utime(old, (1, old.stat().st_mtime - LEFT_AFTER - 60))
    async with Session(**engine.options(context_length=2048)) as session:
        await ask(session, "a", long_chat(10))
        await saved(cache_dir, 1)
    assert (False, True) == (old.exists(), young.exists())


async def test_ingest_gives_it_back_as_well(engine: Engine) -> None:
    """Row D11 after a restart: while the user types the file is read, and the reply costs its last words."""
    said = long_chat(11)
    async with Session(**engine.options(context_length=2048)) as session:
        first = await ask(session, "a", said)
    async with Session(**engine.options(context_length=2048)) as session:
        done = [*said, Message.assistant(first.text)]
        assert await replies_of(session).ingest(as_messages(done, reply=False), "a") <= 30
        reply = await ask(session, "a", [*done, Message.user("go on")])
        assert evaluated(reply) <= 40


async def test_an_interrupted_reply_leaves_the_gate_open(engine: Engine) -> None:
    """Whoever gives up in front of the slots stands in nobody's way."""
    async with Session(**engine.options(context_length=2048, parallel=2)) as session:
        first = await ask(session, "a", long_chat(12))
        for _ in range(5):
            async with kept_stream(session, "a", after(long_chat(12), first, "count to 100"), temperature=0) as stream:
                await anext(aiter(stream))
                session.interrupt()
        with anyio.fail_after(20):
            for number in range(3):
                await ask(session, f"b {number}", long_chat(20 + number))


async def test_the_users_own_folder_and_ours_are_not_both(engine: Engine, tmp_path: Path) -> None:
    """`--slot-save-path` among extra_args is the user's: then nothing of ours is kept."""
    async with Session(**engine.options(extra_args=("--slot-save-path", str(tmp_path)))) as session:
        await ask(session, "a", long_chat(13))
    with pytest.raises(ConfigError, match="kv_cache_bytes"):
        Session(**engine.options(kv_cache_bytes=-1))
