"""What of a conversation is sent. The counts are words here: the real ones are tested in tests/contract."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from llmsession import (
    Completion,
    ContextOverflowError,
    InvalidMessagesError,
    Message,
    StopReason,
    UnsupportedFeatureError,
    UsageError,
)
from llmsession.chat.context_window import Budget, Overflow, PendingSystemPrompt, check_overflow, split_exchanges
from llmsession.memory.conversation import Conversation, log_of
from llmsession.memory.turn import TurnState

pytestmark = pytest.mark.anyio

ROOM = 10
CONTEXT = 100


class Session:
    """A token for each word."""

    def __init__(self, *, counts: bool = True) -> None:
        self.model = "words"
        self.context_length = CONTEXT
        self.counts = counts
        self.asked: list[Sequence[Message]] = []
        self.count = 0

    async def count_tokens(self, messages: Sequence[Message]) -> int:
        if not self.counts:
            raise UnsupportedFeatureError("cannot count", feature="tokens", backend="words")
        self.count += 1
        return sum(len(message.content.split()) for message in messages)

    async def prompt(self, messages: Sequence[Message], **keywords: Any) -> Completion:
        self.asked.append(messages)
        return completion("in short")


def completion(text: str) -> Completion:
    """As if the model had said it."""
    return Completion(id="1", text=text, stop_reason=StopReason.END, seed=1, model="other")


def budget(session: Session, conversation: Conversation, *, overflow: Overflow = "cut", **fields: Any) -> Budget:
    """With room for a reply of ROOM words."""
    settings = {"given": PendingSystemPrompt(None), "history": None, "max_tokens": ROOM, **fields}
    return Budget(session, conversation, overflow=overflow, **settings)  # type: ignore[arg-type]


async def talk(exchanges: int, *, words: int = 5) -> Conversation:
    """Each turn says its number, in as many words; the last one waits for its answer."""
    conversation = Conversation.in_ram(system_prompt="be good")
    for number in range(exchanges):
        await conversation.add(Message.user(" ".join([f"q{number}"] * words)))
        await conversation.add(Message.assistant(" ".join([f"a{number}"] * words)))
    await log_of(conversation).ask(Message.user(" ".join(["last"] * words)))
    return conversation


def first_words(messages: Sequence[Message]) -> list[str]:
    """One of each."""
    return [message.content.split()[0] for message in messages]


async def test_what_fits_is_sent_whole() -> None:
    """DESIGN 6: nothing is left out before it has to be."""
    conversation = await talk(8)
    made = budget(Session(), conversation)
    await made.render_system()
    plan = await made.plan(conversation.path)
    assert (conversation.messages, ()) == (plan.messages, plan.dropped)


async def test_it_is_cut_in_whole_exchanges_to_three_quarters() -> None:
    """DESIGN 6: so that the prefix then stays put for many turns; the reply says what was left out."""
    conversation = await talk(9)  # 2 + 90 + 5 words, where 90 may be sent
    made = budget(Session(), conversation)
    await made.render_system()
    plan = await made.plan(conversation.path)
    assert ["q0", "a0", "q1", "a1", "q2", "a2"] == first_words(plan.dropped)
    assert ["be", "q3", "a3"] == first_words(plan.messages)[:3]
    assert "last" == first_words(plan.messages)[-1]
    await conversation.add(Message.assistant("short"))
    await log_of(conversation).ask(Message.user("next"))
    again = await made.plan(conversation.path)
    assert () == again.dropped
    assert plan.messages == again.messages[: len(plan.messages)]


async def test_what_is_pinned_stays_with_its_exchange() -> None:
    """CAPABILITIES D6."""
    conversation = await talk(9)
    await conversation.pin(conversation.path[0].id)
    made = budget(Session(), conversation)
    await made.render_system()
    plan = await made.plan(conversation.path)
    assert ["be", "q0", "a0", "q4"] == first_words(plan.messages)[:4]
    assert ["q1", "a1", "q2", "a2", "q3", "a3"] == first_words(plan.dropped)


async def test_a_message_that_is_too_long_alone_is_refused_with_numbers() -> None:
    """CAPABILITIES C16, D6: told beforehand with both numbers; what is pinned counts as well."""
    conversation = await talk(1)
    await log_of(conversation).fail(conversation.path[-1].id)
    await log_of(conversation).ask(Message.user("word " * 95))
    made = budget(Session(), conversation)
    await made.render_system()
    with pytest.raises(
        ContextOverflowError, match=r"takes 97 tokens.* 90 are there.*context of 100, 10 of it"
    ) as caught:
        await made.plan(conversation.path)
    assert (97, CONTEXT) == (caught.value.prompt_tokens, caught.value.context_length)
    conversation = await talk(9)
    for turn in conversation.path:
        await conversation.pin(turn.id)
    made = budget(Session(), conversation)
    await made.render_system()
    with pytest.raises(ContextOverflowError, match="and what is pinned"):
        await made.plan(conversation.path)


async def test_a_policy_may_refuse() -> None:
    """CAPABILITIES D6: nothing is left out then, and nothing is changed."""
    conversation = await talk(9)
    made = budget(Session(), conversation, overflow="refuse")
    await made.render_system()
    with pytest.raises(ContextOverflowError, match="the conversation takes 97 tokens") as caught:
        await made.plan(conversation.path)
    assert (97, CONTEXT) == (caught.value.prompt_tokens, caught.value.context_length)
    assert not any(turn.is_left_out for turn in conversation.turns)


async def test_a_policy_may_sum_up() -> None:
    """CAPABILITIES D6: a turn of the model's own, stored and marked, stands for what was left out."""
    conversation, session = await talk(9), Session()
    made = budget(session, conversation, overflow="summarize")
    await made.render_system()
    plan = await made.plan(conversation.path)
    assert ["be", "What", "in", "q3"] == first_words(plan.messages)[:4]
    summary = log_of(conversation).summary
    assert summary is not None
    assert ("in short", True) == (summary.message.content, summary.is_summary)
    (asked,) = session.asked
    assert "user: q0 q0" in asked[-1].content
    assert plan.messages == (await made.plan(conversation.path)).messages
    assert 1 == len(session.asked)


async def test_a_policy_may_be_a_function() -> None:
    """API.md 4: it is given the messages and how many tokens they may take, and gives those to be sent."""
    conversation = await talk(9)
    given = []

    def keep_last(messages: list[Message], tokens: int) -> list[Message]:
        given.append((len(messages), tokens))
        return messages[-1:]

    made = budget(Session(), conversation, overflow=keep_last)
    await made.render_system()
    plan = await made.plan(conversation.path)
    assert ([(20, 90)], ["last"], 19) == (given, first_words(plan.messages), len(plan.dropped))

    async def keep_all(messages: list[Message], tokens: int) -> list[Message]:
        return messages

    made = budget(Session(), conversation, overflow=keep_all)
    with pytest.raises(ContextOverflowError, match="what overflow= chose takes 97 tokens"):
        await made.plan(conversation.path)
    made = budget(Session(), conversation, overflow=lambda messages, tokens: [])
    with pytest.raises(InvalidMessagesError, match="what overflow= chose: there are no messages"):
        await made.plan(conversation.path)
    assert "summarize" == check_overflow("summarize")
    with pytest.raises(UsageError, match="overflow is"):
        check_overflow("drop")


async def test_history_sends_the_newest_exchanges() -> None:
    """API.md 4: `history=N` sends only the last N exchanges; what is pinned as well."""
    conversation = await talk(4)
    await conversation.pin(conversation.path[1].id)
    for history, expected in ((0, ["be", "q0", "a0", "last"]), (1, ["be", "q0", "a0", "q3", "a3", "last"])):
        made = budget(Session(), conversation, history=history)
        await made.render_system()
        assert expected == first_words((await made.plan(conversation.path)).messages)


async def test_a_server_that_cannot_count_says_when_it_is_too_much() -> None:
    """CAPABILITIES C16: then the older half goes, and what is left is tried again; never in silence."""
    conversation = await talk(4)
    made = budget(Session(counts=False), conversation)
    await made.render_system()
    assert 10 == len((await made.plan(conversation.path)).messages)
    error = ContextOverflowError("too much", prompt_tokens=120, context_length=100)
    plan = await made.plan_less(conversation.path, error)
    assert ["q0", "a0", "q1", "a1"] == first_words(plan.dropped)
    assert ["q2", "a2"] == first_words((await made.plan_less(conversation.path, error)).dropped)
    await made.plan_less(conversation.path, error)
    with pytest.raises(ContextOverflowError, match="too much"):
        await made.plan_less(conversation.path, error)


async def test_a_call_and_its_result_are_one_with_their_exchange() -> None:
    """The issue: a stored call and its result are treated as one."""
    turn = SimpleNamespace
    turns = [
        turn(message=message, is_pinned=False)
        for message in (
            Message.user("sum?"),
            Message("assistant", tool_calls=()),  # type: ignore[arg-type]
            Message.tool("4", tool_call_id="1"),
            Message.assistant("4"),
            Message.user("thanks"),
        )
    ]
    assert [4, 1] == [len(exchange.turns) for exchange in split_exchanges(turns)]  # type: ignore[arg-type]


async def test_what_the_engine_counted_spares_the_count() -> None:
    """DESIGN 6: counts of settled turns are kept; one byte is never more than one token."""
    conversation = Conversation.in_ram()
    asked = await log_of(conversation).ask(Message.user("hello"))
    said = completion("hi")
    await log_of(conversation).save_reply(asked.id, said, TurnState.COMPLETE, tokens=2, asked_tokens=30)
    await log_of(conversation).ask(Message.user("again"))
    session = Session()
    session.model, session.context_length = "other", 1000
    plan = await budget(session, conversation).plan(conversation.path)
    assert (["hello", "hi", "again"], 0) == (first_words(plan.messages), session.count)
    session.context_length = 240 + ROOM  # four texts of nobody knows how many tokens would be more
    await budget(session, conversation).plan(conversation.path)
    assert 0 == session.count
    session.model = "another"
    await budget(session, conversation).plan(conversation.path)
    assert 1 == session.count
