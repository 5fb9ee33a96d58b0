"""The chat between a reader and a Chat, without a terminal and without a model. Row D9."""

from __future__ import annotations

import io
import re
import signal
import threading
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from rich.console import Console

from llmsession.terminal.chat_loop import ChatLoop
from llmsession.terminal.commands import COMMANDS
from llmsession.types.completion import StopReason
from llmsession.types.errors import ClosedError, ServerExitedError, UsageError
from llmsession.types.events import ReasoningDelta
from llmsession.types.messages import Message
from tests.unit.terminal.fake_chat import FakeChat, FakeConversation

pytestmark = pytest.mark.anyio


class Typed:
    """What is typed, and what is answered to questions. `asked` are the questions, with what was filled in."""

    def __init__(self, *lines: str, answers: tuple[str | None, ...] = ()) -> None:
        self._lines = list(lines)
        self._answers = list(answers)
        self.asked: list[tuple[str, str]] = []

    async def read(self) -> str | None:
        return self._lines.pop(0) if self._lines else None

    async def ask(self, question: str, *, given: str = "") -> str | None:
        self.asked.append((question, given))
        return self._answers.pop(0)


async def talk(chat: Any, reader: Typed, *, is_interactive: bool = True, **settings: Any) -> str:
    """To the end of what was typed. Returns what was shown, without our own control sequences."""
    out = io.StringIO()
    console = Console(file=out, width=100, height=50, highlight=False, emoji=False)
    loop = ChatLoop(chat, reader, console, commands=COMMANDS, is_interactive=is_interactive, **settings)
    with anyio.fail_after(20):
        await loop.run()
    return re.sub(r"\x1b\[(\?7[lh]|[KJ]|\d+A)", "", out.getvalue())


async def test_words_go_to_the_model_with_the_keywords() -> None:
    """D9: and an empty line goes nowhere."""
    chat = FakeChat()
    shown = await talk(chat, Typed("hello", "", " ", " !not a command"), keywords={"temperature": 0.5})
    assert [("hello", {"temperature": 0.5}), ("!not a command", {"temperature": 0.5})] == chat.asked
    assert 2 == shown.count("ok\n")


async def test_the_next_reply_alone_begins_as_it_was_told() -> None:
    """D9: `<`."""
    chat = FakeChat()
    reader = Typed("< Once", "tell", "more", "<", "again", "<", "x", answers=("Sure", ""))
    await talk(chat, reader)
    assert [
        ("tell", {"reply_start": "Once"}),
        ("more", {}),
        ("again", {"reply_start": "Sure"}),
        ("x", {}),
    ] == chat.asked


async def test_after_a_stop_an_empty_line_rolls_again_with_another_seed() -> None:
    """D9: Ctrl-C in a reply stops it, then Enter re-rolls; with the same seed it would be the same reply."""
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals come to the main thread")
    chat = FakeChat(replies=[["one ", "wait"], ["two ", "wait"], ["three"]])

    async def press() -> None:
        for _ in range(2):
            await chat.is_waiting.wait()
            chat.is_waiting = anyio.Event()
            signal.raise_signal(signal.SIGINT)

    before, shown = signal.getsignal(signal.SIGINT), ""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(press)
        shown = await talk(chat, Typed("go", "", "", ""), keywords={"seed": 7})
    assert [("go", {"seed": 7}), (None, {}), (None, {})] == chat.asked
    assert 2 == shown.count("stopped: Enter gives another reply")
    assert before == signal.getsignal(signal.SIGINT)


async def test_a_stop_before_the_reply_has_begun_is_one_as_well() -> None:
    """D9: while a slot is waited for, and the stream cannot be cancelled yet."""

    class Waiting(FakeChat):
        def stream(self, text: str, **keywords: Any) -> Any:
            signal.raise_signal(signal.SIGINT)
            return super().stream(text, **keywords)

    shown = await talk(Waiting(replies=[["wait", "never"]]), Typed("go"))
    assert "stopped: Enter" in shown
    assert "never" not in shown


async def test_an_error_is_told_and_enter_tries_again() -> None:
    """D9: errors as today; what was asked is not lost."""
    died = ServerExitedError("the server\x1b[2J ended", returncode=1, log_tail="")
    chat = FakeChat(replies=[["so far ", died], ["better"]])
    shown = await talk(chat, Typed("go", ""))
    assert "the server�[2J ended" in shown
    assert [("go", {}), (None, {})] == chat.asked


async def test_a_pipe_has_no_commands_and_fails_with_its_first_error(capsys: pytest.CaptureFixture[str]) -> None:
    """D9: a pipe gets plain text."""
    died = ServerExitedError("the server ended", returncode=1, log_tail="")
    chat = FakeChat(replies=[["**a**\n", "b"], [ReasoningDelta(text="hm"), "c"], ["d", died], ["never"]])
    with pytest.raises(ServerExitedError):
        await talk(chat, Typed("!help", "", "< x", "more", "last"), is_interactive=False)
    assert ["!help", "< x", "more"] == [text for text, _ in chat.asked]
    assert "**a**\nb\nc\nd\n" == capsys.readouterr().out


async def test_a_closed_session_ends_the_chat() -> None:
    """DESIGN 4: nothing more can be asked of it."""
    with pytest.raises(ClosedError):
        await talk(FakeChat(replies=[[ClosedError("the session was closed")]]), Typed("go", "more"))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("!help", ["!rewind [N]", "< TEXT", "Ctrl-C"]),
        ("!stats", ["443 / 8192 tokens\n5 % of context\n7 messages\n"]),
        ("!inspect", ["control", "<|im_start|>user\\n", "hello\\x1b[31m", "2 of them cached", "was started again"]),
        ("!hepl", ["no command !hepl: did you mean !help?", "A space before it"]),
        ("!xyzzy", ["no command !xyzzy: !help lists them."]),
        ("!rewind x", ["such as !rewind 2"]),
        ("!rewind 0", ["such as !rewind 2"]),
        ("!rewind 3", ["there are 2 exchanges"]),
        ("!edit 3", ["1 to 2"]),
        ("!save", ["takes the name of a file"]),
    ],
)
async def test_what_commands_say(line: str, words: list[str]) -> None:
    """D9: the commands, and what is wrong with them in one sentence."""
    talked = FakeConversation(*(make(text) for text in "ab" for make in (Message.user, Message.assistant)))
    shown = await talk(FakeChat(conversation=talked), Typed(line))
    for each in words:
        assert each in shown
    assert "\x1b" not in shown


async def test_a_command_can_be_typed_at_its_own_prompt() -> None:
    """D9: `!` then Enter lists them and asks for one."""
    reader = Typed("!", "!", answers=("stats", None))
    shown = await talk(FakeChat(), reader)
    assert [("! ", ""), ("! ", "")] == reader.asked
    assert 1 == shown.count("443 / 8192")
    assert 2 == shown.count("!rewind [N]")


async def test_exit_leaves() -> None:
    """D9: `!exit`."""
    chat = FakeChat()
    await talk(chat, Typed("!exit", "hello"))
    assert [] == chat.asked


async def test_an_earlier_turn_is_edited_and_answered() -> None:
    """D9: `!edit [turn]`, prefilled; by its place among what was said, not by its id."""
    talked = FakeConversation(*(make(text) for text in "ab" for make in (Message.user, Message.assistant)))
    chat = FakeChat(conversation=talked)
    reader = Typed("!edit 1", "!edit", "!edit", "!edit", answers=("A", None, "A", " "))
    shown = await talk(chat, reader)
    assert [("edit> ", "a"), *[("edit> ", "A")] * 3] == reader.asked
    assert [(None, {})] == chat.asked
    assert ["A", "ok"] == [message.content for message in chat.conversation.messages]
    assert 3 == shown.count("(nothing was changed)")


async def test_the_system_prompt_is_set_edited_and_taken_away() -> None:
    """D9: `!!`."""
    chat = FakeChat(system_prompt="Be kind.")
    reader = Typed("!!", "!! Be brief.", "!!", "!!", answers=(None, "Be brief.", ""))
    shown = await talk(chat, reader)
    assert [("system> ", "Be kind."), *[("system> ", "Be brief.")] * 2] == reader.asked
    assert chat.system_prompt is None
    assert 2 == shown.count("as it was")
    assert "no system prompt any more" in shown


async def test_a_user_is_forgotten_by_the_memory_only_when_that_was_meant() -> None:
    """D9: `!forget`; the new conversation has what the program was started with, and the same settings."""
    forgotten: list[str] = []

    async def get(user: str, channel: str, *, system_prompt: str | None) -> FakeConversation:
        return FakeConversation(user=user, system_prompt=system_prompt)

    async def forget_user(user: str) -> None:
        forgotten.append(user)

    memory: Any = SimpleNamespace(get=get, forget_user=forget_user)
    chat = FakeChat(conversation=FakeConversation(Message.user("a"), user="Ada", system_prompt="mine"))
    out = io.StringIO()
    loop = ChatLoop(
        chat,  # type: ignore[arg-type]
        Typed("!forget", "!forget", answers=("no", "Yes ")),
        Console(file=out, width=100),
        commands=COMMANDS,
        is_interactive=True,
        memory=memory,
        system_prompt="Be kind.",
    )
    await loop.run()
    assert ["Ada"] == forgotten
    fresh = loop.chat.conversation
    assert ("Ada", "Be kind.", []) == (fresh.user, fresh.system_prompt, fresh.path)
    assert "(nothing was deleted)" in out.getvalue()


async def test_what_ended_a_reply_is_said() -> None:
    """D9: cut, empty, a part of the conversation left out."""

    class Ending(FakeChat):
        ending: Any = None

        def _next(self) -> Any:
            stream = super()._next()
            make = stream._completion
            stream._completion = lambda: make_with(make(), **self.ending)  # type: ignore[method-assign]
            return stream

    def make_with(completion: Any, **fields: Any) -> Any:
        import msgspec

        return msgspec.structs.replace(completion, **fields)

    old = (Message.user("a"), Message.assistant("b"))
    for ending, words in [
        ({"stop_reason": StopReason.LENGTH}, "its limit was reached"),
        ({"text": " "}, "it said nothing"),
        ({"dropped": old}, "the oldest exchange no longer fits"),
        ({"dropped": old + old}, "the oldest 2 exchanges no longer fit"),
    ]:
        chat = Ending()
        chat.ending = ending
        assert words in await talk(chat, Typed("go"))


async def test_a_refused_call_is_no_reason_to_try_again() -> None:
    """Bad input: what is wrong with the call itself stays wrong."""
    chat = FakeChat(replies=[[UsageError("no such keyword")]])
    await talk(chat, Typed("go", ""))
    assert 1 == len(chat.asked)
