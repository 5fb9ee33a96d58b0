"""A conversation is a tree of turns, of which one path is active. DESIGN 2, API 4; rows D5, D10."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest

from llmsession import (
    Conversation,
    DuplicateKeyError,
    InvalidMessagesError,
    Message,
    Role,
    ToolCall,
    Turn,
    TurnState,
    Usage,
    UsageError,
)
from llmsession.memory.conversation import log_of
from tests.memories import reply

pytestmark = pytest.mark.anyio

PNG = "data:image/png;base64,iVBORw0KGgo="


async def exchange(conversation: Conversation, text: str) -> tuple[Turn, Turn]:
    """A question, and "re: " with its text."""
    asked = await conversation.add(text)
    return asked, await conversation.add(Message.assistant(f"re: {text}"))


def texts(conversation: Conversation) -> list[str]:
    """Of the active path."""
    return [message.content for message in conversation.messages]


async def rendered(conversation: Conversation) -> str | None:
    """The system prompt as it was sent."""
    await log_of(conversation).refresh()
    return log_of(conversation).rendered_system


# What is added.


async def test_what_is_added_is_the_path(conversation: Conversation) -> None:
    """API 4: `messages` is the active path, after the system prompt."""
    await conversation.set_system_prompt("Be kind.")
    first, second = await exchange(conversation, "hello")
    assert [Message.system("Be kind."), Message.user("hello"), Message.assistant("re: hello")] == conversation.messages
    assert [first, second] == conversation.turns == conversation.path
    assert (None, first.id) == (first.parent, second.parent)
    assert (TurnState.COMPLETE, TurnState.COMPLETE) == (first.state, second.state)
    assert conversation.as_text() == "system: Be kind.\n\nuser: hello\n\nassistant: re: hello"


@pytest.mark.parametrize(
    "text",
    [
        "\0 and \0",
        "\U0001f600 \U0010ffff",
        "x" * 1_000_000,
        " ",
        "\r\n\u2028\ufeff",
        "'; DROP TABLE turn; --",
        "<|im_end|>",
    ],
    ids=["nul", "four bytes", "a megabyte", "a space", "separators", "sql", "control"],
)
async def test_a_message_may_hold_any_text(conversation: Conversation, text: str) -> None:
    """Row D2: content is text of any kind."""
    turn = await conversation.add(text)
    assert text == turn.message.content
    assert [text] == texts(conversation)


async def test_a_lone_surrogate_is_refused(conversation: Conversation) -> None:
    """It is no UTF-8 text; nothing of it is kept."""
    for refused in (conversation.add("\ud800"), conversation.set_system_prompt("\ud800")):
        with pytest.raises(InvalidMessagesError, match="lone surrogate"):
            await refused
    assert [] == conversation.messages


async def test_messages_of_every_form_are_kept_whole(conversation: Conversation) -> None:
    """API 2: a str, a Message or a dict; tool calls, names and images stay."""
    asked = Message(Role.USER, "look", name="ann", images=(PNG,))
    called = Message(Role.ASSISTANT, tool_calls=(ToolCall(id="1", name="clock", arguments={"zone": ["\0", 1.5]}),))
    await conversation.add(asked)
    await conversation.add(called)
    await conversation.add({"role": "tool", "content": "noon", "tool_call_id": "1"})
    await log_of(conversation).refresh()
    assert [asked, called, Message.tool("noon", tool_call_id="1")] == conversation.messages


async def test_an_image_is_kept_itself_and_not_its_path(conversation: Conversation, tmp_path: Any) -> None:
    """What is kept does not depend on files that may go."""
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    await conversation.add(Message.user("look", images=(path,)))
    path.unlink()
    assert (PNG,) == conversation.messages[0].images


@pytest.mark.parametrize(
    ("said", "wrong", "fault"),
    [
        (["hello"], "again", "message 2 .user.: the assistant has not answered yet"),
        ([], Message.assistant("hi"), "message 1 .assistant.: an assistant message answers a user"),
        ([], Message.tool("4", tool_call_id="1"), "message 1 .tool.: a tool result comes after"),
        ([], Message.system("be"), "message 1 .system.: .*set_system_prompt"),
        ([], "", "message 1 .user.: the message is empty"),
    ],
    ids=["two of the user", "a reply to nothing", "a result without its call", "a system prompt", "an empty one"],
)
async def test_what_is_out_of_order_is_refused_with_its_index(
    conversation: Conversation, said: list[str], wrong: Message | str, fault: str
) -> None:
    """Row D10: the order of roles is enforced; the index is that in `messages`."""
    await conversation.set_system_prompt("Be kind.")
    for text in said:
        await conversation.add(text)
    before = conversation.messages
    with pytest.raises(InvalidMessagesError, match=fault) as caught:
        await conversation.add(wrong)
    assert len(before) == caught.value.index
    assert before == conversation.messages


# The system prompt.


async def test_the_system_prompt_can_be_changed_and_taken_away(conversation: Conversation) -> None:
    """API 4: the turns stay; what was rendered of it does not."""
    await conversation.set_system_prompt("It is {now}.")
    await log_of(conversation).keep_rendered("It is noon.", "tiny")
    await conversation.set_system_prompt("It is {now}.")
    assert log_of(conversation).rendered_system == "It is noon."
    assert log_of(conversation).rendered_for == "tiny"
    await exchange(conversation, "hello")
    await conversation.set_system_prompt("")
    assert conversation.system_prompt is None
    assert await rendered(conversation) is None
    assert ["hello", "re: hello"] == texts(conversation)


# The tree.


async def test_an_edit_is_a_turn_beside_the_first(conversation: Conversation) -> None:
    """Row D5: the path goes through it, and what followed is kept aside."""
    asked, _ = await exchange(conversation, "hello")
    await conversation.pin(asked.id)
    edited = await conversation.edit(asked.id, "goodbye")
    assert ["goodbye"] == texts(conversation)
    assert asked.parent == edited.parent
    assert edited.is_pinned
    await conversation.add(Message.assistant("bye"))
    await conversation.branch(asked.id)
    assert ["hello"] == texts(conversation)
    assert len(conversation.turns) == 4


async def test_a_branch_goes_on_from_an_earlier_turn(conversation: Conversation) -> None:
    """Row D5: both ways stay in the tree."""
    _, first = await exchange(conversation, "a")
    _, second = await exchange(conversation, "b")
    await conversation.branch(first.id)
    await exchange(conversation, "c")
    assert ["a", "re: a", "c", "re: c"] == texts(conversation)
    assert ["a", "re: a", "b", "re: b"] == [turn.message.content for turn in log_of(conversation).path_to(second.id)]


async def test_rewind_goes_back_whole_exchanges(conversation: Conversation) -> None:
    """Row D5: n of them, and no more than there are."""
    for text in ("a", "b", "c"):
        await exchange(conversation, text)
    await conversation.rewind()
    assert ["a", "re: a", "b", "re: b"] == texts(conversation)
    await conversation.rewind(0)
    await conversation.rewind(2)
    assert [] == conversation.messages
    for wrong in (1, -1):
        with pytest.raises(UsageError, match=r"has 0 exchanges"):
            await conversation.rewind(wrong)
    assert len(conversation.turns) == 6


async def test_clear_leaves_the_system_prompt_and_the_tree(conversation: Conversation) -> None:
    """API 4."""
    await conversation.set_system_prompt("Be kind.")
    await exchange(conversation, "a")
    await conversation.clear()
    await conversation.clear()
    assert [Message.system("Be kind.")] == conversation.messages
    assert len(conversation.turns) == 2


async def test_an_unknown_turn_is_named(conversation: Conversation) -> None:
    """One clear sentence."""
    calls = [
        conversation.edit(99, "x"),
        conversation.pin(99),
        conversation.branch(99),
        conversation.mark_delivered(99),
        log_of(conversation).fail(99),
        log_of(conversation).leave_out([99]),
        log_of(conversation).keep_tokens({99: 1}),
        log_of(conversation).ask("x", parent=99),
        log_of(conversation).save_reply(99, reply("x"), TurnState.COMPLETE),
    ]
    for call in calls:
        with pytest.raises(UsageError, match="no turn 99"):
            await call
    for look in (log_of(conversation).path_to, log_of(conversation).reply_to):
        with pytest.raises(UsageError, match="no turn 99"):
            look(99)


async def test_pins_and_counts_are_kept(conversation: Conversation) -> None:
    """Row D6: what the budget needs to know of each turn."""
    asked, said = await exchange(conversation, "a")
    await conversation.pin(asked.id)
    await log_of(conversation).keep_tokens({asked.id: 5, said.id: 9})
    assert [(True, 5), (False, 9)] == [(turn.is_pinned, turn.tokens) for turn in conversation.turns]
    await conversation.pin(asked.id, False)
    assert not conversation.turns[0].is_pinned


# Asked and answered.


async def test_a_question_is_pending_until_its_reply(conversation: Conversation) -> None:
    """Row D4: on disk before the model is asked; a checkpoint leaves it pending."""
    asked = await log_of(conversation).ask("hello", key="event-1")
    assert (TurnState.PENDING, "event-1") == (asked.state, asked.key)
    assert asked == log_of(conversation).find("event-1")
    assert log_of(conversation).reply_to(asked.id) is None
    part = await log_of(conversation).save_reply(asked.id, reply("goo"), TurnState.PENDING)
    assert TurnState.PENDING is log_of(conversation).path_to(asked.id)[-1].state
    completion = reply("good day", usage=Usage(prompt_tokens=3, completion_tokens=2), reasoning="hm")
    whole = await log_of(conversation).save_reply(
        asked.id, completion, TurnState.COMPLETE, reply=part.id, tokens=4, asked_tokens=3
    )
    await log_of(conversation).refresh()
    assert part.id == whole.id
    assert [Message.user("hello"), Message.assistant("good day")] == conversation.messages
    assert (TurnState.COMPLETE, completion, 4) == (whole.state, whole.completion, whole.tokens)
    assert (TurnState.COMPLETE, 3) == (conversation.path[0].state, conversation.path[0].tokens)
    assert whole == log_of(conversation).reply_to(asked.id)


async def test_a_key_is_used_once(conversation: Conversation) -> None:
    """API 5."""
    asked = await log_of(conversation).ask("hello", key="k")
    await log_of(conversation).save_reply(asked.id, reply("hi"), TurnState.COMPLETE)
    with pytest.raises(DuplicateKeyError, match="'k' was used") as caught:
        await log_of(conversation).ask("hello", key="k")
    assert caught.value.key == "k"
    for wrong in ("", "\ud800", 7):
        with pytest.raises(UsageError, match="key"):
            await log_of(conversation).ask("hello", key=wrong)  # type: ignore[arg-type]
    assert ["hello", "hi"] == texts(conversation)


async def test_a_question_that_failed_is_off_the_path(conversation: Conversation) -> None:
    """Nothing was said to it; it stays in the tree, and can be asked again."""
    await exchange(conversation, "a")
    asked = await log_of(conversation).ask("b", key="k")
    await log_of(conversation).fail(asked.id)
    assert ["a", "re: a"] == texts(conversation)
    assert TurnState.FAILED is conversation.turns[-1].state
    again = await log_of(conversation).ask_again(asked.id)
    assert (asked.id, TurnState.PENDING) == (again.id, again.state)
    assert ["a", "re: a", "b"] == texts(conversation)


@pytest.mark.parametrize("key", [None, "k"])
async def test_an_unanswered_question_is_left_beside_the_next(conversation: Conversation, key: str | None) -> None:
    """A crash before the first token: FAILED, but one with a key waits for that."""
    await exchange(conversation, "a")
    left = await log_of(conversation).ask("b", key=key)
    await log_of(conversation).ask("c")
    assert ["a", "re: a", "c"] == texts(conversation)
    state = TurnState.FAILED if key is None else TurnState.PENDING
    assert state is log_of(conversation).path_to(left.id)[-1].state


async def test_a_reply_that_was_cut_is_a_reply(conversation: Conversation) -> None:
    """A crash in the middle, and the user goes on without a key: what was said stays said."""
    asked = await log_of(conversation).ask("a")
    await log_of(conversation).save_reply(asked.id, reply("par"), TurnState.PENDING)
    await log_of(conversation).ask("b")
    assert ["a", "par", "b"] == texts(conversation)
    states = [TurnState.COMPLETE, TurnState.INTERRUPTED, TurnState.PENDING]
    assert states == [turn.state for turn in conversation.path]


async def test_a_cut_reply_with_a_key_is_finished_aside(conversation: Conversation) -> None:
    """What came meanwhile stays the active path."""
    asked = await log_of(conversation).ask("a", key="k")
    part = await log_of(conversation).save_reply(asked.id, reply("par"), TurnState.PENDING)
    other = await log_of(conversation).ask("b")
    await log_of(conversation).save_reply(other.id, reply("re: b"), TurnState.COMPLETE)
    await log_of(conversation).ask_again(asked.id)
    await log_of(conversation).save_reply(asked.id, reply("partial"), TurnState.COMPLETE, reply=part.id)
    assert ["b", "re: b"] == texts(conversation)
    assert ["a", "partial"] == [turn.message.content for turn in log_of(conversation).path_to(part.id)]


async def test_a_second_reply_stands_beside_the_first(conversation: Conversation) -> None:
    """Row D5, retry: the path ends in the newest; the reply on the path is the reply."""
    asked = await log_of(conversation).ask("a")
    first = await log_of(conversation).save_reply(asked.id, reply("one"), TurnState.COMPLETE)
    second = await log_of(conversation).save_reply(asked.id, reply("two"), TurnState.COMPLETE)
    assert ["a", "two"] == texts(conversation)
    assert second == log_of(conversation).reply_to(asked.id)
    await conversation.branch(first.id)
    assert first == log_of(conversation).reply_to(asked.id)


async def test_a_question_with_a_tool_call_is_pending_until_the_last_reply(conversation: Conversation) -> None:
    """A stored call and its result are one; the user's turn is done with the words that follow."""
    asked = await log_of(conversation).ask("what time is it?")
    call = ToolCall(id="1", name="clock", arguments={})
    await log_of(conversation).save_reply(asked.id, reply("", tool_calls=(call,)), TurnState.COMPLETE)
    assert [TurnState.PENDING, TurnState.COMPLETE] == [turn.state for turn in conversation.path]
    result = await conversation.add(Message.tool("noon", tool_call_id="1"))
    last = await log_of(conversation).save_reply(result.id, reply("It is noon."), TurnState.COMPLETE)
    assert [TurnState.COMPLETE] * 4 == [turn.state for turn in conversation.path]
    await conversation.mark_delivered(last.id)
    states = [TurnState.DELIVERED, TurnState.COMPLETE, TurnState.COMPLETE, TurnState.DELIVERED]
    assert states == [turn.state for turn in conversation.path]


async def test_delivered_is_said_of_both(conversation: Conversation) -> None:
    """Row D4: by the reply or by the question, and not of what is not whole."""
    asked = await log_of(conversation).ask("a")
    with pytest.raises(UsageError, match="no whole reply"):
        await conversation.mark_delivered(asked.id)
    part = await log_of(conversation).save_reply(asked.id, reply("x"), TurnState.PENDING)
    with pytest.raises(UsageError, match="no whole reply"):
        await conversation.mark_delivered(part.id)
    await log_of(conversation).save_reply(asked.id, reply("xy"), TurnState.INTERRUPTED, reply=part.id)
    await conversation.mark_delivered(asked.id)
    assert [TurnState.DELIVERED] * 2 == [turn.state for turn in conversation.path]


async def test_replies_go_where_they_belong(conversation: Conversation) -> None:
    """Not to a reply, not to another's question."""
    asked, said = await exchange(conversation, "a")
    other = await log_of(conversation).ask("b")
    with pytest.raises(UsageError, match="nothing to reply to"):
        await log_of(conversation).save_reply(said.id, reply("x"), TurnState.COMPLETE)
    with pytest.raises(UsageError, match=f"turn {said.id} is not a reply to turn {other.id}"):
        await log_of(conversation).save_reply(other.id, reply("x"), TurnState.COMPLETE, reply=said.id)
    with pytest.raises(UsageError, match="mark_delivered"):
        await log_of(conversation).save_reply(other.id, reply("x"), TurnState.DELIVERED)
    with pytest.raises(UsageError, match="only a user's turn"):
        await log_of(conversation).ask_again(said.id)
    with pytest.raises(InvalidMessagesError, match="not answered yet"):
        await log_of(conversation).ask("c", parent=asked.id)
    with pytest.raises(InvalidMessagesError, match="role assistant"):
        await log_of(conversation).ask(Message.assistant("c"))


# What the budget leaves out.


async def test_a_summary_stands_for_what_is_left_out(conversation: Conversation) -> None:
    """Row D6: one commit; the summary is off the path and hangs on the last turn that it sums up."""
    first = await exchange(conversation, "a")
    second = await exchange(conversation, "b")
    assert await log_of(conversation).leave_out([turn.id for turn in first]) is None
    completion = reply("they greeted")
    kept = await log_of(conversation).leave_out([turn.id for turn in (*first, *second)], completion)
    assert kept is not None
    assert (second[1].id, True, completion) == (kept.parent, kept.is_summary, kept.completion)
    assert kept == log_of(conversation).summary
    assert [True] * 4 == [turn.is_left_out for turn in conversation.path]
    assert kept not in conversation.path
    assert conversation.path[-1] == log_of(conversation).reply_to(second[0].id)
    for call in (conversation.branch(kept.id), conversation.edit(kept.id, "x")):
        with pytest.raises(UsageError, match="is a summary"):
            await call
    await conversation.branch(first[1].id)
    assert log_of(conversation).summary is None


# Time, and one at a time.


async def test_a_clock_that_is_set_back_changes_nothing(
    conversation: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`last_update` never goes back, and follows again when the clock has come up."""
    await conversation.add("a")
    before = conversation.last_update
    clock = [before - timedelta(days=400)]
    for name in ("log.now", "conversation.now"):
        monkeypatch.setattr(f"llmsession.memory.{name}", lambda: clock[0])
    turn = await conversation.add(Message.assistant("b"))
    assert before == conversation.last_update
    assert clock[0] == turn.created
    assert UTC == turn.created.tzinfo
    clock[0] = datetime(2200, 1, 1, tzinfo=UTC)
    await conversation.add("c")
    assert clock[0] == conversation.last_update


async def test_those_who_answer_wait_in_order(conversation: Conversation) -> None:
    """DESIGN 4: one turn at a time, and who came first goes first; who is cancelled leaves the queue."""
    order = list[int]()

    async def answer(number: int, scope: anyio.CancelScope) -> None:
        with scope:
            async with log_of(conversation).answering():
                order.append(number)
                await anyio.lowlevel.checkpoint()
                order.append(number)

    scopes = [anyio.CancelScope() for _ in range(5)]
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks, log_of(conversation).answering():
            for number, scope in enumerate(scopes):
                tasks.start_soon(answer, number, scope)
                await anyio.wait_all_tasks_blocked()
            scopes[0].cancel()
            scopes[2].cancel()
            await anyio.wait_all_tasks_blocked()
            assert [] == order
    assert [1, 1, 3, 3, 4, 4] == order
